"""Runs random queries through the gate and looks for planted secrets in answers, errors and the log."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import duckdb

from policies.errors import QueryRefused
from tests.support import clinic, gate, oracle
from tests.support.random_sql import Queries

SECRETS = (clinic.SECRET, str(clinic.SECRET_NUMBER), "922337203685477")
# What the policy shows, carried out by hand; the clinic's other rows do not exist for it.
_SHOWN = """
CREATE TABLE people AS SELECT id, hashed(name) AS name, CAST(NULL AS VARCHAR) AS phone, country, age,
    CAST(round(salary, -3) AS {salary}) AS salary, joined, note FROM src_people WHERE country IN ('DE', 'FR');
CREATE TABLE visits AS SELECT id, person_id, ward, remark, code FROM src_visits WHERE ward = 3 OR consent = 'broad';
"""


@dataclass
class Outcome:
    """How many queries ended how, the first few leaks, and answers that differ from the oracle's."""

    ended: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run(count: int, *, seed: int) -> Outcome:
    """Try `count` queries of this seed."""
    bench, outcome, log = clinic.bench(), Outcome(), _Log()
    shown = _shown(bench)
    logging.getLogger().addHandler(log)
    try:
        queries = Queries(seed)
        for _ in range(count):
            _try(bench, shown, queries.query(), outcome)
        if any(secret in line for line in log.lines for secret in SECRETS):
            outcome.leaks.append("the log")
    finally:
        logging.getLogger().removeHandler(log)
        bench.connection.close()
        shown.close()
    return outcome


def _shown(bench: gate.Bench) -> duckdb.DuckDBPyConnection:
    connection = bench.connection
    connection.create_function("hashed", lambda text: oracle.keyed(text, gate.KEY), [str], str)  # type: ignore[arg-type]  # DuckDB reads Python types
    shown = duckdb.connect(config={"threads": 1})
    shown.create_function("hashed", lambda text: oracle.keyed(text, gate.KEY), [str], str)  # type: ignore[arg-type]  # the same
    shown.execute(clinic.TABLES)
    salary = next(c.type for c in gate.schema_of(shown, "src_people").columns if c.name == "salary")
    shown.execute(_SHOWN.format(salary=salary))
    return shown


def _try(bench: gate.Bench, shown: duckdb.DuckDBPyConnection, sql: str, outcome: Outcome) -> None:
    try:
        prepared = bench.prepare(sql)
        answer: Any = bench.run(prepared)
        outcome.ended["answered"] += 1
    except QueryRefused as refused:
        outcome.ended[refused.code] += 1
        _look(sql, str(refused), outcome)
        return
    except duckdb.Error as error:
        outcome.ended["engine error"] += 1
        _look(sql, str(error), outcome)  # stricter than needed: this text never leaves an owner
        return
    _look(sql, repr(answer), outcome)
    if not prepared.aggregate:
        _compare(sql, answer, shown, outcome)


def _shape(row: tuple[Any, ...]) -> str:
    """A row as text; fractions to ten digits, because the order of addition is the engine's."""
    return repr([f"{value:.10g}" if isinstance(value, float) else value for value in row])


def _look(sql: str, text: str, outcome: Outcome) -> None:
    if any(secret in text for secret in SECRETS):
        outcome.leaks.append(f"{sql} -> {text[:300]}")


def _compare(sql: str, answer: list[Any], shown: duckdb.DuckDBPyConnection, outcome: Outcome) -> None:
    """The oracle casts without TRY, so it may fail where the gate answers NULL; then there is nothing to compare."""
    if any(word in sql for word in ("row_number", "any_value")):  # ties are broken as the engine likes
        return
    try:
        theirs = shown.execute(sql).fetchall()
    except duckdb.Error:
        return
    outcome.ended["compared"] += 1
    if sorted(map(_shape, answer)) != sorted(map(_shape, theirs)):
        outcome.differences.append(sql)
