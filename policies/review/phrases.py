"""Phrases one constraint, action or value in plain words.

The only place for wording, so that decisions, explanations and reports use the same words. They are English; `Phrases`
with another `Wording` gives them in its language. `texts` are the fragments that such a language translates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

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
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_OTHER_TEXTS = (
    "an unknown term", "the column", "no time", "exactly one of these holds:", "do {} (an unknown action)", "have {}",
    "columns masked in a way that is not stated", "no", "{columns} {masked} in every answer",
    "within {time} after {event}", "whenever {event}", "by {time}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wording:
    """How a language writes: `text` translates one of `texts`, and returns any other text as it is."""

    text: Callable[[str], str] = str
    number: Callable[[int], str] = "{:,}".format
    day: Callable[[date], str] = lambda day: f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


@dataclass(frozen=True, slots=True)
class Phrases:
    """Phrases in one language."""

    wording: Wording = Wording()

    def _text(self, english: str) -> str:
        return self.wording.text(english) if english else ""

    def atom(self, one: Atom) -> str:
        """Return an atom in words: `the declared purpose is dpv:ScientificResearch`."""
        operand = vocabulary.operand(one.left)
        if operand is None:
            said = f"{compact(one.left)} {self._text(_OPERATORS.get(one.operator, one.operator))} {self.values(one)}"
            return f"{said} ({self._text('an unknown term')})"
        column = vocabulary.column_of(one.left) or self._text("the column")
        sentence = self._text(operand.sentence)
        return sentence.format(op=self._text(self.operator(operand, one)), value=self.values(one), column=column)

    def operator(self, operand: Operand, one: Atom) -> str:
        """Return the operator in words that fit the operand."""
        if operand.type is ValueType.INSTANT:
            return _TIME.get(one.operator, one.operator)
        if one.operator == "eq" and operand.type is ValueType.DURATION:
            return "is at most"
        if len(one.right) == 1 and one.operator in ("isAnyOf", "isNoneOf"):
            return "is" if one.operator == "isAnyOf" else "is not"
        return _OPERATORS.get(one.operator, one.operator)

    def values(self, one: Atom) -> str:
        """Return the right operand as people write it."""
        operand = vocabulary.operand(one.left)
        word = "and" if one.left in _LISTS else "or"
        return self.join_words([self.value(literal.text, operand) for literal in one.right], word=word)

    def join_words(self, texts: list[str], *, word: str = "or") -> str:
        """Return `a`, `a or b`, `a, b or c`."""
        return f"{', '.join(texts[:-1])} {self._text(word)} {texts[-1]}" if len(texts) > 1 else texts[0]

    def value(self, text: str, operand: Operand | None) -> str:
        """Return one value: durations and regions in words, numbers with separators, IRIs with prefix."""
        if operand is not None and operand.type is ValueType.DURATION:
            return self._spell_duration(text)
        if operand is not None and operand.type is ValueType.INTEGER and text.isdecimal():
            return self.wording.number(int(text))
        return self._text(_VALUES[text]) if text in _VALUES else format_short(text)

    def _spell_duration(self, text: str) -> str:
        try:
            return self.spell(duration(text))
        except ValueError:
            return text

    def spell(self, span: Duration) -> str:
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
        words = [
            f"{self.wording.number(number)} {self._text(unit if number == 1 else unit + 's')}"
            for number, unit in parts
            if number
        ]
        return " ".join(words) or self._text("no time")

    def constraint(self, one: Constraint) -> str:
        """Return a constraint with its logic: `in every row a is 1, or in every row b is 2`."""
        if isinstance(one, Atom):
            return self.atom(one)
        phrases = [
            self.constraint(member) if isinstance(member, Atom) else f"({self.constraint(member)})"
            for member in one.members
        ]
        if len(phrases) == 1:
            return phrases[0]
        if one.connective is Connective.XONE:
            return f"{self._text('exactly one of these holds:')} {'; '.join(phrases)}"
        return f", {self._text(one.connective.value)} ".join(phrases)

    def action(self, name: str) -> str:
        """Return `query the data`; an unknown action by its name."""
        known = vocabulary.action(name)
        return self._text(known.phrase) if known else self._text("do {} (an unknown action)").format(compact(name))

    def duty(self, one: Duty) -> str:
        """Return `delete all copies within 30 days after the agreement ends`."""
        details = {part.left: part for part in one.constraints if isinstance(part, Atom)}
        if one.action == ds("mask"):
            return self._text("have {}").format(self.mask(details))
        words = [self.action(one.action)]
        words += [self.constraint(part) for part in one.constraints if not _is_timing(part)]
        return " ".join([*words, *self._phrase_timing(details)])

    def mask(self, details: dict[str, Atom]) -> str:
        """Return `name and phone emptied in every answer`."""
        columns, method = details.get(ds("column")), details.get(ds("method"))
        if columns is None or method is None:
            return self._text("columns masked in a way that is not stated")
        argument = details.get(ds("argument"))
        word = masks.MASKS.get(method.right[0].text)
        how = word.sentence if word is not None else _METHODS.get(method.right[0].text, method.right[0].text)
        how = self._text(how).format(argument.right[0].text if argument else self._text("no"))
        names = self.join_words([literal.text for literal in columns.right], word="and")
        return self._text("{columns} {masked} in every answer").format(columns=names, masked=how)

    def _phrase_timing(self, details: dict[str, Atom]) -> list[str]:
        delay, event, by = (details.get(odrl(name)) for name in ("delayPeriod", "event", "dateTime"))
        when = (
            self.join_words([self._phrase_event(literal.text) for literal in event.right])
            if event
            else self._text(_EVENTS["end"])
        )
        words = []
        if delay:
            words = [self._text("within {time} after {event}").format(time=self.values(delay), event=when)]
        elif event:
            words = [self._text("whenever {event}").format(event=when)]
        return [*words, self._text("by {time}").format(time=self.values(by))] if by else words

    def _phrase_event(self, text: str) -> str:
        name = compact(text).removeprefix("ds:event/")
        return self._text(_EVENTS[name]) if name in _EVENTS else name


def _is_timing(part: Constraint) -> bool:
    return isinstance(part, Atom) and part.left in (odrl("delayPeriod"), odrl("event"), odrl("dateTime"))


def _list_texts() -> Iterator[str]:
    yield from (operand.sentence for operand in vocabulary.OPERANDS.values())
    yield from (known.phrase for known in vocabulary.ACTIONS.values())
    for words in (_OPERATORS, _TIME, _VALUES, _EVENTS, _METHODS):
        yield from words.values()
    yield from (one.value for one in Connective if one is not Connective.XONE)
    for unit in ("year", "month", "day", "hour", "minute", "second"):
        yield from (unit, unit + "s")
    yield from _OTHER_TEXTS


def texts() -> frozenset[str]:
    """Return the fragments of which phrases are made, for translation. Words of plugins are not among them."""
    return frozenset(_list_texts())


ENGLISH = Phrases()
constraint, action, duty, mask = ENGLISH.constraint, ENGLISH.action, ENGLISH.duty, ENGLISH.mask
