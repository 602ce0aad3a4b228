"""Counts of rows as others may see them: enough to plan by, too coarse to tell one person.

A count beside what can be counted gives away how many rows a policy hides, so it is only as fine as that may be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from policies.contracts.contract import DataContract

_FINEST = 10


def two_digits(count: int) -> int:
    """To two significant digits: for rows that its reader may count one by one."""
    return _to(count, 1, round)


def coarse(count: int) -> int:
    """To two significant digits, and never finer than tens: for rows of which some are hidden."""
    return _to(count, _FINEST, round)


def at_least(count: int) -> int:
    """As `coarse`, downwards: what a share of hidden rows is taken of."""
    return _to(count, _FINEST, math.floor)


def at_most(count: int) -> int:
    """As `coarse`, upwards: what is counted where all rows are drawn on at once."""
    return _to(count, _FINEST, math.ceil)


def _to(count: int, finest: int, way: Callable[[float], Any]) -> int:
    step: int = max(finest, 10 ** max(0, len(str(count)) - 2))
    return int(way(count / step)) * step


def coarse_bytes(nbytes: int, rows: int) -> int:
    """The bytes of so many rows: of rows with equal widths, any finer figure would be their number."""
    return two_digits(round(nbytes / max(1, rows))) * coarse(rows)


def shown(rows: int, contracts: Iterable[DataContract]) -> int | None:
    """How large a dataset is, to those who have it under these contracts; None where groups or noise hide it."""
    each = tuple(contracts)
    if any(contract.grid is not None for contract in each):
        return None
    hides = any(contract.row_filter is not None for contract in each)
    return coarse(rows) if hides else two_digits(rows)
