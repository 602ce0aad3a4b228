"""Rows as Parquet and CSV over a real server: the same policy, whole and provably so, or cut off."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
import secrets
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import httpx2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import xxhash

from connector.dataplane.http import export_formats
from connector.errors import Invalid
from connector.infra.formats import text_values
from tests.support import data, gate, provider
from tests.support.gate import atom, mask
from tests.support.provider import Provider

module = pytest.mark.asyncio(loop_scope="module")
ROWS = "/data/v1/datasets/numbers/rows"
PARQUET, CSV, ARROW = "application/vnd.apache.parquet", "text/csv", "application/vnd.apache.arrow.stream"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("formats"), rows=50_000) as started:
        yield started


async def get(
    running: Provider, ticket: str, *, accept: str = "*/*", path: str = ROWS, **given: Any
) -> httpx2.Response:
    headers = {"authorization": f"Bearer {ticket}", "accept": accept}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=60) as session:
        return await session.get(path, params=given)


@pytest.mark.parametrize(
    ("given", "accept", "expected"),
    [
        ({}, "*/*", "arrow"),
        ({}, "", "arrow"),
        ({}, "text/html, application/xhtml+xml;q=0.9, */*;q=0.8", "arrow"),
        ({}, CSV, "csv"),
        ({}, f"{CSV};q=0.5, {PARQUET}", "parquet"),
        ({}, f"{CSV};q=0, {PARQUET};q=0.1", "parquet"),
        ({}, f"{ARROW}; codecs=\"zstd\", {CSV};q=0.9", "arrow"),
        ({}, f"{CSV};q=x", "arrow"),
        ({}, "*/*;q=0.1, text/csv;q=0", "arrow"),
        ({}, f"{ARROW};q=0, */*", "parquet"),
        ({}, "text/*", "csv"),
        ({}, "application/*", "arrow"),
        ({"format": "csv"}, "application/json", "csv"),
        ({"format": "csv"}, PARQUET, "csv"),
        ({"format": "csv", "guard": "true"}, "", "csv_guarded"),
    ],
)  # fmt: skip
def test_the_format_is_the_one_asked_for(given: dict[str, str], accept: str, expected: str) -> None:
    assert export_formats.choose_format(given, accept) == expected


@module
@pytest.mark.parametrize(
    "accept",
    ["application/json", f"{ARROW};q=0", f"{CSV};q=0.0", "text/html, image/*", ",".join([ARROW] * 1_000)],
    ids=["JSON", "no Arrow", "no CSV", "pages", "too much"],
)
async def test_whoever_takes_no_format_of_ours_is_told(running: Provider, accept: str) -> None:
    agreement = await running.agree()
    headers = {"authorization": f"Bearer {running.ticket(agreement)}", "accept": accept}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers) as session:
        envelope = {"sql": 'SELECT id FROM "clinic".numbers'}
        for answer in (await session.get(ROWS), await session.post("/data/v1/query", json=envelope)):
            assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    used = await running.store.read(lambda tx: tx.agreements.get_grant(agreement))
    assert used.queries == 0


@pytest.mark.parametrize("given", [{"format": "xlsx"}, {"format": "csv_guarded"}, {"guard": "true"}, {"guard": "1"}])
def test_a_format_that_nobody_writes_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(Invalid) as raised:
        export_formats.choose_format(given, "")
    assert raised.value.code == "format_unknown"


@module
async def test_parquet_holds_the_rows_in_few_row_groups(running: Provider) -> None:
    answer = await get(running, running.ticket(await running.agree()), accept=PARQUET)
    assert (answer.status_code, answer.headers["content-type"]) == (200, PARQUET)
    assert answer.headers["content-disposition"] == 'attachment; filename="numbers.parquet"'
    file = pq.ParquetFile(io.BytesIO(answer.content))
    table = file.read()
    assert table.equals(data.table(50_000).cast(table.schema))
    assert file.num_row_groups == 1


@module
async def test_csv_holds_the_rows_and_the_log_what_left(running: Provider) -> None:
    answer = await get(running, running.ticket(await running.agree()), format="csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    expected = data.table(50_000).to_pylist()
    assert len(rows) == 50_000
    for number in (0, 1, 49_999):
        row, want = rows[number], expected[number]
        assert (int(row["id"]), float(row["x"]), row["name"], row["day"]) == (
            want["id"], want["x"], want["name"], str(want["day"]))  # fmt: skip
        assert row["gap"] == ("" if want["gap"] is None else str(want["gap"]))
        assert row["tags"] == str(want["tags"])
    async with asyncio.timeout(60):
        while running.reads.live or running.reads._tasks:
            await asyncio.sleep(0.01)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.detail["rows"], ended.detail["bytes"]) == ("ok", 50_000, len(answer.content))
    assert ended.detail["digest"] == "xxh3:" + xxhash.xxh3_128_hexdigest(answer.content)


@module
@pytest.mark.parametrize("form", ["parquet", "csv"])
async def test_the_policy_holds_in_every_format(running: Provider, form: str) -> None:
    policy = gate.agreement(
        atom("ds:row/gap", "eq", "2"), atom("ds:columnDeny", "isNoneOf", "x", "day", "tags"),
        duties=[mask("null", "name")], action="odrl:use",
    )  # fmt: skip
    ticket = running.ticket(await running.agree(policy))
    answer = await get(running, ticket, format=form)
    body = io.BytesIO(answer.content)
    table = pq.read_table(body) if form == "parquet" else pyarrow.csv.read_csv(body)
    wanted = data.table(50_000)
    assert table["id"].to_pylist() == wanted.filter(pc.equal(wanted["gap"], 2))["id"].to_pylist()
    assert table.schema.names == ["id", "name", "gap"]
    assert table["name"].null_count == table.num_rows
    assert (await get(running, ticket, format=form, columns="x")).status_code == 400


@module
@pytest.mark.parametrize("form", ["parquet", "csv"])
async def test_a_whole_answer_ends_with_its_trailer(running: Provider, form: str) -> None:
    body = await raw(running, running.ticket(await running.agree()), f"format={form}&columns=id&where=id%3C100")
    head, _, rest = body.partition(b"\r\n\r\n")
    assert b"trailer: hanse-status" in head.lower()
    trailer = rest[rest.rindex(b"\r\n0\r\n") :].decode()
    assert f"hanse-status: complete\r\nhanse-rows: 100\r\nhanse-bytes: {len(unchunked(rest))}\r\n" in trailer
    assert "hanse-digest: xxh3:" in trailer
    assert trailer.endswith("\r\n\r\n")


@module
@pytest.mark.parametrize("form", ["parquet", "csv"])
async def test_an_answer_that_the_quota_ends_is_cut_off(running: Provider, form: str) -> None:
    policy = gate.agreement(atom("ds:rowQuota", "lteq", "9000"), action="odrl:use")
    ticket = running.ticket(await running.agree(policy))
    body = await raw(running, ticket, f"format={form}&batch_rows=2500")
    assert b"\r\n0\r\n" not in body[-200:]
    assert b"hanse-status: complete" not in body
    assert b"PAR1" not in body[-16:]
    with pytest.raises(httpx2.RemoteProtocolError):
        await get(running, running.ticket(await running.agree(policy)), format=form, batch_rows=2500)


def request(ticket: str, query: str) -> bytes:
    lines = (f"GET {ROWS}?{query} HTTP/1.1", "host: x", f"authorization: Bearer {ticket}", "connection: close")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


async def raw(running: Provider, ticket: str, query: str) -> bytes:
    """Everything that the server sends, down to the last chunk."""
    at = urlsplit(running.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(request(ticket, query))
    parts = []
    try:
        while part := await reader.read(2**16):
            parts.append(part)
    except ConnectionResetError:
        pass
    writer.close()
    return b"".join(parts)


def unchunked(rest: bytes) -> bytes:
    """The body that comes in these chunks."""
    body = b""
    while size := int((line := rest.partition(b"\r\n"))[0], 16):
        body, rest = body + line[2][:size], line[2][size + 2 :]
    return body


STRANGE = pa.table(
    {
        "text": ["plain", "=1+1", "+x", "-5", "@me", "\tx", 'a "quoted", line\nmore', "", None],
        "bytes": [b"\x00\xff", None, *[b""] * 7],
        "nested": [{"a": [1, None]}, None, *[{"a": []}] * 7],
        "when": pa.array([0, None, *[1] * 7], pa.timestamp("us", "UTC")),
        "money": pa.array([None, *[1] * 8], pa.int64()).cast(pa.decimal128(21, 2)),
        "less": [-1] * 9,
        "debt": pa.array([-1] * 9, pa.int64()).cast(pa.decimal128(21, 2)),
    }
)


@module
async def test_csv_shows_every_type_and_guards_formulas_where_asked(running: Provider, tmp_path: Path) -> None:
    pq.write_table(STRANGE, tmp_path / "strange.parquet")
    ticket = running.ticket(await running.agree(name="strange", path=tmp_path / "strange.parquet"))
    path = "/data/v1/datasets/strange/rows"
    plain = list(csv.reader(io.StringIO((await get(running, ticket, path=path, format="csv")).text)))
    assert plain[0] == STRANGE.column_names
    assert plain[1] == ["plain", "AP8=", '{"a": [1, null]}', "1970-01-01 00:00:00.000000Z", "", "-1", "-1.00"]
    assert [row[0] for row in plain[1:]] == [value or "" for value in STRANGE["text"].to_pylist()]
    assert plain[2][4] == "1.00"
    guarded = list(csv.reader(io.StringIO((await get(running, ticket, path=path, format="csv", guard="true")).text)))
    assert [row[0] for row in guarded[2:7]] == ["'=1+1", "'+x", "'-5", "'@me", "'\tx"]
    assert {(row[5], row[6]) for row in guarded[1:]} == {("-1", "-1.00")}
    parquet = pq.read_table(io.BytesIO((await get(running, ticket, path=path, format="parquet")).content))
    assert parquet.to_pylist() == STRANGE.to_pylist()


MOMENTS = {  # as numbers, and what CSV says
    pa.date32(): {0: "1970-01-01", 2_932_897: "10000-01-01", -719_529: "-0001-12-31", 2**30: "2941775-04-07",
                  2**31 - 1: "infinity", 1 - 2**31: "-infinity"},
    pa.timestamp("us"): {1: "1970-01-01 00:00:00.000001", 2**62: "148108-07-06 14:00:27.387904"},
    pa.timestamp("us", "UTC"): {0: "1970-01-01 00:00:00.000000Z", 2**62: "148108-07-06 14:00:27.387904Z",
                                2**63 - 1: "infinity", 1 - 2**63: "-infinity"},
    pa.timestamp("ns"): {1: "1970-01-01 00:00:00.000000001", 2**63 - 1: "infinity", 1 - 2**63: "-infinity"},
    pa.timestamp("ms"): {1: "1970-01-01 00:00:00.001000"},  # the engine has no infinity of these: refused as a version
    pa.time64("us"): {0: "00:00:00.000000", 86_399_999_999: "23:59:59.999999"},
}  # fmt: skip


@module
@pytest.mark.parametrize("kind", list(MOMENTS), ids=str)
async def test_csv_says_every_moment_also_in_what_is_nested(running: Provider, tmp_path: Path, kind: Any) -> None:
    numbers, told = zip(*MOMENTS[kind].items(), strict=True)
    moments = pa.array(numbers, pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    nested = pa.array([[{"a": one}, None] for one in moments], pa.list_(pa.struct([("a", kind)])))
    rows = await lines(running, pa.table({"m": moments, "n": nested}), tmp_path)
    assert [row[0] for row in rows] == list(told)
    assert [json.loads(row[1]) for row in rows] == [[{"a": one}, None] for one in told]


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")], ids=str)
def test_the_end_of_a_day_is_not_its_start(kind: pa.DataType) -> None:
    """A question may compute it; a column of it is no data of ours (`value_unmappable`)."""
    second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    start, end = pa.array([0, 86_400 * second], pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    zeros = str(start.cast(pa.string()))[len("00") :]
    assert text_values.column_to_texts(pa.array([start, end, None])).to_pylist() == [f"00{zeros}", f"24{zeros}", None]
    assert text_values.column_to_json_values(pa.array([[end]]))[0] == [f"24{zeros}"]


def test_moments_in_what_is_nested_take_not_much_longer_than_numbers() -> None:
    assert text_values.column_to_texts(nested(pa.timestamp("us"), 2))[1].as_py() == '["1970-01-01 00:00:01.000003"]'
    numbers, moments = (processor_seconds(nested(kind, 20_000)) for kind in (pa.int64(), pa.timestamp("us")))
    assert moments < 20 * numbers


def nested(kind: pa.DataType, count: int) -> pa.Array:
    return pa.array([[number * 1_000_003] for number in range(count)], pa.list_(kind))


def processor_seconds(values: pa.Array) -> float:
    """Of the quickest of three: a machine that wants memory takes its own time, too."""
    taken = []
    for _ in range(3):
        before = time.thread_time()
        text_values.column_to_texts(values)
        taken.append(time.thread_time() - before)
    return min(taken)


@module
async def test_nested_numbers_are_json_also_where_it_has_none(running: Provider, tmp_path: Path) -> None:
    table = pa.table({"x": [[math.nan, math.inf, -math.inf, None, 1.5]], "y": [1]})
    ((text, _),) = await lines(running, table, tmp_path)
    assert json.loads(text, parse_constant=pytest.fail) == ["NaN", "Infinity", "-Infinity", None, 1.5]


@module
@pytest.mark.parametrize("values", [[1, None, 3], ["a", None, ""], [None, 2.5]], ids=str)
async def test_a_missing_value_of_one_column_is_a_row_to_every_reader(
    running: Provider, tmp_path: Path, values: list[Any]
) -> None:
    assert await lines(running, pa.table({"x": values}), tmp_path) == [["" if v is None else str(v)] for v in values]
    again = pyarrow.csv.read_csv(tmp_path / "rows.csv", convert_options=pyarrow.csv.ConvertOptions(null_values=[""]))
    assert len(again) == len(values)


@module
async def test_intervals_are_iso_8601_in_csv_and_refused_by_name_in_parquet(running: Provider, tmp_path: Path) -> None:
    path = tmp_path / "intervals.parquet"
    one = "INTERVAL '2 months 3 days 1.5 seconds'"
    duckdb.connect().sql(f"COPY (SELECT {one} AS i, [{one}, NULL] AS n, INTERVAL '0 days' AS z) TO '{path}'")
    ticket = running.ticket(await running.agree(name="intervals", path=path))
    text = (await get(running, ticket, path="/data/v1", format="csv")).text
    assert list(csv.reader(io.StringIO(text)))[1] == ["P2M3DT1.5S", '["P2M3DT1.5S", null]', "P0M0DT0S"]
    refused = await get(running, ticket, path="/data/v1", format="parquet")
    assert (refused.status_code, refused.json()["code"]) == (400, "format_unfit")


async def lines(running: Provider, table: pa.Table, folder: Path) -> list[list[str]]:
    """The lines of CSV that a table of this name becomes, but for the first; they lie in `rows.csv`, too."""
    pq.write_table(table, folder / "rows.parquet")
    name = f"t{secrets.token_hex(4)}"
    ticket = running.ticket(await running.agree(name=name, path=folder / "rows.parquet"))
    answer = await get(running, ticket, path="/data/v1", format="csv")
    (folder / "rows.csv").write_bytes(answer.content)
    return list(csv.reader(io.StringIO(answer.text)))[1:]


@module
async def test_names_and_line_feeds_are_guarded_too(running: Provider, tmp_path: Path) -> None:
    """The names are the owner's as much as the values."""
    table = pa.table({"=1+1": ["\n=2", "\r=3"], "+n": [1, 2], "plain": ["a", "b"]})
    pq.write_table(table, tmp_path / "named.parquet")
    ticket = running.ticket(await running.agree(name="named", path=tmp_path / "named.parquet"))
    path = "/data/v1/datasets/named/rows"
    text = (await get(running, ticket, path=path, format="csv", guard="true")).text
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["'=1+1", "'+n", "plain"], ["'\n=2", "1", "a"], ["'\r=3", "2", "b"],
    ]  # fmt: skip
    text = (await get(running, ticket, path=path, format="csv")).text
    assert next(csv.reader(io.StringIO(text, newline=""))) == ["=1+1", "+n", "plain"]


@module
async def test_no_rows_are_a_file_too(running: Provider) -> None:
    ticket = running.ticket(await running.agree())
    found = pq.read_table(io.BytesIO((await get(running, ticket, format="parquet", where="id < 0")).content))
    assert (found.num_rows, found.schema.names) == (0, data.table(1).column_names)
    assert (await get(running, ticket, format="csv", where="id < 0")).text.count("\n") == 1


@module
async def test_a_reader_that_leaves_is_recorded(running: Provider) -> None:
    ticket = running.ticket(await running.agree())
    at = urlsplit(running.url)
    with socket.create_connection((at.hostname or "", at.port or 0)) as opened:
        opened.sendall(request(ticket, "format=csv&batch_rows=500"))
        await asyncio.to_thread(opened.recv, 1000)
    async with asyncio.timeout(60):
        while running.reads.live or running.reads._tasks:
            await asyncio.sleep(0.01)
    assert running.of_kind("ReadEnded")[-1].outcome == "broken"
