"""Fits a ready-made offer to the columns of a dataset: drops names that the dataset lacks, and proposes its own.

A proposal, for a person to change: by type, number of distinct values and name. Bounds for averages are rounded
outwards, so that the published offer does not show the least and the greatest value of the data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from policies.authoring import row_filter
from policies.authoring.form import ColumnRules, OfferForm
from policies.contracts.columns import NUMERIC, TEXT, family
from policies.errors import PolicyUnreadable
from policies.model import Atom, Constraint, Group
from policies.vocabulary import column_of

GROUPS_MAX = 50  # a column with more distinct values is not proposed for grouping
_PROPOSED = 3
_PERSON = re.compile(r"(^|_)(person|patient|customer|user|subject|member)(_?id)?$|^id$|_id$", re.IGNORECASE)
_CONTACT = re.compile(r"name|email|mail|phone|address|street|birth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ColumnFigures:
    """A column of a dataset: name, DuckDB type, number of distinct values, least and greatest value as text."""

    name: str
    type: str
    distinct: int | None = None
    least: str | None = None
    greatest: str | None = None


def fill_template(form: OfferForm, columns: Sequence[ColumnFigures], *, dataset: str) -> OfferForm:
    """Return the form for a dataset.

    Rules of columns keep the names that the dataset has. Where an offer of figures loses all columns to group by or to
    measure, the dataset's are proposed; identifying columns take the place of the template's.
    """
    known = {one.name for one in columns}
    made = replace(form, dataset=dataset, columns=_fit_rules(form.columns, columns), rows=_fit_filter(form.rows, known))
    if form.answers != "aggregate":
        return made
    person = form.limits.per if form.limits.per in known else _person_column(columns)
    free = [one for one in columns if one.name not in made.columns.hide and one.name != person]
    measure = _keep(form.measure, known)
    group_by = _keep(form.group_by, known) or _propose_groups([one for one in free if one.name not in dict(measure)])
    measure = measure or _propose_measures([one for one in free if one.name not in dict(group_by)])
    return replace(made, limits=replace(form.limits, per=person), group_by=group_by, measure=measure)


def _keep(pairs: Sequence[tuple[str, str]], known: set[str]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in pairs if pair[0] in known)


def _fit_rules(rules: ColumnRules, columns: Sequence[ColumnFigures]) -> ColumnRules:
    known = {one.name for one in columns}
    hide = tuple(name for name in rules.hide if name in known)
    if rules.hide and not hide:
        hide = tuple(one.name for one in columns if _CONTACT.search(one.name))
    masks = tuple(mask for mask in rules.masks if mask.column in known)
    if not masks and (person := _person_column(columns)):
        masks = tuple(replace(mask, column=person) for mask in rules.masks if mask.method == "hash")[:1]
    only = tuple(name for name in rules.only if name in known)
    if rules.only and not only:  # without a list of columns the offer would show all
        hide = tuple(one.name for one in columns)
    return ColumnRules(only, hide, masks)


def _fit_filter(text: str, known: set[str]) -> str:
    """Return the row filter, or an empty text if it names a column that the dataset lacks."""
    try:
        found = row_filter.parse(text) if text else None
    except PolicyUnreadable:
        return ""
    return text if found is not None and _columns_of(found) <= known else ""


def _columns_of(one: Constraint) -> set[str]:
    if isinstance(one, Atom):
        return {column_of(one.left)}
    return set().union(*map(_columns_of, one.members)) if isinstance(one, Group) else set()


def _person_column(columns: Sequence[ColumnFigures]) -> str:
    return next((one.name for one in columns if _PERSON.search(one.name)), "")


def _propose_groups(columns: Sequence[ColumnFigures]) -> tuple[tuple[str, str], ...]:
    few = [one for one in columns if one.distinct is not None and 1 < one.distinct <= GROUPS_MAX]
    return tuple((one.name, "exact") for one in few if family(one.type) == TEXT)[:_PROPOSED]


def _propose_measures(columns: Sequence[ColumnFigures]) -> tuple[tuple[str, str], ...]:
    found: Mapping[str, str] = {one.name: measure_range(one) for one in columns}
    return tuple((name, bounds) for name, bounds in found.items() if bounds)[:_PROPOSED]


def measure_range(column: ColumnFigures) -> str:
    """Return `low..high` around a column of numbers, rounded outwards to 1, 2 or 5 times a power of ten; else empty."""
    if family(column.type) not in NUMERIC or column.least is None or column.greatest is None:
        return ""
    try:
        least, greatest = Decimal(column.least), Decimal(column.greatest)
    except InvalidOperation:
        return ""
    if not (least.is_finite() and greatest.is_finite()) or least == greatest:
        return ""
    low = -_round_up(-least) if least < 0 else Decimal(0)
    high = _round_up(greatest) if greatest > 0 else Decimal(0)
    return f"{low:f}..{high:f}"


def _round_up(number: Decimal) -> Decimal:
    """Return the least 1, 2, 5 or 10 times a power of ten that is not below a positive number; a copy of zero else."""
    if number <= 0:
        return Decimal(0)
    power = Decimal(10) ** math.floor(number.log10())
    return next(step * power for step in map(Decimal, (1, 2, 5, 10, 20)) if step * power >= number).normalize() + 0
