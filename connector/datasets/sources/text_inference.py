"""Decides which text columns take the type that the engine finds: only where the value means the same as the text.

The engine reads `Nan` as a number, `epoch` as a date and `F` as a boolean, and drops digits that do not fit its types.
This module builds SQL queries over columns read as text and interprets their results. Opens no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from connector.datasets.sources.source_files import quote_name, quote_text

TEXT = "VARCHAR"
MOMENT = "TIMESTAMP"
_ZONED = "TIMESTAMP WITH TIME ZONE"
_NUMBERS = ("BIGINT", "DOUBLE")
_DIGITS_MAX = 38
_YES, _NO = frozenset(("true", "t", "yes", "y", "1")), frozenset(("false", "f", "no", "n", "0"))
_DATE = r"(\d{4}[-/. ]\d{1,2}[-/. ]\d{1,2}|\d{1,2}[-/. ]\d{1,2}[-/. ]\d{4})"
_HOUR = r"([01]?\d|2[0-3])"
_CLOCK = r":\d{2}(:\d{2}(\.\d{1,6}0*)?)?"
_ZONE = r" ?(Z|UTC|[-+]\d{2}(:?\d{2})?)"
_FORMS: Mapping[str, str] = {  # values that can only be of this type
    "DATE": _DATE,
    "TIME": rf"{_HOUR}{_CLOCK}",
    "TIMESTAMP": rf"{_DATE}[ T]{_HOUR}{_CLOCK}( ?[AaPp][Mm])?({_ZONE})?",
}
_USUAL: Mapping[str, str] = {
    "BOOLEAN": "(?i)true|false",
    "DATE": r"\d{4}-\d{2}-\d{2}",
    "TIME": _FORMS["TIME"],
    "TIMESTAMP": rf"\d{{4}}-\d{{2}}-\d{{2}}[ T]([01]\d|2[0-3]){_CLOCK}",
    _ZONED: rf"\d{{4}}-\d{{2}}-\d{{2}}[ T]([01]\d|2[0-3]){_CLOCK}{_ZONE}",
}
_JSON = {  # by the engine's names of types
    "date": re.compile(_USUAL["DATE"].replace("{2}", "{1,2}"), re.ASCII),
    "time": re.compile(_USUAL["TIME"].replace(r":\d{2}", r":\d{1,2}"), re.ASCII),
    "timestamp": re.compile(_USUAL["TIMESTAMP"], re.ASCII),
    "timestamp with time zone": re.compile(_USUAL[_ZONED], re.ASCII),
    "uuid": re.compile(r"[-0-9a-f]{36}"),
}
_NO_DIGITS = re.compile(r"[eE].*|[^0-9]")
KINDS = (*_NUMBERS, *_USUAL)  # types that the engine finds in text that may mean something else
_TWO, _NAME = r"\d{1,2}", r"\pL+"
_LETTERS: Mapping[str, str] = {  # of formats: the values of each that the engine reads without loss
    **dict.fromkeys("dmyIMSUWV", _TWO), **dict.fromkeys("aAbBhp", _NAME), **dict.fromkeys("YG", r"\d{4}"),
    **dict.fromkeys("uw", r"\d"), "j": r"\d{1,3}", "H": _HOUR, "f": r"\d{1,6}", "g": r"\d{1,3}",
    "n": r"\d{1,6}0*", "z": r"[-+]\d{2}(:?\d{2}){0,2}", "x": r"\d{4}-\d{2}-\d{2}", "X": r"\d{2}:\d{2}:\d{2}",
    "c": r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}", "%": "%",
}  # fmt: skip
_FORMAT = re.compile(r"%-?(.)|(\s+)|([^%])", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberStyle:
    """How numbers are written in the text, and the forms of values of types for which the owner gave a format."""

    point: str = "."
    thousands: str = ""
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChosenType:
    """The type of a column, and the note on it for the owner."""

    type: str
    note: str = ""


def form_of(format: str) -> str:
    """Return the regular expression of the values that an owner's format reads without loss of digits."""
    parts = _FORMAT.findall(format)
    return "".join(_LETTERS.get(letter, ".") if letter else r"\s*" if blank else re.escape(other)
                   for letter, blank, other in parts)  # fmt: skip


def number_form(written: NumberStyle) -> str:
    """Return the regular expression of numbers, including those that may be codes."""
    return _number_forms(written).every


