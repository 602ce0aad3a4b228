"""YAML text to an OfferForm; every mistake is named with its line, what was expected, and what to do."""

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
    PERIODS,
    WHO,
    Columns,
    Limits,
    MaskLine,
    OfferForm,
    OwedLine,
    WhoLine,
    action_iri,
    action_words,
    ordered,
    span,
)
from policies.authoring.yaml_lines import Item, fail, load, shown, unknown
from policies.errors import PolicyUnreadable
from policies.evaluation import values
from policies.vocabulary import expand

_SIZE = re.compile(r"(\d[\d_]{0,20})\s*(k|m|g|t|kb|mb|gb|tb|kib|mib|gib|tib)?", re.ASCII | re.IGNORECASE)
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MIN_GROUP = re.compile(r"(\d[\d_]{0,9})(?:\s+per\s+(\S(?:.*\S)?))?", re.ASCII)
_OWED = re.compile(r"(?:within\s+)?(?P<span>.+?)(?:\s+after\s+(?P<event>\S+))?")


def read_form(text: str, *, now: float | None = None) -> OfferForm:
    """The form that the YAML `text` holds; PolicyUnreadable names the line of the first mistake.

    With `now` (UTC seconds) an `until` that has passed already is refused too.
    """
    top = load(text)
    items = top.mapping()
    for word, item in items.items():
        if word not in KEYS:
            raise unknown(item.line, word, KEYS, what="a word of the short form")
    if "offer" not in items:
        raise fail(top.line, "a name for the offer", "none", "add a line such as `offer: readings-for-research`")
    form = _read(items)
    _check_whole(items, form, now)
    return form


def _read(items: dict[str, Item]) -> OfferForm:
    def of(word: str, reader: Callable[[Item], Any], default: Any) -> Any:
        return reader(items[word]) if word in items else default

    grid = of("grid", _grid, {})
    return OfferForm(
        offer=_name(items["offer"]),
        dataset=of("dataset", _name, ""),
        who=of("who", _who, ()),
        may=of("may", lambda item: _actions(item, duty=False), ()),
        purposes=of("for", _iris, ()),
        not_before=of("from", _time, ""),
        until=of("until", _time, ""),
        lasts=of("lasts", _span, ""),
        rows=of("rows", _rows, ""),
        columns=of("columns", _columns, Columns()),
        limits=of("limits", _limits, Limits()),
        answers=of("answers", lambda item: _choice(item, ("aggregate", "rows")), ""),
        group_by=grid.get("group_by", ()),
        measure=grid.get("measure", ()),
        joins=of("joins", _iris, ()),
        templates=of("templates", Item.texts, ()),
        first=of("first", _owed, ()),
        forbidden=of("not", lambda item: _actions(item, duty=False), ()),
        then=of("then", _owed, ()),
        decide=of("decide", lambda item: _choice(item, DECIDE), "manual"),
        odrl=of("odrl", _odrl, None),
    )


def _check_whole(items: dict[str, Item], form: OfferForm, now: float | None) -> None:
    if form.odrl is not None:
        beside = sorted(set(items) - {"offer", "dataset", "decide", "odrl"})
        if beside:
            raise fail(items[beside[0]].line, "only offer, dataset and decide beside odrl", beside[0], "say it in odrl")
    elif not form.may and not form.forbidden:
        raise fail(items["offer"].line, "may, with at least one action", "none", "add a line such as `may: [query]`")
    if now is not None and form.until:
        end = values.instant(form.until).end
        if end <= values.nanoseconds(now):
            raise fail(items["until"].line, "a time to come", repr(form.until), "nobody could ever use the offer")


def _name(item: Item) -> str:
    text = item.text("a name").strip()
    if not text or any(character.isspace() for character in text):
        raise fail(item.line, "a name or IRI without spaces", shown(item), "use dashes")
    return text


def _choice(item: Item, known: tuple[str, ...]) -> str:
    text = item.text()
    if text not in known:
        raise unknown(item.line, text, known, what="a choice")
    return text


