"""Records receipts of our reads at owners, as the reading clients report them, in our own log (decision 55).

Dataset and owner come from our own agreement; the counts are the client's claim. A repeated receipt counts once. Each
token has a limit of receipts a minute, and a single call at a time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from connector.errors import Limited
from connector.events import ReadTaken
from connector.infra.concurrency.recent_keys import RateLimit
from connector.store import Store, Transaction

TOGETHER_MAX = 256  # receipts in a call
_PER_MINUTE = 6_000  # per token: each receipt is a record in a permanent log that others share
_BURST = 20_000  # at once: a job with thousands of readers may end
_TELLERS_MAX = 4096
_SENDER = "receipts"  # the sender in the inbox; no DID equals it
_COMPLETE, _FAILED = "complete", "error"
_ROWS_DIFFER, _DIGEST_MISMATCH = "rows_differ", "digest_mismatch"


@dataclass(frozen=True, slots=True)
class ReportedEnd:
    """The members of an owner's end record, as far as it had them."""

    status: str = ""
    rows: int | None = None
    bytes: int | None = None
    digest: str = ""
    code: str = ""

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("status", "rows", "bytes", "digest")}
        return {name: value for name, value in values.items() if value not in (None, "")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReceipt:
    """The receipt of a read that has ended.

    `id` names the receipt, `read` is the owner's id of the read, `seconds` how long ago it began (None if unknown).
    `end` is the owner's end record; without it, `code` says why it is missing.
    `digest` is what the reader computed over the bytes before the end record, empty if it computed none.
    """

    id: str
    agreement: str
    transfer: str
    read: str
    rows: int
    seconds: int | None = None
    code: str = ""
    digest: str = ""
    end: ReportedEnd | None = None

    @property
    def _differs(self) -> str:
        """The code of how what came differs from what the end record says; empty where it does not."""
        if self.end is None:
            return ""
        if self.digest and self.digest != self.end.digest:
            return _DIGEST_MISMATCH
        return _ROWS_DIFFER if self.end.rows != self.rows else ""

    @property
    def outcome(self) -> str:
        if self.end is None or self.end.status == _FAILED or self._differs:
            return "broken"
        return "ok" if self.end.status == _COMPLETE else "refused"

    @property
    def why(self) -> str:
        """The code of the outcome; empty for a complete read."""
        if self.end is None:
            return self.code
        if self._differs:
            return self._differs
        return "" if self.end.status == _COMPLETE else self.end.code or self.end.status


@dataclass(frozen=True, slots=True)
class Recorded:
    """The number of newly recorded receipts, and the ids of those without an agreement here."""

    recorded: int
    unknown: tuple[str, ...]


class ReceiptLog:
    """The receipts of a participant. `clock` returns monotonic seconds."""

    def __init__(self, store: Store, *, participant: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._participant = participant
        self._clock = clock
        self._rate = RateLimit(_PER_MINUTE, burst=_BURST, most=_TELLERS_MAX)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def record(self, ends: Sequence[ReadReceipt], *, by: str) -> Recorded:
        """Record receipts in a single transaction. Raises: Limited if token `by` has sent too many recently."""
        self._count(by, len(ends))
        async with self._turns.setdefault(by, asyncio.Lock()):  # other tokens are not blocked
            return await self._store.write(lambda tx: self._record(tx, ends, by))

    def _count(self, by: str, number: int) -> None:
        if (wait := math.ceil(self._rate.wait_seconds(by, self._clock(), number))) > 0:
            raise Limited(
                f"expected at most {_PER_MINUTE} receipts a minute with a token, and {_BURST} at once, got more; send "
                f"them again in {wait} s",
                code="too_many_receipts",
                retry_after=wait,
            )

    def _record(self, tx: Transaction, ends: Sequence[ReadReceipt], by: str) -> Recorded:
        events: list[ReadTaken] = []
        unknown: list[str] = []
        for end in ends:
            agreement = tx.agreements.get(end.agreement, role="consumer")
            if agreement is None:
                unknown.append(end.id)
                continue
            if not tx.outbox.record_received(sender=_SENDER, message_id=end.id, digest="", now=tx.now):
                continue
            transfer = tx.transfers.peek(end.transfer)
            ours = transfer is not None and transfer.agreement_id == agreement.id
            events.append(
                ReadTaken(
                    actor=by,
                    on_behalf_of=self._participant,
                    dataset=agreement.dataset_id,
                    agreement=agreement.id,
                    purpose=transfer.purpose if transfer is not None and ours else "",
                    process=end.read,
                    outcome=end.outcome,
                    code=end.why,
                    detail={
                        "counterparty": agreement.provider,
                        "receipt": end.id,
                        "rows": end.rows,
                        **({"digest": end.digest} if end.digest else {}),
                        **({"seconds": end.seconds} if end.seconds is not None else {}),
                        **({"transfer": end.transfer} if ours else {}),
                        **({"told": end.end.to_json()} if end.end is not None else {}),
                    },
                )
            )
        for event in events:
            tx.publish(event)
        return Recorded(len(events), tuple(unknown))
