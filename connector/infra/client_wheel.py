"""The client's wheel, packed from the client that is installed in the server's environment.

A data space need not have a package index. Its connectors serve the client that fits them, and the page of a dataset
shows the line that installs it. The wheel has the public client alone: no setting and no data of this connector.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

PATH = "/client"
_NAME = "hanse"
_WHEEL = b"Wheel-Version: 1.0\nGenerator: hanse-server\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_KEPT = ("METADATA", "entry_points.txt", "licenses/LICENSE")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes from each process


def install_line(base: str) -> str:
    """Return the command that installs the client from the connector at `base`."""
    name = wheel_name()
    return f"pip install {base}{PATH}/{name}" if name else "pip install ./client  # in a checkout of Hanse"


def wheel_name() -> str:
    """Return the wheel's file name; empty if the client is not installed here."""
    try:
        return f"{_NAME}-{distribution(_NAME).version}-py3-none-any.whl"
    except PackageNotFoundError:
        return ""


@cache
def pack_wheel() -> bytes:
    """Pack the wheel (PEP 427): about 200 KB, kept for the life of the process."""
    found = distribution(_NAME)
    info = f"{_NAME}-{found.version}.dist-info"
    members = {
        **_list_modules(),
        f"{info}/WHEEL": _WHEEL,
        **{f"{info}/{name}": (found.read_text(name) or "").encode() for name in _KEPT},
    }
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _list_modules() -> dict[str, bytes]:
    """Return the package's files by path, without importing it; an installation in place has them elsewhere."""
    spec = find_spec(_NAME)
    if spec is None or spec.origin is None:
        raise PackageNotFoundError(_NAME)
    root = Path(spec.origin).parent
    files = (path for path in sorted(root.rglob("*")) if path.suffix == ".py" or path.name == "py.typed")
    return {path.relative_to(root.parent).as_posix(): path.read_bytes() for path in files}


def _digest(data: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
