"""The query shapes that may read an aggregate-only dataset.

Every filter and group must be a union of whole cells of the grid, so that the difference of two answers consists of
whole cells as well. Must not know purposes or time.
"""

from __future__ import annotations

from typing import NoReturn

from sqlglot import exp

from policies.contracts import columns
from policies.contracts.columns import fold
from policies.contracts.contract import DataContract
from policies.enforce import grid
from policies.sql import literals
from policies.sql.parse import refuse


def check(tree: exp.Expr, contract: DataContract, shown_as: str) -> None:
    """Require a plain aggregate over cells. `shown_as` is the dataset's name in messages.

    One SELECT of dimensions, COUNT(*), COUNT(DISTINCT unit), and COUNT, SUM, AVG of measures; WHERE an AND of
    comparisons of dimensions with literals; GROUP BY dimensions; ORDER BY and LIMIT on outputs. Comparisons are
    rewritten in place so that they cannot fail on any row (`sql.literals`).

    Raises: QueryRefused (`rows_not_given`, `aggregate_shape`).
    """
    rules = _Rules(contract, shown_as)
    rules.check_block(tree)
    assert isinstance(tree, exp.Select)
    outputs = rules.check_outputs(tree)
    if (clause := tree.args.get("where")) is not None:
        tree.set("where", exp.Where(this=exp.and_(*rules.fit_where(clause), copy=False)))
    rules.check_group(tree.args.get("group"), outputs)
    rules.check_order(tree.args.get("order"), outputs)


_RULES = ("minGroupSize", "epsilonBudget", "resultKind", "dimension", "measure")


