"""Whether what the engine makes of text means the same as the text: which columns keep the type that it finds.

It takes `Nan` for a number, `epoch` and `F` for a date and a truth, and drops digits that its types have no room for.
Questions in SQL about a column that is read as text, and what their answers mean. Opens nothing.
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
_FORMS: Mapping[str, str] = {  # what is a value of the type, and that alone
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
KINDS = (*_NUMBERS, *_USUAL)  # what the engine finds in text that may mean something else
_TWO, _NAME = r"\d{1,2}", r"\pL+"
_LETTERS: Mapping[str, str] = {  # of formats: what is a value of each, of which the engine loses nothing
    **dict.fromkeys("dmyIMSUWV", _TWO), **dict.fromkeys("aAbBhp", _NAME), **dict.fromkeys("YG", r"\d{4}"),
    **dict.fromkeys("uw", r"\d"), "j": r"\d{1,3}", "H": _HOUR, "f": r"\d{1,6}", "g": r"\d{1,3}",
    "n": r"\d{1,6}0*", "z": r"[-+]\d{2}(:?\d{2}){0,2}", "x": r"\d{4}-\d{2}-\d{2}", "X": r"\d{2}:\d{2}:\d{2}",
    "c": r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}", "%": "%",
}  # fmt: skip
_FORMAT = re.compile(r"%-?(.)|(\s+)|([^%])", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How numbers are written in the text; and the form of values of those types for which the owner gave a format."""

    point: str = "."
    thousands: str = ""
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """The type in which a column keeps its values, and what its owner is told of it."""

    type: str
    note: str = ""


def form_of(format: str) -> str:
    """How values look that a format of an owner's reads as what they say, and loses no digit of."""
    parts = _FORMAT.findall(format)
    return "".join(_LETTERS.get(letter, ".") if letter else r"\s*" if blank else re.escape(other)
                   for letter, blank, other in parts)  # fmt: skip


def number_form(written: Written) -> str:
    """How numbers look, those that may be codes too."""
    return _numbers(written).every


def usual(name: str, kind: str, written: Written) -> str:
    """The expression that is true where a column of text, found to be of `kind`, has nothing but what means the same
    in it: what most files have, and quick to ask. Where it is not, `kept` decides."""
    column, forms = quote_name(name), _numbers(written)
    form = forms.usual if kind in _NUMBERS else written.given.get(kind) or _USUAL[kind]
    held = _matches(column, f" *({form})? *")
    if kind != "DOUBLE":
        return f"bool_and({held})"
    bare = _bare(f"trim({column})", written)
    return f"bool_and({held} AND ({bare} = '' OR {_same(bare)})) AND bool_or(contains({bare}, '.') OR {_power(bare)})"


def question(name: str, kind: str, written: Written) -> str:
    """The expression that has the facts by which `kept` decides on a column of text, found to be of `kind`."""
    text = f"nullif(trim({quote_name(name)}), '')"
    facts = _number(text, written) if kind in _NUMBERS else _other(text, kind, written)
    return "{" + ", ".join(f"{quote_text(fact)}: {sql}" for fact, sql in facts.items()) + "}"


def kept(kind: str, facts: Mapping[str, Any]) -> Kept:
    """What becomes of a column of text that was found to be of `kind`."""
    if kind in _NUMBERS:
        return _kept_number(kind, facts)
    if kind == "BOOLEAN":
        return _kept_truth(set(facts["words"] or ()))
    return _kept_time(kind, facts)


@dataclass(frozen=True, slots=True)
class _Forms:
    """How numbers look: whole ones, those without an exponent, all, and those that cannot be codes."""

    whole: str
    plain: str
    every: str
    usual: str


def _numbers(written: Written) -> _Forms:
    mark, point = f"[{written.thousands}]", f"[{written.point}]"
    digits = rf"(\d+|\d{{1,3}}({mark}\d{{3}})+)" if written.thousands else r"\d+"
    pointed = rf"({digits}{point}\d*|{point}\d+)"
    plain = f"[-+]?({digits}|{pointed})"
    usual = rf"[-+]?({digits}([eE][-+]\d+)?|{pointed}([eE][-+]?\d+)?)"
    return _Forms(f"[-+]?{digits}", plain, rf"{plain}([eE][-+]?\d+)?", usual)


def _bare(text: str, written: Written) -> str:
    """A number as the engine reads it without options."""
    bare = f"replace({text}, {quote_text(written.thousands)}, '')" if written.thousands else text
    return f"replace({bare}, {quote_text(written.point)}, '.')" if written.point != "." else bare


def _number(text: str, written: Written) -> dict[str, str]:
    forms, bare = _numbers(written), _bare(text, written)
    word = f"lower({text}) IN ('nan', 'inf', '-inf', 'infinity', '-infinity')"
    return {
        "whole": f"bool_and({_matches(text, forms.whole)})",
        "plain": f"bool_and({_matches(text, forms.plain)})",
        "numbers": f"bool_and({_matches(text, forms.every)} OR {word})",
        "some": f"bool_or({_matches(text, forms.every)})",
        "codes": f"bool_or({_matches(text, forms.every)} AND NOT {_matches(text, forms.usual)})",
        "same": f"bool_and({word} OR {_same(bare)})",
        "before": f"max(length(ltrim(split_part({bare}, '.', 1), '-+')))",
        "after": f"max(length(split_part({bare}, '.', 2)))",
    }


