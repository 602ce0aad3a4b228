"""Reads an OfferForm from YAML; each error has the line, what was expected, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from policies import vocabulary
from policies.authoring import row_filter
from policies.authoring.form import (
    DECIDE,
    DETAILS,
    KEYS,
    LIMITS,
    MASKS,
    PARTY_WORDS,
    ColumnRules,
    DutyLine,
    MaskLine,
    OfferForm,
    OfferLimits,
    PartyLine,
    action_iri,
    action_words,
    order_masks,
    parse_span,
)
from policies.authoring.yaml_lines import YamlItem, describe_item, error_at, load_yaml, unknown_word
from policies.contracts.contract import PERIODS
from policies.errors import PolicyUnreadable
from policies.evaluation import values
from policies.vocabulary import expand

_SIZE = re.compile(r"(\d[\d_]{0,20})\s*(k|m|g|t|kb|mb|gb|tb|kib|mib|gib|tib)?", re.ASCII | re.IGNORECASE)
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MIN_GROUP = re.compile(r"(\d[\d_]{0,9})(?:\s+per\s+(\S(?:.*\S)?))?", re.ASCII)
_OWED = re.compile(r"(?:within\s+)?(?P<span>.+?)(?:\s+after\s+(?P<event>\S+))?")


def read_form(text: str, *, now: float | None = None) -> OfferForm:
    """Return the form in the YAML `text`. With `now` (UTC seconds), an `until` in the past is refused as well.

    Raises: PolicyUnreadable with the line of the first mistake.
    """
    top = load_yaml(text)
    items = top.mapping()
    for word, item in items.items():
        if word not in KEYS:
            raise unknown_word(item.line, word, KEYS, what="a word of the short form")
    if "offer" not in items:
        raise error_at(top.line, "a name for the offer", "none", "add a line such as `offer: readings-for-research`")
    form = _build_form(items)
    _check_form(items, form, now)
    return form


def _build_form(items: dict[str, YamlItem]) -> OfferForm:
    def of(word: str, reader: Callable[[YamlItem], Any], default: Any) -> Any:
        return reader(items[word]) if word in items else default

    grid = of("grid", _read_grid, {})
    return OfferForm(
        offer=_read_name(items["offer"]),
        dataset=of("dataset", _read_name, ""),
        who=of("who", _read_party, ()),
        may=of("may", lambda item: _read_actions(item, duty=False), ()),
        purposes=of("for", _read_iris, ()),
        not_before=of("from", _read_time, ""),
        until=of("until", _read_time, ""),
        lasts=of("lasts", _read_span, ""),
        rows=of("rows", _read_rows, ""),
        columns=of("columns", _read_columns, ColumnRules()),
        limits=of("limits", _read_limits, OfferLimits()),
        answers=of("answers", lambda item: _read_choice(item, ("aggregate", "rows")), ""),
        group_by=grid.get("group_by", ()),
        measure=grid.get("measure", ()),
        joins=of("joins", _read_iris, ()),
        templates=of("templates", YamlItem.texts, ()),
        first=of("first", _read_duties, ()),
        forbidden=of("not", lambda item: _read_actions(item, duty=False), ()),
        then=of("then", _read_duties, ()),
        decide=of("decide", lambda item: _read_choice(item, DECIDE), "manual"),
        odrl=of("odrl", _read_odrl, None),
    )


def _check_form(items: dict[str, YamlItem], form: OfferForm, now: float | None) -> None:
    if form.odrl is not None:
        beside = sorted(set(items) - {"offer", "dataset", "decide", "odrl"})
        if beside:
            raise error_at(
                items[beside[0]].line, "only offer, dataset and decide next to odrl", beside[0], "write it under odrl"
            )
    elif not form.may and not form.forbidden:
        raise error_at(
            items["offer"].line, "may, with at least one action", "none", "add a line such as `may: [query]`"
        )
    if now is not None and form.until:
        end = values.instant(form.until).end
        if end <= values.nanoseconds(now):
            raise error_at(
                items["until"].line, "a time in the future", repr(form.until), "the offer could never be used"
            )


def _read_name(item: YamlItem) -> str:
    text = item.text("a name").strip()
    if not text or any(character.isspace() for character in text):
        raise error_at(item.line, "a name or IRI without spaces", describe_item(item), "use dashes")
    return text


def _read_choice(item: YamlItem, known: tuple[str, ...]) -> str:
    text = item.text()
    if text not in known:
        raise unknown_word(item.line, text, known, what="a choice")
    return text


def _read_party(item: YamlItem) -> tuple[PartyLine, ...]:
    found = []
    for word, value in item.mapping().items():
        if word not in PARTY_WORDS:
            raise unknown_word(value.line, word, PARTY_WORDS, what="a condition on the party")
        texts = value.texts()
        if PARTY_WORDS[word][1] == "gteq" and len(texts) > 1:
            raise error_at(value.line, "one level", f"{len(texts)}", "name the lowest that is enough")
        if word == "country":
            for one in value.items():
                _read_checked(one, values.place)
        found.append(PartyLine(word, texts))
    return tuple(found)


def _read_checked(item: YamlItem, reader: Callable[[str], object]) -> str:
    """Return the item's text if `reader` accepts it."""
    text = item.text()
    try:
        reader(text)
    except ValueError as problem:
        raise PolicyUnreadable(f"line {item.line}: {problem}; correct it", rule=f"line {item.line}") from None
    return text


