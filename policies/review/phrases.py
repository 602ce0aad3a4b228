"""Phrases one constraint, action or value in plain English.

The only place for wording, so that decisions, explanations and reports use the same words.
"""

from __future__ import annotations

from policies import vocabulary
from policies.contracts import masks
from policies.evaluation.values import Duration, duration, format_short
from policies.model import Atom, Connective, Constraint, Duty
from policies.vocabulary import Operand, ValueType, compact, ds, odrl

_OPERATORS = {
    "eq": "is",
    "neq": "is not",
    "lt": "is below",
    "lteq": "is at most",
    "gt": "is above",
    "gteq": "is at least",
    "isAnyOf": "is one of",
    "isNoneOf": "is none of",
    "isAllOf": "includes all of",
    "isPartOf": "lies in",
    "hasPart": "covers",
    "isA": "is a kind of",
}
_TIME = {
    "eq": "is",
    "neq": "is not",
    "lt": "is before",
    "lteq": "is no later than",
    "gt": "is after",
    "gteq": "is no earlier than",
}
_VALUES = {"aggregate": "figures about groups only, never single rows", "rows": "single rows"}
_LISTS = frozenset({ds("columnAllow"), ds("columnDeny"), ds("notTogether"), ds("template")})
_EVENTS = {
    "end": "the agreement ends",
    "revoked": "access is revoked",
    "transferStarted": "a transfer starts",
    "transferCompleted": "a transfer is completed",
    "breach": "a breach is found",
}
_METHODS = {
    "null": "emptied",
    "hash": "replaced by a keyed hash",
    "truncate": "cut to {} characters",
    "round": "rounded to {} digits",
    "generalise": "given in steps of {}",
}


def atom(one: Atom) -> str:
    """Return an atom in words: `the declared purpose is dpv:ScientificResearch`."""
    operand = vocabulary.operand(one.left)
    if operand is None:
        return f"{compact(one.left)} {_OPERATORS.get(one.operator, one.operator)} {values(one)} (an unknown term)"
    column = vocabulary.column_of(one.left) or "the column"
    return operand.sentence.format(op=operator(operand, one), value=values(one), column=column)


def operator(operand: Operand, one: Atom) -> str:
    """Return the operator in words that fit the operand."""
    if operand.type is ValueType.INSTANT:
        return _TIME.get(one.operator, one.operator)
    if one.operator == "eq" and operand.type is ValueType.DURATION:
        return "is at most"
    if len(one.right) == 1 and one.operator in ("isAnyOf", "isNoneOf"):
        return "is" if one.operator == "isAnyOf" else "is not"
    return _OPERATORS.get(one.operator, one.operator)


def values(one: Atom) -> str:
    """Return the right operand as people write it."""
    operand = vocabulary.operand(one.left)
    word = "and" if one.left in _LISTS else "or"
    return join_words([value(literal.text, operand) for literal in one.right], word=word)


def join_words(texts: list[str], *, word: str = "or") -> str:
    """Return `a`, `a or b`, `a, b or c`."""
    return f"{', '.join(texts[:-1])} {word} {texts[-1]}" if len(texts) > 1 else texts[0]


def value(text: str, operand: Operand | None) -> str:
    """Return one value: durations and regions in words, numbers with separators, IRIs with prefix."""
    if operand is not None and operand.type is ValueType.DURATION:
        return _spell_duration(text)
    if operand is not None and operand.type is ValueType.INTEGER and text.isdecimal():
        return f"{int(text):,}"
    return _VALUES.get(text, format_short(text))


def _spell_duration(text: str) -> str:
    try:
        return spell(duration(text))
    except ValueError:
        return text


def spell(span: Duration) -> str:
    """Return a duration in words: `P30D` is 30 days, `P14M` is 1 year 2 months."""
    seconds = span.nanoseconds // 1_000_000_000
    parts = [
        (span.months // 12, "year"),
        (span.months % 12, "month"),
        (seconds // 86_400, "day"),
        (seconds // 3_600 % 24, "hour"),
        (seconds // 60 % 60, "minute"),
        (seconds % 60, "second"),
    ]
    words = [f"{number:,} {unit}{'' if number == 1 else 's'}" for number, unit in parts if number]
    return " ".join(words) or "no time"


def constraint(one: Constraint) -> str:
    """Return a constraint with its logic: `in every row a is 1, or in every row b is 2`."""
    if isinstance(one, Atom):
        return atom(one)
    phrases = [constraint(member) if isinstance(member, Atom) else f"({constraint(member)})" for member in one.members]
    if len(phrases) == 1:
        return phrases[0]
    if one.connective is Connective.XONE:
        return "exactly one of these holds: " + "; ".join(phrases)
    return f", {one.connective.value} ".join(phrases)


def action(name: str) -> str:
    """Return `query the data`; an unknown action by its name."""
    known = vocabulary.action(name)
    return known.phrase if known else f"do {compact(name)} (an unknown action)"


def duty(one: Duty) -> str:
    """Return `delete all copies within 30 days after the agreement ends`."""
    details = {part.left: part for part in one.constraints if isinstance(part, Atom)}
    if one.action == ds("mask"):
        return "have " + mask(details)
    words = [action(one.action)]
    words += [constraint(part) for part in one.constraints if not _is_timing(part)]
    return " ".join([*words, *_phrase_timing(details)])


def mask(details: dict[str, Atom]) -> str:
    """Return `name and phone emptied in every answer`."""
    columns, method = details.get(ds("column")), details.get(ds("method"))
    if columns is None or method is None:
        return "columns masked in a way that is not stated"
    argument = details.get(ds("argument"))
    word = masks.MASKS.get(method.right[0].text)
    how = word.sentence if word is not None else _METHODS.get(method.right[0].text, method.right[0].text)
    names = join_words([literal.text for literal in columns.right], word="and")
    return f"{names} {how.format(argument.right[0].text if argument else 'no')} in every answer"


def _is_timing(part: Constraint) -> bool:
    return isinstance(part, Atom) and part.left in (odrl("delayPeriod"), odrl("event"), odrl("dateTime"))


def _phrase_timing(details: dict[str, Atom]) -> list[str]:
    delay, event, by = (details.get(odrl(name)) for name in ("delayPeriod", "event", "dateTime"))
    when = join_words([_phrase_event(literal.text) for literal in event.right]) if event else _EVENTS["end"]
    words = [f"within {values(delay)} after {when}"] if delay else [f"whenever {when}"] if event else []
    return [*words, f"by {values(by)}"] if by else words


def _phrase_event(text: str) -> str:
    name = compact(text).removeprefix("ds:event/")
    return _EVENTS.get(name, name)
