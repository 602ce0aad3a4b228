"""How one constraint, action or value is said in plain English; the building stones of every sentence.

One place for wording, so that a decision, an explanation and a report say the same thing alike.
"""

from __future__ import annotations

from policies import vocabulary
from policies.model import Atom, Connective, Constraint, Duty, Group
from policies.values import Duration, duration, in_words
from policies.vocabulary import Operand, ValueType, compact

_OPERATORS = {
    "eq": "is",
    "neq": "is not",
    "lt": "below",
    "lteq": "at most",
    "gt": "above",
    "gteq": "at least",
    "isAnyOf": "is one of",
    "isNoneOf": "is none of",
    "isAllOf": "includes all of",
    "isPartOf": "lies in",
    "hasPart": "covers",
    "isA": "is a kind of",
}
_TIME = {
    "eq": "on",
    "neq": "not on",
    "lt": "before",
    "lteq": "no later than",
    "gt": "after",
    "gteq": "no earlier than",
}
_VALUES = {"aggregate": "figures about groups only, never single rows", "rows": "single rows"}


def atom(one: Atom) -> str:
    """`the declared purpose is one of dpv:ScientificResearch`."""
    operand = vocabulary.operand(one.left)
    if operand is None:
        return f"{compact(one.left)} {_OPERATORS.get(one.operator, one.operator)} {values(one)} (an unknown term)"
    return operand.sentence.format(
        op=operator(operand, one), value=values(one), column=vocabulary.column_of(one.left) or "the column"
    )


def operator(operand: Operand, one: Atom) -> str:
    """The operator as words that fit the operand."""
    if operand.type is ValueType.INSTANT:
        return _TIME.get(one.operator, one.operator)
    if one.operator == "eq" and operand.type is ValueType.DURATION:
        return "at most"
    if len(one.right) == 1 and one.operator in ("isAnyOf", "isNoneOf"):
        return "is" if one.operator == "isAnyOf" else "is not"
    return _OPERATORS.get(one.operator, one.operator)


def values(one: Atom) -> str:
    """The right side as a person writes it."""
    operand = vocabulary.operand(one.left)
    texts = [value(literal.text, operand) for literal in one.right]
    return ", ".join(texts[:-1]) + f" or {texts[-1]}" if len(texts) > 1 else texts[0]


def value(text: str, operand: Operand | None) -> str:
    """One value: durations and regions in words, IRIs short."""
    if operand is not None and operand.type is ValueType.DURATION:
        try:
            return spell(duration(text))
        except ValueError:
            return text
    if operand is not None and operand.type is ValueType.INTEGER and text.isdecimal():
        return f"{int(text):,}"
    return _VALUES.get(text, in_words(text))


def spell(span: Duration) -> str:
    """`P30D` -> 30 days, `P14M` -> 1 year 2 months."""
    seconds = span.nanoseconds // 1_000_000_000
    parts = [
        (span.months // 12, "year"),
        (span.months % 12, "month"),
        (seconds // 86_400, "day"),
        (seconds // 3_600 % 24, "hour"),
        (seconds // 60 % 60, "minute"),
        (seconds % 60, "second"),
    ]
    said = [f"{number} {unit}{'' if number == 1 else 's'}" for number, unit in parts if number]
    return " ".join(said) or "no time"


def constraint(one: Constraint) -> str:
    """A constraint with its logic: `(every row has country is DE) or (...)`."""
    if isinstance(one, Atom):
        return atom(one)
    said = [constraint(member) if isinstance(member, Atom) else f"({constraint(member)})" for member in one.members]
    if len(said) == 1:
        return said[0]
    if one.connective is Connective.XONE:
        return "exactly one of these holds: " + "; ".join(said)
    return f" {one.connective.value} ".join(said)


def action(name: str) -> str:
    """`query the data`; an unknown action by its name."""
    known = vocabulary.ACTIONS.get(vocabulary.SAME_ACTION.get(name, name))
    return known.phrase if known else f"do {compact(name)} (an unknown action)"


def duty(one: Duty) -> str:
    """`delete all copies within 30 days`."""
    details = [constraint(part) for part in one.constraints]
    if vocabulary.compact(one.action) == "ds:mask":
        return "mask in every answer " + " ".join(details)
    return " ".join([action(one.action), *details])


def is_group(one: Constraint) -> bool:
    """Whether it is a logical constraint."""
    return isinstance(one, Group)
