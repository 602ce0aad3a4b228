"""The data plane as a client meets it: real files, real workers, a real server, plain Arrow readers."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import httpx2
import pyarrow as pa
import pytest
import xxhash

from connector.dataplane import running_reads
from connector.dataplane.governed_stream import translate_failure
from connector.dataplane.http.request_context import BODY_MAX, Exchange
from connector.errors import EngineFailed, Invalid, Unavailable
from connector.events import TransferAdvanced
from connector.store.refusal_sampling import RefusalSampler
from connector.usage import grants
from connector.usage.held_agreement import NOT_STARTED
from policies.contracts.batch_gate import Lease
from policies.errors import QueryRefused
from policies.model import Policy, Rule
from policies.vocabulary import expand
from tests.support import data, gate, provider
from tests.support.beats import beats
from tests.support.gate import atom, mask
from tests.support.provider import Provider, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = "/data/v1/datasets/numbers/rows"
_SOON = 60.0  # seconds until something ends: tests set the clock forward, and do not wait for it
# Nothing comes before all of it is counted, which takes longer than a read may.
SLOW = """SELECT count(*) AS n FROM "clinic".numbers a JOIN "clinic".numbers b ON a.x < b.x
          JOIN "clinic".numbers c ON b.x < c.x"""


def client(running: Provider, ticket: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=running.url, headers={"authorization": f"Bearer {ticket}"}, timeout=60)


async def raw(running: Provider, text: str) -> tuple[int, dict[str, Any]]:
    """Status and problem of a request as it stands on the wire."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    writer.write(text.encode())
    async with asyncio.timeout(_SOON):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
    writer.close()
    return int(head.split()[1]), json.loads(body)


