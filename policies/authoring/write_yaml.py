"""Writes an OfferForm as readable YAML that reads back as the same form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from policies.authoring.form import EVENT, LIMITS, ColumnRules, DutyLine, OfferForm, OfferLimits, format_span
from policies.vocabulary import compact


def write_form(form: OfferForm) -> str:
    """Return the YAML of a form; `read_form(write_form(form))` means the same offer."""
    lines = [_write_line(word, value) for word, value in _form_to_mapping(form).items()]
    return "".join(lines)


def _form_to_mapping(form: OfferForm) -> dict[str, Any]:
    found: dict[str, Any] = {
        "offer": form.offer,
        "dataset": form.dataset,
        "who": {line.word: _one_or_more(line.values) for line in form.who},
        "may": list(form.may),
        "for": [compact(purpose) for purpose in form.purposes],
        "from": form.not_before,
        "until": form.until,
        "lasts": format_span(form.lasts) if form.lasts else "",
        "answers": form.answers,
        "rows": form.rows,
        "columns": _columns_to_mapping(form.columns),
        "limits": _limits_to_mapping(form.limits),
        "grid": _drop_empty({"group_by": dict(form.group_by), "measure": dict(form.measure)}),
        "joins": list(form.joins),
        "templates": list(form.templates),
        "first": _duties_to_yaml(form.first),
        "not": list(form.forbidden),
        "then": _duties_to_yaml(form.then),
        "decide": form.decide if form.decide != "manual" else "",
        "odrl": form.odrl,
    }
    return _drop_empty(found)


def _drop_empty(found: dict[str, Any]) -> dict[str, Any]:
    return {word: value for word, value in found.items() if value}


def _one_or_more(values: tuple[str, ...]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _columns_to_mapping(columns: ColumnRules) -> dict[str, Any]:
    plain: dict[str, list[str]] = {"hash": [], "null": []}
    masks: dict[str, Any] = {}
    for mask in columns.masks:
        if mask.method in plain and not mask.argument:
            plain[mask.method].append(mask.column)
        else:
            masks[mask.column] = {mask.method: mask.argument} if mask.argument else mask.method
    return _drop_empty({"only": list(columns.only), "hide": list(columns.hide), **plain, "mask": masks})


def _limits_to_mapping(limits: OfferLimits) -> dict[str, str]:
    found = {word: getattr(limits, word) for word in LIMITS}
    if limits.per:
        word = "min_group" if limits.min_group else "epsilon"
        found[word] = f"{found[word]} per {limits.per}"
    return _drop_empty(found)


def _duties_to_yaml(lines: tuple[DutyLine, ...]) -> Any:
    """A mapping, or a list when an action occurs more than once."""
    pairs = [(line.action, _details_to_yaml(line)) for line in lines]
    if len({action for action, _ in pairs}) == len(pairs):
        return dict(pairs)
    return [{action: details} for action, details in pairs]


def _details_to_yaml(line: DutyLine) -> Any:
    details = {word: _one_or_more(tuple(_detail_to_text(word, text) for text in texts)) for word, texts in line.details}
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


def _detail_to_text(word: str, text: str) -> str:
    if word in ("within", "every"):
        return format_span(text)
    return text.removeprefix(EVENT) if word == "on" else compact(text) if word in ("to", "policy") else text


_WIDTH = 100
_IN_FLOW = re.compile(r"[^\W_][\w./+@%=-]*(?:[ :][\w./+@%=-]+)*")
_IN_BLOCK = re.compile(r"[^\W_(][\w./+@%=()<>,!'\"-]*(?:[ :][\w./+@%=()<>,!'\"-]+)*")


def _write_line(word: str, value: Any) -> str:
    """`word: value` on one line where it fits, otherwise indented over several lines."""
    if isinstance(value, str):
        return f"{_write_scalar(word, _IN_FLOW)}: {_write_scalar(value, _IN_BLOCK)}\n"
    flow = _write_flow(value)
    if word != "odrl" and len(word) + len(flow) < _WIDTH:
        return f"{_write_scalar(word, _IN_FLOW)}: {flow}\n"
    return f"{_write_scalar(word, _IN_FLOW)}:\n" + _write_block(value, "  ")


def _write_block(value: Any, indent: str) -> str:
    """A mapping or list with one member for each line."""
    lines = []
    for key, member in value.items() if isinstance(value, dict) else ((None, one) for one in value):
        head = f"{indent}-" if key is None else f"{indent}{_write_scalar(key, _IN_FLOW)}:"
        flow = _write_flow(member)
        if isinstance(member, str) or not member or len(head) + len(flow) < _WIDTH:
            lines.append(f"{head} {flow}\n")
        else:
            lines.append(f"{head}\n" + _write_block(member, indent + "  "))
    return "".join(lines)


def _write_flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{_write_scalar(str(key), _IN_FLOW)}: {_write_flow(one)}" for key, one in value.items())
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_write_flow, value)) + "]"
    return _write_scalar(str(value), _IN_FLOW)


def _write_scalar(text: str, plain: re.Pattern[str]) -> str:
    """Without quotes where YAML allows it; every plain scalar is read as a text (`yaml_lines`)."""
    if plain.fullmatch(text):
        return text
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
