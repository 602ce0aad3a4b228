"""The proof that a record's page checks: it holds for what was logged, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connector.audit import merkle, note
from connector.audit.record import Record, record_of
from connector.management.pages.proving import check, root_from
from tests.connector.audit.support import SIGNER


def proven(size: int, index: int) -> tuple[Record, str]:
    records = [record_of(i, 1_700_000_000.0 + i, {"kind": "LogRead", "actor": f"a{i}"}, bytes(16)) for i in range(size)]
    tiles = merkle.append(lambda _, __: None, 0, [merkle.leaf_hash(record.leaf) for record in records])

    def read(level: int, n: int) -> bytes | None:
        return tiles.get((level, n))

    head = note.checkpoint(SIGNER, size=size, root=merkle.root(read, size))
    return records[index], note.proof(index=index, path=merkle.inclusion_proof(read, index, size), note=head)


@pytest.mark.parametrize("size", [*range(1, 18), 255, 256, 257])
def test_every_record_is_proven_to_be_in_its_log(size: int) -> None:
    for index in {0, size // 2, size - 1}:
        record, proof = proven(size, index)
        assert [one.held for one in check(record, proof, signer=SIGNER)] == [True, True, True]


def test_what_was_changed_is_found_by_the_step_that_covers_it() -> None:
    record, proof = proven(21, 7)
    other, _ = proven(21, 8)
    lines = proof.split("\n")
    foreign = note.Signer(SIGNER.name, Ed25519PrivateKey.generate())
    cases = [
        (replace(record, text=record.text.replace("a7", "a8")), proof, SIGNER),
        (replace(record, salt=b"x" * 16), proof, SIGNER),
        (other, proof, SIGNER),
        (record, "\n".join([lines[0], "index 8", *lines[2:]]), SIGNER),
        (record, proof.replace("\n21\n", "\n22\n"), SIGNER),
        (record, proof, foreign),
    ]
    for changed, text, signer in cases:
        assert not all(one.held for one in check(changed, text, signer=signer))


@pytest.mark.parametrize(("index", "size", "steps"), [(0, 0, 0), (3, 3, 2), (-1, 4, 2), (0, 4, 1), (0, 4, 3)])
def test_a_path_of_the_wrong_length_leads_nowhere(index: int, size: int, steps: int) -> None:
    leaf = sha256(b"leaf").digest()
    assert root_from(leaf, index, size, [leaf] * steps) is None
