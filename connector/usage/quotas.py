"""The quotas of an agreement: uses, rows, bytes and reads at once. Checked before a read, taken when it begins."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal

from connector.datasets import rounded_counts
from connector.errors import Denied, Limited
from connector.store import Transaction
from connector.usage.held_agreement import CompiledAgreement, ReadGrant, UsageCounters
from policies.contracts import coverage
from policies.contracts.contract import DataContract

_CHUNK_ROWS = 1_000_000
_CHUNK_BYTES = 256 * 2**20
_SHARE = 8  # a reader reserves at most this fraction of what is left
DAY = 86_400
USED_UP = "the agreement's rows or bytes are used up; ask its owner for another agreement"
_PLACE_SECONDS = 60.0  # how long the read of a dead process keeps its place


def keep_places(tx: Transaction, read_ids: Collection[str]) -> set[str]:
    """Renew the places of reads; return the ids of those that still had one."""
    return tx.reads.keep_places(read_ids, seconds=_PLACE_SECONDS)


def check_concurrency(contract: DataContract, running: int) -> None:
    most = contract.limits.concurrency
    if most is not None and running >= most:
        raise Limited(
            f"the agreement allows {most} reads at once and {running} are running; end one or wait",
            code="concurrency",
            rule=coverage.rule_path(contract, "concurrency"),
        )


def check_left(held: CompiledAgreement, contract: DataContract, own: UsageCounters) -> None:
    """Check that uses, rows and bytes are left; `admit` checks again. Raises: Limited."""
    limits, rows = contract.limits, _most_rows(held, contract)
    if limits.queries_per_day is not None and own.today >= limits.queries_per_day:
        raise uses_spent(contract, own.uses)
    if (rows is not None and own.rows >= rows) or (limits.bytes is not None and own.bytes >= limits.bytes):
        raise _quota_spent(contract)


def admit(tx: Transaction, grant: ReadGrant, now: float, read_id: str) -> tuple[int, int]:
    """Count a use, take a place, and reserve the first rows and bytes. Raises: Denied, Limited."""
    limits = grant.contract.limits
    counted = tx.agreements.count_use(
        grant.agreement_id, day=int(now // DAY), most=limits.queries, most_today=limits.queries_per_day
    )
    if not counted:
        row = tx.agreements.get_grant(grant.agreement_id)
        if row is None or grant.agreement_id in tx.agreements.read_end_reasons([grant.agreement_id]):
            raise Denied("the agreement was revoked by its owner", code="revoked", rule=grant.contract.permission)
        raise uses_spent(grant.contract, row.queries)
    if limits.concurrency is not None:
        running = tx.reads.take_place(read_id, grant.agreement_id, seconds=_PLACE_SECONDS) - 1
        check_concurrency(grant.contract, running)
    quota = reserve(tx, grant, rows=grant.packed, nbytes=0)
    if quota is None:
        raise _quota_spent(grant.contract, draws=grant.drawn > 0)
    return quota


def reserve(tx: Transaction, grant: ReadGrant, *, rows: int, nbytes: int) -> tuple[int, int] | None:
    """Reserve rows and bytes of the quota; None if it is spent.

    Reserves a fraction of what is left, as others may read at the same time, and a chunk at most; otherwise what the
    next batch needs. The grant takes them after the commit, as a transaction may be retried.
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
    """The rule of the quota: of rows if they are limited, otherwise of bytes; `of_bytes` selects bytes."""
    limits = contract.limits
    spent = "rowQuota" if limits.rows is not None else "percentage" if limits.share is not None else "byteQuota"
    return coverage.rule_path(contract, "byteQuota" if of_bytes else spent)


def _most_rows(held: CompiledAgreement, contract: DataContract) -> int | None:
    """The rows that may leave under the agreement: the quota, or the share of the current version."""
    limits = contract.limits
    if limits.share is None:
        return limits.rows
    rows = held.version.profile["rows"]
    if contract.row_filter is not None:  # rounded, as the exact limit would reveal the number of hidden rows
        rows = rounded_counts.at_least(rows)
    share = int(rows * Decimal(str(limits.share)) / 100)  # as decimal: 0.29 is less as a float
    return share if limits.rows is None else min(share, limits.rows)


def uses_spent(contract: DataContract, uses: int) -> Limited:
    """The refusal after `uses` uses: those of the agreement or of the day are spent."""
    limits = contract.limits
    spent = limits.queries is not None and uses >= limits.queries
    what = f"{limits.queries} reads" if spent else f"{limits.queries_per_day} reads a day"
    return Limited(
        f"the agreement allows {what} and they are used up",
        code="count_spent",
        rule=coverage.rule_path(contract, "count" if spent else "queriesPerDay"),
    )


def _quota_spent(contract: DataContract, *, draws: bool = False) -> Limited:
    message = USED_UP
    if draws:
        message = (
            "a question that combines rows (aggregates, windows, WITH, UNION, OFFSET in a subquery, a dataset twice), "
            "or asks for what has none (NOT EXISTS, NOT IN, an outer join to it), counts as all rows of the dataset, "
            "and fewer are left under the agreement; ask for rows, which are counted as they leave"
        )
    return Limited(message, code="quota_spent", rule=quota_rule(contract))
