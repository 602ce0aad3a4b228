"""Notes, keys and cosignatures: what is signed verifies, here and with the client's own reading, and nothing else."""

from __future__ import annotations

import base64
import struct
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hanse.audit.witnesses import read_policy

from connector.audit import merkle, signed_note
from connector.audit.signed_note import Signer
from connector.witness.consistency import is_consistent
from connector.witness.notes import (
    COSIGNATURE,
    COSIGNATURE_MLDSA44,
    ED25519,
    Cosigner,
    NoteInvalid,
    keep_cosignatures,
    read_checkpoint,
    read_key,
)
from connector.witness.witness import read_request, write_request

LOG = Signer("north.example/audit/north", Ed25519PrivateKey.from_private_bytes(sha256(b"log").digest()))
COSIGNER = Cosigner(
    "south.example/witness",
    Ed25519PrivateKey.from_private_bytes(sha256(b"witness").digest()),
    mldsa.MLDSA44PrivateKey.from_seed_bytes(sha256(b"seed").digest()),
)
NOW = 1_790_000_000.7


def head(size: int, root: bytes = b"r" * 32) -> str:
    return signed_note.checkpoint(LOG, size=size, root=root)


def test_cosignatures_verify_with_their_keys() -> None:
    checkpoint = read_checkpoint(head(7))
    lines = COSIGNER.cosign(checkpoint, now=NOW)
    assert keep_cosignatures(checkpoint, lines, COSIGNER.keys) == lines
    for key in COSIGNER.keys:
        assert read_key(str(key), COSIGNATURE, COSIGNATURE_MLDSA44) == key
        found = key.find(read_checkpoint(head(7) + lines))
        assert found is not None
        assert struct.unpack(">Q", found.data[:8]) == (1_790_000_000,)


@pytest.mark.parametrize("note", [head(8), head(7, b"s" * 32), head(7).replace("north.example", "n0rth.example")])
def test_a_cosignature_is_of_one_head_alone(note: str) -> None:
    lines = COSIGNER.cosign(read_checkpoint(head(7)), now=NOW)
    for key in COSIGNER.keys:
        with pytest.raises(NoteInvalid, match="does not verify"):
            key.find(read_checkpoint(note + lines))


def test_the_client_reads_the_same_cosignatures_by_a_policy_of_its_own() -> None:
    note = head(7) + COSIGNER.cosign(read_checkpoint(head(7)), now=NOW)
    plain, quantum_safe = COSIGNER.keys
    keys = f"log {LOG.vkey}\nwitness a {plain}\n\twitness  b\t{quantum_safe} https://x\n"
    text = f"{keys}# more\ngroup both all a b\nquorum both\n"
    policy = read_policy(text.encode())
    assert policy.check(note).met
    assert [one.cosigned_at for one in policy.check(note).witnesses] == [1_790_000_000] * 2
    assert not policy.check(head(7)).met
    changed = note.replace("\n7\n", "\n8\n")
    assert [one.problem for one in policy.check(changed).witnesses] == ["its cosignature does not verify"] * 2


def test_a_note_with_a_wrong_signature_of_a_known_key_is_malformed() -> None:
    key = read_key(LOG.vkey, ED25519)
    assert key.find(read_checkpoint(head(7))) is not None
    other = Signer(LOG.name, Ed25519PrivateKey.generate())
    assert key.find(read_checkpoint(signed_note.checkpoint(other, size=7, root=b"r" * 32))) is None
    with pytest.raises(NoteInvalid):
        key.find(read_checkpoint(head(7).replace("\n7\n", "\n8\n")))


@pytest.mark.parametrize(
    "note",
    [
        "",
        "a\n1\n",
        head(7)[:-1],
        head(7).replace("\n7\n", "\n07\n"),
        head(7).replace("\n7\n", "\n-7\n"),
        head(7).replace("\n7\n", "\n" + "9" * 20 + "\n"),
        head(7).replace("— ", "- "),
        head(7).replace("\n\n", "\n"),
        head(7, b"short"),
        head(7) + "— x " + base64.b64encode(b"1234").decode() + "\n",
        head(7) + "".join(f"— x{n} AAAAAAAA\n" for n in range(40)),
        head(7).replace("north", "no\x01rth"),
    ],
)
def test_what_is_no_checkpoint_is_refused(note: str) -> None:
    with pytest.raises(NoteInvalid):
        read_checkpoint(note)


@pytest.mark.parametrize("vkey", ["", "a+b", "a+00000000+AAAA", LOG.vkey.replace("north", "south"), LOG.vkey + "A"])
def test_what_is_no_key_is_refused(vkey: str) -> None:
    with pytest.raises(NoteInvalid):
        read_key(vkey, ED25519)
    with pytest.raises(NoteInvalid):
        read_key(LOG.vkey, COSIGNATURE)  # the key of a log is none of a witness


def test_consistency_proofs_of_the_log_hold_and_changed_ones_do_not() -> None:
    leaves = [merkle.leaf_hash(bytes([n % 256, n // 256])) for n in range(300)]
    tiles = merkle.append(lambda *_: None, 0, leaves)

    def read(level: int, n: int) -> bytes | None:
        return tiles.get((level, n))

    roots = [merkle.root(read, size) for size in range(301)]
    for old in (1, 2, 3, 7, 8, 64, 129, 255, 256, 257, 299, 300):
        for new in (old, *range(old + 1, 301, 13), 300):
            proof = merkle.consistency_proof(read, old, new) if old < new else []
            assert is_consistent(old, new, roots[old], roots[new], proof)
            assert not is_consistent(old, new, roots[old - 1], roots[new], proof)
            assert not is_consistent(old, new, roots[old], roots[new], [*proof, roots[1]])
            if proof:
                assert not is_consistent(old, new, roots[old], roots[new], proof[:-1])
                assert not is_consistent(old, new, roots[old], roots[new], [sha256(proof[0]).digest(), *proof[1:]])
    assert is_consistent(0, 5, merkle.EMPTY_ROOT, roots[5], [])
    assert not is_consistent(0, 5, merkle.EMPTY_ROOT, roots[5], [roots[1]])
    assert not is_consistent(0, 0, merkle.EMPTY_ROOT, roots[1], [])
    assert not is_consistent(5, 4, roots[5], roots[4], [])


def test_a_request_is_read_as_it_is_written() -> None:
    steps = [sha256(bytes([n])).digest() for n in range(3)]
    read = read_request(write_request(5, steps, head(7)))
    assert (read.old, list(read.proof), read.head.size, read.note) == (5, steps, 7, head(7))
    assert read_request(write_request(0, [], head(7))).proof == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"old 05\n\n" + head(7).encode(),
        b"old -1\n\n" + head(7).encode(),
        b"new 5\n\n" + head(7).encode(),
        b"old 5\nAAAA\n\n" + head(7).encode(),
        write_request(5, [b"x" * 32] * 64, head(7)),
        write_request(5, [], head(7) + "x" * 70_000),
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(NoteInvalid):
        read_request(body)
