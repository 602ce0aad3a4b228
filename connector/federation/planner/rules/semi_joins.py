"""Fragments are narrowed by keys of others: rows that cannot find a partner need not travel.

Runs over the residual, when all fragments are drafts: where a block compares a column of one fragment's table with
one of another's by =, the smaller may send its values to the larger. Directions that change nothing:

- between inner-joined tables, both;
- to the joined side of LEFT, ANTI and SEMI joins; from it only for SEMI;
- from an outer block into a correlated subquery, always; out of it only for a positive EXISTS or IN.

A key list is egress of one owner's column and a question to another: only where the agreements of both allow it.
A fragment that two places read is not narrowed, and none by values that (through others) came from itself. Keys make a
fragment wait for others: where all that wait longest are small anyway, nobody does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlglot import exp

from connector.federation.planner import sql_text, statistics
from connector.federation.planner.context import Draft, Planning
from connector.federation.planner.model import Keys, Mode, TableInfo, waves
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees

_GAIN = 2.0  # keys that one row saved may cost, however narrow it is
_KEY_BYTES = 8
_MUCH = 0.1  # an unfiltered fragment narrows another only if it is this much smaller
_SMALL = 2**18  # bytes that are here before a question that waited for keys has been read


@dataclass(frozen=True, slots=True)
class Edge:
    """`source.output` may narrow `target.column` (tables of drafts, outputs of theirs)."""

    source: str
    output: str
    target: str
    column: str


@dataclass(frozen=True, slots=True)
class _Test:
    """What an edge puts into its target's statements: for each of them the same condition, over the keys `name`."""

    edge: Edge
    name: str
    conditions: Sequence[tuple[exp.Expr, exp.Expr]]


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The residual as it is; drafts have keys where that pays."""
    if planning.mode is not Mode.FULL or len(planning.drafts) < 2:
        return tree
    uses = _uses(tree)
    size = {name: statistics.rows(draft) for name, draft in planning.drafts.items()}
    share = {name: statistics.share(draft) for name, draft in planning.drafts.items()}
    worth = {name: max(_GAIN, statistics.width(draft, planning) / _KEY_BYTES)
             for name, draft in planning.drafts.items()}  # fmt: skip
    edges = {edge for select in trees.selects(tree) for edge in _edges(select, planning)}
    left = [edge for edge in edges if uses[edge.target] == 1]
    tests: list[_Test] = []
    waits: dict[str, set[str]] = {name: set() for name in planning.drafts}
    while left:
        # Of those with conditions the smallest first: what it narrows may then narrow others, also the whole tables.
        edge = min(left, key=lambda e: (share[e.source] == 1, size[e.source], e.source, e.output, e.target, e.column))
        left.remove(edge)
        saved = size[edge.target] * (1 - share[edge.source])
        pays = size[edge.source] <= worth[edge.target] * saved or size[edge.source] <= _MUCH * size[edge.target]
        if not pays or _depends(waits, edge.source, edge.target):
            continue
        if _agreed(edge, waits, planning) and (test := _test(edge, planning)) is not None:
            tests.append(test)
            waits[edge.target].add(edge.source)
            size[edge.target] *= share[edge.source]
            share[edge.target] *= share[edge.source]
    at_once = _small(planning, waits)
    for test in tests:
        if test.edge.target not in at_once:
            _narrow(test, planning)
    return tree


def _small(planning: Planning, waits: dict[str, set[str]]) -> set[str]:
    """Drafts that are asked at once, without keys: all those that would wait longest give little as they are."""
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


def _gives_little(draft: Draft, planning: Planning) -> bool:
    """Whatever its conditions leave: how much that is, is a guess. Nothing is little that is counted by the row."""
    if any(info.rationed for infos in draft.read for info in infos) or not statistics.is_narrow(draft, planning):
        return False
    return statistics.unfiltered(draft) * statistics.width(draft, planning) <= _SMALL


def _uses(tree: exp.Expr) -> dict[str, int]:
    found: dict[str, int] = {}
    for table in trees.tables(tree):
        found[table.name] = found.get(table.name, 0) + 1
    return found


# which columns meet


def _edges(select: exp.Select, planning: Planning) -> Iterator[Edge]:
    here = {source.alias_or_name: source.name for source in trees.sources(select)
            if isinstance(source, exp.Table) and source.name in planning.drafts}  # fmt: skip
    joins = {join.this.alias_or_name: join for join in select.args.get("joins") or ()}
    turned = any(trees.side(join) in ("RIGHT", "FULL") for join in joins.values())
    for condition in trees.where_of(select):
        for one, other in _pairs(condition):
            inner = [side for side in (one, other) if side.table in here and not _joined(joins.get(side.table))]
            if len(inner) == 2 and not turned:
                yield Edge(here[one.table], one.name, here[other.table], other.name)
        if not turned:
            yield from _from_subquery(condition, here, joins, planning)
    if turned:
        return
    for alias, join in joins.items():
        if alias in here and _joined(join) and join.args.get("on") is not None:
            yield from _of_join(alias, join, here, joins)


def _of_join(alias: str, join: exp.Expr, here: dict[str, str], joins: dict[str, exp.Expr]) -> Iterator[Edge]:
    for condition in trees.conjuncts(join.args["on"]):
        for one, other in _pairs(condition):
            if other.table != alias or one.table not in here or one.table == alias:
                continue
            yield Edge(here[one.table], one.name, here[alias], other.name)
            if trees.kind(join) == "SEMI" and not _joined(joins.get(one.table)):
                yield Edge(here[alias], other.name, here[one.table], one.name)


def _joined(join: exp.Expr | None) -> bool:
    """Whether a source comes in by anything but an inner join."""
    return join is not None and not trees.is_inner(join)


def _pairs(condition: exp.Expr) -> Iterator[tuple[exp.Column, exp.Column]]:
    """Both orders of `a = b` for two columns."""
    if isinstance(condition, exp.EQ):
        one, other = _bare(condition.this), _bare(condition.expression)
        if isinstance(one, exp.Column) and isinstance(other, exp.Column) and one.table != other.table:
            yield one, other
            yield other, one


def _bare(side: exp.Expr) -> exp.Expr:
    while isinstance(side, exp.Paren):
        side = side.this
    return side


def _from_subquery(
    condition: exp.Expr, here: dict[str, str], joins: dict[str, exp.Expr], planning: Planning
) -> Iterator[Edge]:
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
            for mine, theirs in _pairs(inner):
                if theirs.table not in inside or mine.table not in here or turned:
                    continue
                if _joined(inner_joins.get(theirs.table)):
                    continue
                # Every row that the subquery may count has the value of some row of the block.
                yield Edge(here[mine.table], mine.name, inside[theirs.table], theirs.name)
                if positive and not _joined(joins.get(mine.table)):
                    yield Edge(inside[theirs.table], theirs.name, here[mine.table], mine.name)
        yield from _of_in(condition, query, here, inside, joins)


def _of_in(
    condition: exp.Expr, query: exp.Select, here: dict[str, str], inside: dict[str, str], joins: dict[str, exp.Expr]
) -> Iterator[Edge]:
    """`x IN (SELECT y ...)`: the block's rows have one of the subquery's values."""
    if not isinstance(condition, exp.In) or not isinstance(condition.this, exp.Column):
        return
    holder = condition.args.get("query")
    if holder is None or trees.unwrap(holder) is not query or len(query.selects) != 1:
        return
    mine, theirs = condition.this, query.selects[0].unalias()
    if mine.table not in here or _joined(joins.get(mine.table)) or not isinstance(theirs, exp.Column):
        return
    if theirs.table in inside:
        yield Edge(inside[theirs.table], theirs.name, here[mine.table], mine.name)


# whether they may, and how


def _depends(waits: dict[str, set[str]], name: str, on: str) -> bool:
    """Whether a draft waits for another, by keys of keys."""
    return name == on or any(_depends(waits, source, on) for source in waits[name])


def _agreed(edge: Edge, waits: dict[str, set[str]], planning: Planning) -> bool:
    """Whether the agreements allow it. Values that keys have narrowed tell of what those keys are of: so do the keys
    that the source waits for, and what this edge's target gives is told to all that wait for it."""
    behind = [name for name in planning.drafts if _depends(waits, edge.source, name)]
    told = [name for name in planning.drafts if _depends(waits, name, edge.target)]
    infos = [info for name in behind for info in _read(planning.drafts[name])]
    return all(_may_tell(edge, infos, _read(planning.drafts[name]), planning) for name in told)


