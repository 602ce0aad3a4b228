"""Plans, blocks and cursors as a client meets them: real files and workers, plain Arrow readers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from connector.dataplane import contract_routes
from connector.dataplane.block_plan import RowSelection, build_read_request
from connector.datasets import block_layout, file_access, rounded_counts
from connector.errors import Unavailable
from connector.events import listed
from connector.infra.concurrency.turn_queue import TurnQueue
from policies.model import Policy
from tests.support import data, gate, provider
from tests.support.gate import atom, mask
from tests.support.provider import OPEN, Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOTAL = 210_000
FILTERED = gate.agreement(atom("ds:row/gap", "eq", "2"), duties=[mask("null", "name")], action="odrl:use")
EITHER = gate.agreement(gate.either(atom("ds:row/gap", "eq", "2"), atom("ds:row/gap", "eq", "3")), action="odrl:use")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("plans"), rows=TOTAL) as started:
        yield started


class Reader:
    """The requests of one consumer under one agreement."""

    def __init__(self, running: Provider, agreement: str, name: str = provider.DATASET) -> None:
        self.url, self.ticket, self.name = running.url, running.ticket(agreement), name

    async def plan(self, **form: Any) -> httpx2.Response:
        async with self.client() as session:
            return await session.post("/data/v1/streams", json=form)

    async def rows(self, **parameters: Any) -> httpx2.Response:
        async with self.client() as session:
            return await session.get(f"/data/v1/datasets/{self.name}/rows", params=parameters)

    async def parts(self, **parameters: Any) -> list[tuple[pa.RecordBatch, dict[str, Any]]]:
        answer = await self.rows(**parameters)
        assert answer.status_code == 200, answer.text
        return placed(answer.content)

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {self.ticket}"}, timeout=30)


def placed(body: bytes) -> list[tuple[pa.RecordBatch, dict[str, Any]]]:
    """Batches with what their metadata says of their place; the end must be there and complete."""
    found, end = [], None
    with pa.ipc.open_stream(body) as reader:
        while end is None:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            if "hanse.end" in metadata:
                end = json.loads(metadata["hanse.end"])
            else:
                found.append((batch, json.loads(metadata["hanse.at"])))
    assert end["status"] == "complete"
    assert end["rows"] == sum(batch.num_rows for batch, _ in found)
    return found


def ids(parts: list[tuple[pa.RecordBatch, dict[str, Any]]]) -> list[int]:
    return [number for batch, _ in parts for number in batch.column("id").to_numpy().tolist()]


def expected(policy: Policy, blocks: list[tuple[int, int]]) -> list[int]:
    shown = {id(FILTERED): {2}, id(EITHER): {2, 3}}.get(id(policy))
    return [n for first, stop in blocks for n in range(first, stop) if shown is None or (n % 10 and n % 5 in shown)]


async def test_a_plan_names_snapshot_schema_and_blocks(running: Provider) -> None:
    reader = Reader(running, await running.agree())
    plan = (await reader.plan(columns=["name", "id"])).json()
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(plan["schema"])))
    assert schema.names == ["name", "id"]
    assert [block["rows"] for block in plan["blocks"]] == [100_000, 100_000, 10_000]
    assert (plan["rows"], plan["exact"], plan["snapshot"]) == (TOTAL, True, block_layout.snapshot_of("v1"))
    other = (await reader.plan(columns=["id"])).json()
    assert other["plan"] != plan["plan"]
    assert (await reader.plan(columns=["name", "id"])).json()["plan"] == plan["plan"]


async def test_of_many_plans_of_one_consumer_a_few_are_looked_at_at_once(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams of all consumers share the worker that looks. And who asks the same as others at once waits for these."""
    ask, asking, most, asked = running.pool.ask, 0, 0, 0

    async def counted(job: Any, **how: Any) -> Any:
        nonlocal asking, most, asked
        asking, asked = asking + 1, asked + 1
        most = max(most, asking)
        try:
            return await ask(job, **how)
        finally:
            asking -= 1

    monkeypatch.setattr(running.pool, "ask", counted)
    reader = Reader(running, await running.agree())
    plans = await asyncio.gather(*(reader.plan(where=f"id > {number}") for number in range(20)))
    assert ({one.status_code for one in plans}, asked, most <= 4) == ({200}, 20, True)
    asked = 0
    plans = await asyncio.gather(*(reader.plan(where="id > 20") for _ in range(20)))
    assert ({one.status_code for one in plans}, asked <= 4) == ({200}, True)


