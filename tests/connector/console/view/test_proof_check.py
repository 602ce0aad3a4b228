"""The proof that a record's page checks: it holds for what was logged, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connector.audit import merkle, signed_note
from connector.audit.log import ProvenRecord
from connector.console.view.proof_check import check, root_from
from tests.connector.audit.support import SIGNER, InMemory, reads


def proven(size: int, index: int) -> ProvenRecord:
    held = InMemory(reads(size, **{f"r{i}": f"a{i}" for i in range(size)}))
    path = merkle.inclusion_proof(held.read_tile, index, size)
    logged = merkle.leaf_at(held.read_tile, index)
    return ProvenRecord(held.records[index], logged, signed_note.proof(index=index, path=path, note=held.head))


@pytest.mark.parametrize("size", [*range(1, 18), 255, 256, 257])
def test_every_record_is_proven_to_be_in_its_log(size: int) -> None:
    for index in {0, size // 2, size - 1}:
        assert [one.held for one in check(proven(size, index), signer=SIGNER)] == [True, True, True]


def test_what_was_changed_is_found_by_the_step_that_covers_it() -> None:
    whole, other = proven(21, 7), proven(21, 8)
    record, lines = whole.record, whole.proof.split("\n")
    foreign = signed_note.Signer(SIGNER.name, Ed25519PrivateKey.generate())
    cases = [
        (replace(whole, record=replace(record, text=record.text.replace("a7", "a8"))), SIGNER, [1]),
        (replace(whole, record=replace(record, salt=b"x" * 16)), SIGNER, [1]),
        (replace(whole, record=replace(record, kind="LogRead")), SIGNER, [1]),
        (replace(whole, record=replace(record, ts=record.ts + 1)), SIGNER, [1]),
        (replace(whole, logged=other.logged), SIGNER, [1, 2]),
        (replace(whole, record=other.record), SIGNER, [1, 2]),
        (replace(whole, record=other.record, logged=other.logged), SIGNER, [2]),
        (replace(whole, proof="\n".join([lines[0], "index 8", *lines[2:]])), SIGNER, [2]),
        (replace(whole, proof=whole.proof.replace("\n21\n", "\n22\n")), SIGNER, [3]),
        (whole, foreign, [3]),
    ]
    for changed, signer, steps in cases:
        found = check(changed, signer=signer)
        assert [step for step, one in enumerate(found, 1) if not one.held] == steps


@pytest.mark.parametrize(("index", "size", "steps"), [(0, 0, 0), (3, 3, 2), (-1, 4, 2), (0, 4, 1), (0, 4, 3)])
def test_a_path_of_the_wrong_length_leads_nowhere(index: int, size: int, steps: int) -> None:
    leaf = sha256(b"leaf").digest()
    assert root_from(leaf, index, size, [leaf] * steps) is None