def _read(draft: Draft) -> list[TableInfo]:
    return [info for read in draft.read for info in read]


def _may_tell(edge: Edge, infos: Sequence[TableInfo], others: Sequence[TableInfo], planning: Planning) -> bool:
    """Whether a list with these datasets behind it may be shown to the owners of the others."""
    if any(info.aggregate_only for info in (*infos, *others)):
        return False
    if len({(info.owner, info.participant) for info in (*infos, *others)}) == 1:
        return True  # its own values, back to where they came from
    agreed = all(info.shares_keys for info in infos) and all(info.takes_keys for info in others)
    if not agreed:
        planning.note(
            f"keys {edge.output} of {edge.source} for {edge.target}", "policy", "an agreement does not allow it"
        )
    return agreed


def _test(edge: Edge, planning: Planning) -> _Test | None:
    """The test for every share's statement, if its column can be tested before anything is counted."""
    draft, source = planning.drafts[edge.target], planning.drafts[edge.source]
    name = f"keys_{edge.source}_{source.outputs.index(edge.output)}"
    statements = list({id(share.statement): share.statement for share in draft.shares}.values())
    values = [value for one in statements if (value := _tested(one, edge.column)) is not None]
    if len(values) < len(statements):
        return None
    kinds = _kinds(source, edge.output, planning) | _kinds(draft, edge.column, planning)
    if not _comparable(kinds):
        return None
    conditions = [_condition(value, name, as_text=kinds == {"UUID"}) for value in values]
    if any(one != conditions[0] for one in conditions):  # shares call the column differently
        return None
    return _Test(edge, name, list(zip(statements, conditions, strict=True)))


