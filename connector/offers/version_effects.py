"""Effects of a new dataset version on its offers and agreements, before it replaces the current version.

Finds rules that can no longer be enforced, smaller groups, values out of bounds, and differences that would reveal few
units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from connector.datasets import stored_policies, version_retention
from connector.datasets.registry import published_schema
from connector.errors import ConnectorError, Denied
from connector.offers.preview import OwnersView
from connector.store import Store, Transaction
from connector.store.tables import Agreement, DatasetVersion, Offer, RegisteredDataset
from policies.contracts import column_binding
from policies.contracts import compile as compiler
from policies.contracts.contract import DataContract
from policies.errors import PolicyError
from policies.model import Policy


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect on an offer or agreement. An `error` blocks the version, a `warning` does not."""

    level: str
    on: str  # offer or agreement
    id: str
    rule: str
    code: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Return the effect for the API, the page and the refusal."""
        return asdict(self)


class VersionChecks:
    """Checks a new version before it is stored."""

    def __init__(self, store: Store, view: OwnersView) -> None:
        self._store, self._view = store, view

    async def effects(
        self, dataset: RegisteredDataset, old: DatasetVersion, new: DatasetVersion
    ) -> list[dict[str, str]]:
        """Return all effects, errors first. Each distinct policy is checked once."""
        found: list[Effect] = []
        standing, earlier = await self._store.read(
            lambda tx: (_list_standing(tx, dataset.id, found), _list_compared(tx, old, new.digest))
        )
        for digest in dict.fromkeys(entry.digest for entry in standing):
            mine = [entry for entry in standing if entry.digest == digest]
            said = await self._find_effects(
                mine[0].policy, old, new, earlier, over=mine[0].over, concluded=new.created_at
            )
            found += [Effect(one[0], entry.on, entry.id, *one[1:]) for entry in mine for one in said]
        return [one.to_json() for one in sorted(found, key=lambda one: one.level)]

    async def _find_effects(
        self,
        policy: Policy,
        old: DatasetVersion,
        new: DatasetVersion,
        earlier: Sequence[DatasetVersion],
        *,
        over: bool,
        concluded: float,
    ) -> list[tuple[str, str, str, str]]:
        """Return the effects on one policy.

        `over`: the agreement has ended. Earlier answers are still known and can be subtracted from later ones.
        """
        try:
            contracts = compiler.compile_contracts(policy, published_schema(new), concluded=concluded)
        except PolicyError as error:
            return [("warning", error.rule, "difference_unknown", _LOST) if over else _unenforceable_effect(error)]
        found = [] if over else [one for contract in contracts for one in _find_out_of_bounds(contract, new.profile)]
        before = published_schema(old)
        for contract in contracts:
            changed = column_binding.find_retyped(contract, before)
            found += [] if over else [_type_change_effect(contract, one) for one in changed]
            if not compiler.is_exact(contract):
                continue
            if old.digest != new.digest:
                found += (
                    [_incomparable_effect(contract, changed)]
                    if changed
                    else await self._compare_groups(contract, old, new)
                )
            found += await self._compare_earlier(contract, earlier, new)
        return found

    async def _compare_earlier(
        self, contract: DataContract, earlier: Sequence[DatasetVersion], new: DatasetVersion
    ) -> list[tuple[str, str, str, str]]:
        """Compare with versions before the last: reverting a mistake brings one back, except for a few units."""
        found, unknown = [], max(0, len(earlier) - version_retention.EARLIER_MAX)
        for one in earlier[: version_retention.EARLIER_MAX]:
            try:
                lost = bool(column_binding.find_retyped(contract, published_schema(one)))
                few = 0 if lost else await self._view.few_changed(contract, one, new)
            except ConnectorError:  # usually because its files were overwritten
                lost, few = True, 0
            unknown += lost
            if few:
                day = datetime.fromtimestamp(one.created_at, UTC).date().isoformat()
                found.append(_small_difference_effect(contract, few, f"an earlier version ({day}, {one.digest[-12:]})"))
        if unknown:
            said = (
                f"it cannot be held against {unknown:,} earlier versions, whose files are others now or which are too "
                "many: whoever asked one of them learns of few by subtraction where it differs by few"
            )
            found.append(("warning", contract.permission, "difference_unknown", said))
        return found

    async def _compare_groups(
        self, contract: DataContract, old: DatasetVersion, new: DatasetVersion
    ) -> list[tuple[str, str, str, str]]:
        path, k = contract.permission, contract.grid.min_group if contract.grid else 0
        found = []
        try:
            before, after = await self._view.figures(old, contract), await self._view.figures(new, contract)
            few = await self._view.few_changed(contract, old, new)
        except ConnectorError as error:  # usually because the older files were overwritten
            said = f"it cannot be held against the version before ({error.code}), and {_TELLS}"
            return [("error", path, "difference_unknown", said)]
        if after["rows"] and after["groups_lost"] == after["groups"]:
            found.append(
                (
                    "warning",
                    path,
                    "all_withheld",
                    f"nothing is shown: no group of the new version has {k} units, {_FIGURES}",
                )
            )
        elif after["groups_lost"] > before["groups_lost"]:
            lost = after["groups_lost"] - before["groups_lost"]
            found.append(
                (
                    "warning",
                    path,
                    "groups_lost",
                    f"{lost:,} more groups than before have fewer than {k} units, {_FIGURES}",
                )
            )
        if few:
            found.append(_small_difference_effect(contract, few, "the version before"))
        return found


_FIGURES = "in all or in one of their figures, or a unit that makes most of one"
_TELLS = (
    "may tell of few by difference to whoever asked that one: keep the files of the version before, and the types of "
    "its columns; where they are gone (of text that was converted they go with a dataset that is removed), only taking "
    "it on all the same (--accept) helps"
)
_LOST = (
    "it cannot be held against what was asked under this agreement, which has ended and cannot be kept on it: whoever "
    "asked learns of few by subtraction where it differs by few"
)


def _unenforceable_effect(error: PolicyError) -> tuple[str, str, str, str]:
    return "error", error.rule, error.code, str(error)


def _small_difference_effect(contract: DataContract, few: int, than: str) -> tuple[str, str, str, str]:
    least = contract.grid.min_group if contract.grid else 0
    said = (
        f"in {few:,} groups (of all dimensions, of one, or all together) a count or sum differs from {than} by fewer "
        f"than {least} units, or by one more than by all others: whoever asked that one learns of these by "
        "subtraction. Wait until more have changed and take the changes on together; for updates that are small and "
        "many, offer coarser groups, or noise in place of groups"
    )
    return "error", contract.permission, "difference_too_small", said


def _type_change_effect(contract: DataContract, one: column_binding.RetypedColumn) -> tuple[str, str, str, str]:
    said = f"{one}: a rule that was made for the one means something else for the other, so nothing is served; "
    return "error", contract.permission, "type_changed", said + "give it the type that it had, or agree anew"


def _incomparable_effect(
    contract: DataContract, changed: Sequence[column_binding.RetypedColumn]
) -> tuple[str, str, str, str]:
    said = f"it cannot be held against the version before ({'; '.join(map(str, changed))}), and {_TELLS}"
    return "error", contract.permission, "difference_unknown", said


@dataclass(frozen=True, slots=True)
class _StandingPolicy:
    """An offer in force or an agreement. `over`: the agreement has ended and was read under."""

    on: str
    id: str
    digest: str
    policy: Policy
    over: bool = False


def _list_standing(tx: Transaction, dataset_id: str, told: list[Effect]) -> list[_StandingPolicy]:
    """Return the policies of offers and agreements that may be queried under, or were (see `list_asked_digests`).

    Of ended agreements, one for each policy that no other has. Policies that are no longer understood are reported in
    `told` and served to no consumer.
    """
    rows: list[tuple[str, Offer | Agreement]] = [
        ("offer", row) for row in tx.datasets.list_offers_in_force([dataset_id])
    ]
    ended: dict[str, Agreement] = {}
    for row, reads in tx.agreements.iterate_by_dataset(dataset_id):
        if row.ended_at is None:
            rows.append(("agreement", row))
        elif reads:
            ended.setdefault(row.digest, row)
    known = {row.digest for _, row in rows}
    rows += [("agreement", row) for digest, row in ended.items() if digest not in known]
    found = []
    for on, one in rows:
        try:
            policy = (
                stored_policies.read_offer_policy(one)
                if isinstance(one, Offer)
                else stored_policies.read_agreement_policy(one)
            )
        except Denied as refused:
            told.append(Effect("warning", on, one.id, str(refused.facts["rule"]), refused.code, refused.message))
        else:
            found.append(
                _StandingPolicy(on, one.id, one.digest, policy, over=on == "agreement" and one.digest not in known)
            )
    return found


def _list_compared(tx: Transaction, old: DatasetVersion, coming: str) -> list[DatasetVersion]:
    """Return the earlier versions that a consumer may have queried, the newest first, without `coming`."""
    return [one for one in version_retention.list_earlier(tx, old) if one.digest != coming]


def _find_out_of_bounds(contract: DataContract, profile: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a warning for each measure with values outside its bounds: they are clamped, which changes sums."""
    for one in contract.grid.measures if contract.grid is not None else ():
        statistics = profile.get("columns", {}).get(one.column, {})
        low, high = _number(statistics.get("min")), _number(statistics.get("max"))
        over = high is not None and one.high is not None and high > one.high
        under = low is not None and one.low is not None and low < one.low
        if over or under:
            bounds = f"{one.low:g}..{one.high:g}"
            said = f"values of {one.column} go from {low:g} to {high:g}: those outside {bounds} are clamped"
            yield "warning", contract.permission, "out_of_bounds", said


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
