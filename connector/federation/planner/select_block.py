"""One SELECT block in the planner: its sources, the owners of their rows, and groups of sources for one fragment.

A source has parts, one at each owner with a share of it. A part is a table or derived table, an expression for each
column of the source, and conditions. A source without parts is computed here (local).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from sqlglot import exp

from connector.federation.planner import expansion_limit
from connector.federation.planner.context import FragmentShare, PlanningContext
from connector.federation.planner.model import TableInfo
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees

_VALUE_MAX = 400  # nodes of an expression that replaces a column in each place


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A share of a source at one owner. `columns`: column to its expression there, if it is not the same column."""

    owner: str
    relation: exp.Expr
    infos: tuple[TableInfo, ...]
    columns: dict[str, exp.Expr] = field(default_factory=dict)
    conditions: tuple[exp.Expr, ...] = ()


@dataclass(slots=True, eq=False)
class BlockSource:
    """One entry of FROM. `nullable`: an outer join may set its columns to NULL after its own conditions."""

    alias: str
    node: exp.Expr
    join: exp.Join | None
    parts: tuple[SourcePart, ...] = ()
    nullable: bool = False
    copies: dict[str, SourcePart] = field(default_factory=dict)  # for each owner with all of its rows

    @property
    def local(self) -> bool:
        return not self.parts

    @property
    def infos(self) -> tuple[TableInfo, ...]:
        if len(self.parts) == 1 and len(self.parts[0].infos) == 1:  # the usual case: a dataset at one owner
            return self.parts[0].infos
        return tuple({id(info): info for part in self.parts for info in part.infos}.values())

    @property
    def aggregate_only(self) -> bool:
        return any(info.aggregate_only for part in self.parts for info in part.infos)


def types_of(sources: Iterable[BlockSource]) -> dict[tuple[str, str], str]:
    """(source alias, column name) to type, for all columns of the sources' datasets."""
    infos = ((source.alias, info) for source in sources for info in source.infos)
    return {(alias, fold(column.name)): column.type for alias, info in infos for column in info.columns}


@dataclass(slots=True, eq=False)
class SourceGroup:
    """Sources that one fragment can join at each owner.

    outer: sources of LEFT, SEMI and ANTI joins in the same fragment.
    nested: sources in subqueries of its conditions; each owner reads its own share of them.
    """

    sources: list[BlockSource]
    conditions: list[exp.Expr] = field(default_factory=list)
    outer: list[BlockSource] = field(default_factory=list)
    nested: list[BlockSource] = field(default_factory=list)
    node: exp.Expr | None = None  # its entry in the block's FROM

    @property
    def owners(self) -> tuple[str, ...]:
        return tuple(part.owner for part in self.sources[0].parts)

    @property
    def members(self) -> list[BlockSource]:
        return [*self.sources, *self.outer]

    @property
    def aliases(self) -> set[str]:
        return {source.alias for source in self.members}

    @property
    def name(self) -> str:
        return self.sources[0].alias

    @property
    def infos(self) -> tuple[TableInfo, ...]:
        read = [*self.members, *self.nested]
        return tuple({id(info): info for source in read for info in source.infos}.values())

    @property
    def types(self) -> dict[tuple[str, str], str]:
        """See `types_of`."""
        return types_of(self.members)

    def used_names(self, select: exp.Select) -> set[str]:
        """Names of its columns and of all columns that the SELECT reads, which a generated name must not repeat."""
        return {name for _, name in self.types} | {column.name for column in trees.columns(select)}

    @property
    def aggregate_only(self) -> bool:
        return any(source.aggregate_only for source in self.members)

    @property
    def rows(self) -> int | None:
        """The estimated rows of its largest source; None if all are unknown."""
        known = [sum(i.rows or 0 for i in source.infos) for source in self.sources if all(
            i.rows is not None for i in source.infos)]  # fmt: skip
        return max(known, default=None)