def parse(body: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and the end record; a body without one is not an answer."""
    batches, end = [], None
    with pa.ipc.open_stream(body) as reader:
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                break
            if metadata is not None and "hanse.end" in metadata:
                assert end is None
                end = json.loads(metadata["hanse.end"])
            else:
                batches.append(batch)
        assert end is not None
        return pa.Table.from_batches(batches, schema=reader.schema), end


async def read(running: Provider, ticket: str, path: str = ROWS, **parameters: Any) -> tuple[pa.Table, dict[str, Any]]:
    async with client(running, ticket) as session:
        answer = await session.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return parse(answer.content)


async def ask(running: Provider, ticket: str, sql: str, **more: Any) -> httpx2.Response:
    async with client(running, ticket) as session:
        return await session.post("/data/v1/query", json={"fq": 1, "sql": sql, **more})


async def test_rows_come_whole_with_an_end_record_and_are_in_the_log(running: Provider) -> None:
    agreement = await running.agree()
    async with client(running, running.ticket(agreement)) as session:
        answer = await session.get(ROWS)
    table, end = parse(answer.content)
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert table.equals(data.table().cast(table.schema))
    assert (end["status"], end["rows"], end["query"]) == ("complete", data.ROWS, answer.headers["hanse-read"])
    await settled(running)
    started, ended = running.of_kind("ReadStarted")[-1], running.of_kind("ReadEnded")[-1]
    assert running.events.index(started) < running.events.index(ended)
    assert ended.detail == {name: end[name] for name in ("rows", "bytes", "batches", "digest")}
    assert (ended.outcome, ended.actor, ended.agreement) == ("ok", provider.CONSUMER, agreement)


async def test_the_job_that_a_consumer_names_is_in_each_record_of_its_read(running: Provider) -> None:
    agreement = await running.agree()
    async with client(running, running.ticket(agreement)) as session:
        assert (await session.get(ROWS, headers={"hanse-job": "run-17"})).status_code == 200
        too_long = await session.get(ROWS, headers={"hanse-job": "x" * 251})
    assert (too_long.status_code, "at most 250" in too_long.text) == (400, True)
    await settled(running)
    assert [running.of_kind(kind)[-1].job for kind in ("ReadStarted", "ReadEnded")] == ["run-17", "run-17"]


async def test_digest_covers_every_byte_before_the_end_record(running: Provider) -> None:
    async with client(running, running.ticket(await running.agree())) as session:
        body = (await session.get(ROWS, params={"columns": "id,name"})).content
    _, end = parse(body)
    name, value = end["digest"].split(":")
    tail = body.rindex(b"hanse.end")
    start = max(at for at in range(0, tail, 8) if body[at : at + 4] == b"\xff\xff\xff\xff" and at < tail)
    assert (name, value) == ("xxh3", xxhash.xxh3_128_hexdigest(body[:start]))


async def test_columns_condition_and_codec_are_honoured(running: Provider) -> None:
    ticket = running.ticket(await running.agree())
    for codec in ("none", "lz4", "zstd"):
        table, _ = await read(running, ticket, columns="name,id", where="id < 200 AND name = 'name-3'", codec=codec)
        assert table.to_pylist() == [{"name": "name-3", "id": number} for number in (3, 100, 197)]


async def test_pull_from_the_endpoint_itself_gives_the_tickets_dataset(running: Provider) -> None:
    table, _ = await read(running, running.ticket(await running.agree()), "/data/v1", where="id = 7")
    assert table["id"].to_pylist() == [7]


async def test_row_filter_columns_and_masks_of_the_policy_hold_whatever_is_asked(running: Provider) -> None:
    policy = gate.agreement(
        atom("ds:row/gap", "eq", "2"),
        atom("ds:columnDeny", "isNoneOf", "x", "day", "tags"),
        duties=[mask("null", "name")],
        action="odrl:use",
    )
    ticket = running.ticket(await running.agree(policy))
    table, end = await read(running, ticket)
    expected = data.table().filter(pa.compute.equal(data.table()["gap"], 2))
    assert table["id"].to_pylist() == expected["id"].to_pylist()
    assert table.schema.names == ["id", "name", "gap"]
    assert set(table["name"].to_pylist()) == {None}
    assert end["policy"] == ["numbers: row filter", "numbers: 3 columns withheld", "numbers: name masked (null)"]
    async with client(running, ticket) as session:
        assert (await session.get(ROWS, params={"columns": "x"})).status_code == 400
        assert (await session.get(ROWS, params={"where": "x > 1"})).status_code == 400


async def test_keys_of_the_consumer_can_be_joined(running: Provider) -> None:
    arrow = data.stream(pa.table({"k": [5, 9]}))
    brought = {"name": "wanted", "columns": ["k"], "arrow": base64.b64encode(arrow).decode()}
    sql = 'SELECT id FROM "clinic".numbers SEMI JOIN wanted ON numbers.id = wanted.k ORDER BY id'
    answer = await ask(running, running.ticket(await running.agree()), sql, keys=[brought])
    assert parse(answer.content)[0]["id"].to_pylist() == [5, 9]
    told = running.of_kind("ReadStarted")[-1].detail
    assert (told["columns"], told["keys"]) == (["id"], [{"name": "wanted", "sha256": sha256(arrow).hexdigest()}])


async def test_a_start_in_the_log_tells_the_datasets_own_columns_whatever_the_answer_calls_them(
    running: Provider,
) -> None:
    policy = gate.agreement(atom("ds:row/gap", "eq", "2"), action="odrl:use")
    ticket = running.ticket(await running.agree(policy))
    sql = "SELECT id AS harmless, count(*) AS name FROM numbers WHERE name = 'name-3' GROUP BY id"
    assert (await ask(running, ticket, sql, limits={"rows": 5})).status_code == 200
    told = running.of_kind("ReadStarted")[-1].detail
    assert (told["columns"], told["named"]) == (["id", "name"], ["harmless", "name"])
    assert (told["transport"], told["limits"]) == ("http", {"rows": 5})
    assert told["query_sha256"] == sha256(sql.encode()).hexdigest()


BAD_REQUESTS = {
    "no ticket": ("GET", ROWS, {}, "none", 401, "unauthenticated"),
    "foreign ticket": ("GET", ROWS, {}, "eyJhbGciOiJub25lIn0.e30.", 401, "unauthenticated"),
    "another dataset": ("GET", "/data/v1/datasets/secrets/rows", {}, "", 404, "not_found"),
    "unknown parameter": ("GET", ROWS, {"colums": "id"}, "", 400, "parameter_unknown"),
    "names that are no list": ("GET", ROWS, {"column_names": "id"}, "", 400, "bad_input"),
    "names of no column": ("GET", ROWS, {"column_names": "[]"}, "", 400, "bad_input"),
    "names that are no texts": ("GET", ROWS, {"column_names": '["id", 3]'}, "", 400, "bad_input"),
    "names in two ways": ("GET", ROWS, {"column_names": '["id"]', "columns": "name"}, "", 400, "bad_input"),
    "a name that is two in a list": ("GET", ROWS, {"column_names": '["id,name"]'}, "", 400, None),
    "number that is none": ("GET", ROWS, {"batch_rows": "-3"}, "", 400, "bad_input"),
    "unknown codec": ("GET", ROWS, {"codec": "brotli"}, "", 400, "bad_input"),
    "condition closing the bracket": ("GET", ROWS, {"where": "1=1) UNION SELECT 1 WHERE (1=1"}, "", 400, None),
    "condition with a second statement": ("GET", ROWS, {"where": "1=1); SELECT (1"}, "", 400, None),
    "condition with grouping": ("GET", ROWS, {"where": "1=1) GROUP BY id HAVING (1=1"}, "", 400, None),
    "condition with a query": ("GET", ROWS, {"where": "id IN (SELECT id FROM numbers)"}, "", 400, None),
    "condition reading a file": (
        "GET",
        ROWS,
        {"where": "id = (SELECT 1 FROM read_text('/etc/passwd'))"},
        "",
        400,
        None,
    ),
    "hidden function": ("GET", ROWS, {"where": "getenv('HOME') = 'x'"}, "", 400, None),
    "wrong method": ("PUT", ROWS, {}, "", 400, "method_not_allowed"),
    "purpose that no database takes": ("GET", ROWS, {"purpose": "\0"}, "", 400, "bad_input"),
    "application that no database takes": ("GET", ROWS, {"application": "a\0"}, "", 400, "bad_input"),
}


@pytest.mark.parametrize("name", list(BAD_REQUESTS))
async def test_bad_requests_are_refused_before_the_first_byte(running: Provider, name: str) -> None:
    method, path, parameters, ticket, status, code = BAD_REQUESTS[name]
    async with client(running, ticket or running.ticket(await running.agree())) as session:
        answer = await session.request(method, path, params=parameters)
    problem = answer.json()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert code is None or problem["code"] == code
    assert len(problem["detail"]) > 10


@pytest.mark.parametrize("path", ["/data/v1", ROWS])
async def test_rows_are_asked_for_by_a_form_as_by_an_address(running: Provider, path: str) -> None:
    """A condition of 16,384 letters is ten times as long in an address, which has no room for it."""
    few = " OR ".join(f"id = {number}" for number in (3, 5))
    many = ",".join(f"'日本語日本{number}'" for number in range(1200))
    asked = {"columns": "id", "where": f"({few}) AND name NOT IN ({many})"}
    async with client(running, running.ticket(await running.agree())) as session:
        answer = await session.post(path, data=asked)
        assert pa.ipc.open_stream(answer.content).read_all().to_pydict() == {"id": [3, 5]}
        for wrong, code in (
            ({"where": few, "limits": "1"}, "parameter_unknown"), ({"where": "x" * 2**20}, "body_too_large"),
        ):  # fmt: skip
            assert (await session.post(path, data=wrong)).json()["code"] == code
        twice = await session.post(path, params={"where": few}, data={"where": "id = 4"})
        assert twice.json()["code"] == "parameter_repeated"


@pytest.mark.parametrize("asked", [{"columns": 2100}, {"columns": 1500, "where": "id IN (" + "7777777," * 2000 + "7)"}])
async def test_columns_whose_names_are_too_long_are_told_as_that(running: Provider, asked: dict[str, Any]) -> None:
    names = [f"ENSG{number:011d}_expression_tpm_z" for number in range(asked["columns"])]
    form = {**asked, "columns": ",".join(names)}
    async with client(running, running.ticket(await running.agree())) as session:
        answers = (
            await session.post(ROWS, data=form),
            await session.post("/data/v1/streams", json={**asked, "columns": names}),
        )
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (400, "query_too_long")
        assert "name fewer columns" in answer.json()["detail"]
        assert "65536 characters" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("first", "second", "trailer"), [("no", "yes", ""), ("yes", "no", ""), ("yes", "yes", ""), ("no", "", "yes")]
)
async def test_two_tickets_are_none(running: Provider, first: str, second: str, trailer: str) -> None:
    """Whichever of them is good, and wherever it stands: nobody reads the first where another reads the last."""
    ticket = running.ticket(await running.agree())
    texts = {"yes": f"Authorization: Bearer {ticket}\r\n", "no": "Authorization: Bearer eyJhbGciOiJub25lIn0.e30.\r\n"}
    head = f"GET /data/v1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{texts[first]}{texts.get(second, '')}"
    status, problem = await raw(running, f"{head}\r\n0\r\n{texts.get(trailer, '')}\r\n")
    assert (status, problem["code"]) == (401, "unauthenticated")
    assert trailer or "got several" in problem["detail"]


async def test_a_list_in_several_lines_is_one(running: Provider) -> None:
    ticket = running.ticket(await running.agree())
    lines = ("accept", "application/json"), ("accept", 'application/vnd.apache.arrow.stream; codecs="zstd"')
    async with client(running, ticket) as session:
        for accepted in (lines, lines[::-1]):
            answer = await session.get("/data/v1", headers=[*accepted])
            assert answer.headers["content-type"].endswith('codecs="zstd"')


async def test_limit_rows_gives_that_many_and_is_complete(running: Provider) -> None:
    ticket = running.ticket(await running.agree())
    for most, rows in ((5, 5), (data.ROWS * 2, data.ROWS)):
        table, end = await read(running, ticket, limit_rows=most)
        assert (table.num_rows, end["rows"], end["status"]) == (rows, rows, "complete")


async def test_a_question_that_cannot_be_computed_is_the_askers_mistake(running: Provider) -> None:
    ticket = running.ticket(await running.agree())
    for sql in (
        'SELECT id * 9223372036854775807 AS k FROM "clinic".numbers',
        'SELECT (SELECT id FROM "clinic".numbers) AS k FROM "clinic".numbers',
        'SELECT count(*) AS k FROM "clinic".numbers WHERE name = 5',
    ):
        answer = await ask(running, ticket, sql)
        assert (answer.status_code, answer.json()["code"]) == (400, "computation_failed")
        assert "name-" not in answer.text


BAD_ENVELOPES: dict[str, Any] = {
    "not json": b"{",
    "a list": [],
    "no sql": {"fq": 1},
    "future version": {"fq": 2, "sql": "SELECT 1"},
    "unknown field": {"fq": 1, "sql": "SELECT 1", "sudo": True},
    "negative limit": {"fq": 1, "sql": "SELECT 1", "limits": {"rows": -1}},
    "unknown codec": {"fq": 1, "sql": "SELECT 1", "codec": "br"},
    "bad base64": {"fq": 1, "sql": "SELECT 1", "keys": [{"name": "k", "columns": ["a"], "arrow": "***"}]},
    "half a letter for a key's name": {
        "sql": "SELECT id FROM numbers",
        "keys": [{"name": "k", "columns": ["\ud800"], "arrow": ""}],
    },
    "a member twice": b'{"sql": "SELECT id FROM numbers", "sql": "SELECT x FROM numbers"}',
    "another agreement": {"fq": 1, "sql": "SELECT 1", "agreement": "urn:agreement:other"},
    "nested too deep": b"[" * 100_000,
    "nothing read": {"fq": 1, "sql": "SELECT 1"},
    "file function": {"fq": 1, "sql": "SELECT * FROM read_csv('/etc/passwd')"},
    "two statements": {"fq": 1, "sql": 'SELECT id FROM "clinic".numbers; SELECT 2'},
    "not a query": {"fq": 1, "sql": "DROP TABLE numbers"},
    **{f"a sign that no database takes in its {name}": {"sql": "SELECT id FROM numbers", name: "a\0"}
       for name in ("purpose", "application", "fragment")},
    "a sign that commands a terminal": {"sql": "SELECT id FROM numbers", "application": "\x1b[2J"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_ENVELOPES))
async def test_bad_envelopes_are_refused_by_field(running: Provider, name: str) -> None:
    content = BAD_ENVELOPES[name]
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    async with client(running, running.ticket(await running.agree())) as session:
        answer = await session.post("/data/v1/query", content=body)
    assert answer.status_code in (400, 403)
    assert answer.json()["code"]


async def test_purpose_outside_the_agreement_is_refused_with_its_rule_and_logged(running: Provider) -> None:
    policy = gate.agreement(atom("odrl:purpose", "eq", "https://w3id.org/dpv#ScientificResearch"), action="odrl:use")
    agreement = await running.agree(policy)
    for purpose in ("", "https://w3id.org/dpv#Marketing"):
        async with client(running, running.ticket(agreement)) as session:
            answer = await session.get(ROWS, params={"purpose": purpose})
        assert (answer.status_code, answer.json()["code"]) == (403, "purpose_not_agreed")
        assert answer.json()["rule"].startswith("/permission/0")
    refusal = running.of_kind("ReadRefused")[-1]
    assert (refusal.agreement, refusal.code, refusal.outcome) == (agreement, "purpose_not_agreed", "refused")
    table, _ = await read(running, running.ticket(agreement), purpose="https://w3id.org/dpv#ScientificResearch")
    assert table.num_rows == data.ROWS


async def test_a_flood_of_what_is_refused_does_not_fill_the_log(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is answered with its reason; the log has some of them, and how many more there were."""
    monkeypatch.setattr("connector.store.refusal_sampling.ACTOR_BURST", 3)
    monkeypatch.setattr(running.store, "refusals", RefusalSampler())
    agreement = await running.agree()
    before = len(running.of_kind("ReadRefused"))
    async with client(running, running.ticket(agreement)) as session:
        for _ in range(4):
            refused = [
                await session.get(ROWS, params={"columns": "nope"}),
                await session.post("/data/v1/query", json={"sql": "SELECT nope FROM numbers"}),
                await session.post("/data/v1/streams", json={"columns": ["nope"]}),
            ]
            assert [answer.json()["code"] for answer in refused] == ["column_unknown"] * 3
    assert len(running.of_kind("ReadRefused")) == before + 3
    await running.store.record_refusal_counts()
    counted = running.of_kind("RefusalsCounted")[-1]
    assert (counted.agreement, counted.detail["codes"]) == (agreement, {"column_unknown": 9})


# Who did it, whether this process hears of it or the database alone says so, and what reader and log are told
@pytest.mark.parametrize("heard", [True, False], ids=["heard", "seen"])
@pytest.mark.parametrize(
    ("by", "actor", "told", "end", "log"),
    [
        ("consumer", provider.CONSUMER, "the consumer suspended the transfer", ("refused", NOT_STARTED), "broken"),
        ("provider", provider.PROVIDER, "the owner suspended the transfer", ("revoked", "revoked"), "refused"),
        ("facts", provider.PROVIDER, "the transfer is suspended", ("refused", NOT_STARTED), "refused"),
        ("", "", "the transfer is suspended", ("refused", NOT_STARTED), "refused"),
    ],
)
async def test_an_end_with_its_transfer_says_who_ended_it_and_why(
    running: Provider, by: str, actor: str, told: str, end: tuple[str, str], log: str, heard: bool
) -> None:
    agreement, reason = await running.agree(), f"{told}: enough"
    name = agreement.replace("agreement", "transfer")

    def suspend(tx: Any) -> None:
        row = tx.transfers.get(name)
        row.state, row.suspended_by, row.reason = "SUSPENDED", by, "enough"
        about = {"state": row.state, "role": "provider", "counterparty": provider.CONSUMER}
        if by in ("provider", "facts"):  # what the consumer says is told before that is noted
            about["suspended_by"] = by
        if heard:
            outcome = "ok" if actor else "refused"  # of ours that nobody took
            tx.publish(TransferAdvanced(actor=actor, process=name, reason="enough", outcome=outcome, detail=about))

    async with endless(running, running.ticket(agreement)) as answer:
        (known,) = await running.store.read(lambda tx: running_reads.list_running(tx, agreement=agreement, limit=10))
        assert (known.transport, known.under[0].transfer) == ("http", name)
        streams = [*running.reads.live.values()]  # by the time that one is over it may be gone
        await running.store.write(suspend)
        while not any(stream.over for stream in streams):
            await asyncio.sleep(0.01)
        record = parse(await rest(answer))[1]
    assert (record["status"], record["code"], record["reason"]) == (*end, reason)
    await settled(running)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code, ended.reason, ended.agreement) == (log, end[1], reason, agreement)
    async with client(running, running.ticket(agreement)) as session:
        assert (await session.get(ROWS)).json()["code"] == NOT_STARTED


