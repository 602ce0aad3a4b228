"""Groups a policy's terms as people read a contract: what is allowed, under which conditions, what never, what is owed.

Wording only. Purposes and times are written as people write them; `report` has each rule with its path and full names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from policies.evaluation import values
from policies.model import Atom, Constraint, Duty, Literal, Policy, Rule
from policies.review import phrases, report
from policies.review.report import ReportLine, is_about_answer
from policies.vocabulary import ds, odrl
from policies.vocabulary.purpose_texts import title_of

MAY, ONLY_IF, LIMITS, NEVER, MUST = "may", "only_if", "limits", "never", "must"
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


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


def group_terms(policy: Policy) -> list[TermGroup]:
    """Return the terms of a policy in groups.

    Permissions with the same conditions are one group; with several, each `may` is followed by its own conditions.

      [(group.kind, [term.text for term in group.terms]) for group in group_terms(policy)]
    """
    lines = {line.path: line for line in report.enforceability(policy)}
    found = [*_permissions(policy, lines)]
    found.append(TermGroup(NEVER, tuple(_prohibitions(policy.prohibitions, lines))))
    owed = (
        _term(phrases.duty(_plain_duty(one)), lines, f"/obligation/{n}") for n, one in enumerate(policy.obligations)
    )
    found.append(TermGroup(MUST, (*_before_use(policy, lines), *owed)))
    return [group for group in found if group.terms]


def _permissions(policy: Policy, lines: dict[str, ReportLine]) -> Iterator[TermGroup]:
    together: dict[tuple[tuple[Term, ...], tuple[Term, ...]], list[Term]] = {}
    for index, rule in enumerate(policy.permissions):
        path = f"/permission/{index}"
        conditions = tuple(_constraints(rule, path, lines, about_answer=False))
        limits = (*_constraints(rule, path, lines, about_answer=True), *_masks(rule, path, lines))
        together.setdefault((conditions, limits), []).append(_term(phrases.action(rule.action), lines, path))
    for (conditions, limits), actions in together.items():
        yield TermGroup(MAY, tuple(actions))
        yield TermGroup(ONLY_IF, conditions)
        yield TermGroup(LIMITS, limits)


def _constraints(rule: Rule, path: str, lines: dict[str, ReportLine], *, about_answer: bool) -> Iterator[Term]:
    for at, one in enumerate(rule.constraints):
        if is_about_answer(one) is about_answer:
            yield _term(phrases.constraint(plain_constraint(one)), lines, f"{path}/constraint/{at}")


def _masks(rule: Rule, path: str, lines: dict[str, ReportLine]) -> Iterator[Term]:
    for at, duty in enumerate(rule.duties):
        if duty.action == ds("mask"):
            details = {part.left: part for part in duty.constraints if isinstance(part, Atom)}
            yield _term(phrases.mask(details), lines, f"{path}/duty/{at}")


def _before_use(policy: Policy, lines: dict[str, ReportLine]) -> Iterator[Term]:
    found = {
        phrases.duty(_plain_duty(duty)): f"/permission/{index}/duty/{at}"
        for index, rule in enumerate(policy.permissions)
        for at, duty in enumerate(rule.duties)
        if duty.action != ds("mask")
    }
    for text, path in found.items():
        yield _term(f"before use: {text}", lines, path)


def _prohibitions(rules: Sequence[Rule], lines: dict[str, ReportLine]) -> Iterator[Term]:
    for at, rule in enumerate(rules):
        when = " and ".join(phrases.constraint(plain_constraint(one)) for one in rule.constraints)
        yield _term(phrases.action(rule.action) + (f" when {when}" if when else ""), lines, f"/prohibition/{at}")


def _obligations(duties: Sequence[Duty], lines: dict[str, ReportLine]) -> Iterator[Term]:
    for at, duty in enumerate(duties):
        yield _term(phrases.duty(_plain_duty(duty)), lines, f"/obligation/{at}")


def _term(text: str, lines: dict[str, ReportLine], path: str) -> Term:
    line = lines[path]
    return Term(text, line.tier, line.enforced_by)


def _plain_duty(duty: Duty) -> Duty:
    return replace(duty, constraints=tuple(map(plain_constraint, duty.constraints)))


def plain_constraint(one: Constraint) -> Constraint:
    """Return a constraint whose purposes and times are written as people write them; for phrases only."""
    if not isinstance(one, Atom):
        return replace(one, members=tuple(map(plain_constraint, one.members)))
    if one.left == odrl("purpose"):
        return replace(one, right=tuple(Literal(_purpose(literal.text)) for literal in one.right))
    if one.left == odrl("dateTime"):
        return replace(one, right=tuple(Literal(plain_time(literal.text)) for literal in one.right))
    return one


def _purpose(iri: str) -> str:
    title = title_of(iri)
    return title if ":" in title or title.isupper() else title[:1].lower() + title[1:]


def plain_time(text: str) -> str:
    """Return `31 December 2028` for a date or its last second, `31 December 2028, 14:30 +01:00` for another time.

    A text that is no time is returned as it is.
    """
    try:
        values.instant(text)
        year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
        written = f"{day} {_MONTHS[month - 1]} {year}"
    except (ValueError, IndexError):
        return text
    clock, zone = text[11:16], text[19:]
    if not clock:
        return written
    written += "" if text[11:19] == "23:59:59" else f", {clock}"
    return f"{written} {'UTC' if zone in ('Z', '+00:00') else zone}".rstrip()
