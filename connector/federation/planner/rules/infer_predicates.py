"""Adds conditions that WHERE implies, if they let an owner do more. Removes none.

- Equal columns: a comparison of one with a literal holds for the other. Two columns of one owner that are equal through
  a third are equal, so that the owner can join on them.
- An OR implies every condition that all of its branches have (q19). If every branch has conditions on one owner's
  sources, it implies the OR of these (q7).
- A subquery that reads another source's column reads the equal column of its own owner instead (q17).

Columns count as equal only if their types are the same, as a comparison between types converts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import TypeAlias

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner.context import PlanningContext
from policies.sql import syntax_tree as trees

Key = tuple[str, str]
Types: TypeAlias = "Mapping[str, Mapping[str, str]]"  # source alias to column name to type
_COMPARISONS = (exp.EQ, exp.GT, exp.GTE, exp.LT, exp.LTE)
_ADDED_MAX = 64


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with implied conditions added to each WHERE."""
    nodes = trees.nodes(tree)
    types = _types(nodes, planning)
    for select in [node for node in nodes if isinstance(node, exp.Select)]:
        if trees.sources(select) and select.args.get("where") is not None:
            _PredicateInference(select, types, planning).add()
    return tree


def _types(nodes: Sequence[exp.Expr], planning: PlanningContext) -> Types:
    """The types of all columns of datasets. Aliases are unique in the tree."""
    tables = [node for node in nodes if isinstance(node, exp.Table) and node.db]
    return {table.alias_or_name: planning.types(planning.columns(table)) for table in tables}


class _PredicateInference:
    def __init__(self, select: exp.Select, types: Types, planning: PlanningContext) -> None:
        self.select, self.types, self.planning = select, types, planning
        self.conditions = trees.where_of(select)
        self.known = set(self.conditions)  # trees compare by content
        self.owners = {source.alias_or_name: _owners(source, planning) for source in trees.sources(select)}
        self.conditions += self._common_conditions()
        self.classes = _equal_columns(self.conditions, types)

    def add(self) -> None:
        """Add the implied conditions to WHERE."""
        added: dict[exp.Expr, None] = {}
        for one in chain(self.equalities(), self.comparisons(), self.parts_of_or()):
            if len(added) == _ADDED_MAX:
                break  # many equal columns have very many pairs
            if one not in self.known:
                added[one] = None
        moved = [self.own_columns(condition) for condition in self.conditions]
        known = len(trees.where_of(self.select))
        if added or len(moved) > known or any(a is not b for a, b in zip(moved, self.conditions, strict=True)):
            trees.set_where(self.select, [*moved, *added])

    def equalities(self) -> Iterator[exp.Expr]:
        for members in self.classes:
            if len(members) < 3:
                continue
            for one, other in combinations(members, 2):
                if one[0] != other[0] and self.owners.get(one[0], set()) & self.owners.get(other[0], set()):
                    pair = (_column(one), _column(other))
                    turned = exp.EQ(this=_column(other), expression=_column(one))
                    if turned not in self.known:
                        yield exp.EQ(this=pair[0], expression=pair[1])

    def comparisons(self) -> Iterator[exp.Expr]:
        for condition in self.conditions:
            column = _compared_column(condition)
            if column is None:
                continue
            key = (column.table, column.name)
            for other in next((members for members in self.classes if key in members), ()):
                if other != key and other[0] in self.owners:
                    new = condition.copy()
                    for one in list(new.find_all(exp.Column)):
                        one.replace(_column(other))
                    yield new

    def _common_conditions(self) -> list[exp.Expr]:
        """The conditions that all branches of an OR have."""
        found = []
        for condition in self.conditions:
            if isinstance(condition, exp.Or) and not trees.has_query(condition):
                first, *others = [trees.conjuncts(branch) for branch in trees.disjuncts(condition)]
                common = set(first).intersection(*others)
                found += [one.copy() for one in first if one in common]
        return [one for one in dict.fromkeys(found) if one not in self.known]

    def parts_of_or(self) -> Iterator[exp.Expr]:
        places = [{alias} for alias in self.owners]
        for owner in sorted({owner for owners in self.owners.values() if len(owners) == 1 for owner in owners}):
            here = {alias for alias, owners in self.owners.items() if owners == {owner}}
            if len(here) > 1:
                places.append(here)
        for condition in self.conditions:
            if not isinstance(condition, exp.Or) or trees.has_query(condition):
                continue
            branches = [[(one, trees.column_tables(one)) for one in trees.conjuncts(branch)]
                        for branch in trees.disjuncts(condition)]  # fmt: skip
            for place in places:
                parts = [[one for one, tables in branch if tables and tables <= place] for branch in branches]
                if all(parts):
                    whole = [trees.conjoin([one.copy() for one in part]) for part in parts]
                    yield trees.disjoin([one for one in whole if one is not None])

    def own_columns(self, condition: exp.Expr) -> exp.Expr:
        """The condition with equal columns of its subquery's owner in place of other owners' columns."""
        if not trees.has_query(condition):
            return condition
        found = blocks.find_home(condition, self.planning)
        if found is None:
            return condition
        owner, changed = found[0], condition.copy()
        for column in trees.columns(changed):
            if owner in self.owners.get(column.table, {owner}):
                continue
            key = (column.table, column.name)
            members = next((one for one in self.classes if key in one), ())
            equal = next((one for one in members if owner in self.owners.get(one[0], set())), None)
            if equal is None:
                return condition
            column.replace(_column(equal))
        return changed if changed != condition else condition