async def test_a_revocation_elsewhere_ends_a_stream_though_the_database_was_away_before(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, away, real = await running.agree(), [True], running.store.read
    endless = 'SELECT a.id, b.x FROM "clinic".numbers a CROSS JOIN "clinic".numbers b'

    async def read_sometimes(work: Any) -> Any:
        if away:
            away.clear()
            raise Unavailable("the database is away for a moment")
        return await real(work)

    def revoke(tx: Any) -> None:  # as another process does: only the database knows
        tx.agreements.get_grant(agreement).revoked_at = tx.now

    async with (
        client(running, running.ticket(agreement)) as session,
        session.stream("POST", "/data/v1/query", json={"sql": endless}) as answer,
    ):
        parts = answer.aiter_raw()
        await anext(parts)
        monkeypatch.setattr(running.store, "read", read_sometimes)
        while away:
            await asyncio.sleep(0.05)
        await running.store.write(revoke)
        async with asyncio.timeout(60):
            last = b""
            async for part in parts:
                last = (last + part)[-20_000:]
    assert b'"status":"revoked"' in last


async def test_revocation_interrupts_a_query_that_gives_nothing_yet(running: Provider) -> None:
    agreement = await running.agree()
    sql = 'SELECT count(*) AS n FROM "clinic".numbers a JOIN "clinic".numbers b ON a.x < b.x'
    asking = asyncio.ensure_future(ask(running, running.ticket(agreement), sql))
    async with asyncio.timeout(60):
        while not running.pool._busy:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    async with beats() as clock:
        running.grants.stop(agreement_id=agreement, reason="over")
        answer = await asking
        assert clock() < 3  # the statement alone would end after ten seconds
    if answer.status_code == 200:
        assert parse(answer.content)[1]["status"] == "revoked"
    else:
        assert answer.json()["code"] in ("revoked", "cancelled")
    assert running.of_kind("ReadEnded")[-1].outcome == "refused"


@asynccontextmanager
async def endless(running: Provider, ticket: str) -> AsyncIterator[httpx2.Response]:
    """A question whose answer has no end, under way."""
    sql = 'SELECT a.id, b.x FROM "clinic".numbers a CROSS JOIN "clinic".numbers b'
    async with (
        client(running, ticket) as session,
        session.stream("POST", "/data/v1/query", json={"sql": sql}) as answer,
    ):
        yield answer


async def rest(answer: httpx2.Response) -> bytes:
    return b"".join([part async for part in answer.aiter_raw()])


async def test_a_database_that_is_away_ends_reads_for_now_and_revokes_nothing(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, real = await running.agree(), running.store.read

    async def away(_: Any) -> Any:
        raise Unavailable("the database does not answer now")

    async with endless(running, running.ticket(agreement)) as answer:
        silent = asyncio.ensure_future(ask(running, running.ticket(agreement), SLOW))
        async with asyncio.timeout(60):
            while [one.agreement for one in running.of_kind("ReadStarted")].count(agreement) < 2:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(grants, "_BLIND_SECONDS", 0.0)
        monkeypatch.setattr(running.store, "read", away)
        end = parse(await rest(answer))[1]
        assert (end["status"], end["code"]) == ("error", "busy")
        assert "cannot check in its database" in end["reason"]
        assert ((told := await silent).status_code, told.json()["code"]) == (503, "busy")
    monkeypatch.setattr(running.store, "read", real)
    await settled(running)
    ends = [(one.outcome, one.code) for one in running.of_kind("ReadEnded") if one.agreement == agreement]
    assert ends == [("broken", "busy")] * 2


async def test_what_gives_nothing_is_interrupted_when_its_ticket_ends(running: Provider) -> None:
    agreement = await running.agree()
    sql = 'SELECT count(*) AS n FROM "clinic".numbers a JOIN "clinic".numbers b ON a.x < b.x'
    refused = await ask(running, running.ticket(agreement, seconds=1), sql)
    # It may have ended before it began, where the machine is slow.
    assert (refused.status_code, refused.json()["code"]) in ((403, "lease_expired"), (401, "ticket_expired"))


def forbidden_from(moment: float) -> Policy:
    begins = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    forbidden = Rule(expand("odrl:use"), (atom("odrl:dateTime", "gteq", begins),))
    return gate.agreement(action="odrl:use", prohibitions=[forbidden])


async def test_a_stream_does_not_outlive_the_moment_at_which_a_prohibition_begins(running: Provider) -> None:
    agreement = await running.agree(forbidden_from(time.time() + _SOON))
    async with endless(running, running.ticket(agreement)) as answer:
        running.later(_SOON)
        assert parse(await rest(answer))[1]["status"] == "lease_expired"
    over = await running.agree(forbidden_from(time.time() - 1))
    refused = await ask(running, running.ticket(over), "SELECT id FROM numbers LIMIT 1")
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")


@pytest.mark.parametrize(("renews", "status"), [(True, "complete"), (False, "lease_expired")])
async def test_a_renewed_ticket_lets_a_stream_go_on(running: Provider, renews: bool, status: str) -> None:
    agreement = await running.agree()
    async with (
        client(running, running.ticket(agreement, seconds=_SOON)) as session,
        session.stream("GET", ROWS, params={"batch_rows": 2000, "id": "long-one"}) as answer,
        client(running, running.ticket(agreement)) as other,
    ):
        renewal = f"/data/v1/reads/{answer.headers['hanse-read']}/renew"
        if renews:
            assert (await other.post(renewal)).status_code == 200
        async with client(running, running.ticket(await running.agree())) as stranger:
            assert (await stranger.post(renewal)).status_code == 404
        running.later(_SOON)
        assert parse(await rest(answer))[1]["status"] == status


async def test_rows_beyond_the_quota_do_not_leave(running: Provider) -> None:
    agreement = await running.agree(gate.agreement(atom("ds:rowQuota", "lteq", "5000"), action="odrl:use"))
    table, end = await read(running, running.ticket(agreement), batch_rows=600)
    assert (end["status"], end["rule"]) == ("quota", "/permission/0/constraint/0")
    assert table.num_rows == end["rows"] == 4800
    await settled(running)
    table, _ = await read(running, running.ticket(agreement), where="id < 500")
    assert table.num_rows == 200
    async with client(running, running.ticket(agreement)) as session:
        answer = await session.get(ROWS)
    assert answer.status_code == 429


async def test_the_end_says_which_of_several_quotas_is_spent(running: Provider) -> None:
    quotas = atom("ds:rowQuota", "lteq", "5000"), atom("ds:byteQuota", "lteq", "20000")
    agreement = await running.agree(gate.agreement(*quotas, action="odrl:use"))
    _, end = await read(running, running.ticket(agreement), batch_rows=600)
    assert (end["status"], end["rule"]) == ("quota", "/permission/0/constraint/1")


async def test_count_of_reads_is_held(running: Provider) -> None:
    agreement = await running.agree(gate.agreement(atom("odrl:count", "lteq", "1"), action="odrl:use"))
    await read(running, running.ticket(agreement), where="id = 1")
    async with client(running, running.ticket(agreement)) as session:
        answers = [await session.get(ROWS), await session.post("/data/v1/streams", json={})]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(429, "count_spent")] * 2


async def test_aggregate_only_answers_hide_small_groups(running: Provider) -> None:
    policy = gate.agreement(
        atom("ds:minGroupSize", "gteq", "3000"), atom("ds:dimension/gap", "eq", "exact"), action="odrl:use"
    )
    ticket = running.ticket(await running.agree(policy))
    answer = await ask(running, ticket, 'SELECT gap, count(*) AS n FROM "clinic".numbers GROUP BY gap')
    assert {row["gap"] for row in parse(answer.content)[0].to_pylist()} <= {0, 1, 2, 3, 4, None}
    answer = await ask(running, ticket, 'SELECT gap, count(*) AS n FROM "clinic".numbers WHERE gap = 77 GROUP BY gap')
    assert (answer.status_code, answer.json()["code"]) == (403, "min_group_size")
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code, ended.rule) == ("refused", "min_group_size", answer.json()["rule"])
    for sql in ('SELECT id FROM "clinic".numbers', 'SELECT max(x) AS m FROM "clinic".numbers'):
        assert (await ask(running, ticket, sql)).status_code in (400, 403)
    async with client(running, ticket) as session:
        assert (await session.get(ROWS)).status_code in (400, 403)


