"""Limit on the size of a query after output names are expanded, computed before the expansion.

Names multiply: `k + k AS a, a + a AS b, b + b AS c ...` doubles with every output. A query that would become too large
is refused before it fills memory. The binder limits the columns of `*`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.context import PlanningContext
from policies.contracts.columns import fold, make_distinct
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES, SETS
from policies.sql.limits import DEFAULT
from policies.sql.rewrite import list_nodes
from policies.sql.using import MergedColumn, UsingScope, expand_star

Names: TypeAlias = "Sequence[str]"  # of a query's outputs, folded; "" for an output without a name
MOST = DEFAULT.nodes  # nodes that may be added: as many as a query may have
_STAR = 4  # nodes of one output that `*` expands to
_CLAUSES = ("where", "group", "having", "qualify", "order", "distinct")
_AFTER = ("having", "qualify", "order")  # where an output's name wins over a column's


def check(tree: exp.Expr, planning: PlanningContext) -> NameExpansion:
    """Collect the names of a tree that the binder has bound.

    Raises:
        QueryInvalid: the tree would be too large with every output's name expanded.
    """
    expansion = NameExpansion(planning)
    expansion.visit_query(tree, {})
    return expansion


def size(node: exp.Expr) -> int:
    """The number of nodes of an expression."""
    return len(list_nodes(node))


def too_large_error() -> QueryInvalid:
    return QueryInvalid(
        f"expected at most {MOST} nodes after output names are expanded where they are used, got more; use output "
        "names less often, or split the query",
        code="query_too_large",
    )


@dataclass(frozen=True, slots=True)
class UsingJoin:
    """A join in a FROM with USING: its alias, the columns it compares (see `Merging.join`), and all merged so far."""

    join: exp.Expr
    alias: str
    pairs: Sequence[tuple[str, MergedColumn | None]]
    merged: Sequence[MergedColumn]


@dataclass(frozen=True, slots=True)
class SelectScope:
    """The names in one SELECT.

    sources: alias to the columns of that source.
    tested: aliases of SEMI and ANTI joins, whose columns are not visible after the join.
    joined: its joins, if one has USING.
    names: its outputs, as written.
    called: name given by AS to the place of the last output with it.
    """

    select: exp.Select
    sources: Mapping[str, Names]
    tested: frozenset[str]
    joined: Sequence[UsingJoin]
    names: Names
    called: Mapping[str, int]

    @property
    def merged(self) -> Sequence[MergedColumn]:
        """The columns that USING merges."""
        return _last_merged(self.joined)


class NameExpansion:
    """Visits a tree, counts the nodes that expansion adds, and collects the names of each SELECT.

    renamed: sources and WITH queries whose columns get new names (`AS x(a, b)`, or equal names), with these names.
    selects: the names of each SELECT.
    """

    def __init__(self, planning: PlanningContext) -> None:
        self.planning = planning
        self.added = 0
        self.renamed: list[tuple[exp.Expr, Names]] = []
        self.selects: list[SelectScope] = []

    def visit_query(self, node: exp.Expr, known: Mapping[str, Names]) -> Names:
        """The output names of a query. `known`: WITH query to its output names."""
        clause = node.args.get("with_")
        for cte in () if clause is None else clause.expressions:
            known = {**known, fold(cte.alias): self._note_renamed(cte, self.visit_query(cte.this, known))}
        if isinstance(node, exp.Subquery):
            return self.visit_query(node.this, known)
        if isinstance(node, SETS):
            names = self.visit_query(node.this, known)
            self.visit_query(node.args["expression"], known)
            return names
        return self._select(node, known) if isinstance(node, exp.Select) else ()

    def _select(self, select: exp.Select, known: Mapping[str, Names]) -> Names:
        sources = {fold(one.alias_or_name): self._source(one, known) for one in trees.sources(select)}
        columns = {name for names in sources.values() for name in names}
        joins = select.args.get("joins") or ()
        tested = frozenset(fold(join.this.alias_or_name) for join in joins if trees.kind(join) in trees.TESTS)
        joined = _using_joins(joins, sources)
        named: dict[str, int] = {}  # output name to its number of nodes
        plain: dict[str, int] = {}  # the same, without names that are also a column's
        called: dict[str, int] = {}
        outputs: list[tuple[str, int]] = []
        for output in select.expressions:
            if output.is_star:
                table = fold(output.table) if isinstance(output, exp.Column) else ""
                stars = (
                    sources.get(table, ())
                    if table
                    else [name for _, name, _ in expand_star(sources, tested, _last_merged(joined))]
                )
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
            self._add_group_keys(group, [found for _, found in outputs])
        names = [name for name, _ in outputs]
        self.selects.append(SelectScope(select, sources, tested, joined, names, called))
        return names

    def _source(self, source: exp.Expr, known: Mapping[str, Names]) -> Names:
        if isinstance(source, exp.Subquery):
            return self._note_renamed(source, self.visit_query(source.this, known))
        if not isinstance(source, exp.Table):
            return ()
        names = [fold(column.name) for column in self.planning.columns(source)] if source.db else ()
        return names or known.get(fold(source.name), ())

    def _note_renamed(self, source: exp.Expr, names: Names) -> Names:
        """The names of a source's columns after `AS x(a, b)`, made unique."""
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
        """The number of nodes of an expression or clause with its names expanded. Counts what expansion adds."""
        found, more, stack = 0, 0, [node]
        while stack:
            one = stack.pop()
            if isinstance(one, QUERIES):
                self.visit_query(one, known)
            elif isinstance(one, exp.Column) and not one.table and fold(one.name) in named:
                more += named[fold(one.name)]
            else:
                found += 1
                stack.extend(one.iter_expressions())
        self._add_nodes(more)
        return found + more

    def _add_group_keys(self, group: exp.Expr, sizes: Sequence[int]) -> None:
        """Count the expansion of GROUP BY ALL and of keys given by place."""
        if group.args.get("all"):
            self._add_nodes(sum(sizes))
        for key in group.find_all(exp.Literal):
            if not key.is_string and str(key.this).isdecimal() and 0 < int(key.this) <= len(sizes):
                self._add_nodes(sizes[int(key.this) - 1])

    def _add_nodes(self, nodes: int) -> None:
        self.added += nodes
        if self.added > MOST:
            raise too_large_error()


def _using_joins(joins: Sequence[exp.Expr], sources: Mapping[str, Names]) -> tuple[UsingJoin, ...]:
    if not any(join.args.get("using") for join in joins):
        return ()
    first, *others = sources
    merging = UsingScope(first, sources)
    # The binder refuses an alias that is used twice.
    return tuple(
        UsingJoin(join, alias, merging.join(join, alias), merging.merged)
        for join, alias in zip(joins, others, strict=False)
    )


def _last_merged(joined: Sequence[UsingJoin]) -> Sequence[MergedColumn]:
    return joined[-1].merged if joined else ()
