"""The fields of the offer editor: an offer form as values of HTML fields, and fields as an offer form. Pure.

Words of an offer without a field (joins, templates, duties with details, ...) stay as the YAML says them.

  form = apply_fields(posted_fields(said), base=read_form(text), columns=("age", "name"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from connector.errors import Invalid
from policies.authoring.form import (
    ColumnRules,
    DutyLine,
    MaskLine,
    OfferForm,
    OfferLimits,
    PartyLine,
    format_span,
    order_masks,
    parse_span,
)
from policies.contracts.columns import find_column
from policies.contracts.contract import Column, TableSchema
from policies.vocabulary import compact, expand

ACTIONS = ("query", "stream", "train")
NEVER = ("distribute", "sell", "train", "trainGenerative", "releaseWeights")
LIMITS = ("queries_per_day", "queries", "rows", "concurrency")
GROUP, MEASURE = "group", "measure"

_WHO = ("membership", "participant", "role", "country")
_LISTS = ("may", "purposes", "partners", "seen", "hashed", "never")
_MEMBERS = ("active",)

# The word of the short form -> the field that writes it, for messages about a line.
FIELD_OF_WORD: Mapping[str, str] = {
    "offer": "name", "dataset": "dataset", "who": "who", "may": "may", "for": "purposes", "from": "since",
    "until": "until", "lasts": "lasts", "answers": "answers", "rows": "filter", "columns": "columns",
    "limits": "limits", "grid": "columns", "not": "never", "then": "delete_after", "decide": "decide",
}  # fmt: skip


class Posted(Protocol):
    """The fields of a posted form."""

    def get(self, name: str) -> str: ...
    def all(self, name: str) -> list[str]: ...
    def exact(self, name: str) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferFields:
    """The values of the fields as text; lists where several can be chosen.

    `uses` has, for each column of figures, `group` or `measure` and how (`exact`, a width, or `low..high`).
    `later_hidden`: columns that a later version adds are hidden.
    """

    name: str = ""
    may: tuple[str, ...] = ()
    membership: str = ""
    partners: tuple[str, ...] = ()
    other_partners: str = ""
    role: str = ""
    country: str = ""
    purposes: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    lasts: str = ""
    answers: str = ""
    filter: str = ""
    seen: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    later_hidden: str = ""
    uses: Mapping[str, tuple[str, str]]
    min_group: str = ""
    per: str = ""
    queries_per_day: str = ""
    queries: str = ""
    rows: str = ""
    concurrency: str = ""
    never: tuple[str, ...] = ()
    delete_after: str = ""
    decide: str = "manual"

    @property
    def about_groups(self) -> bool:
        return self.answers == "aggregate"


def posted_fields(said: Posted, columns: Sequence[str]) -> OfferFields:
    """Return what a posted form says in its fields."""
    single = [one.name for one in fields(OfferFields) if one.name not in (*_LISTS, "uses")]
    texts: dict[str, Any] = {name: said.get(name) for name in single}
    lists: dict[str, Any] = {name: tuple(dict.fromkeys(said.all(name))) for name in _LISTS}
    lists |= {name: tuple(dict.fromkeys(said.exact(name))) for name in ("seen", "hashed")}
    texts["per"] = (said.exact("per") or [""])[-1]
    uses = {name: (said.get(f"use:{name}"), said.get(f"how:{name}")) for name in columns if said.get(f"use:{name}")}
    return OfferFields(uses=uses, **lists, **texts)


def form_fields(form: OfferForm, columns: Sequence[str]) -> OfferFields:
    """Return the fields that say what a form says."""
    form = spell_columns(form, columns)
    who = {line.word: line.values for line in form.who}
    limits = {name: getattr(form.limits, name) for name in (*LIMITS, "min_group", "per")}
    uses = {name: (GROUP, how) for name, how in form.group_by} | {name: (MEASURE, how) for name, how in form.measure}
    hidden = set(form.columns.hide)
    return OfferFields(
        name=form.offer,
        may=_pick_known(form.may, ACTIONS),
        membership="active" if who.get("membership") == _MEMBERS else "",
        partners=who.get("participant", ()),
        role=", ".join(who.get("role", ())),
        country=", ".join(who.get("country", ())),
        purposes=tuple(map(compact, form.purposes)),
        since=form.not_before[:10],
        until=form.until[:10],
        lasts=format_span(form.lasts) if form.lasts else "",
        answers=form.answers,
        filter=form.rows,
        seen=tuple(one for one in columns if one not in hidden and (not form.columns.only or one in form.columns.only)),
        hashed=tuple(mask.column for mask in form.columns.masks if mask.method == "hash"),
        later_hidden="yes" if form.columns.only else "",
        uses=uses,
        never=_pick_known(form.forbidden, NEVER),
        delete_after=next(map(_delay_of, filter(_is_plain_delete, form.then)), ""),
        decide=form.decide,
        **limits,
    )


def apply_fields(said: OfferFields, base: OfferForm, columns: Sequence[str]) -> OfferForm:
    """Return `base` with what the fields say; `columns` are those of the dataset, empty if it is not known.

    Raises: ValueError for a duration that cannot be read. Invalid where no column is ticked and later ones are hidden:
    an offer without a list of columns shows all.
    """
    base, groups = spell_columns(base, columns), said.about_groups
    uses = said.uses.items() if groups else ()
    made = replace(
        base,
        offer=said.name or base.offer,
        who=_party_lines(said, base),
        may=_merge(said.may, base.may, ACTIONS),
        purposes=tuple(map(expand, said.purposes)),
        not_before=_at(said.since, "T00:00:00Z", base.not_before),
        until=_at(said.until, "T23:59:59Z", base.until),
        lasts=parse_span(said.lasts) if said.lasts else "",
        answers=said.answers,
        rows=said.filter,
        limits=_limits(said, base.limits),
        forbidden=_merge(said.never, base.forbidden, NEVER),
        then=_then(said, base.then),
        decide=said.decide or base.decide,
    )
    if not columns:
        return made
    return replace(
        made,
        columns=_columns(said, base.columns, columns),
        group_by=tuple((name, how or "exact") for name, (use, how) in uses if use == GROUP),
        measure=tuple((name, how) for name, (use, how) in uses if use == MEASURE),
    )


def spell_columns(form: OfferForm, columns: Sequence[str]) -> OfferForm:
    """Return the form with the dataset's spelling of its columns: a policy finds `Email` as `email` too.

    Fields are compared by the exact name. A name that the dataset lacks stays.
    """
    schema = TableSchema(tuple(Column(name, "") for name in columns))

    def spell(name: str) -> str:
        found = None if name in columns else find_column(schema, name)
        return name if found is None else found.name

    rules, per = form.columns, form.limits.per
    return replace(
        form,
        columns=ColumnRules(
            tuple(dict.fromkeys(map(spell, rules.only))),
            tuple(dict.fromkeys(map(spell, rules.hide))),
            tuple(dict.fromkeys(replace(mask, column=spell(mask.column)) for mask in rules.masks)),
        ),
        group_by=tuple((spell(name), how) for name, how in form.group_by),
        measure=tuple((spell(name), how) for name, how in form.measure),
        limits=replace(form.limits, per=spell(per) if per else ""),
    )


def words_without_field(form: OfferForm) -> list[str]:
    """Return the words of a form that no field shows, in the form's order."""
    found = [line.word for line in form.who if not _has_field(line)]
    found += [word for word in (*form.may, *form.forbidden) if word not in (*ACTIONS, *NEVER)]
    found += [name for name in (*form.columns.only, *form.columns.hide) if "." in name]
    found += [mask.column for mask in form.columns.masks if mask.method == "hash" and "." in mask.column]
    found += [mask.method for mask in form.columns.masks if mask.method != "hash"]
    found += [word for word in ("bytes", "epsilon", "delta", "rows_per_entity") if getattr(form.limits, word)]
    found += [word for word in ("joins", "templates", "first") if getattr(form, word)]
    found += [line.action for line in form.then if not _is_plain_delete(line)]
    return list(dict.fromkeys(found))


