"""Inner-joined sources of one owner are joined there, and each condition goes to the fragment that it is about.

Also LEFT, SEMI and ANTI joins whose both sides are at one owner. A condition on what an outer join may have made
NULL stays here, as does everything around RIGHT and FULL joins.
"""

from __future__ import annotations

from collections.abc import Set

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner.context import Planning
from connector.federation.planner.model import Mode
from connector.federation.planner.placement import colocated_exists
from connector.federation.planner.select_block import Group, Part, Source
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def sources(select: exp.Select, planning: Planning) -> list[Source]:
    """The block's sources in the order of FROM."""
    found: list[Source] = []
    for node, join in trees.entries(select):
        found.append(source_of(node, join, planning))
        if join is not None and trees.side(join) in ("LEFT", "FULL"):
            found[-1].nullable = True
        if join is not None and trees.side(join) in ("RIGHT", "FULL"):
            for before in found[:-1]:
                before.nullable = True
    return found


def source_of(node: exp.Expr, join: exp.Join | None, planning: Planning) -> Source:
    """One entry of FROM, with the owners that have its rows."""
    alias = node.alias_or_name
    parts = tuple(blocks.rebase(part, alias) for part in blocks.parts_of(node, planning))
    return Source(alias, node, join, parts, copies=_copies(parts, planning))


def _copies(parts: tuple[Part, ...], planning: Planning) -> dict[str, Part]:
    if len(parts) != 1 or len(parts[0].infos) != 1 or not isinstance(parts[0].relation, exp.Table):
        return {}
    part, found = parts[0], {}
    for owner, info in planning.sites(part.infos[0]).items():
        table = exp.Table(this=exp.to_identifier(info.dataset), db=exp.to_identifier(owner))
        found[owner] = Part(owner, table, (info,), part.columns, part.conditions)
    return found


def groups(select: exp.Select, found: list[Source], planning: Planning) -> list[Group]:
    """Groups of sources for one fragment each, with the conditions they take in (those leave the block)."""
    made = [Group([source]) for source in found if not source.local]
    if planning.full:
        made = _joined(select, made, planning)
        _take_outer(made, planning)
    if planning.mode is not Mode.PULL:
        _absorb(select, made, planning)
        _absorb_on(made)
    return made


def _joined(select: exp.Select, made: list[Group], planning: Planning) -> list[Group]:
    """Merge groups of one owner that a condition connects."""
    conditions = [(one, trees.column_tables(one)) for one in trees.where_of(select)] if len(made) > 1 else []
    conditions = [(one, tables) for one, tables in conditions if len(tables) > 1]
    changed = True
    while changed:
        changed = False
        for condition, tables in conditions:
            touched = [group for group in made if group.aliases & tables and not _apart(group)]
            for one in touched[1:]:
                if together(touched[0], one, [condition], planning):
                    _meet(touched[0], one)
                    touched[0].sources += one.sources
                    made.remove(one)
                    changed = True
                    break
            if changed:
                break
    return made


def _apart(group: Group) -> bool:
    """A source that cannot change its place among the joins."""
    source = group.sources[0]
    join = source.join
    if join is not None and (not trees.is_inner(join) or join.args.get("on") is not None):
        return True  # a condition in ON belongs to its place
    return source.nullable or source.aggregate_only


def together(one: Group, other: Group, conditions: list[exp.Expr], planning: Planning, *, fixed: bool = False) -> bool:
    """Whether each owner can join its shares by itself: one share each at one owner, or co-located shares.

    `fixed`: `one` must stay where it is (each of its rows may be read once only).
    """
    if not planning.across_agreements and len({info.agreement for info in (*one.infos, *other.infos)}) > 1:
        return False
    if not planning.may_join((*one.infos, *other.infos), tables=2):
        return False
    if one.owners != other.owners:
        met = _owners_met(one, other)
        return met is not None and (met == one.owners or not fixed)
    return len(one.owners) == 1 or any(co_located(one, other, condition) for condition in conditions)


def _owners_met(one: Group, other: Group) -> tuple[str, ...] | None:
    """Where both can be read whole or share by share, if the one moves to the other's owners."""
    for fixed, moving in ((one, other), (other, one)):
        if all(set(fixed.owners) <= set(source.copies) for source in moving.members):
            return fixed.owners
    return None


def _meet(one: Group, other: Group) -> None:
    """Let sources that have copies everywhere be read where the others are."""
    owners = _owners_met(one, other)
    if one.owners == other.owners or owners is None:
        return
    for group in (one, other):
        if group.owners != owners:
            for source in group.members:
                source.parts = tuple(source.copies[owner] for owner in owners)


def co_located(one: Group, other: Group, condition: exp.Expr) -> bool:
    """Shares of two datasets cut by one rule, joined by equality of what they were cut by."""
    if not isinstance(condition, exp.EQ) or len(set(one.owners)) != len(one.owners):
        return False
    sides = (condition.this, condition.expression)
    if not all(isinstance(side, exp.Column) for side in sides):
        return False
    schemes = set()
    for side in sides:
        source = next((s for group in (one, other) for s in group.sources if s.alias == side.table), None)
        if source is None or len({group for group in (one, other) if source in group.sources}) != 1:
            return False
        for part in source.parts:
            value = part.columns.get(side.name, side)
            cut = part.infos[0].partition if len(part.infos) == 1 else None
            if cut is None or not isinstance(value, exp.Column) or cut.columns != (value.name,):
                return False
            schemes.add(cut.scheme)
    return (
        len(schemes) == 1
        and {side.table for side in sides} <= one.aliases | other.aliases
        and not ({side.table for side in sides} <= one.aliases or {side.table for side in sides} <= other.aliases)
    )


