"""Values of the planner: tables, fragments, notes and plan. Knows no SQL parser.

Each fragment of a plan runs at one owner under its agreements. The residual query runs here over their results.
Fragments with the same `table` (`f0`) are united: a dataset with shares at several owners has one fragment for each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from connector.errors import ConnectorError, QueryInvalid
from policies.contracts.columns import fold
from policies.contracts.contract import Dimension
from policies.enforce.withheld import Withheld, WithheldShare, describe_left_out, sentences, strongest

ALL = "all"  # the virtual owner: every owner with an agreement for a dataset of that name


class Bearer(NamedTuple):
    """The data endpoint of one of our agreements, its ticket, and the participant that issued them."""

    endpoint: str
    ticket: str
    participant: str


def shared_name(owner: str, participants: Collection[str], dataset: str) -> QueryInvalid:
    """The error for a query whose owner name is used by several participants."""
    *others, last = sorted(participants)
    written = " or ".join(f'"{one}".{dataset}' for one in (*others, last))
    return QueryInvalid(
        f'"{owner}" is the name of {", ".join(others)} and {last} in our agreements with them (see `hanse '
        f"agreements`); write the participant's identifier in place of the name: {written}",
        code="owner_ambiguous",
    )


class Mode(StrEnum):
    """How much work runs at the owners: as much as possible, filters and columns only, or none (for comparison)."""

    FULL = "full"
    FILTER = "filter"
    PULL = "pull"


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column that the agreement makes visible: its name and DuckDB type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class GridInfo:
    """The queries that an aggregate-only dataset answers: counts, sums and averages of measures, by dimensions."""

    dimensions: tuple[str, ...]
    measures: tuple[str, ...]
    min_group: int
    entity: str | None = None
    epsilon: float | None = None  # privacy budget; answers carry noise
    bins: tuple[Dimension, ...] = ()  # the dimensions whose values are in bins
    share: WithheldShare | None = None  # the published share of rows and groups that it leaves out

    def describe_group_size(self) -> str:
        """The minimum group size of its figures, as text."""
        return "with noise" if self.epsilon else f"over at least {self.min_group} {self.entity or 'rows'}"

    def left_out(self) -> str:
        """The groups that its answers leave out, as text."""
        return describe_left_out(self.min_group, self.entity, noise=self.epsilon is not None)


@dataclass(frozen=True, slots=True)
class Partition:
    """The partitioning of a dataset: rows with equal `columns` are at one owner, by one rule (`scheme`).

    Two datasets of one scheme are co-located: rows with equal values in these columns are at the same owner.
    """

    scheme: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A dataset as our agreement shows it.

    owner: the participant's name in the query.
    rows, ndv: the owner's rounded number of rows, and column to number of distinct values; empty if not given.
    content: equal for datasets that hold the same rows at several owners (published reference data).
    shares_keys: values of its columns may go to other owners to narrow their answers.
    takes_keys: values from other owners may narrow its answers. Both are False unless the agreement allows them: a
        key list takes data out of one owner, and probes the other.
    """

    owner: str
    dataset: str
    columns: tuple[TableColumn, ...]
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
    rationed: bool = False  # rows or bytes that leave are counted against a quota
    ndv: Mapping[str, int] = field(default_factory=dict)

    @property
    def aggregate_only(self) -> bool:
        """Whether it answers only with figures over groups of its grid."""
        return self.grid is not None

    @property
    def quoted_name(self) -> str:
        """The name in SQL, in quotes, as it may be a keyword (`json`)."""
        return f'"{self.owner}"."{self.dataset}"'


Tables: TypeAlias = "Mapping[tuple[str, str], TableInfo]"


@dataclass(frozen=True, slots=True)
class UnreachableOwner:
    """A dataset under one of our agreements whose owner did not answer, and the error. Its names may be unknown."""

    owner: str
    dataset: str
    participant: str
    agreement: str
    error: ConnectorError

    def may_be(self, owner: str, dataset: str) -> bool:
        """Whether it may be the dataset that a query names."""
        return (not self.dataset or self.dataset == dataset) and (owner == ALL or self.owner in ("", owner))


@dataclass(frozen=True, slots=True)
class KnownTables:
    """The datasets that a query names, and the owners that did not answer."""

    tables: Tables
    silent: tuple[UnreachableOwner, ...] = ()


