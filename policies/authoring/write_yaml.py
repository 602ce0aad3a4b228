"""An OfferForm as YAML text that reads well and reads back as the same form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from policies.authoring.form import EVENT, LIMITS, Columns, Limits, OfferForm, OwedLine, short_span
from policies.vocabulary import compact


def write_form(form: OfferForm) -> str:
    """The YAML of a form; `read_form(write_form(form))` means the same offer."""
    lines = [_line(word, value) for word, value in _content(form).items()]
    return "".join(lines)


def _content(form: OfferForm) -> dict[str, Any]:
    found: dict[str, Any] = {
        "offer": form.offer,
        "dataset": form.dataset,
        "who": {line.word: _one_or_more(line.values) for line in form.who},
        "may": list(form.may),
        "for": [compact(purpose) for purpose in form.purposes],
        "from": form.not_before,
        "until": form.until,
        "lasts": short_span(form.lasts) if form.lasts else "",
        "answers": form.answers,
        "rows": form.rows,
        "columns": _columns(form.columns),
        "limits": _limits(form.limits),
        "grid": _some({"group_by": dict(form.group_by), "measure": dict(form.measure)}),
        "joins": list(form.joins),
        "templates": list(form.templates),
        "first": _owed(form.first),
        "not": list(form.forbidden),
        "then": _owed(form.then),
        "decide": form.decide if form.decide != "manual" else "",
        "odrl": form.odrl,
    }
    return _some(found)


def _some(found: dict[str, Any]) -> dict[str, Any]:
    return {word: value for word, value in found.items() if value}


def _one_or_more(values: tuple[str, ...]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _columns(columns: Columns) -> dict[str, Any]:
    plain: dict[str, list[str]] = {"hash": [], "null": []}
    masks: dict[str, Any] = {}
    for mask in columns.masks:
        if mask.method in plain and not mask.argument:
            plain[mask.method].append(mask.column)
        else:
            masks[mask.column] = {mask.method: mask.argument} if mask.argument else mask.method
    return _some({"only": list(columns.only), "hide": list(columns.hide), **plain, "mask": masks})


def _limits(limits: Limits) -> dict[str, str]:
    found = {word: getattr(limits, word) for word in LIMITS}
    if limits.per:
        word = "min_group" if limits.min_group else "epsilon"
        found[word] = f"{found[word]} per {limits.per}"
    return _some(found)


def _owed(lines: tuple[OwedLine, ...]) -> Any:
    """A mapping, or a list where one action is owed more than once."""
    pairs = [(line.action, _details(line)) for line in lines]
    if len({action for action, _ in pairs}) == len(pairs):
        return dict(pairs)
    return [{action: details} for action, details in pairs]


def _details(line: OwedLine) -> Any:
    details = {word: _one_or_more(tuple(_detail(word, text) for text in texts)) for word, texts in line.details}
    if not details:
        return "true"
    on = details.get("on")
    if set(details) == {"within"}:
        return f"{details['within']} after end"
    if set(details) == {"within", "on"} and isinstance(on, str) and on != "end" and " " not in on:
        return f"{details['within']} after {on}"
    if set(details) == {"on"} and isinstance(on, str):
        return f"on {on}"
    return details


def _detail(word: str, text: str) -> str:
    if word in ("within", "every"):
        return short_span(text)
    return text.removeprefix(EVENT) if word == "on" else compact(text) if word in ("to", "policy") else text


_WIDTH = 100
_IN_FLOW = re.compile(r"[^\W_][\w./+@%=-]*(?:[ :][\w./+@%=-]+)*")
_IN_BLOCK = re.compile(r"[^\W_(][\w./+@%=()<>,!'\"-]*(?:[ :][\w./+@%=()<>,!'\"-]+)*")


def _line(word: str, value: Any) -> str:
    """`word: value` on one line where it fits, else indented over several."""
    if isinstance(value, str):
        return f"{_scalar(word, _IN_FLOW)}: {_scalar(value, _IN_BLOCK)}\n"
    flow = _flow(value)
    if word != "odrl" and len(word) + len(flow) < _WIDTH:
        return f"{_scalar(word, _IN_FLOW)}: {flow}\n"
    return f"{_scalar(word, _IN_FLOW)}:\n" + _block(value, "  ")


def _block(value: Any, indent: str) -> str:
    """A mapping or list, one member a line; members that fit stay on theirs."""
    lines = []
    for key, member in value.items() if isinstance(value, dict) else ((None, one) for one in value):
        head = f"{indent}-" if key is None else f"{indent}{_scalar(key, _IN_FLOW)}:"
        flow = _flow(member)
        if isinstance(member, str) or not member or len(head) + len(flow) < _WIDTH:
            lines.append(f"{head} {flow}\n")
        else:
            lines.append(f"{head}\n" + _block(member, indent + "  "))
    return "".join(lines)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(str(key), _IN_FLOW)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(str(value), _IN_FLOW)


def _scalar(text: str, plain: re.Pattern[str]) -> str:
    """Without quotes where YAML reads it so; every plain scalar is a text to us (see `yamlform`)."""
    if plain.fullmatch(text):
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