def _take_outer(made: list[Group], planning: Planning) -> None:
    """A LEFT, SEMI or ANTI join goes along where ON speaks of one group and the joined source only."""
    for late in [group for group in made if group.sources[0].join is not None]:
        source = late.sources[0]
        join = source.join
        if join is None or trees.is_inner(join) or trees.side(join) in ("RIGHT", "FULL") or len(late.sources) > 1:
            continue
        if source.aggregate_only or join.args.get("on") is None or not _nulls_stay(source):
            continue
        reads = trees.column_tables(join.args["on"]) - {source.alias} - trees.aliases(join.args["on"])
        target = next((g for g in made if g is not late and reads and reads <= g.aliases and not _apart(g)), None)
        on = trees.conjuncts(join.args["on"])
        if target is None or not together(target, late, on, planning, fixed=True):
            continue
        if trees.has_query(join.args["on"]):
            continue
        _meet(target, late)
        target.outer.append(source)
        made.remove(late)


def _nulls_stay(source: Source) -> bool:
    """Whether a row that a LEFT join did not find is NULL in every column, also in those read through a query."""
    values = [value for part in source.parts for value in part.columns.values()]
    return all(isinstance(value, exp.Column) for value in values)


def _absorb(select: exp.Select, made: list[Group], planning: Planning) -> None:
    """Conditions of WHERE that one group can judge go into its fragment."""
    kept = []
    for condition in trees.where_of(select):
        reads = trees.free_tables(condition)
        group = next((one for one in made if _judges(one, condition, reads, planning)), None)
        group = group or next((one for one in made if colocated_exists.take(one, condition, planning)), None)
        if group is None:
            kept.append(condition)
        else:
            group.conditions.append(condition)
    trees.set_where(select, kept)


def _judges(group: Group, condition: exp.Expr, reads: Set[str], planning: Planning) -> bool:
    if not about(group, reads):
        return False
    if group.aggregate_only:
        return _for_grid(group, condition)
    if not trees.has_query(condition):
        return True
    return _at_home(group, condition, planning)


def about(group: Group, reads: Set[str]) -> bool:
    """Whether a condition of WHERE that reads these sources reads this group alone, before an outer join has touched
    its rows."""
    if not reads or not reads <= group.aliases or any(source.nullable for source in group.sources):
        return False
    return group.sources[0].join is None or trees.is_inner(group.sources[0].join)


def _at_home(group: Group, condition: exp.Expr, planning: Planning) -> bool:
    """Whether the subqueries of a condition read only what the group's one owner has."""
    if not planning.full:
        return False
    tables = trees.tables(condition)
    infos = planning.infos(tables)
    if any(info.aggregate_only or not set(group.owners) <= set(planning.sites(info)) for info in infos):
        return False
    if planning.unites(tables) or any(not table.db for table in tables):
        return False
    return planning.may_join(tuple({id(info): info for info in (*infos, *group.infos)}.values()), tables=2)


def _for_grid(group: Group, condition: exp.Expr) -> bool:
    """Aggregate-only data takes comparisons of dimensions with literals (federated-query, section 7)."""
    dimensions = {fold(name) for info in group.infos if info.grid is not None for name in info.grid.dimensions}
    if isinstance(condition, exp.EQ | exp.NEQ | exp.LT | exp.LTE | exp.GT | exp.GTE):
        pairs = ((condition.this, condition.expression), (condition.expression, condition.this))
        return any(_dimension(a, dimensions) and _literal(b) for a, b in pairs)
    if isinstance(condition, exp.In) and condition.args.get("query") is None:
        return _dimension(condition.this, dimensions) and all(_literal(one) for one in condition.expressions)
    if isinstance(condition, exp.Between):
        bounds = (condition.args["low"], condition.args["high"])
        return _dimension(condition.this, dimensions) and all(_literal(one) for one in bounds)
    return False


def _dimension(node: exp.Expr, dimensions: set[str]) -> bool:
    return isinstance(node, exp.Column) and fold(node.name) in dimensions


def _literal(node: exp.Expr) -> bool:
    while isinstance(node, exp.Cast | exp.Neg | exp.Paren):
        node = node.this
    return isinstance(node, exp.Literal | exp.Boolean)


def _absorb_on(made: list[Group]) -> None:
    """Conditions in ON of a LEFT, SEMI or ANTI join that speak of the joined source only narrow its scan."""
    for group in made:
        source = group.sources[0]
        join = source.join
        if join is None or len(group.sources) > 1 or trees.is_inner(join) or trees.side(join) in ("RIGHT", "FULL"):
            continue
        if source.aggregate_only or join.args.get("on") is None:
            continue
        kept = []
        for condition in trees.conjuncts(join.args["on"]):
            only = trees.column_tables(condition) == {source.alias} and not trees.has_query(condition)
            if only:
                group.conditions.append(condition)
            else:
                kept.append(condition.copy())
        join.set("on", trees.conjoin(kept) or exp.Boolean(this=True))
