"""Groups a policy's terms as people read a contract: what is allowed, under which conditions, what never, what is owed.

Wording only. Purposes and times are written as people write them; `report` has each rule with its path and full names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date

from policies.evaluation import values
from policies.model import Atom, Constraint, Duty, Literal, Policy, Rule
from policies.review import phrases, report
from policies.review.phrases import Phrases
from policies.review.report import CONTRACT_ONLY, is_about_answer
from policies.vocabulary import ENFORCERS, ds, odrl
from policies.vocabulary.purpose_texts import purpose_texts, title_of

MAY, ONLY_IF, LIMITS, NEVER, MUST = "may", "only_if", "limits", "never", "must"
_TEXTS = _BEFORE_USE, _WHEN, _AND = "before use: {}", "{} when {}", "and"


@dataclass(frozen=True, slots=True)
class Term:
    """One term in short words, what it rests on (a tier of `report`), and what enforces it."""

    text: str
    tier: str
    enforced_by: str


@dataclass(frozen=True, slots=True)
class TermGroup:
    """Terms of one kind: `may`, `only_if`, `limits`, `never` or `must`."""

    kind: str
    terms: tuple[Term, ...]


def group_terms(policy: Policy, say: Phrases = phrases.ENGLISH) -> list[TermGroup]:
    """Return the terms of a policy in groups, in the language of `say`.

    Permissions with the same conditions are one group; with several, each `may` is followed by its own conditions.

      [(group.kind, [term.text for term in group.terms]) for group in group_terms(policy)]
    """
    return [group for group in _Grouping(policy, say).list_groups() if group.terms]


def texts() -> frozenset[str]:
    """Return the fragments of which terms are made, for translation. Words of plugins are not among them."""
    purposes = (one.title for one in purpose_texts().values())
    return phrases.texts() | {*map(_uncapitalised, purposes), *ENFORCERS.values(), CONTRACT_ONLY, *_TEXTS}


class _Grouping:
    """The terms of one policy in the words of one language."""

    def __init__(self, policy: Policy, say: Phrases) -> None:
        self._policy, self._say = policy, say
        self._text = say.wording.text
        self._lines = {line.path: line for line in report.enforceability(policy)}

    def list_groups(self) -> Iterator[TermGroup]:
        yield from self._permissions()
        yield TermGroup(NEVER, tuple(self._prohibitions()))
        owed = (
            self._term(self._say.duty(self._plain_duty(one)), f"/obligation/{n}")
            for n, one in enumerate(self._policy.obligations)
        )
        yield TermGroup(MUST, (*self._before_use(), *owed))

    def _permissions(self) -> Iterator[TermGroup]:
        together: dict[tuple[tuple[Term, ...], tuple[Term, ...]], list[Term]] = {}
        for index, rule in enumerate(self._policy.permissions):
            path = f"/permission/{index}"
            conditions = tuple(self._constraints(rule, path, about_answer=False))
            limits = (*self._constraints(rule, path, about_answer=True), *self._masks(rule, path))
            action = self._term(self._say.action(rule.action), path)
            together.setdefault((conditions, limits), []).append(action)
        for (conditions, limits), actions in together.items():
            yield TermGroup(MAY, tuple(actions))
            yield TermGroup(ONLY_IF, conditions)
            yield TermGroup(LIMITS, limits)

    def _constraints(self, rule: Rule, path: str, *, about_answer: bool) -> Iterator[Term]:
        for at, one in enumerate(rule.constraints):
            if is_about_answer(one) is about_answer:
                yield self._term(self._constraint(one), f"{path}/constraint/{at}")

    def _masks(self, rule: Rule, path: str) -> Iterator[Term]:
        for at, duty in enumerate(rule.duties):
            if duty.action == ds("mask"):
                details = {part.left: part for part in duty.constraints if isinstance(part, Atom)}
                yield self._term(self._say.mask(details), f"{path}/duty/{at}")

    def _before_use(self) -> Iterator[Term]:
        found = {
            self._say.duty(self._plain_duty(duty)): f"/permission/{index}/duty/{at}"
            for index, rule in enumerate(self._policy.permissions)
            for at, duty in enumerate(rule.duties)
            if duty.action != ds("mask")
        }
        for duty_text, path in found.items():
            yield self._term(self._text(_BEFORE_USE).format(duty_text), path)

    def _prohibitions(self) -> Iterator[Term]:
        for at, rule in enumerate(self._policy.prohibitions):
            said = self._say.action(rule.action)
            when = f" {self._text(_AND)} ".join(map(self._constraint, rule.constraints))
            yield self._term(self._text(_WHEN).format(said, when) if when else said, f"/prohibition/{at}")

    def _constraint(self, one: Constraint) -> str:
        return self._say.constraint(self._plain_constraint(one))

    def _term(self, text: str, path: str) -> Term:
        line = self._lines[path]
        return Term(text, line.tier, "; ".join(map(self._text, line.enforced_by.split("; "))))

    def _plain_duty(self, duty: Duty) -> Duty:
        return replace(duty, constraints=tuple(map(self._plain_constraint, duty.constraints)))

    def _plain_constraint(self, one: Constraint) -> Constraint:
        """Return a constraint whose purposes and times are written as people write them; for phrases only."""
        if not isinstance(one, Atom):
            return replace(one, members=tuple(map(self._plain_constraint, one.members)))
        if one.left == odrl("purpose"):
            return replace(one, right=tuple(Literal(self._purpose(literal.text)) for literal in one.right))
        if one.left == odrl("dateTime"):
            return replace(one, right=tuple(Literal(plain_time(literal.text, self._say)) for literal in one.right))
        return one

    def _purpose(self, iri: str) -> str:
        return self._text(_uncapitalised(title_of(iri)))


def _uncapitalised(title: str) -> str:
    return title if ":" in title or title.isupper() else title[:1].lower() + title[1:]


def plain_time(text: str, say: Phrases = phrases.ENGLISH) -> str:
    """Return `31 December 2028` for a date or its last second, `31 December 2028, 14:30 +01:00` for another time.

    A text that is no time is returned as it is.
    """
    try:
        values.instant(text)
        written = say.wording.day(date.fromisoformat(text[:10]))
    except ValueError:
        return text
    clock, zone = text[11:16], text[19:]
    if not clock:
        return written
    written += "" if text[11:19] == "23:59:59" else f", {clock}"
    return f"{written} {'UTC' if zone in ('Z', '+00:00') else zone}".rstrip()