def parts_of_table(table: exp.Table, planning: PlanningContext) -> tuple[SourcePart, ...]:
    """One part for each owner's share of a dataset."""
    return tuple(
        SourcePart(
            info.owner, exp.Table(this=exp.to_identifier(info.dataset), db=exp.to_identifier(info.owner)), (info,)
        )
        for info in planning.shares(table)
    )


def parts_of(source: exp.Expr, planning: PlanningContext) -> tuple[SourcePart, ...]:
    """The parts of a dataset, of a query over one owner, or of a UNION ALL of these; () if it is computed here."""
    if isinstance(source, exp.Table):
        return parts_of_table(source, planning) if source.db else ()
    query = trees.unwrap(source.this)
    branches = _branches(query)
    if len(branches) > 1 and not has_same_types(branches, planning):
        return ()
    names = [output.alias_or_name for output in branches[0].selects] if isinstance(branches[0], exp.Select) else []
    found = [_parts_of_branch(branch, names, planning, alone=len(branches) == 1) for branch in branches]
    return tuple(part for parts in found for part in parts) if all(found) else ()


def find_home(node: exp.Expr, planning: PlanningContext) -> tuple[str, tuple[TableInfo, ...]] | None:
    """The only owner that can answer all of `node`, and the datasets that it reads there; else None.

    None for aggregate-only datasets too, which answer only figures over groups.
    """
    tables = trees.tables(node)
    infos = planning.infos(tables)
    if not infos or any(info.aggregate_only for info in infos) or planning.has_union(tables):
        return None
    common = set.intersection(*(set(planning.sites(info)) for info in infos))
    if not common:
        return None
    owner = infos[0].owner if infos[0].owner in common else min(common)
    infos = tuple(planning.sites(info)[owner] for info in infos)
    own = [table for table in tables if not table.db]
    if not planning.may_join(infos, tables=len(tables) - len(own)):
        return None
    if not all(_is_cte(table, node) for table in own):
        return None
    return owner, infos


def statement(
    group: SourceGroup,
    number: int,
    outputs: Sequence[tuple[str, exp.Expr]],
    *,
    keys: Iterable[exp.Expr] = (),
    clauses: Mapping[str, exp.Expr | None] = MappingProxyType({}),
) -> exp.Select:
    """The SELECT for share `number` of a group: `outputs` from its sources with its conditions, GROUP BY `keys`.

    clauses: further clauses of the SELECT (having, qualify, distinct), over the group's sources.
    """
    select = exp.Select(expressions=[trees.alias_as(value.copy(), name) for name, value in outputs])
    for source in group.sources:
        relation = _relation(source, source.parts[number])
        if select.args.get("from_") is None:
            select.set("from_", exp.From(this=relation))
        else:
            select.append("joins", exp.Join(this=relation))
    for source in group.outer:
        assert source.join is not None
        join = source.join.copy()
        join.set("this", _relation(source, source.parts[number]))
        select.append("joins", join)
    keys = [key.copy() for key in keys]
    if keys:
        select.set("group", exp.Group(expressions=keys))
    for name, clause in clauses.items():
        select.set(name, clause.copy() if clause is not None else None)
    trees.set_where(select, [_use_nested_shares(condition.copy(), group, number) for condition in group.conditions])
    return _drop_constant_keys(_add_part_conditions(_substitute_columns(select, group, number), group, number))


def shares(group: SourceGroup, statement_of: Callable[[int], exp.Expr]) -> list[FragmentShare]:
    """The share of each owner of a group. Shares with equal statements get one tree from `statement_of(number)`."""
    made: list[tuple[list[SourcePart], exp.Expr]] = []
    for number in range(len(group.owners)):
        parts = [source.parts[number] for source in (*group.members, *group.nested)]
        same = next((tree for others, tree in made if all(map(_is_same_share, others, parts))), None)
        made.append((parts, statement_of(number) if same is None else same))
    return [FragmentShare(owner, tree) for owner, (_, tree) in zip(group.owners, made, strict=True)]


