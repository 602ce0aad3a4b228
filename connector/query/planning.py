"""What the planner's rules share while one question is planned: the known tables, and the fragments made so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.query import parse
from connector.query import tree as trees
from connector.query.federation import ALL, Column, Fragment, Keys, Mode, Note, TableInfo, Tables


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
    read: list[tuple[TableInfo, ...]]  # the datasets that each share reads
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
    _known: dict[tuple[tuple[str, exp.Expr], ...], str] = field(default_factory=dict)
    _columns: dict[tuple[str, str], tuple[Column, ...]] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return self.mode is Mode.FULL

    def shares(self, table: exp.Table) -> tuple[TableInfo, ...]:
        """What a dataset's rows are the union of: itself, or for the owner "all" every owner's share; () if none."""
        if table.db.lower() != ALL:
            return (self.info(table),)
        name = table.name.lower()
        return tuple(info for (owner, dataset), info in self.tables.items() if dataset == name and owner != ALL)

    def columns(self, table: exp.Table) -> tuple[Column, ...]:
        """The columns of a dataset; those that every share has, in the order of the first."""
        key = (table.db.lower(), table.name.lower())
        if key not in self._columns:
            self._columns[key] = self._common(table)
        return self._columns[key]

    def _common(self, table: exp.Table) -> tuple[Column, ...]:
        first, *others = self.shares(table)
        if not others:
            return first.columns
        common = [{column.name.lower() for column in info.columns} for info in others]
        return tuple(one for one in first.columns if all(one.name.lower() in names for names in common))

    def info(self, table: exp.Table, at: str = "") -> TableInfo:
        """What is known of a dataset (`at`: of that name at another owner); QueryInvalid without an agreement."""
        found = self.tables.get(((at or table.db).lower(), table.name.lower()))
        if found is None:
            known = ", ".join(sorted(one.shown for one in self.tables.values()))
            others = f" (of those asked for there are agreements for {known})" if known else ""
            raise QueryInvalid(
                f'there is no agreement in force for "{table.db}".{table.name}{others}; negotiate one with '
                "`hanse negotiate`, or see with `hanse agreements` what you may ask",
                code="agreement_missing",
            )
        return found

    def infos(self, node: exp.Expr) -> tuple[TableInfo, ...]:
        """The datasets anywhere below a node, each once."""
        found = {id(info): info for table in trees.base_tables(node) for info in self.shares(table)}
        return tuple(found.values())

    def _read_by(self, shares: Sequence[Share]) -> list[tuple[TableInfo, ...]]:
        """The datasets that each share's statement reads at its owner, each once."""
        tables = {id(share.statement): trees.base_tables(share.statement) for share in shares}
        found = [[self.info(table, share.owner) for table in tables[id(share.statement)]] for share in shares]
        return [tuple({id(info): info for info in read}.values()) for read in found]

    def unites(self, node: exp.Expr) -> bool:
        """Whether a dataset of several owners is read anywhere below a node."""
        return any(table.db.lower() == ALL for table in trees.tables(node))

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

    def _moved(self, statement: exp.Expr, owner: str) -> exp.Expr:
        """The statement, reading the owner's own copies of what others have too."""
        for table in trees.base_tables(statement):
            info = self.info(table)
            if info.owner != owner:
                there = self.sites(info)[owner]
                table.set("this", exp.to_identifier(there.dataset))
                table.set("db", exp.to_identifier(there.owner))
        return statement

    def _at_owners(self, shares: Sequence[Share]) -> Iterator[Share]:
        """Each share with the names of its owner; what was one tree stays one where the names are the same."""
        first: dict[int, str] = {}
        for share in shares:
            begun = first.setdefault(id(share.statement), share.owner)
            if begun == share.owner:
                yield Share(share.owner, self._moved(share.statement, share.owner))
            elif self._alike(share.statement, begun, share.owner):
                yield share
            else:
                yield Share(share.owner, self._moved(share.statement.copy(), share.owner))

    def _alike(self, statement: exp.Expr, owner: str, other: str) -> bool:
        """Whether every copy that the statement reads at an owner has the same name at another."""
        for table in trees.base_tables(statement):
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
        same = tuple((share.owner, share.statement) for share in found)  # trees compare by what they say
        if same not in self._known:
            table = self._known[same] = f"f{len(self._known)}"
            self.drafts[table] = Draft(table, found, tuple(outputs), kind, list(pushed), self._read_by(found))
        return self._known[same]

    def fragments(
        self,
        estimate: Callable[[Draft], Sequence[tuple[int, int] | None]],
        restored: Callable[[Share], Mapping[str, str]],
    ) -> tuple[Fragment, ...]:
        """The drafts as fragments, one for each share.

        `estimate` gives rows and bytes of each share, `restored` a share's outputs whose type Arrow does not carry.
        """
        return tuple(one for draft in self.drafts.values() for one in self._fragments(draft, estimate, restored))

    def _fragments(
        self,
        draft: Draft,
        estimate: Callable[[Draft], Sequence[tuple[int, int] | None]],
        restored: Callable[[Share], Mapping[str, str]],
    ) -> Iterator[Fragment]:
        owners = [share.owner for share in draft.shares]
        once = {id(share.statement): share for share in draft.shares}
        types = {tree: restored(share) for tree, share in once.items()}
        back = [types[id(share.statement)] for share in draft.shares]
        sizes = estimate(draft)
        sql = {tree: _bare(share.statement) for tree, share in once.items()}
        for number, share in enumerate(draft.shares):
            infos, expected = draft.read[number], sizes[number]
            # A table that is more than one answer as it came has another name than its answers.
            named = len(owners) > 1 or bool(back[number])
            part = f".{share.owner}" + (f".{number}" if owners.count(share.owner) > 1 else "")
            yield Fragment(
                id=draft.table + (part if named else ""),
                table=draft.table,
                owner=share.owner,
                participant=infos[0].participant,
                agreements=tuple(dict.fromkeys(info.agreement for info in infos)),
                datasets=tuple(info.dataset for info in infos),
                sql=sql[id(share.statement)],
                outputs=draft.outputs,
                kind=draft.kind,
                aggregate_only=any(info.aggregate_only for info in infos),
                keys=tuple(draft.keys),
                pushed=tuple(draft.pushed),
                rows=None if expected is None else expected[0],
                nbytes=None if expected is None else expected[1],
                versions=tuple((info.dataset_id, info.version) for info in infos if info.version),
                restored=tuple((name, back[number].get(name, "")) for name in draft.outputs) if back[number] else (),
            )


def _named_in(info: TableInfo, names: tuple[str, ...]) -> bool:
    return not {info.dataset, f"{info.owner}.{info.dataset}", info.dataset_id}.isdisjoint(names)


def _bare(statement: exp.Expr) -> str:
    """The statement's text as its owner knows it: datasets by their names there. The tree is spent."""
    for table in trees.tables(statement):
        table.set("db", None)
    return parse.write(statement, spend=True)
