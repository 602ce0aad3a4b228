"""Converts a policy to the short form where the short words can express it; `convert` checks that nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from policies import vocabulary
from policies.authoring import row_filter
from policies.authoring.form import (
    DETAILS,
    EVENT,
    LIMITS,
    PARTY_WORDS,
    ColumnRules,
    DutyLine,
    MaskLine,
    OfferForm,
    OfferLimits,
    PartyLine,
    action_word,
    order_masks,
)
from policies.evaluation.values import format_short
from policies.model import Atom, ConflictStrategy, Connective, Constraint, Duty, Group, Policy, Rule
from policies.review import unknown_terms
from policies.vocabulary import column_of, ds, odrl

_WHO = {(left, operator): word for word, (left, operator) in PARTY_WORDS.items()}
_LIMITS = {(left, operator): word for word, (left, operator) in LIMITS.items()}
_DETAILS = {(left, operator): word for word, (left, operator) in DETAILS.items()}
_PLAIN = {
    (odrl("purpose"), "isAnyOf"): "purposes",
    (ds("joinWith"), "isAnyOf"): "joins",
    (ds("template"), "isAnyOf"): "templates",
}
_SINGLE = {
    (odrl("dateTime"), "gteq"): "not_before",
    (odrl("dateTime"), "lteq"): "until",
    (odrl("elapsedTime"), "lteq"): "lasts",
    (ds("resultKind"), "eq"): "answers",
}


class _NotExpressible(Exception):
    """The short words cannot express the policy."""


def policy_to_form(policy: Policy, *, offer: str, decide: str) -> OfferForm | None:
    """Return the form in short words, or None when they cannot express the policy."""
    if policy.conflict is not ConflictStrategy.PROHIBIT or unknown_terms.find_unclear(policy):
        return None
    try:
        return _build_form(policy, offer, decide)
    except _NotExpressible:
        return None


def _build_form(policy: Policy, offer: str, decide: str) -> OfferForm:
    conditions = {(rule.constraints, rule.duties) for rule in policy.permissions}
    if len(conditions) > 1 or any(rule.constraints or rule.duties for rule in policy.prohibitions):
        raise _NotExpressible
    constraints, duties = next(iter(conditions), ((), ()))
    found = _SortedTerms()
    for constraint in constraints:
        found.take(constraint)
    for duty in duties:
        found.take_duty(duty)
    return OfferForm(
        offer=offer,
        dataset=policy.target,
        may=_action_words(policy.permissions),
        forbidden=_action_words(policy.prohibitions),
        then=tuple(_duty_to_line(duty) for duty in policy.obligations),
        decide=decide,
        **found.fields(),
    )


def _action_words(rules: Iterable[Rule]) -> tuple[str, ...]:
    return tuple(action_word(rule.action) for rule in rules)


class _SortedTerms:
    """Constraints and duties of one permission, by the words of the form."""

    def __init__(self) -> None:
        self.plain: dict[str, Any] = {}
        self.who: list[PartyLine] = []
        self.limits: dict[str, str] = {}
        self.columns: dict[str, tuple[str, ...]] = {}
        self.masks: list[MaskLine] = []
        self.rows: list[Constraint] = []
        self.grid: dict[str, list[tuple[str, str]]] = {"dimension": [], "measure": []}
        self.first: list[DutyLine] = []

    def take(self, constraint: Constraint) -> None:
        if _is_row(constraint):
            self.rows.append(constraint)
        elif isinstance(constraint, Group):
            raise _NotExpressible
        else:
            self._atom(constraint)

    def _atom(self, atom: Atom) -> None:
        key = (atom.left, atom.operator)
        texts = tuple(literal.text for literal in atom.right)
        family = vocabulary.compact(atom.left).removeprefix("ds:").partition("/")[0]
        if key in _WHO:
            self.who.append(PartyLine(_WHO[key], tuple(format_short(text) for text in texts)))
        elif key in _PLAIN:
            self._set(_PLAIN[key], texts)
        elif key in _SINGLE:
            self._set(_SINGLE[key], texts[0])
        elif key in _LIMITS and _LIMITS[key] not in self.limits:
            self.limits[_LIMITS[key]] = texts[0]
        elif atom.left == ds("entityKey") and "per" not in self.limits:
            self.limits["per"] = texts[0]
        elif key == (ds("columnAllow"), "isAnyOf") and "only" not in self.columns:
            self.columns["only"] = texts
        elif key == (ds("columnDeny"), "isNoneOf") and "hide" not in self.columns:
            self.columns["hide"] = texts
        elif family in self.grid and column_of(atom.left):
            self.grid[family].append((column_of(atom.left), texts[0]))
        else:
            raise _NotExpressible

    def _set(self, word: str, value: Any) -> None:
        if word in self.plain:
            raise _NotExpressible
        self.plain[word] = value

    def take_duty(self, duty: Duty) -> None:
        if duty.action != ds("mask"):
            self.first.append(_duty_to_line(duty))
            return
        parts = {vocabulary.compact(one.left): one.right for one in duty.constraints if isinstance(one, Atom)}
        if len(parts) != len(duty.constraints) or not {"ds:column", "ds:method"} <= set(parts):
            raise _NotExpressible
        argument = parts["ds:argument"][0].text if "ds:argument" in parts else ""
        self.masks.extend(MaskLine(one.text, parts["ds:method"][0].text, argument) for one in parts["ds:column"])

    def fields(self) -> dict[str, Any]:
        rows = ""
        if self.rows:
            rows = row_filter.render(self.rows[0] if len(self.rows) == 1 else Group(Connective.AND, tuple(self.rows)))
        return {
            **self.plain,
            "who": tuple(self.who),
            "rows": rows,
            "columns": ColumnRules(**self.columns, masks=order_masks(self.masks)),
            "limits": OfferLimits(**self.limits),
            "group_by": tuple(self.grid["dimension"]),
            "measure": tuple(self.grid["measure"]),
            "first": tuple(self.first),
        }


def _is_row(constraint: Constraint) -> bool:
    if isinstance(constraint, Group):
        return all(_is_row(member) for member in constraint.members)
    operand = vocabulary.operand(constraint.left)
    return operand is not None and operand.name == ds("row/")


def _duty_to_line(duty: Duty) -> DutyLine:
    details: list[tuple[str, tuple[str, ...]]] = []
    for constraint in duty.constraints:
        if not isinstance(constraint, Atom):
            raise _NotExpressible
        operator = "eq" if constraint.operator == "isAnyOf" else constraint.operator
        word = _DETAILS.get((constraint.left, operator))
        if word is None or any(word == seen for seen, _ in details):
            raise _NotExpressible
        details.append((word, tuple(literal.text.removeprefix(EVENT) for literal in constraint.right)))
    order = list(DETAILS)
    return DutyLine(action_word(duty.action), tuple(sorted(details, key=lambda detail: order.index(detail[0]))))
