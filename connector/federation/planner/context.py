"""What the planner's rules share while one question is planned: the known tables, and the fragments made so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner import sql_text
from connector.federation.planner.model import ALL, Column, Fragment, Keys, Mode, Note, TableInfo, Tables, shared_name
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees
from policies.sql.rewrite import list_nodes

_SITE_MAX = 32  # letters of an owner's name, in ids that stand with others in the 64 of a read's name: a DID has more


@dataclass(frozen=True, slots=True)
class Share:
    """One owner's part of a fragment: the statement for it. Shares that differ in the owner alone have one tree."""

    owner: str
    statement: exp.Expr


@dataclass(slots=True)
class Draft:
    """A fragment in the making: its table, and the statement of each share; rules may still narrow it by keys."""

    table: str
    shares: list[Share]
    outputs: tuple[str, ...]
    kind: str
    pushed: list[str]
    sources: list[dict[str, TableInfo]]  # the datasets that each share reads, by the aliases that they have there
    read: list[tuple[TableInfo, ...]]  # the same, each once
    keys: list[Keys] = field(default_factory=list)


@dataclass(slots=True)
class Planning:
    """One question on its way to a plan."""

    tables: Tables
    mode: Mode = Mode.FULL
    # Whether one fragment may read datasets of several agreements with its owner.
    across_agreements: bool = False
    drafts: dict[str, Draft] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    # How many parts rules may still add by writing out what names stand for: doing so again and again multiplies.
    room: int = 4_000
    _known: dict[tuple[tuple[str, exp.Expr], ...], str] = field(default_factory=dict)
    _columns: dict[tuple[str, str], tuple[Column, ...]] = field(default_factory=dict)
    _types: dict[int, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What the rules hold for one owner's by its name is one participant's: names are of their own choosing.
        first: dict[str, TableInfo] = {}
        for info in self.tables.values():
            one_participant(first.setdefault(info.owner, info), info)

    @property
    def full(self) -> bool:
        return self.mode is Mode.FULL

    def may_grow(self, parts: int) -> bool:
        """Whether a rule may add so many parts to the question; they are taken from what may be added."""
        if parts > self.room:
            return False
        self.room -= parts
        return True

    def shares(self, table: exp.Table) -> tuple[TableInfo, ...]:
        """What a dataset's rows are the union of: itself, or for the owner "all" every owner's share; () if none."""
        if fold(table.db) != ALL:
            return (self.info(table),)
        name = fold(table.name)
        return tuple(info for (owner, dataset), info in self.tables.items() if dataset == name and owner != ALL)

    def columns(self, table: exp.Table) -> tuple[Column, ...]:
        """The columns of a dataset; those that every share has, in the order of the first."""
        key = (fold(table.db), fold(table.name))
        if key not in self._columns:
            self._columns[key] = self._common(table)
        return self._columns[key]

    def _common(self, table: exp.Table) -> tuple[Column, ...]:
        first, *others = self.shares(table)
        if not others:
            return first.columns
        common = [{fold(column.name) for column in info.columns} for info in others]
        return tuple(one for one in first.columns if all(fold(one.name) in names for names in common))

    def types(self, columns: tuple[Column, ...]) -> Mapping[str, str]:
        """The types of a dataset's columns, by their names, folded."""
        if id(columns) not in self._types:  # a dataset's columns live longer than its question
            self._types[id(columns)] = {fold(column.name): column.type for column in columns}
        return self._types[id(columns)]

    def info(self, table: exp.Table, at: str = "") -> TableInfo:
        """What is known of a dataset (`at`: of that name at another owner); QueryInvalid without an agreement."""
        found = self.tables.get((fold(at or table.db), fold(table.name)))
        if found is None:
            known = ", ".join(sorted(one.shown for one in self.tables.values()))
            others = f" (of those asked for there are agreements for {known})" if known else ""
            raise QueryInvalid(
                f'there is no agreement in force for "{table.db}".{table.name}{others}; negotiate one with '
                "`hanse negotiate`, or see with `hanse agreements` what you may ask",
                code="agreement_missing",
            )
        return found

    def infos(self, tables: Sequence[exp.Table]) -> tuple[TableInfo, ...]:
        """The datasets among tables, each once."""
        found = {id(info): info for table in tables if table.db for info in self.shares(table)}
        return tuple(found.values())

    @staticmethod
    def unites(tables: Sequence[exp.Table]) -> bool:
        """Whether one of the tables is a dataset of several owners."""
        return any(fold(table.db) == ALL for table in tables)

    def sites(self, info: TableInfo) -> dict[str, TableInfo]:
        """Owners at which the same rows are: the dataset's own, and those with a copy of it."""
        found = {info.owner: info}
        if info.content:
            for other in self.tables.values():
                if other.content == info.content:
                    found.setdefault(other.owner, other)
        return found

    def may_join(self, infos: Sequence[TableInfo], *, tables: int) -> bool:
        """Whether one fragment over `tables` uses of these datasets is agreed: one agreement, or owners that take
        several, and no dataset that names others it may be joined with."""
        if len({info.agreement for info in infos}) > 1 and not self.across_agreements:
            return False
        if tables < 2:
            return True
        for info in infos:
            others = [one for one in infos if one.owner == info.owner and one is not info] or [info]
            if info.joins is not None and not all(_named_in(one, info.joins) for one in others):
                return False
        return True

    def _moved(self, statement: exp.Expr, owner: str) -> list[exp.Table]:
        """The statement's datasets, which are the owner's own copies now where others have them too."""
        tables = trees.base_tables(statement)
        for table in tables:
            info = self.info(table)
            if info.owner != owner:
                there = self.sites(info)[owner]
                table.set("this", exp.to_identifier(there.dataset))
                table.set("db", exp.to_identifier(there.owner))
        return tables

    def _at_owners(self, shares: Sequence[Share]) -> Iterator[tuple[Share, list[exp.Table]]]:
        """Each share with the names of its owner, and the datasets it reads; what was one tree stays one where the
        names are the same."""
        first: dict[int, tuple[str, list[exp.Table]]] = {}
        for share in shares:
            owner, statement = share.owner, share.statement
            if id(statement) not in first:
                first[id(statement)] = owner, self._moved(statement, owner)
            begun, tables = first[id(statement)]
            if begun == owner or self._alike(tables, begun, owner):
                yield share, tables
            else:
                own = statement.copy()
                yield Share(owner, own), self._moved(own, owner)

    def _alike(self, tables: Sequence[exp.Table], owner: str, other: str) -> bool:
        """Whether every copy that is read at an owner has the same name at another."""
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
        shares: Sequence[Share],
        *,
        outputs: Sequence[str],
        kind: str,
        pushed: Sequence[str] = (),
    ) -> str:
        """Add a fragment of one or more shares; the name of its table. Equal questions are asked once.

        The statements are the draft's from now on: nobody changes them.
        """
        found = list(self._at_owners(shares))
        same = tuple((share.owner, share.statement) for share, _ in found)  # trees compare by what they say
        if same not in self._known:
            table = self._known[same] = f"f{len(self._known)}"
            sources = [{one.alias_or_name: self.info(one, share.owner) for one in there} for share, there in found]
            read = [tuple({id(info): info for info in one.values()}.values()) for one in sources]
            every = [share for share, _ in found]
            self.drafts[table] = Draft(table, every, tuple(outputs), kind, list(pushed), sources, read)
        return self._known[same]

    def fragments(self, estimate: Callable[[Draft], Sequence[tuple[int, int] | None]]) -> tuple[Fragment, ...]:
        """The drafts as fragments, one for each share; `estimate` gives rows and bytes of each."""
        return tuple(one for draft in self.drafts.values() for one in self._fragments(draft, estimate(draft)))

    def _fragments(self, draft: Draft, sizes: Sequence[tuple[int, int] | None]) -> Iterator[Fragment]:
        owners = [share.owner for share in draft.shares]
        once = {id(share.statement): number for number, share in enumerate(draft.shares)}
        counts = {tree: _counts(draft.shares[number].statement) for tree, number in once.items()}
        named_in = {tree: _names_in(draft.shares[number].statement) for tree, number in once.items()}
        unfiltered = {tree: _is_unfiltered(draft.shares[number].statement) for tree, number in once.items()}
        results = {tree: gives_results(draft.shares[number].statement) for tree, number in once.items()}
        sql = {tree: _bare(draft.shares[number].statement) for tree, number in once.items()}
        for number, share in enumerate(draft.shares):
            infos, expected = draft.read[number], sizes[number]
            one_participant(*infos)
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
                reads=tuple((info.dataset, _of(info.columns, named_in[id(share.statement)])) for info in infos),
                counts=counts[id(share.statement)],
                bins=tuple(dict.fromkeys(one.note() for info in infos if info.grid for one in info.grid.bins)),
                results=results[id(share.statement)] or any(info.aggregate_only for info in infos),
                left_out=next((info.grid.left_out() for info in infos if info.grid is not None), ""),
                share=next((info.grid.share for info in infos if info.grid is not None), None),
                unfiltered=unfiltered[id(share.statement)],
            )


