"""What the planner's rules share while one question is planned: the known tables, and the fragments made so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.query import parse
from connector.query.federation import Fragment, Keys, Mode, Note, TableInfo, Tables


@dataclass(frozen=True, slots=True)
class Share:
    """One owner's part of a fragment: the statement for it."""

    owner: str
    statement: exp.Expr


@dataclass(slots=True)
class Planning:
    """One question on its way to a plan."""

    tables: Tables
    mode: Mode = Mode.FULL
    # Whether one fragment may read datasets of several agreements with its owner.
    across_agreements: bool = False
    fragments: list[Fragment] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    _known: dict[tuple[tuple[str, str], ...], str] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return self.mode is Mode.FULL

    def info(self, table: exp.Table) -> TableInfo:
        """What is known of a dataset; QueryInvalid where there is no agreement."""
        found = self.tables.get((table.db.lower(), table.name.lower()))
        if found is None:
            known = ", ".join(sorted(one.shown for one in self.tables.values())) or "none"
            raise QueryInvalid(
                f'there is no agreement for "{table.db}".{table.name}; negotiate one, or use one of: {known}',
                code="agreement_missing",
            )
        return found

    def infos(self, node: exp.Expr) -> tuple[TableInfo, ...]:
        """The datasets anywhere below a node, each once."""
        found = {id(info): info for table in node.find_all(exp.Table) if table.db for info in [self.info(table)]}
        return tuple(found.values())

    def sites(self, info: TableInfo) -> dict[str, TableInfo]:
        """Owners at which the same rows are: the dataset's own, and those with a copy of it."""
        found = {info.owner: info}
        if info.content:
            for other in self.tables.values():
                if other.content == info.content:
                    found.setdefault(other.owner, other)
        return found

    def moved(self, statement: exp.Expr, owner: str) -> exp.Expr:
        """A copy of the statement that reads the owner's own copies of what others have too."""
        found = statement.copy()
        for table in [one for one in found.find_all(exp.Table) if one.db]:
            info = self.info(table)
            if info.owner != owner:
                there = self.sites(info)[owner]
                table.set("this", exp.to_identifier(there.dataset))
                table.set("db", exp.to_identifier(there.owner))
        return found

    def note(self, what: str, reason: str, detail: str = "") -> None:
        one = Note(what, reason, detail)
        if one not in self.notes:
            self.notes.append(one)

    def fragment(
        self,
        shares: Sequence[Share],
        *,
        outputs: Sequence[str],
        kind: str,
        pushed: Sequence[str] = (),
        keys: Sequence[Keys] = (),
        rows: int | None = None,
    ) -> str:
        """Add a fragment of one or more shares; the name of its table. Equal questions are asked once."""
        statements = [self.moved(share.statement, share.owner) for share in shares]
        read = [self.infos(statement) for statement in statements]
        texts = tuple((share.owner, parse.write(_bare(one))) for share, one in zip(shares, statements, strict=True))
        if texts in self._known and not keys:
            return self._known[texts]
        table = self._known[texts] = f"f{len(self._known)}"
        for number, (infos, (owner, sql)) in enumerate(zip(read, texts, strict=True)):
            same = sum(one.owner == owner for one in shares) > 1
            self.fragments.append(
                Fragment(
                    id=table if len(shares) == 1 else f"{table}.{owner}{f'.{number}' if same else ''}",
                    table=table,
                    owner=owner,
                    participant=infos[0].participant,
                    agreements=tuple(dict.fromkeys(info.agreement for info in infos)),
                    datasets=tuple(info.dataset for info in infos),
                    sql=sql,
                    outputs=tuple(outputs),
                    kind=kind,
                    aggregate_only=any(info.grid is not None for info in infos),
                    keys=tuple(keys),
                    pushed=tuple(pushed),
                    rows=rows,
                )
            )
        return table


def _bare(statement: exp.Expr) -> exp.Expr:
    """The statement as its owner knows it: datasets by their names there."""
    found = statement.copy()
    for table in found.find_all(exp.Table):
        table.set("db", None)
    return found