def _same(number: str) -> str:
    """Whether the DOUBLE that is nearest to a number in text has its digits; of at most fifteen it has them all."""
    double = f"TRY_CAST({number} AS DOUBLE)"
    digits = f"trim(regexp_replace(regexp_replace({number}, '[eE].*', ''), '[^0-9]', '', 'g'), '0')"
    shown = f"printf('%.' || greatest(length({digits}) - 1, 0) || 'e', {double})"
    return (
        f"CASE WHEN length({number}) <= 15 AND NOT {_power(number)} THEN true "
        f"WHEN {number} = CAST({double} AS VARCHAR) OR {digits} = '' THEN true WHEN length({digits}) > 100 THEN false "
        f"ELSE regexp_replace(split_part({shown}, 'e', 1), '[^0-9]', '', 'g') = {digits} END"
    )


def _power(number: str) -> str:
    return f"contains(lower({number}), 'e')"


def _kept_number(kind: str, facts: Mapping[str, Any]) -> Kept:
    before, after = facts["before"] or 0, facts["after"] or 0
    if facts["whole"] and before <= _DIGITS_MAX:  # more than fit into a BIGINT are found to be of another kind
        return Kept(kind if kind == "BIGINT" else f"DECIMAL({_DIGITS_MAX},0)")
    if not (facts["numbers"] and facts["some"]):
        return Kept(TEXT, "text, as some of it is no plain number")
    if facts["codes"]:
        return Kept(TEXT, "text, as a code may be meant by digits, E and digits")
    if kind == "DOUBLE" and facts["same"]:
        return Kept(kind)
    if facts["plain"] and before + after <= _DIGITS_MAX:
        return Kept(f"DECIMAL({_DIGITS_MAX},{after})", "a decimal, as DOUBLE does not keep all digits")
    return Kept(TEXT, "text, as no number keeps all digits")


def _kept_truth(words: set[str]) -> Kept:
    """`F` alone may be female, and `NO` Norway."""
    if words <= {"true", "false"} or (words & _YES and words & _NO):
        return Kept("BOOLEAN")
    return Kept(TEXT, f"text, as {' or '.join(sorted(words))} alone may mean something else")


def _other(text: str, kind: str, written: Written) -> dict[str, str]:
    if kind == "BOOLEAN":
        return {"words": _every(f"lower({text})")}
    plain = _plain(kind)
    form = {"form": f"bool_and({_matches(text, written.given.get(kind) or _FORMS[plain])})"}
    if kind in written.given or plain == "TIME":
        return form
    zoned = _matches(text, rf".*:\d{{2}}(\.\d+)?( ?[AaPp][Mm])?{_ZONE}")
    any_, day = r"\d{1,2}", r"(1[3-9]|[23]\d)"
    orders = {"year_last": (any_, any_), "day_first": (day, any_), "month_first": (any_, day)}
    asked = {name: _matches(text, rf"{first}\D{second}\D\d{{4}}.*") for name, (first, second) in orders.items()}
    return form | {"zones": _every(zoned)} | {name: f"bool_or({one})" for name, one in asked.items()}


def _kept_time(kind: str, facts: Mapping[str, Any]) -> Kept:
    if not facts["form"]:
        return Kept(TEXT, f"text, as some of it is no plain {kind.split()[0].lower()}, or would lose digits")
    if "zones" not in facts:
        return Kept(kind)
    if len(facts["zones"]) > 1:
        return Kept(TEXT, "text, as some moments have a time zone and others have none")
    if facts["year_last"] and facts["day_first"] == facts["month_first"]:
        return Kept(TEXT, "text, as day and month may be either way round; give date_format or timestamp_format")
    read = ("day first" if facts["day_first"] else "month first") if facts["year_last"] else ""
    return Kept(_ZONED if facts["zones"] == [True] else _plain(kind), read and f"read with the {read}")


def _plain(kind: str) -> str:
    return kind.removesuffix(" WITH TIME ZONE")


def _every(value: str) -> str:
    """The values that there are; of a few only."""
    return f"list(DISTINCT {value}) FILTER ({value} IS NOT NULL)"


def holds(number: str) -> bool:
    """Whether the DOUBLE that is nearest to a number of JSON has its digits: `_same`, of one value."""
    if repr(float(number)) == number:
        return True
    digits = _NO_DIGITS.sub("", number).strip("0")
    if len(digits) > 100:
        return False
    shown = f"{float(number):.{max(len(digits) - 1, 0)}e}"
    return not digits or _NO_DIGITS.sub("", shown) == digits


def means(text: str, kind: str) -> bool:
    """Whether a text of JSON means the same as what the engine makes of it, of this type."""
    form = _JSON.get(kind)
    return form is None or form.fullmatch(text) is not None


def _matches(text: str, form: str) -> str:
    return f"regexp_full_match({text}, {quote_text(form)})"