def _who(item: Item) -> tuple[WhoLine, ...]:
    found = []
    for word, value in item.mapping().items():
        if word not in WHO:
            raise unknown(value.line, word, WHO, what="a condition on the party")
        texts = value.texts()
        if WHO[word][1] == "gteq" and len(texts) > 1:
            raise fail(value.line, "one level", f"{len(texts)}", "name the lowest that is enough")
        if word == "country":
            for one in value.items():
                _checked(one, values.place)
        found.append(WhoLine(word, texts))
    return tuple(found)


def _checked(item: Item, reader: Callable[[str], object]) -> str:
    """The item's text, once `reader` accepts it."""
    text = item.text()
    try:
        reader(text)
    except ValueError as problem:
        raise PolicyUnreadable(f"line {item.line}: {problem}; correct it", rule=f"line {item.line}") from None
    return text


def _iris(item: Item) -> tuple[str, ...]:
    for one in item.items():
        _checked(one, values.iri)
        if ":" not in one.text():
            raise fail(
                one.line,
                "an IRI or a name with its prefix, such as dpv:ScientificResearch",
                shown(one) + values.purpose_hint(one.text()),
                "add it",
            )
    return tuple(expand(text) for text in item.texts())


def _actions(item: Item, *, duty: bool) -> tuple[str, ...]:
    found = []
    for one in item.items():
        word = one.text("an action")
        iri = action_iri(word)
        action = vocabulary.action(iri)
        if action is None or not (action.duty if duty else action.use):
            raise unknown(one.line, word, action_words(duty=duty), what="an action")
        found.append(word)
    if not found:
        raise fail(item.line, "at least one action", "an empty list", "leave the word out instead")
    return tuple(found)


def _time(item: Item) -> str:
    text = _checked(item, lambda one: values.instant(one))
    if values.instant(text).loose:
        raise fail(item.line, "a time with its zone", shown(item), f"add it, such as {text}+01:00 or {text}Z")
    return text


def _span(item: Item) -> str:
    try:
        return span(item.text())
    except ValueError:
        raise fail(item.line, "a duration such as 30d, 12h, 3 months or P30D", shown(item), "correct it") from None


def _rows(item: Item) -> str:
    text = item.text("a row filter on one line").strip()
    try:
        return row_filter.render(row_filter.parse(text))
    except PolicyUnreadable as problem:
        raise PolicyUnreadable(f"line {item.line}: {problem}", rule=f"line {item.line}") from None


def _columns(item: Item) -> Columns:
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
            masks.extend(_mask(column, how) for column, how in value.mapping().items())
        elif word in MASKS:
            raise fail(value.line, f"{word} under mask", word, f"write mask: {{<column>: {{{word}: 2}}}}")
        else:
            raise unknown(value.line, word, ("only", "hide", "hash", "null", "mask"), what="a word under columns")
    twice = sorted({mask.column for mask in masks if [one.column for one in masks].count(mask.column) > 1})
    if twice:
        raise fail(item.line, "one mask per column", f"several for {', '.join(twice)}", "keep one")
    return Columns(only, hide, ordered(masks))


def _mask(column: str, how: Item) -> MaskLine:
    if isinstance(how.value, dict):
        if len(how.value) != 1:
            raise fail(how.line, "one method such as {round: 2}", shown(how), "keep one")
        method, argument = next(iter(how.value.items()))
        text = argument.text("a number")
    else:
        method, text = how.text("a method"), ""
    if method in ("", "~"):  # YAML's other spellings of null
        method = "null"
    if not text and (first := method.partition(" ")[0]) in MASKS and first != method:
        raise fail(how.line, f"a mask such as {{{first}: 2}}", shown(how), "write it in curly brackets")
    if method not in MASKS:
        raise unknown(how.line, method, MASKS, what="a mask")
    if MASKS[method] != bool(text):
        need = f"a number with {method}, such as {{{method}: 2}}" if MASKS[method] else f"{method} alone"
        raise fail(how.line, need, shown(how), "correct it")
    if text and not (method == "generalise" and text in PERIODS):
        _checked(Item(text, how.line), values.decimal)
    return MaskLine(column, method, text)