def _is_same_share(one: SourcePart, other: SourcePart) -> bool:
    """Whether two shares get the same statement."""
    tables = isinstance(one.relation, exp.Table) and isinstance(other.relation, exp.Table)
    same = tables and one.relation.name == other.relation.name
    return same and one.columns == other.columns and one.conditions == other.conditions


def _substitute_columns(select: exp.Select, group: SourceGroup, number: int) -> exp.Select:
    read = [*group.members, *group.nested]
    known = {source.alias: source.parts[number].columns for source in read if source.parts[number].columns}
    if known:
        write_out([one for one in trees.columns(select) if one.table in known], known)
    return select


def _add_part_conditions(select: exp.Select, group: SourceGroup, number: int) -> exp.Select:
    """The SELECT with each part's own conditions, over the dataset's columns.

    Runs after `_substitute_columns`, which would replace these columns too.
    """

    def own(source: BlockSource) -> list[exp.Expr]:
        return [condition.copy() for condition in source.parts[number].conditions]

    there = [condition for source in group.sources for condition in own(source)]
    trees.set_where(select, dict.fromkeys([*trees.where_of(select), *there]))
    joins = {join.this.alias_or_name: join for join in select.args.get("joins") or ()}
    for source in group.outer:
        # Rows that the part's own conditions exclude must not match: these conditions belong to ON, not to WHERE.
        join = joins[source.alias]
        join.set("on", trees.conjoin([*trees.conjuncts(join.args["on"]), *own(source)]))
    for source in group.nested:
        for inner in _selects_from(select, source):
            trees.set_where(inner, [*trees.where_of(inner), *own(source)])
    return select


def write_out(columns: Iterable[exp.Column], known: Mapping[str, Mapping[str, exp.Expr]]) -> None:
    """Replace columns by their expressions at an owner. `known`: source alias and column name to expression."""
    parts = 0
    for column in columns:
        value = known.get(column.table, {}).get(column.name)
        if value is not None:
            parts += expansion_limit.size(value)
            if parts > expansion_limit.MOST:
                raise expansion_limit.too_large_error()
            trees.substitute(value, column)


def _use_nested_shares(condition: exp.Expr, group: SourceGroup, number: int) -> exp.Expr:
    """The condition with this share of each nested source in place of the whole source."""
    for source in group.nested:
        for select in _selects_from(condition, source):
            select.args["from_"].set("this", _relation(source, source.parts[number]))
    return condition


def _selects_from(node: exp.Expr, source: BlockSource) -> list[exp.Select]:
    """The SELECTs in a node whose FROM begins with the source."""
    firsts = ((select, trees.sources(select)[:1]) for select in trees.selects(node))
    return [select for select, first in firsts if first and first[0].alias_or_name == source.alias]


def _drop_constant_keys(select: exp.Select) -> exp.Select:
    """Remove constants from GROUP BY: a share may have one as key (its own name), and a number means a position."""
    clause = select.args.get("group")
    if clause is not None:
        varying = [key for key in clause.expressions if key.find(exp.Column) is not None]
        select.set("group", exp.Group(expressions=varying) if varying else None)
        if not varying and select.args.get("having") is None:
            some = exp.GT(this=exp.Count(this=exp.Star()), expression=exp.Literal.number(0))
            select.set("having", exp.Having(this=some))
    return select


def _relation(source: BlockSource, part: SourcePart) -> exp.Expr:
    relation = part.relation.copy()
    relation.set("alias", exp.TableAlias(this=exp.to_identifier(source.alias)))
    return relation


def _branches(query: exp.Expr) -> list[exp.Expr]:
    """The queries of a UNION ALL, or the query itself."""
    found: list[exp.Expr] = []
    stack = [query]
    while stack:
        node = trees.unwrap(stack.pop())
        plain = not any(node.args.get(name) for name in ("order", "limit", "offset", "with_"))
        if isinstance(node, exp.Union) and plain and not node.args.get("distinct"):
            stack.extend((node.args["expression"], node.this))
        else:
            found.append(node)
    return found


