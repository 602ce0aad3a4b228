"""ArrowFlight-PULL between two real connectors, read by a plain pyarrow.flight client; and the programs without ours
that the console shows (tests/connector/console/view/test_snippets.py has those with ours)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest

from tests.support import programs
from tests.support.ports import free_range
from tests.support.processes import POLICY, Process

GUIDE = Path(__file__).parents[2] / "docs" / "data-plane.md"
ROWS = 250_000
FORM = "ArrowFlight-PULL"
Json = dict[str, Any]


def limited(operand: str, most: str) -> Json:
    constraint = {"leftOperand": operand, "operator": "lteq", "rightOperand": most}
    return {"permission": [{"action": "use", "constraint": [constraint]}]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process, Path]]:
    folder, first = tmp_path_factory.mktemp("flight"), free_range(5)
    speaks = {"FLIGHT_PORT": str(first + 4)}
    north = Process("north", folder / "north", first, first + 1, settings=speaks, forked=True)
    south = Process("south", folder / "south", first + 2, first + 3, forked=True)
    try:
        north.start()
        south.start()
        path = north.directory / "rows.parquet"
        table = pa.table({"id": range(ROWS), "word": [f"word {n % 97}" for n in range(ROWS)]})
        pq.write_table(table, path, row_group_size=70_000)
        yield north, south, path
    finally:
        north.kill()
        south.kill()


def address(pair: tuple[Process, Process, Path], name: str, policy: Json) -> tuple[Json, str]:
    """Agreed on and started in this format: what the consumer's connector says of where to read; the agreement."""
    north, south, path = pair
    agreement, transfer = south.agree(north, *north.offer(name, path, policy), form=FORM)
    api = south.api()
    found: Json = api.get(f"/transfers/{transfer}/address")
    api.close()
    return found, agreement


def flown(found: Json) -> tuple[fl.FlightClient, fl.FlightCallOptions]:
    bearer = [(b"authorization", f"Bearer {found['ticket']}".encode())]
    return fl.connect(found["endpoint"]), fl.FlightCallOptions(headers=bearer)


def test_a_plain_client_reads_every_endpoint_and_has_the_rows_that_duckdb_has(
    pair: tuple[Process, Process, Path],
) -> None:
    found, _ = address(pair, "rows", POLICY)
    assert found["endpoint"] == f"grpc+tcp://127.0.0.1:{pair[0].settings['FLIGHT_PORT']}"
    client, options = flown(found)
    with client:
        info = client.get_flight_info(fl.FlightDescriptor.for_path("north", "rows"), options)
        assert (len(info.endpoints), info.ordered) == (1, True)  # it is small
        parts = [read(client, one.ticket, options) for one in info.endpoints]
    assert all(part.num_rows for part, _ in parts)
    assert [end["rows"] for _, end in parts] == [part.num_rows for part, _ in parts]
    whole = pa.concat_tables([part for part, _ in parts])
    expected = duckdb.connect().sql(f"SELECT * FROM '{pair[2]}'").to_arrow_table()
    assert whole.equals(expected.cast(whole.schema))


def read(client: fl.FlightClient, ticket: fl.Ticket, options: fl.FlightCallOptions) -> tuple[pa.Table, Json]:
    batches, end = [], {}
    for chunk in client.do_get(ticket, options):
        if chunk.app_metadata is not None:
            end = json.loads(chunk.app_metadata.to_pybytes())
        else:
            batches.append(chunk.data)
    assert end["status"] == "complete"
    return pa.Table.from_batches(batches), end


@pytest.mark.parametrize(
    ("name", "policy"),
    [("once", limited("odrl:count", "1")), ("alone", limited("ds:concurrency", "1"))],
)
def test_an_agreement_that_limits_reads_gives_one_endpoint(
    pair: tuple[Process, Process, Path], name: str, policy: Json
) -> None:
    client, options = flown(address(pair, name, policy)[0])
    with client:
        info = client.get_flight_info(fl.FlightDescriptor.for_path("north", name), options)
        (endpoint,) = info.endpoints
        assert read(client, endpoint.ticket, options)[0].num_rows == ROWS


def test_a_revoked_agreement_is_told_to_the_plain_client(pair: tuple[Process, Process, Path]) -> None:
    found, agreement = address(pair, "ended", POLICY)
    api = pair[0].api()
    api.post(f"/agreements/{agreement}/revoke", {"reason": "the study was closed"})
    api.close()
    client, options = flown(found)
    with client, pytest.raises(fl.FlightUnauthorizedError, match="the study was closed"):
        client.get_flight_info(fl.FlightDescriptor.for_path("north", "ended"), options)


def test_the_programs_of_the_guide_read_the_rows(
    pair: tuple[Process, Process, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = address(pair, "guide", POLICY)
    names: dict[str, Any] = {"location": found["endpoint"], "ticket": found["ticket"]}
    programs = re.findall(r"^```\n((?:import|from) .*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for code in programs:
        exec(code.replace("clinic-a", "north").replace("patients", "guide").replace("age >", "id >="), names)
    assert sum(table.num_rows for table in names["tables"]) == ROWS
    assert f"[({ROWS - 50},)]" in capsys.readouterr().out
    assert len(programs) == 2


PURPOSE = "dpv:ScientificResearch"
GROUPS = """offer: groups
dataset: groups
may: [query]
for: [dpv:ScientificResearch]
answers: aggregate
limits: {min_group: 5}
grid: {group_by: {word: exact}}
decide: auto
"""
FOR_RESEARCH = {
    "permission": [
        {
            "action": "use",
            "constraint": [{"leftOperand": "purpose", "operator": "isA", "rightOperand": f"{PURPOSE}"}],
        }
    ]
}


@pytest.mark.parametrize("form", ["HttpData-PULL", FORM])
@pytest.mark.parametrize(("name", "policy"), [("open", POLICY), ("research", FOR_RESEARCH)])
def test_the_programs_of_the_console_read_the_rows(
    pair: tuple[Process, Process, Path], name: str, policy: Json, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south, path = pair
    offered = north.offer(f"{name}_{form[:4].lower()}", path, policy)
    _, transfer = south.agree(north, *offered, form=form)
    monkeypatch.setenv("HANSE_TOKEN", south.token)
    found = programs.shown(south.management_port, south.token, transfer)
    assert list(found) == ["Hanse's client", "Arrow over HTTP", "Arrow Flight", "ADBC Flight SQL"]
    assert programs.printed(found["Arrow over HTTP"]).strip() == str(ROWS)
    assert programs.printed(found["Arrow Flight"]).strip() == str(ROWS)
    assert "word: string" in programs.printed(found["ADBC Flight SQL"])


def test_the_programs_of_the_console_ask_about_groups_where_no_row_leaves(
    pair: tuple[Process, Process, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south, path = pair
    api = north.api()
    made = api.post("/datasets", {"name": "groups", "path": str(path)})
    offer = api.post("/offers", {"form": GROUPS})
    api.close()
    _, transfer = south.agree(north, made["id"], offer["id"])
    monkeypatch.setenv("HANSE_TOKEN", south.token)
    found = programs.shown(south.management_port, south.token, transfer)
    assert list(found) == ["Hanse's client", "Arrow over HTTP", "ADBC Flight SQL"]
    assert programs.printed(found["Arrow over HTTP"]).strip() == "1"
    assert str(ROWS) in programs.printed(found["ADBC Flight SQL"])
