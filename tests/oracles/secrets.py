"""Random queries over a clinic's tables through the gate, many of them hostile: planted secrets are looked for in
answers, errors and the log, and answers compared with what the policy shows, carried out by hand.

Hidden columns, refused functions, casts that fail and other tables are mixed into questions at random, so that what was
not thought of is tried too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from policies.errors import QueryRefused
from tests.oracles.grammar import is_ordered
from tests.oracles.outcome import Outcome
from tests.oracles.questions import Questions, Tables
from tests.oracles.values import DATE, INTEGER, TEXT
from tests.support import clinic, gate, oracle
from tests.support.federation import difference

SECRETS = (clinic.SECRET, str(clinic.SECRET_NUMBER), "922337203685477")
# What the policy shows, carried out by hand; the clinic's other rows do not exist for it.
_SHOWN = """
CREATE TABLE people AS SELECT id, hashed(name) AS name, CAST(NULL AS VARCHAR) AS phone, country, age,
    CAST(round(salary, -3) AS {salary}) AS salary, joined, note FROM src_people WHERE country IN ('DE', 'FR');
CREATE TABLE visits AS SELECT id, person_id, ward, remark, code FROM src_visits WHERE ward = 3 OR consent = 'broad';
"""
_PEOPLE = {
    "id": INTEGER, "name": TEXT, "phone": TEXT, "country": TEXT, "age": INTEGER, "salary": INTEGER, "joined": DATE,
    "note": TEXT,
}  # fmt: skip
_VISITS = {"id": INTEGER, "person_id": INTEGER, "ward": INTEGER, "remark": TEXT, "code": INTEGER}
_HIDDEN = ("ssn", "consent", "diagnosis", "rowid", "secret", "src_people.ssn", "people", "filename")
_TABLES = ("vault", "src_people", "src_visits", "main.src_people", "range(10)", "duckdb_tables()", "shared", "outcomes")
_REFUSED = ("repeat", "error", "list", "string_agg", "hash", "getenv", "strptime", "first", "arg_max", "to_json", "md5")
_SECONDS = 10.0  # of one query: a random join may also take minutes
_ROWS_MAX = 20_000  # of an answer that is compared
_LIMITS = "SET memory_limit = '1GB'; SET max_temp_directory_size = '0B'"  # a random join may have millions of rows
_TYPES = ("int", "bigint", "date", "double", "decimal(9,2)", "boolean", "blob")
_AGGREGATES = ("count", "sum", "min", "max", "avg", "any_value", "stddev", "median")


def _odd(questions: Questions, column: str) -> str:
    pick = questions.pick
    shapes = (
        f"cast({column} as {pick(_TYPES)})", f"cast({column} as {pick(_TYPES)})", f"{pick(_REFUSED)}({column})",
        pick(_HIDDEN), pick(_HIDDEN), f"{column}[1]", f"(select max({pick(list(_PEOPLE))}) from people)",
        f"({column} || '%SEC%')",
    )  # fmt: skip
    return pick(shapes)


TABLES = Tables({"people": (_PEOPLE, 0.6), "visits": (_VISITS, 0.4)}, {}, odd=_odd, odd_tables=_TABLES)


class Queries(Questions):
    """Questions, some of a dataset that gives aggregates only."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, TABLES, odd=0.05)

    def question(self) -> str:
        return self.aggregate_only() if self.chance(0.15) else super().question()

    def aggregate_only(self) -> str:
        measure = self.pick(["sum(cost)", "avg(cost)", "count(cost)", "count(*)", "count(distinct person_id)"])
        group, columns = self.pick(["region", "age"]), ["region", "age", "cost", "person_id"]
        where = self.pick(["age >= 20", "region = 'N'", "age in (0, 20)", "age between 0 and 40", "region <> 'S'"])
        if self.chance(0.16):
            measure = f"{self.pick(_AGGREGATES)}({self.pick([*columns, _odd(self, self.pick(columns))])})"
        if self.chance(0.08):
            group = _odd(self, self.pick(columns))
        if self.chance(0.16):
            where = f"{_odd(self, self.pick(columns))} {self.pick(['=', '<', '>='])} {self.pick(columns)}"
        return f"select {group}, {measure} from outcomes where {where} group by {group}"


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run(seeds: Iterable[int], outcome: Outcome) -> None:
    """Ask the queries of these seeds."""
    bench, log = clinic.bench(), _Log()
    shown = _shown(bench)
    logging.getLogger().addHandler(log)
    try:
        for seed in seeds:
            sql = Queries(seed).question()
            if found := _wrong(bench, shown, sql, outcome):
                outcome.find(seed, f"{found}\n    {sql}")
            if any(secret in line for line in log.lines for secret in SECRETS):
                outcome.find(seed, f"a secret in the log\n    {sql}")
            log.lines.clear()
    finally:
        logging.getLogger().removeHandler(log)
        bench.connection.close()
        shown.close()


def _shown(bench: gate.Bench) -> duckdb.DuckDBPyConnection:
    shown = duckdb.connect(config={"threads": 1})
    for connection in (bench.connection, shown):
        connection.create_function("hashed", lambda text: oracle.keyed(text, gate.KEY), [str], str)  # type: ignore[arg-type]  # DuckDB reads Python types
        connection.execute(_LIMITS)
    shown.execute(clinic.TABLES)
    salary = next(c.type for c in gate.schema_of(shown, "src_people").columns if c.name == "salary")
    shown.execute(_SHOWN.format(salary=salary))
    return shown


def _wrong(bench: gate.Bench, shown: duckdb.DuckDBPyConnection, sql: str, outcome: Outcome) -> str:
    """What is wrong with an answer; an engine's error, which never leaves an owner, is looked through too."""
    try:
        prepared = bench.prepare(sql)
        with _in_time(bench.connection):
            answer: Any = bench.run(prepared, most=_ROWS_MAX + 1)
    except QueryRefused as refused:
        outcome.count(f"refused ({refused.code})")
        return _secret(str(refused))
    except duckdb.Error as error:
        outcome.count("too slow" if isinstance(error, duckdb.InterruptException) else "engine error")
        return _secret(str(error))
    outcome.count("answered")
    if len(answer) > _ROWS_MAX:
        outcome.count("too large to compare")
        return _secret(repr(answer))
    return _secret(repr(answer)) or ("" if prepared.aggregate else _unlike(shown, sql, answer, outcome))


@contextmanager
def _in_time(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Interrupt what the connection runs when its time is over."""
    timer = threading.Timer(_SECONDS, connection.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _secret(text: str) -> str:
    return f"a secret in {text[:300]}" if any(secret in text for secret in SECRETS) else ""


def _unlike(shown: duckdb.DuckDBPyConnection, sql: str, answer: list[Any], outcome: Outcome) -> str:
    """What differs from the oracle's answer. It casts without TRY, so it may fail where the gate answers NULL."""
    try:
        with _in_time(shown):
            theirs = shown.execute(sql).fetchmany(_ROWS_MAX + 1)
    except duckdb.Error:
        return ""
    outcome.count("compared")
    return difference(answer, theirs, ordered=is_ordered(sql))