def _read_iris(item: YamlItem) -> tuple[str, ...]:
    for one in item.items():
        _read_checked(one, values.iri)
        if ":" not in one.text():
            raise error_at(
                one.line,
                "an IRI or a name with its prefix, such as dpv:ScientificResearch",
                describe_item(one) + values.purpose_hint(one.text()),
                "add it",
            )
    return tuple(expand(text) for text in item.texts())


def _read_actions(item: YamlItem, *, duty: bool) -> tuple[str, ...]:
    found = []
    for one in item.items():
        word = one.text("an action")
        iri = action_iri(word)
        action = vocabulary.action(iri)
        if action is None or not (action.duty if duty else action.use):
            raise unknown_word(one.line, word, action_words(duty=duty), what="an action")
        found.append(word)
    if not found:
        raise error_at(item.line, "at least one action", "an empty list", "leave the word out instead")
    return tuple(found)


def _read_time(item: YamlItem) -> str:
    text = _read_checked(item, lambda one: values.instant(one))
    if values.instant(text).loose:
        raise error_at(
            item.line, "a time with its zone", describe_item(item), f"add it, such as {text}+01:00 or {text}Z"
        )
    return text


def _read_span(item: YamlItem) -> str:
    try:
        return parse_span(item.text())
    except ValueError:
        raise error_at(
            item.line, "a duration such as 30d, 12h, 3 months or P30D", describe_item(item), "correct it"
        ) from None


def _read_rows(item: YamlItem) -> str:
    text = item.text("a row filter on one line").strip()
    try:
        return row_filter.render(row_filter.parse(text))
    except PolicyUnreadable as problem:
        raise PolicyUnreadable(f"line {item.line}: {problem}", rule=f"line {item.line}") from None


def _read_columns(item: YamlItem) -> ColumnRules:
    only: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    masks: list[MaskLine] = []
    for word, value in item.mapping().items():
        if word == "only":
            only = value.texts()
        elif word == "hide":
            hide = value.texts()
        elif word in ("hash", "null"):
            masks.extend(MaskLine(column, word) for column in value.texts())
        elif word == "mask":
            masks.extend(_read_mask(column, how) for column, how in value.mapping().items())
        elif word in MASKS:
            raise error_at(value.line, f"{word} under mask", word, f"write mask: {{<column>: {{{word}: 2}}}}")
        else:
            raise unknown_word(value.line, word, ("only", "hide", "hash", "null", "mask"), what="a word under columns")
    twice = sorted({mask.column for mask in masks if [one.column for one in masks].count(mask.column) > 1})
    if twice:
        raise error_at(item.line, "one mask per column", f"several for {', '.join(twice)}", "keep one")
    return ColumnRules(only, hide, order_masks(masks))


def _read_mask(column: str, how: YamlItem) -> MaskLine:
    if isinstance(how.value, dict):
        if len(how.value) != 1:
            raise error_at(how.line, "one method such as {round: 2}", describe_item(how), "keep one")
        method, argument = next(iter(how.value.items()))
        text = argument.text("a number")
    else:
        method, text = how.text("a method"), ""
    if method in ("", "~"):  # YAML's other spellings of null
        method = "null"
    if not text and (first := method.partition(" ")[0]) in MASKS and first != method:
        raise error_at(how.line, f"a mask such as {{{first}: 2}}", describe_item(how), "write it in curly brackets")
    if method not in MASKS:
        raise unknown_word(how.line, method, MASKS, what="a mask")
    if MASKS[method] != bool(text):
        need = f"a number with {method}, such as {{{method}: 2}}" if MASKS[method] else f"{method} alone"
        raise error_at(how.line, need, describe_item(how), "correct it")
    if text and not (method == "generalise" and text in PERIODS):
        _read_checked(YamlItem(text, how.line), values.decimal)
    return MaskLine(column, method, text)


