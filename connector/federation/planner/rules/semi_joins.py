"""Semi-joins: narrows a fragment by key values of another, so that rows without a match need not travel.

Runs over the residual, when all fragments are drafts. Where a block compares columns of two fragments' tables by `=`,
the smaller fragment may send its values to the larger. These directions keep the answer:

- both, between inner-joined tables;
- to the joined side of LEFT, ANTI and SEMI joins; from it only for SEMI;
- from an outer block into a correlated subquery; out of it only for EXISTS or IN without NOT.

A key list takes values out of one owner and tells them to another, so the agreements of both must allow it. A fragment
that two places read is not narrowed. No fragment is narrowed by values that came from itself. Keys make a fragment wait
for others; if all fragments that would wait longest are small, they are asked at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlglot import exp

from connector.federation.planner import sql_text, statistics
from connector.federation.planner.context import FragmentDraft, PlanningContext
from connector.federation.planner.model import KeyFilter, Mode, TableInfo, waves
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees

_GAIN = 2.0  # keys that one saved row may cost, even if it is narrow
_KEY_BYTES = 8
_MUCH = 0.1  # an unfiltered fragment narrows another only if it has at most this fraction of its rows
_SMALL = 2**18  # bytes that arrive sooner than an answer that waits for keys


@dataclass(frozen=True, slots=True)
class KeyEdge:
    """Values of `source.output` may narrow `target.column`. Both are outputs of drafts' tables."""

    source: str
    output: str
    target: str
    column: str


@dataclass(frozen=True, slots=True)
class _KeyTest:
    """The condition that an edge adds to its target's statements, over the table of keys `name`.

    conditions: pairs of statement and condition; the conditions are equal.
    """

    edge: KeyEdge
    name: str
    conditions: Sequence[tuple[exp.Expr, exp.Expr]]


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """Returns the residual unchanged. Drafts get keys where that pays."""
    if planning.mode is not Mode.FULL or len(planning.drafts) < 2:
        return tree
    uses = _count_uses(tree)
    size = {name: statistics.rows(draft) for name, draft in planning.drafts.items()}
    share = {name: statistics.share(draft) for name, draft in planning.drafts.items()}
    worth = {name: max(_GAIN, statistics.width(draft, planning) / _KEY_BYTES)
             for name, draft in planning.drafts.items()}  # fmt: skip
    edges = {edge for select in trees.selects(tree) for edge in _block_edges(select, planning)}
    left = [edge for edge in edges if uses[edge.target] == 1]
    tests: list[_KeyTest] = []
    waits: dict[str, set[str]] = {name: set() for name in planning.drafts}
    while left:
        # The smallest source with conditions first: the fragment that it narrows may then narrow others.
        edge = min(left, key=lambda e: (share[e.source] == 1, size[e.source], e.source, e.output, e.target, e.column))
        left.remove(edge)
        saved = size[edge.target] * (1 - share[edge.source])
        pays = size[edge.source] <= worth[edge.target] * saved or size[edge.source] <= _MUCH * size[edge.target]
        if not pays or _waits_for(waits, edge.source, edge.target):
            continue
        if _is_allowed(edge, waits, planning) and (test := _make_test(edge, planning)) is not None:
            tests.append(test)
            waits[edge.target].add(edge.source)
            size[edge.target] *= share[edge.source]
            share[edge.target] *= share[edge.source]
    at_once = _targets_asked_at_once(planning, waits)
    for test in tests:
        if test.edge.target not in at_once:
            _narrow(test, planning)
    return tree


def _targets_asked_at_once(planning: PlanningContext, waits: dict[str, set[str]]) -> set[str]:
    """Drafts to ask at once without keys: all drafts that would wait longest have small answers anyway."""
    found: set[str] = set()
    while True:
        wave = waves(waits)
        longest = max(wave.values())
        last = [name for name in waits if wave[name] == longest]
        if not all(waits[name] and _gives_little(planning.drafts[name], planning) for name in last):
            return found
        found.update(last)
        for name in last:
            waits[name] = set()


