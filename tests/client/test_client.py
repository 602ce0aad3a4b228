"""The SDK against a scripted connector on a real socket: what is called, with which token, and what comes back."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import hanse
import pyarrow as pa
import pytest
from hanse import client, errors
from hanse._transport.api import post_small
from hanse.agreement import DPV, Name, TransferAccess
from hanse.client import Dataset, Space
from hanse.plan import Plan, PlanBlock
from hanse.retry import Patience

from tests.client.support import SCHEMA, Asked, Connector, Raw, batch, chunked, complete, connector, dripping, ipc

RESEARCH = DPV + "ScientificResearch"
NORTH = "did:web:north.example"
STREAM = ipc([batch(1, 2), batch(3)], complete(3, policy=["row filter"]))


@pytest.fixture
def served() -> Iterator[Connector]:
    with connector() as running:
        yield running


@pytest.fixture
def space(served: Connector) -> Iterator[Space]:
    with hanse.connect(served.url, "secret") as connected:
        yield connected


def started(served: Connector, space: Space, **address: Any) -> Dataset:
    """A dataset whose transfer is started, its data plane on the same server."""
    served.routes["GET", "/transfers/trf"] = {}
    served.routes["GET", "/transfers/trf/address"] = {
        "endpoint": f"{served.url}/data/v1",
        "ticket": "ticket-1",
        "expires": time.time() + 900,
        **address,
    }
    served.routes["GET", "/data/v1"] = chunked(STREAM)
    return Dataset(space, TransferAccess(Name("north", "flights"), "urn:hanse:north:flights", "agr", "trf", RESEARCH))


def test_every_call_carries_the_token_and_only_given_parameters(served: Connector, space: Space) -> None:
    served.routes["GET", "/search"] = {"results": []}
    assert space.search("breast cancer", column=["age", "sex"], theme="HEAL") == []
    asked = served.asked[0]
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.query == {"q": "breast cancer", "column": "sex", "theme": "HEAL", "size": "20", "page": "1"}


@pytest.mark.parametrize(("limit", "size", "pages"), [(2, 2, 1), (100, 100, 1), (250, 100, 3), (1000, 100, 4)])
def test_a_long_search_is_had_page_by_page(served: Connector, space: Space, limit: int, size: int, pages: int) -> None:
    def found(asked: Asked) -> dict[str, Any]:
        size, page = int(asked.query["size"]), int(asked.query["page"])
        first, last = (page - 1) * size, min(page * size, 320)
        hits = [{"participant": "north", "name": f"d{number}"} for number in range(first, last)]
        return {"results": hits, "pages": -(-320 // size)}

    served.routes["GET", "/search"] = found
    assert [entry.name for entry in space.search("x", limit=limit)] == [f"d{n}" for n in range(min(limit, 320))]
    assert [asked.query["size"] for asked in served.asked] == [str(size)] * pages


def test_what_moves_to_the_next_page_meanwhile_is_found_once(served: Connector, space: Space) -> None:
    def found(asked: Asked) -> dict[str, Any]:
        first = 99 if asked.query["page"] == "2" else 0  # one has come in front of all since the first page
        hits = [{"id": f"urn:{n}", "participant": "north", "name": "d"} for n in range(first, first + 100)]
        return {"results": hits, "pages": 2}

    served.routes["GET", "/search"] = found
    assert [entry.raw["id"] for entry in space.search("x", limit=300)] == [f"urn:{n}" for n in range(199)]


@pytest.mark.parametrize("limit", [0, 10_001, "5"])
def test_a_search_for_nothing_or_too_much_is_refused_before_it_is_asked(
    served: Connector, space: Space, limit: Any
) -> None:
    with pytest.raises(errors.BadInput, match=f"1 to 10000, got {limit!r}"):
        space.search("x", limit=limit)
    assert served.asked == []


def test_a_search_ends_with_a_page_of_nothing(served: Connector, space: Space) -> None:
    served.routes["GET", "/search"] = {"results": [], "pages": 10**9}
    assert space.search("x", limit=1000) == []
    assert len(served.asked) == 1


def test_search_results_have_what_people_look_for(served: Connector, space: Space) -> None:
    hit = {"path": "north/patients", "name": "patients", "participant": "north", "title": "T", "columns": ["age"],
           "offers": [{"id": "o", "sentences": ["members only", "until 2027"]}], "state": "fresh"}  # fmt: skip
    served.routes["GET", "/search"] = {"results": [hit]}
    entry = space.search("x")[0]
    assert (entry.path, entry.name, entry.columns) == ("north/patients", "patients", ("age",))
    assert entry.sentences == ("members only", "until 2027")
    assert entry.raw["state"] == "fresh"


def test_agreeing_drives_every_step_over_http(served: Connector, space: Space) -> None:
    identifier = "urn:hanse:north:flights"
    served.routes |= {
        ("GET", "/catalog"): {"participantId": NORTH, "dataset": [{"@id": identifier, "hasPolicy": {"@id": "offer"}}]},
        ("GET", "/agreements"): [],
        ("GET", "/negotiations"): [],
        ("POST", "/negotiations"): (201, {"id": "neg", "state": "REQUESTED"}),
        ("GET", "/negotiations/neg"): {"id": "neg", "state": "FINALIZED", "agreement_id": "agr"},
        ("GET", "/transfers"): [],
        ("POST", "/transfers"): (201, {"id": "trf", "state": "STARTED"}),
    }
    dataset = space.agree("north/flights", purpose="dpv:ScientificResearch")
    assert (dataset.agreement_id, dataset.transfer_id, dataset.name) == ("agr", "trf", "north/flights")
    assert dataset.sql_name == '"north"."flights"'
    assert repr(dataset).startswith("<Dataset north/flights, purpose ")
    bodies = [asked.body for asked in served.asked if asked.method == "POST"]
    assert bodies == [
        {"participant": NORTH, "dataset": identifier, "offer_id": "offer", "purpose": RESEARCH},
        {"agreement_id": "agr", "format": "HttpData-PULL", "purpose": RESEARCH},
    ]
    (asked,) = [one.query for one in served.asked if one.path == "/catalog"]
    assert asked == {"participant": "north", "dataset": "flights"}
    for path in ("/agreements", "/negotiations"):
        (asked, *_) = [one.query for one in served.asked if (one.method, one.path) == ("GET", path)]
        assert asked == {"role": "consumer", "counterparty": NORTH, "dataset": identifier}


def test_an_owner_whose_ids_say_another_name_goes_by_its_identifier_in_sql(space: Space) -> None:
    access = TransferAccess(Name("shop", "air"), "urn:hanse:north:air", "a", "t", "", "did:web:shop.example")
    assert Dataset(space, access).sql_name == '"did:web:shop.example"."air"'


def test_what_may_be_read_is_known_before_it_is_read(served: Connector, space: Space) -> None:
    allowed = {"contracts": [{"columns": [{"name": "age", "type": "BIGINT", "mask": None}]}]}
    served.routes["GET", "/agreements/agr/contract"] = allowed
    assert started(served, space).contract() == allowed


def test_a_stream_comes_from_the_owner_with_the_ticket_and_not_with_our_token(served: Connector, space: Space) -> None:
    stream = started(served, space).stream(columns=["age", "name"], where="age > 1", batch_rows=2)
    assert [one.num_rows for one in stream] == [2, 1]
    asked = served.asked[-1]
    assert (asked.path, asked.headers["authorization"]) == ("/data/v1", "Bearer ticket-1")
    assert asked.query == {
        "columns": "age,name",
        "where": "age > 1",
        "purpose": RESEARCH,
        "batch_rows": "2",
        "blocks": "all",
    }


PLAN = {
    "shown": "m",
    "snapshot": "v1/2",
    "plan": "p",
    "blocks": [{"rows": 3, "bytes": 48}],
    "rows": 3,
    "exact": True,
}


def test_a_stream_of_a_plan_has_its_columns_and_no_others(served: Connector, space: Space) -> None:
    dataset = started(served, space)
    schema = pa.schema([("age", pa.string()), ("name", pa.string())])
    served.routes["POST", "/data/v1/streams"] = PLAN | {"schema": base64.b64encode(schema.serialize()).decode()}
    with pytest.raises(errors.Broken, match="columns and types"):
        dataset.read(dataset.plan(), [0])


def test_a_stream_that_breaks_in_a_block_that_nobody_asked_for_is_not_gone_on_with(
    served: Connector, space: Space
) -> None:
    dataset = started(served, space)
    plan = Plan("v1/2", "p", SCHEMA, (PlanBlock(3, 48),), 3, exact=True)
    place = {"hanse.at": json.dumps({"block": 7, "cursor": "c"})}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_batch(batch(1, 2), custom_metadata=place)
        sent = sink.tell()
    served.routes["GET", "/data/v1"] = chunked([sink.getvalue().to_pybytes()[:sent]], last=False)
    with pytest.raises(errors.Broken, match="in their order"):
        list(dataset.read(plan, [0]))


@pytest.mark.parametrize("coding", ["Identity", ""])
def test_an_answer_that_says_that_it_is_not_compressed_is_read(served: Connector, space: Space, coding: str) -> None:
    dataset = started(served, space)
    extra, schema = f"content-encoding: {coding}\r\n", base64.b64encode(SCHEMA.serialize()).decode()
    body = json.dumps(PLAN | {"schema": schema}).encode()
    plan = Raw(f"HTTP/1.1 200 OK\r\n{extra}content-length: {len(body)}\r\n\r\n".encode() + body)
    served.routes["POST", "/data/v1/streams"] = served.routes["GET", "/self"] = plan
    served.routes["GET", "/data/v1"] = chunked(ipc([batch(1)], complete(1)), extra=extra)
    assert dataset.plan().snapshot == space.me()["snapshot"] == PLAN["snapshot"]
    assert dataset.stream().to_arrow().num_rows == 1


ANSWERS = {"200 OK": "expected an uncompressed answer .*gzip", "500 Failed": "status 500"}


@pytest.mark.parametrize("status", ANSWERS)
@pytest.mark.parametrize("encoding", ["gzip", "gzip, " * 5 + "gzip"], ids=["once", "many times"])
def test_an_answer_that_is_compressed_though_nobody_asked_for_it_is_not_unpacked(
    served: Connector, space: Space, encoding: str, status: str
) -> None:
    """Sixty kilobytes that are packed several times keep whoever unpacks them busy for days."""
    dataset = started(served, space)
    head = f"HTTP/1.1 {status}\r\ncontent-encoding: {encoding}\r\ncontent-length: 20\r\n\r\n".encode()
    served.routes["POST", "/data/v1/streams"] = served.routes["GET", "/self"] = Raw(head + gzip.compress(b""))
    for ask in (dataset.plan, space.me):
        with pytest.raises(errors.Broken, match=ANSWERS[status]):
            ask()
    assert {one.headers["accept-encoding"] for one in served.asked} == {"identity"}


@pytest.mark.parametrize(
    "odd", [{"rows": float("inf")}, {"rows": "x"}, {"blocks": [{"rows": float("inf"), "bytes": 1}]}, {"schema": "?"}]
)
def test_a_plan_that_cannot_be_read_is_one_of_our_errors(
    served: Connector, space: Space, odd: dict[str, object]
) -> None:
    dataset = started(served, space)
    schema = {"schema": base64.b64encode(pa.schema([]).serialize()).decode()}
    served.routes["POST", "/data/v1/streams"] = PLAN | schema | odd
    with pytest.raises(errors.Broken, match="expected a plan"):
        dataset.plan()


def test_a_ticket_is_asked_for_once_while_it_lasts_and_again_near_its_end(served: Connector, space: Space) -> None:
    dataset = started(served, space)
    dataset.stream().to_arrow()
    dataset.stream().to_arrow()
    assert served.calls().count("GET /transfers/trf/address") == 1
    soon = started(served, space, expires=time.time() + 5)
    soon.stream().to_arrow()
    soon.stream().to_arrow()
    assert served.calls().count("GET /transfers/trf/address") == 3


def test_a_ticket_that_has_just_ended_is_renewed_once(served: Connector, space: Space) -> None:
    dataset = started(served, space)
    ended = (401, {"code": "ticket_expired", "detail": "the ticket has ended"})
    answers = [ended, chunked(STREAM)]
    served.routes["GET", "/data/v1"] = lambda _: answers.pop(0)
    assert dataset.stream().to_arrow().num_rows == 3
    served.routes["GET", "/data/v1"] = ended
    with pytest.raises(hanse.AccessExpired):
        dataset.stream()


def test_a_transfer_that_is_gone_is_revoked_access(served: Connector, space: Space) -> None:
    dataset = started(served, space)
    del served.routes["GET", "/transfers/trf/address"]
    with pytest.raises(hanse.AccessRevoked, match=r"call agree\(\) again"):
        dataset.stream()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"columns": "age"}, r"as a list such as \['age'\]"),
        ({"columns": [1]}, r"a list of names such as \['age'\], or \[\] for all, got \[1\]"),
        ({"columns": None}, "for all, got None"),
        ({"where": 5}, "where as a text such as 'age > 50', got 5"),
    ],
)
def test_columns_are_a_list_of_texts_and_a_condition_is_a_text(
    served: Connector, space: Space, asked: dict[str, Any], says: str
) -> None:
    dataset = started(served, space)
    for read in (dataset.stream, dataset.plan):
        with pytest.raises(hanse.BadInput, match=says):
            read(**asked)


@pytest.mark.parametrize("sql", ["", " \n"])
def test_an_empty_question_is_told_to_be_empty(served: Connector, space: Space, sql: str) -> None:
    for ask in (space.query, space.explain):
        with pytest.raises(hanse.BadInput, match="got an empty text"):
            ask(sql)
    assert served.asked == []


def test_a_dataset_answers_a_query_of_its_own(served: Connector, space: Space) -> None:
    dataset = started(served, space)
    served.routes["POST", "/data/v1/query"] = chunked(STREAM)
    assert dataset.query("SELECT 1").to_arrow().num_rows == 3
    assert served.asked[-1].body == {"sql": "SELECT 1", "purpose": RESEARCH, "agreement": "agr"}


def _full(code: str) -> tuple[int, dict[str, Any]]:
    return 429, {"code": code, "detail": "ask again in 3 s", "retry_after": 3}


def test_a_question_that_finds_no_place_is_asked_again_after_the_pause_that_the_connector_names(
    served: Connector, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(client, "Patience", partial(Patience, sleep=pauses.append, now=lambda: 0.0))
    answers = [chunked(ipc([batch(1)], complete(1))), _full("queries_max"), _full("queries_max")]
    served.routes["POST", "/queries"] = lambda _: answers.pop()
    assert space.query("SELECT 1").to_arrow().num_rows == 1
    answers += [{"text": "plan"}, _full("queries_max")]
    assert space.explain("SELECT 1")["text"] == "plan"
    assert len(pauses) == 3
    assert all(3.0 <= pause <= 3.75 for pause in pauses)


def test_a_question_is_asked_once_where_the_limit_is_another_or_there_is_no_patience(
    served: Connector, space: Space
) -> None:
    for code, patience in (("time_limit", 60.0), ("queries_max", 0.0)):
        served.routes["POST", "/queries"] = _full(code)
        with pytest.raises(errors.Busy):
            space.query("SELECT 1", patience=patience)
    assert served.calls() == ["POST /queries"] * 2


def test_the_pause_that_a_proxy_asks_for_is_in_the_error(served: Connector, space: Space) -> None:
    page = b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nbusy"
    served.routes["POST", "/queries"] = Raw(page)
    with pytest.raises(errors.Busy) as busy:
        space.query("SELECT 1")
    assert busy.value.facts == {"retry_after": 7}


def test_a_question_to_many_owners_says_what_each_sent(served: Connector, space: Space) -> None:
    owners = [{"owner": "north", "dataset": "flights", "rows": 2, "bytes": 100}, {"owner": "west", "rows": 1}]
    served.routes["POST", "/queries"] = chunked(ipc([batch(1, 2), batch(3)], complete(3, owners=owners)))
    answer = space.query("SELECT 1", purpose="dpv:ScientificResearch", limits={"rows": 5})
    assert answer.owners == owners
    assert answer.to_pandas()["age"].tolist() == [1, 2, 3]
    assert served.asked[0].body == {"sql": "SELECT 1", "purpose": "dpv:ScientificResearch", "limits": {"rows": 5}}
    assert served.asked[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(("analyze", "asked"), [(False, True), (True, "analyze")])
def test_a_question_is_explained(served: Connector, space: Space, analyze: bool, asked: object) -> None:
    served.routes["POST", "/queries"] = {"fragments": []}
    assert space.explain("SELECT 1", analyze=analyze) == {"fragments": []}
    assert served.asked[0].body == {"sql": "SELECT 1", "explain": asked}


def test_a_refusal_names_code_and_rule(served: Connector, space: Space) -> None:
    problem = {"code": "aggregate_only", "detail": "rows may not leave", "rule": "/permission/0", "column": "age"}
    served.routes["POST", "/queries"] = (403, problem)
    with pytest.raises(hanse.Refused, match="rows may not leave") as caught:
        space.query("SELECT * FROM x.y")
    assert (caught.value.code, caught.value.rule) == ("aggregate_only", "/permission/0")
    assert caught.value.facts == {"column": "age"}


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ((200, b"<html>"), hanse.Broken, "is this a connector"),
        ((500, b"oops"), hanse.Broken, "status 500"),
        ((302, b""), hanse.Broken, "status 302"),
        ((401, {"detail": "unknown token", "code": "unauthenticated"}), hanse.Unauthenticated, "unknown token"),
        ((503, {"detail": "stopping", "code": "busy"}), hanse.Busy, "stopping"),
        ((400, ["not", "a", "problem"]), hanse.BadInput, "status 400"),
    ],
)
def test_answers_that_are_not_as_expected_are_typed_errors(
    served: Connector, space: Space, answer: Any, kind: type[Exception], text: str
) -> None:
    served.routes["GET", "/self"] = answer
    with pytest.raises(kind, match=text):
        space.me()


def test_a_slow_connector_is_given_up_on(served: Connector) -> None:
    given_up = threading.Event()

    def slow(_: Asked) -> dict[str, Any]:
        given_up.wait(60)
        return {}

    served.routes["GET", "/self"] = slow
    with pytest.raises(hanse.Unreachable, match="in time"):
        Space(served.url, "t", seconds=0.1).me()
    given_up.set()


def test_a_connector_that_sends_next_to_nothing_is_given_up_on(served: Connector) -> None:
    for status in ("200 OK", "503 Busy"):
        head = f"HTTP/1.1 {status}\r\ncontent-length: 1000\r\n\r\n".encode()
        with dripping([head, *[b" "] * 100], pause=0.05) as url, pytest.raises(errors.Unreachable, match="nothing"):
            Space(url, "t", seconds=0.3).me()


def test_a_call_after_the_end_is_told_as_that(served: Connector, space: Space) -> None:
    space.close()
    with pytest.raises(errors.BadInput, match="was closed; connect again"):
        space.search("x")


def test_nobody_there_is_said_with_what_to_look_at() -> None:
    with connector() as gone:
        url = gone.url
    with pytest.raises(hanse.Unreachable, match="management listener"):
        Space(url, "t").me()


@pytest.mark.parametrize("url", ["localhost:8081", "ftp://x", "", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(hanse.BadInput, match="expected the address"):
        Space(url, "t")


def test_the_package_names_what_it_has() -> None:
    assert hanse.Stream.__name__ == "Stream"
    assert set(hanse.__all__) == set(dir(hanse))
    assert all(getattr(hanse, name) for name in hanse.__all__)
    with pytest.raises(AttributeError, match="hanse has no 'nothing'"):
        hanse.nothing  # noqa: B018  # the access is the test


def test_an_explained_question_shows_itself_in_a_notebook(served: Connector, space: Space) -> None:
    told = {"fragments": [], "text": "f0 at <north>", "svg": "<svg></svg>"}
    served.routes["POST", "/queries"] = told
    plan = space.explain("SELECT 1")
    assert str(plan) == "f0 at <north>"
    assert plan._repr_svg_() == "<svg></svg>"
    assert "<svg></svg>" in plan._repr_html_()
    assert "&lt;north&gt;" in plan._repr_html_()


def test_a_question_with_an_id_can_be_looked_at_while_it_runs(served: Connector, space: Space) -> None:
    served.routes["POST", "/queries"] = chunked(STREAM)
    served.routes["GET", "/queries/0123456789abcdef"] = {"state": "asking", "waiting": [{"owner": "north"}]}
    space.query("SELECT 1", query_id="0123456789abcdef")
    assert served.asked[0].body == {"sql": "SELECT 1", "id": "0123456789abcdef"}
    assert space.progress("0123456789abcdef")["waiting"] == [{"owner": "north"}]


def test_a_partial_answer_is_asked_for_only_where_it_is_said(served: Connector, space: Space) -> None:
    served.routes["POST", "/queries"] = chunked(STREAM)
    space.query("SELECT 1")
    space.query("SELECT 1", partial=True)
    assert [asked.body for asked in served.asked] == [{"sql": "SELECT 1"}, {"sql": "SELECT 1", "partial": "allow"}]


@pytest.mark.parametrize("url", ["http://[::1", "http://h:x"])
def test_an_owner_whose_address_is_none_is_a_typed_error(url: str) -> None:
    with pytest.raises(errors.Broken, match="expected an address"):
        post_small(url, "ticket", {}, seconds=5)
