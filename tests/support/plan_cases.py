"""Planner cases as text: `tests/cases/sql/<rule>.sql`, each case a sentence, the question before, the outcome after.

-- A sentence that says what the rule does here.
SELECT ...;                 before
-- here
SELECT ...;                 the residual, or the tree after a rule that only rewrites
-- f0.north
SELECT ...;                 what that fragment asks
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlglot import exp, parse_one
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers

from connector.federation.planner import sql_text
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.model import GridInfo, Partition, TableColumn, TableInfo, Tables
from connector.federation.planner.planner import plan
from connector.federation.planner.rules import RULES, apply

FOLDER = Path(__file__).parent.parent / "cases" / "sql"


@dataclass(frozen=True, slots=True)
class Case:
    rule: str
    name: str
    before: str
    after: dict[str, str]


def cases() -> Iterator[Case]:
    """Every case of every rule that has a file."""
    for path in sorted(FOLDER.glob("*.sql")):
        yield from read(path.stem, path.read_text())


def read(rule: str, text: str) -> Iterator[Case]:
    for block in text.strip().split("\n\n"):
        name, before, after, label = "", "", {}, ""
        for part in block.split(";"):
            lines = [line.strip() for line in part.strip().splitlines() if line.strip()]
            notes = [line.removeprefix("--").strip() for line in lines if line.startswith("--")]
            sql = " ".join(line for line in lines if not line.startswith("--"))
            if not sql:
                continue
            if not before:
                name, before = " ".join(notes), sql
            else:
                label = notes[-1] if notes else "here"
                after[label] = sql
        yield Case(rule, name, before, after)


def outcome(case: Case) -> dict[str, str]:
    """What the planner makes of a case, in the same form."""
    tables = schema()
    if case.rule in (
        "prune_exists",
        "union_all_owners",
        "qualify",
        "name_outputs",
        "inline_ctes",
        "flatten_conditions",
        "infer_predicates",
        "simplify_outer_joins",
        "merge_subqueries",
        "pushdown_predicates",
    ):
        planning, tree = PlanningContext(tables, across_agreements=True), sql_text.read(case.before)
        for rule in RULES:
            tree = apply(rule, tree, planning)
            if rule == case.rule:
                break
        return {"here": sql_text.write_readable(tree)}
    made = plan(case.before, tables, across_agreements=True)
    return {"here": made.residual} | {one.id: one.sql for one in made.fragments}


def canonical(sql: str) -> str:
    """SQL without differences of writing: names unquoted and in small letters, casts in one form."""
    tree = normalize_identifiers(parse_one(sql, read="duckdb"), dialect="duckdb")
    for name in tree.find_all(exp.Identifier):
        name.set("quoted", False)
    for alias in list(tree.find_all(exp.Alias)):
        if isinstance(alias.this, exp.Column) and alias.this.name == alias.alias:
            alias.replace(alias.this)
    for table in tree.find_all(exp.Table):
        if table.alias == table.name:
            table.set("alias", None)
    return tree.sql(dialect="duckdb", comments=False)


def schema() -> Tables:
    """Patients at three owners, by birth; visits cut by patient; drugs and trials; a census of aggregates; codes."""
    found: dict[tuple[str, str], TableInfo] = {}

    def add(owner: str, dataset: str, columns: str, **more: Any) -> None:
        shown = tuple(TableColumn(*part.split()) for part in columns.split(", "))
        found[owner, dataset] = TableInfo(owner, dataset, shown, agreement=f"{owner}/{dataset}", **more)

    keys: dict[str, Any] = {"shares_keys": True, "takes_keys": True}
    for owner in ("north", "south", "west"):
        cut = Partition("patient", ("id",))
        add(owner, "patients", "id BIGINT, age INTEGER, ward VARCHAR, weight DOUBLE", rows=1000, partition=cut, **keys)
        add(owner, "visits", "patient BIGINT, day DATE, drug INTEGER, cost DECIMAL(10,2)", rows=9000,
            partition=Partition("patient", ("patient",)), **keys)  # fmt: skip
        add(owner, "codes", "code INTEGER, word VARCHAR", rows=50, content="codes", **keys)
        add(owner, "census", "age INTEGER, sex VARCHAR, income DOUBLE", rows=5000,
            grid=GridInfo(("age", "sex"), ("income",), 10, "person"))  # fmt: skip
    add("north", "drugs", "drug INTEGER, name VARCHAR, maker INTEGER, price DECIMAL(10,2)", rows=200, **keys)
    add("north", "makers", "maker INTEGER, country VARCHAR", rows=20, **keys)
    add("south", "trials", "drug INTEGER, patient BIGINT, dose DOUBLE, started DATE", rows=100000, **keys)
    add("west", "private", "drug INTEGER, note VARCHAR", rows=10)
    return found
