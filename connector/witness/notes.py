"""Signed notes, checkpoints, verifier keys and cosignatures. Pure.

Formats: C2SP signed-note, tlog-checkpoint, tlog-cosignature. Ed25519 and, where the `cryptography` library and its
OpenSSL have it, ML-DSA-44.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519, COSIGNATURE, COSIGNATURE_MLDSA44 = 1, 4, 6  # signature types
_KEY_BYTES = {ED25519: 32, COSIGNATURE: 32, COSIGNATURE_MLDSA44: 1312}
_SIGNATURES_MAX = 32
_DECIMAL = re.compile("0|[1-9][0-9]{0,18}")
_NAME = re.compile(r"[^\s+]{1,255}")
_STAMP = struct.Struct(">Q")
_STAMP_MAX = 2**63 - 1


class NoteInvalid(Exception):
    """A text that is not the note, checkpoint or key that it should be."""


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """A signature line: the key's name and id, and the signature's bytes."""

    name: str
    key_id: bytes
    data: bytes
    line: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head with its signatures. `text` is what is signed."""

    origin: str
    size: int
    root: bytes
    text: str
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name (C2SP vkey): `name+id+base64(type || key)`."""

    name: str
    kind: int
    key: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes by which signature lines refer to the key."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_encode(bytes([self.kind]) + self.key)}"

    def find(self, checkpoint: Checkpoint) -> NoteSignature | None:
        """This key's signature of the checkpoint, verified; None if there is none.

        Raises: NoteInvalid for a signature under this key's name and id that does not verify (signed-note: such a note
        is malformed).
        """
        for one in checkpoint.signatures:
            if one.name == self.name and one.key_id == self.key_id:
                if not self._verify(checkpoint, one.data):
                    raise NoteInvalid(f"the signature of {self.name} does not verify")
                return one
        return None

    def _verify(self, checkpoint: Checkpoint, data: bytes) -> bool:
        try:
            if self.kind == ED25519:
                Ed25519PublicKey.from_public_bytes(self.key).verify(data, checkpoint.text.encode())
                return True
            stamp, signature = _STAMP.unpack(data[: _STAMP.size])[0], data[_STAMP.size :]
            if not 0 < stamp <= _STAMP_MAX:
                return False
            if self.kind == COSIGNATURE:
                Ed25519PublicKey.from_public_bytes(self.key).verify(signature, _ed25519_message(checkpoint, stamp))
            else:
                message = _mldsa_message(checkpoint, stamp, self.name)
                mldsa.MLDSA44PublicKey.from_public_bytes(self.key).verify(signature, message)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, struct.error):
            return False
        return True


class Cosigner:
    """The keys of a witness. `mldsa44` is None where the library has no ML-DSA."""

    def __init__(self, name: str, ed25519: Ed25519PrivateKey, mldsa44: mldsa.MLDSA44PrivateKey | None = None) -> None:
        self._ed25519, self._mldsa44 = ed25519, mldsa44
        keys = [VerifierKey(name, COSIGNATURE, ed25519.public_key().public_bytes_raw())]
        if mldsa44 is not None:
            keys.append(VerifierKey(name, COSIGNATURE_MLDSA44, mldsa44.public_key().public_bytes_raw()))
        self.keys = tuple(keys)

    def cosign(self, checkpoint: Checkpoint, *, now: float) -> str:
        """The cosignature lines for a checkpoint that was found consistent, a line per key."""
        stamp = int(now)
        lines = [_line(self.keys[0], stamp, self._ed25519.sign(_ed25519_message(checkpoint, stamp)))]
        if self._mldsa44 is not None:
            message = _mldsa_message(checkpoint, stamp, self.keys[1].name)
            lines.append(_line(self.keys[1], stamp, self._mldsa44.sign(message)))
        return "".join(lines)


def _line(key: VerifierKey, stamp: int, signature: bytes) -> str:
    return f"— {key.name} {_encode(key.key_id + _STAMP.pack(stamp) + signature)}\n"


def _ed25519_message(checkpoint: Checkpoint, stamp: int) -> bytes:
    return f"cosignature/v1\ntime {stamp}\n{checkpoint.text}".encode()


def _mldsa_message(checkpoint: Checkpoint, stamp: int, name: str) -> bytes:
    """The structure `cosigned_message` for the whole tree, in TLS encoding (RFC 8446 section 3)."""
    cosigner, origin = name.encode(), checkpoint.origin.encode()
    if not 0 < len(cosigner) < 256 or not 0 < len(origin) < 256:
        raise ValueError("expected a name and an origin of at most 255 bytes")
    return b"".join(
        (
            b"subtree/v1\n\0",
            bytes([len(cosigner)]) + cosigner,
            _STAMP.pack(stamp),
            bytes([len(origin)]) + origin,
            _STAMP.pack(0),
            _STAMP.pack(checkpoint.size),
            checkpoint.root,
        )
    )


def read_key(text: str, *kinds: int) -> VerifierKey:
    """The verifier key of a vkey of one of these signature types. Raises: NoteInvalid."""
    name, plus, rest = text.partition("+")
    key_id, second, data = rest.partition("+")
    raw = _decode(data)
    kind = raw[0] if raw else 0
    if not (plus and second and _NAME.fullmatch(name)) or kind not in kinds or len(raw) != 1 + _KEY_BYTES[kind]:
        wanted = " or ".join(map(str, kinds))
        raise NoteInvalid(f"expected a vkey `name+id+key` of signature type {wanted}, got {text[:100]!r}")
    key = VerifierKey(name, kind, raw[1:])
    if key.key_id.hex() != key_id:
        raise NoteInvalid(f"the id of the vkey of {name} is not that of its key: it was changed")
    return key


def read_checkpoint(note: str) -> Checkpoint:
    """The tree head in a signed note, without a check of any signature. Raises: NoteInvalid."""
    body, blank, tail = note.rpartition("\n\n")
    text = body + "\n"
    lines = text.split("\n")
    if (
        not blank
        or not tail.endswith("\n")
        or len(lines) < 4
        or "" in lines[:-1]
        or any(c < " " for c in "".join(lines))
    ):
        raise NoteInvalid("expected a checkpoint: origin, size and root in lines, an empty line, and signatures")
    origin, size, root = lines[:3]
    digest = _decode(root)
    if not _DECIMAL.fullmatch(size) or len(digest) != 32 or len(origin.encode()) > 255:
        raise NoteInvalid("expected an origin, a decimal size and a root of 32 bytes in base64")
    return Checkpoint(origin, int(size), digest, text, tuple(_read_signatures(tail)))


def _read_signatures(tail: str) -> Iterable[NoteSignature]:
    lines = tail[:-1].split("\n")
    if len(lines) > _SIGNATURES_MAX:
        raise NoteInvalid(f"expected at most {_SIGNATURES_MAX} signatures, got {len(lines)}")
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, data = rest.partition(" ")
        raw = _decode(data)
        if dash != "—" or not _NAME.fullmatch(name) or len(raw) < 5:
            raise NoteInvalid("expected signature lines `— name base64`")
        yield NoteSignature(name, raw[:4], raw[4:], line + "\n")


def read_decimal(text: str) -> int:
    """A size as checkpoints write it. Raises: NoteInvalid."""
    if not _DECIMAL.fullmatch(text):
        raise NoteInvalid(f"expected a decimal size, got {text[:30]!r}")
    return int(text)


def read_hash(text: str) -> bytes:
    """A hash of a proof, in base64. Raises: NoteInvalid."""
    if len(found := _decode(text)) != 32:
        raise NoteInvalid("expected hashes of 32 bytes in base64")
    return found


def keep_cosignatures(checkpoint: Checkpoint, lines: str, keys: Iterable[VerifierKey]) -> str:
    """The signature lines of a witness's answer that verify with its known keys. Raises: NoteInvalid."""
    answered = read_checkpoint(f"{checkpoint.text}\n{lines}")
    return "".join(found.line for key in keys if (found := key.find(answered)) is not None)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    """Strictly decoded base64; empty for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
    return data if _encode(data) == text else b""
