"""What one record of the log is: its canonical text, and the salted commitment that stands for it in the tree.

Pure. The tree never holds what happened, only `SHA-256(salt || text)`: a record's text and salt can be erased later,
and every hash, index and proof stays valid.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any

SALT_BYTES = 16
_EXACT = 2**53  # integers beyond it are not numbers that every JSON reader keeps


@dataclass(frozen=True, slots=True)
class Record:
    """One numbered record: `text` is the canonical JSON of its body."""

    idx: int
    ts: float
    kind: str
    text: str
    salt: bytes

    @property
    def leaf(self) -> bytes:
        """The bytes that the tree hashes: C2SP log entry, at most 65,535 bytes, without any of the text."""
        return leaf_of(text=self.text, salt=self.salt, kind=self.kind, ts=self.ts)


def record_of(idx: int, ts: float, body: dict[str, Any], salt: bytes) -> Record:
    """Number an event's body; its exact time joins the text, so that the commitment covers it."""
    moment = datetime.fromtimestamp(ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Record(idx, ts, str(body.get("kind", "")), canonical({**body, "time": moment}), salt)


def leaf_of(*, text: str, salt: bytes, kind: str, ts: float) -> bytes:
    """`{"c":base64(SHA-256(salt || text)),"t":kind,"ts":seconds,"v":1}`."""
    commitment = base64.b64encode(sha256(salt + text.encode()).digest()).decode()
    return canonical({"c": commitment, "t": kind, "ts": math.floor(ts), "v": 1}).encode()


def canonical(value: Any) -> str:
    """RFC 8785 text of any JSON value. Total: what RFC 8785 cannot write becomes a string, as a log must not stop."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False)
    if isinstance(value, int):
        return str(value) if abs(value) <= _EXACT else f'"{value}"'
    if isinstance(value, float):
        return _number(value) if math.isfinite(value) else f'"{value}"'
    if isinstance(value, dict):
        members = sorted(((str(key), member) for key, member in value.items()), key=lambda pair: _utf16(pair[0]))
        return "{" + ",".join(f"{canonical(key)}:{canonical(member)}" for key, member in members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(canonical, value)) + "]"
    return canonical(str(value))


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "replace")  # RFC 8785 §3.2.3 sorts by UTF-16 code units


def _number(value: float) -> str:
    """A finite double as ECMAScript writes it (RFC 8785 §3.2.2.3): Python finds the same digits, not the same form."""
    if value == 0:
        return "0"
    sign, found, exponent = Decimal(repr(value)).normalize().as_tuple()
    digits = "".join(map(str, found))
    point = len(digits) + int(exponent)
    minus = "-" if sign else ""
    if len(digits) <= point <= 21:
        return minus + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{minus}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{minus}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{minus}{digits[0]}{fraction}e{'+' if point > 0 else '-'}{abs(point - 1)}"
