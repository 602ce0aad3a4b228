"""What the log says of a read: its start, its end, its refusal. Facts only; never a value of the data. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from connector.dataplane.asked import COMPLETE, FAILED, Asked, End
from connector.dataplane.tickets import Ticket
from connector.errors import HanseError, Refused
from connector.events import ReadEnded, ReadRefused, ReadStarted
from connector.usage.held import Grant
from policies.contract import DataContract
from policies.errors import PolicyError

if TYPE_CHECKING:
    from connector.dataplane.private import Charged
    from policies.enforce.sql import Prepared


def applied(prepared: Prepared, charged: Charged | None = None) -> tuple[str, ...]:
    """What of the policies shaped this answer, in words for its reader: effect and rule."""
    found: list[str] = []
    for dataset in prepared.datasets:
        contract = dataset.contract
        hidden = len(contract.schema.columns) - len(contract.columns)
        told = [
            "row filter" if contract.row_filter is not None else "",
            f"{hidden} column{'s' * (hidden != 1)} withheld" if hidden else "",
            *(f"{mask.column} masked ({mask.kind})" for mask in contract.masks),
            _figures(contract, charged),
        ]
        found += [f"{dataset.name[1]}: {text}" for text in told if text]
    return tuple(found)


def _figures(contract: DataContract, charged: Charged | None) -> str:
    if contract.grid is None:
        return ""
    return charged.note() if charged is not None else f"groups of at least {contract.grid.min_group}"


def started(asked: Asked, grants: Sequence[Grant], prepared: Prepared, policy: tuple[str, ...]) -> ReadStarted:
    """The record of a start. The SQL is kept as its digest: its literals may be personal data."""
    detail = {
        "action": asked.action.rsplit("/", 1)[-1],
        "columns": [name for name in prepared.columns if name != asked.position][:100],
        "query_sha256": hashlib.sha256(_told(asked).encode()).hexdigest(),
        "policy": list(policy),
        **({"fragment": asked.fragment} if asked.fragment else {}),
        **({"blocks": [one.block for one in asked.split.only.ranges][:100]} if asked.split else {}),
        **({"application": asked.application} if asked.application else {}),
    }
    return ReadStarted(**_common(asked, grants), detail=detail)


def _told(asked: Asked) -> str:
    """The SQL with the random name of the positions written as what it stands for."""
    return asked.sql.replace(asked.position, "file_row_number") if asked.position else asked.sql


def ended(asked: Asked, grants: Sequence[Grant], end: End | None, failure: BaseException | None) -> ReadEnded:
    """The record of an end, with what left. A no of the policy before the first byte is a refusal, whenever it came."""
    refusal = isinstance(failure, Refused)
    if end is None or (refusal and not end.rows):
        code = getattr(failure, "code", "cancelled")
        return ReadEnded(
            **_common(asked, grants),
            outcome="refused" if refusal else "failed",
            code=code,
            reason=str(failure)[:400] if isinstance(failure, HanseError | PolicyError) else "",
            rule=getattr(failure, "rule", ""),
            detail={"rows": 0, "bytes": 0, "batches": 0},
        )
    outcome = {COMPLETE: "ok", FAILED: "broken"}.get(end.status, "refused")
    return ReadEnded(
        **_common(asked, grants),
        outcome=outcome,
        code=end.code,
        reason=end.reason,
        rule=end.rule,
        detail={"rows": end.rows, "bytes": end.nbytes, "batches": end.batches, "digest": end.digest},
    )


def refused(asked: Asked, error: HanseError | PolicyError, grants: Sequence[Grant]) -> ReadRefused:
    """The record of a read that never started."""
    common = _common(asked, grants)
    common["agreement"] = common["agreement"] or asked.tickets[0].agreement
    return ReadRefused(
        **common, outcome="refused", code=error.code, reason=str(error)[:400], rule=getattr(error, "rule", "")
    )


def turned_away(tickets: Sequence[Ticket], error: HanseError | PolicyError) -> ReadRefused:
    """The record of a request that came to no read: who asked, by its tickets, and under which agreements."""
    first = tickets[0]
    return ReadRefused(
        actor=first.consumer,
        agreement=",".join(dict.fromkeys(ticket.agreement for ticket in tickets)),
        purpose=first.purpose,
        outcome="refused",
        code=error.code,
        reason=str(error)[:400],
        rule=getattr(error, "rule", ""),
    )


def _common(asked: Asked, grants: Sequence[Grant]) -> dict[str, Any]:
    """The fields that every record of one read shares. A read under several agreements names the first, and all."""
    first = grants[0] if grants else None
    return {
        "actor": asked.consumer,
        "dataset": first.held.dataset.id if first else "",
        "version": first.held.version.digest if first else "",
        "agreement": ",".join(grant.agreement_id for grant in grants),
        "purpose": (first.purpose if first else "") or asked.purpose,
        "process": asked.query_id,
    }
