"""The record at the end of a stream has the room that was kept for it: what is said last of the policies goes first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from connector.dataplane.read_request import END_OF_STREAM, StreamEnd
from connector.engine.pool.protocol import TRAILER_ROOM
from policies.contracts.contract import Dimension, bins_note

REASON, RULE = "groups of fewer than 10 are left out", "/permission/0/constraint/2"
FIGURES = "stays: groups of at least 10"


def told(*policy: str, reason: str = REASON) -> dict[str, Any]:
    end = StreamEnd("refused", 5, 1, 500, "0" * 64, code="min_group_size", reason=reason, rule=RULE, policy=policy)
    filled = end.fill(b"head" + b" " * TRAILER_ROOM + b"tail")
    assert len(filled) == TRAILER_ROOM + len(b"headtail" + END_OF_STREAM)
    found: dict[str, Any] = json.loads(filled[4 : 4 + TRAILER_ROOM])
    return found


@pytest.mark.parametrize("name", ["measurement_period_of_device_{}", "продолжительность_{}"])
def test_bins_of_many_columns_are_one_note_that_has_room(name: str) -> None:
    note = bins_note([Dimension(name.format(at), 10.0) for at in range(8)] + [Dimension("sex")])
    record = told(FIGURES, f"stays: {note}")
    assert record["policy"] == [FIGURES, f"stays: {note}"]
    assert (note.count("in bins of 10, "), note.count("lower edge"), "sex" in note) == (8, 1, False)


def test_notes_go_before_the_reason_and_the_reason_before_the_rule() -> None:
    record = told(FIGURES, "x" * 1000, "y" * 1000)
    assert record["policy"] == [FIGURES, "x" * 1000, "1 more, which did not fit here"]
    assert (record["reason"], record["rule"]) == (REASON, RULE)
    record = told("x" * TRAILER_ROOM)
    assert (record["policy"], record["reason"]) == (["1 more, which did not fit here"], REASON)
    record = told(FIGURES, reason="\N{GRINNING FACE}" * 400)
    assert (record["policy"], record["reason"], record["rule"]) == ([], "", RULE)
