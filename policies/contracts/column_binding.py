"""The columns on which the rules of a contract depend, and whether their types have changed.

A rule is agreed for a type of column: `age >= 18` on numbers that became texts would compare letters and show hidden
rows. Pure; must not know versions or agreements.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.contracts import columns
from policies.contracts.contract import Comparison, DataContract, RowFilter, TableSchema


@dataclass(frozen=True, slots=True)
class RetypedColumn:
    """A column whose type changed; `before` is empty when the column did not exist."""

    column: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.column} is {self.now} and was {self.before or 'not there'}"


def enforced_columns(contract: DataContract) -> tuple[str, ...]:
    """Return the columns that are filtered, masked, grouped by or summed, and the entity key."""
    grid = contract.grid
    named = [*_filter_columns(contract.row_filter), *(mask.column for mask in contract.masks)]
    if grid is not None:
        named += [one.column for one in grid.dimensions] + [one.column for one in grid.measures]
        named += [grid.entity] if grid.entity is not None else []
    return tuple(dict.fromkeys(named))


def find_retyped(contract: DataContract, before: TableSchema) -> list[RetypedColumn]:
    """Return the enforced columns whose kind of type differs from `before`. All numeric types are one kind."""
    found = []
    for name in enforced_columns(contract):
        now, old = columns.find_column(contract.schema, name), columns.find_column(before, name)
        one = RetypedColumn(name, old.type if old else "", now.type if now else "not there")
        if old is None or now is None or _type_kind(old.type) != _type_kind(now.type):
            found.append(one)
    return found


def _filter_columns(row_filter: RowFilter | None) -> list[str]:
    if row_filter is None:
        return []
    if isinstance(row_filter, Comparison):
        return [row_filter.column]
    return [name for member in row_filter.members for name in _filter_columns(member)]


def _type_kind(type_: str) -> str:
    family = columns.family(type_)
    return "number" if family in columns.NUMERIC else family
