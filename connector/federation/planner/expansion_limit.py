"""How large a question becomes when what it names is written out, which is reckoned before it is done.

Names multiply: `k + k AS a, a + a AS b, b + b AS c ...` doubles with every output, and `*` over two copies of a WITH
query has twice its columns. A question that would become larger than one may be is refused before it fills memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.context import Planning
from policies.contracts.columns import fold, make_distinct
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES, SETS
from policies.sql.limits import DEFAULT
from policies.sql.rewrite import list_nodes
from policies.sql.using import MergedColumn, UsingScope, expand_star

Names: TypeAlias = "Sequence[str]"  # of a query's outputs, folded; "" where one has none
MOST = DEFAULT.nodes  # parts that may be added: as many as a question may have
_STAR = 4  # nodes of an output that is written out for it
_SHOWN = 50_000  # columns that `*` may stand for, all of them together: wide tables are many at once
_CLAUSES = ("where", "group", "having", "qualify", "order", "distinct")
_AFTER = ("having", "qualify", "order")  # where an output's name goes before a column's


def check(tree: exp.Expr, planning: Planning) -> Reckoned:
    """What is known of the names in a tree that is not bound yet; QueryInvalid if the tree would grow too large with
    every `*` and every output's name written out."""
    reckoned = Reckoned(planning)
    reckoned.query(tree, {})
    return reckoned


def size(node: exp.Expr) -> int:
    """How many parts an expression has."""
    return len(list_nodes(node))


def refusal() -> QueryInvalid:
    return QueryInvalid(
        f"with the names of its outputs written out where they are used, the question has more than {MOST} "
        "parts; name outputs less often, or split the question",
        code="query_too_large",
    )


@dataclass(frozen=True, slots=True)
class Joined:
    """A join of a FROM with USING in it: what it is joined with, what its own USING compares (see `Merging.join`), and
    what is merged from then on."""

    join: exp.Expr
    alias: str
    pairs: Sequence[tuple[str, MergedColumn | None]]
    merged: Sequence[MergedColumn]


@dataclass(frozen=True, slots=True)
class Block:
    """What a SELECT reads and gives: the columns of its sources, by alias; which of these a join only tests, and its
    joins where USING is among them; the names of its outputs, as they are written; and of names that are given by AS,
    the place of the last output called so."""

    select: exp.Select
    sources: Mapping[str, Names]
    tested: frozenset[str]
    joined: Sequence[Joined]
    names: Names
    called: Mapping[str, int]

    @property
    def merged(self) -> Sequence[MergedColumn]:
        """What USING makes one of."""
        return _last(self.joined)