def _gives_little(draft: FragmentDraft, planning: PlanningContext) -> bool:
    """Whether a draft's answer is small even without its conditions. False if its rows count against a quota."""
    if any(info.rationed for infos in draft.read for info in infos) or not statistics.is_narrow(draft, planning):
        return False
    return statistics.unfiltered(draft) * statistics.width(draft, planning) <= _SMALL


def _count_uses(tree: exp.Expr) -> dict[str, int]:
    found: dict[str, int] = {}
    for table in trees.tables(tree):
        found[table.name] = found.get(table.name, 0) + 1
    return found


# Compared columns


def _block_edges(select: exp.Select, planning: PlanningContext) -> Iterator[KeyEdge]:
    here = {source.alias_or_name: source.name for source in trees.sources(select)
            if isinstance(source, exp.Table) and source.name in planning.drafts}  # fmt: skip
    joins = {join.this.alias_or_name: join for join in select.args.get("joins") or ()}
    turned = any(trees.side(join) in ("RIGHT", "FULL") for join in joins.values())
    for condition in trees.where_of(select):
        for one, other in _compared_columns(condition):
            inner = [side for side in (one, other) if side.table in here and not _is_not_inner(joins.get(side.table))]
            if len(inner) == 2 and not turned:
                yield KeyEdge(here[one.table], one.name, here[other.table], other.name)
        if not turned:
            yield from _subquery_edges(condition, here, joins, planning)
    if turned:
        return
    for alias, join in joins.items():
        if alias in here and _is_not_inner(join) and join.args.get("on") is not None:
            yield from _join_edges(alias, join, here, joins)


def _join_edges(alias: str, join: exp.Expr, here: dict[str, str], joins: dict[str, exp.Expr]) -> Iterator[KeyEdge]:
    for condition in trees.conjuncts(join.args["on"]):
        for one, other in _compared_columns(condition):
            if other.table != alias or one.table not in here or one.table == alias:
                continue
            yield KeyEdge(here[one.table], one.name, here[alias], other.name)
            if trees.kind(join) == "SEMI" and not _is_not_inner(joins.get(one.table)):
                yield KeyEdge(here[alias], other.name, here[one.table], one.name)


def _is_not_inner(join: exp.Expr | None) -> bool:
    """Whether a source is joined by anything but an inner join."""
    return join is not None and not trees.is_inner(join)


def _compared_columns(condition: exp.Expr) -> Iterator[tuple[exp.Column, exp.Column]]:
    """Both orders of `a = b` for two columns."""
    if isinstance(condition, exp.EQ):
        one, other = _strip_parentheses(condition.this), _strip_parentheses(condition.expression)
        if isinstance(one, exp.Column) and isinstance(other, exp.Column) and one.table != other.table:
            yield one, other
            yield other, one


def _strip_parentheses(side: exp.Expr) -> exp.Expr:
    while isinstance(side, exp.Paren):
        side = side.this
    return side


def _subquery_edges(
    condition: exp.Expr, here: dict[str, str], joins: dict[str, exp.Expr], planning: PlanningContext
) -> Iterator[KeyEdge]:
    """Edges between the block and the subqueries of one of its conditions."""
    for query in trees.nested_queries(condition):
        if not isinstance(query, exp.Select):
            continue
        inside = {source.alias_or_name: source.name for source in trees.sources(query)
                  if isinstance(source, exp.Table) and source.name in planning.drafts}  # fmt: skip
        turned = any(trees.side(join) in ("RIGHT", "FULL") for join in query.args.get("joins") or ())
        inner_joins = {join.this.alias_or_name: join for join in query.args.get("joins") or ()}
        positive = isinstance(condition, exp.Exists) and trees.is_plain(query)
        for inner in trees.where_of(query):
            for mine, theirs in _compared_columns(inner):
                if theirs.table not in inside or mine.table not in here or turned:
                    continue
                if _is_not_inner(inner_joins.get(theirs.table)):
                    continue
                # Every row that the subquery may use has the value of some row of the block.
                yield KeyEdge(here[mine.table], mine.name, inside[theirs.table], theirs.name)
                if positive and not _is_not_inner(joins.get(mine.table)):
                    yield KeyEdge(inside[theirs.table], theirs.name, here[mine.table], mine.name)
        yield from _in_edges(condition, query, here, inside, joins)


