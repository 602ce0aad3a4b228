"""What stands beside a policy on the same dataset: aggregates that count other groups, rows beside groups.

Each grid alone hides who is few (decision 4). Of two, one answer less the other is a group that neither of them would
show, also where the bins of one unite the other's: what the finer one withholds is in the coarser. So exact aggregates
of one dataset count the same groups of the same rows wherever one party can hold both. Rows come in one order, so that
what two of them show can be laid side by side. Pure; knows no database.
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

_NAMED = 3  # in one sentence; the rest are counted


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """A policy on the dataset, by the name under which people are told of it, and what it gives there.

    `holder`: the party of an agreement, which nobody else can hold. `over`: it has ended, and was read under.
    """

    name: str
    policy: Policy
    contracts: tuple[DataContract, ...]
    holder: str = ""
    over: bool = False


def find_conflicts(mine: ActivePolicy, others: Iterable[ActivePolicy]) -> Iterator[LintProblem]:
    """What speaks against `mine` beside the others: each kind once, errors first."""
    found: dict[str, dict[str, str]] = {}  # code -> name of the other -> path of ours
    for other in others:
        for path, code in _compare_pair(mine, other):
            found.setdefault(code, {}).setdefault(other.name, path)
    for code, (level, sentence) in _SAID.items():
        if names := found.get(code):
            path = next(iter(names.values()))
            said = sentence.format(mine=f"{path} of {mine.name}", others=_listed(list(names)))
            yield LintProblem("error" if level == "error" else "warning", path, code, said)


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
                yield ours.permission, _conflict_sentence(together=together, over=other.over)


def _covers(one: DataContract, other: DataContract) -> bool:
    """Whether rows of the one show all that rows of the other do, so that both together tell no more."""
    masks, theirs = ({mask.column: mask for mask in contract.masks} for contract in (one, other))
    return all(name in one.columns and masks.get(name) in (None, theirs.get(name)) for name in other.columns)


def _conflict_sentence(*, together: bool, over: bool) -> str:
    if not together:
        return "grids_of_two_parties"
    return "grids_differed" if over else "grids_differ"


def possible_holders(one: ActivePolicy, contract: DataContract) -> frozenset[str] | None:
    """The parties that can hold this permission at all; None where its rules name none."""
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


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


_SAME = "the same dimensions, bins, measures, group size, entity key, masks and row filter"
_SAID = {
    "grids_differ": (
        "error",
        "{mine} counts other groups or other rows than {others}: to whoever holds both, one answer less the other "
        f"shows single units. Give it {_SAME} (bins that unite the other's will not do: they hold what the other "
        "withholds), or first withdraw the other offer (`hanse offer withdraw`) and revoke its agreements (`hanse "
        "revoke`)",
    ),
    "grids_of_two_parties": (
        "warning",
        "{mine} counts other groups or other rows than {others}: nobody can hold both, but two parties that put their "
        f"answers together learn of single units. Where they might, give both {_SAME}",
    ),
    "grids_differed": (
        "warning",
        "{mine} counts other groups or other rows than {others}, which has ended: whoever asked under it can subtract "
        f"what he has from what he is answered now. Give it {_SAME}, or begin with data in which as many units have "
        "changed in each group as a group must have",
    ),
    "rows_linked": (
        "warning",
        "{mine} gives rows beside {others}, and each shows what the other hides or masks: rows come in one order, so "
        "that whoever holds both lays them side by side and has it of each row. Say in `who` who may have which, or "
        "hide and mask the same, if that is not meant",
    ),
    "rows_beside_groups": (
        "warning",
        "{mine} stands beside {others} on the same dataset, one giving rows and the other groups: whoever holds both "
        "sees in the rows whom the groups withhold, as far as the rows show them. Say in `who` who may have which, if "
        "that is not meant",
    ),
}