async def test_who_waits_for_his_turn_is_told_nothing_of_what_ends_meanwhile(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = TurnQueue(1, waiting=8, wait_seconds=60)
    monkeypatch.setattr(running.reads, "_looks", turns)
    agreement = await running.agree()
    reader = Reader(running, agreement)
    await turns.take("somebody else")
    plan = asyncio.create_task(reader.plan(where="id > 30"))
    async with asyncio.timeout(30):
        while not turns.waiting:
            await asyncio.sleep(0.01)
    await running.revoke(agreement, "no longer")
    turns.give_back("somebody else")
    answer = await plan
    assert (answer.status_code, answer.json()["code"]) == (403, "agreement_ended")


async def test_what_is_known_may_go_while_the_files_are_looked_at(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, cached = Reader(running, await running.agree()), running.reads.plans
    plan = (await reader.plan()).json()

    def goes(files: Any) -> bool:
        cached._schemas.clear()  # as where others' plans take their place
        cached._cached.clear()
        return True

    with monkeypatch.context() as patched:
        patched.setattr(file_access, "are_unchanged", goes)
        answer = await reader.plan()
    assert (answer.status_code, answer.json() | {"expires": 0}) == (200, plan | {"expires": 0})
    assert ids(await reader.parts(blocks="2")) == [*range(200_000, TOTAL)]


@pytest.mark.parametrize("policy", [OPEN, FILTERED, EITHER], ids=["open", "filtered", "either of two"])
async def test_blocks_come_in_the_order_asked_in_one_response(running: Provider, policy: Policy) -> None:
    reader = Reader(running, await running.agree(policy))
    parts = await reader.parts(blocks="2,0", columns="id,name")
    assert ids(parts) == expected(policy, [(200_000, 210_000), (0, 100_000)])
    assert list(dict.fromkeys(at["block"] for _, at in parts)) == [2, 0]
    assert {tuple(batch.schema.names) for batch, _ in parts} == {("id", "name")}
    everything = await reader.parts(blocks="all")
    assert ids(everything) == expected(policy, [(0, TOTAL)])
    assert everything[0][0].schema.names == ["id", "x", "name", "day", "gap", "tags"]


@pytest.mark.parametrize("policy", [OPEN, FILTERED], ids=["open", "filtered"])
@pytest.mark.parametrize("blocks", ["all", "1,2,0"])
async def test_reading_after_any_cursor_gives_exactly_the_rest(running: Provider, policy: Policy, blocks: str) -> None:
    reader = Reader(running, await running.agree(policy))
    rest = {"columns": "id", "where": "x > 50", "batch_rows": "7000"}
    whole = await reader.parts(blocks=blocks, **rest)
    every = ids(whole)
    snapshot = block_layout.snapshot_of("v1")
    for number in random.Random(4).sample(range(len(whole)), 4):
        after = whole[number][1]["cursor"]
        found = ids(await reader.parts(blocks=blocks, snapshot=snapshot, after=after, **rest))
        assert found == every[sum(batch.num_rows for batch, _ in whole[: number + 1]) :]


async def test_a_cursor_after_the_last_row_gives_an_empty_complete_stream(running: Provider) -> None:
    reader = Reader(running, await running.agree())
    last = (await reader.parts(blocks="2", columns="id"))[-1][1]["cursor"]
    assert await reader.parts(blocks="2", columns="id", after=last) == []


async def test_batches_under_a_filter_tell_nothing_of_the_rows_that_it_hides(running: Provider) -> None:
    reader = Reader(running, await running.agree(FILTERED))
    plan = (await reader.plan()).json()
    assert plan["exact"] is False
    assert [block["rows"] for block in plan["blocks"]] == [100_000, 100_000, 10_000]
    assert plan["rows"] == 210_000  # two digits: no count of single persons
    _, at = (await reader.parts(blocks="0"))[0]
    assert set(at) == {"block", "cursor"}
    assert len(at["cursor"]) == 80


@pytest.mark.parametrize(
    ("parameters", "status", "code"),
    [
        ({"blocks": "0", "snapshot": "sha256:old/1"}, 409, "snapshot_changed"),
        ({"blocks": "0", "after": "ab" * 40}, 400, "cursor_invalid"),
        ({"blocks": "3"}, 400, "bad_input"),
        ({"blocks": "0,0"}, 400, "bad_input"),
        ({"blocks": "1;2"}, 400, "bad_input"),
        ({"blocks": ",".join(map(str, range(1025)))}, 400, "bad_input"),
        ({"after": "ab" * 40}, 400, "bad_input"),
        ({"shown": "ab" * 16}, 400, "bad_input"),
        ({"blocks": "0", "shown": "ab" * 16}, 409, "shown_changed"),
        ({"blocks": "0", "where": "file_row_number < 5"}, 400, "column_unknown"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_range_that_makes_no_sense_is_refused(
    running: Provider, parameters: dict[str, str], status: int, code: str
) -> None:
    answer = await Reader(running, await running.agree()).rows(**parameters)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_cursor_of_another_block_is_refused(running: Provider) -> None:
    reader = Reader(running, await running.agree())
    cursor = (await reader.parts(blocks="0", columns="id"))[0][1]["cursor"]
    answer = await reader.rows(blocks="1,2", after=cursor)
    assert (answer.status_code, answer.json()["code"]) == (400, "cursor_invalid")


OTHERS = {
    "rows": gate.agreement(atom("ds:row/gap", "eq", "3"), duties=[mask("null", "name")], action="odrl:use"),
    "all rows": gate.agreement(duties=[mask("null", "name")], action="odrl:use"),
    "a mask": gate.agreement(atom("ds:row/gap", "eq", "2"), duties=[mask("hash", "name")], action="odrl:use"),
    "columns": gate.agreement(
        atom("ds:row/gap", "eq", "2"), atom("ds:columnDeny", "isNoneOf", "x"), duties=[mask("null", "name")],
        action="odrl:use",
    ),
}  # fmt: skip


@pytest.mark.parametrize("policy", OTHERS.values(), ids=OTHERS.keys())
async def test_a_cursor_is_nothing_to_terms_that_show_something_else(running: Provider, policy: Policy) -> None:
    """What is left after each row of one would place it among those of the other, hidden ones too."""
    mine, other = [Reader(running, await running.agree(one)) for one in (FILTERED, policy)]
    for one, another in ((mine, other), (other, mine)):
        cursor = (await one.parts(blocks="0", columns="id", batch_rows="1000"))[1][1]["cursor"]
        answer = await another.rows(blocks="0", columns="id", after=cursor)
        assert (answer.status_code, answer.json()["code"]) == (400, "cursor_invalid")


@pytest.mark.parametrize("policy", OTHERS.values(), ids=OTHERS.keys())
async def test_a_plan_is_not_read_where_something_else_is_shown(running: Provider, policy: Policy) -> None:
    mine, same, other = [Reader(running, await running.agree(one)) for one in (FILTERED, FILTERED, policy)]
    marks = [(await one.plan()).json()["shown"] for one in (mine, same, other)]
    assert marks[0] == marks[1] != marks[2]
    assert all(len(mark) == 32 for mark in marks)  # a digest under the owner's key: nothing of the terms
    answer = await other.rows(blocks="0", shown=marks[0])
    assert (answer.status_code, answer.json()["code"]) == (409, "shown_changed")
    assert ids(await same.parts(blocks="2", shown=marks[0])) == expected(FILTERED, [(200_000, 210_000)])


async def test_an_agreement_that_was_renewed_goes_on(running: Provider) -> None:
    until = atom("odrl:dateTime", "lt", "2099-01-01T00:00:00Z")
    limited = gate.agreement(
        atom("ds:row/gap", "eq", "2"), until, atom("odrl:count", "lteq", "5"), duties=[mask("null", "name")],
        action="odrl:use",
    )  # fmt: skip
    whole = await Reader(running, await running.agree(FILTERED)).parts(blocks="0", columns="id", batch_rows="1000")
    for policy in (FILTERED, limited):
        renewed = Reader(running, await running.agree(policy))
        rest = await renewed.parts(blocks="0", columns="id", after=whole[3][1]["cursor"])
        assert ids(rest) == ids(whole[4:])


async def test_a_read_that_begins_under_another_permission_gives_no_cursors_of_the_first(running: Provider) -> None:
    ticket = running.addresses.read(f"Bearer {running.ticket(await running.agree())}")
    held = await running.grants.load(ticket.agreement, consumer=ticket.consumer)
    split = await running.reads.split(ticket, RowSelection(), snapshot="", blocks="0")
    assert split is not None
    for shown, begins in ((split.shown, True), ("of another", False)):
        asked = build_read_request(
            ticket, held, RowSelection(), owner=provider.OWNER, split=replace(split, shown=shown)
        )
        with nullcontext() if begins else pytest.raises(Unavailable):
            async with running.reads.open(asked):
                pass


async def test_only_an_agreement_that_lets_rows_be_streamed_has_a_plan(running: Provider) -> None:
    query_only = Reader(running, await running.agree(gate.agreement(action="ds:query")))
    aggregate = Reader(
        running, await running.agree(gate.agreement(atom("ds:minGroupSize", "gteq", "5"), action="odrl:use"))
    )
    for reader in (query_only, aggregate):
        for answer in (await reader.plan(), await reader.rows(blocks="0")):
            assert answer.status_code == 403, answer.text
            assert answer.json()["code"] in ("action_not_agreed", "aggregate_only")
            assert answer.json()["rule"]
    assert running.of_kind("ReadRefused")


async def test_every_range_is_a_read_in_the_log_with_its_blocks_and_totals(running: Provider) -> None:
    reader = Reader(running, await running.agree(FILTERED))
    parts = await reader.parts(blocks="2,1", columns="id")
    started = running.of_kind("ReadStarted")[-1]
    assert (started.detail["blocks"], started.detail["columns"]) == ([2, 1], ["id"])
    ended = next(event for event in reversed(running.events) if event.kind == "ReadEnded")
    assert ended.detail["rows"] == sum(batch.num_rows for batch, _ in parts)


async def test_the_log_tells_where_in_the_files_a_read_begins_and_ends(running: Provider) -> None:
    reader = Reader(running, await running.agree())
    blocks = [block["rows"] for block in (await reader.plan()).json()["blocks"]]
    parts = await reader.parts(blocks="all", columns="id", batch_rows="1000")
    for asked, numbers, first, stop in (
        ({"blocks": "all"}, None, 0, TOTAL),
        ({"blocks": "all", "after": parts[0][1]["cursor"]}, None, parts[0][0].num_rows, TOTAL),
        ({"blocks": "1"}, [1], blocks[0], sum(blocks[:2])),
    ):
        assert (await reader.rows(**asked)).status_code == 200
        told = running.of_kind("ReadStarted")[-1].detail
        assert (told.get("blocks"), told["ranges"]) == (numbers, [[0, first, stop]])


async def test_of_a_long_list_the_log_has_the_beginning_the_length_and_the_digest_of_all() -> None:
    assert listed("ranges", [[0, 0, 5]] * 100) == {"ranges": [[0, 0, 5]] * 100}
    told = listed("columns", many := [f"ö{number}" for number in range(101)])
    whole = hashlib.sha256(json.dumps(many, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
    assert told == {"columns": many[:100], "columns_of": {"count": 101, "sha256": whole}}


def _table(*names: str) -> pa.Table:
    """With columns that have these names, as the engine has columns of its own."""
    table = data.table(75_000)
    for name in names:
        table = table.append_column(name, [[str(number % 7) for number in range(75_000)]])
    return table


def _many(folder: Path) -> Path:
    table = _table("filename", "File_Index")
    for number, (start, count) in enumerate([(0, 66_000), (66_000, 10), (66_010, 8_990)]):
        pq.write_table(table.slice(start, count), folder / f"part-{number}.parquet", row_group_size=20_000)
    return folder


def _hive(folder: Path) -> Path:
    table = _table("FileName", "file_index")
    for number in range(3):
        (folder / f"year={2020 + number}").mkdir()
        pq.write_table(table.slice(number * 25_000, 25_000), folder / f"year={2020 + number}" / "p.parquet")
    return folder


def _arrow(folder: Path) -> Path:
    pyarrow.feather.write_feather(_table("file_row_number"), folder / "t.arrow", compression="zstd", chunksize=20_000)
    return folder / "t.arrow"


def _images(folder: Path) -> Path:
    count = 75_000
    table = data.table(count).append_column("image", pa.array([b"%d" % n for n in range(count)]))
    pq.write_table(table, folder / "t.parquet", row_group_size=30_000)
    return folder / "t.parquet"


@pytest.mark.parametrize(
    ("kind", "make"),
    [("parquet", _many), ("hive", _hive), ("arrow_ipc", _arrow), ("parquet", _images)],
    ids=["many files", "hive", "arrow", "blobs"],
)
async def test_every_divisible_kind_of_source_gives_its_rows_by_block_and_after_a_cursor(
    running: Provider, tmp_path: Path, kind: str, make: Any
) -> None:
    name = f"t_{tmp_path.name[-8:].strip('_').lower().replace('-', '_')}"
    (tmp_path / "files").mkdir()
    agreement = await running.agree(name=name, path=make(tmp_path / "files"), kind=kind)
    reader = Reader(running, agreement, name)
    plan = (await reader.plan()).json()
    assert plan["rows"] == 75_000
    order = list(range(len(plan["blocks"])))
    random.Random(1).shuffle(order)
    parts = await reader.parts(blocks=",".join(map(str, order)), batch_rows="9000")
    assert sorted(ids(parts)) == list(range(75_000))
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(plan["schema"])))
    assert all(batch.schema == schema for batch, _ in parts)
    middle = len(parts) // 2
    after = parts[middle][1]["cursor"]
    rest = await reader.parts(blocks=",".join(map(str, order)), after=after)
    assert ids(rest) == ids(parts[middle + 1 :])
    assert ids(await reader.parts(blocks="all")) == list(range(75_000))


async def test_rows_whose_number_the_engine_takes_from_a_column_come_as_one_stream(
    running: Provider, tmp_path: Path
) -> None:
    table = pa.table({"id": range(90), "File_Row_Number": [0] * 90})
    pq.write_table(table, tmp_path / "own.parquet", row_group_size=10)
    reader = Reader(running, await running.agree(name="own", path=tmp_path / "own.parquet"), "own")
    refused = await reader.plan()
    assert (refused.status_code, refused.json()["code"]) == (400, "not_divisible")
    assert "a column File_Row_Number" in refused.json()["detail"]
    whole = await reader.rows(blocks="all")
    assert pa.ipc.open_stream(whole.content).read_all()["id"].to_pylist() == [*range(90)]


HIDING = {
    "open": (OPEN, 93, 93),
    "masked": (gate.agreement(duties=[mask("null", "m")], action="odrl:use"), 93, 93),
    "filter": (gate.agreement(atom("ds:row/g", "eq", "A"), action="odrl:use"), 90, 90),
    "cells": (gate.agreement(*(one := (atom("ds:entityKey", "eq", "pid"), atom("ds:dimension/g", "eq", "exact"))),
                             atom("ds:minGroupSize", "gteq", "10"), action="odrl:use"), None, None),
    "noise": (gate.agreement(*one, atom("ds:epsilonBudget", "lteq", "1"), action="odrl:use"), None, None),
}  # fmt: skip


@pytest.mark.parametrize("hiding", HIDING)
async def test_nobody_is_told_how_many_rows_a_policy_hides(running: Provider, tmp_path: Path, hiding: str) -> None:
    """93 rows, of which 90 are seen: the difference is three persons."""
    policy, told, planned = HIDING[hiding]
    rows = [{"pid": n, "g": "A" if n < 90 else "rare", "m": 1.0} for n in range(93)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "few.parquet")
    agreement = await running.agree(policy, name="few", path=tmp_path / "few.parquet")
    held = await running.grants.load(agreement, consumer=provider.CONSUMER)
    assert contract_routes.summary(held, owner=provider.OWNER)["rows"] == told
    plan = (await Reader(running, agreement, "few").plan()).json()
    assert plan.get("rows") == planned
    assert "93" not in json.dumps({name: plan.get(name) for name in ("rows", "detail")}) or planned == 93
    for block in plan.get("blocks", ()):
        assert block["rows"] == planned
        assert planned == 93 or block["bytes"] % planned == 0  # rows of equal width would be counted by it


async def test_counts_of_hidden_rows_are_tens_or_coarser() -> None:
    assert [rounded_counts.coarse(n) for n in (0, 3, 7, 93, 104, 12_345)] == [0, 0, 10, 90, 100, 12_000]
    assert [rounded_counts.at_least(n) for n in (7, 99, 109, 12_999)] == [0, 90, 100, 12_000]
    assert {rounded_counts.coarse_bytes(8 * n, n) for n in range(86, 95)} == {720}


NARROWED = {
    "withheld": gate.agreement(atom("ds:columnDeny", "isNoneOf", "diagnosis"), action="odrl:use"),
    "masked": gate.agreement(duties=[mask("null", "diagnosis")], action="odrl:use"),
    "withheld, and rows": gate.agreement(
        atom("ds:columnDeny", "isNoneOf", "diagnosis"), atom("ds:row/id", "gteq", "0"), action="odrl:use"
    ),
}


@pytest.mark.parametrize("policy", NARROWED.values(), ids=NARROWED.keys())
async def test_blocks_do_not_tell_how_long_the_values_of_hidden_columns_are(
    running: Provider, tmp_path: Path, policy: Policy
) -> None:
    told = []
    for name, text in (("few", "x"), ("many", "a text of many letters")):
        name = f"{name}_{tmp_path.name[-6:].lower().replace('-', '_')}"
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"id": range(50), "diagnosis": [f"{text} {n}" for n in range(50)]}), path)
        answer = await Reader(running, await running.agree(policy, name=name, path=path), name).plan()
        told.append(answer.json()["blocks"])
    assert told[0] == told[1]
    assert told[0][0]["bytes"] > 0


async def test_blocks_do_not_tell_how_large_the_values_of_hidden_rows_are(running: Provider, tmp_path: Path) -> None:
    told, policy = [], gate.agreement(atom("ds:row/id", "lt", "20"), action="odrl:use")
    for name, hidden in (("small", b"x"), ("large", bytes(900_000))):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"id": range(21), "image": [b"x" * 100] * 20 + [hidden]}), path, use_dictionary=False)
        name = f"{name}_hidden"
        answer = await Reader(running, await running.agree(policy, name=name, path=path), name).plan()
        told.append(answer.json()["blocks"])
    assert told[0] == told[1]
    assert told[0][0]["bytes"] > 0