def _in_edges(
    condition: exp.Expr, query: exp.Select, here: dict[str, str], inside: dict[str, str], joins: dict[str, exp.Expr]
) -> Iterator[KeyEdge]:
    """The edge of `x IN (SELECT y ...)`: the block's rows have one of the subquery's values."""
    if not isinstance(condition, exp.In) or not isinstance(condition.this, exp.Column):
        return
    holder = condition.args.get("query")
    if holder is None or trees.unwrap(holder) is not query or len(query.selects) != 1:
        return
    mine, theirs = condition.this, query.selects[0].unalias()
    if mine.table not in here or _is_not_inner(joins.get(mine.table)) or not isinstance(theirs, exp.Column):
        return
    if theirs.table in inside:
        yield KeyEdge(inside[theirs.table], theirs.name, here[mine.table], mine.name)


# Permission, and the conditions


def _waits_for(waits: dict[str, set[str]], name: str, on: str) -> bool:
    """Whether a draft waits for another, directly or through others."""
    return name == on or any(_waits_for(waits, source, on) for source in waits[name])


def _is_allowed(edge: KeyEdge, waits: dict[str, set[str]], planning: PlanningContext) -> bool:
    """Whether the agreements of all affected datasets allow an edge.

    Narrowed values reveal the keys that narrowed them. So the datasets of all drafts for which the source waits are
    shown to the owners of all drafts that wait for the target.
    """
    behind = [name for name in planning.drafts if _waits_for(waits, edge.source, name)]
    receivers = [name for name in planning.drafts if _waits_for(waits, name, edge.target)]
    infos = [info for name in behind for info in _datasets_of(planning.drafts[name])]
    return all(_may_show_keys(edge, infos, _datasets_of(planning.drafts[name]), planning) for name in receivers)


def _datasets_of(draft: FragmentDraft) -> list[TableInfo]:
    return [info for read in draft.read for info in read]


def _may_show_keys(
    edge: KeyEdge, infos: Sequence[TableInfo], others: Sequence[TableInfo], planning: PlanningContext
) -> bool:
    """Whether keys from the datasets `infos` may be shown to the owners of `others`."""
    if any(info.aggregate_only for info in (*infos, *others)):
        return False
    if len({(info.owner, info.participant) for info in (*infos, *others)}) == 1:
        return True  # the values go back to their own owner
    agreed = all(info.shares_keys for info in infos) and all(info.takes_keys for info in others)
    if not agreed:
        planning.note(
            f"keys {edge.output} of {edge.source} for {edge.target}", "policy", "an agreement does not allow it"
        )
    return agreed


def _make_test(edge: KeyEdge, planning: PlanningContext) -> _KeyTest | None:
    """The test for every share's statement; None if its column cannot be tested before aggregation."""
    draft, source = planning.drafts[edge.target], planning.drafts[edge.source]
    name = f"keys_{edge.source}_{source.outputs.index(edge.output)}"
    statements = list({id(share.statement): share.statement for share in draft.shares}.values())
    values = [value for one in statements if (value := _testable_value(one, edge.column)) is not None]
    if len(values) < len(statements):
        return None
    kinds = _types_of(source, edge.output, planning) | _types_of(draft, edge.column, planning)
    if not _is_comparable(kinds):
        return None
    conditions = [_key_condition(value, name, as_text=kinds == {"UUID"}) for value in values]
    if any(one != conditions[0] for one in conditions):  # the column has different names in the shares
        return None
    return _KeyTest(edge, name, list(zip(statements, conditions, strict=True)))


def _narrow(test: _KeyTest, planning: PlanningContext) -> None:
    """Add the keys to the target's draft and statements."""
    edge, condition = test.edge, test.conditions[0][1]
    draft = planning.drafts[edge.target]
    draft.keys.append(KeyFilter(edge.source, edge.output, edge.column, test.name, sql_text.write(condition)))
    for statement, one in test.conditions:
        _add_condition(statement, one)