def has_same_types(branches: Sequence[exp.Expr], planning: PlanningContext) -> bool:
    """Whether UNION ALL converts no types, so that a condition on its rows may be tested in each branch."""
    kinds = []
    for branch in branches:
        if not isinstance(branch, exp.Select):
            return False
        kinds.append([_type(output.unalias(), branch, planning) for output in branch.selects])
    return all(one == kinds[0] and None not in one for one in kinds)


def _type(value: exp.Expr, branch: exp.Select, planning: PlanningContext) -> str | None:
    if isinstance(value, exp.Literal):
        small = str(value.this).isdecimal() and len(str(value.this)) < 10
        return "VARCHAR" if value.is_string else "INTEGER" if small else None
    if not isinstance(value, exp.Column):
        return None
    for source in trees.sources(branch):
        if source.alias_or_name != value.table:
            continue
        if isinstance(source, exp.Table) and source.db:
            types = {fold(column.name): column.type for column in planning.columns(source)}
            return types.get(fold(value.name))
        if isinstance(source, exp.Subquery) and isinstance(inner := trees.unwrap(source.this), exp.Select):
            for output in inner.selects:
                if output.alias_or_name == value.name:
                    return _type(output.unalias(), inner, planning)
    return None


def _parts_of_branch(
    query: exp.Expr, names: Sequence[str], planning: PlanningContext, *, alone: bool
) -> tuple[SourcePart, ...]:
    """The parts of a branch: of its dataset where it only selects, computes and filters; else one derived table."""
    simple = _read_through(query, names, planning)
    if simple:
        return simple
    found = find_home(query, planning)
    if found is None or trees.free_tables(query) or (alone and not planning.full):
        return ()
    inner = query.copy()
    if isinstance(inner, exp.Select) and names:
        outputs = [trees.alias_as(one.unalias().copy(), name) for one, name in zip(inner.selects, names, strict=True)]
        inner.set("expressions", outputs)
    return (SourcePart(found[0], exp.Subquery(this=inner), found[1]),)


def _read_through(query: exp.Expr, names: Sequence[str], planning: PlanningContext) -> tuple[SourcePart, ...]:
    if not isinstance(query, exp.Select) or query.args.get("joins") or not trees.is_plain(query):
        return ()
    tables = trees.sources(query)
    if len(tables) != 1 or not isinstance(tables[0], exp.Table) or not tables[0].db or trees.free_tables(query):
        return ()
    if any(trees.has_query(one) for one in (*query.expressions, *trees.where_of(query))):
        return ()
    columns = {name: one.unalias() for name, one in zip(names, query.selects, strict=True)}
    if any(expansion_limit.size(value) > _VALUE_MAX for value in columns.values()):
        return ()  # a derived table computes each expression once
    conditions = tuple(trees.where_of(query))
    return tuple(replace(part, columns=columns, conditions=conditions) for part in parts_of_table(tables[0], planning))


def rebase(part: SourcePart, alias: str) -> SourcePart:
    """The part with its columns and conditions over the source's alias."""

    def over(node: exp.Expr) -> exp.Expr:
        found = node.copy()
        for column in [found] if isinstance(found, exp.Column) else list(found.find_all(exp.Column)):
            column.set("table", exp.to_identifier(alias))
        return found

    columns = {name: over(value) for name, value in part.columns.items()}
    return SourcePart(part.owner, part.relation, part.infos, columns, tuple(over(one) for one in part.conditions))


def _is_cte(table: exp.Table, node: exp.Expr) -> bool:
    return any(cte.alias == table.name for cte in node.find_all(exp.CTE))


__all__ = ["BlockSource", "SourceGroup", "SourcePart", "find_home", "parts_of", "rebase", "shares", "statement"]
