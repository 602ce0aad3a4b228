"""The same questions over HTTP and over Flight: the same rows, the same refusals, the same records."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from connector.dataplane.flight.listener import FlightServer
from tests.support import gate, provider
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
        told = json.loads(error.extra_info)
        if isinstance(told["status"], str):  # an end record
            return told["code"], told["rows"], told["reason"]
        return told["code"], told["detail"], told.get("rule", "")
    except pa.ArrowException as error:
        code, _, rest = str(error).partition(": ")
        sentence, _, rule = rest.partition(". Detail: ")[0].partition(" [rule ")
        return code, sentence, rule.rstrip("]")


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