def _types_of(draft: FragmentDraft, output: str, planning: PlanningContext) -> set[str]:
    """The types of an output over all shares; "" where it is computed."""
    found = set()
    for share, sources in zip(draft.shares, draft.sources, strict=True):
        value, kind = _output_value(share.statement, output), ""
        if isinstance(value, exp.Column) and (info := sources.get(value.table)) is not None:
            kind = planning.types(info.columns).get(fold(value.name), "")
        found.add(kind)
    return found


def _is_comparable(kinds: set[str]) -> bool:
    """Whether `=` between these types cannot fail or lose digits, here and after transport by Arrow."""
    return "" not in kinds and "HUGEINT" not in kinds and (len(kinds) == 1 or kinds <= trees.WHOLE)


def _output_value(statement: exp.Expr, output: str) -> exp.Expr | None:
    if not isinstance(statement, exp.Select):
        return None
    return next((one.unalias() for one in statement.selects if one.alias_or_name == output), None)


def _key_condition(value: exp.Expr, name: str, *, as_text: bool) -> exp.Expr:
    """The condition over a table of keys. `as_text`: Arrow carries the values as text, so the keys are text."""
    table = exp.Table(this=exp.to_identifier(name), alias=exp.TableAlias(this=exp.to_identifier(name)))
    keys = exp.Select(expressions=[trees.column("k", name)], from_=exp.From(this=table))
    tested: exp.Expr = value.copy()
    if as_text:
        tested = trees.cast(tested, exp.DType.VARCHAR)
    return exp.In(this=tested, query=exp.Subquery(this=keys))


def _testable_value(statement: exp.Expr, column: str) -> exp.Expr | None:
    """The column of an output, if a WHERE on it has the same effect as a test of the output; else None."""
    if not isinstance(statement, exp.Select) or trees.has_window(statement):
        return None
    if statement.args.get("limit") is not None or statement.args.get("offset") is not None:
        return None
    value = _output_value(statement, column)
    if not isinstance(value, exp.Column):
        return None
    sources = {source.alias_or_name: source for source in trees.sources(statement)}
    joins = {join.this.alias_or_name: join for join in statement.args.get("joins") or ()}
    if value.table not in sources or _is_not_inner(joins.get(value.table)):
        return None
    if any(trees.side(join) in ("RIGHT", "FULL") for join in joins.values()):
        return None
    grouped = statement.args.get("group") is not None or bool(trees.aggregates(statement))
    clause = statement.args.get("group")
    if grouped and (clause is None or trees.grouping_sets(clause) or value not in trees.group_keys(statement)):
        return None
    return value


def _add_condition(found: exp.Expr, condition: exp.Expr) -> None:
    """Add the test to a statement. If WHERE has subqueries, add it in a derived table below, so that it runs first."""
    assert isinstance(found, exp.Select)
    value = condition.this if isinstance(condition.this, exp.Column) else condition.this.this
    table = next(one for one in trees.sources(found) if one.alias_or_name == value.table)
    beside = [one for one in trees.where_of(found) if trees.has_query(one) and not _is_key_condition(one)]
    if beside and isinstance(table, exp.Table):
        inner = exp.Select(expressions=[exp.Star()], from_=exp.From(this=table.copy()), where=exp.Where(this=condition))
        table.replace(exp.Subquery(this=inner, alias=table.args["alias"].copy()))
    elif (
        beside
        and isinstance(table, exp.Subquery)
        and isinstance(table.this, exp.Select)
        and _has_only_key_conditions(table.this)
    ):
        trees.set_where(table.this, [*trees.where_of(table.this), condition])
    else:
        trees.set_where(found, [*trees.where_of(found), condition])


def _is_key_condition(condition: exp.Expr) -> bool:
    tables = list(condition.find_all(exp.Table))
    return isinstance(condition, exp.In) and len(tables) == 1 and tables[0].name.startswith("keys_f")


def _has_only_key_conditions(select: exp.Select) -> bool:
    return bool(trees.where_of(select)) and all(_is_key_condition(one) for one in trees.where_of(select))
