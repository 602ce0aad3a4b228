"""State that the planner's rules share while one query is planned: the known tables, and the fragments made so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner import sql_text
from connector.federation.planner.model import (
    ALL,
    Fragment,
    KeyFilter,
    Mode,
    Note,
    TableColumn,
    TableInfo,
    Tables,
    shared_name,
)
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees
from policies.sql.rewrite import list_nodes

_SITE_MAX = 32  # characters of an owner's name in a fragment's id; the name of a read has at most 64 in all


@dataclass(frozen=True, slots=True)
class FragmentShare:
    """One owner's part of a fragment: its statement. Shares with equal statements have the same tree."""

    owner: str
    statement: exp.Expr


@dataclass(slots=True)
class FragmentDraft:
    """A fragment that is not final yet: its table, and the statement of each share. Rules may still add keys."""

    table: str
    shares: list[FragmentShare]
    outputs: tuple[str, ...]
    kind: str
    pushed: list[str]
    sources: list[dict[str, TableInfo]]  # for each share: alias to the dataset that it reads
    read: list[tuple[TableInfo, ...]]  # for each share: the datasets that it reads, without repeats
    keys: list[KeyFilter] = field(default_factory=list)


@dataclass(slots=True)
class PlanningContext:
    """One query that is being planned."""

    tables: Tables
    mode: Mode = Mode.FULL
    # Whether one fragment may read datasets of several agreements with its owner.
    across_agreements: bool = False
    drafts: dict[str, FragmentDraft] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    # Nodes that rules may still add when they replace names by their expressions. Repeated replacement multiplies.
    room: int = 4_000
    _known: dict[tuple[tuple[str, exp.Expr], ...], str] = field(default_factory=dict)
    _columns: dict[tuple[str, str], tuple[TableColumn, ...]] = field(default_factory=dict)
    _types: dict[int, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Participants choose their own names, so one name must not stand for two participants.
        first: dict[str, TableInfo] = {}
        for info in self.tables.values():
            check_one_participant(first.setdefault(info.owner, info), info)

    @property
    def full(self) -> bool:
        return self.mode is Mode.FULL

    def may_grow(self, parts: int) -> bool:
        """Reserve nodes that a rule wants to add to the query; False, and nothing reserved, if there are too few."""
        if parts > self.room:
            return False
        self.room -= parts
        return True

    def shares(self, table: exp.Table) -> tuple[TableInfo, ...]:
        """The datasets whose union a table is: itself, or every owner's share for the owner "all"; () if none."""
        if fold(table.db) != ALL:
            return (self.info(table),)
        name = fold(table.name)
        return tuple(info for (owner, dataset), info in self.tables.items() if dataset == name and owner != ALL)

    def columns(self, table: exp.Table) -> tuple[TableColumn, ...]:
        """The columns of a dataset that every share has, in the order of the first share."""
        key = (fold(table.db), fold(table.name))
        if key not in self._columns:
            self._columns[key] = self._common_columns(table)
        return self._columns[key]

    def _common_columns(self, table: exp.Table) -> tuple[TableColumn, ...]:
        first, *others = self.shares(table)
        if not others:
            return first.columns
        common = [{fold(column.name) for column in info.columns} for info in others]
        return tuple(column for column in first.columns if all(fold(column.name) in names for names in common))

    def types(self, columns: tuple[TableColumn, ...]) -> Mapping[str, str]:
        """Folded column name to type, for a dataset's columns."""
        if id(columns) not in self._types:  # a dataset's columns outlive the query, so their id is a stable key
            self._types[id(columns)] = {fold(column.name): column.type for column in columns}
        return self._types[id(columns)]

    def info(self, table: exp.Table, at: str = "") -> TableInfo:
        """The dataset of a table, or with `at`, the dataset of that name at another owner.

        Raises:
            QueryInvalid: there is no agreement in force for it.
        """
        found = self.tables.get((fold(at or table.db), fold(table.name)))
        if found is None:
            known = ", ".join(sorted(one.quoted_name for one in self.tables.values()))
            others = f" (this query's datasets with an agreement: {known})" if known else ""
            raise QueryInvalid(
                f'there is no agreement in force for "{table.db}".{table.name}{others}; negotiate an agreement with '
                "`hanse negotiate`, or list yours with `hanse agreements`",
                code="agreement_missing",
            )
        return found

    def infos(self, tables: Sequence[exp.Table]) -> tuple[TableInfo, ...]:
        """The datasets among tables, without repeats."""
        found = {id(info): info for table in tables if table.db for info in self.shares(table)}
        return tuple(found.values())

    @staticmethod
    def has_union(tables: Sequence[exp.Table]) -> bool:
        """Whether a table is the union of several owners' datasets."""
        return any(fold(table.db) == ALL for table in tables)

    def sites(self, info: TableInfo) -> dict[str, TableInfo]:
        """Owner to dataset, for the dataset's owner and all owners with a copy of it."""
        found = {info.owner: info}
        if info.content:
            for other in self.tables.values():
                if other.content == info.content:
                    found.setdefault(other.owner, other)
        return found

    def may_join(self, infos: Sequence[TableInfo], *, tables: int) -> bool:
        """Whether the agreements allow one fragment with `tables` references to these datasets.

        They must be under one agreement, unless owners accept several, and each may be joined with the others.
        """
        if len({info.agreement for info in infos}) > 1 and not self.across_agreements:
            return False
        if tables < 2:
            return True
        for info in infos:
            others = [one for one in infos if one.owner == info.owner and one is not info] or [info]
            if info.joins is not None and not all(_is_named_in(one, info.joins) for one in others):
                return False
        return True

    def _use_copies_at(self, statement: exp.Expr, owner: str) -> list[exp.Table]:
        """Replace the statement's datasets by the owner's own copies; returns its tables."""
        tables = trees.base_tables(statement)
        for table in tables:
            info = self.info(table)
            if info.owner != owner:
                there = self.sites(info)[owner]
                table.set("this", exp.to_identifier(there.dataset))
                table.set("db", exp.to_identifier(there.owner))
        return tables

    def _place_at_owners(self, shares: Sequence[FragmentShare]) -> Iterator[tuple[FragmentShare, list[exp.Table]]]:
        """Each share with its owner's dataset names, and its tables. Shares with equal names keep one tree."""
        first: dict[int, tuple[str, list[exp.Table]]] = {}
        for share in shares:
            owner, statement = share.owner, share.statement
            if id(statement) not in first:
                first[id(statement)] = owner, self._use_copies_at(statement, owner)
            begun, tables = first[id(statement)]
            if begun == owner or self._has_same_names_at(tables, begun, owner):
                yield share, tables
            else:
                own = statement.copy()
                yield FragmentShare(owner, own), self._use_copies_at(own, owner)

    def _has_same_names_at(self, tables: Sequence[exp.Table], owner: str, other: str) -> bool:
        """Whether every copy that is read at `owner` has the same name at `other`."""
        for table in tables:
            info = self.info(table, owner)
            if info.content and self.sites(info)[other].dataset != info.dataset:
                return False
        return True

    def note(self, what: str, reason: str, detail: str = "") -> None:
        one = Note(what, reason, detail)
        if one not in self.notes:
            self.notes.append(one)

    def draft(
        self,
        shares: Sequence[FragmentShare],
        *,
        outputs: Sequence[str],
        kind: str,
        pushed: Sequence[str] = (),
    ) -> str:
        """Add a fragment of one or more shares; returns the name of its table, also for an equal earlier fragment.

        The statements belong to the draft from now on. The caller must not change them.
        """
        found = list(self._place_at_owners(shares))
        same = tuple((share.owner, share.statement) for share, _ in found)  # trees compare by content
        if same not in self._known:
            table = self._known[same] = f"f{len(self._known)}"
            sources = [{one.alias_or_name: self.info(one, share.owner) for one in there} for share, there in found]
            read = [tuple({id(info): info for info in one.values()}.values()) for one in sources]
            every = [share for share, _ in found]
            self.drafts[table] = FragmentDraft(table, every, tuple(outputs), kind, list(pushed), sources, read)
        return self._known[same]

    def fragments(self, estimate: Callable[[FragmentDraft], Sequence[tuple[int, int] | None]]) -> tuple[Fragment, ...]:
        """The drafts as fragments, one for each share. `estimate` returns rows and bytes of each share."""
        return tuple(one for draft in self.drafts.values() for one in self._fragments(draft, estimate(draft)))

    def _fragments(self, draft: FragmentDraft, sizes: Sequence[tuple[int, int] | None]) -> Iterator[Fragment]:
        owners = [share.owner for share in draft.shares]
        once = {id(share.statement): number for number, share in enumerate(draft.shares)}
        counts = {tree: _count_outputs(draft.shares[number].statement) for tree, number in once.items()}
        named_in = {tree: _names_in(draft.shares[number].statement) for tree, number in once.items()}
        unfiltered = {tree: _is_unfiltered(draft.shares[number].statement) for tree, number in once.items()}
        results = {tree: is_aggregated(draft.shares[number].statement) for tree, number in once.items()}
        sql = {tree: _write_for_owner(draft.shares[number].statement) for tree, number in once.items()}
        for number, share in enumerate(draft.shares):
            infos, expected = draft.read[number], sizes[number]
            check_one_participant(*infos)
            site = f".{share.owner}" if len(share.owner) <= _SITE_MAX and ":" not in share.owner else ""
            part = site + (f".{number}" if not site or owners.count(share.owner) > 1 else "")
            yield Fragment(
                id=draft.table + (part if len(owners) > 1 else ""),
                table=draft.table,
                owner=share.owner,
                participant=infos[0].participant,
                under=tuple((info.agreement, info.dataset) for info in infos),
                sql=sql[id(share.statement)],
                outputs=draft.outputs,
                kind=draft.kind,
                aggregate_only=any(info.aggregate_only for info in infos),
                keys=tuple(draft.keys),
                pushed=tuple(draft.pushed),
                rows=None if expected is None else expected[0],
                nbytes=None if expected is None else expected[1],
                versions=tuple((info.dataset_id, info.version) for info in infos if info.version),
                reads=tuple(
                    (info.dataset, _columns_named(info.columns, named_in[id(share.statement)])) for info in infos
                ),
                counts=counts[id(share.statement)],
                bins=tuple(dict.fromkeys(one.note() for info in infos if info.grid for one in info.grid.bins)),
                results=results[id(share.statement)] or any(info.aggregate_only for info in infos),
                left_out=next((info.grid.left_out() for info in infos if info.grid is not None), ""),
                share=next((info.grid.share for info in infos if info.grid is not None), None),
                unfiltered=unfiltered[id(share.statement)],
            )


def check_one_participant(*infos: TableInfo) -> None:
    """Refuse a fragment over datasets of several participants, as one of them gets its tickets and values.

    Raises:
        QueryInvalid: the datasets have different participants under one owner name.
    """
    other = next((info for info in infos if info.participant != infos[0].participant), None)
    if other is not None:
        raise shared_name(infos[0].owner, (infos[0].participant, other.participant), infos[0].dataset)


def _is_named_in(info: TableInfo, names: tuple[str, ...]) -> bool:
    return not {info.dataset, f"{info.owner}.{info.dataset}", info.dataset_id}.isdisjoint(names)


def _count_outputs(statement: exp.Expr) -> tuple[str, ...]:
    """The names of a statement's outputs that are COUNT, with or without FILTER."""
    if not isinstance(statement, exp.Select):
        return ()
    values = ((output.alias_or_name, output.unalias()) for output in statement.expressions)
    return tuple(
        name for name, value in values if isinstance(value.this if isinstance(value, exp.Filter) else value, exp.Count)
    )


# Aggregates whose result is a figure over many rows. Other aggregates (any_value, arg_max) return values of rows.
_FIGURES = (
    exp.Count, exp.CountIf, exp.ApproxDistinct, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.Median, exp.Quantile,
    exp.PercentileCont, exp.PercentileDisc, exp.ApproxQuantile, exp.Stddev, exp.StddevPop, exp.StddevSamp, exp.Variance,
    exp.VariancePop, exp.Corr, exp.CovarPop, exp.CovarSamp, exp.LogicalAnd, exp.LogicalOr, exp.BitwiseAndAgg,
    exp.BitwiseOrAgg, exp.BitwiseXorAgg,
)  # fmt: skip


def is_aggregated(statement: exp.Expr) -> bool:
    """Whether each row of the answer holds figures over a group, and no values of single rows."""
    if isinstance(statement, exp.SetOperation):
        return is_aggregated(statement.this) and is_aggregated(statement.expression)
    if isinstance(statement, exp.Subquery):
        return is_aggregated(statement.this)
    if not isinstance(statement, exp.Select):
        return False
    found = [one for output in statement.expressions for one in _iter_aggregates(output)]
    if found:
        return all(isinstance(one, _FIGURES) for one in found)
    ctes = {fold(one.alias): one.this for one in statement.ctes}
    joined = [join.this for join in statement.args.get("joins") or ()]
    sources = [one for one in (_from_source(statement), *joined) if one is not None]
    within = [ctes.get(fold(one.name)) if isinstance(one, exp.Table) and not one.db else one for one in sources]
    return bool(within) and all(isinstance(one, exp.Query) and is_aggregated(one) for one in within)


def _is_unfiltered(statement: exp.Expr) -> bool:
    """Whether the answer includes every group."""
    return not any(
        isinstance(node, exp.Where | exp.Having | exp.Limit | exp.Filter | exp.If) for node in list_nodes(statement)
    )


def _from_source(select: exp.Select) -> exp.Expr | None:
    found = select.args.get("from_") or select.args.get("from")
    return None if found is None else found.this


def _iter_aggregates(output: exp.Expr) -> Iterator[exp.Expr]:
    """The aggregates in an output, without those in subqueries and windows, which keep each row."""
    if isinstance(output, exp.Query | exp.Subquery | exp.Window):
        return
    if isinstance(output, exp.AggFunc | exp.Anonymous):  # an aggregate that the parser does not know is anonymous
        yield output
        return
    for part in output.iter_expressions():
        yield from _iter_aggregates(part)


def _names_in(statement: exp.Expr) -> frozenset[str]:
    """Every identifier in a statement, folded."""
    return frozenset(fold(node.name) for node in list_nodes(statement) if type(node) is exp.Identifier)


def _columns_named(columns: Sequence[TableColumn], names: Collection[str]) -> tuple[TableColumn, ...]:
    return tuple(column for column in columns if fold(column.name) in names)


def _write_for_owner(statement: exp.Expr) -> str:
    """The statement's text for its owner, with dataset names only. The tree must not be used again."""
    for table in trees.tables(statement):
        table.set("db", None)
    return sql_text.write(statement, spend=True)
