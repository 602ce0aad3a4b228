"""One suite over HTTP and over Flight: the same rows, refusals, ends and records.

What only one of them has stands in `http/` and `flight/`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from connector.dataplane.flight.listener import FlightServer
from tests.support import data, gate, provider, streamed
from tests.support.beats import beats
from tests.support.flying import flyer
from tests.support.gate import atom, mask
from tests.support.provider import Provider, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESEARCH, ADS = "https://w3id.org/dpv#ScientificResearch", "https://w3id.org/dpv#Advertising"
POLICIES = {
    "open": provider.OPEN,
    "narrow": gate.agreement(
        atom("ds:row/gap", "eq", "2"),
        atom("ds:columnDeny", "isNoneOf", "x", "day", "tags"),
        atom("odrl:purpose", "eq", RESEARCH),
        duties=[mask("null", "name")],
        action="odrl:use",
    ),
    "groups": gate.agreement(
        atom("ds:minGroupSize", "gteq", "3000"), atom("ds:dimension/gap", "eq", "exact"), action="odrl:use"
    ),
    "quota": gate.agreement(atom("ds:rowQuota", "lteq", "5000"), action="odrl:use"),
    "once": gate.agreement(atom("odrl:count", "lteq", "1"), action="odrl:use"),
}
N = '"clinic".numbers'
# policy, envelope. Each is asked over both, each time under an agreement of its own.
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("open", {"sql": f"SELECT * FROM {N} WHERE id < 500"}),
    ("open", {"sql": f"SELECT gap, count(*) AS n, round(sum(x), 3) AS s FROM {N} GROUP BY gap ORDER BY gap"}),
    ("open", {"sql": f"SELECT id FROM {N} WHERE id < 0"}),
    ("open", {"sql": f"SELECT id, day, tags FROM {N}", "action": "stream"}),
    ("open", {"sql": f"SELECT id FROM {N}", "limits": {"rows": 10}}),
    ("open", {"sql": f"SELECT nope FROM {N}"}),
    ("open", {"sql": f"SELECT CAST(name AS INTEGER) AS n FROM {N}"}),
    ("open", {"sql": "SELECT * FROM other"}),
    ("open", {"sql": f"DROP TABLE {N}"}),
    ("open", {"sql": "SELECT '"}),
    ("open", {"sql": "SELECT 1", "how": 1}),
    ("narrow", {"sql": f"SELECT gap, count(*) AS n FROM {N} GROUP BY gap", "purpose": RESEARCH}),
    ("narrow", {"sql": f"SELECT * FROM {N}", "purpose": RESEARCH}),
    ("narrow", {"sql": f"SELECT * FROM {N}", "purpose": ADS}),
    ("narrow", {"sql": f"SELECT * FROM {N}"}),
    ("narrow", {"sql": f"SELECT x FROM {N}", "purpose": RESEARCH}),
    ("groups", {"sql": f"SELECT gap, count(*) AS n FROM {N} GROUP BY gap ORDER BY gap"}),
    ("groups", {"sql": f"SELECT gap, count(*) AS n FROM {N} WHERE gap = 77 GROUP BY gap"}),
    ("groups", {"sql": f"SELECT id FROM {N}"}),
    ("quota", {"sql": f"SELECT id FROM {N} WHERE id < 10000"}),
    ("once", {"sql": f"SELECT id FROM {N} WHERE id < 10"}),
]


KINDS = {  # what pyarrow makes of a code
    "column_unknown": pa.ArrowInvalid, "dataset_unknown": pa.ArrowInvalid, "statement_not_allowed": pa.ArrowInvalid,
    "envelope_invalid": pa.ArrowInvalid, "ticket_mismatch": fl.FlightUnauthorizedError,
    "purpose_not_agreed": fl.FlightUnauthorizedError, "quota": fl.FlightInternalError,
    "revoked": fl.FlightUnauthorizedError, "lease_expired": fl.FlightUnauthenticatedError,
    "ticket_expired": fl.FlightUnauthenticatedError, "shutting_down": fl.FlightUnavailableError,
    "worker_wanted": fl.FlightUnavailableError, "busy": fl.FlightUnavailableError,
    "memory_limit": fl.FlightInternalError,  # what Arrow's C++ makes of RESOURCE_EXHAUSTED
    "store_unreachable": fl.FlightInternalError,
}  # fmt: skip


@pytest.mark.parametrize(("policy", "envelope"), QUESTIONS, ids=range(len(QUESTIONS)))
async def test_both_transports_give_the_same(
    running: Provider, front: FlightServer, policy: str, envelope: dict[str, Any]
) -> None:
    found = []
    for ask in (_over_http, _over_flight):
        agreement = await running.agree(POLICIES[policy])
        before = len(running.events)
        answer = await ask(running, front, running.ticket(agreement), envelope)
        found.append((answer, await _records(running, before)))
    http, flight = found
    assert flight == http


@pytest.mark.parametrize("error", [RuntimeError, ConnectionResetError, TimeoutError])
async def test_what_nobody_foresaw_is_told_over_both(
    running: Provider, front: FlightServer, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise error("x")  # a new one: it holds whatever it has passed through

    ticket = running.ticket(await running.agree())
    monkeypatch.setattr(running.grants, "examine", fails)
    monkeypatch.setattr(running.grants, "find_contract", fails)
    told = [await ask(running, front, ticket, QUESTIONS[0][1]) for ask in (_over_http, _over_flight)]
    assert told == [("internal", "the connector failed unexpectedly; see its log", "")] * 2


@pytest.mark.parametrize(
    ("envelope", "seconds", "code", "recorded"),
    [
        (QUESTIONS[0][1], -1, "ticket_expired", ""),
        ({"sql": "SELECT 1", "agreement": "urn:x"}, 60, "ticket_mismatch", "refused"),
        ({"sql": f"SELECT max(id * 9223372036854775807) AS n FROM {N}"}, 60, "computation_failed", "broken"),
    ],
)
async def test_both_refuse_with_the_same_code(
    running: Provider, front: FlightServer, envelope: dict[str, Any], seconds: float, code: str, recorded: str
) -> None:
    """The words are those of each."""
    for ask in (_over_http, _over_flight):
        ticket, before = running.ticket(await running.agree(), seconds=seconds), len(running.events)
        assert (await ask(running, front, ticket, envelope))[0] == code
        records = [(one[1], one[2]) for one in await _records(running, before) if one[0] != "ReadStarted"]
        assert records == ([(recorded, code)] if recorded else [])


async def test_several_agreements_are_read_together_over_both(
    running: Provider, front: FlightServer, tmp_path: Path
) -> None:
    first = running.ticket(await running.agree())
    second = running.ticket(await running.agree(name="others", path=data.parquet(tmp_path / "others.parquet", 50)))
    asked = {"sql": f'SELECT count(*) AS n FROM {N} n JOIN "clinic".others o ON n.id = o.id'}
    for ask in (_over_http, _over_flight):
        assert (await ask(running, front, first, asked | {"tickets": [second]}))[1] == [{"n": 50}]
        assert (await ask(running, front, first, asked))[0] == "dataset_unknown"


@pytest.mark.parametrize("flight", [False, True], ids=["http", "flight"])
async def test_readers_at_once_each_get_their_rows(running: Provider, front: FlightServer, *, flight: bool) -> None:
    ticket, ask = running.ticket(await running.agree()), _over_flight if flight else _over_http
    asked = ({"sql": f"SELECT id FROM {N} WHERE id % 5 = {number}"} for number in range(5))
    found = await asyncio.gather(*(ask(running, front, ticket, one) for one in asked))
    assert sorted(row["id"] for _, rows, _ in found for row in rows) == list(range(data.ROWS))
    assert running.pool.processes <= 2


# what ends a read under way: what is done, how the end record begins, and the outcome in the log
def _kill(running: Provider, code: str) -> None:
    for worker in tuple(running.pool._busy):
        worker.kill(code)


def _crash(running: Provider, _: str) -> None:
    for worker in tuple(running.pool._busy):
        os.kill(worker.process.pid, signal.SIGKILL)


ENDS: dict[str, tuple[Callable[[Provider, str], None], tuple[str, str], str]] = {
    "the agreement": (
        lambda running, agreement: running.grants.stop(agreement_id=agreement, reason="consent withdrawn"),
        ("revoked", "revoked"),
        "refused",
    ),
    "the ticket": (lambda running, _: running.later(60), ("lease_expired", "lease_expired"), "refused"),
    "the database": (
        lambda running, _: running.grants.stop_all("the connector cannot ask its database", code="busy"),
        ("error", "busy"),
        "broken",
    ),
    "the connector": (
        lambda running, _: running.grants.stop_all("the connector is shutting down", code="shutting_down"),
        ("error", "shutting_down"),
        "broken",
    ),
    "its worker": (_crash, ("error", "worker_crashed"), "broken"),
    **{
        code: (lambda running, _, code=code: _kill(running, code), ("error", code), "broken")
        for code in ("worker_wanted", "memory_limit", "computation_failed", "store_unreachable")
    },
}


@pytest.mark.parametrize("flight", [False, True], ids=["http", "flight"])
@pytest.mark.parametrize("what", ENDS)
async def test_a_read_under_way_ends_with_its_reason(
    running: Provider, front: FlightServer, what: str, *, flight: bool
) -> None:
    act, (status, code), outcome = ENDS[what]
    agreement = await running.agree()
    read = _flown if flight else _streamed
    async with asyncio.timeout(60):  # by itself the statement goes on and on
        end = await read(running, front, running.ticket(agreement, seconds=60), lambda: act(running, agreement))
    assert (end["status"], end["code"]) == (status, code)
    assert what != "the agreement" or (end["reason"], end["rule"]) == ("consent withdrawn", "/permission/0")
    await settled(running)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.agreement, ended.outcome, ended.code) == (agreement, outcome, code)
    assert ended.detail == {name: end[name] for name in ("rows", "bytes", "batches", "digest")}, "the end record"


@pytest.mark.parametrize("flight", [False, True], ids=["http", "flight"])
async def test_a_client_that_leaves_stops_the_worker_and_is_in_the_log(
    running: Provider, front: FlightServer, *, flight: bool
) -> None:
    agreement = await running.agree()
    await (_flown if flight else _streamed)(running, front, running.ticket(agreement), None)
    await settled(running)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.agreement, ended.outcome, ended.code) == (agreement, "broken", "client_gone")
    async with beats() as clock:
        while running.pool._busy:
            await asyncio.sleep(0.01)
            assert clock() < 2


ENDLESS = f"SELECT a.id, b.x FROM {N} a CROSS JOIN {N} b"


async def _streamed(running: Provider, _: FlightServer, ticket: str, act: Callable[[], None] | None) -> Any:
    """The end record of an endless answer in which that is done; without it the reader leaves."""
    headers = {"authorization": f"Bearer {ticket}"}
    async with (
        httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=60) as session,
        session.stream("POST", "/data/v1/query", json={"sql": ENDLESS}) as answer,
    ):
        parts = answer.aiter_raw()
        body = await anext(parts)
        if act is None:
            return None
        act()
        body += b"".join([part async for part in parts])
    return streamed.parse(body).end


async def _flown(running: Provider, front: FlightServer, ticket: str, act: Callable[[], None] | None) -> Any:
    loop = asyncio.get_running_loop()

    def go() -> Any:
        with flyer(front, ticket) as client:
            reader = client.get(client.info(sql=ENDLESS).endpoints[0].ticket)
            reader.read_chunk()
            if act is None:
                return reader.cancel()
            loop.call_soon_threadsafe(act)
            with pytest.raises(fl.FlightError) as caught:
                for _ in reader:
                    pass
        return _end_of(caught.value)

    return await asyncio.to_thread(go)


async def test_uses_that_are_spent_are_so_over_both(running: Provider, front: FlightServer) -> None:
    ticket = running.ticket(await running.agree(POLICIES["once"]))
    assert len(await _over_http(running, front, ticket, QUESTIONS[-1][1])) == 3  # the one
    for ask in (_over_http, _over_flight):
        told = await ask(running, front, ticket, QUESTIONS[-1][1])
        assert told == (
            "count_spent", "the agreement allows 1 reads and they are used up", "/permission/0/constraint/0"
        )  # fmt: skip


async def _over_http(running: Provider, front: FlightServer, ticket: str, envelope: dict[str, Any]) -> Any:
    headers = {"authorization": f"Bearer {ticket}"}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=30) as session:
        answer = await session.post("/data/v1/query", json=envelope)
    if answer.status_code != 200:
        problem = answer.json()
        return problem["code"], problem["detail"], problem.get("rule", "")
    batches, end = [], {}
    with pa.ipc.open_stream(answer.content) as reader:
        for batch, metadata in reader.iter_batches_with_custom_metadata():
            if metadata is None:
                batches.append(batch)
            else:
                end = json.loads(metadata["hanse.end"])
        table = pa.Table.from_batches(batches, reader.schema)
    if end["status"] != "complete":
        return end["code"], end["rows"], end["reason"]
    return _told(table, end)


async def _over_flight(running: Provider, front: FlightServer, ticket: str, envelope: dict[str, Any]) -> Any:
    def go() -> Any:
        with flyer(front, ticket) as client:
            return _told(*client.read(**envelope))

    try:
        return await asyncio.to_thread(go)
    except fl.FlightError as error:
        told = _end_of(error)
        if isinstance(told["status"], str):  # an end record
            return told["code"], told["rows"], told["reason"]
        return told["code"], told["detail"], told.get("rule", "")
    except pa.ArrowException as error:
        code, _, rest = _checked(error, str(error).partition(":")[0]).partition(": ")
        sentence, _, rule = rest.partition(". Detail: ")[0].partition(" [rule ")
        return code, sentence, rule.rstrip("]")


def _end_of(error: fl.FlightError) -> dict[str, Any]:
    """The end record, or the problem."""
    told: dict[str, Any] = json.loads(error.extra_info)
    _checked(error, told["code"])
    return told


def _checked(error: Exception, code: str) -> str:
    """The words of an error, of the kind that its code has and with no trace of the product."""
    assert type(error) is KINDS.get(code, type(error))
    assert ".py" not in str(error)
    return str(error)


def _told(table: pa.Table, end: dict[str, Any]) -> Any:
    return str(table.schema), table.to_pylist(), {name: end[name] for name in ("rows", "bytes", "digest", "policy")}


def _alike(event: Any) -> dict[str, Any]:
    return {name: value for name, value in event.detail.items() if name != "transport"}


async def _records(running: Provider, before: int) -> list[Any]:
    await settled(running)
    return [
        (event.kind, event.outcome, event.code, event.reason, event.rule, event.actor, event.purpose, _alike(event))
        for event in running.events[before:]
        if event.kind.startswith("Read")
    ]
