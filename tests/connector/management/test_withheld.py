"""A question over aggregate-only datasets says on every surface that small groups are left out."""

# ruff: noqa: F811  fixtures are imported by their names
from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio
from hanse import errors
from hanse._transport import http_stream
from hanse._transport.http_stream import HttpRequest
from hanse.stream import Stream
from pyarrow import parquet

from connector.engine.pool.pool import Pool
from connector.federation.coordinator import Coordinator, Question
from connector.federation.planner.model import GridInfo
from tests.client.cli.test_cli import Run, run, served  # noqa: F401  # fixtures
from tests.client.support import chunked
from tests.client.support import connector as served_at
from tests.connector.console.support import Console
from tests.connector.management.test_queries import Asker, asker, pool  # noqa: F401  # fixtures
from tests.support.asking import read
from tests.support.owners import Owners

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWNERS = ("north", "south", "west")
SQL = """SELECT therapy, count(*) AS patients, avg(days) AS mean_days FROM "all".patients GROUP BY therapy"""
GRID = GridInfo(("therapy",), ("days",), 5, "patient")
SAID = "Groups below 5 patients are left out at each owner: totals and averages may be too low"


def clinics(owners: Owners) -> None:
    for name in OWNERS:
        owners.of.setdefault(name, type(owners.of["north"])(name))
        rows = "SELECT range AS patient, 'therapy ' || (range % 2) AS therapy, range * 10 AS days FROM range(40)"
        owners.add(name, "patients", rows, grid=GRID)


@pytest_asyncio.fixture(loop_scope="module")
async def clinic(asker: Asker) -> AsyncIterator[Asker]:
    clinics(asker.owners)
    yield asker


async def test_the_answer_its_header_and_its_end_record_say_that_groups_may_be_left_out(clinic: Asker) -> None:
    answer = await clinic.ask(SQL)
    rows, end = read(answer.content)
    assert sum(row["patients"] for row in rows) == 120
    assert answer.headers["hanse-withheld"] == end["withheld"] == "possibly"
    assert end["left_out"] == [SAID]
    assert [one["withheld"] for one in end["owners"]] == ["possibly"] * 3
    assert [(one["data_rows"], one["result_rows"], one["rows"]) for one in end["owners"]] == [(0, 2, 2)] * 3


async def test_the_schema_of_the_answer_says_it_to_those_who_keep_the_table(clinic: Asker) -> None:
    with pa.ipc.open_stream((await clinic.ask(SQL)).content) as stream:
        assert stream.schema.metadata == {b"hanse.withheld": b"possibly", b"hanse.left_out": SAID.encode()}
    clinic.owners.add("north", "wards", "SELECT range AS ward FROM range(3)")
    clinic.owners.told = {}
    with pa.ipc.open_stream((await clinic.ask("SELECT ward FROM north.wards")).content) as stream:
        assert stream.schema.metadata is None


async def test_explain_says_it_before_anything_runs(clinic: Asker) -> None:
    plan = (await clinic.ask(SQL, explain=True)).json()
    assert (plan["withheld"], plan["left_out"]) == ("possibly", [SAID])
    assert SAID in plan["text"].splitlines()
    assert "large groups only" in plan["svg"]
    assert [(one["withheld"], one["gives"]) for one in plan["fragments"]] == [("possibly", "results")] * 3
    assert not any(owner.asked for owner in clinic.owners.of.values())
    told = (await clinic.ask(SQL, explain="analyze")).json()
    assert (told["withheld"], told["left_out"]) == ("possibly", [SAID])
    assert "came 2 result rows" in told["text"]


async def test_the_client_says_it_once_and_the_answer_is_not_complete(clinic: Asker) -> None:
    body = (await clinic.ask(SQL)).content
    with served_at({("POST", "/queries"): chunked([body])}) as there:
        stream = Stream(http_stream.open_stream(HttpRequest("POST", f"{there.url}/queries")))
        with pytest.warns(errors.GroupsLeftOut, match=re.escape(SAID)) as warned:
            table = stream.to_arrow()
        assert (stream.complete, stream.withheld, stream.left_out) == (False, "possibly", [SAID])
    assert len(warned) == 1
    assert table.schema.metadata[b"hanse.left_out"] == SAID.encode()