def _narrow(test: _Test, planning: Planning) -> None:
    """Put it there."""
    edge, condition = test.edge, test.conditions[0][1]
    draft = planning.drafts[edge.target]
    draft.keys.append(Keys(edge.source, edge.output, edge.column, test.name, sql_text.write(condition)))
    for statement, one in test.conditions:
        _add(statement, one)


def _kinds(draft: Draft, output: str, planning: Planning) -> set[str]:
    """The types of an output in each share; empty text where it is computed."""
    found = set()
    for share, sources in zip(draft.shares, draft.sources, strict=True):
        value, kind = _value(share.statement, output), ""
        if isinstance(value, exp.Column) and (info := sources.get(value.table)) is not None:
            kind = planning.types(info.columns).get(fold(value.name), "")
        found.add(kind)
    return found


def _comparable(kinds: set[str]) -> bool:
    """Whether = between them converts nothing that could fail or lose digits, here and after Arrow."""
    return "" not in kinds and "HUGEINT" not in kinds and (len(kinds) == 1 or kinds <= trees.WHOLE)


def _value(statement: exp.Expr, output: str) -> exp.Expr | None:
    if not isinstance(statement, exp.Select):
        return None
    return next((one.unalias() for one in statement.selects if one.alias_or_name == output), None)


def _condition(value: exp.Expr, name: str, *, as_text: bool) -> exp.Expr:
    """`as_text`: what Arrow carries as text, and so the keys are."""
    table = exp.Table(this=exp.to_identifier(name), alias=exp.TableAlias(this=exp.to_identifier(name)))
    keys = exp.Select(expressions=[trees.column("k", name)], from_=exp.From(this=table))
    tested: exp.Expr = value.copy()
    if as_text:
        tested = trees.cast(tested, exp.DType.VARCHAR)
    return exp.In(this=tested, query=exp.Subquery(this=keys))


def _tested(statement: exp.Expr, column: str) -> exp.Expr | None:
    """What an output is in the statement, if a WHERE on it gives the same as a test of the output afterwards."""
    if not isinstance(statement, exp.Select) or trees.has_window(statement):
        return None
    if statement.args.get("limit") is not None or statement.args.get("offset") is not None:
        return None
    value = _value(statement, column)
    if not isinstance(value, exp.Column):
        return None
    sources = {source.alias_or_name: source for source in trees.sources(statement)}
    joins = {join.this.alias_or_name: join for join in statement.args.get("joins") or ()}
    if value.table not in sources or _joined(joins.get(value.table)):
        return None
    if any(trees.side(join) in ("RIGHT", "FULL") for join in joins.values()):
        return None
    grouped = statement.args.get("group") is not None or bool(trees.aggregates(statement))
    clause = statement.args.get("group")
    if grouped and (clause is None or trees.grouping_sets(clause) or value not in trees.group_keys(statement)):
        return None
    return value


def _add(found: exp.Expr, condition: exp.Expr) -> None:
    """Put the test into a statement; beside subqueries it stands under the base table, before they run."""
    assert isinstance(found, exp.Select)
    value = condition.this if isinstance(condition.this, exp.Column) else condition.this.this
    table = next(one for one in trees.sources(found) if one.alias_or_name == value.table)
    beside = [one for one in trees.where_of(found) if trees.has_query(one) and not _is_keys(one)]
    if beside and isinstance(table, exp.Table):
        inner = exp.Select(expressions=[exp.Star()], from_=exp.From(this=table.copy()), where=exp.Where(this=condition))
        table.replace(exp.Subquery(this=inner, alias=table.args["alias"].copy()))
    elif beside and isinstance(table, exp.Subquery) and isinstance(table.this, exp.Select) and _only_keys(table.this):
        trees.set_where(table.this, [*trees.where_of(table.this), condition])
    else:
        trees.set_where(found, [*trees.where_of(found), condition])


def _is_keys(condition: exp.Expr) -> bool:
    tables = list(condition.find_all(exp.Table))
    return isinstance(condition, exp.In) and len(tables) == 1 and tables[0].name.startswith("keys_f")


def _only_keys(select: exp.Select) -> bool:
    return bool(trees.where_of(select)) and all(_is_keys(one) for one in trees.where_of(select))
