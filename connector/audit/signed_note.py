"""Signed notes, checkpoints and inclusion proofs of the audit log. Pure.

Formats: C2SP signed-note, tlog-checkpoint and tlog-proof, Ed25519 only (signature type 0x01).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ED25519 = b"\x01"


@dataclass(frozen=True, slots=True)
class Signer:
    """The private key of the log, with the log's name."""

    name: str
    key: Ed25519PrivateKey

    @property
    def _public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def _key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self._public).digest()[:4]

    @property
    def vkey(self) -> str:
        """The verifier key as C2SP signed-note writes it: `name+id+base64(type || key)`."""
        return f"{self.name}+{self._key_id.hex()}+{_b64(_ED25519 + self._public)}"

    def sign(self, text: str) -> str:
        """The signature line for `text`, which must end in a newline."""
        return f"— {self.name} {_b64(self._key_id + self.key.sign(text.encode()))}\n"

    def has_signed(self, note: str) -> bool:
        """Whether a signature of the note was made with this key, under any name."""
        text, _, lines = note.rpartition("\n\n")
        for line in lines.splitlines():
            with suppress(InvalidSignature, ValueError):
                self.key.public_key().verify(base64.b64decode(line.rpartition(" ")[2])[4:], f"{text}\n".encode())
                return True
        return False


def checkpoint(signer: Signer, *, size: int, root: bytes) -> str:
    """A signed checkpoint (tree head) of origin, size and root."""
    text = f"{signer.name}\n{size}\n{_b64(root)}\n"
    return f"{text}\n{signer.sign(text)}"


def read_head(note: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint, without a check of its signature. Raises: ValueError."""
    origin, size, root = note.split("\n", 3)[:3]
    return origin, int(size), base64.b64decode(root, validate=True)


def read_name(note: str) -> str:
    """The log's name in a checkpoint. A log keeps its name, as verifier keys contain it."""
    return note.partition("\n")[0]


def proof(*, index: int, path: Sequence[bytes], note: str) -> str:
    """The `.tlog-proof` that record `index` is in the tree of the checkpoint `note`."""
    hashes = "".join(f"{_b64(step)}\n" for step in path)
    return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{note}"


def next_origin(name: str) -> str:
    """The name of the log that a restored database begins: `.../2` after the first, then `.../3`."""
    base, _, number = name.rpartition("/")
    return (
        f"{base}/{int(number) + 1}" if number.isascii() and number.isdecimal() and base.count("/") > 1 else f"{name}/2"
    )


def origin_of(root_url: str, name: str) -> str:
    """The name of a new log, from the URL that serves it: `host/audit/participant`."""
    return f"{urlsplit(root_url).netloc}/audit/{name}"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
