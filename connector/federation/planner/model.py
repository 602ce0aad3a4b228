"""What the planner works with and what it makes, as values: tables, fragments, notes, plan. Knows no SQL parser.

A plan's fragments each run at one owner under its agreement(s); the residual runs here over their results. The
parts of one `table` (`f0`) are united: datasets that several owners hold a share of give one fragment an owner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from connector.errors import HanseError, QueryInvalid
from policies.contracts.columns import fold
from policies.contracts.contract import Dimension
from policies.enforce.withheld import Withheld, WithheldShare, describe_left_out, sentences, strongest

ALL = "all"  # the virtual owner: every owner with an agreement for a dataset of that name


class Bearer(NamedTuple):
    """Where one of our agreements is read, the ticket for it, and the participant whom both are of."""

    endpoint: str
    ticket: str
    participant: str


def shared_name(owner: str, participants: Collection[str], dataset: str) -> QueryInvalid:
    """Why a question is refused that says an owner by a name that several participants have."""
    *others, last = sorted(participants)
    written = " or ".join(f'"{one}".{dataset}' for one in (*others, last))
    return QueryInvalid(
        f'"{owner}" is what {", ".join(others)} and {last} call themselves in our agreements with them (see `hanse '
        f"agreements`); write the identifier of the one that you mean in place of the name: {written}",
        code="owner_ambiguous",
    )


class Mode(StrEnum):
    """How much goes to the owners: everything that can, filters and columns only, or nothing (for comparison)."""

    FULL = "full"
    FILTER = "filter"
    PULL = "pull"


@dataclass(frozen=True, slots=True)
class Column:
    """A column that the agreement shows: its name and DuckDB type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class GridInfo:
    """What an aggregate-only dataset answers: counts, sums and averages of measures, by dimensions."""

    dimensions: tuple[str, ...]
    measures: tuple[str, ...]
    min_group: int
    entity: str | None = None
    epsilon: float | None = None  # answers carry noise that spends this budget
    bins: tuple[Dimension, ...] = ()  # those of the dimensions whose values are in bins
    share: WithheldShare | None = None  # what its owner has published of what it leaves out

    def least(self) -> str:
        """What its figures are over, in words."""
        return "with noise" if self.epsilon else f"over at least {self.min_group} {self.entity or 'rows'}"

    def left_out(self) -> str:
        """Which groups its answers leave out, in words."""
        return describe_left_out(self.min_group, self.entity, noise=self.epsilon is not None)