def usual_values_sql(name: str, kind: str, written: NumberStyle) -> str:
    """Return the quick condition that is true where a text column of type `kind` has only unambiguous values.

    True for most files. Where it is not, `choose_type` decides.
    """
    column, forms = quote_name(name), _number_forms(written)
    form = forms.usual if kind in _NUMBERS else written.given.get(kind) or _USUAL[kind]
    held = _matches_sql(column, f" *({form})? *")
    if kind != "DOUBLE":
        return f"bool_and({held})"
    bare = _plain_number_sql(f"trim({column})", written)
    fractional = f"bool_or(contains({bare}, '.') OR {_has_exponent_sql(bare)})"
    return f"bool_and({held} AND ({bare} = '' OR {_same_digits_sql(bare)})) AND {fractional}"


def facts_sql(name: str, kind: str, written: NumberStyle) -> str:
    """Return the SQL expression with the facts by which `choose_type` decides on a text column of type `kind`."""
    text = f"nullif(trim({quote_name(name)}), '')"
    facts = _number_facts(text, written) if kind in _NUMBERS else _time_or_boolean_facts(text, kind, written)
    return "{" + ", ".join(f"{quote_text(fact)}: {sql}" for fact, sql in facts.items()) + "}"


def choose_type(kind: str, facts: Mapping[str, Any]) -> ChosenType:
    """Return the type for a text column that the engine found to be of `kind`."""
    if kind in _NUMBERS:
        return _choose_number(kind, facts)
    if kind == "BOOLEAN":
        return _choose_boolean(set(facts["words"] or ()))
    return _choose_time(kind, facts)


@dataclass(frozen=True, slots=True)
class _Forms:
    """Regular expressions of whole numbers, numbers without exponent, all numbers, and numbers that are no codes."""

    whole: str
    plain: str
    every: str
    usual: str


def _number_forms(written: NumberStyle) -> _Forms:
    mark, point = f"[{written.thousands}]", f"[{written.point}]"
    digits = rf"(\d+|\d{{1,3}}({mark}\d{{3}})+)" if written.thousands else r"\d+"
    pointed = rf"({digits}{point}\d*|{point}\d+)"
    plain = f"[-+]?({digits}|{pointed})"
    usual = rf"[-+]?({digits}([eE][-+]\d+)?|{pointed}([eE][-+]?\d+)?)"
    return _Forms(f"[-+]?{digits}", plain, rf"{plain}([eE][-+]?\d+)?", usual)


def _plain_number_sql(text: str, written: NumberStyle) -> str:
    """Return the SQL that writes a number as the engine reads it without options."""
    bare = f"replace({text}, {quote_text(written.thousands)}, '')" if written.thousands else text
    return f"replace({bare}, {quote_text(written.point)}, '.')" if written.point != "." else bare


def _number_facts(text: str, written: NumberStyle) -> dict[str, str]:
    forms, bare = _number_forms(written), _plain_number_sql(text, written)
    word = f"lower({text}) IN ('nan', 'inf', '-inf', 'infinity', '-infinity')"
    return {
        "whole": f"bool_and({_matches_sql(text, forms.whole)})",
        "plain": f"bool_and({_matches_sql(text, forms.plain)})",
        "numbers": f"bool_and({_matches_sql(text, forms.every)} OR {word})",
        "some": f"bool_or({_matches_sql(text, forms.every)})",
        "codes": f"bool_or({_matches_sql(text, forms.every)} AND NOT {_matches_sql(text, forms.usual)})",
        "same": f"bool_and({word} OR {_same_digits_sql(bare)})",
        "before": f"max(length(ltrim(split_part({bare}, '.', 1), '-+')))",
        "after": f"max(length(split_part({bare}, '.', 2)))",
    }


def _same_digits_sql(number: str) -> str:
    """Return the condition that the DOUBLE nearest to a number in text has its digits. Up to 15 digits always fit."""
    double = f"TRY_CAST({number} AS DOUBLE)"
    digits = f"trim(regexp_replace(regexp_replace({number}, '[eE].*', ''), '[^0-9]', '', 'g'), '0')"
    shown = f"printf('%.' || greatest(length({digits}) - 1, 0) || 'e', {double})"
    return (
        f"CASE WHEN length({number}) <= 15 AND NOT {_has_exponent_sql(number)} THEN true "
        f"WHEN {number} = CAST({double} AS VARCHAR) OR {digits} = '' THEN true WHEN length({digits}) > 100 THEN false "
        f"ELSE regexp_replace(split_part({shown}, 'e', 1), '[^0-9]', '', 'g') = {digits} END"
    )


