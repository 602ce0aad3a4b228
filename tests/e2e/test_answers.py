"""The federated answer is plain DuckDB's answer over the union of the raw files, and nothing else leaves an owner."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa
import pytest

from connector.demo.story import DELAYS, RESEARCH, SURVIVAL
from tests.e2e.conftest import SECRET, Running

# The same filters in plain SQL: the offer's row filter, clamped measures, and whole cells of at least five patients in
# which nobody makes more than half of a measure, and none or five have a recurrence, or have none. Every patient has
# one row, so rows are units.
CELL = "OVER (PARTITION BY horTh, menostat, tgrade)"
PATIENTS = f"""
CREATE VIEW {{owner}}_patients AS
WITH clamped AS (
    SELECT horTh, menostat, tgrade, greatest(0, least(3000, time)) AS time, greatest(0, least(1, cens)) AS cens,
           greatest(0, least(120, tsize)) AS tsize
    FROM read_parquet('{{path}}') WHERE age >= 30 AND age < 80
)
SELECT * FROM clamped
QUALIFY count(*) {CELL} >= 5
    AND 2 * max(time) {CELL} <= sum(time) {CELL}
    AND 2 * max(cens) {CELL} <= sum(cens) {CELL}
    AND 2 * max(tsize) {CELL} <= sum(tsize) {CELL}
    AND sum(cens) {CELL} NOT BETWEEN 1 AND 4
    AND count(*) {CELL} - sum(cens) {CELL} NOT BETWEEN 1 AND 4
