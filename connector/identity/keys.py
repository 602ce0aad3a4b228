"""Our own signing keys and secrets: made at first start, kept in the data directory, readable by us only.

Each is what it was, or there is no start: with an empty secret everybody could compute what it protects, and one that
is made anew beside records of another makes other masks, another identity and another log of what seems the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from connector.errors import BadInput, Conflict
from connector.infra import atomic_files

_BYTES = 32  # of a secret, and of an Ed25519 key
_RESTORE = (
    "restore it from its backup, or copy it from another process on the same database (docs/operations.md says what to "
    "do where it is lost for good)"
)


def participant_key(directory: Path, *, new: bool = True) -> ECKey:
    """The P-256 key that signs our tokens (ES256: understood by every peer). `new`: one may be made, as in all of
    these; else Conflict where there is none. BadInput for a file that holds something else."""
    path = directory / "participant.pem"
    text = _kept(path, lambda: ECKey.generate_key("P-256").as_pem(private=True), new=new)
    with suppress(ValueError, TypeError, JoseError):  # TypeError: one that a passphrase is needed for
        key = ECKey.import_key(text)
        if key.is_private and key.curve_name == "P-256":
            return key
    raise BadInput(
        f"expected a private key of the curve P-256 in PEM, not encrypted, in {path}, came something else; {_help(new)}"
    )


def public_jwk(key: ECKey) -> dict[str, Any]:
    """The public half, with its RFC 7638 thumbprint as `kid`."""
    return {**key.as_dict(private=False), "kid": key.thumbprint()}


def log_key(directory: Path, *, new: bool = True) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key that signs the audit log's checkpoints (C2SP signed-note)."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(_bytes(directory / "log.key", _new_log_key, new=new))


def former_log_keys(directory: Path) -> list[ed25519.Ed25519PrivateKey]:
    """Those that were the log's: known, so that a log which ends with one is known for an old one."""
    return [
        ed25519.Ed25519PrivateKey.from_private_bytes(_bytes(path, _new_log_key, new=False))
        for path in sorted(directory.glob("log-*.key"))
    ]


def next_log_key(directory: Path) -> ed25519.Ed25519PrivateKey:
    """The key that is to be the log's after this one: the same each time, until `change_log_key`."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(_bytes(directory / "log.next", _new_log_key, new=True))


def change_log_key(directory: Path, *, before: str) -> None:
    """Make the next one the log's key, for whom the one before was. That one stays as `log-<before>.key`, with which
    nothing is signed; its bytes, as it may be a link to where it is not kept."""
    now, after = directory / "log.key", directory / "log.next"
    _kept(directory / f"log-{before}.key", now.read_bytes, new=True)
    after.chmod(now.stat().st_mode & 0o777)
    after.replace(now)
    atomic_files.sync(directory)


def secret(directory: Path, name: str, *, new: bool = True) -> bytes:
    """32 random bytes or more, the same at every start: for keyed hashes and cursors, which take any number."""
    path = directory / f"{name}.secret"
    data = _kept(path, lambda: os.urandom(_BYTES), new=new)
    if len(data) < _BYTES:
        raise BadInput(f"expected {_BYTES} bytes or more in {path}, came {len(data)}; {_help(new)}")
    return data


def _help(new: bool) -> str:
    return "restore it from its backup, or remove it, and another one is made" if new else _RESTORE


def _new_log_key() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def _bytes(path: Path, make: Callable[[], bytes], *, new: bool) -> bytes:
    data = _kept(path, make, new=new)
    if len(data) != _BYTES:
        raise BadInput(f"expected {_BYTES} bytes in {path}, came {len(data)}; {_help(new)}")
    return data


def _make(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Not by the process's number: in a container that is always the same, and a start that was killed leaves its draft.
    draft = path.with_suffix(f".{os.urandom(8).hex()}.new")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: then its key is the key
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    atomic_files.sync(path.parent)  # or the name is lost, and what was made with it is not


def _kept(path: Path, make: Callable[[], bytes], *, new: bool) -> bytes:
    """The bytes in `path`; made and stored for our eyes only where there are none. Whole or not there at all."""
    try:
        there = path.exists()
    except OSError as error:
        raise BadInput(f"{path} cannot be looked for ({error.strerror}); let the connector's user look there") from None
    if not there:
        if not new:
            raise Conflict(f"expected {path}, as there are records that were made with it, came nothing; {_help(new)}")
        try:
            _make(path, make())
        except OSError as error:
            raise BadInput(
                f"{path} cannot be written ({error.strerror}); make room on its disk, or let the connector's user "
                "write to its folder"
            ) from None
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); {_help(new)}") from None