async def test_an_answer_over_groups_says_that_small_ones_may_be_left_out_and_one_of_rows_does_not(
    running: Provider,
) -> None:
    policy = gate.agreement(
        atom("ds:minGroupSize", "gteq", "10"), atom("ds:dimension/gap", "eq", "exact"), action="odrl:use"
    )
    sql = 'SELECT gap, count(*) AS n FROM "clinic".numbers GROUP BY gap'
    answer = await ask(running, running.ticket(await running.agree(policy)), sql)
    _, end = parse(answer.content)
    assert answer.headers["hanse-withheld"] == end["withheld"] == "possibly"  # whether any group is small or not
    assert end["left_out"] == [
        "Groups below 10 rows are left out at clinic: totals and averages may be too low",
    ]
    assert running.of_kind("ReadEnded")[-1].detail["gives"] == "results"
    answer = await ask(running, running.ticket(await running.agree()), sql)
    assert answer.headers["hanse-withheld"] == parse(answer.content)[1]["withheld"] == "nothing"
    assert "gives" not in running.of_kind("ReadEnded")[-1].detail


async def test_an_answer_says_of_bins_what_a_condition_on_them_compares(running: Provider) -> None:
    policy = gate.agreement(
        atom("ds:minGroupSize", "gteq", "10"), atom("ds:dimension/id", "eq", "1000"), action="odrl:use"
    )
    ticket = running.ticket(await running.agree(policy))
    answer = await ask(running, ticket, 'SELECT count(*) AS n FROM "clinic".numbers WHERE id BETWEEN 1500 AND 2999')
    table, end = parse(answer.content)
    assert table["n"].to_pylist() == [1000]  # those of the bin of 2000
    note = "numbers: id in bins of 1000, each named by its lower edge: a condition on it compares that edge"
    assert note in end["policy"]