def _owners(source: exp.Expr, planning: PlanningContext) -> set[str]:
    """The owners that can read the whole source."""
    if isinstance(source, exp.Table):
        shares = planning.shares(source) if source.db else ()
        return set(planning.sites(shares[0])) if len(shares) == 1 else set()
    if isinstance(trees.unwrap(source.this), exp.Union):
        return set()
    parts = blocks.parts_of(source, planning)
    return {parts[0].owner} if len(parts) == 1 else set()


def _equal_columns(conditions: list[exp.Expr], types: Types) -> list[list[Key]]:
    """Classes of columns that WHERE makes equal, each in order of appearance."""
    classes: list[list[Key]] = []
    for condition in conditions:
        if not isinstance(condition, exp.EQ):
            continue
        sides = [(side.table, side.name) for side in (condition.this, condition.expression)
                 if isinstance(side, exp.Column) and side.table]  # fmt: skip
        kinds = [types.get(table, {}).get(name) for table, name in sides]
        if len(sides) < 2 or kinds[0] is None or kinds[0] != kinds[1]:
            continue
        touched = [members for members in classes if sides[0] in members or sides[1] in members]
        merged = list(dict.fromkeys([key for members in touched for key in members] + sides))
        classes = [members for members in classes if members not in touched] + [merged]
    return classes


def _compared_column(condition: exp.Expr) -> exp.Column | None:
    """The column that a condition compares only with literals (`column <op> literal`, BETWEEN or IN)."""
    sides: list[exp.Expr]
    if isinstance(condition, _COMPARISONS):
        sides = [condition.this, condition.expression]
    elif isinstance(condition, exp.Between):
        sides = [condition.this, condition.args["low"], condition.args["high"]]
    elif isinstance(condition, exp.In) and condition.args.get("query") is None:
        sides = [condition.this, *condition.expressions]
    else:
        return None
    columns = [side for side in sides if isinstance(side, exp.Column) and side.table]
    rest = [side for side in sides if side not in columns]
    literal = all(side.find(exp.Column) is None and not trees.has_query(side) for side in rest)
    return columns[0] if len(columns) == 1 and rest and literal else None


def _column(key: Key) -> exp.Column:
    return trees.column(key[1], key[0])
