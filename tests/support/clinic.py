"""A clinic's tables under contracts, with secrets planted in every place that no answer may reach."""

from __future__ import annotations

from tests.support import gate
from tests.support.gate import atom, either, mask

SECRET = "SECRET"  # in every text that is hidden: masked, denied, filtered away, or never agreed
SECRET_NUMBER = 987_654_321  # the same for numbers
ROWS = 600

TABLES = f"""
CREATE TABLE src_people AS SELECT
    i AS id, 'name-{SECRET}-' || i AS name, '{SECRET}-' || i AS ssn, '+49-{SECRET}-' || i AS phone,
    CASE WHEN i % 3 = 0 THEN 'DE' WHEN i % 3 = 1 THEN 'FR' ELSE 'XX' END AS country,
    18 + i % 60 AS age, CASE WHEN i % 3 = 2 THEN {SECRET_NUMBER} ELSE 1000 * (i % 50) + 7 END AS salary,
    DATE '2020-01-01' + (i % 900)::INTEGER AS joined,
    CASE WHEN i % 3 = 2 THEN '{SECRET}' ELSE CAST(i AS VARCHAR) END AS note
  FROM range({ROWS}) r(i);
CREATE TABLE src_visits AS SELECT
    i AS id, i % 200 AS person_id, i % 5 AS ward,
    CASE WHEN i % 4 = 0 THEN 'broad' WHEN i % 4 = 1 THEN 'none' END AS consent,
    CASE WHEN i % 5 = 3 OR i % 4 = 0 THEN CAST(i AS VARCHAR) ELSE '{SECRET}' END AS remark,
    CASE WHEN i % 5 = 3 OR i % 4 = 0 THEN i ELSE 9223372036854775000 END AS code
  FROM range({ROWS}) r(i);
CREATE TABLE src_outcomes AS SELECT
    i % 300 AS person_id, CASE WHEN i % 2 = 0 THEN 'N' ELSE 'S' END AS region, (i * 7) % 60 AS age,
    CASE WHEN i = 17 THEN {SECRET_NUMBER} ELSE (i * 13) % 5000 END AS cost, '{SECRET}' AS diagnosis
  FROM range({ROWS}) r(i);
CREATE TABLE src_shared_a AS SELECT 1 AS id;
CREATE TABLE src_shared_b AS SELECT 2 AS id;
CREATE TABLE vault AS SELECT '{SECRET}' AS secret;
"""


def bench() -> gate.Bench:
    """people: two countries, ssn hidden, name hashed, phone nulled, salary rounded. visits: either of two.
    outcomes: aggregates over at least 10 persons. shared: the same name at two owners."""
    made = gate.Bench()
    made.connection.execute(TABLES)

    def add(owner: str, table: str, relation: str, *constraints: object, duties: tuple[object, ...] = ()) -> None:
        schema = gate.schema_of(made.connection, relation)
        made.add(owner, table, relation, gate.contract(schema, *constraints, duties=duties))  # type: ignore[arg-type]  # data

    add(
        "clinic",
        "people",
        "src_people",
        atom("ds:row/country", "isAnyOf", "DE", "FR"),
        atom("ds:columnDeny", "isNoneOf", "ssn"),
        duties=(mask("hash", "name"), mask("null", "phone"), mask("round", "salary", argument="-3")),
    )
    add(
        "clinic",
        "visits",
        "src_visits",
        either(atom("ds:row/ward", "eq", "3"), atom("ds:row/consent", "eq", "broad")),
        atom("ds:columnDeny", "isNoneOf", "consent"),
    )
    add(
        "clinic",
        "outcomes",
        "src_outcomes",
        atom("ds:minGroupSize", "gteq", "10"),
        atom("ds:entityKey", "eq", "person_id"),
        atom("ds:dimension/region", "eq", "exact"),
        atom("ds:dimension/age", "eq", "20"),
        atom("ds:measure/cost", "eq", "0..5000"),
    )
    add("clinic", "shared", "src_shared_a")
    add("lab", "shared", "src_shared_b")
    return made