async def test_a_question_that_one_agreement_refuses_uses_nothing_of_the_other(
    running: Provider, tmp_path: Any
) -> None:
    once = gate.agreement(atom("odrl:count", "lteq", "1"), action="odrl:use")
    path = data.parquet(tmp_path / "few.parquet", 50)
    kept, spent = await running.agree(once), await running.agree(once, name="few", path=path)
    alone = {kept: 'SELECT id FROM "clinic".numbers LIMIT 1', spent: 'SELECT id FROM "clinic".few LIMIT 1'}
    assert (await ask(running, running.ticket(spent), alone[spent])).status_code == 200
    sql = 'SELECT count(*) AS n FROM "clinic".numbers n JOIN "clinic".few o ON n.id = o.id'
    for first, second in ((kept, spent), (spent, kept)):
        answer = await ask(running, running.ticket(first), sql, tickets=[running.ticket(second)])
        assert (answer.status_code, answer.json()["code"]) == (429, "count_spent")
    assert (await ask(running, running.ticket(kept), alone[kept])).status_code == 200


async def test_reads_at_once_of_one_consumer_are_bounded(running: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.reads, "_queue_seconds", 0.0)
    ticket = running.ticket(await running.agree())
    async with client(running, ticket) as session:
        held = [session.stream("GET", ROWS, params={"batch_rows": 256}) for _ in range(8)]
        for stream in held:
            await stream.__aenter__()
        answer = await session.get(ROWS)
        for stream in held:
            await stream.__aexit__(None, None, None)
    assert (answer.status_code, answer.json()["code"]) == (429, "streams_of_consumer")
    assert answer.headers["retry-after"] == "1"