def field_of_line(text: str, line: int) -> str:
    """Return the field for a line of the YAML (from 1), by the word at the start of its block; empty if none."""
    for one in reversed(text.splitlines()[:line]):
        word = one.partition(":")[0].strip("\"' ")
        if one and not one[0].isspace() and not one.startswith(("#", "-", "}", "]")):
            return FIELD_OF_WORD.get(word, "")
    return ""


def _pick_known(words: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    said = set(words)
    return tuple(one for one in known if one in said)


def _merge(said: Iterable[str], before: Sequence[str], shown: Iterable[str]) -> tuple[str, ...]:
    """Return what is said and what has no field (is not in `shown`), in the order of `before`, then new ones."""
    wanted, fielded = dict.fromkeys(said), set(shown)
    kept = [one for one in before if one in wanted or one not in fielded]
    return (*kept, *(one for one in wanted if one not in kept))


def _split(text: str) -> tuple[str, ...]:
    """Return the texts between commas; a role may be of several words."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def _has_field(line: PartyLine) -> bool:
    return line.word in _WHO and (line.word != "membership" or line.values == _MEMBERS)


def _party_lines(said: OfferFields, base: OfferForm) -> tuple[PartyLine, ...]:
    values = {
        "membership": _MEMBERS if said.membership else (),
        "participant": tuple(dict.fromkeys((*said.partners, *said.other_partners.replace(",", " ").split()))),
        "role": _split(said.role),
        "country": tuple(said.country.replace(",", " ").split()),
    }
    kept = [line for line in base.who if not _has_field(line)]
    return (*(PartyLine(word, texts) for word, texts in values.items() if texts), *kept)


def _at(day: str, time: str, before: str) -> str:
    """Return the time of a day; the one before where the day is the same, as it may have another hour and zone."""
    if not day:
        return ""
    return before if day == before[:10] else day + time


def _columns(said: OfferFields, base: ColumnRules, columns: Sequence[str]) -> ColumnRules:
    """Return the rules of columns. Parts of columns (`address.street`) have no field and stay."""
    known, seen = set(columns), set(said.seen)
    shown = [one for one in columns if one in seen] if said.later_hidden else []
    hidden = [] if said.later_hidden else [one for one in columns if one not in seen]
    parts = base.only if said.later_hidden else ()
    only = _merge(shown, parts, columns)
    if said.later_hidden and not only:
        raise Invalid("expected a column to show; tick one, or let later columns be shown")
    hide = _merge(hidden, base.hide, columns)
    # Masks without a field stay for hidden columns too: one that is ticked again later must not be shown as it is.
    masks = [one for one in base.masks if one.column not in known or one.method != "hash"]
    masks += [MaskLine(name, "hash") for name in said.hashed if name in seen or name not in known]
    return ColumnRules(only, hide, order_masks(dict.fromkeys(masks)))


def _limits(said: OfferFields, base: OfferLimits) -> OfferLimits:
    quantities = {name: getattr(said, name) for name in LIMITS}
    group = said.min_group if said.about_groups else ""
    return replace(base, min_group=group, per=said.per if group or base.epsilon else "", **quantities)


def _then(said: OfferFields, base: tuple[DutyLine, ...]) -> tuple[DutyLine, ...]:
    kept = tuple(line for line in base if not _is_plain_delete(line))
    if not said.delete_after:
        return kept
    return (*kept, DutyLine("delete", (("within", (parse_span(said.delete_after),)),)))


def _is_plain_delete(line: DutyLine) -> bool:
    """Whether a duty only says that copies are deleted some time after the end."""
    return line.action == "delete" and [word for word, _ in line.details] == ["within"]


def _delay_of(line: DutyLine) -> str:
    return format_span(dict(line.details)["within"][0])
