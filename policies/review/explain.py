"""Phrases policies and decisions as plain sentences. Wording only: decisions are made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policies.evaluation.evaluate import ConstraintFinding, Decision
from policies.model import Policy
from policies.review import report
from policies.vocabulary import compact

_RESULTS = {
    "satisfied": "holds",
    "unsatisfied": "does not hold",
    "unknown": "is not known",
    "deferred": "is decided later",
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One rule or term: its path in the policy, its sentence, and its tier (or `refused`)."""

    path: str
    text: str
    tier: str

    def to_json(self) -> dict[str, str]:
        return {"path": self.path, "text": self.text, "tier": self.tier}


def sentences(policy: Policy) -> list[Sentence]:
    """Return one sentence for each rule and term, in the policy's order."""
    return [Sentence(line.path, line.text, line.tier) for line in report.enforceability(policy)]


def decision(made: Decision) -> list[str]:
    """Return the verdict, its reasons, and one line for each constraint."""
    verdict = "Permitted" if made.permitted else "Refused"
    about = f" to {compact(made.action)}" if made.action else ""
    lines = [f"{verdict}{about} ({made.phase.value})."]
    lines.extend(f"Because {reason}." for reason in made.reasons)
    lines.extend(_finding_line(finding) for finding in made.findings)
    if made.carried:
        lines.append(f"Still to be decided or made true: {', '.join(made.carried)}.")
    return lines


def _finding_line(finding: ConstraintFinding) -> str:
    return " ".join(_parts(finding)) + "."


def _parts(finding: ConstraintFinding) -> Iterator[str]:
    expected = ", ".join(finding.expected)
    yield f"{finding.constraint}: {finding.left} {finding.op} {expected} {_RESULTS[finding.result]}"
    if finding.observed:
        yield f"(observed {', '.join(finding.observed)}"
        yield f"from {finding.source})" if finding.source else "from an unnamed source)"