def _read_limits(item: YamlItem) -> OfferLimits:
    found: dict[str, str] = {}
    for word, value in item.mapping().items():
        if word not in LIMITS:
            raise unknown_word(value.line, word, LIMITS, what="a limit")
        if word == "min_group":
            found |= _read_min_group(value)
        elif word == "epsilon":
            found |= _read_epsilon(value)
        elif word == "delta":
            found[word] = _read_checked(value, values.decimal)
        else:
            found[word] = _read_size(value)
    return OfferLimits(**found)


def _read_min_group(item: YamlItem) -> dict[str, str]:
    match = _MIN_GROUP.fullmatch(item.text().strip())
    if not match:
        raise error_at(
            item.line, "a number, or a number per column such as 25 per person_id", describe_item(item), "correct it"
        )
    found = {"min_group": str(int(match[1].replace("_", "")))}
    return found | ({"per": match[2]} if match[2] else {})


def _read_epsilon(item: YamlItem) -> dict[str, str]:
    number, per, column = item.text().strip().partition(" per ")
    found = {"epsilon": _read_checked(YamlItem(number.strip(), item.line), values.decimal)}
    return found | ({"per": column.strip()} if per else {})


def _read_size(item: YamlItem) -> str:
    match = _SIZE.fullmatch(item.text().strip())
    if not match:
        raise error_at(item.line, "a whole number such as 5000000, 5M or 2 GiB", describe_item(item), "correct it")
    unit = (match[2] or "").lower()
    factor = _BINARY[unit[0]] if unit.endswith("ib") else _FACTOR[unit[:1]]
    return str(int(match[1].replace("_", "")) * factor)


def _read_grid(item: YamlItem) -> dict[str, tuple[tuple[str, str], ...]]:
    readers = {"group_by": values.grid, "measure": values.clamp}
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for word, value in item.mapping().items():
        if word not in readers:
            raise unknown_word(value.line, word, readers, what="a word under grid")
        reader = readers[word]
        found[word] = tuple((column, _read_checked(how, reader)) for column, how in value.mapping().items())
    return found


def _read_duties(item: YamlItem) -> tuple[DutyLine, ...]:
    """Read a mapping of actions to details, or a list of such mappings when an action occurs more than once."""
    found: list[DutyLine] = []
    for part in item.value if isinstance(item.value, list) else [item]:
        if isinstance(part.value, str):
            part = YamlItem({part.value: YamlItem("true", part.line)}, part.line)
        for word, value in part.mapping().items():
            _read_actions(YamlItem(word, value.line), duty=True)
            found.append(DutyLine(word, _read_details(value)))
    if not found:
        raise error_at(item.line, "at least one duty", "an empty list", "leave the word out instead")
    return tuple(found)


def _read_details(item: YamlItem) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if isinstance(item.value, dict):
        for word, value in item.value.items():
            if word not in DETAILS:
                raise unknown_word(value.line, word, DETAILS, what="a detail of a duty")
        return tuple((word, _read_detail(word, item.value[word])) for word in DETAILS if word in item.value)
    text = item.text("true, a duration such as 30d after end, or details in curly brackets").strip()
    if text in ("true", "yes", ""):
        return ()
    if text.startswith("on "):
        return (("on", (text[3:].strip(),)),)
    match = _OWED.fullmatch(text)
    within = _read_span(YamlItem(match["span"] if match else text, item.line))
    event = match["event"] if match else None
    return (("within", (within,)), *((("on", (event,)),) if event and event != "end" else ()))


def _read_detail(word: str, item: YamlItem) -> tuple[str, ...]:
    if word in ("within", "every"):
        return (_read_span(item),)
    if word == "by":
        return (_read_time(item),)
    if word == "amount":
        return (_read_checked(item, values.decimal),)
    if word in ("to", "policy", "registry"):
        return _read_iris(item)
    return item.texts() if word == "on" else (item.text(),)


def _read_odrl(item: YamlItem) -> dict[str, Any]:
    found = _to_plain_value(YamlItem(item.mapping(), item.line))
    if not isinstance(found, dict):
        raise error_at(
            item.line, "rules as in ODRL JSON", describe_item(item), "write permission, prohibition, obligation"
        )
    return found


def _to_plain_value(item: YamlItem) -> Any:
    if isinstance(item.value, dict):
        return {key: _to_plain_value(value) for key, value in item.value.items()}
    return [_to_plain_value(one) for one in item.value] if isinstance(item.value, list) else item.value
