"""The meaning of the operators (eq, isAnyOf, isPartOf, ...) in one table (ODRL 2.2, section 2.5; usage-policies,
section 3).

Each compares observed values with expected values of the same type and returns True, False, or None for unknown. Other
engines differ on several of them; this table is normative here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from operator import eq, ge, gt, le, lt, ne
from typing import Any, TypeAlias

from policies.evaluation.values import Duration, Instant, Value, add_duration, ancestors, decimal

Verdict: TypeAlias = bool | None
Test: TypeAlias = Callable[[Sequence[Value]], Verdict]
ONE_VALUE = frozenset({"eq", "neq", "lt", "lteq", "gt", "gteq"})

# Two durations compare alike from every one of these starts, or their order is not known (XSD 1.1).
_STARTS = (
    -8_625_484_800_000_000_000,  # 1696-09-01
    -8_612_265_600_000_000_000,  # 1697-02-01
    -2_109_283_200_000_000_000,  # 1903-03-01
    -2_098_742_400_000_000_000,  # 1903-07-01
)


def compile_comparison(operator: str, expected: Sequence[Value], *, kinds: bool = False) -> Test:
    """Return a function that compares observed values with `expected`.

    `kinds`: an observed value also counts as each of its broader values, so scientific research is research. The
    reverse does not hold: where a broad value could mean an excluded narrower one, the result is unknown.
    """
    made = _MAKERS[operator]
    if not kinds or operator in _BY_TREE:
        return made(tuple(expected))
    return _NARROWING[operator](tuple(str(value) for value in expected))


def _among_kinds(expected: tuple[str, ...]) -> Test:
    right = frozenset(expected)

    def check(left: Sequence[Value]) -> Verdict:
        for value in left:  # noqa: SIM110  # a generator costs twice as much for the one value there usually is
            if not right.isdisjoint(ancestors(str(value))):
                return True
        return False

    return check


def _one_kind(expected: tuple[str, ...]) -> Test:
    return lambda left: expected[0] in ancestors(str(left[0])) if len(left) == 1 else None


def _all_kinds(expected: tuple[str, ...]) -> Test:
    right = frozenset(expected)
    return lambda left: right.issubset(frozenset[str]().union(*(ancestors(str(value)) for value in left)))


def _no_kind(expected: tuple[str, ...]) -> Test:
    right = frozenset(expected)
    broader = frozenset[str]().union(*(ancestors(value) for value in expected)) - right

    def check(left: Sequence[Value]) -> Verdict:
        if any(not right.isdisjoint(ancestors(str(value))) for value in left):
            return False
        return None if any(str(value) in broader for value in left) else True

    return check


def _not_that_kind(expected: tuple[str, ...]) -> Test:
    check = _no_kind(expected)
    return lambda left: check(left) if len(left) == 1 else None


_BY_TREE = frozenset({"isPartOf", "hasPart", "isA"})  # use the hierarchy themselves
_NARROWING: dict[str, Callable[[tuple[str, ...]], Test]] = {
    "eq": _one_kind,
    "neq": _not_that_kind,
    "isAnyOf": _among_kinds,
    "isNoneOf": _no_kind,
    "isAllOf": _all_kinds,
}


def _single(
    check: Callable[[Value, Value], Verdict], *, numbers: Callable[[Any, Any], bool]
) -> Callable[[tuple[Value, ...]], Test]:
    """One value on each side; several observed values give unknown. `numbers` compares numbers without type checks."""

    def make(expected: tuple[Value, ...]) -> Test:
        right = expected[0]
        if isinstance(right, int | Decimal):
            return lambda left: numbers(left[0], right) if len(left) == 1 else None
        return lambda left: check(left[0], right) if len(left) == 1 else None

    return make


def _any_of(expected: tuple[Value, ...]) -> Test:
    right = frozenset(expected)
    return lambda left: not right.isdisjoint(left)


def _none_of(expected: tuple[Value, ...]) -> Test:
    right = frozenset(expected)
    return lambda left: right.isdisjoint(left)


def _all_of(expected: tuple[Value, ...]) -> Test:
    right = frozenset(expected)
    return lambda left: right.issubset(left)


def _part_of(expected: tuple[Value, ...]) -> Test:
    right = frozenset(str(value) for value in expected)

    def check(left: Sequence[Value]) -> Verdict:
        for value in left:  # noqa: SIM110  # as above
            if right.isdisjoint(ancestors(str(value))):
                return False
        return True

    return check


def _has_part(expected: tuple[Value, ...]) -> Test:
    right = [ancestors(str(value)) for value in expected]

    def check(left: Sequence[Value]) -> Verdict:
        holders = {str(value) for value in left}
        return all(not holders.isdisjoint(part) for part in right)

    return check


def _is_a(expected: tuple[Value, ...]) -> Test:
    return _among_kinds(tuple(str(value) for value in expected))


def _equal(left: Value, right: Value) -> Verdict:
    if isinstance(left, Instant) and isinstance(right, Instant):
        return compare_moment("eq", left.start, right) if left.start == left.end else None
    if isinstance(left, Duration) and isinstance(right, Duration):
        return _negate(_either(_is_shorter(left, right), _is_shorter(right, left)))
    return left == right


def _less(left: Value, right: Value) -> Verdict:
    if isinstance(left, Instant) and isinstance(right, Instant):
        return compare_moment("lt", left.start, right) if left.start == left.end else None
    if isinstance(left, Duration) and isinstance(right, Duration):
        return _is_shorter(left, right)
    if isinstance(left, int | Decimal) and isinstance(right, int | Decimal):
        return left < right
    return None


def _greater(left: Value, right: Value) -> Verdict:
    if isinstance(left, Instant) and isinstance(right, Instant):
        return compare_moment("gt", left.start, right) if left.start == left.end else None
    return _less(right, left)


def _is_shorter(left: Duration, right: Duration) -> Verdict:
    answers = {add_duration(start, left) < add_duration(start, right) for start in _STARTS}
    return answers.pop() if len(answers) == 1 else None


def _either(one: Verdict, other: Verdict) -> Verdict:
    if one or other:
        return True
    return None if one is None or other is None else False


def _negate(verdict: Verdict) -> Verdict:
    return None if verdict is None else not verdict


_MAKERS: dict[str, Callable[[tuple[Value, ...]], Test]] = {
    "eq": _single(_equal, numbers=eq),
    "neq": _single(lambda left, right: _negate(_equal(left, right)), numbers=ne),
    "lt": _single(_less, numbers=lt),
    "lteq": _single(lambda left, right: _negate(_greater(left, right)), numbers=le),
    "gt": _single(_greater, numbers=gt),
    "gteq": _single(lambda left, right: _negate(_less(left, right)), numbers=ge),
    "isAnyOf": _any_of,
    "isNoneOf": _none_of,
    "isAllOf": _all_of,
    "isPartOf": _part_of,
    "hasPart": _has_part,
    "isA": _is_a,
}


def compare_moment(operator: str, now: int, right: Instant) -> Verdict:
    """Compare a known time (nanoseconds) with an instant, a day, or a time without zone.

    A day: `lteq` holds until its end, `lt` until its start. Without a zone the result is unknown within 14 hours either
    way.
    """
    if right.loose:
        return _compare_loose_moment(operator, now, right)
    if right.start == right.end:
        return _MOMENT[operator](now, right.start, right.start + 1)
    return _MOMENT[operator](now, right.start, right.end)


_MOMENT: dict[str, Callable[[int, int, int], bool]] = {
    "eq": lambda now, start, end: start <= now < end,
    "neq": lambda now, start, end: not start <= now < end,
    "lt": lambda now, start, end: now < start,
    "lteq": lambda now, start, end: now < end,
    "gt": lambda now, start, end: now >= end,
    "gteq": lambda now, start, end: now >= start,
}


def _compare_loose_moment(operator: str, now: int, right: Instant) -> Verdict:
    first = _MOMENT[operator](now, right.start, right.start + 1)
    last = _MOMENT[operator](now, right.end, right.end + 1)
    if operator in ("eq", "neq") and right.start <= now <= right.end:
        return None
    return first if first == last else None


def compare_scalar(operator: str, observed: Any, texts: Sequence[str]) -> Verdict:
    """Compare one column value with texts that are parsed as the column's type; NULL gives unknown."""
    try:
        right = [_convert_like(observed, text) for text in texts]
        if observed is None or observed != observed:  # NULL, NaN
            return None
        return _SCALAR[operator](observed, right)
    except (ValueError, TypeError):
        return None


def _convert_like(observed: Any, text: str) -> Any:
    if isinstance(observed, bool):
        return _parse_boolean(text)
    if isinstance(observed, float):
        return float(decimal(text))
    if isinstance(observed, int | Decimal):
        return decimal(text)
    if isinstance(observed, datetime):
        return _parse_datetime_like(observed, text)
    if isinstance(observed, date):
        return date.fromisoformat(text)
    return text


def _parse_boolean(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() in ("true", "1")


def _parse_datetime_like(observed: datetime, text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if (found.tzinfo is None) != (observed.tzinfo is None):
        # Python compares them as unequal; the answer is unknown.
        raise ValueError("expected both with a zone or both without")
    return found


_SCALAR: dict[str, Callable[[Any, list[Any]], bool]] = {
    "eq": lambda left, right: bool(left == right[0]),
    "neq": lambda left, right: bool(left != right[0]),
    "lt": lambda left, right: bool(left < right[0]),
    "lteq": lambda left, right: bool(left <= right[0]),
    "gt": lambda left, right: bool(left > right[0]),
    "gteq": lambda left, right: bool(left >= right[0]),
    "isAnyOf": lambda left, right: left in right,
    "isNoneOf": lambda left, right: left not in right,
}