def one_participant(*infos: TableInfo) -> None:
    """QueryInvalid unless these datasets are of one participant: tickets and values go where its fragment goes."""
    other = next((info for info in infos if info.participant != infos[0].participant), None)
    if other is not None:
        raise shared_name(infos[0].owner, (infos[0].participant, other.participant), infos[0].dataset)


def _named_in(info: TableInfo, names: tuple[str, ...]) -> bool:
    return not {info.dataset, f"{info.owner}.{info.dataset}", info.dataset_id}.isdisjoint(names)


def _counts(statement: exp.Expr) -> tuple[str, ...]:
    """The outputs of a statement that are COUNT, with FILTER or without."""
    if not isinstance(statement, exp.Select):
        return ()
    values = ((output.alias_or_name, output.unalias()) for output in statement.expressions)
    return tuple(
        name for name, value in values if isinstance(value.this if isinstance(value, exp.Filter) else value, exp.Count)
    )


# Aggregates whose result is a figure over many rows. Others (any_value, arg_max) give values of rows on.
_FIGURES = (
    exp.Count, exp.CountIf, exp.ApproxDistinct, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.Median, exp.Quantile,
    exp.PercentileCont, exp.PercentileDisc, exp.ApproxQuantile, exp.Stddev, exp.StddevPop, exp.StddevSamp, exp.Variance,
    exp.VariancePop, exp.Corr, exp.CovarPop, exp.CovarSamp, exp.LogicalAnd, exp.LogicalOr, exp.BitwiseAndAgg,
    exp.BitwiseOrAgg, exp.BitwiseXorAgg,
)  # fmt: skip


