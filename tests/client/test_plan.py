"""A plan in another form is Broken, whatever form that is; so is an answer of more values than there is room for."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hanse._transport import api
from hanse.errors import BadInput, Broken, HanseError
from hanse.loaders.epoch_order import read_place

from tests.client.support import SCHEMA, connector, owned

HALF = "\ud800"  # of a letter: JSON may have one, and no request can
JUNK = base64.b64encode(b"\xff\xff\xff\xff\x10\0\0\0" + b"\x90" * 16).decode()
CUT = base64.b64encode(SCHEMA.serialize().to_pybytes()[:-20]).decode()
OTHERS: list[dict[str, Any]] = [
    {"snapshot": HALF}, {"plan": HALF}, {"schema": JUNK}, {"schema": CUT}, {"schema": ""}, {"schema": HALF},
    {"schema": 5}, {"rows": -1}, {"rows": 1e400}, {"rows": None}, {"blocks": [{"rows": -2, "bytes": 1}]},
    {"rows": 1000}, {"rows": "2"}, {"rows": 2.0}, {"rows": True}, {"exact": "false"}, {"exact": 1}, {"exact": None},
    {"blocks": [{"rows": 2.9, "bytes": 1}]}, {"blocks": [{"rows": 10**400, "bytes": 1}], "rows": 10**400},
    {"blocks": [{"rows": 2, "bytes": -1}]}, {"blocks": {"a": 1}}, {"blocks": [5]}, {"blocks": 5}, {"blocks": None},
]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: str(other)[:40].encode("ascii", "replace").decode())
def test_a_plan_in_another_form_is_broken(other: dict[str, Any]) -> None:
    with (
        owned(None, rows=[2], otherwise=other) as dataset,
        pytest.raises(Broken, match=r"^north/people: .*(another form|an Arrow stream|as its blocks)"),
    ):
        dataset.loader()


PLACES: list[tuple[tuple[Any, Any], str]] = [
    ((0, 4), "4 rows of a block that has 3"),
    ((1, 3), "3 rows of a block that has 2"),
    ((0, 999), "999 rows of a block that has 3"),
    ((0, -5), "shard_example_idx to be at least 0, got -5"),
    ((9, 0), "0 rows of block 9 of 2"),
    ((2, 1), "1 rows of block 2 of 2"),
    ((-1, 0), "shard_idx to be at least 0, got -1"),
    (("1", 0), "shard_idx to be a whole number, got '1'"),
    ((None, 0), "shard_idx to be a whole number, got None"),
]


@pytest.mark.parametrize(("wrong", "told"), PLACES, ids=str)
def test_a_place_of_hugging_face_that_no_state_has_is_refused(wrong: tuple[Any, Any], told: str) -> None:
    with owned(None, rows=[2, 5, 3]) as dataset:
        plan = dataset.plan()
    for at in [(0, 0), (0, 3), (1, 0), (1, 2), (2, 0)]:
        assert read_place({"shard_idx": at[0], "shard_example_idx": at[1]}, plan, [2, 0]) == at
    with pytest.raises(BadInput, match=told):
        read_place({"shard_idx": wrong[0], "shard_example_idx": wrong[1]}, plan, [2, 0])


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("value", ["{},", "[],", "1.5,"])
def test_an_answer_of_too_many_values_is_not_taken_apart(
    monkeypatch: pytest.MonkeyPatch, value: str, status: int
) -> None:
    monkeypatch.setattr(api, "_VALUES_MAX", 1000)
    answer = (status, f"[{value * 1000} 0]".encode())
    with connector({("POST", "/"): answer, ("GET", "/self"): answer}) as served:
        text = "more than 1000 values" if status == 200 else "status 500"  # its bytes are too few for as many
        with pytest.raises(HanseError, match=text):
            api.post_small(served.url, "t", {}, seconds=5)
        with pytest.raises(HanseError, match="more than 1000 values"):
            api.Api(served.url, "t").get("/self")