async def test_the_command_line_says_it_beside_the_figures_and_in_its_files(
    clinic: Asker,
    run: Run,
    served: Any,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    answer = await clinic.ask(SQL)
    served.routes["POST", "/queries"] = chunked(
        [answer.content], extra=f"hanse-withheld: {answer.headers['hanse-withheld']}\r\n"
    )
    shown = run("query", SQL)
    assert SAID in " ".join(shown.err.split())
    assert shown.err.count("possibly some") == 3
    assert re.search(r"rows of data +result rows", shown.err)
    assert not [one for one in recwarn if one.category is errors.GroupsLeftOut]
    openers = {"parquet": parquet.read_schema, "arrow": _file, "arrows": lambda path: pa.ipc.open_stream(path).schema}
    for ending, opened in openers.items():
        run("query", SQL, "-o", str(path := tmp_path / f"answer.{ending}"))
        notes = opened(path).metadata
        assert notes[b"hanse.withheld"] == b"possibly"
        assert b"totals and averages may be too low" in notes[b"hanse.left_out"]
    run("query", SQL, "-o", str(tmp_path / "answer.csv"))
    assert (tmp_path / "answer.csv").read_text().startswith('"therapy","patients","mean_days"\n')


def _file(path: Path) -> pa.Schema:
    return pa.ipc.open_file(path).schema


@pytest.mark.parametrize("form", ["parquet", "arrow_file", "csv", "json"])
async def test_the_exports_that_have_a_place_for_it_say_it(clinic: Asker, form: str) -> None:
    answer = await clinic.coordinator.ask(Question(sql=SQL, format=form), by="tester")
    try:
        data = pa.py_buffer(b"".join([bytes(part) async for part in answer.parts()]))
        assert answer.report()["left_out"] == [SAID]
    finally:
        await answer.close()
    if form in ("parquet", "arrow_file"):
        schema = parquet.read_schema(pa.BufferReader(data)) if form == "parquet" else pa.ipc.open_file(data).schema
        assert schema.metadata[b"hanse.left_out"] == SAID.encode()
    else:
        assert SAID.encode() not in data.to_pybytes()  # its readers take every line for a row


async def test_the_page_says_it_before_and_beside_the_figures(
    pool: Pool,
    desk: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owners = Owners(*OWNERS)
    clinics(owners)
    there = Coordinator(
        desk.parts.store, owners, pool, work_dir=tmp_path / "asked", tables_for=owners.tables_for, ticket=owners.ticket  # type: ignore[arg-type]  # stands in for the network
    )  # fmt: skip
    monkeypatch.setattr(desk.parts.coordinator, "ask", there.ask)
    monkeypatch.setattr(desk.parts.coordinator, "plan", there.plan)
    explained = (await desk.post("/query", {"sql": SQL, "do": "explain"})).text
    assert f"{SAID}." in explained
    shown = (await desk.post("/query", {"sql": SQL, "do": "run"})).text
    assert f"{SAID}." in shown
    assert "groups may be left out" in shown
    assert shown.count("possibly some") == 3
    assert "Rows of data" in shown
    assert "Result rows" in shown


OLD: list[tuple[Any, str]] = [(True, "some"), (False, "possibly"), (None, "possibly"), ("never", "possibly")]


@pytest.mark.parametrize(("said", "meant"), OLD, ids=str)
async def test_an_owner_of_another_version_is_understood(clinic: Asker, said: Any, meant: str) -> None:
    end = json.dumps({"status": "complete", "rows": "ROWS", "digest": "DIGEST", "policy": [], "withheld": said})
    clinic.owners.break_("south", f"says:{end}".replace('"ROWS"', "ROWS"))
    _, told = read((await clinic.ask(SQL)).content)
    assert (told["withheld"], {one["owner"]: one["withheld"] for one in told["owners"]}["south"]) == (meant, meant)


async def test_an_owner_that_gives_no_group_is_named(clinic: Asker) -> None:
    clinic.owners.break_("west", "refuse:min_group_size")
    _, end = read((await clinic.ask(SQL)).content)
    assert end["withheld"] == "some"
    assert end["left_out"] == [
        SAID,
        "west returned no groups: no group is large enough, or no row matches the question",
    ]


async def test_rows_that_no_policy_groups_are_whole(clinic: Asker) -> None:
    for name in OWNERS:
        clinic.owners.publish(name, "patients")
    answer = await clinic.ask('SELECT patient FROM "all".patients')
    _, end = read(answer.content)
    assert answer.headers["hanse-withheld"] == end["withheld"] == "nothing"
    assert end["left_out"] == []
    assert [(one["data_rows"], one["result_rows"]) for one in end["owners"]] == [(40, 0)] * 3
