"""Whether an answer lacks groups that a policy withholds, and the sentence that says so. Pure values.

`POSSIBLY` depends on the agreement and the query only, never on the data: it is the same whether a small group exists
or not (decision 56).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Withheld(StrEnum):
    """What policies withheld from an answer; a later member is a stronger statement."""

    NOTHING = "nothing"
    POSSIBLY = "possibly"  # groups may be left out; the owner does not reveal whether any is
    SOME = "some"  # an owner refused its whole part, or has published that its groups leave something out


_ORDER = tuple(Withheld)
_STEP = 10  # per cent; fixed, because a step that depends on the data would reveal it


def strongest(values: Iterable[Withheld]) -> Withheld:
    """Return the strongest of these statements; NOTHING without any."""
    return max(values, key=_ORDER.index, default=Withheld.NOTHING)


def parse_withheld(value: object) -> Withheld:
    """Return the statement in a peer's record. Earlier versions sent true or false; an unknown value is POSSIBLY."""
    if value is None or isinstance(value, bool):
        return Withheld.SOME if value else Withheld.NOTHING
    known = {one.value: one for one in Withheld}
    return known.get(value, Withheld.POSSIBLY) if isinstance(value, str) else Withheld.POSSIBLY


def describe_left_out(min_group: int, entity: str | None, *, noise: bool = False) -> str:
    """Return which groups an agreement leaves out: `Groups below 5 patients`."""
    if noise:
        return "Groups that are small by a noisy count"
    if entity is None:
        return f"Groups below {min_group} rows"
    plain = entity.isascii() and entity.isalpha() and not entity.endswith("s")
    return f"Groups below {min_group} {entity}s" if plain else f"Groups below {min_group} different {entity[:64]}"


def sentences(groups: Iterable[tuple[str, str]], *, owners: Sequence[str]) -> list[str]:
    """Return one sentence for each kind of group that is left out.

    `groups`: pairs of an owner and its `describe_left_out`, which may be empty. `owners`: all owners of the query.
    """
    at: dict[str, dict[str, None]] = {}
    for owner, kind in groups:
        if kind:
            at.setdefault(kind, {})[owner] = None
    everywhere = dict.fromkeys(owners)
    return [
        f"{kind} are left out at {'each owner' if len(named) > 1 and named == everywhere else ', '.join(named)}: "
        "totals and averages may be too low"
        for kind, named in at.items()
    ]


@dataclass(frozen=True, slots=True)
class WithheldCounts:
    """What a grid withholds of one version, in numbers, for its owner only."""

    rows: int
    rows_lost: int
    groups: int
    groups_lost: int
    rows_of_largest: int  # of the groups that are left out

    @classmethod
    def of(cls, report: Mapping[str, int]) -> WithheldCounts:
        """Return the counts from the figures of `gate.prepare_withheld_report`."""
        return cls(
            rows=report["rows"],
            rows_lost=report["rows"] - report["rows_shown"],
            groups=report["cells"],
            groups_lost=report["cells"] - report["cells_shown"],
            rows_of_largest=report["rows_of_largest"],
        )


@dataclass(frozen=True, slots=True)
class WithheldShare:
    """The share that an owner publishes: per cent of rows and of groups, each from `low` to below `low + 10`."""

    rows: int
    groups: int

    def sentence(self, owner: str) -> str:
        rows, groups = (f"{low} to {low + _STEP} per cent" for low in (self.rows, self.groups))
        return f"{owner} reports that its groups leave out {rows} of all its rows and {groups} of all its groups"


def publishable_share(found: WithheldCounts, *, min_group: int) -> WithheldShare | None:
    """Return the share that may be published, or None when a single group decides it (decision 56).

    The share must stay the same when any withheld group is removed or one more is added.
    """
    share = _share(found.rows_lost, found.rows, found.groups_lost, found.groups)
    largest = max(found.rows_of_largest, min_group)
    more = _share(found.rows_lost + largest, found.rows + largest, found.groups_lost + 1, found.groups + 1)
    if more != share:
        return None
    if found.groups_lost:
        gone = found.rows_of_largest
        less = _share(found.rows_lost - gone, found.rows - gone, found.groups_lost - 1, found.groups - 1)
        if less != share:
            return None
    return share


def _share(rows_lost: int, rows: int, groups_lost: int, groups: int) -> WithheldShare:
    return WithheldShare(_decile_edge(rows_lost, rows), _decile_edge(groups_lost, groups))


def _decile_edge(part: int, whole: int) -> int:
    """The lower edge of the ten per cent that contain the share; a full share is in the last ten."""
    return min(100 - _STEP, part * 100 // max(1, whole) // _STEP * _STEP)
