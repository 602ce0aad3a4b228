"""Signed notes and what the log writes in them: checkpoints and proofs. Pure.

C2SP signed-note, tlog-checkpoint and tlog-proof, Ed25519 only (signature type 0x01).
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
    """The log's key under the log's name."""

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
        """The verifier key in the notation of signed notes: `name+id+base64(type || key)`."""
        return f"{self.name}+{self._key_id.hex()}+{_b64(_ED25519 + self._public)}"

    def sign(self, text: str) -> str:
        """The signature line over `text`, which ends in a newline."""
        return f"— {self.name} {_b64(self._key_id + self.key.sign(text.encode()))}\n"

    def has_signed(self, note: str) -> bool:
        """Whether one of a note's signatures is this key's, under whatever name."""
        text, _, lines = note.rpartition("\n\n")
        for line in lines.splitlines():
            with suppress(InvalidSignature, ValueError):
                self.key.public_key().verify(base64.b64decode(line.rpartition(" ")[2])[4:], f"{text}\n".encode())
                return True
        return False


def checkpoint(signer: Signer, *, size: int, root: bytes) -> str:
    """A signed tree head: origin, size, root."""
    text = f"{signer.name}\n{size}\n{_b64(root)}\n"
    return f"{text}\n{signer.sign(text)}"


def head_of(note: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint of our own; its signature is not looked at."""
    origin, size, root = note.split("\n", 3)[:3]
    return origin, int(size), base64.b64decode(root, validate=True)


def name_in(note: str) -> str:
    """The log's name, as its head says it: that stays, or who has its verifier key would take it for another log."""
    return note.partition("\n")[0]


def proof(*, index: int, path: Sequence[bytes], note: str) -> str:
    """A `.tlog-proof`: that the record `index` is in the tree of the checkpoint `note`."""
    hashes = "".join(f"{_b64(step)}\n" for step in path)
    return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{note}"


def origin_of(root_url: str, name: str) -> str:
    """What a log is called that has no head yet, by the address it is served from: `host/audit/participant`."""
    return f"{urlsplit(root_url).netloc}/audit/{name}"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