def gives_results(statement: exp.Expr) -> bool:
    """Whether each row of the answer has figures over a group. False where values of rows may leave as they are, as one
    of several, or as groups without a figure."""
    if isinstance(statement, exp.SetOperation):
        return gives_results(statement.this) and gives_results(statement.expression)
    if isinstance(statement, exp.Subquery):
        return gives_results(statement.this)
    if not isinstance(statement, exp.Select):
        return False
    found = [one for output in statement.expressions for one in _aggregates(output)]
    if found:
        return all(isinstance(one, _FIGURES) for one in found)
    ctes = {fold(one.alias): one.this for one in statement.ctes}
    joined = [join.this for join in statement.args.get("joins") or ()]
    sources = [one for one in (_source(statement), *joined) if one is not None]
    within = [ctes.get(fold(one.name)) if isinstance(one, exp.Table) and not one.db else one for one in sources]
    return bool(within) and all(isinstance(one, exp.Query) and gives_results(one) for one in within)


def _is_unfiltered(statement: exp.Expr) -> bool:
    """Whether every group that there is adds to the answer."""
    return not any(
        isinstance(node, exp.Where | exp.Having | exp.Limit | exp.Filter | exp.If) for node in list_nodes(statement)
    )


def _source(select: exp.Select) -> exp.Expr | None:
    found = select.args.get("from_") or select.args.get("from")
    return None if found is None else found.this


def _aggregates(output: exp.Expr) -> Iterator[exp.Expr]:
    """The aggregates in an output, but for those in subqueries and those of windows, which keep each row."""
    if isinstance(output, exp.Query | exp.Subquery | exp.Window):
        return
    if isinstance(output, exp.AggFunc | exp.Anonymous):  # the parser does not know all aggregates
        yield output
        return
    for part in output.iter_expressions():
        yield from _aggregates(part)


def _names_in(statement: exp.Expr) -> frozenset[str]:
    """Every name that is in a statement, folded: those of its columns, and more."""
    return frozenset(fold(node.name) for node in list_nodes(statement) if type(node) is exp.Identifier)


def _of(columns: Sequence[Column], names: Collection[str]) -> tuple[Column, ...]:
    return tuple(column for column in columns if fold(column.name) in names)


def _bare(statement: exp.Expr) -> str:
    """The statement's text as its owner knows it: datasets by their names there. The tree is spent."""
    for table in trees.tables(statement):
        table.set("db", None)
    return sql_text.write(statement, spend=True)
