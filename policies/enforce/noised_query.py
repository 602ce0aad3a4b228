"""Aggregate-only answers with noise: a private statement and a public one.

The private statement reads the data: filtered rows, binned and clamped, at most `rows` for each unit, summed as
integers. A worker adds noise to its answer as `Noise` describes. The public statement computes the outputs from the
noised table and costs no privacy. Must not know how noise is drawn, nor the party.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field

from sqlglot import exp

from policies.contracts import columns
from policies.contracts.columns import fold
from policies.contracts.contract import DataContract, Measure, Privacy, Scalar
from policies.enforce import grid, policy_view
from policies.enforce.policy_view import StatementBuilder
from policies.sql.parse import refuse

UNITS, ROWS = "units", "rows"
_FLOAT_BITS = 30  # a float measure is summed in steps of its largest value / 2^30: whole numbers add up exactly
_SUM_MAX = 2**62
_STEPS_MAX = 2**40


@dataclass(frozen=True, slots=True)
class Noise:
    """The effect of one unit on the private answer: `columns` with their L1 sensitivity, as integers.

    `keys`: whether groups exist only when a unit is in them; small groups are then left out by the noised count of
    `units`, to which one unit adds at most 1 in at most `rows` groups.
    """

    columns: tuple[tuple[str, int], ...]
    keys: bool
    rows: int


@dataclass(frozen=True, slots=True)
class PrivateQuery:
    """The private statement and its noise; `relation` names the noised table in the public statement.

    `question` is equal for queries with the same answer, however they are written.
    """

    sql: str
    params: dict[str, Scalar]
    names: tuple[str, ...]
    functions: frozenset[str]
    noise: Noise
    relation: str
    question: str
    budget: Privacy


@dataclass(slots=True)
class NoisedStatements:
    """Both statements as trees, and what the caller needs to complete them."""

    private: exp.Select
    public: exp.Select
    names: list[str] = field(default_factory=list)
    relation: str = ""
    noise: Noise = Noise((), keys=False, rows=1)
    question: str = ""


def split_query(tree: exp.Select, contract: DataContract, relation: str, maker: StatementBuilder) -> NoisedStatements:
    """Split a checked aggregate query into its private and public statements (after `aggregate_shapes.check` and
    `bind.bind`).
    """
    return _Split(tree, contract, relation, maker).build()


class _Split:
    def __init__(self, tree: exp.Select, contract: DataContract, relation: str, maker: StatementBuilder) -> None:
        self.tree, self.contract, self.relation, self.maker = tree, contract, relation, maker
        self.grid = grid.require_grid(contract)
        assert self.grid.privacy is not None
        self.budget = self.grid.privacy
        self.bound = 1 if self.grid.entity is None else self.budget.rows
        self.measures = {fold(one.column): (index, one) for index, one in enumerate(self.grid.measures)}
        self.keys = self._keys()
        self.columns: dict[str, exp.Expr] = {}  # of the private answer, without the keys
        self.sensitive: dict[str, int] = {}
        if self.keys:
            self._units()

    def build(self) -> NoisedStatements:
        noised = self.maker.token()
        public = self._public(noised)
        private, names = self._private()
        noise = Noise(tuple(self.sensitive.items()), keys=bool(self.keys), rows=self.bound)
        return NoisedStatements(private, public, names, noised, noise, self._question())

    # the query

    def _keys(self) -> tuple[str, ...]:
        """The dimensions by which the query groups, by their stored names."""
        names = {fold(one.column): one.column for one in self.grid.dimensions}
        clause = self.tree.args.get("group")
        found = [self._key(key, names) for key in (clause.expressions if clause else ())]
        shown = [one for one in map(_output_value, self.tree.expressions) if isinstance(one, exp.Column)]
        for one in shown:
            if names[fold(one.name)] not in found:
                refuse("aggregate_shape", f"{one.name} is shown and not grouped by; add it to GROUP BY", "group")
        return tuple(dict.fromkeys(found))

    def _key(self, key: exp.Expr, names: dict[str, str]) -> str:
        if isinstance(key, exp.Literal):
            outputs = self.tree.expressions
            place = int(key.this) if str(key.this).isdigit() else 0
            key = _output_value(outputs[place - 1]) if 0 < place <= len(outputs) else key
        if not isinstance(key, exp.Column):
            refuse("aggregate_shape", "GROUP BY lists dimensions, or positions of outputs that are dimensions", "group")
        return names[fold(key.name)]

    def _question(self) -> str:
        """A digest of everything but data and contract on which the private answer depends."""
        where = self.tree.args.get("where")
        conditions = sorted(_condition_text(part) for part in _conjuncts(where))
        asked = {"keys": sorted(self.keys), "where": conditions, "columns": sorted(self.sensitive)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    # the public side

    def _public(self, noised: str) -> exp.Select:
        outputs = [grid.named_as(self._output(_output_value(one)), one.alias_or_name) for one in self.tree.expressions]
        query = exp.select(*outputs, copy=False).from_(grid.table_named(noised), copy=False)
        for name in ("order", "limit", "offset"):
            if self.tree.args.get(name) is not None:
                query.set(name, self.tree.args[name].copy())
        grid.fix_group_order(query)
        return query

    def _output(self, value: exp.Expr) -> exp.Expr:
        inner = value.this
        if isinstance(value, exp.Column):
            return grid.column_named(next(key for key in self.keys if fold(key) == fold(value.name)))
        if isinstance(value, exp.Count) and isinstance(inner, exp.Star):
            return _at_least_zero(self._rows())
        if isinstance(value, exp.Count) and isinstance(inner, exp.Distinct):
            return _at_least_zero(self._units())
        index, measure = self.measures[fold(inner.name)]
        if isinstance(value, exp.Count):
            return _at_least_zero(self._count(index, measure))
        if isinstance(value, exp.Sum):
            return self._scaled(index, measure)
        return self._mean(index, measure)

    def _scaled(self, index: int, measure: Measure) -> exp.Expr:
        total, step = grid.column_named(self._sum(index, measure)), _step(self.contract, measure)
        return total if step == 1 else exp.Mul(this=policy_view.try_cast(total, "DOUBLE"), expression=_number(step))

    def _mean(self, index: int, measure: Measure) -> exp.Expr:
        """Noised sum divided by noised count (at least 1), within the bounds, so no mean is impossible."""
        assert measure.low is not None
        assert measure.high is not None
        total = exp.Mul(
            this=policy_view.try_cast(grid.column_named(self._sum(index, measure)), "DOUBLE"),
            expression=_number(_step(self.contract, measure)),
        )
        count = grid.greatest(grid.column_named(self._count(index, measure)), exp.Literal.number(1))
        mean = exp.Div(this=total, expression=count)
        return _least(grid.greatest(mean, _number(measure.low)), _number(measure.high))

    # the private side

    def _private(self) -> tuple[exp.Select, list[str]]:
        base, drawn, kept = (self.maker.token() for _ in range(3))
        shown: list[exp.Expr] = [grid.column_named(key) for key in self.keys]
        shown += [grid.named_as(value, name) for name, value in self.columns.items()]
        query = exp.select(*shown, copy=False).from_(grid.table_named(kept), copy=False)
        if self.grid.entity is not None:
            query.where(exp.LTE(this=grid.column_named(_PLACE), expression=exp.Literal.number(self.bound)), copy=False)
        if self.keys:
            query.group_by(*(grid.column_named(key) for key in self.keys), copy=False)
        source = grid.base_rows(self.contract, self.relation, self.maker)
        ctes = [
            grid.cte(base, source, materialised=True),
            grid.cte(drawn, self._sampled_rows(base)),
            grid.cte(kept, self._ranked_rows(drawn)),
        ]
        query.set("with_", exp.With(expressions=ctes))
        return query, [self.relation, base, drawn, kept]

    def _sampled_rows(self, base: str) -> exp.Select:
        """The rows that the query asks for, each with a random number."""
        draw = grid.named_as(exp.Anonymous(this="random"), _DRAW)
        query = exp.select(exp.Star(), draw, copy=False).from_(grid.table_named(base), copy=False)
        where = self.tree.args.get("where")
        if where is None:
            return query
        # No comparison can fail (`sql.literals`). If one did, its row is left out: an error would reveal it.
        return query.where(exp.Try(this=_strip_tables(where.this)), copy=False)

    def _ranked_rows(self, drawn: str) -> exp.Select:
        """The rows of each unit numbered in random order; the first `rows` of them count."""
        shown: list[exp.Expr] = [exp.Star()]
        if self.grid.entity is not None:
            place = exp.Window(
                this=exp.RowNumber(),
                partition_by=[grid.column_named(self.grid.entity)],
                order=exp.Order(expressions=[exp.Ordered(this=grid.column_named(_DRAW))]),
            )
            shown.append(grid.named_as(place, _PLACE))
        return exp.select(*shown, copy=False).from_(grid.table_named(drawn), copy=False)

    def _add(self, name: str, value: exp.Expr, sensitivity: int) -> str:
        self.columns.setdefault(name, value)
        self.sensitive.setdefault(name, sensitivity)
        return name

    def _rows(self) -> str:
        return self._add(ROWS, grid.count_star(), self.bound)

    def _units(self) -> str:
        if self.grid.entity is None:
            counted: exp.Expr = exp.Star()
        else:
            counted = exp.Distinct(expressions=[grid.column_named(self.grid.entity)])
        return self._add(UNITS, exp.Count(this=counted, big_int=True), self.bound if self.keys else 1)

    def _count(self, index: int, measure: Measure) -> str:
        return self._add(f"count {index}", exp.Count(this=grid.column_named(measure.column), big_int=True), self.bound)

    def _sum(self, index: int, measure: Measure) -> str:
        """The sum in integer steps, limited to 2^62, so that one unit changes it by at most its share."""
        step = _step(self.contract, measure)
        value: exp.Expr = grid.column_named(measure.column)
        if step != 1:
            scaled = exp.Div(this=policy_view.try_cast(value, "DOUBLE"), expression=_number(step))
            value = exp.Round(this=scaled)
        added = exp.Sum(this=policy_view.try_cast(value, "HUGEINT"))
        total = exp.Coalesce(this=added, expressions=[exp.Literal.number(0)])
        lowest = exp.Neg(this=exp.Literal.number(_SUM_MAX))
        whole = policy_view.try_cast(_least(grid.greatest(total, lowest), exp.Literal.number(_SUM_MAX)), "BIGINT")
        return self._add(f"sum {index}", whole, self.bound * largest_contribution(self.contract, measure))


def largest_contribution(contract: DataContract, measure: Measure) -> int:
    """Return how much one row adds to a sum at most, in integer steps."""
    assert measure.low is not None
    assert measure.high is not None
    step = _step(contract, measure)
    most = max(abs(measure.low), abs(measure.high))
    return max(1, int(most)) if step == 1 else math.ceil(most / step) + 1


def _step(contract: DataContract, measure: Measure) -> float:
    """The step in which a measure is summed: 1 for integers, the last digit of decimals, otherwise a power of two."""
    assert measure.low is not None
    assert measure.high is not None
    type_ = policy_view.column_type(contract, measure.column)
    family, most = columns.family(type_), max(abs(measure.low), abs(measure.high), 1e-300)
    if family == columns.INTEGER:
        return 1
    if family == columns.DECIMAL and most * 10 ** columns.decimal_scale(type_) <= _STEPS_MAX:
        return float(10.0 ** -columns.decimal_scale(type_))
    return math.ldexp(1.0, math.frexp(most)[1] - _FLOAT_BITS)


_DRAW, _PLACE = "draw of row", "place of row"  # not names of table columns


def _output_value(output: exp.Expr) -> exp.Expr:
    found = output.this if isinstance(output, exp.Alias) else output
    assert isinstance(found, exp.Expr)
    return found


def _conjuncts(where: exp.Expr | None) -> list[exp.Expr]:
    if where is None:
        return []
    return list(where.this.flatten()) if isinstance(where.this, exp.And) else [where.this]


def _condition_text(condition: exp.Expr) -> str:
    return str(_strip_tables(condition).sql(dialect="duckdb", identify=True, comments=False, normalize=True))


def _strip_tables(condition: exp.Expr) -> exp.Expr:
    """The condition with unqualified columns, for use over one relation."""
    copied = condition.copy()
    for column in list(copied.find_all(exp.Column)):
        column.set("table", None)
    return copied


def _number(value: float) -> exp.Expr:
    literal = exp.Literal.number(repr(abs(float(value))))
    cast = policy_view.try_cast(literal, "DOUBLE")
    return exp.Neg(this=cast) if value < 0 else cast


def _at_least_zero(name: str) -> exp.Expr:
    return grid.greatest(grid.column_named(name), exp.Literal.number(0))


def _least(left: exp.Expr, right: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this="least", expressions=[left, right])
