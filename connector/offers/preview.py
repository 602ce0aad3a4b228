"""Views of an owner on its own datasets: what groups withhold, what a participant would see, and what the gate does to
a query.

These views run in the same workers over the same pinned files, behind the same gate as a consumer's read. Each is
recorded before it begins (`RawDataViewed`). A preview that shows rows is also recorded as a read of the owner.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from connector.dataplane import read_log
from connector.dataplane.job_builder import version_to_relation
from connector.dataplane.read_request import make_name
from connector.datasets import stored_policies
from connector.datasets.registry import published_schema
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Recheck, Relation
from connector.errors import Absent, ConnectorError, Denied, PolicyInvalid
from connector.events import RawDataViewed, ReadEnded, ReadStarted
from connector.offers.offers import CheckedOffer
from connector.store import Store, Transaction
from connector.store.tables import DatasetVersion, Offer, RegisteredDataset
from connector.usage.fact_collector import FactCollector, with_counters, with_declared
from policies.contracts import compile as compiler
from policies.contracts import coverage
from policies.contracts.columns import quote_identifier
from policies.contracts.contract import DataContract, Grid
from policies.contracts.masks import text_columns
from policies.enforce.withheld import WithheldCounts, publishable_share
from policies.errors import PolicyError, QueryRefused
from policies.evaluation.evaluate import Decision, Facts, as_granting_set, evaluate, evaluate_offer, permits
from policies.model import Policy
from policies.odrl import reader
from policies.review import explain, report
from policies.vocabulary import Phase, expand

ROWS = 20
_DIMENSIONS_MAX = 8
_SECONDS = 60.0
_SECONDS_OF_VERSIONS = 600.0  # comparing two versions runs one query per measure


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """The participant to preview as, the offer (empty: the first that fits), and what the participant would declare."""

    participant: str
    offer: str = ""
    action: str = "ds:query"
    purpose: str = ""
    application: str = ""


class OwnersView:
    """Views of an owner on its own datasets."""

    def __init__(
        self, store: Store, pool: Pool, known: FactCollector, *, name: str, mask_secret: bytes, memory_mb: int
    ) -> None:
        self._store, self._pool, self._known = store, pool, known
        self._name, self._mask_secret, self._memory_mb = name, mask_secret, memory_mb

    async def withheld(self, checked: CheckedOffer, *, by: str) -> list[dict[str, Any]]:
        """Return what each aggregate-only contract withholds from the version, in total and by dimension."""
        version = checked.version
        cells = [one for one in checked.contracts if one.grid is not None and one.grid.privacy is None]
        await self._record_view("withheld", version, by=by, policy=reader.digest(checked.policy))
        return [await self._describe_withheld(version, one) for one in cells]

    async def _describe_withheld(self, version: DatasetVersion, contract: DataContract) -> dict[str, Any]:
        grid = contract.grid
        assert grid is not None  # checked by the caller
        figures = await self.figures(version, contract)
        dimensions = []
        for one in grid.dimensions[:_DIMENSIONS_MAX]:
            alone = replace(grid, dimensions=(one,))
            without = replace(grid, dimensions=tuple(other for other in grid.dimensions if other != one))
            dimensions.append(
                {
                    "column": one.column,
                    "width": one.width,
                    "alone": await self._figures_with_grid(version, contract, alone),
                    "without": await self._figures_with_grid(version, contract, without),
                }
            )
        return {
            "permission": contract.permission,
            "min_group": grid.min_group,
            "unit": grid.entity,
            **figures,
            "dimensions": dimensions,
            "says": _describe_loss(figures, grid),
        }

    async def left_out(self, checked: CheckedOffer, *, by: str) -> dict[str, Any]:
        """Return the share that each aggregate-only contract withholds, in the form that may be published.

        Raises: PolicyInvalid where a single group determines it, or there is no such contract.
        """
        version, found = checked.version, dict[str, Any]()
        await self._record_view("left_out", version, by=by, policy=reader.digest(checked.policy))
        for one in checked.contracts:
            if one.grid is None or one.grid.privacy is not None:
                continue
            share = publishable_share(
                WithheldCounts.of(await self._read_withheld_counts(version, one)), min_group=one.grid.min_group
            )
            if share is None:
                raise PolicyInvalid(
                    "the share that the groups leave out cannot be published: one group more or less would change it, "
                    "so it would tell of that group. Publish the offer without it, or with fewer or finer groups",
                    code="left_out_tells",
                    rule=one.permission,
                )
            found[one.permission] = {"rows": share.rows, "groups": share.groups}
        if not found:
            raise PolicyInvalid(
                "expected an aggregate-only offer, as only its groups leave rows out; publish it without their share",
                code="left_out_nothing",
            )
        return {"version": version.digest, "shares": found}

    async def _figures_with_grid(self, version: DatasetVersion, contract: DataContract, grid: Grid) -> dict[str, int]:
        return await self.figures(version, replace(contract, grid=grid))

    async def few_changed(self, contract: DataContract, old: DatasetVersion, new: DatasetVersion) -> int:
        """Return the number of groups in both versions where a figure differs by fewer units than the minimum group.

        Also counts groups where one unit makes up most of the difference.
        """
        from policies.enforce.gate import GatedDataset as Gated
        from policies.enforce.gate import prepare_version_report

        before, after = (Gated((self._name, "t"), make_name(), contract) for _ in range(2))
        prepared = prepare_version_report(before, after, token=make_name, mask_key=b"owner")
        relations = {before.relation: version_to_relation(old), after.relation: version_to_relation(new)}
        found = await self._pool.ask(self._job(prepared, relations, seconds=_SECONDS_OF_VERSIONS))
        return int(found["rows"][0][0])

    async def _read_withheld_counts(self, version: DatasetVersion, contract: DataContract) -> dict[str, int]:
        from policies.enforce.gate import GatedDataset as Gated
        from policies.enforce.gate import prepare_withheld_report

        prepared = prepare_withheld_report(
            Gated((self._name, "t"), make_name(), contract), token=make_name, mask_key=b"owner"
        )
        found = await self._pool.ask(self._job(prepared, _relations_of(prepared, version)))
        return dict(zip(found["columns"], found["rows"][0], strict=True))

    async def figures(self, version: DatasetVersion, contract: DataContract) -> dict[str, int]:
        seen = await self._read_withheld_counts(version, contract)
        return {
            "rows": seen["rows"],
            "rows_lost": seen["rows"] - seen["rows_shown"],
            "groups": seen["cells"],
            "groups_lost": seen["cells"] - seen["cells_shown"],
            "units": seen["units"],
            "units_lost": seen["units"] - seen["units_shown"],
        }

    async def preview(self, key: str, asked: PreviewRequest, *, by: str) -> dict[str, Any]:
        """Return what the participant would see: the result of each rule, the columns after masks, the first rows."""
        dataset, version, offers = await self._store.read(lambda tx: _read_offers(tx, key))
        if not offers:
            raise Absent(f"{dataset.name!r} has no offer in force, so it is hidden from consumers; publish one first")
        facts, now = await self._facts(asked, dataset), time.time()
        offer, policy = _choose_offer(offers, asked.offer, facts, now=now)
        about = {"as": asked.participant, "offer": offer.id, "action": asked.action}
        await self._record_view("preview", version, by=by, purpose=asked.purpose, **about)
        found = _evaluate_party(policy, facts, asked, now=now)
        shown: dict[str, Any] = {"columns": [], "hidden": [], "rows": [], "sql": ""}
        if found["permitted"]:
            try:
                shown = await self._read_first_rows(dataset, version, policy, facts, asked, offer.id, by=by, now=now)
            except (ConnectorError, PolicyError) as error:
                found["permitted"] = False
                found["explanation"].append(f"Refused by the gate ({error.code}): {error}.")
        who = {"dataset": dataset.id, "offer": offer.id, "participant": asked.participant}
        return {**who, "action": asked.action, "purpose": asked.purpose, **found, **shown}

    async def simulate(self, checked: CheckedOffer, sql: str, *, action: str, purpose: str, by: str) -> dict[str, Any]:
        """Return what the gate does to a query under an offer without running it, or the refusal with code and rule."""
        from policies.enforce.gate import GatedDataset as Gated
        from policies.enforce.gate import prepare

        asked = {"policy": reader.digest(checked.policy), "action": action, "query_sha256": _sha256(sql)}
        await self._record_view("simulation", checked.version, by=by, purpose=purpose, **asked)
        dataset, chosen, declared = checked.dataset, expand(action), expand(purpose) or None
        try:
            contract = coverage.find_covering(checked.contracts, action=chosen, purpose=declared, now=time.time())[0]
            gated = Gated((self._name, dataset.name), make_name(), contract, dataset.id)
            prepared = prepare(sql, [gated], action=chosen, purpose=declared, token=make_name, mask_key=b"simulated")
        except PolicyError as error:
            return {"passes": False, "code": error.code, "rule": error.rule, "reason": str(error)}
        return {
            "passes": True,
            "permission": contract.permission,
            "columns": list(prepared.columns),
            "applied": list(read_log.describe_policies(prepared)),
            "aggregate": prepared.aggregate,
            "sql": prepared.sql,
            "parameters": {name: str(value) for name, value in prepared.params.items()},
        }

    async def _facts(self, asked: PreviewRequest, dataset: RegisteredDataset) -> Facts:
        known = (await self._known.of(asked.participant)).adding(await self._known.of_dataset(dataset.id))
        first_use = with_counters(known, uses=0, uses_today=0, running=0)
        return with_declared(first_use, purpose=expand(asked.purpose), application=asked.application)

    async def _read_first_rows(
        self,
        dataset: RegisteredDataset,
        version: DatasetVersion,
        policy: Policy,
        facts: Facts,
        asked: PreviewRequest,
        offer: str,
        *,
        by: str,
        now: float,
    ) -> dict[str, Any]:
        from policies.enforce.gate import GatedDataset as Gated
        from policies.enforce.gate import prepare

        contracts = compiler.compile_contracts(policy, published_schema(version), concluded=now, new=True)
        action, purpose = expand(asked.action), expand(asked.purpose) or None
        covering = coverage.find_covering(contracts, action=action, purpose=purpose, now=now)
        contract = _find_active_contract(covering, policy, facts, action=action, now=now)
        if note := _why_no_rows(contract):
            return {**_columns(contract), "columns_shown": [], "rows": [], "sql": "", "note": note}
        sql = _first_rows(self._name, dataset.name, contract)
        prepared = prepare(
            sql,
            [Gated((self._name, dataset.name), make_name(), contract, dataset.id)],
            action=action,
            purpose=purpose,
            token=make_name,
            mask_key=hmac.digest(self._mask_secret, asked.participant.encode(), "sha256"),
        )
        read = f"preview:{secrets.token_hex(8)}"
        common: dict[str, Any] = {
            "actor": by,
            "dataset": dataset.id,
            "version": version.digest,
            "purpose": expand(asked.purpose),
        }
        detail = {
            "action": "preview",
            "as": asked.participant,
            "offer": offer,
            **read_log.describe_columns(prepared.read[self._name, dataset.name], prepared.columns),
            "query_sha256": _sha256(sql),
        }
        await self._store.write(lambda tx: tx.publish(ReadStarted(**common, process=read, detail=detail)))
        try:
            answer = await self._pool.ask(self._job(prepared, _relations_of(prepared, version)))
        except ConnectorError as error:
            await self._publish_end(ReadEnded(**common, process=read, outcome="broken", code=error.code))
            raise
        told = {"rows": len(answer["rows"]), "action": "preview"}
        await self._publish_end(ReadEnded(**common, process=read, detail=told))
        return {**_columns(contract), "columns_shown": answer["columns"], "rows": answer["rows"], "sql": sql}

    async def _record_view(
        self, view: str, version: DatasetVersion, *, by: str, purpose: str = "", **asked: str
    ) -> None:
        """Record the view before anything is read.

        Raises: Unavailable where it cannot be stored; then nothing is shown.
        """
        viewed = RawDataViewed(
            actor=by,
            dataset=version.dataset_id,
            version=version.digest,
            purpose=expand(purpose),
            detail={"view": view, **{name: text for name, text in asked.items() if text}},
        )
        await self._store.write(lambda tx: tx.publish(viewed))

    async def _publish_end(self, event: ReadEnded) -> None:
        await self._store.write(lambda tx: tx.publish(event))

    def _job(self, prepared: Any, relations: Mapping[str, Relation], *, seconds: float = _SECONDS) -> Job:
        return Job(
            kind="report",
            relations=relations,
            sql=prepared.sql,
            params=prepared.params,
            recheck=Recheck(prepared.names, tuple(sorted(prepared.functions))),
            limits=Limits(seconds=seconds, memory_mb=self._memory_mb),
            consumer="owner",
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _relations_of(prepared: Any, version: DatasetVersion) -> dict[str, Relation]:
    return {dataset.relation: version_to_relation(version) for dataset in prepared.datasets}


def _read_offers(tx: Transaction, key: str) -> tuple[RegisteredDataset, DatasetVersion, list[Offer]]:
    row = tx.datasets.of(key)
    return row, tx.datasets.get_current(row), sorted(tx.datasets.list_offers_in_force([row.id]), key=_age)


def _age(offer: Offer) -> tuple[float, str]:
    return offer.created_at, offer.id


def _choose_offer(offers: Sequence[Offer], wanted: str, facts: Facts, *, now: float) -> tuple[Offer, Policy]:
    """Return the wanted offer; else the first that this participant could conclude; else the first."""
    if wanted:
        found = next((one for one in offers if one.id == wanted), None)
        if found is None:
            raise Absent(f"no offer {wanted!r} is in force for this dataset; it has {', '.join(o.id for o in offers)}")
        return found, stored_policies.read_offer_policy(found)
    read = [(offer, policy) for offer in offers if (policy := _read_or_none(offer)) is not None]
    if not read:
        return offers[0], stored_policies.read_offer_policy(offers[0])  # raises with the reason
    fitting = (pair for pair in read if evaluate_offer(pair[1], facts, phase=Phase.NEGOTIATION, now=now).permitted)
    return next(fitting, read[0])


def _read_or_none(offer: Offer) -> Policy | None:
    try:
        return stored_policies.read_offer_policy(offer)
    except Denied:
        return None


def _evaluate_party(policy: Policy, facts: Facts, asked: PreviewRequest, *, now: float) -> dict[str, Any]:
    """Return whether the participant could agree and then read, with the result of each rule."""
    agree = evaluate_offer(policy, facts, phase=Phase.NEGOTIATION, now=now)
    read = evaluate(as_granting_set(policy, at=now), facts, action=expand(asked.action), phase=Phase.QUERY, now=now)
    return {
        "permitted": agree.permitted and read.permitted,
        "could_agree": agree.permitted,
        "could_read": read.permitted,
        "explanation": list(dict.fromkeys([*explain.decision(agree), *explain.decision(read)])),
        "rules": _rule_results(policy, read),
        "decision": read.to_json(),
    }


def _find_active_contract(
    contracts: Sequence[DataContract], policy: Policy, facts: Facts, *, action: str, now: float
) -> DataContract:
    """Return the contract of a read by this participant: the first with an active permission.

    Raises: QueryRefused if none is active.
    """
    tried = as_granting_set(policy, at=now)
    for one in contracts:
        if permits(tried, facts, action=action, permission=one.permission, phase=Phase.QUERY, now=now):
            return one
    raise QueryRefused(
        "no permission that covers this action and purpose is active for this party; look at the rules above",
        rule=contracts[0].permission,
        code="not_permitted",
    )


def _rule_results(policy: Policy, decision: Decision) -> list[dict[str, Any]]:
    results = {finding.constraint: finding for finding in decision.findings}
    said = []
    for line in report.enforceability(policy):
        found = results.get(line.path)
        result = found.result if found is not None else "made true" if line.tier == "technical" else "follows up"
        said.append({**line.to_json(), "result": result, "observed": list(found.observed) if found is not None else []})
    return said


def _columns(contract: DataContract) -> dict[str, Any]:
    types = {column.name: column.type for column in contract.schema.columns}
    masks, as_texts = {mask.column: str(mask.kind) for mask in contract.masks}, text_columns(contract.masks)
    shown = [
        {"name": name, "type": "VARCHAR" if name in as_texts else types[name], "mask": masks.get(name)}
        for name in contract.columns
    ]
    hidden = [name for name in types if name not in contract.columns]
    return {"columns": shown, "hidden": hidden, "aggregate": contract.grid is not None}


def _why_no_rows(contract: DataContract) -> str:
    """Return why no first rows are shown although queries are possible; empty if rows can be shown."""
    if contract.templates:
        return "only approved queries run under this offer; fill one in to see its answer"
    if contract.grid is not None and contract.grid.privacy is not None:
        return "answers carry noise, and each spends the agreement's privacy budget; none is shown here"
    return ""


def _first_rows(owner: str, dataset: str, contract: DataContract) -> str:
    """Return the simplest query that the contract answers: its first rows, or its groups."""
    source = f"{quote_identifier(owner)}.{quote_identifier(dataset)}"
    if contract.grid is None:
        together = {name for columns in contract.together for name in columns[1:]}
        named = ", ".join(quote_identifier(name) for name in contract.columns if name not in together)
        return f"SELECT {named} FROM {source} LIMIT {ROWS}"  # noqa: S608  quoted, and the gate reads it
    keys = [quote_identifier(one.column) for one in contract.grid.dimensions]
    unit = "count(*)" if contract.grid.entity is None else f"count(DISTINCT {quote_identifier(contract.grid.entity)})"
    figures = [
        f"{unit} AS units",
        *(
            f"avg({quote_identifier(m.column)}) AS {quote_identifier('avg_' + m.column)}"
            for m in contract.grid.measures
        ),
    ]
    grouped = f" GROUP BY {', '.join(keys)}" if keys else ""
    return f"SELECT {', '.join([*keys, *figures])} FROM {source}{grouped} LIMIT {ROWS}"  # noqa: S608  as above


def _describe_loss(figures: Mapping[str, int], grid: Grid) -> str:
    units = f", {figures['units_lost']:,} of {figures['units']:,} different {grid.entity}" if grid.entity else ""
    return (
        f"with groups of at least {grid.min_group}, answers leave out {figures['groups_lost']:,} of "
        f"{figures['groups']:,} groups, {figures['rows_lost']:,} of {figures['rows']:,} rows{units}"
    )
