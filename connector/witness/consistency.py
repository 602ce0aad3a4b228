"""Checks an RFC 6962 consistency proof. Pure; the audit log makes such proofs in `audit.merkle`."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()


def is_consistent(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the first `old` leaves of the new tree are the old tree (RFC 9162 §2.1.4.2).

    From the empty tree every tree follows, with an empty proof; the empty tree has the hash of the empty string.
    """
    if (new == 0 and new_root != EMPTY_ROOT) or old > new:
        return False
    if old in (0, new):
        return not proof and (old == 0 or old_root == new_root)
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    if not path:
        return False
    left = right = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            left, right = _node(step, left), _node(step, right)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            right = _node(right, step)
        at, last = at >> 1, last >> 1
    return last == 0 and left == old_root and right == new_root


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()
