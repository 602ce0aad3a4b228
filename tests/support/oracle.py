"""A second opinion on what a contract shows: rows one by one in Python, with the evaluator's own comparisons.

Shares no code with the SQL wrap: `operators.scalar` decides each atom, masks are computed here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Any

from policies.evaluation import operators
from policies.model import Atom, Connective, Constraint, Duty
from policies.vocabulary import column_of
from policies.vocabulary.terms import expand

Row = dict[str, Any]


def verdict(constraint: Constraint, row: Mapping[str, Any]) -> bool | None:
    """satisfied, unsatisfied, or unknown (usage-policies, section 4)."""
    if isinstance(constraint, Atom):
        texts = [literal.text for literal in constraint.right]
        return operators.compare_scalar(constraint.operator, row[column_of(constraint.left)], texts)
    found = [verdict(member, row) for member in constraint.members]
    if constraint.connective is Connective.AND:
        return False if False in found else None if None in found else True
    if constraint.connective is Connective.OR:
        return True if True in found else None if None in found else False
    return False if found.count(True) > 1 else None if None in found else found.count(True) == 1


def visible(rows: Iterable[Row], constraints: Sequence[Constraint]) -> list[Row]:
    """The rows for which every constraint is satisfied; unknown hides."""
    return [row for row in rows if all(verdict(constraint, row) is True for constraint in constraints)]


def masked(rows: Iterable[Row], duties: Sequence[Duty], key: bytes) -> list[Row]:
    """Copies of the rows with the masks of `duties` applied."""
    changes: dict[str, Callable[[Any], Any]] = {}
    for duty in duties:
        given = {atom.left: atom for atom in duty.constraints if isinstance(atom, Atom)}
        method = given[expand("ds:method")].right[0].text
        argument = given.get(expand("ds:argument"))
        apply = _mask(method, None if argument is None else argument.right[0].text, key)
        changes.update({column.text: apply for column in given[expand("ds:column")].right})
    return [{name: changes.get(name, _same)(value) for name, value in row.items()} for row in rows]


def _same(value: Any) -> Any:
    return value


def _mask(method: str, argument: str | None, key: bytes) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if value is None or method == "null":
            return None
        if method == "hash":
            return keyed(str(value), key)
        if method == "truncate":
            return str(value)[: int(argument or 0)]
        if method == "round":
            return _rounded(value, int(argument or 0))
        return _generalised(value, argument or "1")

    return apply


def keyed(text: str, key: bytes) -> str:
    """H(outer || H(inner || text)) in hexadecimal, with the two keys derived from `key`."""
    inner, outer = (hmac.new(key, b"hanse mask " + label, hashlib.sha256).hexdigest() for label in (b"inner", b"outer"))
    return hashlib.sha256((outer + hashlib.sha256((inner + text).encode()).hexdigest()).encode()).hexdigest()


def _rounded(value: Any, digits: int) -> Any:
    step = Decimal(1).scaleb(-digits)
    exact = (Decimal(value) / step).quantize(Decimal(1), rounding=ROUND_HALF_UP) * step
    return type(value)(exact)


def _generalised(value: Any, argument: str) -> Any:
    if isinstance(value, datetime | date):
        return {"year": value.replace(month=1, day=1), "month": value.replace(day=1)}[argument]
    width = Decimal(argument)
    return type(value)((Decimal(value) / width).to_integral_value(ROUND_FLOOR) * width)