@dataclass(frozen=True, slots=True)
class Partition:
    """How the shares of a dataset were cut: rows with equal `columns` are at one owner, by one rule (`scheme`).

    Two datasets of one scheme are co-located: rows that agree in these columns are at the same owner.
    """

    scheme: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A dataset as our agreement shows it. `rows` and `ndv` are the owner's rounded figures, where it gave any.

    `owner`: the name of one participant among the tables of a question, as the question writes it.

    `content`: equal for datasets that hold the same rows at several owners (published reference data).
    `shares_keys`: values of its columns may go to other owners to narrow their answers; `takes_keys`: it may be
    narrowed so. Both are False unless the agreement says more: a key list is egress here and a probe there.
    """

    owner: str
    dataset: str
    columns: tuple[Column, ...]
    agreement: str = ""
    participant: str = ""
    dataset_id: str = ""
    rows: int | None = None
    grid: GridInfo | None = None
    partition: Partition | None = None
    content: str = ""
    shares_keys: bool = False
    takes_keys: bool = False
    version: str = ""  # digest of the version that the agreement reads now
    joins: tuple[str, ...] | None = None  # datasets it may be joined with at its owner; None: any
    rationed: bool = False  # rows or bytes that leave are counted, and there is an end of them
    ndv: Mapping[str, int] = field(default_factory=dict)

    @property
    def aggregate_only(self) -> bool:
        """Whether it answers one shape of question only: figures over groups of its grid."""
        return self.grid is not None

    @property
    def shown(self) -> str:
        """The name as SQL writes it; in quotes, as it may be a word of SQL (`json`)."""
        return f'"{self.owner}"."{self.dataset}"'


Tables: TypeAlias = "Mapping[tuple[str, str], TableInfo]"


@dataclass(frozen=True, slots=True)
class Silent:
    """A dataset under an agreement of ours whose owner did not say what it shares, and why. Names may be unknown."""

    owner: str
    dataset: str
    participant: str
    agreement: str
    error: HanseError

    def may_be(self, owner: str, dataset: str) -> bool:
        """Whether it may stand for a dataset that a question names."""
        return (not self.dataset or self.dataset == dataset) and (owner == ALL or self.owner in ("", owner))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the datasets that a question names."""

    tables: Tables
    silent: tuple[Silent, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """What the asker knows of how datasets lie at their owners; a wrong statement gives a wrong answer.

    `cut`: groups of datasets whose shares were cut by one rule, each with the column it was cut by: rows that agree
    in it (NULL included) are at one owner. `copies`: datasets of which every owner has all rows.
    """

    cut: tuple[tuple[tuple[str, str], ...], ...] = ()
    copies: tuple[str, ...] = ()

    def over(self, tables: Tables) -> Tables:
        """The tables with this known of them."""
        by = {dataset: (f"cut {number}", column) for number, one in enumerate(self.cut) for dataset, column in one}
        found = dict(tables)
        for key, info in tables.items():
            if info.dataset in by:
                scheme, column = by[info.dataset]
                found[key] = replace(info, partition=Partition(scheme, (fold(column),)))
            elif info.dataset in self.copies:
                found[key] = replace(info, content=f"copy {info.dataset}")
        return found


@dataclass(frozen=True, slots=True)
class Keys:
    """Values of one output of the table `source` (f0) that narrow a fragment: its SQL tests `condition`.

    `name` is the table of keys that the condition reads. Where no keys are sent, the condition is TRUE.
    """

    source: str
    output: str
    column: str  # as people read it
    name: str
    condition: str


Others = Sequence[tuple[int, str]]  # numbers of columns that Arrow has as other types than the engine, and its types


@dataclass(frozen=True, slots=True)
class Fragment:
    """One question to one owner."""

    id: str
    table: str  # the residual's name for its rows
    owner: str
    participant: str
    under: tuple[tuple[str, str], ...]  # the agreement of each dataset that it reads, and the dataset
    sql: str
    outputs: tuple[str, ...]
    kind: str  # whole | join | scan | partial
    aggregate_only: bool = False
    keys: tuple[Keys, ...] = ()
    pushed: tuple[str, ...] = ()
    rows: int | None = None  # estimates; None where an owner does not tell how large its dataset is
    nbytes: int | None = None
    versions: tuple[tuple[str, str], ...] = ()  # the version of each dataset (by id) that the plan was made for
    reads: tuple[tuple[str, tuple[Column, ...]], ...] = ()  # its datasets, by name, with those columns that it names
    counts: tuple[str, ...] = ()  # outputs that count rows
    bins: tuple[str, ...] = ()  # what to know of its dimensions in bins, in words
    results: bool = False  # its rows are figures over groups, and no rows of data
    left_out: str = ""  # which groups its agreement leaves out, in words
    share: WithheldShare | None = None  # what its owner has published of that
    unfiltered: bool = False  # it asks for all groups

    @property
    def withheld(self) -> Withheld:
        """What its agreement leaves out of its answer, as far as that follows from the agreement, the question and what
        the owner has published."""
        if not self.aggregate_only:
            return Withheld.NOTHING
        published = self.share is not None and (self.share.rows > 0 or self.share.groups > 0)
        return Withheld.SOME if published and self.unfiltered else Withheld.POSSIBLY

    @property
    def agreements(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(agreement for agreement, _ in self.under))

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dataset for _, dataset in self.under)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that stayed here, and why: two_owners, policy, function, outer_join, cost, mode, shape."""

    what: str
    reason: str
    detail: str = ""

    def text(self) -> str:
        return f"{self.what} ({self.reason}{': ' + self.detail if self.detail else ''})"


@dataclass(frozen=True, slots=True)
class Plan:
    """Fragments, the residual over their tables, and what stayed here with reasons."""

    sql: str
    mode: Mode
    fragments: tuple[Fragment, ...]
    residual: str
    columns: tuple[str, ...]
    notes: tuple[Note, ...] = ()
    rules: tuple[str, ...] = ()  # those that changed something, in order
    ctes: tuple[str, ...] = ()  # WITH queries that the residual kept
    once: frozenset[str] = frozenset()  # tables that the residual reads in one place
    passed: bool = False  # the only fragment's answer is the question's: its rows stay as they are, in their order

    @property
    def tables(self) -> dict[str, tuple[Fragment, ...]]:
        """The residual's tables, each with its fragments in order."""
        found: dict[str, tuple[Fragment, ...]] = {}
        for fragment in self.fragments:
            found[fragment.table] = (*found.get(fragment.table, ()), fragment)
        return found

    def owners(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(fragment.owner for fragment in self.fragments))

    @property
    def withheld(self) -> Withheld:
        """What agreements leave out of the answer, whatever the data is."""
        return strongest(fragment.withheld for fragment in self.fragments)

    def left_out(self) -> list[str]:
        """Which groups are left out at which owners, in sentences."""
        said = sentences(((one.owner, one.left_out) for one in self.fragments), owners=self.owners())
        shares = (one.share.sentence(one.owner) for one in self.fragments if one.share is not None)
        return [*said, *dict.fromkeys(shares)]

    @property
    def waves(self) -> dict[str, int]:
        """How many tables each table waits for, by the keys of its fragments."""
        return waves(
            {
                table: {key.source for fragment in fragments for key in fragment.keys}
                for table, fragments in self.tables.items()
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The plan for machines (federated-query, section 9.3)."""
        return {
            "mode": self.mode.value,
            "withheld": self.withheld.value,
            "left_out": self.left_out(),
            "columns": list(self.columns),
            "fragments": [
                {
                    "id": one.id,
                    "table": one.table,
                    "owner": one.owner,
                    "participant": one.participant,
                    "agreements": list(one.agreements),
                    "datasets": list(one.datasets),
                    "kind": one.kind,
                    "sql": one.sql,
                    "outputs": list(one.outputs),
                    "pushed": list(one.pushed),
                    "rows_estimate": one.rows,
                    "bytes_estimate": one.nbytes,
                    "keys": [{"from": f"{key.source}.{key.output}", "column": key.column} for key in one.keys],
                    "aggregate_only": one.aggregate_only,
                    "withheld": one.withheld.value,
                    "gives": "results" if one.results else "rows",
                    "bins": list(one.bins),
                    "versions": dict(one.versions),
                }
                for one in self.fragments
            ],
            "residual": self.residual,
            "stayed": [{"what": note.what, "reason": note.reason, "detail": note.detail} for note in self.notes],
            "rules": list(self.rules),
        }


def waves(sources: Mapping[str, Collection[str]]) -> dict[str, int]:
    """How many tables each waits for, one after the other, before it can be asked: its keys come from its `sources`."""
    found: dict[str, int] = {}

    def wave(table: str) -> int:
        if table not in found:
            found[table] = max((wave(source) + 1 for source in sources[table]), default=0)
        return found[table]

    return {table: wave(table) for table in sources}
