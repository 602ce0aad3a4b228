"""Row counts as consumers may see them: enough for planning, too coarse to reveal one person.

The difference between an exact total and the visible rows would reveal how many rows a policy hides. A count is
therefore only as fine as that number may be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from policies.contracts.contract import DataContract

_FINEST = 10


def two_digits(count: int) -> int:
    """Round to two significant digits: for rows that the reader may count itself."""
    return _round_to(count, 1, round)


def coarse(count: int) -> int:
    """Round to two significant digits, and at least to tens: for rows where some are hidden."""
    return _round_to(count, _FINEST, round)


def at_least(count: int) -> int:
    """Like `coarse`, but rounded down: the base for a share of hidden rows."""
    return _round_to(count, _FINEST, math.floor)


def at_most(count: int) -> int:
    """Like `coarse`, but rounded up: the charge where all rows are used at once."""
    return _round_to(count, _FINEST, math.ceil)


def _round_to(count: int, finest: int, way: Callable[[float], Any]) -> int:
    step: int = max(finest, 10 ** max(0, len(str(count)) - 2))
    return int(way(count / step)) * step


def coarse_bytes(nbytes: int, rows: int) -> int:
    """Return the rounded bytes of so many rows. With rows of equal width, exact bytes would reveal the row count."""
    return two_digits(round(nbytes / max(1, rows))) * coarse(rows)


def visible_rows(rows: int, contracts: Iterable[DataContract]) -> int | None:
    """Return the size of a dataset for a consumer with these contracts; None where groups or noise hide it."""
    each = tuple(contracts)
    if any(contract.grid is not None for contract in each):
        return None
    hides = any(contract.row_filter is not None for contract in each)
    return coarse(rows) if hides else two_digits(rows)
