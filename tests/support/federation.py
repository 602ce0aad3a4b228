"""A federation in one process, without network or workers: the planner's plans against one DuckDB with all the data.

Owners are plain DuckDB databases. A fragment passes its owner's whole gate, under contracts that hide nothing, and runs
in that owner's database only; results go through Arrow; the residual passes the re-check of the engine's parser, and
runs over the results only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
from sqlglot import exp, parse_one

from connector.engine.worker.read.duckdb_engine import others_than_arrow
from connector.federation.planner.model import (
    FederatedPlan,
    Fragment,
    KeyFilter,
    Mode,
    TableColumn,
    TableInfo,
    TypeCasts,
)
from connector.federation.planner.planner import merge_sql, plan
from policies.sql import engine_recheck
from policies.sql.allowed_functions import ENGINE_FUNCTIONS
from tests.support import data, gate


@dataclass(slots=True)
class Ran:
    """An answer, its plan, and what travelled."""

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]
    plan: FederatedPlan
    nbytes: int
    sent: dict[str, int] = field(default_factory=dict)


class Federation:
    """Owners' databases, one that has everything (`central`), and the asker's own, in which nothing stays (`here`)."""

    def __init__(self, *owners: str, across: bool = True) -> None:
        self.across = across
        self.owners = {owner: duckdb.connect(":memory:", config={"threads": 1}) for owner in owners}
        self.central = duckdb.connect(":memory:", config={"threads": 1})
        self.here = duckdb.connect(":memory:", config={"threads": 1})
        self.tables: dict[tuple[str, str], TableInfo] = {}
        self.gates = {owner: gate.Bench(database) for owner, database in self.owners.items()}

    def close(self) -> None:
        for database in (*self.owners.values(), self.central, self.here):
            database.close()

    def add(self, owner: str, dataset: str, table: Any, *, shown: str = "*", **more: Any) -> None:
        """Give an owner a table (anything that DuckDB can read by name), and the central database too.

        `shown`: what of it, for types that the table cannot have.
        """
        self.owners[owner].register("given", table)
        self.owners[owner].execute(f"CREATE TABLE {dataset} AS SELECT {shown} FROM given")
        self.owners[owner].unregister("given")
        self.gates[owner].add("", dataset, dataset, gate.contract(gate.schema_of(self.owners[owner], dataset)))
        self.central.execute(f"CREATE SCHEMA IF NOT EXISTS {owner}")
        self.central.register("given", table)
        self.central.execute(f"CREATE TABLE {owner}.{dataset} AS SELECT {shown} FROM given")
        made = self.central.sql(f"SELECT * FROM {owner}.{dataset}")
        columns = columns_of(made)
        self.central.unregister("given")
        rows = self.central.sql(f"SELECT count(*) FROM {owner}.{dataset}").fetchall()[0][0]
        self.tables[owner, dataset] = TableInfo(
            owner, dataset, columns, agreement=f"{owner}/{dataset}", rows=rows, **more
        )

    def unite(self) -> None:
        """The central meaning of `"all".x`."""
        self.central.execute('CREATE SCHEMA IF NOT EXISTS "all"')
        for dataset in {name for _, name in self.tables}:
            shares = [f"SELECT * FROM {owner}.{name}" for owner, name in self.tables if name == dataset]
            self.central.execute(f'CREATE OR REPLACE VIEW "all".{dataset} AS {" UNION ALL ".join(shares)}')

    def ask(self, sql: str, *, mode: Mode = Mode.FULL) -> Ran:
        """The federated answer."""
        return self.run(plan(sql, self.tables, mode=mode, across_agreements=self.across))

    def run(self, made: FederatedPlan) -> Ran:
        """What a plan gives."""
        with self.here.cursor() as here:  # a connection of its own, which costs far less than a database
            sent: dict[str, int] = {}
            rows: dict[str, int] = {}
            others: dict[str, TypeCasts] = {}
            keys_sent = 0
            for fragment in ordered(made.fragments):
                table, others[fragment.id], nbytes = self._at_owner(fragment, here, made)
                keys_sent += nbytes
                assert [name.lower() for name in table.column_names] == [name.lower() for name in fragment.outputs]
                sent[fragment.id], rows[fragment.id] = len(data.stream(table)), table.num_rows
                here.register(fragment.id, table)
            sql = merge_sql(made, others)
            told = here.execute(engine_recheck.RECHECK_SQL, [sql]).fetchall()[0][0]
            engine_recheck.check(told, names=[*sent, *made.tables, *made.ctes], functions=ENGINE_FUNCTIONS)
            found = here.sql(sql)
            if made.passed:  # nobody would have run the residual
                merged = found.to_arrow_table()
                assert merged.schema.types == table.schema.types
                assert merged.column_names == list(made.columns)
                assert merged.equals(table.rename_columns(merged.column_names))
            return Ran(
                list(found.columns),
                list(map(str, found.types)),
                found.fetchall(),
                made,
                sum(sent.values()) + keys_sent,
                rows,
            )

    def _at_owner(
        self, fragment: Fragment, here: duckdb.DuckDBPyConnection, made: FederatedPlan
    ) -> tuple[pa.Table, TypeCasts, int]:
        """One fragment's rows, their types that Arrow has not, and the bytes of the keys that were sent for it."""
        with self.owners[fragment.owner].cursor() as cursor:
            sent, brought = 0, []
            for key in fragment.keys:
                keys = values(here, key, made)
                cursor.register(key.name, keys)
                brought.append(gate.CallerTable(key.name, key.name, ("k",)))
                sent += len(data.stream(keys))
            prepared = self.gates[fragment.owner].prepare(fragment.sql, keys=brought)
            self.gates[fragment.owner].recheck(prepared)
            found = cursor.sql(prepared.sql, params=prepared.params or None)
            return found.to_arrow_table(), [*others_than_arrow(found.types).items()], sent

    def expected(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The types and rows of the central answer; a cast that fails is NULL there too."""
        tree = parse_one(sql, read="duckdb")
        for cast in list(tree.find_all(exp.Cast)):
            if type(cast) is exp.Cast:
                cast.replace(exp.TryCast(this=cast.this, to=cast.args["to"], safe=True))
        found = self.central.sql(tree.sql(dialect="duckdb"))
        return list(map(str, found.types)), found.fetchall()


def values(here: duckdb.DuckDBPyConnection, key: KeyFilter, made: FederatedPlan) -> pa.Table:
    """The keys of a fragment, from the answers that are here."""
    parts = " UNION ALL ".join(f'SELECT "{key.output}" AS k FROM "{one.id}"' for one in made.tables[key.source])
    return here.sql(f"SELECT DISTINCT k FROM ({parts}) WHERE k IS NOT NULL ORDER BY k").to_arrow_table()


def columns_of(relation: duckdb.DuckDBPyRelation) -> tuple[TableColumn, ...]:
    """What the planner knows of a relation's columns."""
    return tuple(TableColumn(name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True))


def ordered(fragments: Sequence[Fragment]) -> list[Fragment]:
    """The fragments so that each comes after those whose keys it takes."""
    found: list[Fragment] = []
    left = list(fragments)
    while left:
        waiting = {one.table for one in left}
        ready = [one for one in left if not any(key.source in waiting for key in one.keys)]
        assert ready, "fragments wait for each other"
        found += ready
        left = [one for one in left if one not in ready]
    return found


def difference(got: Sequence[tuple[Any, ...]], wanted: Sequence[tuple[Any, ...]], *, ordered: bool = False) -> str:
    """What differs between two answers, as a sentence; empty where nothing does. Floats: 1e-9 of their size."""
    if len(got) != len(wanted):
        return f"{len(got)} rows for {len(wanted)}"
    left, right = (list(got), list(wanted)) if ordered else (sorted(got, key=_key), sorted(wanted, key=_key))
    for one, other in zip(left, right, strict=True):
        if len(one) != len(other) or not all(_same(a, b) for a, b in zip(one, other, strict=True)):
            return f"{one} for {other}"
    return ""


def _key(row: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(_rank(value) for value in row)


def _rank(value: Any) -> tuple[int, Any]:
    if value is None:
        return (0, 0)
    if isinstance(value, bool | int | float | Decimal):
        number = float(value)
        return (1, float("inf") if math.isnan(number) else float(f"{number:.6g}"))
    return (2, str(value))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float | Decimal) and isinstance(other, int | float | Decimal):
        a, b = float(one), float(other)
        return (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return bool(one == other)