@dataclass(frozen=True, slots=True)
class DataLayout:
    """What the asker declares about the location of rows. A wrong declaration gives a wrong answer.

    cut: groups of datasets partitioned by one rule, each with its column: rows with equal values in it (NULL included)
        are at one owner.
    copies: datasets that every owner has in full.
    """

    cut: tuple[tuple[tuple[str, str], ...], ...] = ()
    copies: tuple[str, ...] = ()

    def apply_to(self, tables: Tables) -> Tables:
        """The tables with these declarations."""
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
class KeyFilter:
    """Values of one output of the table `source` (f0) that narrow a fragment.

    condition: the test in the fragment's SQL; TRUE where no keys are sent.
    name: the table of keys that the condition reads.
    """

    source: str
    output: str
    column: str  # as people read it
    name: str
    condition: str


TypeCasts = Sequence[tuple[int, str]]  # column number and DuckDB type, where Arrow carries another type


@dataclass(frozen=True, slots=True)
class Fragment:
    """One query to one owner."""

    id: str
    table: str  # the residual's name for its rows
    owner: str
    participant: str
    under: tuple[tuple[str, str], ...]  # agreement and name of each dataset that it reads
    sql: str
    outputs: tuple[str, ...]
    kind: str  # whole | join | scan | partial
    aggregate_only: bool = False
    keys: tuple[KeyFilter, ...] = ()
    pushed: tuple[str, ...] = ()
    rows: int | None = None  # estimate; None where an owner does not publish the size of its dataset
    nbytes: int | None = None
    versions: tuple[tuple[str, str], ...] = ()  # the version of each dataset (by id) that the plan was made for
    reads: tuple[tuple[str, tuple[TableColumn, ...]], ...] = ()  # name and used columns of each dataset
    counts: tuple[str, ...] = ()  # outputs that count rows
    bins: tuple[str, ...] = ()  # notes on its dimensions in bins, as text
    results: bool = False  # its rows are figures over groups, and no rows of data
    left_out: str = ""  # the groups that its agreement leaves out, as text
    share: WithheldShare | None = None  # the published share of these groups
    unfiltered: bool = False  # it asks for all groups

    @property
    def withheld(self) -> Withheld:
        """Whether groups are left out of its answer, from the agreement, the query and the owner's published share."""
        if not self.aggregate_only:
            return Withheld.NOTHING
        published = self.share is not None and (self.share.rows > 0 or self.share.groups > 0)
        return Withheld.SOME if published and self.unfiltered else Withheld.POSSIBLY

    @property
    def agreements(self) -> tuple[str, ...]:
        """The agreements of its datasets, without repeats."""
        return tuple(dict.fromkeys(agreement for agreement, _ in self.under))

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dataset for _, dataset in self.under)


@dataclass(frozen=True, slots=True)
class Note:
    """Work that stays here, and why: two_owners, policy, function, outer_join, cost, mode, shape."""

    what: str
    reason: str
    detail: str = ""

    def text(self) -> str:
        return f"{self.what} ({self.reason}{': ' + self.detail if self.detail else ''})"


@dataclass(frozen=True, slots=True)
class FederatedPlan:
    """Fragments, the residual over their tables, and the work that stays here with reasons."""

    sql: str
    mode: Mode
    fragments: tuple[Fragment, ...]
    residual: str
    columns: tuple[str, ...]
    notes: tuple[Note, ...] = ()
    rules: tuple[str, ...] = ()  # the rules that changed something, in order
    ctes: tuple[str, ...] = ()  # WITH queries of the residual
    once: frozenset[str] = frozenset()  # tables that the residual reads in one place
    passed: bool = False  # the only fragment's answer is the query's answer, with its rows and their order

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
        """Whether agreements leave groups out of the answer, for any data."""
        return strongest(fragment.withheld for fragment in self.fragments)

    def left_out(self) -> list[str]:
        """The groups that are left out at each owner, as sentences."""
        groups = sentences(((each.owner, each.left_out) for each in self.fragments), owners=self.owners())
        shares = (each.share.sentence(each.owner) for each in self.fragments if each.share is not None)
        return [*groups, *dict.fromkeys(shares)]

    @property
    def waves(self) -> dict[str, int]:
        """Table to the number of tables that it waits for, by the keys of its fragments."""
        return waves(
            {
                table: {key.source for fragment in fragments for key in fragment.keys}
                for table, fragments in self.tables.items()
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
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
    """Table to the length of its longest chain of `sources`, from which its keys come."""
    found: dict[str, int] = {}

    def wave(table: str) -> int:
        if table not in found:
            found[table] = max((wave(source) + 1 for source in sources[table]), default=0)
        return found[table]

    return {table: wave(table) for table in sources}