class _Rules:
    def __init__(self, contract: DataContract, shown_as: str) -> None:
        made = grid.require_grid(contract)
        self.grid = made
        self.shown_as = shown_as
        self.rule = next(
            (path for name, path in contract.reasons if name in _RULES),
            contract.permission,
        )
        self.dimensions = {fold(one.column): grid.visible_type(contract, one) for one in made.dimensions}
        self.measures = {fold(one.column) for one in made.measures}
        self.entity = "" if made.entity is None else fold(made.entity)

    def describe_allowed(self) -> str:
        units = self.grid.entity or "rows"
        dimensions = ", ".join(one.column for one in self.grid.dimensions) or "nothing (totals only)"
        measures = ", ".join(one.column for one in self.grid.measures) or "none"
        counted = f", COUNT(DISTINCT {self.grid.entity})" if self.grid.entity else ""
        least = "with noise" if self.grid.privacy else f"over at least {self.grid.min_group} {units}"
        return (
            f"only aggregates {least}; ask for COUNT(*){counted}, COUNT, SUM, AVG "
            f"of {measures}, grouped and filtered by {dimensions}"
        )

    def refuse_rows(self) -> NoReturn:
        refuse(
            "rows_not_given",
            f"rows of {self.shown_as} are not given out under this agreement, {self.describe_allowed()}",
            self.rule,
        )

    def refuse_shape(self, problem: str) -> NoReturn:
        refuse("aggregate_shape", f"{problem}: {self.shown_as} gives {self.describe_allowed()}", self.rule)

    def check_block(self, tree: exp.Expr) -> None:
        if not isinstance(tree, exp.Select):
            self.refuse_shape("UNION, INTERSECT and EXCEPT are not answered")
        for name, word in _REFUSED.items():
            if tree.args.get(name):
                self.refuse_shape(f"{word} is not answered")
        source = tree.args["from_"].this if tree.args.get("from_") else None
        if not isinstance(source, exp.Table) or source.args["alias"].args.get("columns"):
            self.refuse_shape("a subquery or renamed columns are not answered")

    def check_outputs(self, tree: exp.Select) -> set[str]:
        names: set[str] = set()
        aggregates = 0
        for output in tree.expressions:
            value = output.this if isinstance(output, exp.Alias) else output
            name = fold(output.alias_or_name)
            known = {*self.dimensions, *self.measures, self.entity}
            if isinstance(output, exp.Alias) and name in known and not _is_column(value, name):
                self.refuse_shape(f"an output cannot have the name {output.alias} of a column; choose another alias")
            if value.is_star or (isinstance(value, exp.Column) and fold(value.name) not in self.dimensions):
                self.refuse_rows()
            if not isinstance(value, exp.Column):
                self.check_aggregate(value)
                aggregates += 1
            names.add(name)
        if not aggregates:
            self.refuse_rows()
        return names

    def check_aggregate(self, value: exp.Expr) -> None:
        inner = value.this
        if isinstance(value, exp.Count) and not value.expressions:
            if isinstance(inner, exp.Star) or self._is_measure(inner):
                return
            if isinstance(inner, exp.Distinct) and len(inner.expressions) == 1:
                if _is_column(inner.expressions[0], self.entity):
                    return
                self.refuse_shape("COUNT(DISTINCT ...) counts units only")
        if isinstance(value, exp.Sum | exp.Avg) and self._is_measure(inner):
            return
        self.refuse_shape("an output is a dimension, COUNT(*), or COUNT, SUM, AVG of one measure")

    def _is_measure(self, value: object) -> bool:
        return isinstance(value, exp.Column) and fold(value.name) in self.measures

    def _is_dimension(self, value: object) -> bool:
        return isinstance(value, exp.Column) and fold(value.name) in self.dimensions

    def fit_where(self, clause: exp.Expr) -> list[exp.Expr]:
        """Return the conditions, with literals in the type of their dimension."""
        found: list[exp.Expr] = []
        stack = [clause.this]
        while stack:
            condition = stack.pop()
            if isinstance(condition, exp.Paren):
                stack.append(condition.this)
            elif isinstance(condition, exp.And):
                stack.extend((condition.expression, condition.this))
            else:
                found += self._fit_condition(condition)
        return found

    def _fit_condition(self, node: exp.Expr) -> list[exp.Expr]:
        if isinstance(node, exp.EQ | exp.NEQ | exp.LT | exp.LTE | exp.GT | exp.GTE):
            if self._is_dimension(node.this):
                return [self._fit_comparison(node.this, type(node), node.expression)]
            if self._is_dimension(node.expression):
                return [self._fit_comparison(node.expression, literals.TURNED[type(node)], node.this)]
        if isinstance(node, exp.In) and not node.args.get("query") and self._is_dimension(node.this):
            return [self._fit_membership(node.this, node.expressions)]
        if isinstance(node, exp.Between) and self._is_dimension(node.this):
            ends = ((exp.GTE, node.args["low"]), (exp.LTE, node.args["high"]))
            return [self._fit_comparison(node.this, operator, value) for operator, value in ends]
        return self._refuse_condition()

    def _fit_comparison(self, column: exp.Expr, operator: type[exp.Binary], value: exp.Expr) -> exp.Expr:
        self._require_fit(column, value)
        try:
            return literals.fit_comparison(column, operator, value, self.dimensions[fold(column.name)])
        except ValueError as wrong:
            self.refuse_shape(f"{column.name} is compared with what it cannot hold ({wrong})")

    def _fit_membership(self, column: exp.Expr, values: list[exp.Expr]) -> exp.Expr:
        self._require_fit(column, *values)
        try:
            return literals.fit_membership(column, values, self.dimensions[fold(column.name)])
        except ValueError as wrong:
            self.refuse_shape(f"{column.name} is compared with what it cannot hold ({wrong})")

    def _require_fit(self, column: exp.Expr, *values: exp.Expr) -> None:
        """Require literals of the dimension's own kind: any other pair would be cast for each row."""
        type_ = self.dimensions[fold(column.name)]
        kinds = [literals.literal_kind(value) for value in values]
        if "" in kinds:
            self._refuse_condition()
        if any(kind not in literals.FITTING[columns.family(type_)] for kind in kinds):
            self.refuse_shape(
                f"{column.name} is of type {type_} and compared with something else; write a literal of its type"
            )

    def _refuse_condition(self) -> NoReturn:
        self.refuse_shape("WHERE is an AND of comparisons, IN or BETWEEN of dimensions with literals")

    def check_group(self, clause: exp.Expr | None, outputs: set[str]) -> None:
        if clause is None:
            return
        if any(clause.args.get(name) for name in ("grouping_sets", "cube", "rollup", "all")):
            self.refuse_shape("GROUP BY lists dimensions, without ALL, sets, CUBE or ROLLUP")
        for key in clause.expressions:
            if not self._is_dimension(key) and not _is_position(key):
                self.refuse_shape("GROUP BY lists dimensions")

    def check_order(self, clause: exp.Expr | None, outputs: set[str]) -> None:
        for ordered in () if clause is None else clause.expressions:
            key = ordered.this
            named = isinstance(key, exp.Column) and not key.table and fold(key.name) in outputs
            if not named and not _is_position(key):
                self.refuse_shape("ORDER BY names outputs")


_REFUSED = {
    "with_": "WITH",
    "joins": "a join",
    "distinct": "SELECT DISTINCT",
    "having": "HAVING",
    "qualify": "QUALIFY",
}


def _is_column(value: object, folded: str) -> bool:
    return isinstance(value, exp.Column) and fold(value.name) == folded


def _is_position(value: object) -> bool:
    return isinstance(value, exp.Literal) and not value.is_string
