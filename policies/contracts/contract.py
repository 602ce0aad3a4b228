"""The data contract: what one permission of an agreement means for one table, ready to be enforced.

Immutable; identified by policy digest and schema fingerprint. Built by `compile`, applied by `enforce`, checked before
each batch by `batch_gate`. Values only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeAlias

PERIODS = ("year", "quarter", "month", "week", "day", "hour")  # what a day or a time is generalised to

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a published schema: its name and DuckDB type (`VARCHAR`, `BIGINT`, `DECIMAL(15,2)`)."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class TableSchema:
    columns: tuple[Column, ...]

    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


class MaskKind(StrEnum):
    NULL = "null"
    HASH = "hash"  # keyed; the key is an argument of enforcement, never in the contract
    TRUNCATE = "truncate"
    ROUND = "round"
    GENERALISE = "generalise"


@dataclass(frozen=True, slots=True)
class Mask:
    column: str
    kind: MaskKind | str  # a text is the name of a plugin's mask
    argument: Scalar = None  # characters (truncate), digits (round), bin width or one of PERIODS (generalise)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`column operator values` of a row filter; operator: eq, neq, lt, lteq, gt, gteq, isAnyOf or isNoneOf."""

    column: str
    operator: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Connected:
    connective: str  # and, or, xone
    members: tuple[RowFilter, ...]


RowFilter: TypeAlias = Comparison | Connected


@dataclass(frozen=True, slots=True)
class Dimension:
    """A column that an aggregate-only answer may group and filter by; `width` is a bin width, None keeps values."""

    column: str
    width: float | None = None

    def binned(self) -> str:
        """Return the bins in words; empty without bins."""
        return "" if self.width is None else f"in bins of {Decimal(str(self.width)).normalize():f}"

    def note(self) -> str:
        """Return what to know about the bins in a condition; empty without bins."""
        return bins_note([self])


def bins_note(dimensions: Iterable[Dimension]) -> str:
    """Return one sentence about all dimensions that have bins."""
    bins = ", ".join(f"{one.column} {one.binned()}" for one in dimensions if one.width is not None)
    return f"{bins}, each named by its lower edge: a condition on it compares that edge" if bins else ""


@dataclass(frozen=True, slots=True)
class Measure:
    """A numeric column that may be summed and averaged, clamped to [low, high] where given."""

    column: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Privacy:
    """Differential privacy for all answers under one agreement.

    `epsilon`, `delta`: the whole budget; an answer spends the same share of both. `rows`: at most so many rows of one
    unit count in one answer, chosen at random.
    """

    epsilon: float
    delta: float
    rows: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Aggregate-only answers over whole cells, or with noise where `privacy` is set.

    Cells: an answer is a union of whole cells over `dimensions`. Each cell has at least `min_group` units, and no unit
    contributes more than the share `dominance` to a measure. With `privacy` there are no cells, and `min_group` is 1.
    `entity`: the column that identifies a unit, such as a patient; None counts rows.
    """

    min_group: int
    entity: str | None
    dimensions: tuple[Dimension, ...]
    measures: tuple[Measure, ...]
    dominance: float = 0.5
    privacy: Privacy | None = None


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """Quantities under one agreement; None means no limit. Rows and bytes are those that leave the owner."""

    rows: int | None = None
    bytes: int | None = None
    queries: int | None = None
    queries_per_day: int | None = None
    concurrency: int | None = None
    share: float | None = None  # per cent of the dataset's rows

    @property
    def rationed(self) -> bool:
        """Whether what leaves is counted against a limit."""
        return any(limit is not None for limit in (self.rows, self.bytes, self.share))


@dataclass(frozen=True, slots=True)
class Obligation:
    """An obligation to follow up: its action, its delay in seconds after the event, and the name of the event."""

    action: str
    within_seconds: int | None = None
    event: str = ""
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DataContract:
    """What may be asked of one dataset under one permission. Only a contract with an empty `residual` is served.

    `purposes` and `actions` are IRIs; `not_before` and `not_after` are UTC seconds. `requires`: policy paths that facts
    decide and no query can enforce, for display; the server evaluates the whole `permission` at the start and at each
    renewal.
    """

    policy_digest: str
    schema_fingerprint: str
    permission: str  # JSON pointer of the permission, e.g. /permission/0
    actions: tuple[str, ...]
    purposes: tuple[str, ...]
    columns: tuple[str, ...]
    schema: TableSchema
    not_before: float | None = None
    not_after: float | None = None
    row_filter: RowFilter | None = None
    masks: tuple[Mask, ...] = ()
    grid: Grid | None = None  # not None: aggregate only
    limits: UsageLimits = UsageLimits()
    purposes_refused: tuple[str, ...] = ()  # purposes that are refused; a request without purpose is refused
    joins: tuple[str, ...] | None = None  # datasets it may be joined with; None: any with an agreement
    templates: tuple[str, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    contractual: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()  # columns that one query must not use together
    residual: tuple[str, ...] = ()
    reasons: tuple[tuple[str, str], ...] = ()  # (effect, policy path): the rule to name in a refusal


def to_json(contract: DataContract) -> str:
    """Return the contract as one line of JSON with sorted keys: equal contracts give equal text."""
    return json.dumps(asdict(contract), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def visibility_key(contract: DataContract) -> str:
    """Return a text that is equal for contracts that show the same rows in the same form."""
    row_filter = None if contract.row_filter is None else asdict(contract.row_filter)
    return json.dumps([contract.columns, [asdict(mask) for mask in contract.masks], row_filter])


def from_json(text: str) -> DataContract:
    """Return the contract that `to_json` wrote.

    Raises: ValueError, KeyError or TypeError for any other text.
    """
    raw = json.loads(text)
    grid, row_filter = raw["grid"], raw["row_filter"]
    return DataContract(
        **{name: _freeze(value) for name, value in raw.items() if name not in _NESTED},
        schema=TableSchema(tuple(Column(**column) for column in raw["schema"]["columns"])),
        row_filter=None if row_filter is None else _read_row_filter(row_filter),
        masks=tuple(Mask(**{**mask, "kind": _read_mask_kind(mask["kind"])}) for mask in raw["masks"]),
        grid=None if grid is None else _read_grid(grid),
        limits=UsageLimits(**raw["limits"]),
        obligations=tuple(Obligation(**{name: _freeze(v) for name, v in owed.items()}) for owed in raw["obligations"]),
    )


def _read_mask_kind(text: str) -> MaskKind | str:
    return MaskKind(text) if text in set(MaskKind) else text


_NESTED = frozenset({"schema", "row_filter", "masks", "grid", "limits", "obligations"})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(member) for member in value) if isinstance(value, list) else value


def _read_row_filter(raw: dict[str, Any]) -> RowFilter:
    if "connective" in raw:
        return Connected(raw["connective"], tuple(_read_row_filter(member) for member in raw["members"]))
    return Comparison(raw["column"], raw["operator"], tuple(raw["values"]))


def _read_grid(raw: dict[str, Any]) -> Grid:
    return Grid(
        min_group=raw["min_group"],
        entity=raw["entity"],
        dimensions=tuple(Dimension(**dimension) for dimension in raw["dimensions"]),
        measures=tuple(Measure(**measure) for measure in raw["measures"]),
        dominance=raw["dominance"],
        privacy=None if raw["privacy"] is None else Privacy(**raw["privacy"]),
    )
