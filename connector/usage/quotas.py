"""What is counted of an agreement: uses, rows, bytes, reads at once. Looked at before a read, taken as it begins."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal

from connector.datasets import rounded_counts
from connector.errors import Limited, Refused
from connector.store import Transaction
from connector.usage.held_agreement import Grant, Held, Own
from policies.contracts import coverage
from policies.contracts.contract import DataContract

_CHUNK_ROWS = 1_000_000
_CHUNK_BYTES = 256 * 2**20
_SHARE = 8  # of what is left: no reader takes more of it at once
DAY = 86_400
USED_UP = "the agreement's rows or bytes are used up; ask its owner for another agreement"
_PLACE_SECONDS = 60.0  # how long a read of a process that is gone is in the way of others


def keep_places(tx: Transaction, read_ids: Collection[str]) -> set[str]:
    """Those of these reads whose places are still theirs, and stay so for a while."""
    return tx.reads.keep_places(read_ids, seconds=_PLACE_SECONDS)


def check_concurrency(contract: DataContract, running: int) -> None:
    most = contract.limits.concurrency
    if most is not None and running >= most:
        raise Limited(
            f"the agreement allows {most} reads at once and {running} are running; end one or wait",
            code="concurrency",
            rule=coverage.rule_path(contract, "concurrency"),
        )


def check_left(held: Held, contract: DataContract, own: Own) -> None:
    """Limited where nothing is left of what is counted; the counting itself asks again."""
    limits, rows = contract.limits, _most_rows(held, contract)
    if limits.queries_per_day is not None and own.today >= limits.queries_per_day:
        raise uses_spent(contract, own.uses)
    if (rows is not None and own.rows >= rows) or (limits.bytes is not None and own.bytes >= limits.bytes):
        raise _quota_spent(contract)


def admit(tx: Transaction, grant: Grant, now: float, read_id: str) -> tuple[int, int]:
    """Count one use, take a place; the first rows and bytes of the quota."""
    limits = grant.contract.limits
    counted = tx.agreements.count_use(
        grant.agreement_id, day=int(now // DAY), most=limits.queries, most_today=limits.queries_per_day
    )
    if not counted:
        row = tx.agreements.get_grant(grant.agreement_id)
        if row is None or grant.agreement_id in tx.agreements.read_end_reasons([grant.agreement_id]):
            raise Refused("the agreement was revoked by its owner", code="revoked", rule=grant.contract.permission)
        raise uses_spent(grant.contract, row.queries)
    if limits.concurrency is not None:
        running = tx.reads.take_place(read_id, grant.agreement_id, seconds=_PLACE_SECONDS) - 1
        check_concurrency(grant.contract, running)
    quota = reserve(tx, grant, rows=grant.packed, nbytes=0)
    if quota is None:
        raise _quota_spent(grant.contract, draws=grant.drawn > 0)
    return quota


def reserve(tx: Transaction, grant: Grant, *, rows: int, nbytes: int) -> tuple[int, int] | None:
    """Rows and bytes of the quota: a share of what is left, as others may read at the same time, and a chunk at most;
    else what the next batch needs. None if spent.

    The grant takes them once they are committed: a transaction may be tried again.
    """
    limits = grant.contract.limits
    if not limits.rationed:
        return 0, 0
    most_rows, used = _most_rows(grant.held, grant.contract), tx.agreements.get_grant(grant.agreement_id)
    left_rows = 0 if most_rows is None or used is None else max(0, most_rows - used.rows)
    left_bytes = 0 if limits.bytes is None or used is None else max(0, limits.bytes - used.bytes)
    for rows_more, bytes_more in ((left_rows // _SHARE, left_bytes // _SHARE), (0, 0)):
        more_rows = 0 if most_rows is None else max(rows, 1, min(_CHUNK_ROWS, rows_more))
        more_bytes = 0 if limits.bytes is None else max(nbytes, 1, min(_CHUNK_BYTES, bytes_more))
        taken = tx.agreements.reserve(
            grant.agreement_id, rows=more_rows, nbytes=more_bytes, most_rows=most_rows, most_bytes=limits.bytes
        )
        if taken:
            return more_rows, more_bytes
    return None


def quota_rule(contract: DataContract, *, of_bytes: bool = False) -> str:
    """The rule behind the quota: that of rows where they are limited, else of bytes; `of_bytes`: these are spent."""
    limits = contract.limits
    spent = "rowQuota" if limits.rows is not None else "percentage" if limits.share is not None else "byteQuota"
    return coverage.rule_path(contract, "byteQuota" if of_bytes else spent)


def _most_rows(held: Held, contract: DataContract) -> int | None:
    """Rows that may leave under the agreement: the quota, or the share of the version that is read."""
    limits = contract.limits
    if limits.share is None:
        return limits.rows
    rows = held.version.profile["rows"]
    if contract.row_filter is not None:  # where the reads end would tell of the hidden rows
        rows = rounded_counts.at_least(rows)
    share = int(rows * Decimal(str(limits.share)) / 100)  # as it is written: 0.29 is less as a float
    return share if limits.rows is None else min(share, limits.rows)


def uses_spent(contract: DataContract, uses: int) -> Limited:
    """The refusal of a read after so many `uses`: those of the agreement are used up, or those of a day."""
    limits = contract.limits
    spent = limits.queries is not None and uses >= limits.queries
    what = f"{limits.queries} reads" if spent else f"{limits.queries_per_day} reads a day"
    return Limited(
        f"the agreement allows {what} and they are used up",
        code="count_spent",
        rule=coverage.rule_path(contract, "count" if spent else "queriesPerDay"),
    )


def _quota_spent(contract: DataContract, *, draws: bool = False) -> Limited:
    told = USED_UP
    if draws:
        told = (
            "a question that combines rows (aggregates, windows, WITH, UNION, OFFSET in a subquery, a dataset twice), "
            "or asks for what has none (NOT EXISTS, NOT IN, an outer join to it), counts as all rows of the dataset, "
            "and fewer are left under the agreement; ask for rows, which are counted as they leave"
        )
    return Limited(told, code="quota_spent", rule=quota_rule(contract))
