"""A record of the audit log: its canonical JSON text, and the salted commitment to it in the tree. Pure.

The tree holds only `SHA-256(salt || text)`. So the text and salt of a record can be erased later, and every hash, index
and proof stays valid.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any

SALT_BYTES = 16
_TEXT_MAX = 512 * 2**10  # bytes of a record's text: the verifier refuses lines of more than twice that
_KEPT_MAX = 4 * 2**10  # bytes of a value that is not shortened
_MEMBERS_MAX = 64  # an object with more members is shortened as a whole
_BEGINNING = 1_000  # characters that are kept of a shortened text
_EXACT = 2**53  # larger integers lose digits in some JSON parsers


@dataclass(frozen=True, slots=True)
class Record:
    """A numbered record; `text` is the canonical JSON of its body, `ts` UTC seconds."""

    idx: int
    ts: float
    kind: str
    text: str
    salt: bytes

    @property
    def leaf(self) -> bytes:
        """The bytes that the tree hashes: a C2SP log entry of at most 65,535 bytes, which holds none of the text."""
        return leaf_of(text=self.text, salt=self.salt, kind=self.kind, ts=self.ts)


def make_record(idx: int, ts: float, body: dict[str, Any], salt: bytes) -> Record:
    """Make a record of an event's body; its exact time is part of the text, so that the commitment covers it."""
    moment = datetime.fromtimestamp(ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    text = canonical({**body, "time": moment})
    if len(text.encode()) > _TEXT_MAX:
        text = canonical({**{name: _shorten_members(value) for name, value in body.items()}, "time": moment})
    return Record(idx, ts, str(body.get("kind", "")), text, salt)


def _shorten_members(value: Any) -> Any:
    """Shorten a value of a body that is too long; for a small object such as `detail`, shorten each member."""
    few = isinstance(value, dict) and len(value) <= _MEMBERS_MAX and all(len(str(name)) < 100 for name in value)
    return {name: _shorten(member) for name, member in value.items()} if few else _shorten(value)


def _shorten(value: Any) -> Any:
    """The value, or for a long value its length and digest; a long text keeps its beginning."""
    text = canonical(value).encode()
    if len(text) <= _KEPT_MAX:
        return value
    summary = f"(cut: {len(text)} bytes of JSON, SHA-256 {sha256(text).hexdigest()})"
    return f"{value[:_BEGINNING]}... {summary}" if isinstance(value, str) else summary


def leaf_of(*, text: str, salt: bytes, kind: str, ts: float) -> bytes:
    """`{"c":base64(SHA-256(salt || text)),"t":kind,"ts":seconds,"v":1}`."""
    commitment = base64.b64encode(sha256(salt + text.encode()).digest()).decode()
    return canonical({"c": commitment, "t": kind, "ts": math.floor(ts), "v": 1}).encode()


def canonical(value: Any) -> str:
    """The RFC 8785 text of any value. Values outside RFC 8785 become strings, as the log must never fail on one."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False)
    if isinstance(value, int):
        return str(value) if abs(value) <= _EXACT else f'"{value}"'
    if isinstance(value, float):
        return _number(value) if math.isfinite(value) else f'"{value}"'
    if isinstance(value, dict):
        members = sorted(_rename_members(value).items(), key=lambda pair: _utf16(pair[0]))
        return "{" + ",".join(f"{canonical(key)}:{canonical(member)}" for key, member in members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(canonical, value)) + "]"
    return canonical(str(value))


def _rename_members(value: dict[Any, Any]) -> dict[str, Any]:
    """The members of an object under names that JSON can hold; names that become equal get a number."""
    renamed: dict[str, Any] = {}
    count: Counter[str] = Counter()
    for key, member in value.items():
        name = written = str(key).encode("utf-8", "replace").decode()
        while name in renamed:
            count[written] += 1
            name = f"{written} ({count[written] + 1})"
        renamed[name] = member
    return renamed


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")  # RFC 8785 §3.2.3 sorts by UTF-16 code units


def _number(value: float) -> str:
    """A finite double as ECMAScript writes it (RFC 8785 §3.2.2.3): Python has the same digits in another form."""
    if value == 0:
        return "0"
    sign, figures, exponent = Decimal(repr(value)).normalize().as_tuple()
    digits = "".join(map(str, figures))
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