async def test_what_nobody_foresaw_is_a_problem_without_its_words(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a path, a row, a secret")

    agreement = await running.agree()
    monkeypatch.setattr(running.reads, "open", broken)
    async with client(running, running.ticket(agreement)) as session:
        answer = await session.get(ROWS)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (answer.json()["code"], "secret" in answer.text) == ("internal", False)


async def test_of_a_body_that_is_said_to_be_too_large_nothing_is_read(running: Provider) -> None:
    async def never() -> Any:
        raise AssertionError("read")

    length = {"content-length": str(BODY_MAX + 1)}
    scope = {"headers": [(name.encode(), value.encode()) for name, value in length.items()]}
    with pytest.raises(Invalid) as raised:
        await Exchange(scope, never, never).body()  # type: ignore[arg-type]  # nothing is sent
    assert raised.value.code == "body_too_large"


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("identity", 200)])
async def test_a_body_that_is_said_to_be_compressed_is_refused(running: Provider, encoding: str, status: int) -> None:
    sql = 'SELECT count(*) AS n FROM "clinic".numbers'
    async with client(running, running.ticket(await running.agree())) as session:
        answer = await session.post("/data/v1/query", json={"sql": sql}, headers={"content-encoding": encoding})
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["code"] == "encoding_unknown"


