"""A question over owners that run as processes, and that are killed, slow, cut off, changed or unwilling meanwhile.

Never a short answer: an error that names the owner and the stage, or, where it was asked for and means something, an
answer that names who is missing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.demo.story import RESEARCH
from tests.e2e.conftest import Running
from tests.support.processes import Client, Failed

# Joins that no owner finishes within a test, and whose answer no statistics tell.
LONG = {
    "north": "SELECT count(*) AS n FROM north.flights a, north.flights b, north.flights c "
    "WHERE a.dep_delay * b.distance > c.dep_delay * a.distance",
    "south": "SELECT count(*) AS n FROM south.weather a, south.weather b, south.weather c "
    "WHERE a.humid + b.humid + c.humid > a.visib * b.visib * c.visib",
}
BOTH = " UNION ALL ".join(LONG.values())
WIDE = "SELECT * FROM north.flights"
SHARES = "SELECT count(*) AS n, sum(v) AS s FROM north.shifting"
PATIENCE = 60.0


class Asker:
    """The gigafactory's connector, asked over its API."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self._threads = ThreadPoolExecutor(4)
        self._numbers = iter(range(1, 1000))

    def client(self) -> Client:
        forge = self.running.space.members["forge"]
        return Client(forge.management_port, token=forge.token, prefix="/api/v1", timeout=120)

    def fresh(self) -> str:
        return f"{next(self._numbers):016x}"

    def ask(self, sql: str, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows and end record; Failed with the problem object."""
        body = {"sql": sql, "purpose": RESEARCH, "limits": {"seconds": PATIENCE}, **more}
        with pa.ipc.open_stream(self.client().call("POST", "/queries", body)) as reader:
            rows: list[dict[str, Any]] = []
            while True:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                if metadata is not None:
                    return rows, json.loads(metadata[b"hanse.end"])
                rows += batch.to_pylist()

    def begin(self, sql: str, **more: Any) -> tuple[str, Future[Any]]:
        """A question on its way, and its id."""
        query_id = self.fresh()
        return query_id, self._threads.submit(self.ask, sql, id=query_id, **more)

    def records(self, owner: str, query_id: str, kind: str) -> list[dict[str, Any]]:
        """What an owner's log says of a question's fragments, in order."""
        found = self.running.story.api(owner).get("/audit/events", kind=kind, limit=200)["records"]
        return [row["body"] for row in reversed(found) if row["body"].get("process", "").startswith(query_id)]

    def working(self, question: Future[Any], query_id: str, *owners: str) -> None:
        """Wait until these owners work on a question that runs."""
        for owner in owners:
            self.wait(owner, query_id, question=question)

    def wait(
        self, owner: str, query_id: str, kind: str = "ReadStarted", *, question: Future[Any] | None = None
    ) -> list[dict[str, Any]]:
        """What an owner's log says of a question, once it says something; the question's error if it ends first."""
        until = time.monotonic() + PATIENCE
        while not (found := self.records(owner, query_id, kind)):
            if question is not None and question.done():
                question.result()
            assert time.monotonic() < until, f"{owner} has no {kind} of {query_id}"
            time.sleep(0.05)
        return found

    def cancelled_at(self, owner: str, query_id: str) -> None:
        """The owner's log says that nobody waited for its answer any more."""
        assert [(end["outcome"], end["detail"]["rows"]) for end in self.wait(owner, query_id, "ReadEnded")] in (
            [("broken", 0)],
            [("failed", 0)],
        )


@pytest.fixture(scope="module")
def asker(running: Running) -> Asker:
    return Asker(running)


@pytest.fixture
def north(running: Running) -> Iterator[None]:
    """North may be killed; it runs again afterwards."""
    yield
    running.space.kill("north")
    running.space.start("north")
    running.space.wait("north")


@pytest.fixture(scope="module")
def shifting(running: Running) -> str:
    """A dataset of north that changes, agreed on; the agreement's id."""
    owner, forge = running.story.api("north"), running.story.api("forge")
    made = owner.post("/datasets", {"name": "shifting", "path": written(running, 1)})
    policy = {"permission": [{"action": "use"}]}
    offer = owner.post("/offers", {"dataset": "shifting", "policy": policy, "decide": "auto"})
    member = running.space.members["north"]
    begun = forge.post(
        "/negotiations",
        {
            "counter_party_id": member.did,
            "counter_party_address": f"{member.url}/dsp/2025-1",
            "dataset": made["id"],
            "offer_id": offer["id"],
        },
    )
    done = forge.get(f"/negotiations/{begun['id']}", wait=60, until="FINALIZED")
    transfer = forge.post("/transfers", {"agreement_id": done["agreement_id"], "format": "HttpData-PULL"})
    assert forge.get(f"/transfers/{transfer['id']}", wait=60, until="STARTED")["state"] == "STARTED"
    return str(done["agreement_id"])


def written(running: Running, factor: int) -> str:
    path = running.space.directory / "data" / "north" / f"shifting-{factor}.parquet"
    rows = 200_000
    pq.write_table(pa.table({"id": pa.array(range(rows)), "v": pa.array([factor] * rows)}), path)
    return str(path)


def problem(failed: Failed) -> dict[str, Any]:
    return dict(json.loads(failed.body))


def test_an_owner_killed_in_mid_query_is_named_and_the_others_work_is_cancelled(
    asker: Asker, running: Running, north: None
) -> None:
    query_id, question = asker.begin(BOTH)
    asker.working(question, query_id, "north", "south")
    running.space.kill("north")
    with pytest.raises(Failed) as failed:
        question.result(PATIENCE)
    told = problem(failed.value)
    assert (failed.value.status, told["code"]) == (502, "peer_unreachable")
    assert (told["owner"], told["stage"]) == ("north", "asking")
    assert told["detail"].startswith('"north" (f')
    asker.cancelled_at("south", query_id)


def test_an_owner_killed_in_mid_stream_is_named_and_gives_no_short_answer(
    asker: Asker, running: Running, north: None
) -> None:
    running.relays["north"].after(1_000_000, lambda: running.space.kill("north"))
    with pytest.raises(Failed) as failed:
        asker.ask(WIDE, wire="none")
    told = problem(failed.value)
    assert (failed.value.status, told["owner"]) == (502, "north")
    assert told["stage"] == "asking"  # it was asked again, and was not there any more


def test_a_fragment_whose_connection_is_cut_is_asked_again_from_its_beginning(asker: Asker, running: Running) -> None:
    query_id = asker.fresh()
    cut = threading.Event()
    running.relays["north"].after(1_000_000, cut.set)
    rows, end = asker.ask("SELECT tailnum, dest, dep_delay FROM north.flights", id=query_id, wire="none")
    assert cut.is_set()
    whole = [one["rows"] for one in end["owners"]]
    assert whole == [len(rows)]
    ends = asker.wait("north", query_id, "ReadEnded")
    assert [end["process"].split(".")[-2] for end in ends] == ["1", "2"]  # what it was asked as, before the owner's own
    assert [end["outcome"] for end in ends] == ["broken", "ok"]


def test_an_owner_that_is_down_at_the_start_is_an_error_and_only_on_request_left_out(
    asker: Asker, running: Running, north: None
) -> None:
    running.space.kill("north")
    running.space.kill("forge")  # it remembers for a while what owners share; a fresh one must ask
    running.space.start("forge")
    running.space.wait("forge")
    everybody = 'SELECT count(*) AS n FROM "all".patients'
    with pytest.raises(Failed) as failed:
        asker.ask(everybody)
    told = problem(failed.value)
    assert (failed.value.status, told["owner"], told["stage"]) == (502, "north", "planning")
    rows, end = asker.ask(everybody, partial="allow")
    assert [one["owner"] for one in end["missing"]] == ["north"]
    assert (end["partial"], {one["owner"] for one in end["owners"]}) == (True, {"south", "west"})
    assert 0 < rows[0]["n"] < 686
    with pytest.raises(Failed) as misleading:
        asker.ask('SELECT avg(time) AS t FROM "all".patients GROUP BY tgrade HAVING count(*) > 9', partial="allow")
    assert "no partial answer either: HAVING" in problem(misleading.value)["detail"]


def test_an_owner_that_is_too_slow_is_stopped_at_its_part_of_the_deadline(asker: Asker) -> None:
    query_id = asker.fresh()
    with pytest.raises(Failed) as failed:
        asker.ask(LONG["north"], id=query_id, limits={"seconds": 12})
    told = problem(failed.value)
    assert (failed.value.status, told["code"]) == (429, "time_limit")
    assert (told["owner"], told["stage"]) == ("north", "asking")
    asker.wait("north", query_id, "ReadEnded")


def test_a_question_that_is_cancelled_stops_at_every_owner(asker: Asker) -> None:
    query_id, question = asker.begin(BOTH)
    asker.working(question, query_id, "north", "south")
    asker.client().call("DELETE", f"/queries/{query_id}")
    with pytest.raises(Failed) as failed:
        question.result(PATIENCE)
    assert problem(failed.value)["code"] == "cancelled"
    for owner in ("north", "south"):
        asker.cancelled_at(owner, query_id)


def test_a_dataset_that_changes_between_plan_and_fragment_is_planned_anew(
    asker: Asker, running: Running, shifting: str
) -> None:
    before, _ = asker.ask(SHARES)
    running.story.api("north").post("/datasets/shifting/versions", {"path": written(running, 3), "accept": True})
    query_id = asker.fresh()
    after, end = asker.ask(SHARES, id=query_id)
    assert (before, after) == ([{"n": 200_000, "s": 200_000}], [{"n": 200_000, "s": 600_000}])
    assert end["status"] == "complete"
    refused = asker.records("north", query_id, "ReadRefused")
    assert [one["code"] for one in refused] == ["snapshot_changed"]


def test_an_agreement_revoked_in_mid_query_is_an_error_with_the_owners_reason(
    asker: Asker, running: Running, shifting: str
) -> None:
    query_id, question = asker.begin(
        "SELECT count(*) AS n FROM north.shifting a, north.shifting b WHERE a.id * b.v > b.id * a.v + 7"
    )
    asker.working(question, query_id, "north")
    running.story.api("north").post(f"/agreements/{shifting}/revoke", {"reason": "the study is over"})
    with pytest.raises(Failed) as failed:
        question.result(PATIENCE)
    told = problem(failed.value)
    assert (failed.value.status, told["code"], told["owner"]) == (403, "revoked", "north")
    assert "the study is over" in told["detail"]
