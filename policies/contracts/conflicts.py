"""Conflicts between policies on one dataset: different aggregates, or rows and aggregates at the same time.

A grid hides small groups, but the difference of two grids can reveal them (decision 4), also when one has coarser bins.
Exact aggregates of one dataset must therefore count the same groups of the same rows wherever one party can hold both.
Rows have a fixed order, so rows from two policies can be joined by position. Pure; must not know the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from policies.contracts import compile as compiler
from policies.contracts.contract import DataContract
from policies.evaluation.values import iri
from policies.model import Policy
from policies.review import unknown_terms
from policies.review.lint import LintProblem
from policies.vocabulary import ds

_NAMED = 3  # names in one sentence; further ones are counted


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """A policy on the dataset, its display name and its contracts.

    `holder`: the party of an agreement, which alone can hold it. `over`: it has ended after data was read.
    """

    name: str
    policy: Policy
    contracts: tuple[DataContract, ...]
    holder: str = ""
    over: bool = False


def find_conflicts(mine: ActivePolicy, others: Iterable[ActivePolicy]) -> Iterator[LintProblem]:
    """Yield the conflicts of `mine` with the others: each kind once, errors first."""
    found: dict[str, dict[str, str]] = {}  # code -> name of the other policy -> path in `mine`
    for other in others:
        for path, code in _compare_pair(mine, other):
            found.setdefault(code, {}).setdefault(other.name, path)
    for code, (level, sentence) in _SENTENCES.items():
        if names := found.get(code):
            path = next(iter(names.values()))
            message = sentence.format(mine=mine.name, others=_join_names(list(names)))
            yield LintProblem("error" if level == "error" else "warning", path, code, message)


def _compare_pair(mine: ActivePolicy, other: ActivePolicy) -> Iterator[tuple[str, str]]:
    for ours in mine.contracts:
        for theirs in other.contracts:
            together = _can_share_holder(possible_holders(mine, ours), possible_holders(other, theirs))
            if (ours.grid is None) != (theirs.grid is None):
                if together and not other.over:
                    yield ours.permission, "rows_beside_groups"
            elif ours.grid is None and theirs.grid is None:
                if together and not _covers(ours, theirs) and not _covers(theirs, ours):
                    yield ours.permission, "rows_linked"
            elif compiler.count_differently(ours, theirs):
                yield ours.permission, _grid_conflict_code(together=together, over=other.over)


def _covers(one: DataContract, other: DataContract) -> bool:
    """Whether rows under `one` show everything that rows under `other` show."""
    masks, theirs = ({mask.column: mask for mask in contract.masks} for contract in (one, other))
    return all(name in one.columns and masks.get(name) in (None, theirs.get(name)) for name in other.columns)


def _grid_conflict_code(*, together: bool, over: bool) -> str:
    if not together:
        return "grids_of_two_parties"
    return "grids_differed" if over else "grids_differ"


def possible_holders(one: ActivePolicy, contract: DataContract) -> frozenset[str] | None:
    """Return the parties (DIDs) that can hold this permission; None when its rules name none."""
    if one.holder:
        return frozenset({one.holder})
    rule = one.policy.permissions[int(contract.permission.rpartition("/")[2])]
    named: frozenset[str] | None = None
    for _, atom in unknown_terms.walk_required(rule.constraints, ""):
        if atom.left == ds("participant") and atom.operator in ("eq", "isAnyOf"):
            parties = frozenset(iri(literal.text) for literal in atom.right)
            named = parties if named is None else named & parties
    return named


def _can_share_holder(one: frozenset[str] | None, other: frozenset[str] | None) -> bool:
    return one is None or other is None or bool(one & other)


def _join_names(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


_SAME = "the same dimensions, bins, measures, group size, entity key, masks and row filter"
_SENTENCES = {
    "grids_differ": (
        "error",
        "{mine} counts other groups or other rows than {others}: a party that holds both can subtract the answers and "
        f"see single units. Give it {_SAME} (coarser bins are not enough: they contain what the other withholds), or "
        "first withdraw the other offer (`hanse offer withdraw`) and revoke its agreements (`hanse revoke`)",
    ),
    "grids_of_two_parties": (
        "warning",
        "{mine} counts other groups or other rows than {others}: no party can hold both, but two parties that combine "
        f"their answers can see single units. Where they might, give both {_SAME}",
    ),
    "grids_differed": (
        "warning",
        "{mine} counts other groups or other rows than {others}, which has ended: a party that read under it can "
        f"subtract its earlier answers from new ones. Give it {_SAME}, or start with data in which as many units have "
        "changed in each group as a group must have",
    ),
    "rows_linked": (
        "warning",
        "{mine} and {others} both give rows, and each shows what the other hides or masks: rows have one order, so a "
        "party that holds both can join them row by row. Limit each to its parties with `who`, or hide and mask the "
        "same columns, unless this is intended",
    ),
    "rows_beside_groups": (
        "warning",
        "{mine} and {others} are on the same dataset, one giving rows and the other groups: a party that holds both "
        "can see in the rows the units that the groups withhold. Limit each to its parties with `who`, unless this is "
        "intended",
    ),
}
