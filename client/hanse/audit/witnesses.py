"""Which witnesses vouch for a signed head, by a trust policy that the auditor keeps (C2SP tlog-policy).

    policy = read_policy(Path("policy").read_bytes())
    found = policy.check(note)          # note: the head with its signature lines
    found.met, [one.name for one in found.witnesses if one.cosigned_at]

Shares no code with the server. Cosignatures: C2SP tlog-cosignature, Ed25519, and ML-DSA-44 where the `cryptography`
library has it; without it, such a witness does not vouch and `problem` says so.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_LOG, _ED25519, _MLDSA44 = 1, 4, 6
_KEY_BYTES = {_LOG: 32, _ED25519: 32, _MLDSA44: 1312}
_STAMP_MAX = 2**63 - 1
_LINES_MAX = 1_000


class PolicyBad(Exception):
    """The policy file is not a tlog-policy."""


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """A witness of the policy: its name there, and the name, id, type and bytes of its key."""

    name: str
    key_name: str
    key_id: bytes
    kind: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Vouching:
    """Whether a witness cosigned the head, and when (UTC seconds). `problem`: why not."""

    name: str
    key_name: str
    cosigned_at: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """Whether the quorum vouches for the head, and what each witness does."""

    met: bool
    quorum: str
    witnesses: tuple[Vouching, ...]


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """Logs by vkey, witnesses and groups by name, and the quorum's name; `none` asks for no witness."""

    logs: tuple[str, ...]
    witnesses: Mapping[str, WitnessKey]
    groups: Mapping[str, tuple[int, tuple[str, ...]]]
    quorum: str

    def check(self, note: str) -> PolicyResult:
        """Check the cosignatures of a head, whose form and log signature the caller has checked."""
        found = tuple(_look(witness, note) for witness in self.witnesses.values())
        vouching = {one.name for one in found if one.cosigned_at is not None}
        return PolicyResult(self._holds(self.quorum, vouching), self.quorum, found)

    def _holds(self, name: str, vouching: set[str]) -> bool:
        if name == "none":
            return True
        if name in self.groups:
            least, members = self.groups[name]
            return sum(self._holds(member, vouching) for member in members) >= least
        return name in vouching


def read_policy(data: bytes) -> TrustPolicy:
    """Read a policy file. Raises: PolicyBad, with the line."""
    if any((byte < 0x20 and byte not in (9, 10)) or byte == 0x7F for byte in data):
        raise PolicyBad("expected a text file whose only control characters are tab and newline")
    reader = _Reader()
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if len(lines) > _LINES_MAX:
        raise PolicyBad(f"expected at most {_LINES_MAX} lines, got {len(lines)}")
    for number, line in enumerate(lines, 1):
        words = line.replace("\t", " ").split(" ")
        words = [word for word in words if word]
        if words and not words[0].startswith("#"):
            try:
                reader.read(words)
            except PolicyBad as error:
                raise PolicyBad(f"line {number}: {error}") from None
    if not reader.quorum:
        raise PolicyBad("expected a line `quorum NAME`")
    return TrustPolicy(tuple(reader.logs), reader.witnesses, reader.groups, reader.quorum)


class _Reader:
    """Reads lines; names are used after they are defined, each in one group."""

    def __init__(self) -> None:
        self.logs: list[str] = []
        self.witnesses: dict[str, WitnessKey] = {}
        self.groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.quorum = ""
        self._keys: set[tuple[bool, bytes]] = set()
        self._members: set[str] = set()

    def read(self, words: Sequence[str]) -> None:
        match words:
            case ["log", vkey] | ["log", vkey, _]:
                self._add_key(True, read_vkey(vkey, "", _LOG).key)
                self.logs.append(vkey)
            case ["witness", name, vkey] | ["witness", name, vkey, _]:
                self._check_new(name)
                witness = read_vkey(vkey, name, _ED25519, _MLDSA44)
                self._add_key(False, witness.key)
                self.witnesses[name] = witness
            case ["group", name, least, *members] if members:
                self._check_new(name)
                self.groups[name] = (self._least(least, len(members)), tuple(members))
                for member in members:
                    self._check_member(member, name)
            case ["quorum", name]:
                if self.quorum:
                    raise PolicyBad("expected one quorum, got a second one")
                if name != "none" and name not in self.witnesses and name not in self.groups:
                    raise PolicyBad(f"the quorum {name} is not defined above")
                self.quorum = name
            case _:
                raise PolicyBad(
                    f"expected log, witness, group or quorum with their words, got {' '.join(words)[:80]!r}"
                )

    def _check_new(self, name: str) -> None:
        if name == "none" or name in self.witnesses or name in self.groups:
            raise PolicyBad(f"the name {name} is taken")

    def _check_member(self, member: str, group: str) -> None:
        if member == group or (member not in self.witnesses and member not in self.groups):
            raise PolicyBad(f"the member {member} is not defined above")
        if member in self._members:
            raise PolicyBad(f"{member} is a member of a group already")
        self._members.add(member)

    def _add_key(self, is_log: bool, key: bytes) -> None:
        if (is_log, key) in self._keys:
            raise PolicyBad("the same key stands in a line above")
        self._keys.add((is_log, key))

    @staticmethod
    def _least(text: str, count: int) -> int:
        if text in ("all", "any"):
            return count if text == "all" else 1
        if not text.isascii() or not text.isdecimal() or text.startswith("0") or not 1 <= int(text[:9]) <= count:
            raise PolicyBad(f"expected all, any or a number from 1 to {count}, got {text[:20]!r}")
        return int(text)


