"""What a space lists and what it completes: bounded, page by page, kept for seconds, and nothing started."""

from __future__ import annotations

from typing import Any

import pytest
from hanse import errors
from hanse.agreement import DPV
from hanse.client import Space
from hanse.notebook.found import Rows

from tests.client.support import Asked, connector

CATALOG = {
    "participantId": "did:web:north.example",
    "dataset": [{"@id": "urn:hanse:north:flights", "hasPolicy": {"@id": "offer"}}],
}
AGREEMENT = {"id": "agr", "dataset": "urn:hanse:north:flights", "counterparty": "did:web:north.example"}
STARTED = {"id": "trf", "agreement_id": "agr", "state": "STARTED", "purpose": "dpv:X"}


def test_an_index_gives_the_access_that_there_is_and_starts_nothing() -> None:
    routes = {("GET", "/catalog"): CATALOG, ("GET", "/agreements"): [AGREEMENT], ("GET", "/transfers"): [STARTED]}
    with connector(routes) as served, Space(served.url, "token") as space:
        dataset = space["north/flights"]
    assert (dataset.agreement_id, dataset.transfer_id, dataset.purpose) == ("agr", "trf", DPV + "X")
    assert {asked.method for asked in served.asked} == {"GET"}


@pytest.mark.parametrize(
    ("agreements", "transfers"),
    [
        ([], []),
        ([AGREEMENT], []),
        ([AGREEMENT], [{**STARTED, "state": "TERMINATED"}]),
        ([AGREEMENT], [{**STARTED, "format": "HttpData-PUSH"}]),
        ([{**AGREEMENT, "counterparty": "did:web:other.example"}], [STARTED]),
    ],
)
def test_an_index_without_access_says_how_to_get_it(agreements: list[Any], transfers: list[Any]) -> None:
    routes = {("GET", "/catalog"): CATALOG, ("GET", "/agreements"): agreements, ("GET", "/transfers"): transfers}
    with (
        connector(routes) as served,
        Space(served.url, "token") as space,
        pytest.raises(errors.NotFound, match=r"space\.agree\('north/flights', purpose=") as caught,
    ):
        space["north/flights"]
    assert caught.value.code == "no_access"


def test_a_space_is_no_sequence() -> None:
    with connector() as served, Space(served.url, "token") as space:
        with pytest.raises(TypeError):
            list(space)  # type: ignore[call-overload]  # the error is the test
        with pytest.raises(errors.BadInput, match="participant"):
            space[0]  # type: ignore[index]  # the error is the test
    assert served.asked == []


def test_agreements_are_listed_page_by_page_up_to_the_limit() -> None:
    def page(asked: Asked) -> Any:
        first = int(asked.query.get("offset", 0))
        return [{"id": f"a{n}", "role": "consumer"} for n in range(first, first + int(asked.query["limit"]))]

    with connector({("GET", "/agreements"): page}) as served, Space(served.url, "token") as space:
        assert [row["id"] for row in space.agreements(role="consumer", limit=150)] == [f"a{n}" for n in range(150)]
    assert [asked.query["role"] for asked in served.asked] == ["consumer"] * 2


def test_what_waits_for_us_is_shown_without_its_terms() -> None:
    row = {"id": "<b>", "dataset": "urn:d", "state": "REQUESTED", "sentences": ["a page of terms"]}
    with connector({("GET", "/negotiations"): [row]}) as served, Space(served.url, "token") as space:
        waiting = space.pending()
    assert waiting == [row]
    assert served.asked[0].query["waiting_for_us"] == "true"
    assert repr(waiting) == "[<id <b>, dataset urn:d, state REQUESTED>]"
    assert "&lt;b&gt;" in waiting._repr_html_()
    assert "a page of terms" not in repr(waiting) + waiting._repr_html_()


def test_many_rows_are_shown_in_part() -> None:
    rows = Rows([{"id": number} for number in range(1, 51)], "agreement", ("id",))
    assert repr(rows).count("<id") == 20
    assert "30 more rows" in rows._repr_html_()


@pytest.mark.parametrize("limit", [0, 10_001, "5", True])
def test_a_list_has_a_limit(limit: Any) -> None:
    with connector() as served, Space(served.url, "token") as space:
        for act in (space.agreements, space.pending):
            with pytest.raises(errors.BadInput, match="limit of 1 to 10000"):
                act(limit=limit)
    assert served.asked == []


def test_keys_are_completed_and_kept() -> None:
    hits = {"results": [{"participant": "north", "name": "flights"}], "pages": 1}
    with connector({("GET", "/search"): hits}) as served, Space(served.url, "token") as space:
        assert [space._ipython_key_completions_() for _ in range(3)] == [["north/flights"]] * 3
        assert len(served.asked) == 1
        assert [entry.path for entry in space.datasets(owner="north")] == ["north/flights"]
    assert served.asked[-1].query["owner"] == "north"


def test_nothing_is_completed_while_the_connector_cannot_be_asked() -> None:
    with connector({("GET", "/search"): (503, {"detail": "stopping"})}) as served, Space(served.url, "t") as space:
        assert space._ipython_key_completions_() == []