def _limits(item: Item) -> Limits:
    found: dict[str, str] = {}
    for word, value in item.mapping().items():
        if word not in LIMITS:
            raise unknown(value.line, word, LIMITS, what="a limit")
        if word == "min_group":
            found |= _min_group(value)
        elif word == "epsilon":
            found |= _epsilon(value)
        elif word == "delta":
            found[word] = _checked(value, values.decimal)
        else:
            found[word] = _size(value)
    return Limits(**found)


def _min_group(item: Item) -> dict[str, str]:
    match = _MIN_GROUP.fullmatch(item.text().strip())
    if not match:
        raise fail(item.line, "a number, or a number per column such as 25 per person_id", shown(item), "correct it")
    found = {"min_group": str(int(match[1].replace("_", "")))}
    return found | ({"per": match[2]} if match[2] else {})


def _epsilon(item: Item) -> dict[str, str]:
    number, per, column = item.text().strip().partition(" per ")
    found = {"epsilon": _checked(Item(number.strip(), item.line), values.decimal)}
    return found | ({"per": column.strip()} if per else {})


def _size(item: Item) -> str:
    match = _SIZE.fullmatch(item.text().strip())
    if not match:
        raise fail(item.line, "a whole number such as 5000000, 5M or 2 GiB", shown(item), "correct it")
    unit = (match[2] or "").lower()
    factor = _BINARY[unit[0]] if unit.endswith("ib") else _FACTOR[unit[:1]]
    return str(int(match[1].replace("_", "")) * factor)


def _grid(item: Item) -> dict[str, tuple[tuple[str, str], ...]]:
    readers = {"group_by": values.grid, "measure": values.clamp}
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for word, value in item.mapping().items():
        if word not in readers:
            raise unknown(value.line, word, readers, what="a word under grid")
        reader = readers[word]
        found[word] = tuple((column, _checked(how, reader)) for column, how in value.mapping().items())
    return found


def _owed(item: Item) -> tuple[OwedLine, ...]:
    """A mapping of actions to details, or a list of such where one action is owed more than once."""
    found: list[OwedLine] = []
    for part in item.value if isinstance(item.value, list) else [item]:
        if isinstance(part.value, str):
            part = Item({part.value: Item("true", part.line)}, part.line)
        for word, value in part.mapping().items():
            _actions(Item(word, value.line), duty=True)
            found.append(OwedLine(word, _details(value)))
    if not found:
        raise fail(item.line, "at least one duty", "an empty list", "leave the word out instead")
    return tuple(found)


def _details(item: Item) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if isinstance(item.value, dict):
        for word, value in item.value.items():
            if word not in DETAILS:
                raise unknown(value.line, word, DETAILS, what="a detail of a duty")
        return tuple((word, _detail(word, item.value[word])) for word in DETAILS if word in item.value)
    text = item.text("true, a duration such as 30d after end, or details in curly brackets").strip()
    if text in ("true", "yes", ""):
        return ()
    if text.startswith("on "):
        return (("on", (text[3:].strip(),)),)
    match = _OWED.fullmatch(text)
    within = _span(Item(match["span"] if match else text, item.line))
    event = match["event"] if match else None
    return (("within", (within,)), *((("on", (event,)),) if event and event != "end" else ()))


def _detail(word: str, item: Item) -> tuple[str, ...]:
    if word in ("within", "every"):
        return (_span(item),)
    if word == "by":
        return (_time(item),)
    if word == "amount":
        return (_checked(item, values.decimal),)
    if word in ("to", "policy", "registry"):
        return _iris(item)
    return item.texts() if word == "on" else (item.text(),)


def _odrl(item: Item) -> dict[str, Any]:
    found = _plain(Item(item.mapping(), item.line))
    if not isinstance(found, dict):
        raise fail(item.line, "rules as in ODRL JSON", shown(item), "write permission, prohibition, obligation")
    return found


def _plain(item: Item) -> Any:
    if isinstance(item.value, dict):
        return {key: _plain(value) for key, value in item.value.items()}
    return [_plain(one) for one in item.value] if isinstance(item.value, list) else item.value