async def test_http_1_0_is_refused(running: Provider) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    agreement = await running.agree()
    writer.write(f"GET {ROWS} HTTP/1.0\r\nauthorization: Bearer {running.ticket(agreement)}\r\n\r\n".encode())
    answer = await reader.read(65_536)
    writer.close()
    assert b"http_version" in answer
    refused = running.of_kind("ReadRefused")[-1]
    assert (refused.agreement, refused.code) == (agreement, "http_version")


async def test_a_read_that_shutting_down_interrupts_before_its_first_byte_is_refused_by_no_policy() -> None:
    grant: Any = SimpleNamespace(
        lease=Lease(deadline=math.inf, revoked=True), ended=Unavailable("x", code="shutting_down")
    )
    nobody: Any = None
    found = await translate_failure(EngineFailed("stopped", code="cancelled"), [grant], nobody)
    assert isinstance(found, Unavailable)
    assert (found.code, found.message) == ("shutting_down", "x")


@pytest.mark.parametrize(
    ("error", "as_it_is"),
    [
        (OSError(5, "Input/output error"), False),
        (KeyError("x"), False),
        (ConnectionAbortedError("the client has left"), True),
        (asyncio.CancelledError(), True),
        (Unavailable("later"), True),
        (QueryRefused("no"), True),
    ],
    ids=repr,
)
async def test_only_a_client_that_has_left_is_told_as_one(error: BaseException, as_it_is: bool) -> None:
    nobody: Any = None
    found = await translate_failure(error, [], nobody)
    assert (found is error) is as_it_is
    assert as_it_is or getattr(found, "code", "") == "internal"


