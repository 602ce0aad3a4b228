"""Check of a record's inclusion proof, step by step, for the record's page. Pure.

The server checks its own log here: that shows the method and finds damage. An independent check verifies an export with
a copy of the key from another source: `hanse audit verify`.
1. The text and salt hash to the leaf in the tree. 2. The leaf and the path lead to the head's root.
3. The head is signed by the log's key.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature

from connector.audit import merkle
from connector.audit.log import ProvenRecord
from connector.audit.signed_note import Signer, read_head


@dataclass(frozen=True, slots=True)
class Check:
    """One step: what was checked, against what, and whether it held."""

    what: str
    found: str
    held: bool


def check(proven: ProvenRecord, *, signer: Signer) -> list[Check]:
    """Run the three steps and return their results."""
    record = proven.record
    head, index, path, note = _parts(proven.proof)
    _, size, root = read_head(note)
    commitment = base64.b64encode(sha256(record.salt + record.text.encode()).digest()).decode()
    made, reached = merkle.leaf_hash(record.leaf), root_from(proven.logged, index, size, path)
    held = head == "c2sp.org/tlog-proof@v1" and index == record.idx
    return [
        Check("The text is the one that was logged",
              f"SHA-256 of salt and text: {commitment}; of its leaf: {made.hex()}; in the tree: {proven.logged.hex()}",
              made == proven.logged),
        Check(f"The record is number {index} of {size}", f"{len(path)} hashes lead to the root {root.hex()}",
              held and reached == root),
        Check("The head is signed by the log's key", f"Ed25519, {signer.vkey}", _signed(note, signer)),
    ]  # fmt: skip


def root_from(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """Compute the root from a leaf and its path (RFC 9162 §2.1.3.2); None for a path of the wrong length."""
    if not 0 <= index < size:
        return None
    at, last, found = index, size - 1, leaf
    for step in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            found = merkle.node_hash(step, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = merkle.node_hash(found, step)
        at, last = at >> 1, last >> 1
    return found if last == 0 else None


def _parts(proof: str) -> tuple[str, int, list[bytes], str]:
    above, _, note = proof.partition("\n\n")
    head, index, *hashes = above.split("\n")
    return head, int(index.removeprefix("index ")), [base64.b64decode(step) for step in hashes], note


def _signed(note: str, signer: Signer) -> bool:
    text, _, lines = note.partition("\n\n")
    for line in lines.splitlines():
        _, name, signature = [*line.split(" ", 2), "", ""][:3]
        if name == signer.name:
            try:
                signer.key.public_key().verify(base64.b64decode(signature)[4:], f"{text}\n".encode())
            except (InvalidSignature, ValueError):
                return False
            return True
    return False