def write_policy(log: str, witnesses: Sequence[Mapping[str, Any]], *, least: int) -> str:
    """Return a policy that asks for the log, the data space's operator where it is a witness, and `least` members.

    `witnesses`: of each its id, keys (vkeys) and whether it is the operator, as a connector lists them.
    """
    lines: list[str] = [f"log {log}"]
    needed: list[str] = []
    members: list[str] = []
    for one in witnesses:
        name = str(one["id"]).replace(" ", "_")
        parts = [name] if len(one["keys"]) == 1 else [f"{name}#{number}" for number, _ in enumerate(one["keys"], 1)]
        lines += [f"witness {part} {vkey} {one['url']}" for part, vkey in zip(parts, one["keys"], strict=True)]
        if len(parts) > 1:
            lines.append(f"group {name} any {' '.join(parts)}")
        (needed if one["is_operator"] else members).append(name)
    if members and least:
        lines.append(f"group members {min(least, len(members))} {' '.join(members)}")
        needed.append("members")
    if len(needed) > 1:
        lines.append(f"group all-of-these all {' '.join(needed)}")
    lines.append(f"quorum {'all-of-these' if len(needed) > 1 else needed[0] if needed else 'none'}")
    return "".join(f"{line}\n" for line in lines)


def read_vkey(vkey: str, name: str, *kinds: int) -> WitnessKey:
    """Read a verifier key `name+id+base64(type || key)` of one of these types. Raises: PolicyBad."""
    key_name, _, rest = vkey.partition("+")
    key_id, _, encoded = rest.partition("+")
    data = _decode(encoded)
    if not key_name or not data or data[0] not in kinds or len(data) != 1 + _KEY_BYTES[data[0]]:
        raise PolicyBad(f"expected a vkey of signature type {' or '.join(map(str, kinds))}, got {vkey[:60]!r}")
    made = sha256(key_name.encode("utf-8", "surrogateescape") + b"\n" + data).digest()[:4]
    if made.hex() != key_id:
        raise PolicyBad(f"the vkey of {key_name} does not fit its id: it was changed or mistyped")
    return WitnessKey(name, key_name, made, data[0], data[1:])


def _look(witness: WitnessKey, note: str) -> Vouching:
    text, _, tail = note.rpartition("\n\n")
    for line in tail.splitlines():
        _, _, rest = line.partition(" ")
        signer, _, encoded = rest.partition(" ")
        data = _decode(encoded)
        if signer == witness.key_name and data[:4] == witness.key_id:
            return _verify(witness, f"{text}\n", data[4:])
    return Vouching(witness.name, witness.key_name, problem="did not cosign this head")


def _verify(witness: WitnessKey, text: str, data: bytes) -> Vouching:
    bad = Vouching(witness.name, witness.key_name, problem="its cosignature does not verify")
    if len(data) < 8 or not 0 < (stamp := struct.unpack(">Q", data[:8])[0]) <= _STAMP_MAX:
        return bad
    try:
        if witness.kind == _ED25519:
            message = f"cosignature/v1\ntime {stamp}\n{text}".encode()
            Ed25519PublicKey.from_public_bytes(witness.key).verify(data[8:], message)
        else:
            from cryptography.hazmat.primitives.asymmetric import mldsa

            key = mldsa.MLDSA44PublicKey.from_public_bytes(witness.key)
            key.verify(data[8:], _subtree_message(witness.key_name, stamp, text))
    except (ImportError, UnsupportedAlgorithm):
        return Vouching(witness.name, witness.key_name, problem="this installation cannot verify ML-DSA-44")
    except (InvalidSignature, ValueError):
        return bad
    return Vouching(witness.name, witness.key_name, stamp)


def _subtree_message(name: str, stamp: int, text: str) -> bytes:
    """Return the `cosigned_message` of tlog-cosignature for a whole tree."""
    origin, size, root = text.split("\n")[:3]
    who, log = name.encode(), origin.encode()
    parts = (b"subtree/v1\n\0", bytes([len(who)]), who, struct.pack(">Q", stamp), bytes([len(log)]), log)
    return b"".join((*parts, struct.pack(">QQ", 0, int(size)), base64.b64decode(root)))


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
