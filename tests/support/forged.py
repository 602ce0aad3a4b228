"""Whole logs made of records that a test chooses, in evidence files that hold: as an operator with the log's key may
make them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from hanse.audit.verify import MEMBERS, _Range

from connector.audit import signed_note
from connector.audit.export import FORMAT, line
from connector.audit.merkle import leaf_hash
from connector.audit.record import Record, canonical
from connector.audit.signed_note import Signer

Body = dict[str, Any]


def bodies_in(path: Path) -> list[Body]:
    """What the records of an evidence file say, in order."""
    return [json.loads(text)["body"] for text in ZipFile(path).read("events.jsonl").splitlines()]


def rewritten(path: Path, to: Path, signer: Signer, change: Callable[[list[Body]], Sequence[Body]]) -> Path:
    """The same log with other records, from its first on."""
    return write(to, signer, change(bodies_in(path)))


def write(path: Path, signer: Signer, bodies: Sequence[Body], *, terms: dict[str, Any] | None = None) -> Path:
    """An evidence file of a whole log; with `terms` one that says that it is whole and by what it was chosen."""
    tree, lines, leaves = _Range(), b"", b""
    for idx, body in enumerate(bodies):
        ts = datetime.fromisoformat(body["time"]).timestamp()
        record = Record(idx, ts, body["kind"], canonical(body), idx.to_bytes(16, "big"))
        leaf = leaf_hash(record.leaf)
        tree.add(leaf)
        lines, leaves = lines + line(record, None), leaves + leaf
    root, size = tree.root(), len(bodies)
    about = {"format": FORMAT, "kind": "whole", "filter": terms or {}, "origin": signer.name, "records": size}
    manifest = canonical({**about, "root": base64.b64encode(root).decode(), "size": size}) + "\n"
    parts = {
        "events.jsonl": lines,
        "leaves": leaves,
        "checkpoint": signed_note.checkpoint(signer, size=size, root=root).encode(),
        "log.vkey": f"{signer.vkey}\n".encode(),
        "manifest.json": manifest.encode(),
        "manifest.sig": signer.sign(manifest).encode(),
    }
    with ZipFile(path, "w") as container:
        for name in MEMBERS:
            info = ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o600 << 16
            container.writestr(info, parts[name])
    return path