class Reckoned:
    """`renamed`: sources and WITH queries whose columns get names (`AS x(a, b)`, or where two are called alike), with
    all of their columns' names;
    `selects`: what is known of each SELECT."""

    def __init__(self, planning: Planning) -> None:
        self.planning = planning
        self.added = self.shown = 0
        self.renamed: list[tuple[exp.Expr, Names]] = []
        self.selects: list[Block] = []

    def query(self, node: exp.Expr, known: Mapping[str, Names]) -> Names:
        """The outputs of a query; `known` are those of the WITH queries that it may read."""
        clause = node.args.get("with_")
        for cte in () if clause is None else clause.expressions:
            known = {**known, fold(cte.alias): self._renamed(cte, self.query(cte.this, known))}
        if isinstance(node, exp.Subquery):
            return self.query(node.this, known)
        if isinstance(node, SETS):
            names = self.query(node.this, known)
            self.query(node.args["expression"], known)
            return names
        return self._select(node, known) if isinstance(node, exp.Select) else ()

    def _select(self, select: exp.Select, known: Mapping[str, Names]) -> Names:
        sources = {fold(one.alias_or_name): self._source(one, known) for one in trees.sources(select)}
        columns = {name for names in sources.values() for name in names}
        joins = select.args.get("joins") or ()
        tested = frozenset(fold(join.this.alias_or_name) for join in joins if trees.kind(join) in trees.TESTS)
        joined = _joined(joins, sources)
        named: dict[str, int] = {}  # the sizes of outputs with a name
        plain: dict[str, int] = {}  # of those whose name is no column's
        called: dict[str, int] = {}
        outputs: list[tuple[str, int]] = []
        for output in select.expressions:
            if output.is_star:
                table = fold(output.table) if isinstance(output, exp.Column) else ""
                stars = (
                    sources.get(table, ())
                    if table
                    else [name for _, name, _ in expand_star(sources, tested, _last(joined))]
                )
                self._show(len(stars))
                outputs += [(name, _STAR) for name in stars]
                continue
            found = self._size(output.unalias(), plain, known)
            outputs.append((fold(output.output_name), found))
            if isinstance(output, exp.Alias):
                named[fold(output.alias)] = found
                called[fold(output.alias)] = len(outputs)
                if fold(output.alias) not in columns:
                    plain[fold(output.alias)] = found
        for name in _CLAUSES:
            if (clause := select.args.get(name)) is not None:
                self._size(clause, named if name in _AFTER else plain, known)
        for join in joins:
            if (on := join.args.get("on")) is not None:
                self._size(on, plain, known)
        if (group := select.args.get("group")) is not None:
            self._group(group, [found for _, found in outputs])
        names = [name for name, _ in outputs]
        self.selects.append(Block(select, sources, tested, joined, names, called))
        return names

    def _source(self, source: exp.Expr, known: Mapping[str, Names]) -> Names:
        if isinstance(source, exp.Subquery):
            return self._renamed(source, self.query(source.this, known))
        if not isinstance(source, exp.Table):
            return ()
        names = [fold(column.name) for column in self.planning.columns(source)] if source.db else ()
        return names or known.get(fold(source.name), ())

    def _renamed(self, source: exp.Expr, names: Names) -> Names:
        """The names, the first of them as `AS x(a, b)` calls them, each once."""
        alias = source.args.get("alias")
        given = [fold(name.name) for name in alias.args.get("columns") or ()] if alias is not None else []
        called = [name for name in names if name]
        if not given and len(set(called)) == len(called):
            return names
        found = [*given, *names[len(given) :]]
        found = make_distinct([name or f"_col_{place}" for place, name in enumerate(found)])
        self.renamed.append((source, found))
        return found

    def _size(self, node: exp.Expr, named: Mapping[str, int], known: Mapping[str, Names]) -> int:
        """How many parts an expression or a clause has with the names in it written out, which is what is added."""
        found, more, stack = 0, 0, [node]
        while stack:
            one = stack.pop()
            if isinstance(one, QUERIES):
                self.query(one, known)
            elif isinstance(one, exp.Column) and not one.table and fold(one.name) in named:
                more += named[fold(one.name)]
            else:
                found += 1
                stack.extend(one.iter_expressions())
        self._add(more)
        return found + more

    def _group(self, group: exp.Expr, sizes: Sequence[int]) -> None:
        """GROUP BY ALL, and keys that are given by their places."""
        if group.args.get("all"):
            self._add(sum(sizes))
        for key in group.find_all(exp.Literal):
            if not key.is_string and str(key.this).isdecimal() and 0 < int(key.this) <= len(sizes):
                self._add(sizes[int(key.this) - 1])

    def _show(self, columns: int) -> None:
        self.shown += columns
        if self.shown > _SHOWN:
            raise QueryInvalid(
                f"with every `*` written out, the question has more than {_SHOWN} columns; name those that it needs",
                code="query_too_large",
            )

    def _add(self, nodes: int) -> None:
        self.added += nodes
        if self.added > MOST:
            raise refusal()


def _joined(joins: Sequence[exp.Expr], sources: Mapping[str, Names]) -> tuple[Joined, ...]:
    if not any(join.args.get("using") for join in joins):
        return ()
    first, *others = sources
    merging = UsingScope(first, sources)
    # One alias twice is for the binder to refuse.
    return tuple(
        Joined(join, alias, merging.join(join, alias), merging.merged)
        for join, alias in zip(joins, others, strict=False)
    )


def _last(joined: Sequence[Joined]) -> Sequence[MergedColumn]:
    return joined[-1].merged if joined else ()
