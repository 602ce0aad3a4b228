"""An answer as a file of the console: each value as the docs and the command line say it, and whole or not there."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from fastapi import FastAPI
from hanse.cli import query as command_line

from connector import server as connector_server
from connector.console import query
from connector.console.page import PageRenderer
from connector.engine.pool.pool import Pool
from connector.events import Event, QueryCoordinated
from connector.federation.coordinator import Coordinator, Question
from connector.management.sign_on.auth import Tokens
from connector.store import Store
from tests.support.admin import issued
from tests.support.owners import Owners
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUES = {  # what an owner has, and what JSON says of it; CSV says the same, but bare texts as they are
    "INTERVAL '2 months -3 days 1.5 seconds'": "P2M-3DT1.5S",
    "1.10::DECIMAL(5, 2)": "1.10",
    "17014118346046923173168730371588410572::HUGEINT": "17014118346046923173168730371588410572",
    "TIME '12:30:00.25'": "12:30:00.250000",
    "TIMESTAMPTZ '2020-01-01 00:00:00+01'": "2019-12-31 23:00:00.000000Z",
    "TIMESTAMP_NS '2020-01-01 00:00:00'": "2020-01-01 00:00:00.000000000",
    "DATE '290000-01-01'": "290000-01-01",
    "'infinity'::TIMESTAMP": "infinity",
    "'infinity'::TIMESTAMP_S": "infinity",
    "'-infinity'::TIMESTAMP_NS": "-infinity",
    "'-infinity'::TIMESTAMPTZ": "-infinity",
    "'306a4f45-b14e-4822-91d9-1eecef2d5d6c'::UUID": "306a4f45-b14e-4822-91d9-1eecef2d5d6c",
    "'\\x00\\xff'::BLOB": "AP8=",
    "MAP {'k': DATE '2020-01-01'}": [["k", "2020-01-01"]],
    "{'a': 1, 'b': [NULL, 'infinity'::DATE]}": {"a": 1, "b": [None, "infinity"]},
    "['nan'::DOUBLE, '-inf'::DOUBLE, 1.5]": ["NaN", "-Infinity", 1.5],
    "[INTERVAL 1 day, NULL]": ["P0M1DT0S", None],
    "[1, 2]::INTEGER[2]": [1, 2],
    "['Köln']": ["Köln"],
    "'say \"no\",\nplease'": 'say "no",\nplease',
    "true": True,
    "-5": -5,
    "NULL::VARCHAR": None,
    "''": "",
}
NOT_IN_PARQUET = ("INTERVAL", "[INTERVAL")
MANY = 'SELECT * FROM "north".many'


@dataclass
class Asker:
    """The page of questions over owners in memory, served as in production."""

    http: httpx2.AsyncClient
    owners: Owners
    coordinator: Coordinator
    recorded: list[Event]

    async def file(self, form: str, sql: str = 'SELECT * FROM "north".t') -> httpx2.Response:
        return await self.http.post("/query", data={"sql": sql, "do": "export", "format": form})

    async def stream(self, sql: str) -> pa.Table:
        """The answer as the command line gets it."""
        answer = await self.coordinator.ask(Question(sql=sql), by="tester")
        data = b"".join([bytes(part) async for part in answer.parts()])
        await answer.close()
        return pa.ipc.open_stream(data).read_all()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    async with Pool(tmp_path_factory.mktemp("work"), size=2, warm=1) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def asker(pool: Pool, sqlite_store: Store, tmp_path: Path) -> AsyncIterator[Asker]:
    owners, events = Owners("north"), list[Event]()
    unsubscribe = sqlite_store.bus.subscribe(events.append)
    coordinator = Coordinator(
        sqlite_store, owners, pool, work_dir=tmp_path / "q", tables_for=owners.tables_for, ticket=owners.ticket  # type: ignore[arg-type]  # stands in for the network
    )  # fmt: skip
    tokens, app = Tokens(sqlite_store), FastAPI()
    lab = {"name": "lab", "title": "", "participant": "did:web:lab.example", "version": "0"}
    desk = PageRenderer(tokens, **lab, members=_nobody, waiting=_nothing)
    holdings: Any = SimpleNamespace(tables=_no_tables)
    app.include_router(query.router(desk, coordinator=coordinator, holdings=holdings))
    headers = {"authorization": f"Bearer {await issued(tokens, 'ada', ['consume'])}"}
    async with served(app) as url, httpx2.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        yield Asker(http, owners, coordinator, events)
    unsubscribe()


async def _nothing() -> int:
    return 0


async def _nobody() -> dict[str, Any]:
    return {}


async def _no_tables(*_: Any) -> Any:
    return SimpleNamespace(tables={})


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = connector_server._server(app)
    task = asyncio.ensure_future(server.serve(sockets=[listening]))
    await until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task


def of_values(asker: Asker, *but: str) -> list[Any]:
    """Give north a row of every value, and one of none; what is said of the first."""
    kept = {sql: told for sql, told in VALUES.items() if not sql.startswith(but or ("nothing",))}
    row = ", ".join(f"{sql} AS c{number}" for number, sql in enumerate(kept))
    nothing = ", ".join(f"NULL AS c{number}" for number in range(len(kept)))
    asker.owners.add("north", "t", f"SELECT {row} UNION ALL SELECT {nothing}")
    return list(kept.values())


async def test_csv_says_every_value_as_the_command_line_does(asker: Asker) -> None:
    told = of_values(asker)
    answer = await asker.file("csv")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="answer.csv"'
    names, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert names == [f"c{number}" for number in range(len(told))]
    assert rows == [[in_csv(value) for value in told], [""] * len(told)]
    table = await asker.stream('SELECT * FROM "north".t')
    assert answer.content == written(command_line._csv, table)


def in_csv(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


async def test_json_says_every_value_as_the_command_line_does(asker: Asker) -> None:
    told = of_values(asker)
    answer = await asker.file("json")
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in answer.content.splitlines())
    assert list(first.values()) == told
    assert set(second.values()) == {None}
    assert answer.content == written(command_line._json, await asker.stream('SELECT * FROM "north".t'))


def written(writer: Any, table: pa.Table) -> bytes:
    sink = io.BytesIO()
    writer(table.schema, iter(table.to_batches()), sink)
    return sink.getvalue()


async def test_a_spreadsheet_takes_no_text_of_others_for_a_formula(asker: Asker) -> None:
    asker.owners.add("north", "t", "SELECT '=1+1' AS a, -1 AS b, ['=1'] AS c")
    answer = await asker.file("csv_guarded")
    assert answer.headers["content-disposition"] == 'attachment; filename="answer.csv"'
    assert list(csv.reader(io.StringIO(answer.text)))[1] == ["'=1+1", "-1", '["=1"]']


READ = {
    "parquet": lambda data: pq.ParquetFile(io.BytesIO(data)).read(),
    "arrow_file": lambda data: pa.ipc.open_file(data).read_all(),
}


@pytest.mark.parametrize("form", READ)
async def test_files_for_programs_have_the_rows_of_the_stream(asker: Asker, form: str) -> None:
    of_values(asker, *(NOT_IN_PARQUET if form == "parquet" else ()))
    answer = await asker.file(form)
    assert answer.headers["content-disposition"] == f'attachment; filename="answer.{form.partition("_")[0]}"'
    expected = await asker.stream('SELECT * FROM "north".t')
    found = READ[form](answer.content)
    assert found.cast(expected.schema, safe=False).schema == expected.schema  # Parquet has no seconds
    assert written(command_line._json, found) == written(command_line._json, expected)  # NaN is not equal to itself


@pytest.mark.parametrize("value", ["INTERVAL 1 day", "[{'i': INTERVAL 1 day}]"])
async def test_what_parquet_has_no_form_for_is_a_sentence_on_the_page(asker: Asker, value: str) -> None:
    asker.owners.add("north", "t", f"SELECT {value} AS i")
    answer = await asker.file("parquet")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (400, "text/html")
    assert "Parquet has no intervals" in answer.text
    assert "leave it out, name it with AS, or ask for CSV or Arrow" in answer.text
    assert "content-disposition" not in answer.headers
    assert len(asker.owners.of["north"].asked) == 1


NAMES = [["a"], ['say "no"', "two\nlines", "=1", "ü, ö"], ["a", "a", "A"]]


@pytest.mark.parametrize("names", NAMES, ids=str)
@pytest.mark.parametrize("rows", [0, 2])
async def test_a_file_has_all_columns_under_their_names_and_no_rows_are_a_file(
    asker: Asker, names: list[str], rows: int
) -> None:
    asker.owners.add("north", "t", f"SELECT range AS n FROM range({rows})")
    shown = ", ".join('n AS "{}"'.format(name.replace('"', '""')) for name in names)
    sql = f'SELECT {shown} FROM "north".t ORDER BY 1'
    told = (await asker.stream(sql)).schema.names
    assert len(told) == len(names)
    body = {form: (await asker.file(form, sql)).content for form in query.FILES}
    lines = list(csv.reader(io.StringIO(body["csv"].decode(), newline="")))
    assert lines == [told, *([str(number)] * len(names) for number in range(rows))]
    if len(set(told)) < len(told):
        assert b"JSON no two columns of one name" in body["json"]
    else:
        assert [json.loads(line) for line in body["json"].splitlines()] == [dict.fromkeys(told, n) for n in range(rows)]
    for form, read in READ.items():
        assert (read(body[form]).schema.names, read(body[form]).num_rows) == (told, rows)


@pytest.mark.parametrize("form", query.FILES)
async def test_many_rows_are_one_file(asker: Asker, form: str) -> None:
    asker.owners.add("north", "many", "SELECT range AS id, 'text ' || range AS t FROM range(150000)")
    data = (await asker.file(form, MANY)).content
    if form in READ:
        assert READ[form](data)["id"].to_pylist() == list(range(150_000))
    else:
        first, last = data.splitlines()[-150_000], data.splitlines()[-1]
        told = {"json": ['{"id": 0, "t": "text 0"}', '{"id": 149999, "t": "text 149999"}']}
        assert [first.decode(), last.decode()] == told.get(form, ['0,"text 0"', '149999,"text 149999"'])


@pytest.mark.parametrize("form", query.FILES)
async def test_a_file_that_ends_early_is_cut_off(asker: Asker, form: str) -> None:
    asker.owners.add("north", "many", "SELECT range AS id, md5(range::VARCHAR) AS t FROM range(400000)")
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"):
        await stopped_in_the_middle(asker, form)
    assert recorded(asker) == [("broken", "cancelled")]


async def stopped_in_the_middle(asker: Asker, form: str) -> None:
    about = {"sql": MANY, "do": "export", "format": form}
    async with asker.http.stream("POST", "/query", data=about) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_raw()
        await anext(pieces)
        (running,) = asker.coordinator.recent()
        await asker.http.post("/query/stop", data={"query": running.query_id})
        async for _ in pieces:
            pass


async def test_a_reader_that_leaves_ends_its_question(asker: Asker) -> None:
    asker.owners.add("north", "many", "SELECT range AS id, md5(range::VARCHAR) AS t FROM range(400000)")
    about = {"sql": MANY, "do": "export", "format": "csv"}
    async with asker.http.stream("POST", "/query", data=about) as answer:
        await anext(answer.aiter_raw())
    await until(lambda: bool(recorded(asker)))
    assert recorded(asker)[0][0] == "broken"


def recorded(asker: Asker) -> list[tuple[str, str]]:
    return [(one.outcome, one.code) for one in asker.recorded if isinstance(one, QueryCoordinated)]


async def test_what_an_owner_ends_before_the_first_byte_is_a_sentence_on_the_page(asker: Asker) -> None:
    asker.owners.add("north", "t", "SELECT 1 AS n")
    asker.owners.break_("north", "stopped")
    answer = await asker.file("csv")
    assert (answer.status_code == 200, "revoked the agreement" in answer.text) == (False, True)
    assert "content-disposition" not in answer.headers


async def test_a_format_that_is_none_is_refused_before_anybody_is_asked(asker: Asker) -> None:
    asker.owners.add("north", "t", "SELECT 1 AS n")
    answer = await asker.file("xls")
    assert answer.status_code == 400
    assert "xpected a format among csv, csv_guarded, json, parquet, arrow_file" in answer.text
    assert asker.owners.of["north"].asked == []


async def test_the_page_shows_what_python_has_no_value_for(asker: Asker) -> None:
    asker.owners.add(
        "north", "t", "SELECT 'infinity'::DATE AS d, [INTERVAL 1 day] AS n, '\\x00'::BLOB AS b, ['Köln'] AS k"
    )
    page = (await asker.http.post("/query", data={"sql": 'SELECT * FROM "north".t', "do": "run"})).text
    assert "<td>infinity</td><td>[&#34;P0M1DT0S&#34;]</td><td>AA==</td><td>[&#34;Köln&#34;]</td>" in page
