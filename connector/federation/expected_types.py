"""Expected schema of each fragment's answer: the Arrow types that the engine produces for the agreed column types.

An owner that answers with other types would change the meaning of all owners' values: numbers sent as text are compared
as text. So each answer is compared with its expected shape before any row is read (`answer_types`). A worker job
computes the shapes while the owners are asked; recent ones are cached. Loads neither engine nor Arrow.
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
_KEPT_CHARACTERS = 2**19  # of a statement, its columns and its schema; longer ones are not cached
_READS_MAX = 2**19  # characters of the columns that a statement reads; the engine needs seconds for that many

Reads = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # relations, with the names and types of their columns
Statement = tuple[str, Reads]
EngineSchema = tuple[str | None, TypeCasts]  # of a statement, as `tasks.shapes` has it


@dataclass(frozen=True, slots=True)
class Shape:
    """The expected shape of one answer.

    `schema`: its IPC message in base64. Empty: the statement does not fit the agreed types. None: the columns are too
    large to compute it. In both cases no answer is accepted.
    `counts`: indices of the columns that count rows.
    `binned`: a policy computes figures over bin edges, so a number may have another numeric type.
    `others`: casts for the merge. A sum of whole numbers is HUGEINT there but DECIMAL(38, 0) in Arrow, which divides
    and rounds differently.
    """

    schema: str | None
    counts: tuple[int, ...] = ()
    binned: bool = False
    others: TypeCasts = ()

    def to_json(self) -> list[Any]:
        """Return the checks of an answer as job arguments."""
        return [self.schema, list(self.counts), self.binned]


_UNKNOWN: EngineSchema = (None, ())


class Shapes:
    """Computes and caches the shapes of fragments."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: OrderedDict[Statement, EngineSchema] = OrderedDict()

    async def of(self, fragments: Sequence[Fragment], limits: Limits) -> Mapping[str, Shape]:
        """Map each fragment's id to its shape. `limits`: those of the merge job, which can reuse the engine."""
        statements = {one.id: _statement(one) for one in fragments}
        found: dict[Statement, EngineSchema] = {one: self._kept.get(one, _UNKNOWN) for one in statements.values()}
        if asked := [one for one, (schema, _) in found.items() if schema is None and _size(one[1]) <= _READS_MAX]:
            answered: Sequence[EngineSchema] = await self._pool.ask(await asyncio.to_thread(_job, asked, limits))
            for statement, said in zip(asked, answered, strict=True):
                found[statement] = schema, _ = said
                if schema is not None and len(statement[0]) + _size(statement[1]) + len(schema) < _KEPT_CHARACTERS:
                    put_recent(self._kept, statement, said, most=_KEPT)
        return {one.id: _shape(one, *found[statements[one.id]]) for one in fragments}


def _shape(fragment: Fragment, schema: str | None, others: TypeCasts) -> Shape:
    counts = tuple(fragment.outputs.index(name) for name in fragment.counts)
    return Shape(schema, counts, binned=fragment.aggregate_only, others=others)


def _statement(fragment: Fragment) -> Statement:
    """Return the cache key of a shape: SQL and columns. Key conditions choose rows, not types, so they are left out."""
    sql = fragment.sql
    for key in fragment.keys:
        sql = sql.replace(key.condition, "TRUE")
    reads = ((name, tuple((one.name, _engine_type(one.type)) for one in columns)) for name, columns in fragment.reads)
    return sql, tuple(reads)


def _engine_type(type_: str) -> str:
    """Return the type to declare to the engine: VARCHAR for an ENUM, whose values leave the engine as text."""
    return "VARCHAR" if family(type_) == ENUM else type_


def _size(reads: Reads) -> int:
    """Count the characters of the columns that a statement reads."""
    return sum(len(name) + len(kind) for _, columns in reads for name, kind in columns)


def _job(statements: Iterable[Statement], limits: Limits) -> Job:
    from policies.sql.allowed_functions import ENGINE_FUNCTIONS

    written = [_write_for_owner(*one) for one in statements]
    names = dict.fromkeys(name for _, names in written for name in names)
    return Job(
        kind="shapes",
        arguments={"statements": [sql for sql, _ in written]},
        recheck=Recheck(tuple(names), tuple(sorted(ENGINE_FUNCTIONS))),
        limits=limits,
        consumer="coordinator",
        once=True,
    )


def _write_for_owner(sql: str, reads: Reads) -> tuple[str, list[str]]:
    """Return the statement over empty relations with the agreed column types, and its relation names.

    Both are empty if the owner's gate would refuse the statement.
    """
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
    tables = ", ".join(f"{quote_identifier(name)} AS ({_empty_select(columns)})" for name, columns in reads)
    rest = text.removeprefix("WITH ")
    return f"WITH {tables}{' ' if rest == text else ', '}{rest}", [*names, *(name for name, _ in reads)]


def _empty_select(columns: Sequence[tuple[str, str]]) -> str:
    values = [f"TRY_CAST(NULL AS {kind}) AS {quote_identifier(name)}" for name, kind in columns]
    return f"SELECT {', '.join(values) or 'NULL AS none'}"
