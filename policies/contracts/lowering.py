"""Lowers each operand of a permission into a data contract: `LOWER`, one function for each operand.

A function fills the `ContractDraft`, raises ContractUndecided when the rule cannot be enforced for this table, or
returns False to leave the rule undecided. Must not know JSON or SQL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TypeAlias

from policies.contracts import columns
from policies.contracts.contract import (
    Column,
    Comparison,
    Dimension,
    Mask,
    Measure,
    RowFilter,
    TableSchema,
    UsageLimits,
)
from policies.errors import ContractUndecided
from policies.evaluation.operators import ONE_VALUE
from policies.evaluation.values import (
    FOREVER,
    SECOND,
    Instant,
    add_duration,
    common_descendants,
    decimal,
    duration,
    instant,
    iri,
)
from policies.model import HANSE, ODRL, Atom
from policies.vocabulary.terms import column_of, compact

SMALLEST_GROUP = 5  # units; a smaller group does not hide one
USUAL_GROUP = 10
MOST_EPSILON = 10  # with more the noise does not hide a unit
MOST_DELTA = 0.001
USUAL_DELTA = 1e-6
MOST_ROWS_PER_ENTITY = 10_000


@dataclass(slots=True)
class ContractDraft:
    """A contract being built from the constraints seen so far."""

    schema: TableSchema
    started: int | None  # the agreement's timestamp in nanoseconds
    new: bool = False  # not signed yet
    not_before: float = -math.inf
    not_after: float = math.inf
    purposes: tuple[str, ...] | None = None
    purposes_refused: tuple[str, ...] = ()
    filters: list[RowFilter] = field(default_factory=list)
    masks: dict[str, Mask] = field(default_factory=dict)
    allowed: tuple[str, ...] | None = None
    denied: set[str] = field(default_factory=set)
    min_group: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    rows_per_entity: int | None = None
    entity: str | None = None
    kind: str | None = None
    dimensions: dict[str, Dimension] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    together: list[tuple[str, ...]] = field(default_factory=list)
    limits: UsageLimits = field(default_factory=UsageLimits)
    joins: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    reasons: list[tuple[str, str]] = field(default_factory=list)


Lower: TypeAlias = Callable[[ContractDraft, Atom, str], bool]


def undecided_error(path: str, sentence: str) -> ContractUndecided:
    """Return the error for a rule that cannot be enforced, with its path."""
    return ContractUndecided(f"{path}: {sentence}", rule=path)


def require_column(draft: ContractDraft, name: str, path: str) -> Column:
    """Return the schema's column of that name.

    Raises: ContractUndecided when it does not exist.
    """
    found = columns.find_column(draft.schema, name)
    if found is None:
        whole = columns.find_column(draft.schema, name.partition(".")[0])
        if whole is not None and "." in name:
            raise undecided_error(path, f"{name} is part of the column {whole.name}; name the whole column")
        raise undecided_error(path, f"the table has no column {name}; correct the name")
    return found


def lower_atom(draft: ContractDraft, atom: Atom, path: str) -> bool:
    """Add one constraint to the draft; return False when no function handles it.

    Raises: ContractUndecided when it cannot be enforced for this table.
    """
    function = LOWER.get(atom.left) or _FAMILIES.get(_family(atom.left))
    if function is None or not atom.right or not _has_readable_values(atom):
        return False
    try:
        done = function(draft, atom, path)
    except ValueError as wrong:
        raise undecided_error(path, f"{compact(atom.left)} cannot be read: {wrong}") from None
    if done:
        draft.reasons.append((_effect(atom.left), path))
    return done


def lower_comparison(draft: ContractDraft, atom: Atom, path: str) -> Comparison:
    """Return `ds:row/<column>` as a comparison with typed values.

    Raises: ContractUndecided when the values do not fit the column.
    """
    found = require_column(draft, column_of(atom.left), path)
    if atom.operator not in _ROW_OPERATORS:
        raise undecided_error(path, f"a row filter cannot use {atom.operator}; use {', '.join(_ROW_OPERATORS)}")
    if atom.operator in ("lt", "lteq", "gt", "gteq") and columns.family(found.type) in columns.UNORDERED:
        raise undecided_error(path, f"values of {found.name} ({found.type}) have no order; use eq or isAnyOf")
    try:
        values = tuple(columns.parse_value(found, literal.text) for literal in atom.right)
    except ValueError as wrong:
        raise undecided_error(path, f"{compact(atom.left)} cannot be compared: {wrong}") from None
    return Comparison(found.name, atom.operator, values)


def _family(iri: str) -> str:
    head, _, _ = iri.removeprefix(HANSE).partition("/")
    return head if column_of(iri) else ""


def _effect(left: str) -> str:
    """The operand's local name, under which a refusal looks up its rule."""
    return _family(left) or left.removeprefix(HANSE).removeprefix(ODRL)


