"""Events of a read for the audit log: start, end, refusal. Facts only, never a value of the data. Pure.

A read under several agreements has one event of each kind under each of them, with its dataset, version and purpose, so
that a search for one agreement or dataset finds the read. The events share the read's id (`process`) and name all
agreements in `detail.agreements`. Rows and bytes are those of the whole read, the same in each event.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from connector.dataplane.read_request import COMPLETE, FAILED, ReadRequest, StreamEnd
from connector.errors import ConnectorError, Denied, Unavailable, Withdrawn
from connector.events import ReadEnded, ReadRefused, ReadStarted, listed, together
from connector.usage.held_agreement import ReadGrant
from policies.contracts.contract import DataContract, bins_note
from policies.enforce.withheld import Withheld, describe_left_out, sentences
from policies.errors import PolicyError

if TYPE_CHECKING:
    from connector.dataplane.noise_budget import NoiseCharge
    from connector.dataplane.tickets import Ticket
    from policies.enforce.gate import PreparedQuery

GONE, LEFT = "client_gone", "the client left"


class ReaderEnded(ConnectorError):
    """The reader ended its read. Passed to `Task.cancel`, so that the record names the cause."""

    status = 499
    code = "cancelled"


def find_cause(failure: BaseException | None, build_end_events: ConnectorError | None) -> BaseException | None:
    """Return the cause of a failed read for its record.

    For a cancelled read: the ReaderEnded that was passed with the cancellation, else `ended` where that is our own
    stop, else the failure itself.
    """
    if not isinstance(failure, asyncio.CancelledError | ConnectionError):
        return failure
    by = next((one for one in failure.args if isinstance(one, ReaderEnded)), None)
    return by or (build_end_events if isinstance(build_end_events, Unavailable) else failure)


def describe_policies(prepared: PreparedQuery, charged: NoiseCharge | None = None) -> tuple[str, ...]:
    """Return the effects of the policies on this answer, in words for its reader: "dataset: effect"."""
    found: list[str] = []
    for dataset in prepared.datasets:
        contract = dataset.contract
        hidden = len(contract.schema.columns) - len(contract.columns)
        told = [
            "row filter" if contract.row_filter is not None else "",
            f"{hidden} column{'s' * (hidden != 1)} withheld" if hidden else "",
            *(f"{mask.column} masked ({mask.kind})" for mask in contract.masks),
            _describe_grid(contract, charged),
            bins_note(contract.grid.dimensions if contract.grid is not None else ()),
        ]
        found += [f"{dataset.name[1]}: {text}" for text in told if text]
    return tuple(found)


def _describe_grid(contract: DataContract, charged: NoiseCharge | None) -> str:
    if contract.grid is None:
        return ""
    return charged.note() if charged is not None else f"groups of at least {contract.grid.min_group}"


def describe_withheld(prepared: PreparedQuery) -> tuple[Withheld, tuple[str, ...]]:
    """Return whether the policies may leave anything out of this answer, and sentences that say what.

    The sentences depend on the contracts only, not on the data.
    """
    grids = [(one.name[0], one.contract.grid) for one in prepared.datasets if one.contract.grid is not None]
    kinds = [
        (owner, describe_left_out(one.min_group, one.entity, noise=one.privacy is not None)) for owner, one in grids
    ]
    said = sentences(kinds, owners=[owner for owner, _ in kinds])
    return (Withheld.POSSIBLY if grids else Withheld.NOTHING), tuple(said)


def build_start_events(
    asked: ReadRequest, grants: Sequence[ReadGrant], prepared: PreparedQuery, policy: tuple[str, ...]
) -> list[ReadStarted]:
    """Return the start events of a read, one for each grant.

    SQL and caller tables are kept as digests: their values may be personal data.
    """
    detail = {
        "action": asked.action.rsplit("/", 1)[-1],
        "query_sha256": hashlib.sha256(_stable_sql(asked).encode()).hexdigest(),
        **listed("policy", policy),
        **_describe_rows(asked),
        **({"transport": asked.transport} if asked.transport else {}),
        **({"to": asked.to} if asked.to else {}),
        **({"fragment": asked.fragment} if asked.fragment else {}),
        **({"application": asked.application} if asked.application else {}),
        **together([grant.agreement_id for grant in grants]),
    }
    names = tuple(name for name in prepared.columns if name != asked.position)
    read = {table: columns for (_, table), columns in prepared.read.items()}
    return [
        ReadStarted(
            **_grant_fields(asked, grant), detail=describe_columns(read[grant.held.dataset.name], names) | detail
        )
        for grant in grants
    ]


def describe_columns(read: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return the dataset's own columns that are read, and the answer's column names where they differ.

    The reader chooses the answer's names.
    """
    return listed("columns", read) | (listed("named", names) if tuple(names) != tuple(read) else {})


def _describe_rows(asked: ReadRequest) -> dict[str, Any]:
    """Return the selection of rows outside the SQL: caller tables, limits, and places in the files."""
    ranges = asked.split.only.ranges if asked.split else ()
    limits = {name: value for name, value in (("rows", asked.rows), ("bytes", asked.nbytes)) if value is not None}
    blocks = [one.block for one in ranges if one.block >= 0]
    return {
        **({"keys": [{"name": one.name, "sha256": one.sha256} for one in asked.brought]} if asked.brought else {}),
        **({"limits": limits} if limits else {}),
        **(listed("blocks", blocks) if blocks else {}),
        **(listed("ranges", [[one.file, one.first, one.stop] for one in ranges]) if ranges else {}),
    }


