"""What one read takes of its agreement: a place from the start, a use once its question has passed the gate."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2
import pyarrow as pa
import pytest

from connector.dataplane import running_reads
from connector.dataplane.admission import Reads
from connector.dataplane.read_request import QUERY, ReadRequest
from connector.errors import Absent, Denied, Invalid, Unavailable
from connector.events import ReadStarted
from connector.infra.concurrency.turn_queue import TurnQueue
from connector.store import UNKNOWN, Transaction
from connector.usage import quotas
from connector.usage.grants import Grants
from connector.usage.held_agreement import ReadGrant
from policies.evaluation.evaluate import Facts
from policies.model import Policy
from tests.connector.dataplane.http.test_routes import ask, client, parse
from tests.support import data, gate, provider
from tests.support.gate import atom
from tests.support.provider import Provider, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def limited(word: str, most: str) -> Policy:
    return gate.agreement(atom(word, "lteq", most), action="odrl:use")


async def used(running: Provider, agreement: str) -> tuple[int, int]:
    row = await running.store.read(lambda tx: tx.agreements.get_grant(agreement))
    assert row is not None
    return row.queries, row.rows


async def test_reads_that_ask_at_the_same_moment_are_as_many_as_may_be(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begin = running.grants._facts_of, running.grants.begin

    async def slow(who: str) -> Facts:
        await running.store.read(lambda tx: tx.now)  # as for what the owner recorded
        await asyncio.sleep(0.02)
        found: Facts = await before(who)
        return found

    running.grants._facts_of = slow
    try:
        agreement = await running.agree(limited("ds:concurrency", "1"))
        ticket = running.ticket(agreement)
        asking = [asyncio.ensure_future(ask(running, ticket, "SELECT count(*) FROM numbers")) for _ in range(6)]

        async def last(*arguments: Any, **more: Any) -> Any:
            """The one that may go on is not over before the others have their answers."""
            async with asyncio.timeout(60):
                while sum(one.done() for one in asking) < 5:
                    await asyncio.sleep(0.01)
            return await begin(*arguments, **more)

        monkeypatch.setattr(running.grants, "begin", last)
        answers = await asyncio.gather(*asking)
        monkeypatch.setattr(running.grants, "begin", begin)
        told = [answer.json()["code"] if answer.status_code != 200 else "" for answer in answers]
        assert sorted(told) == ["", *["concurrency"] * 5]
        await settled(running)
        assert running.grants.running(agreement) == 0
        assert (await ask(running, ticket, "SELECT count(*) FROM numbers")).status_code == 200
    finally:
        running.grants._facts_of = before


@pytest.mark.parametrize("sql", ["SELEC nonsense", "SELECT nothing FROM numbers", "SELECT id FROM elsewhere"])
async def test_what_the_gate_refuses_takes_no_use_no_quota_and_no_place(running: Provider, sql: str) -> None:
    constraints = [
        atom("odrl:count", "lteq", "1"),
        atom("ds:rowQuota", "lteq", "9"),
        atom("ds:concurrency", "lteq", "1"),
    ]
    agreement = await running.agree(gate.agreement(*constraints, action="odrl:use"))
    ticket = running.ticket(agreement)
    for _ in range(3):
        assert (await ask(running, ticket, sql)).status_code == 400
        assert await used(running, agreement) == (0, 0)
    assert (await ask(running, ticket, "SELECT id FROM numbers LIMIT 3")).status_code == 200
    await settled(running)
    assert await used(running, agreement) == (1, 3)
    assert (await ask(running, ticket, "SELECT id FROM numbers LIMIT 3")).json()["code"] == "count_spent"


def recounted(running: Provider, agreement: str) -> int:
    """Uses under an agreement, as an auditor counts them in the log."""
    returned = [one for one in running.of_kind("ReadEnded") if one.detail.get("use") == "given_back"]
    begun = [one for one in running.of_kind("ReadStarted") if one.agreement == agreement]
    return len(begun) - sum(one.agreement == agreement for one in returned)


@pytest.mark.parametrize("full", ["queue_full", "queue_timeout", "left"])
async def test_what_no_worker_had_takes_no_use_and_no_quota(
    running: Provider, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    atoms = [atom("odrl:count", "lteq", "2"), atom("ds:queriesPerDay", "lteq", "2"), atom("ds:rowQuota", "lteq", "9")]
    agreement = await running.agree(gate.agreement(*atoms, action="odrl:use"))
    ticket = running.ticket(agreement)
    assert (await ask(running, ticket, "SELECT id FROM numbers LIMIT 3")).status_code == 200
    await until(lambda: not running.pool._busy)  # whose worker another read could share
    with monkeypatch.context() as patch:
        turns = TurnQueue(0, waiting=0 if full == "queue_full" else 4, wait_seconds=60 if full == "left" else 0.01)
        patch.setattr(running.pool, "_turns", turns)
        asking = asyncio.ensure_future(ask(running, ticket, "SELECT id FROM numbers LIMIT 3"))
        if full == "left":
            await until(lambda: turns.waiting > 0)
            asking.cancel()
            await asyncio.wait((asking,))
            await until(lambda: not turns.waiting)
        else:
            assert (await asking).json()["code"] == full
        await settled(running)
    assert await used(running, agreement) == (1, 3) == (recounted(running, agreement), 3)
    assert running.of_kind("ReadEnded")[-1].detail["use"] == "given_back"
    assert (await ask(running, ticket, "SELECT id FROM numbers LIMIT 3")).status_code == 200
    await settled(running)
    assert await used(running, agreement) == (2, 6) == (recounted(running, agreement), 6)
    assert (await ask(running, ticket, "SELECT id FROM numbers LIMIT 3")).json()["code"] == "count_spent"


async def test_a_use_is_counted_before_the_first_byte_and_stays_when_the_engine_fails(running: Provider) -> None:
    agreement = await running.agree(limited("odrl:count", "2"))
    failing = "SELECT a.id FROM numbers a, numbers b, numbers c, numbers d ORDER BY a.id + b.id * c.id - d.id"
    answer = await ask(running, running.ticket(agreement), failing)
    assert answer.json()["code"] in ("memory_limit", "time_limit")  # and not one byte of rows
    await settled(running)
    assert (await used(running, agreement))[0] == 1


async def test_two_reads_at_once_never_take_more_uses_than_there_are(running: Provider) -> None:
    agreement = await running.agree(limited("odrl:count", "2"))
    ticket = running.ticket(agreement)
    answers = await asyncio.gather(*(ask(running, ticket, "SELECT id FROM numbers LIMIT 1") for _ in range(5)))
    assert [answer.status_code for answer in answers].count(200) == 2
    await settled(running)
    assert (await used(running, agreement))[0] == 2


async def test_a_renewed_ticket_extends_what_it_is_for_and_no_other_of_the_same_read(running: Provider) -> None:
    first, second = await running.agree(name="na"), await running.agree(name="nb")
    tickets = [running.ticket(first), running.ticket(second, seconds=60)]
    read = tuple(running.addresses.read(f"Bearer {one}") for one in tickets)
    sql = "SELECT na.id, nb.name FROM na JOIN nb ON na.id = nb.id"
    async with running.reads.open(ReadRequest(tickets=read, sql=sql, action=QUERY, query_id="two")) as stream:
        ends = [grant.lease.deadline for grant in stream.grants]
        await running.reads.renew("two", running.addresses.read(f"Bearer {running.ticket(first, seconds=900)}"))
        assert stream.grants[0].lease.deadline > ends[0] + 200
        assert stream.grants[1].lease.deadline == ends[1]
        await running.reads.renew("two", running.addresses.read(f"Bearer {running.ticket(second, seconds=900)}"))
        assert stream.grants[1].lease.deadline > ends[1] + 800
        other = replace(read[0], transfer="urn:transfer:other")
        with pytest.raises(Absent):
            await running.reads.renew("two", other)
        with pytest.raises(Denied, match="replaced by a newer"):
            await running.reads.renew("two", replace(read[0], generation=7))


async def test_a_read_of_another_process_is_not_renewed_here_and_that_is_no_refusal(running: Provider) -> None:
    agreement = await running.agree()
    event = ReadStarted(actor=provider.CONSUMER, agreement=agreement, process=f"there {agreement}")
    await running.store.write(lambda tx: running_reads.begin(tx, event, instance="another"))
    headers, known = {"authorization": f"Bearer {running.ticket(agreement)}"}, len(running.of_kind("ReadRefused"))
    async with httpx2.AsyncClient(base_url=running.url, timeout=60) as session:
        there = await session.post(f"/data/v1/reads/{event.process}/renew", headers=headers)
        assert (there.status_code, there.json()["code"]) == (503, "runs_elsewhere")
        assert len(running.of_kind("ReadRefused")) == known
        nowhere = await session.post("/data/v1/reads/nowhere/renew", headers=headers)
    assert (nowhere.status_code, len(running.of_kind("ReadRefused"))) == (404, known + 1)


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        (["id", "name"], ""),
        (["name", "id"], ""),
        (["id"], "arrow_columns"),
        (["id", "ID"], "envelope_invalid"),
        (["id", "id"], "envelope_invalid"),
        (["id", "name", "x"], "arrow_columns"),
        (["id", "Name"], "arrow_columns"),
    ],
)
async def test_a_table_that_is_brought_has_exactly_the_columns_that_are_named(
    running: Provider, columns: list[str], code: str
) -> None:
    arrow = data.stream(pa.table({"id": [1, 2], "name": ["a", "b"]}))
    keys = [{"name": "k", "columns": columns, "arrow": base64.b64encode(arrow).decode()}]
    sql = "SELECT count(*) AS n FROM numbers x JOIN k ON x.id = k.id"
    answer = await ask(running, running.ticket(await running.agree()), sql, keys=keys)
    assert (answer.json()["code"] if answer.status_code != 200 else "") == code


PIVOT = ", ".join(f"max(CASE WHEN id = {n} THEN name END) AS c{n}" for n in range(800))
PACKED = [
    f"SELECT {PIVOT} FROM numbers",
    "SELECT sum(id) FROM numbers",
    "SELECT DISTINCT max(name) FROM numbers GROUP BY gap",
    "SELECT lag(name) OVER (ORDER BY id), name FROM numbers LIMIT 1",
    "SELECT a.name, b.name FROM numbers a JOIN numbers b ON a.id + 1 = b.id LIMIT 1",
    "WITH a AS (SELECT * FROM numbers) SELECT x.name, y.name FROM a x JOIN a y ON x.id < y.id LIMIT 1",
    "SELECT (SELECT name FROM numbers WHERE id = 1) AS p, (SELECT name FROM numbers WHERE id = 2) AS q FROM numbers",
    "SELECT n FROM (SELECT count(*) AS n FROM numbers) AS x",
    "SELECT id FROM numbers WHERE id IN (SELECT max(id) FROM numbers)",
    "SELECT id FROM numbers UNION SELECT gap FROM numbers",
]


@pytest.mark.parametrize("sql", PACKED)
@pytest.mark.parametrize("limit", [("ds:rowQuota", "50"), ("odrl:percentage", "50")])
async def test_a_row_of_the_answer_never_carries_more_rows_than_were_counted(
    running: Provider, sql: str, limit: tuple[str, str]
) -> None:
    agreement = await running.agree(limited(*limit))
    refused = await ask(running, running.ticket(agreement), sql)
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_spent")
    assert "combines rows" in refused.json()["detail"]
    assert await used(running, agreement) == (0, 0)


async def test_an_answer_of_guesses_that_no_row_contradicts_counts_all_rows(running: Provider) -> None:
    agreement = await running.agree(limited("ds:rowQuota", "50"))
    arrow = data.stream(pa.table({"guess": range(3000)}))
    keys = [{"name": "k", "columns": ["guess"], "arrow": base64.b64encode(arrow).decode()}]
    sql = "SELECT guess FROM k WHERE NOT EXISTS (SELECT 1 FROM numbers n WHERE n.id > guess) ORDER BY guess LIMIT 1"
    refused = await ask(running, running.ticket(agreement), sql, keys=keys)
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_spent")
    sql = "SELECT guess FROM k WHERE EXISTS (SELECT 1 FROM numbers n WHERE n.id = guess) LIMIT 3"
    assert (await ask(running, running.ticket(agreement), sql, keys=keys)).status_code == 200
    await settled(running)
    assert await used(running, agreement) == (1, 3)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id, upper(name) AS u FROM numbers WHERE gap = 2 ORDER BY id LIMIT 3",
        "SELECT DISTINCT gap FROM numbers WHERE gap IS NOT NULL ORDER BY gap LIMIT 3",
        "SELECT x.id FROM (SELECT id FROM numbers) AS x LIMIT 3",
    ],
)
async def test_rows_that_leave_one_by_one_are_counted_as_they_leave(running: Provider, sql: str) -> None:
    agreement = await running.agree(limited("ds:rowQuota", "50"))
    assert (await ask(running, running.ticket(agreement), sql)).status_code == 200
    await settled(running)
    assert (await used(running, agreement))[1] == 3


@pytest.mark.parametrize(
    ("sql", "status"),
    [
        ("SELECT id FROM numbers WHERE id = 7 AND id * 9000000000000000000 < gap - 1000", 400),
        ("SELECT id FROM numbers WHERE id = 7 AND gap < 0", 200),
        ("SELECT a.id FROM numbers a WHERE a.id = 7 LIMIT 0", 200),
    ],
    ids=["fails over a row", "has no row", "asks for none"],
)
async def test_a_question_counts_as_one_row_at_least(running: Provider, sql: str, status: int) -> None:
    """Or a value would be found bit by bit, and the quota be whole afterwards."""
    agreement = await running.agree(limited("ds:rowQuota", "2"))
    for number in (1, 2):
        assert (await ask(running, running.ticket(agreement), sql)).status_code == status
        await settled(running)
        assert (await used(running, agreement))[1] == number
    assert (await ask(running, running.ticket(agreement), sql)).json()["code"] == "quota_spent"


async def test_a_share_is_as_many_rows_as_it_says(running: Provider) -> None:
    share, rows = "0.29", 580
    agreement = await running.agree(limited("odrl:percentage", share))
    answer = await ask(running, running.ticket(agreement), f"SELECT id FROM numbers LIMIT {rows}")
    assert parse(answer.content)[1]["status"] == "complete"
    await settled(running)
    assert (await used(running, agreement))[1] == rows == data.ROWS * 29 // 10_000


async def test_an_aggregate_takes_all_rows_of_the_dataset_where_there_are_that_many_left(running: Provider) -> None:
    agreement = await running.agree(limited("ds:rowQuota", str(2 * data.ROWS)))
    ticket = running.ticket(agreement)
    for number in (1, 2):
        assert (await ask(running, ticket, "SELECT sum(id) AS s FROM numbers")).status_code == 200
        await settled(running)
        assert await used(running, agreement) == (number, number * data.ROWS)
    assert (await ask(running, ticket, "SELECT id FROM numbers LIMIT 1")).json()["code"] == "quota_spent"


async def test_a_read_whose_caller_leaves_while_it_is_counted_ends_in_the_log_and_keeps_no_place(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = await running.agree(limited("ds:concurrency", "1"))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    begin, counting = running.grants.begin, asyncio.Event()

    async def slow(*arguments: Any, **more: Any) -> Any:
        counting.set()
        await asyncio.sleep(0.05)
        return await begin(*arguments, **more)

    async def read(query_id: str) -> None:
        asked = ReadRequest(tickets=(ticket,), sql="SELECT id FROM numbers LIMIT 1", action=QUERY, query_id=query_id)
        async with running.reads.open(asked) as stream:
            async for _ in stream.frames():
                pass

    monkeypatch.setattr(running.grants, "begin", slow)
    leaving = asyncio.ensure_future(read("leaves"))
    await counting.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await settled(running)
    told = [(event.kind, event.outcome) for event in running.events if getattr(event, "process", "") == "leaves"]
    assert told == [("ReadStarted", "ok"), ("ReadEnded", "broken")]
    await read("stays")


async def code_of(running: Provider, asked: ReadRequest) -> str:
    """Read all; how it was refused, if it was."""
    try:
        async with running.reads.open(asked) as stream:
            async for _ in stream.frames():
                pass
    except Invalid as error:
        return error.code
    return ""


async def test_of_two_reads_with_one_id_at_once_one_is_refused_and_takes_nothing(running: Provider) -> None:
    agreement = await running.agree(limited("odrl:count", "5"))
    tickets = (running.addresses.read(f"Bearer {running.ticket(agreement)}"),)
    asked = ReadRequest(tickets=tickets, sql="SELECT id FROM numbers LIMIT 1", action=QUERY, query_id="twice")
    assert sorted(await asyncio.gather(*(code_of(running, asked) for _ in range(4)))) == ["", *["id_taken"] * 3]
    await settled(running)
    assert (await used(running, agreement))[0] == 1
    assert await code_of(running, asked) == ""


async def test_reads_that_their_reader_calls_the_same_are_several_in_the_log(running: Provider) -> None:
    ticket = running.ticket(await running.agree(limited("odrl:count", "5")))
    before, rows = len(running.events), "/data/v1/datasets/numbers/rows"
    asking = [ask(running, ticket, "SELECT id FROM numbers LIMIT 1", query_id="one") for _ in range(3)]
    async with client(running, ticket) as session:
        answers = await asyncio.gather(*asking, session.get(rows, params={"id": "one"}))
    ids = [answer.headers["hanse-read"] for answer in answers]
    assert [parse(answer.content)[1]["query"] for answer in answers] == ids
    await settled(running)
    for kind in ("ReadStarted", "ReadEnded"):
        assert sorted(one.process for one in running.events[before:] if one.kind == kind) == sorted(ids)
    assert len({*ids}) == 4
    assert all(one.startswith("one.") for one in ids)


async def test_the_id_of_a_read_of_another_process_is_taken_too(running: Provider) -> None:
    agreement = await running.agree(limited("odrl:count", "5"))
    await running.store.write(lambda tx: tx.reads.add("elsewhere", instance="another", body={}))
    tickets = (running.addresses.read(f"Bearer {running.ticket(agreement)}"),)
    asked = ReadRequest(tickets=tickets, sql="SELECT id FROM numbers LIMIT 1", action=QUERY, query_id="elsewhere")
    assert await code_of(running, asked) == "id_taken"
    await settled(running)
    assert await used(running, agreement) == (0, 0)
    assert await running.store.write(lambda tx: tx.reads.close("elsewhere", instance="another"))


async def test_an_end_that_the_database_does_not_take_at_once_is_recorded_once_it_does(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = await running.agree(limited("ds:rowQuota", "50"))
    (ticket,) = tickets = (running.addresses.read(f"Bearer {running.ticket(agreement)}"),)
    assert ticket.agreement == agreement
    told, away = running.store.write, [2]

    async def sometimes(work: Any) -> Any:
        if away and away[0] > 0:
            away[0] -= 1
            raise Unavailable("the database does not answer now")
        found = await told(work)
        if away:
            away.clear()
            raise Unavailable("it has committed, and its answer was lost")
        return found

    asked = ReadRequest(
        tickets=tickets, sql="SELECT id FROM numbers LIMIT 3", action=QUERY, query_id=f"away {agreement}"
    )
    async with running.reads.open(asked) as stream:
        async for _ in stream.frames():
            pass
        monkeypatch.setattr(running.store, "write", sometimes)
    monkeypatch.undo()
    await settled(running)
    assert await used(running, agreement) == (1, 3)
    told_ends = [event for event in running.of_kind("ReadEnded") if event.process == asked.query_id]
    assert len(told_ends) <= 1  # the one whose answer was lost goes out by the log
    left = await running.store.read(lambda tx: [row.id for row in tx.reads.list_open()])
    assert asked.query_id not in left


async def test_ends_are_owed_for_as_long_as_the_database_is_away_and_with_many_nothing_new_begins(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = await running.agree(limited("ds:rowQuota", "50"))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    asked = ReadRequest(
        tickets=(ticket,), sql="SELECT id FROM numbers LIMIT 3", action=QUERY, query_id=f"owed {agreement}"
    )
    monkeypatch.setattr("connector.dataplane.admission._END_SECONDS", 0.0)
    monkeypatch.setattr("connector.dataplane.end_writer._MOST", 1)

    async def away(_: Any) -> Any:
        raise Unavailable("the database does not answer now")

    with pytest.raises(Unavailable, match="record the end of this read"):  # noqa: PT012  it is raised as the block ends
        async with running.reads.open(asked) as stream:
            assert [frame async for frame in stream.frames()]
            monkeypatch.setattr(running.store, "write", away)
    with pytest.raises(Unavailable, match="the ends of many reads"):
        running.reads._check_open()
    monkeypatch.undo()
    await settled(running)
    running.reads._check_open()
    ends = [event for event in running.of_kind("ReadEnded") if event.process == asked.query_id]
    assert [(one.outcome, one.detail["rows"]) for one in ends] == [("ok", 3)]
    assert await used(running, agreement) == (1, 3)


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "is over before it is seen"])
async def test_a_read_whose_end_others_have_recorded_does_not_go_on_and_tells_of_all_that_left(
    running: Provider, goes_on: bool
) -> None:
    """As of a process that was away for a minute."""
    agreement = await running.agree(gate.agreement(atom("ds:rowQuota", "lteq", "1000000000"), action="odrl:use"))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    endless = "SELECT a.id, b.x FROM numbers a CROSS JOIN numbers b"
    sql = endless if goes_on else "SELECT id FROM numbers LIMIT 3"
    asked = ReadRequest(tickets=(ticket,), sql=sql, action=QUERY, query_id=f"away {agreement}")

    def others(tx: Transaction) -> int:
        return running_reads._close(tx, [row for row in tx.reads.list_open() if row.id == asked.query_id])

    async with running.reads.open(asked) as stream:
        frames = stream.frames()
        await anext(frames)
        assert await running.store.write(others) == 1
        used_by_then = await used(running, agreement)
        async with asyncio.timeout(60):
            async for _ in frames:
                pass
    await settled(running)
    assert stream.end is not None
    assert stream.end.code == ("busy" if goes_on else "")
    first, last = [event for event in running.of_kind("ReadEnded") if event.process == asked.query_id]
    assert (first.code, first.detail.get("after")) == ("interrupted", None)
    told = last.outcome, last.detail["rows"], last.detail["after"]
    assert told == ("broken" if goes_on else "ok", stream.end.rows, "interrupted")
    assert await used(running, agreement) >= used_by_then, "what it had reserved stays used"


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
async def test_a_read_of_whose_beginning_nobody_knows_whether_it_was_kept_ends_where_it_was(
    running: Provider, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    policy = gate.agreement(atom("ds:rowQuota", "lteq", "50"), atom("ds:concurrency", "lteq", "1"), action="odrl:use")
    agreement = await running.agree(policy)
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    asked = ReadRequest(
        tickets=(ticket,), sql="SELECT id FROM numbers LIMIT 3", action=QUERY, query_id=f"lost {agreement}"
    )
    told = running.store.write

    async def lost(work: Any) -> Any:
        monkeypatch.undo()
        if kept:
            await told(work)
        else:  # its work was done, and undone
            with pytest.raises(Absent):
                await told(lambda tx: (work(tx), _undo()))
        raise Unavailable("the database went away as it kept this", code=UNKNOWN)

    monkeypatch.setattr(running.store, "write", lost)
    with pytest.raises(Unavailable):
        async with running.reads.open(asked):
            pass
    await settled(running)
    assert await used(running, agreement) == (int(kept), int(kept))  # a question that has begun is one row at least
    left = await running.store.read(lambda tx: [row.id for row in tx.reads.list_open()])
    assert asked.query_id not in left
    ends = [event.outcome for event in running.of_kind("ReadEnded") if event.process == asked.query_id]
    assert ends == (["broken"] if kept else [])
    async with running.reads.open(replace(asked, query_id=f"next {agreement}")) as stream:  # there is a place for it
        assert [frame async for frame in stream.frames()]


async def test_an_end_that_waits_for_the_database_is_not_the_end_of_another_read_with_that_id(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = await running.agree(limited("ds:rowQuota", "50"))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    asked = ReadRequest(
        tickets=(ticket,), sql="SELECT id FROM numbers LIMIT 3", action=QUERY, query_id=f"again {agreement}"
    )
    told = running.store.write

    async def lost(work: Any) -> Any:
        monkeypatch.setattr(running.store, "write", away)
        with pytest.raises(Absent):  # its work was done, and undone
            await told(lambda tx: (work(tx), _undo()))
        raise Unavailable("the database went away as it kept this", code=UNKNOWN)

    async def away(_: Any) -> Any:
        raise Unavailable("the database does not answer now")

    async def read() -> None:
        async with running.reads.open(asked) as stream:
            assert [frame async for frame in stream.frames()]

    monkeypatch.setattr(running.store, "write", lost)
    with pytest.raises(Unavailable):
        await read()
    monkeypatch.undo()
    with pytest.raises(Invalid, match="choose another"):
        await read()
    await settled(running)
    await read()
    await settled(running)
    ends = [event for event in running.of_kind("ReadEnded") if event.process == asked.query_id]
    assert [(one.outcome, one.detail["rows"]) for one in ends] == [("ok", 3)]
    assert await used(running, agreement) == (1, 3)


async def test_an_end_that_one_process_owes_is_not_the_end_of_a_read_with_that_id_in_another(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told 503 asks again, with the same id, and comes to another process on the same database."""
    policy = gate.agreement(atom("ds:rowQuota", "lteq", "50"), atom("ds:concurrency", "lteq", "1"), action="odrl:use")
    agreement = await running.agree(policy)
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    asked = ReadRequest(
        tickets=(ticket,), sql="SELECT id FROM numbers LIMIT 3", action=QUERY, query_id=f"twice {agreement}"
    )
    grants = Grants(running.store, facts_of=provider.member)
    other = Reads(running.store, grants, running.pool, name=provider.OWNER, mask_secret=b"m" * 32)
    told, back, tried = running.store.write, asyncio.Event(), asyncio.Event()

    async def lost(work: Any) -> Any:
        with pytest.raises(Absent):  # its work was done, and undone
            await told(lambda tx: (work(tx), _undo()))
        raise Unavailable("the database went away as it kept this", code=UNKNOWN)

    async def owed() -> None:
        monkeypatch.setattr(running.store, "write", lost)
        with pytest.raises(Unavailable):
            async with running.reads.open(asked):
                pass

    async def ended(read: Any, work: Any) -> None:
        await back.wait()
        await read(work)
        tried.set()

    monkeypatch.setattr(
        running.reads._end_writer, "_write_until_done", partial(ended, running.reads._end_writer._write_until_done)
    )
    await owed()
    monkeypatch.setattr(running.store, "write", told)
    async with other.open(asked) as stream:
        back.set()
        await tried.wait()
        left = await running.store.read(lambda tx: [row.id for row in tx.reads.list_open()])
        assert asked.query_id in left
        assert [frame async for frame in stream.frames()]
    ends = [event for event in running.of_kind("ReadEnded") if event.process == asked.query_id]
    assert [(one.outcome, one.detail["rows"]) for one in ends] == [("ok", 3)]
    assert await used(running, agreement) == (1, 3)


