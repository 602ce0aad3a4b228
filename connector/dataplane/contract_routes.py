"""Routes for a consumer's own access: the contract of an agreement, and a fresh ticket for a transfer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from connector.dataplane.admission import Reads
from connector.dataplane.data_address import PATH, Addresses
from connector.datasets import rounded_counts
from connector.identity.identity_service import Identity
from connector.usage.held_agreement import CompiledAgreement
from policies.contracts.contract import DataContract
from policies.contracts.masks import text_columns


class Renewal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transfer: str = Field(max_length=255, description="The provider's pid of a started transfer.")


def router(addresses: Addresses, reads: Reads, identity: Identity, *, owner: str) -> APIRouter:
    routes = APIRouter(prefix=PATH, tags=["data plane"])

    @routes.get("/contract", summary="What the agreement of this ticket allows (bearer: ticket)")
    async def contract(request: Request) -> dict[str, Any]:
        ticket = addresses.read(request.headers.get("authorization"))
        async with reads.record_refusals(ticket):
            held = await reads.grants.load_usable(
                ticket.agreement,
                consumer=ticket.consumer,
                purpose=ticket.purpose,
                transfer=(ticket.transfer, ticket.generation),
            )
        return summary(held, owner=owner, left_out=await reads.grants.left_out(held))

    @routes.post("/tickets", summary="A fresh data address for a started transfer (bearer: self-issued token)")
    async def renewed(asked: Renewal, request: Request) -> dict[str, Any]:
        caller = await identity.authenticate(request.headers.get("authorization"))
        return await addresses.renew(asked.transfer, consumer=caller.id)

    return routes


def summary(
    held: CompiledAgreement, *, owner: str, left_out: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return one agreement for its consumer.

    Shows nothing that the policy hides, nor how much is hidden, except what the owner has published (`left_out`, by
    permission).
    """
    types = {column["name"]: column["type"] for column in held.version.schema}
    return {
        "agreement": held.agreement.id,
        "dataset": held.dataset.id,
        "name": held.dataset.name,
        "owner": owner,
        "sql_name": f'"{owner}"."{held.dataset.name}"',
        "version": held.version.digest,
        "rows": rounded_counts.visible_rows(held.version.profile["rows"], held.contracts),
        # Sending values to another owner, to narrow its answer, is distribution: each contract says whether its values
        # may be sent. Receiving such values reveals nothing that the rows themselves would not.
        "contracts": [
            _describe_contract(contract, types, left_out.get(contract.permission))
            | {"shares_keys": contract.permission in held.passed_on}
            for contract in held.contracts
        ],
        "takes_keys": all(contract.grid is None for contract in held.contracts),
    }


def _describe_contract(
    contract: DataContract, types: dict[str, str], left_out: Mapping[str, Any] | None
) -> dict[str, Any]:
    grid = contract.grid
    masked = {mask.column: str(mask.kind) for mask in contract.masks}
    types = types | dict.fromkeys(text_columns(contract.masks), "VARCHAR") | _text_column_types(contract)
    return {
        "actions": list(contract.actions),
        "purposes": list(contract.purposes),
        "not_before": contract.not_before,
        "not_after": contract.not_after,
        "columns": [{"name": name, "type": types[name], "mask": masked.get(name)} for name in contract.columns],
        "aggregate": None
        if grid is None
        else {
            "min_group": grid.min_group,
            "epsilon": None if grid.privacy is None else grid.privacy.epsilon,
            "entity": grid.entity,
            "dimensions": [{"column": d.column, "width": d.width} for d in grid.dimensions],
            "measures": [{"column": m.column, "low": m.low, "high": m.high} for m in grid.measures],
            "left_out": left_out,
        },
        "limits": {
            "rows": contract.limits.rows,
            "bytes": contract.limits.bytes,
            "share": contract.limits.share,
            "queries": contract.limits.queries,
            "queries_per_day": contract.limits.queries_per_day,
            "concurrency": contract.limits.concurrency,
        },
        "joins": None if contract.joins is None else list(contract.joins),
    }


def _text_column_types(contract: DataContract) -> dict[str, str]:
    """Return the types of columns that a mask makes text and bins make numbers again."""
    dimensions = () if contract.grid is None else contract.grid.dimensions
    as_texts = text_columns(contract.masks)
    return {one.column: "DOUBLE" for one in dimensions if one.width is not None and one.column in as_texts}
