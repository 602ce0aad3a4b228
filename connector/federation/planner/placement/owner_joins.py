"""Groups sources that one owner can join, and moves each condition to the fragment whose columns it reads.

Includes LEFT, SEMI and ANTI joins with both sides at one owner. Conditions on columns that an outer join may set to
NULL stay here, as do blocks with RIGHT and FULL joins.
"""

from __future__ import annotations

from collections.abc import Set

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.model import Mode
from connector.federation.planner.placement import colocated_exists
from connector.federation.planner.select_block import BlockSource, SourceGroup, SourcePart
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def read_sources(select: exp.Select, planning: PlanningContext) -> list[BlockSource]:
    """The block's sources in the order of FROM."""
    found: list[BlockSource] = []
    for node, join in trees.entries(select):
        found.append(source_of(node, join, planning))
        if join is not None and trees.side(join) in ("LEFT", "FULL"):
            found[-1].nullable = True
        if join is not None and trees.side(join) in ("RIGHT", "FULL"):
            for before in found[:-1]:
                before.nullable = True
    return found


def source_of(node: exp.Expr, join: exp.Join | None, planning: PlanningContext) -> BlockSource:
    """The source of one entry of FROM, with the owners of its rows."""
    alias = node.alias_or_name
    parts = tuple(blocks.rebase(part, alias) for part in blocks.parts_of(node, planning))
    return BlockSource(alias, node, join, parts, copies=_copies(parts, planning))


def _copies(parts: tuple[SourcePart, ...], planning: PlanningContext) -> dict[str, SourcePart]:
    if len(parts) != 1 or len(parts[0].infos) != 1 or not isinstance(parts[0].relation, exp.Table):
        return {}
    part, found = parts[0], {}
    for owner, info in planning.sites(part.infos[0]).items():
        table = exp.Table(this=exp.to_identifier(info.dataset), db=exp.to_identifier(owner))
        found[owner] = SourcePart(owner, table, (info,), part.columns, part.conditions)
    return found


def groups(select: exp.Select, found: list[BlockSource], planning: PlanningContext) -> list[SourceGroup]:
    """Groups of sources, one for each fragment. Conditions that a group tests leave the block."""
    made = [SourceGroup([source]) for source in found if not source.local]
    if planning.full:
        made = _joined(select, made, planning)
        _take_outer(made, planning)
    if planning.mode is not Mode.PULL:
        _absorb(select, made, planning)
        _absorb_on(made)
    return made


def _joined(select: exp.Select, made: list[SourceGroup], planning: PlanningContext) -> list[SourceGroup]:
    """Merge groups at one owner that a condition connects."""
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


def _apart(group: SourceGroup) -> bool:
    """Whether the group's source must keep its place among the joins."""
    source = group.sources[0]
    join = source.join
    if join is not None and (not trees.is_inner(join) or join.args.get("on") is not None):
        return True  # a condition in ON holds only at its place
    return source.nullable or source.aggregate_only


def together(
    one: SourceGroup, other: SourceGroup, conditions: list[exp.Expr], planning: PlanningContext, *, fixed: bool = False
) -> bool:
    """Whether each owner can join its shares: both groups have one share at one owner, or their shares are co-located.

    fixed: `one` must keep its owners, as each of its rows may be read only once.
    """
    if not planning.across_agreements and len({info.agreement for info in (*one.infos, *other.infos)}) > 1:
        return False
    if not planning.may_join((*one.infos, *other.infos), tables=2):
        return False
    if one.owners != other.owners:
        met = _owners_met(one, other)
        return met is not None and (met == one.owners or not fixed)
    return len(one.owners) == 1 or any(co_located(one, other, condition) for condition in conditions)


def _owners_met(one: SourceGroup, other: SourceGroup) -> tuple[str, ...] | None:
    """The owners at which both can be read, if one group has copies at the other's owners."""
    for fixed, moving in ((one, other), (other, one)):
        if all(set(fixed.owners) <= set(source.copies) for source in moving.members):
            return fixed.owners
    return None


def _meet(one: SourceGroup, other: SourceGroup) -> None:
    """Read sources that have copies at the other group's owners there."""
    owners = _owners_met(one, other)
    if one.owners == other.owners or owners is None:
        return
    for group in (one, other):
        if group.owners != owners:
            for source in group.members:
                source.parts = tuple(source.copies[owner] for owner in owners)


def co_located(one: SourceGroup, other: SourceGroup, condition: exp.Expr) -> bool:
    """Whether a condition joins two datasets by `=` on their partition columns of one scheme."""
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


def _take_outer(made: list[SourceGroup], planning: PlanningContext) -> None:
    """Add a LEFT, SEMI or ANTI join to a group, if ON reads only that group and the joined source."""
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


def _nulls_stay(source: BlockSource) -> bool:
    """Whether every column of the source is NULL for a row that a LEFT join did not match."""
    values = [value for part in source.parts for value in part.columns.values()]
    return all(isinstance(value, exp.Column) for value in values)


def _absorb(select: exp.Select, made: list[SourceGroup], planning: PlanningContext) -> None:
    """Move conditions of WHERE that one group can test into its fragment."""
    kept = []
    for condition in trees.where_of(select):
        reads = trees.free_tables(condition)
        group = next((one for one in made if _judges(one, condition, reads, planning)), None)
        group = group or next((one for one in made if colocated_exists.take_condition(one, condition, planning)), None)
        if group is None:
            kept.append(condition)
        else:
            group.conditions.append(condition)
    trees.set_where(select, kept)


def _judges(group: SourceGroup, condition: exp.Expr, reads: Set[str], planning: PlanningContext) -> bool:
    if not about(group, reads):
        return False
    if group.aggregate_only:
        return _for_grid(group, condition)
    if not trees.has_query(condition):
        return True
    return _at_home(group, condition, planning)


def about(group: SourceGroup, reads: Set[str]) -> bool:
    """Whether a condition on these sources reads only this group, before any outer join of the group's rows."""
    if not reads or not reads <= group.aliases or any(source.nullable for source in group.sources):
        return False
    return group.sources[0].join is None or trees.is_inner(group.sources[0].join)


def _at_home(group: SourceGroup, condition: exp.Expr, planning: PlanningContext) -> bool:
    """Whether the subqueries of a condition read only datasets of the group's owner."""
    if not planning.full:
        return False
    tables = trees.tables(condition)
    infos = planning.infos(tables)
    if any(info.aggregate_only or not set(group.owners) <= set(planning.sites(info)) for info in infos):
        return False
    if planning.has_union(tables) or any(not table.db for table in tables):
        return False
    return planning.may_join(tuple({id(info): info for info in (*infos, *group.infos)}.values()), tables=2)


def _for_grid(group: SourceGroup, condition: exp.Expr) -> bool:
    """Whether a condition compares a dimension with literals, which aggregate-only data accepts (section 7)."""
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


def _absorb_on(made: list[SourceGroup]) -> None:
    """Move conditions in ON of a LEFT, SEMI or ANTI join that read only the joined source into its scan."""
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
