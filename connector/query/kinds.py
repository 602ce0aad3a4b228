"""Types that Arrow does not carry: which outputs of a fragment had one, and must get it back here.

The engine hands HUGEINT (every sum of whole numbers) over as DECIMAL(38, 0) and UUID as text. A residual that took
them for these would round or sort differently than one engine over all data. Nothing else is inferred: where the type
of an expression is not known to be one of these, it stays as it came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlglot import exp

from connector.query import tree as trees
from connector.query.federation import TableInfo
from connector.query.planning import Planning
from policies.columns import fold
from policies.enforce.nodes import SETS

HUGE, WHOLE, OTHER = "INT128", "whole", ""
ANY = "any"  # a text as it is written, or NULL: takes the type of what it stands with
_OF_TYPE = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INT", "INTEGER", "BIGINT"), WHOLE),
    **dict.fromkeys(("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"), WHOLE),
    "HUGEINT": HUGE,
    "UUID": "UUID",
    "BOOLEAN": "boolean",
}
_RESTORED = (HUGE, "UUID")
_SAME = (exp.Min, exp.Max, exp.AnyValue, exp.Neg, exp.Paren, exp.Abs, exp.Round, exp.Lag, exp.Lead, exp.FirstValue,
         exp.LastValue, exp.Filter, exp.Window, exp.Nullif, exp.BitwiseAndAgg, exp.BitwiseOrAgg, exp.BitwiseXorAgg,
         exp.Distinct)  # fmt: skip
_BOTH = (exp.Add, exp.Sub, exp.Mul, exp.Mod, exp.IntDiv)
_COUNTS = (exp.Count, exp.Year, exp.Month, exp.Day, exp.Quarter, exp.Week, exp.Hour, exp.Minute, exp.Second,
           exp.Extract, exp.Length, exp.DateDiff, exp.RowNumber, exp.Rank, exp.DenseRank, exp.Ntile, exp.ApproxDistinct,
           exp.StrPosition, exp.DayOfWeek, exp.DayOfYear, exp.Sign, exp.RegrCount)  # fmt: skip


def restored(statement: exp.Expr, sources: Mapping[str, TableInfo], planning: Planning) -> dict[str, str]:
    """Outputs of a statement that must be converted back, by position's name, with the type they had.

    `sources`: the datasets that it reads, by alias.
    """
    found = _Kinds(statement, sources, planning).outputs(statement)
    return {name: kind for name, kind in found.items() if kind in _RESTORED}


class _Kinds:
    def __init__(self, statement: exp.Expr, sources: Mapping[str, TableInfo], planning: Planning) -> None:
        self.sources, self.planning = sources, planning
        self.derived: dict[str, exp.Expr] = {}
        self.known: dict[int, dict[str, str]] = {}  # outputs of queries: a name is asked for wherever it is used
        nodes = trees.nodes(statement)
        named = {node.alias: node.this for node in nodes if isinstance(node, exp.CTE)}
        for node in nodes:
            if isinstance(node, exp.Table) and not node.db and node.name in named:
                self.derived[node.alias_or_name] = named[node.name]
            elif isinstance(node, exp.Subquery) and node.alias:
                self.derived[node.alias] = node.this

    def outputs(self, query: exp.Expr) -> dict[str, str]:
        """The kind of each output; a set operation has the widest of its sides."""
        query = trees.unwrapped(query)
        if id(query) not in self.known:
            self.known[id(query)] = self._outputs(query)
        return self.known[id(query)]

    def _outputs(self, query: exp.Expr) -> dict[str, str]:
        if isinstance(query, SETS):
            left, right = self.outputs(query.this), self.outputs(query.args["expression"])
            return {
                name: _widest((one, other)) for (name, one), other in zip(left.items(), right.values(), strict=False)
            }
        if isinstance(query, exp.Subquery):
            return self.outputs(query.this)
        return {output.alias_or_name: self.of(output.unalias()) for output in query.expressions}

    def of(self, value: exp.Expr) -> str:
        if isinstance(value, exp.Column):
            return self._column(value)
        if isinstance(value, exp.Literal):
            return ANY if value.is_string else _number(str(value.this))
        if isinstance(value, exp.Null):
            return ANY
        if isinstance(value, exp.Cast):
            return _OF_TYPE.get(value.args["to"].sql(dialect="duckdb").upper().replace("INT128", "HUGEINT"), OTHER)
        if isinstance(value, exp.Subquery):
            return next(iter(self.outputs(value).values()), OTHER)
        return self._computed(value)

    def _computed(self, value: exp.Expr) -> str:
        if isinstance(value, exp.Sum):
            inner = self.of(value.this)
            return HUGE if inner in (WHOLE, HUGE, "boolean") else OTHER
        if isinstance(value, exp.CountIf):
            return HUGE
        if isinstance(value, _COUNTS):
            return WHOLE
        if isinstance(value, _BOTH):
            return _widest((self.of(value.this), self.of(value.expression)))
        if isinstance(value, exp.Distinct):
            return self.of(value.expressions[0]) if len(value.expressions) == 1 else OTHER
        if isinstance(value, _SAME):
            return self.of(value.this)
        if isinstance(value, exp.Coalesce | exp.Greatest | exp.Least):
            return _widest([self.of(one) for one in (value.this, *value.expressions)])
        if isinstance(value, exp.Case):
            branches = [one.args["true"] for one in value.args["ifs"]]
            return self._branches([*branches, value.args.get("default")])
        if isinstance(value, exp.If):
            return self._branches([value.args["true"], value.args.get("false")])
        return OTHER

    def _branches(self, values: Iterable[exp.Expr | None]) -> str:
        return _widest([self.of(one) for one in values if one is not None])

    def _column(self, column: exp.Column) -> str:
        info = self.sources.get(column.table)
        if info is not None:
            return _OF_TYPE.get(self.planning.types(info.columns).get(fold(column.name), ""), OTHER)
        query = self.derived.get(column.table)
        return self.outputs(query).get(column.name, OTHER) if query is not None else OTHER


def _number(text: str) -> str:
    return OTHER if not text.isdecimal() else WHOLE if int(text) < 2**63 else HUGE


def _widest(kinds: Iterable[str]) -> str:
    """The kind of what takes one of several values; nothing known where they do not go together."""
    found = set(kinds)
    found = found - {ANY} or found
    if len(found) == 1:
        return found.pop()
    return HUGE if found == {HUGE, WHOLE} else OTHER