def _has_readable_values(atom: Atom) -> bool:
    return len(atom.right) == 1 or atom.operator not in ONE_VALUE


def _texts(atom: Atom) -> tuple[str, ...]:
    return tuple(dict.fromkeys(literal.text for literal in atom.right))


def _iris(atom: Atom) -> tuple[str, ...]:
    return tuple(dict.fromkeys(iri(literal.text) for literal in atom.right))


def _lower_row(draft: ContractDraft, atom: Atom, path: str) -> bool:
    draft.filters.append(lower_comparison(draft, atom, path))
    return True


def _lower_date_time(draft: ContractDraft, atom: Atom, path: str) -> bool:
    when = instant(atom.right[0].text, atom.right[0].datatype)
    if atom.operator not in _WINDOWS:
        return False
    first, last = _WINDOWS[atom.operator](when)
    if first is not None:
        draft.not_before = max(draft.not_before, _seconds(first, up=True))
    if last is not None:
        draft.not_after = min(draft.not_after, _seconds(last, up=False))
    return True


def _lower_elapsed(draft: ContractDraft, atom: Atom, path: str) -> bool:
    span = duration(atom.right[0].text)
    if draft.started is None:
        raise undecided_error(path, "odrl:elapsedTime starts at the agreement's timestamp, and the agreement has none")
    end = min(add_duration(draft.started, span), FOREVER)
    if atom.operator in ("lteq", "eq"):  # eq is a budget
        draft.not_after = min(draft.not_after, _seconds(end, up=False))
    elif atom.operator == "lt":
        draft.not_after = min(draft.not_after, _seconds(end - 1, up=False))
    elif atom.operator in ("gt", "gteq"):
        draft.not_before = max(draft.not_before, _seconds(end + (atom.operator == "gt"), up=True))
    else:
        return False
    return True


# First and last nanosecond at which the constraint certainly holds. A time without zone may be 14 hours earlier or
# later; within that window the answer is unknown, which counts as no.
_Window: TypeAlias = Callable[[Instant], tuple[int | None, int | None]]
_WINDOWS: dict[str, _Window] = {
    "lt": lambda when: (None, when.start - 1),
    "lteq": lambda when: (None, when.start if when.loose else max(when.start, when.end - 1)),
    "gt": lambda when: (when.end + 1 if when.loose else max(when.end, when.start + 1), None),
    "gteq": lambda when: (when.end if when.loose else when.start, None),
    "eq": lambda when: (when.end, when.start) if when.loose else (when.start, max(when.start, when.end - 1)),
}


def _seconds(nanoseconds: int, *, up: bool) -> float:
    """Convert nanoseconds to float seconds, rounded so that the window never grows."""
    value, exact = nanoseconds / SECOND, Fraction(nanoseconds, SECOND)
    if up and value < exact:
        return math.nextafter(value, math.inf)
    if not up and value > exact:
        return math.nextafter(value, -math.inf)
    return value


def _lower_purpose(draft: ContractDraft, atom: Atom, path: str) -> bool:
    named = _iris(atom)
    if atom.operator in ("isNoneOf", "neq"):
        draft.purposes_refused = tuple(dict.fromkeys(draft.purposes_refused + named))
        return True
    if atom.operator not in ("isAnyOf", "eq", "isPartOf", "isA", "isAllOf"):
        return False
    for group in ((one,) for one in named) if atom.operator == "isAllOf" else (named,):
        draft.purposes = group if draft.purposes is None else _intersect_purposes(draft.purposes, group)
    return True