def _undo() -> None:
    raise Absent("the database has rolled back")


@pytest.mark.parametrize("most", ["100", "1000000", "2000000"])
async def test_reads_at_once_share_a_quota_that_has_room_for_all(running: Provider, most: str) -> None:
    agreement = await running.agree(limited("ds:rowQuota", most))
    begun: list[ReadGrant] = []
    for number in range(8):
        grants = await running.grants.examine(provider.wanted(agreement.rpartition(":")[2]))
        await running.grants.begin(grants, lambda _: None, read_id=f"{agreement} {number}")
        begun += grants
    assert all(grant.lease.rows > int(most) // 64 for grant in begun)
    await running.store.write(lambda tx: running.grants.end(tx, begun))
    running.grants.forget(begun)
    assert await used(running, agreement) == (8, 0)


async def test_a_small_quota_is_not_given_out_row_by_row(running: Provider) -> None:
    agreement = await running.agree(limited("ds:rowQuota", "1000"))
    answer = await ask(running, running.ticket(agreement), "SELECT id FROM numbers LIMIT 900")
    _, end = parse(answer.content)
    assert (end["status"], end["rows"]) == ("complete", 900)
    assert end["batches"] < 20


async def test_what_is_reserved_for_a_reader_who_leaves_meanwhile_goes_back(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = await running.agree(limited("ds:rowQuota", "4000"))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    monkeypatch.setattr(quotas, "_CHUNK_ROWS", 1000)
    reached, told = asyncio.Event(), running.store.write

    async def slow(work: Any) -> Any:
        found = await told(work)
        reached.set()
        await asyncio.sleep(0.05)
        return found

    async def read() -> None:
        asked = ReadRequest(tickets=(ticket,), sql="SELECT id FROM numbers LIMIT 1500", action=QUERY, batch_rows=600)
        async with running.reads.open(asked) as stream:
            monkeypatch.setattr(running.store, "write", slow)
            async for _ in stream.frames():
                pass

    reading = asyncio.ensure_future(read())
    async with asyncio.timeout(60):
        await reached.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    monkeypatch.undo()
    await settled(running)
    queries, rows = await used(running, agreement)
    assert queries == 1
    assert rows <= 1200  # as many as have left


async def test_a_read_gets_what_its_quota_has_however_long_that_takes_to_be_reserved(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of the usual size has more rows than are left: its size is known once they are reserved."""
    agreement, begin = await running.agree(limited("ds:rowQuota", "3000")), running.grants.begin

    async def slow(*given: Any, **more: Any) -> Any:
        await asyncio.sleep(0.3)
        return await begin(*given, **more)

    monkeypatch.setattr(running.grants, "begin", slow)
    answer = await ask(running, running.ticket(agreement), "SELECT * FROM numbers")
    table, end = parse(answer.content)
    assert end["status"] == "quota"
    assert 0 < len(table) == end["rows"] <= 3000
