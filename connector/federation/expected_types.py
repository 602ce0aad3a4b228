"""What the answer to a fragment must look like: the Arrow types that the engine gives over columns of the agreed types,
and its own where Arrow has none like them.

An owner that answers other types would change what all owners' values mean: numbers that come as text are compared as
text. So each answer is compared with its shape before one of its rows is read (`answer_types`). An engine
of ours says what that is, in a job beside the asking; what it said of late is kept. Loads neither engine nor Arrow.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Recheck
from connector.federation.planner.model import Fragment, TypeCasts
from connector.infra.concurrency.recent_keys import put_recent
from policies.contracts.columns import ENUM, family, quote_identifier

_KEPT = 128
_KEPT_CHARACTERS = 2**19  # of a statement, its columns and its schema; what is longer is asked for each time
_READS_MAX = 2**19  # characters of the columns that a statement reads: the engine takes some seconds for as many

Reads = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # relations, with the names and types of their columns
Statement = tuple[str, Reads]
Said = tuple[str | None, TypeCasts]  # of a statement, as `tasks.shapes` has it


@dataclass(frozen=True, slots=True)
class Shape:
    """An answer's `schema`, as its IPC message in base64: empty where the statement does not fit the agreed types, None
    where these are too large to say; no answer is right then. `counts`: columns that count rows, by their numbers.
    `binned`: a policy makes figures over edges of bins of the values, so that a number may be one of another type.
    `others`: what it gets back where it is merged: a sum of whole numbers is HUGEINT there and DECIMAL(38, 0) here,
    which would be divided and rounded otherwise."""

    schema: str | None
    counts: tuple[int, ...] = ()
    binned: bool = False
    others: TypeCasts = ()

    def to_json(self) -> list[Any]:
        """What an answer is judged by, as jobs carry it."""
        return [self.schema, list(self.counts), self.binned]


_UNKNOWN: Said = (None, ())


class Shapes:
    """The shapes of fragments."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: OrderedDict[Statement, Said] = OrderedDict()

    async def of(self, fragments: Sequence[Fragment], limits: Limits) -> Mapping[str, Shape]:
        """Each fragment's shape by its id. `limits`: those of the job that will merge, which finds the engine ready."""
        statements = {one.id: _statement(one) for one in fragments}
        found: dict[Statement, Said] = {one: self._kept.get(one, _UNKNOWN) for one in statements.values()}
        if asked := [one for one, (schema, _) in found.items() if schema is None and _size(one[1]) <= _READS_MAX]:
            answered: Sequence[Said] = await self._pool.ask(await asyncio.to_thread(_job, asked, limits))
            for statement, said in zip(asked, answered, strict=True):
                found[statement] = schema, _ = said
                if schema is not None and len(statement[0]) + _size(statement[1]) + len(schema) < _KEPT_CHARACTERS:
                    put_recent(self._kept, statement, said, most=_KEPT)
        return {one.id: _shape(one, *found[statements[one.id]]) for one in fragments}


def _shape(fragment: Fragment, schema: str | None, others: TypeCasts) -> Shape:
    counts = tuple(fragment.outputs.index(name) for name in fragment.counts)
    return Shape(schema, counts, binned=fragment.aggregate_only, others=others)


def _statement(fragment: Fragment) -> Statement:
    """What decides on a shape. Keys choose rows, and no types."""
    sql = fragment.sql
    for key in fragment.keys:
        sql = sql.replace(key.condition, "TRUE")
    reads = ((name, tuple((one.name, _kind(one.type)) for one in columns)) for name, columns in fragment.reads)
    return sql, tuple(reads)


def _kind(type_: str) -> str:
    """A type as the engine is asked for it. Values of an ENUM are texts wherever they leave it, and its words may be
    many thousands."""
    return "VARCHAR" if family(type_) == ENUM else type_


def _size(reads: Reads) -> int:
    """Characters of the columns that a statement reads."""
    return sum(len(name) + len(kind) for _, columns in reads for name, kind in columns)


def _job(statements: Iterable[Statement], limits: Limits) -> Job:
    from policies.sql.allowed_functions import ENGINE_FUNCTIONS

    written = [_written(*one) for one in statements]
    names = dict.fromkeys(name for _, names in written for name in names)
    return Job(
        kind="shapes",
        arguments={"statements": [sql for sql, _ in written]},
        recheck=Recheck(tuple(names), tuple(sorted(ENGINE_FUNCTIONS))),
        limits=limits,
        consumer="coordinator",
        once=True,
    )


def _written(sql: str, reads: Reads) -> tuple[str, list[str]]:
    """The statement as an owner's engine gets it, over columns of the agreed types without their rows, and the
    relations in it; empty where the owner's gate would not take it."""
    from sqlglot import exp

    from connector.federation.planner import sql_text
    from policies.errors import QueryRefused
    from policies.sql import parse as sql_parse
    from policies.sql import rewrite

    try:
        tree = sql_parse.parse(sql)
    except QueryRefused:
        return "", []
    nodes = rewrite.list_nodes(tree)
    names = [node.alias if isinstance(node, exp.CTE) else node.name for node in nodes
             if isinstance(node, exp.CTE | exp.Table)]  # fmt: skip
    rewrite.make_safe(nodes)
    text = sql_text.write(tree, spend=True)
    tables = ", ".join(f"{quote_identifier(name)} AS ({_no_rows(columns)})" for name, columns in reads)
    rest = text.removeprefix("WITH ")
    return f"WITH {tables}{' ' if rest == text else ', '}{rest}", [*names, *(name for name, _ in reads)]


def _no_rows(columns: Sequence[tuple[str, str]]) -> str:
    values = [f"TRY_CAST(NULL AS {kind}) AS {quote_identifier(name)}" for name, kind in columns]
    return f"SELECT {', '.join(values) or 'NULL AS none'}"
