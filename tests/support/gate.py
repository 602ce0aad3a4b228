"""Builders for agreements and contracts, and a bench that runs a query through the whole gate on DuckDB."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import duckdb

from policies.contracts.compile import compile_contract
from policies.contracts.contract import Column, DataContract, TableSchema
from policies.enforce.gate import CallerTable, GatedDataset, PreparedQuery, prepare
from policies.model import Atom, Connective, Constraint, Duty, Group, Kind, Literal, Policy, Rule
from policies.sql import engine_recheck
from policies.vocabulary.terms import expand

QUERY = expand("ds:query")
_ROWS_MAX = 10_000_000  # more than any test asks for
KEY = b"0123456789abcdef0123456789abcdef"


def atom(left: str, operator: str, *values: str, datatype: str = "") -> Atom:
    """`atom("ds:rowQuota", "lteq", "10")`"""
    return Atom(expand(left), operator, tuple(Literal(v, datatype) for v in values), many=len(values) > 1)


def either(*members: Constraint) -> Group:
    return Group(Connective.OR, members)


def exactly_one(*members: Constraint) -> Group:
    return Group(Connective.XONE, members)


def mask(method: str, *columns: str, argument: str | None = None) -> Duty:
    named = [atom("ds:column", "isAnyOf", *columns), atom("ds:method", "eq", method)]
    if argument is not None:
        named.append(atom("ds:argument", "eq", argument))
    return Duty(expand("ds:mask"), tuple(named))


def agreement(
    *constraints: Constraint,
    duties: Sequence[Duty] = (),
    prohibitions: Sequence[Rule] = (),
    obligations: Sequence[Duty] = (),
    action: str = "ds:query",
) -> Policy:
    """An agreement of 1 January 2026 with one permission."""
    return Policy(
        kind=Kind.AGREEMENT,
        id="urn:example:agreement",
        permissions=(Rule(expand(action), constraints, tuple(duties)),),
        prohibitions=tuple(prohibitions),
        obligations=tuple(obligations),
        target="urn:example:dataset",
        assigner="did:web:clinic.example",
        assignee="did:web:lab.example",
        timestamp="2026-01-01T00:00:00Z",
    )


def schema(**types: str) -> TableSchema:
    return TableSchema(tuple(Column(name, type_) for name, type_ in types.items()))


def schema_of(connection: duckdb.DuckDBPyConnection, table: str) -> TableSchema:
    described = connection.execute(f'DESCRIBE "{table}"').fetchall()
    return TableSchema(tuple(Column(row[0], row[1]) for row in described))


def contract(of: TableSchema, *constraints: Constraint, duties: Sequence[Duty] = ()) -> DataContract:
    return compile_contract(agreement(*constraints, duties=duties), of, permission=0)


class Bench:
    """A DuckDB connection with datasets under contracts; `ask` goes the whole way of a query."""

    def __init__(self, connection: duckdb.DuckDBPyConnection | None = None) -> None:
        self.connection = connection or duckdb.connect(config={"threads": 1})
        self.datasets: list[GatedDataset] = []
        self._names = itertools.count()

    def token(self) -> str:
        return f"t{next(self._names):06x}"

    def restart(self) -> None:
        """The same names again: what is written alike afterwards is the same text."""
        self._names = itertools.count()

    def add(self, owner: str, table: str, relation: str, made: DataContract) -> GatedDataset:
        dataset = GatedDataset((owner, table), relation, made, id=f"urn:{owner}:{table}")
        self.datasets.append(dataset)
        return dataset

    def prepare(self, sql: str, *, purpose: str | None = None, keys: Sequence[CallerTable] = ()) -> PreparedQuery:
        return prepare(sql, self.datasets, action=QUERY, purpose=purpose, token=self.token, mask_key=KEY, keys=keys)

    def recheck(self, prepared: PreparedQuery) -> None:
        found = self.connection.execute(engine_recheck.RECHECK_SQL, [prepared.sql]).fetchone()
        assert found is not None
        engine_recheck.check(found[0], names=prepared.names, functions=prepared.functions)

    def run(self, prepared: PreparedQuery, *, most: int = _ROWS_MAX) -> list[tuple[Any, ...]]:
        """The rows of the answer, at most `most` of them."""
        self.recheck(prepared)
        return self.connection.execute(prepared.sql, prepared.params).fetchmany(most)

    def ask(self, sql: str, *, purpose: str | None = None, keys: Sequence[CallerTable] = ()) -> list[tuple[Any, ...]]:
        """The rows of the answer. Raises QueryRefused, or DuckDB's error (which never leaves a real owner)."""
        return self.run(self.prepare(sql, purpose=purpose, keys=keys))