"""


@pytest.fixture(scope="module")
def central(running: Running) -> duckdb.DuckDBPyConnection:
    """One DuckDB that has all the raw files."""
    con = duckdb.connect()
    for piece in running.story.pieces:
        if piece.name == "patients":
            con.execute(PATIENTS.format(owner=piece.owner, path=piece.path))
        else:
            con.execute(f"CREATE SCHEMA IF NOT EXISTS {piece.owner}")
            con.execute(f"CREATE VIEW {piece.owner}.{piece.name} AS SELECT * FROM read_parquet('{piece.path}')")
    con.execute(
        'CREATE SCHEMA "all"; CREATE VIEW "all".patients AS SELECT * FROM north_patients '
        "UNION ALL SELECT * FROM south_patients UNION ALL SELECT * FROM west_patients"
    )
    return con


QUESTIONS = {
    "survival": SURVIVAL,
    "delays": DELAYS,
    "one total over all": 'SELECT count(*) AS n, avg(time) AS t FROM "all".patients',
    "filtered by dimensions": """SELECT tgrade, count(*) AS n, sum(cens) AS r FROM "all".patients
        WHERE horTh = 'yes' AND menostat IN ('Post') GROUP BY tgrade ORDER BY tgrade""",
    "two owners": """SELECT a.name, count(*) AS n FROM north.flights f JOIN west.airlines a ON f.carrier = a.carrier
        WHERE f.distance > 2000 GROUP BY a.name ORDER BY n DESC, a.name""",
    "top rows": """SELECT dest, dep_delay FROM north.flights WHERE dep_delay > 900 AND distance >= 80
        ORDER BY dep_delay DESC, dest LIMIT 5""",
    "outer join": """SELECT count(*) AS n, count(p.tailnum) AS known FROM north.flights f
        LEFT JOIN west.planes p ON f.tailnum = p.tailnum WHERE f.month = 1 AND f.distance >= 80""",
    "distinct": "SELECT count(DISTINCT tailnum) AS planes FROM north.flights WHERE distance >= 80",
    "subquery": """SELECT count(*) AS n FROM west.planes WHERE tailnum IN
        (SELECT tailnum FROM north.flights WHERE dep_delay > 300 AND distance >= 80)""",
    "union": "SELECT origin FROM north.flights UNION SELECT origin FROM south.weather ORDER BY origin",
}


def rounded(table: pa.Table) -> list[tuple[Any, ...]]:
    rows = (row.values() for row in table.to_pylist())
    return [tuple(round(value, 6) if isinstance(value, float) else value for value in row) for row in rows]


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_federated_answer_is_the_central_answer(
    running: Running, central: duckdb.DuckDBPyConnection, name: str
) -> None:
    table = running.forge.query(QUESTIONS[name], purpose=RESEARCH).to_arrow()
    expected = central.sql(QUESTIONS[name]).to_arrow_table()
    assert table.column_names == expected.column_names
    assert rounded(table) == rounded(expected)


def test_no_planted_secret_is_in_any_byte_that_left_an_owner(running: Running) -> None:
    before = {name: len(relay.left) for name, relay in running.relays.items()}
    answers = [
        "SELECT country, count(*) AS n, sum(visits) AS v FROM north.secrets GROUP BY country",
        "SELECT country, town, count(*) AS n, avg(visits) AS v FROM north.secrets GROUP BY country, town",
        "SELECT town, country, visits FROM north.secret_rows",
        "SELECT count(DISTINCT person) AS n FROM north.secret_rows",
    ]
    for sql in answers:
        assert running.forge.query(sql, purpose=RESEARCH).to_arrow().num_rows > 0
    rows = list(running.story.agreed["north/secret_rows"].stream())
    assert sum(batch.num_rows for batch in rows) == 63
    assert "diary" not in rows[0].schema.names
    for sql in (
        "SELECT diary FROM north.secret_rows",
        "SELECT count(*) AS n FROM north.secret_rows WHERE diary LIKE '%001%'",
        f"SELECT count(*) AS n FROM north.secrets WHERE town = '{SECRET}-hamlet'",
        "SELECT person, count(*) AS n FROM north.secrets GROUP BY person",
        "SELECT max(visits) AS n FROM north.secrets",
    ):
        with pytest.raises(Exception):  # noqa: B017, PT011  # each with its own error; what matters is the wire
            running.forge.query(sql, purpose=RESEARCH).to_arrow()
    left = running.relays["north"].left[before["north"] :]
    assert len(left) > 5_000
    # The hamlet's rows may leave from secret_rows, whose offer has no minimum group: only its people are secret.
    for planted in (b"-diary-", b"-person-", b"-few-", b"-out-", f"{SECRET}-land".encode(), b"GBSG2-"):
        assert planted not in left


def test_the_small_group_is_in_no_byte_of_the_aggregate_only_answers(running: Running) -> None:
    before = len(running.relays["north"].left)
    running.forge.query(
        "SELECT country, town, count(*) AS n FROM north.secrets GROUP BY country, town", purpose=RESEARCH
    ).to_arrow()
    assert b"hamlet" not in running.relays["north"].left[before:]


def test_a_fragment_over_two_datasets_is_in_its_owners_log_under_the_agreement_of_each(running: Running) -> None:
    """No more tickets go to the owner than its fragment needs, and none is left out."""
    log = running.story.api("west")
    before = log.get("/audit/events", limit=1)["records"][0]["idx"]
    sql = "SELECT a.name, p.tailnum FROM west.airlines a JOIN west.planes p ON p.seats = length(a.name)"
    rows = running.forge.query(sql, purpose=RESEARCH).to_arrow().num_rows
    agreements, reads = set(), set()
    for name in ("airlines", "planes"):
        found = [one for one in log.get("/audit/events", dataset=f"urn:hanse:west:{name}")["records"]
                 if one["idx"] > before]  # fmt: skip
        ended, started = (one["body"] for one in found)
        assert (started["kind"], ended["kind"], ended["detail"]["rows"]) == ("ReadStarted", "ReadEnded", rows)
        by_agreement = log.get("/audit/events", agreement=started["agreement"])["records"]
        assert {one["idx"] for one in found} <= {one["idx"] for one in by_agreement}
        agreements.add(started["agreement"])
        reads.add(started["process"])
        together = started["detail"]["agreements"]
    assert (len(reads), len(agreements), set(together)) == (1, 2, agreements)
