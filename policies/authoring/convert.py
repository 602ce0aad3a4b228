"""Converts offers: YAML to form, form to YAML, form to policy, policy to form. Also ready-made templates.

Lossless both ways: rules that the short words cannot express are kept under `odrl:`. Whether terms make sense is
checked by `review.lint`.

  policy = to_policy(read_form(template("open")))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.resources import files

from policies import vocabulary
from policies.authoring import row_filter
from policies.authoring.form import (
    DETAILS,
    EVENT,
    LIMITS,
    OFFER_URN,
    PARTY_WORDS,
    ColumnRules,
    DutyLine,
    MaskLine,
    OfferForm,
    OfferLimits,
    PartyLine,
    action_iri,
)
from policies.authoring.from_policy import policy_to_form
from policies.authoring.read_yaml import read_form
from policies.authoring.write_yaml import write_form
from policies.errors import PolicyUnreadable
from policies.evaluation.values import place
from policies.model import HANSE, XSD, Atom, Connective, Constraint, Duty, Group, Kind, Literal, Policy, Rule
from policies.odrl import reader
from policies.vocabulary import column_term, ds, expand, odrl

__all__ = [
    "TEMPLATES",
    "ColumnRules",
    "DutyLine",
    "MaskLine",
    "OfferForm",
    "OfferLimits",
    "PartyLine",
    "from_policy",
    "read_form",
    "template",
    "to_policy",
    "write_form",
]

TEMPLATES: tuple[str, ...] = (
    "open",
    "members-only",
    "research-aggregate",
    "clean-room",
    "stream-30-days",
    "ai-training",
    "health-data-permit",
    "manufacturing-membership",
)


def template(name: str) -> str:
    """Return the YAML of a ready-made offer.

    Raises: PolicyUnreadable listing the known names.
    """
    if name not in TEMPLATES:
        raise PolicyUnreadable(f"expected a template, one of {', '.join(TEMPLATES)}, got {name!r}; choose one of these")
    return (files("policies") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")


def to_policy(form: OfferForm) -> Policy:
    """Return the offer that a form means: one permission for each action, all with the same conditions.

    Raises: PolicyUnreadable when the rules under `odrl` or the row filter cannot be read.
    """
    identity = form.offer if ":" in form.offer else OFFER_URN + form.offer
    if form.odrl is not None:
        return reader.read({"@type": "Offer", "@id": identity, "target": form.dataset, **form.odrl}, kind=Kind.OFFER)
    constraints = tuple(_form_to_constraints(form))
    duties = (*_masks_to_duties(form.columns), *(_line_to_duty(line) for line in form.first))
    return Policy(
        kind=Kind.OFFER,
        id=identity,
        target=form.dataset,
        permissions=tuple(Rule(action_iri(word), constraints, duties) for word in form.may),
        prohibitions=tuple(Rule(action_iri(word)) for word in form.forbidden),
        obligations=tuple(_line_to_duty(line) for line in form.then),
        profile=HANSE,
    )


def from_policy(policy: Policy, *, decide: str = "manual") -> OfferForm:
    """Return a form that means the policy: in short words where they can express it, otherwise under `odrl`.

    Parties and timestamp are left out. `decide` is not part of a policy and is copied into the form.
    """
    name = policy.id.removeprefix(OFFER_URN)
    offer = name if name and ":" not in name else policy.id
    form = policy_to_form(policy, offer=offer, decide=decide)
    if form is not None and _is_lossless(form, policy):
        return form
    wire = reader.write(replace(policy, kind=Kind.OFFER, target="", id=policy.id or "urn:hanse:offer"))
    rules = {key: value for key, value in wire.items() if key not in ("@id", "@type", "target", "assigner", "assignee")}
    rules.pop("timestamp", None)
    return OfferForm(offer=offer, dataset=policy.target, decide=decide, odrl=rules)


def _is_lossless(form: OfferForm, policy: Policy) -> bool:
    """Whether the form, written and read again, still means the policy."""
    try:
        return reader.rules_equal(to_policy(read_form(write_form(form))), policy)
    except PolicyUnreadable:
        return False


def _form_to_constraints(form: OfferForm) -> Iterable[Constraint]:
    for line in form.who:
        left, operator = PARTY_WORDS[line.word]
        yield _atom(left, operator, line.values)
    if form.purposes:
        yield _atom(odrl("purpose"), "isAnyOf", form.purposes)
    if form.not_before:
        yield _time_atom("gteq", form.not_before)
    if form.until:
        yield _time_atom("lteq", form.until)
    if form.lasts:
        yield _atom(odrl("elapsedTime"), "lteq", (form.lasts,))
    yield from _shape_to_constraints(form)
    yield from _limits_to_constraints(form.limits)


def _shape_to_constraints(form: OfferForm) -> Iterable[Constraint]:
    if form.answers:
        yield _atom(ds("resultKind"), "eq", (form.answers,))
    if form.columns.only:
        yield _atom(ds("columnAllow"), "isAnyOf", form.columns.only)
    if form.columns.hide:
        yield _atom(ds("columnDeny"), "isNoneOf", form.columns.hide)
    if form.rows:
        found = row_filter.parse(form.rows)
        yield from found.members if isinstance(found, Group) and found.connective is Connective.AND else (found,)
    for column, width in form.group_by:
        yield _atom(column_term("dimension", column), "eq", (width,))
    for column, bounds in form.measure:
        yield _atom(column_term("measure", column), "eq", (bounds,))
    if form.joins:
        yield _atom(ds("joinWith"), "isAnyOf", form.joins)
    if form.templates:
        yield _atom(ds("template"), "isAnyOf", form.templates)


def _limits_to_constraints(limits: OfferLimits) -> Iterable[Constraint]:
    for word, (left, operator) in LIMITS.items():
        value = getattr(limits, word)
        if value:
            yield _atom(left, operator, (value,))
        if word == ("min_group" if limits.min_group else "epsilon") and limits.per:
            yield _atom(ds("entityKey"), "eq", (limits.per,))


def _masks_to_duties(columns: ColumnRules) -> Iterable[Duty]:
    """One duty for each method and argument, with all its columns."""
    together: dict[tuple[str, str], list[str]] = {}
    for mask in columns.masks:
        together.setdefault((mask.method, mask.argument), []).append(mask.column)
    for (method, argument), names in together.items():
        constraints = [_atom(ds("column"), "isAnyOf", tuple(names)), _atom(ds("method"), "eq", (method,))]
        if argument:
            constraints.append(_atom(ds("argument"), "eq", (argument,)))
        yield Duty(ds("mask"), tuple(constraints))


def _line_to_duty(line: DutyLine) -> Duty:
    return Duty(action_iri(line.action), tuple(_detail_to_atom(word, texts) for word, texts in line.details))


def _detail_to_atom(word: str, texts: tuple[str, ...]) -> Atom:
    left, operator = DETAILS[word]
    if word == "by":
        return _time_atom("lteq", texts[0])
    if word == "on":
        texts = tuple(text if ":" in text else EVENT + text for text in texts)
    return _atom(left, operator, texts)


def _time_atom(operator: str, text: str) -> Atom:
    datatype = XSD + ("dateTime" if "T" in text else "date")
    return Atom(odrl("dateTime"), operator, (Literal(text, datatype),))


def _atom(left: str, operator: str, texts: tuple[str, ...]) -> Atom:
    """An atom with its values; IRIs and regions in full, so the JSON needs no context."""
    operand = vocabulary.operand(left)
    type_ = operand.type if operand else vocabulary.ValueType.TEXT
    if type_ is vocabulary.ValueType.PLACE:
        texts = tuple(place(text) for text in texts)
    elif type_ is vocabulary.ValueType.IRI:
        texts = tuple(expand(text) for text in texts)
    many = operator not in ("eq", "neq", "lt", "lteq", "gt", "gteq")
    if not many and len(texts) > 1:
        operator, many = "isAnyOf", True
    return Atom(left, operator, tuple(Literal(text) for text in texts), many)
