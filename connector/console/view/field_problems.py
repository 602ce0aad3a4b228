"""Points problems of an offer at the field of the editor, or the line of the YAML, that a person can correct. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from connector.console.view.offer_fields import field_of_line
from policies.authoring.form import LIMITS, PARTY_WORDS
from policies.model import Policy
from policies.review import unknown_terms
from policies.vocabulary import column_of, ds, odrl

LABELS: Mapping[str, str] = {
    "name": "Name of the offer", "dataset": "Dataset", "who": "Who", "may": "What they may do", "purposes": "Purposes",
    "since": "From", "until": "Until", "lasts": "Lasts", "answers": "What they receive", "filter": "Rows",
    "columns": "Columns", "limits": "Limits", "never": "Never", "delete_after": "Delete copies after",
    "decide": "Requests are answered",
}  # fmt: skip
_LINE = re.compile(r"line (\d+)")
_FIELDS: Mapping[str, str] = {
    **{left: "who" for left, _ in PARTY_WORDS.values()},
    **{left: "limits" for left, _ in LIMITS.values()},
    odrl("purpose"): "purposes",
    odrl("dateTime"): "until",
    odrl("elapsedTime"): "lasts",
    ds("resultKind"): "answers",
    ds("minGroupSize"): "answers",
    ds("entityKey"): "answers",
    ds("columnAllow"): "columns",
    ds("columnDeny"): "columns",
}


@dataclass(frozen=True, slots=True)
class PlacedProblem:
    """A problem with its place: a field of the editor with its label, or a line of the YAML (0 if neither is known)."""

    level: str
    code: str
    message: str
    field: str = ""
    line: int = 0

    @property
    def label(self) -> str:
        return LABELS.get(self.field, "")


def place_problems(
    problems: Iterable[Mapping[str, Any]], *, text: str, policy: Policy | None = None
) -> list[PlacedProblem]:
    """Return problems (`level`, `path`, `code`, `message`) with the field or line of each.

    A path is `line 3` of the YAML, or the place of a rule in the policy. The message does not repeat it.
    """
    return [_place(one, text, policy) for one in problems]


def _place(one: Mapping[str, Any], text: str, policy: Policy | None) -> PlacedProblem:
    path, message = str(one["path"]), str(one["message"])
    said = message.removeprefix(f"{path}: ") if path else message
    found = PlacedProblem(str(one["level"]), str(one["code"]), said)
    if match := _LINE.fullmatch(path):
        line = int(match[1])
        return PlacedProblem(found.level, found.code, said, field_of_line(text, line), line)
    return PlacedProblem(found.level, found.code, said, _field_of(path, policy) if policy else "")


def _field_of(path: str, policy: Policy) -> str:
    """Return the field for the path of a rule, a duty or a constraint."""
    kinds = {"permission": "may", "prohibition": "never", "duty": "columns", "obligation": "delete_after"}
    for here, rule, kind in unknown_terms.walk_rules(policy):
        if path in (here, f"{here}/action"):
            return kinds[kind]
        for at, atom in unknown_terms.walk_atoms(rule.constraints, here):
            if path.startswith(at) and kind == "permission":
                return _field_of_operand(atom.left, atom.operator)
            if path.startswith(at):
                return kinds[kind]
    return ""


def _field_of_operand(left: str, operator: str) -> str:
    if left == odrl("dateTime") and operator == "gteq":
        return "since"
    if left in _FIELDS:
        return _FIELDS[left]
    if not column_of(left):
        return ""
    return "filter" if left.startswith(ds("row/")) else "columns"