async def test_shutting_down_ends_streams_with_that_reason_and_records_them(tmp_path: Any) -> None:
    async with provider.running(tmp_path, rows=20_000) as leaving:
        agreement = await leaving.agree()
        endless = 'SELECT a.id FROM "clinic".numbers a CROSS JOIN "clinic".numbers b'
        asking = asyncio.ensure_future(ask(leaving, leaving.ticket(agreement), endless))
        while not leaving.reads.live:
            await asyncio.sleep(0.01)
        await leaving.reads.drain("the connector is shutting down")
        _, end = parse((await asking).content)
        assert (end["status"], end["code"]) == ("error", "shutting_down")
        assert leaving.of_kind("ReadEnded")[-1].code == "shutting_down"
        assert (await ask(leaving, leaving.ticket(agreement), endless)).status_code == 503


@pytest.mark.parametrize("state", ["SUSPENDED", "TERMINATED"])
async def test_a_transfer_that_ends_while_a_read_is_admitted_ends_the_read(
    running: Provider, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Its event comes before there is a read that could be told."""
    agreement = await running.agree()
    name = agreement.replace("agreement", "transfer")
    facts, looked, go = running.grants._facts_of, asyncio.Event(), asyncio.Event()

    async def slow(participant: str) -> Any:
        looked.set()
        await go.wait()
        return await facts(participant)

    def end(tx: Any) -> None:
        tx.transfers.get(name).state = state
        about = {"state": state, "role": "provider"}
        tx.publish(TransferAdvanced(actor=provider.CONSUMER, process=name, agreement=agreement, detail=about))

    monkeypatch.setattr(running.grants, "_facts_of", slow)
    asking = asyncio.ensure_future(ask(running, running.ticket(agreement), SLOW))
    await looked.wait()
    await running.store.write(end)
    go.set()
    answer = await asking
    reason = f"the transfer is {state.lower()}"
    assert (answer.status_code, answer.json()["detail"]) == (403, reason)
    await settled(running)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.reason) == ("refused", reason)


async def test_shutting_down_ends_reads_that_give_nothing_yet(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a worker works on before its first row, and one that is just being admitted."""
    async with provider.running(tmp_path, rows=20_000) as leaving:
        ticket = leaving.ticket(await leaving.agree())
        asking = asyncio.ensure_future(ask(leaving, ticket, SLOW))
        while not leaving.of_kind("ReadStarted"):
            await asyncio.sleep(0.01)
        admit, admitted, go = leaving.reads._admit, asyncio.Event(), asyncio.Event()

        async def admitting(asked: Any) -> Any:
            admitted.set()
            await go.wait()
            return await admit(asked)

        monkeypatch.setattr(leaving.reads, "_admit", admitting)
        coming = asyncio.ensure_future(ask(leaving, ticket, SLOW))
        await admitted.wait()
        draining = asyncio.ensure_future(leaving.reads.drain("the connector is shutting down", seconds=60))
        await asyncio.sleep(0.01)
        go.set()
        await draining
        for answer in (await asking, await coming):
            assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")
        assert [one.code for one in leaving.of_kind("ReadEnded")] == ["shutting_down"]
        assert not leaving.reads.live