def _has_exponent_sql(number: str) -> str:
    return f"contains(lower({number}), 'e')"


def _choose_number(kind: str, facts: Mapping[str, Any]) -> ChosenType:
    before, after = facts["before"] or 0, facts["after"] or 0
    if facts["whole"] and before <= _DIGITS_MAX:  # longer numbers than a BIGINT holds have another kind
        return ChosenType(kind if kind == "BIGINT" else f"DECIMAL({_DIGITS_MAX},0)")
    if not (facts["numbers"] and facts["some"]):
        return ChosenType(TEXT, "text, as some of it is no plain number")
    if facts["codes"]:
        return ChosenType(TEXT, "text, as a code may be meant by digits, E and digits")
    if kind == "DOUBLE" and facts["same"]:
        return ChosenType(kind)
    if facts["plain"] and before + after <= _DIGITS_MAX:
        return ChosenType(f"DECIMAL({_DIGITS_MAX},{after})", "a decimal, as DOUBLE does not keep all digits")
    return ChosenType(TEXT, "text, as no number keeps all digits")


def _choose_boolean(words: set[str]) -> ChosenType:
    """Choose the type for boolean words: `F` alone may mean female, and `NO` Norway."""
    if words <= {"true", "false"} or (words & _YES and words & _NO):
        return ChosenType("BOOLEAN")
    return ChosenType(TEXT, f"text, as {' or '.join(sorted(words))} alone may mean something else")


def _time_or_boolean_facts(text: str, kind: str, written: NumberStyle) -> dict[str, str]:
    if kind == "BOOLEAN":
        return {"words": _distinct_values_sql(f"lower({text})")}
    plain = _plain(kind)
    form = {"form": f"bool_and({_matches_sql(text, written.given.get(kind) or _FORMS[plain])})"}
    if kind in written.given or plain == "TIME":
        return form
    zoned = _matches_sql(text, rf".*:\d{{2}}(\.\d+)?( ?[AaPp][Mm])?{_ZONE}")
    any_, day = r"\d{1,2}", r"(1[3-9]|[23]\d)"
    orders = {"year_last": (any_, any_), "day_first": (day, any_), "month_first": (any_, day)}
    asked = {name: _matches_sql(text, rf"{first}\D{second}\D\d{{4}}.*") for name, (first, second) in orders.items()}
    return form | {"zones": _distinct_values_sql(zoned)} | {name: f"bool_or({one})" for name, one in asked.items()}


def _choose_time(kind: str, facts: Mapping[str, Any]) -> ChosenType:
    if not facts["form"]:
        return ChosenType(TEXT, f"text, as some of it is no plain {kind.split()[0].lower()}, or would lose digits")
    if "zones" not in facts:
        return ChosenType(kind)
    if len(facts["zones"]) > 1:
        return ChosenType(TEXT, "text, as some moments have a time zone and others have none")
    if facts["year_last"] and facts["day_first"] == facts["month_first"]:
        return ChosenType(TEXT, "text, as day and month may be either way round; give date_format or timestamp_format")
    read = ("day first" if facts["day_first"] else "month first") if facts["year_last"] else ""
    return ChosenType(_ZONED if facts["zones"] == [True] else _plain(kind), read and f"read with the {read}")


def _plain(kind: str) -> str:
    return kind.removesuffix(" WITH TIME ZONE")


def _distinct_values_sql(value: str) -> str:
    """Return the SQL for the list of distinct values. Use it only where there are few."""
    return f"list(DISTINCT {value}) FILTER ({value} IS NOT NULL)"


def double_keeps_digits(number: str) -> bool:
    """Return whether the DOUBLE nearest to a JSON number has its digits: `_same_digits_sql` for one value."""
    if repr(float(number)) == number:
        return True
    digits = _NO_DIGITS.sub("", number).strip("0")
    if len(digits) > 100:
        return False
    shown = f"{float(number):.{max(len(digits) - 1, 0)}e}"
    return not digits or _NO_DIGITS.sub("", shown) == digits


def is_unambiguous(text: str, kind: str) -> bool:
    """Return whether a JSON text means the same as the value of this type that the engine reads from it."""
    form = _JSON.get(kind)
    return form is None or form.fullmatch(text) is not None


def _matches_sql(text: str, form: str) -> str:
    return f"regexp_full_match({text}, {quote_text(form)})"