def _intersect_purposes(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """The purposes that are equal to or narrower than one of each list."""
    return tuple(dict.fromkeys(low for left in one for right in other for low in common_descendants(left, right)))


def _lower_limit(name: str) -> Lower:
    def lower_limit(draft: ContractDraft, atom: Atom, path: str) -> bool:
        if atom.operator not in ("lteq", "lt"):
            return False
        number = _whole_number(atom) - (atom.operator == "lt")
        before: int | None = getattr(draft.limits, name)
        least = max(0, number if before is None else min(before, number))
        draft.limits = replace(draft.limits, **{name: least})
        return True

    return lower_limit


def _lower_share(draft: ContractDraft, atom: Atom, path: str) -> bool:
    share = float(decimal(atom.right[0].text))
    if atom.operator != "lteq":
        return False
    if not 0 < share <= 100:
        raise ValueError(f"expected a share above 0 and at most 100 per cent, got {atom.right[0].text!r}")
    before = draft.limits.share
    draft.limits = replace(draft.limits, share=share if before is None else min(before, share))
    return True


def _lower_together(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator != "isNoneOf":
        return False
    named = tuple(require_column(draft, name, path).name for name in _texts(atom))
    if len(named) < 2:
        raise undecided_error(path, "a combination has at least two columns; to withhold one use ds:columnDeny")
    draft.together.append(named)
    return True


def _whole_number(atom: Atom) -> int:
    number = decimal(atom.right[0].text)
    if number != number.to_integral_value():
        raise ValueError(f"expected a whole number, got {atom.right[0].text!r}")
    return int(number)


def _lower_column_allow(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator not in ("isAnyOf", "eq"):
        return False
    named = tuple(require_column(draft, name, path).name for name in _texts(atom))
    draft.allowed = named if draft.allowed is None else tuple(one for one in draft.allowed if one in named)
    return True


def _lower_column_deny(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator not in ("isNoneOf", "neq"):
        return False
    draft.denied.update(require_column(draft, name, path).name for name in _texts(atom))
    return True


def _lower_result_kind(draft: ContractDraft, atom: Atom, path: str) -> bool:
    kind = atom.right[0].text
    if atom.operator not in ("eq", "isAnyOf") or len(atom.right) != 1 or kind not in ("aggregate", "rows"):
        return False
    if draft.kind not in (None, kind):
        raise undecided_error(path, "ds:resultKind is both aggregate and rows; keep one")
    draft.kind = kind
    return True


def _lower_min_group(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator not in ("gteq", "gt"):
        return False
    number = _whole_number(atom) + (atom.operator == "gt")
    if number < SMALLEST_GROUP:
        raise undecided_error(path, f"ds:minGroupSize {number} does not hide a unit; use {SMALLEST_GROUP} or more")
    draft.min_group = max(draft.min_group or 0, number)
    return True


def _lower_epsilon(draft: ContractDraft, atom: Atom, path: str) -> bool:
    number = decimal(atom.right[0].text)
    if atom.operator != "lteq":
        return False
    if not 0 < number <= MOST_EPSILON or number * 1_000_000 % 1:
        raise undecided_error(
            path, f"ds:epsilonBudget {number}: expected more than 0 and at most {MOST_EPSILON}, to six digits"
        )
    draft.epsilon = min(draft.epsilon or MOST_EPSILON, float(number))
    return True


def _lower_delta(draft: ContractDraft, atom: Atom, path: str) -> bool:
    number = decimal(atom.right[0].text)
    if atom.operator != "lteq":
        return False
    if not 0 < number <= MOST_DELTA:
        raise undecided_error(path, f"ds:deltaBudget {number}: expected more than 0 and at most {MOST_DELTA}")
    draft.delta = min(draft.delta or 1.0, float(number))
    return True


def _lower_rows_per_entity(draft: ContractDraft, atom: Atom, path: str) -> bool:
    number = _whole_number(atom)
    if atom.operator != "lteq":
        return False
    if not 1 <= number <= MOST_ROWS_PER_ENTITY:
        raise undecided_error(path, f"ds:rowsPerEntity {number}: expected 1 to {MOST_ROWS_PER_ENTITY}")
    draft.rows_per_entity = min(draft.rows_per_entity or number, number)
    return True


def _lower_entity(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator != "eq":
        return False
    found = require_column(draft, atom.right[0].text, path).name
    if draft.entity not in (None, found):
        raise undecided_error(path, f"ds:entityKey is both {draft.entity} and {found}; keep one")
    draft.entity = found
    return True


def _lower_dimension(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator != "eq":
        return False
    found, text = require_column(draft, column_of(atom.left), path), atom.right[0].text
    kind = columns.family(found.type)
    if text == "exact":
        width = None
    elif kind in columns.NUMERIC and decimal(text) > 0:
        width = columns.parse_bin_width(found.type, text, new=draft.new)
    else:
        raise undecided_error(
            path, f"{found.name} ({found.type}) cannot be binned by {text}; write exact or a bin width"
        )
    if kind == columns.OTHER:
        raise undecided_error(path, f"{found.name} ({found.type}) cannot be a dimension; choose a plain column")
    return _declare_once(draft.dimensions, Dimension(found.name, width), path)


def _lower_measure(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator != "eq":
        return False
    found, text = require_column(draft, column_of(atom.left), path), atom.right[0].text
    if columns.family(found.type) not in columns.NUMERIC:
        raise undecided_error(path, f"{found.name} ({found.type}) is not a number and cannot be a measure")
    low, dots, high = text.partition("..")
    if text != "free" and (not dots or decimal(low) > decimal(high)):
        raise undecided_error(path, f"expected free or low..high such as 0..3000, got {text!r}")
    if text == "free":
        return _declare_once(draft.measures, Measure(found.name), path)
    for bound in (low, high):
        columns.parse_value(found, bound)  # an integer for an integer column: a clamped sum keeps its type
    bounds = float(decimal(low)), float(decimal(high))
    return _declare_once(draft.measures, Measure(found.name, *bounds), path)


_Shape: TypeAlias = Dimension | Measure


def _declare_once(table: dict[str, Dimension] | dict[str, Measure], entry: _Shape, path: str) -> bool:
    if table.setdefault(entry.column, entry) != entry:  # type: ignore[arg-type]  # one table per kind
        raise undecided_error(path, f"{entry.column} is declared twice in different ways; keep one")
    return True


def _lower_joins(draft: ContractDraft, atom: Atom, path: str) -> bool:
    if atom.operator not in ("isAnyOf", "eq"):
        return False
    named = _iris(atom)
    draft.joins = named if draft.joins is None else tuple(one for one in draft.joins if one in named)
    return True


def _lower_templates(draft: ContractDraft, atom: Atom, path: str) -> bool:
    from policies.enforce.template import is_readable  # here: most policies need no parser

    if atom.operator not in ("isAnyOf", "eq"):
        return False
    named = _texts(atom)
    for text in named:
        if not is_readable(text):
            raise undecided_error(
                path, f"the template {text!r} cannot be read as a query; write the query, with ? for the values"
            )
    draft.templates = named if draft.templates is None else tuple(o for o in draft.templates if o in named)
    if not draft.templates:
        raise undecided_error(path, "two ds:template rules have no query in common; no query could run")
    return True


_ROW_OPERATORS = ("eq", "neq", "lt", "lteq", "gt", "gteq", "isAnyOf", "isNoneOf")
_FAMILIES: dict[str, Lower] = {"row": _lower_row, "dimension": _lower_dimension, "measure": _lower_measure}
LOWER: dict[str, Lower] = {
    ODRL + "dateTime": _lower_date_time,
    ODRL + "elapsedTime": _lower_elapsed,
    ODRL + "purpose": _lower_purpose,
    ODRL + "count": _lower_limit("queries"),
    HANSE + "rowQuota": _lower_limit("rows"),
    HANSE + "byteQuota": _lower_limit("bytes"),
    HANSE + "queriesPerDay": _lower_limit("queries_per_day"),
    HANSE + "concurrency": _lower_limit("concurrency"),
    HANSE + "columnAllow": _lower_column_allow,
    HANSE + "columnDeny": _lower_column_deny,
    HANSE + "notTogether": _lower_together,
    ODRL + "percentage": _lower_share,
    HANSE + "resultKind": _lower_result_kind,
    HANSE + "minGroupSize": _lower_min_group,
    HANSE + "epsilonBudget": _lower_epsilon,
    HANSE + "deltaBudget": _lower_delta,
    HANSE + "rowsPerEntity": _lower_rows_per_entity,
    HANSE + "entityKey": _lower_entity,
    HANSE + "joinWith": _lower_joins,
    HANSE + "template": _lower_templates,
}