def _stable_sql(asked: ReadRequest) -> str:
    """Return the SQL with the random name of the position column replaced by `file_row_number`."""
    return asked.sql.replace(asked.position, "file_row_number") if asked.position else asked.sql


def build_end_events(
    asked: ReadRequest,
    grants: Sequence[ReadGrant],
    end: StreamEnd | None,
    failure: BaseException | None,
    *,
    unused: bool = False,
) -> list[ReadEnded]:
    """Return the end events of a read, one for each grant, with the totals that were sent.

    A refusal by policy before the first byte has the outcome "refused". A read that its own consumer withdrew has
    "broken", as where the reader leaves. Where one of several agreements ended the read, all events name it
    (`ended_by`), and only its own event has the rule. `unused`: the use and quota that the start took are returned with
    this record.
    """
    told = _describe_end(end, failure)
    by = (end.agreement if end is not None else "") or getattr(failure, "facts", {}).get("agreement", "")
    detail = told.pop("detail") | together([grant.agreement_id for grant in grants])
    if by and len(grants) > 1:
        detail["ended_by"] = by
    if unused:
        detail["use"] = "given_back"
    rule = told.pop("rule")
    return [
        ReadEnded(
            **_grant_fields(asked, grant), **told, rule=rule if by in ("", grant.agreement_id) else "", detail=detail
        )
        for grant in grants
    ]


def _describe_end(end: StreamEnd | None, failure: BaseException | None) -> dict[str, Any]:
    refusal = isinstance(failure, Denied)
    if end is None or (refusal and not end.rows):
        known = isinstance(failure, ConnectorError | PolicyError)  # else the reader left first
        return {
            "outcome": "refused" if refusal and not isinstance(failure, Withdrawn) else "broken",
            "code": getattr(failure, "code", GONE),
            "reason": str(failure)[:400] if known else LEFT,
            "rule": getattr(failure, "rule", ""),
            "detail": {"rows": 0, "bytes": 0, "batches": 0},
        }
    return {
        "outcome": "broken" if end.withdrawn else {COMPLETE: "ok", FAILED: "broken"}.get(end.status, "refused"),
        "code": end.code,
        "reason": end.reason,
        "rule": end.rule,
        "detail": {
            "rows": end.rows,
            "bytes": end.nbytes,
            "batches": end.batches,
            "digest": end.digest,
            **_mark_results(end),
        },
    }


def _mark_results(end: StreamEnd) -> dict[str, str]:
    """Mark rows that are results, that is figures over groups, as an aggregate-only agreement gives them."""
    return {} if end.withheld is Withheld.NOTHING else {"gives": "results"}


def build_refusal_events(
    asked: ReadRequest, error: ConnectorError | PolicyError, grants: Sequence[ReadGrant]
) -> list[ReadRefused]:
    """Return the refusal events of a read that never started: for the agreement that refused it, else for each.

    `grants`: those granted so far, empty where the grants themselves were refused.
    """
    under = {ticket.agreement: _ticket_fields(asked, ticket) for ticket in asked.tickets}
    if grants:
        under = {grant.agreement_id: _grant_fields(asked, grant) for grant in grants}
    return _refusal_events(under, error)


def build_request_refusals(tickets: Sequence[Ticket], error: ConnectorError | PolicyError) -> list[ReadRefused]:
    """Return the refusal events of a request that led to no read, by its tickets."""
    under = {
        ticket.agreement: {"actor": ticket.consumer, "agreement": ticket.agreement, "purpose": ticket.purpose}
        for ticket in tickets
    }
    return _refusal_events(under, error)


def _refusal_events(under: Mapping[str, dict[str, Any]], error: ConnectorError | PolicyError) -> list[ReadRefused]:
    reason, rule = str(getattr(error, "facts", {}).get("agreement", "")), str(getattr(error, "rule", ""))
    found = [under[reason]] if reason in under else under.values()
    return [
        ReadRefused(**common, outcome="refused", code=error.code, reason=str(error)[:400], rule=rule)
        for common in found
    ]


def _grant_fields(asked: ReadRequest, grant: ReadGrant) -> dict[str, Any]:
    """Return the fields that all events of a read share under one of its agreements."""
    return {
        "actor": asked.consumer,
        "dataset": grant.held.dataset.id,
        "version": grant.held.version.digest,
        "agreement": grant.agreement_id,
        "purpose": grant.purpose,
        "process": asked.query_id,
        "job": asked.job,
    }


def _ticket_fields(asked: ReadRequest, ticket: Ticket) -> dict[str, Any]:
    """Return the same fields as `_grant_fields`, as far as a ticket has them."""
    return {
        "actor": asked.consumer,
        "agreement": ticket.agreement,
        "purpose": asked.purpose or ticket.purpose,
        "process": asked.query_id,
        "job": asked.job,
    }
