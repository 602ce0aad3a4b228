"""Receipts: what came of reads of ours at owners, as those who read tell it, in our own log (decision 55).

Whose dataset it was, and under which agreement, our own agreement says; what is counted is the teller's word. One that
is told again counts once. The log is bounded: each token has so many receipts a minute, and one call at a time.
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

TOGETHER_MAX = 256  # in one call
_PER_MINUTE = 6_000  # of one token: each is a record in a log that is kept, and others write to it, too
_BURST = 20_000  # as many of them at once: a job of thousands of readers that ends
_TELLERS_MAX = 4096
_SENDER = "receipts"  # in the inbox: no counterparty, whose identifier is a DID, has it
_COMPLETE, _FAILED = "complete", "error"


@dataclass(frozen=True, slots=True)
class Told:
    """What an owner's end record said, as far as it did."""

    status: str = ""
    rows: int | None = None
    bytes: int | None = None
    digest: str = ""
    code: str = ""

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("status", "rows", "bytes", "digest")}
        return {name: value for name, value in values.items() if value not in (None, "")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A read that is over. `id`: this receipt's own; `read`: as the owner names the read; `seconds`: how long ago it
    began, None where that is not told; `end`: none came where it is None, and `code` says why."""

    id: str
    agreement: str
    transfer: str
    read: str
    rows: int
    seconds: int | None = None
    code: str = ""
    end: Told | None = None

    @property
    def outcome(self) -> str:
        if self.end is None or self.end.status == _FAILED or self.end.rows != self.rows:
            return "broken"
        return "ok" if self.end.status == _COMPLETE else "refused"

    @property
    def why(self) -> str:
        """The code of its outcome; none where all came."""
        if self.end is None:
            return self.code
        if self.end.rows != self.rows:
            return "rows_differ"
        return "" if self.end.status == _COMPLETE else self.end.code or self.end.status


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many are in the log now that were not before, and the ids of those under no agreement of ours."""

    recorded: int
    unknown: tuple[str, ...]


class Receipts:
    """Of one participant. `clock` counts seconds."""

    def __init__(self, store: Store, *, participant: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._participant = participant
        self._clock = clock
        self._rate = RateLimit(_PER_MINUTE, burst=_BURST, most=_TELLERS_MAX)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def record(self, ends: Sequence[Ended], *, by: str) -> Recorded:
        """Keep receipts, all in one transaction. Limited where this token has told of too many of late."""
        self._count(by, len(ends))
        async with self._turns.setdefault(by, asyncio.Lock()):  # other tokens' come between
            return await self._store.write(lambda tx: self._kept(tx, ends, by))

    def _count(self, by: str, number: int) -> None:
        if (wait := math.ceil(self._rate.wait_seconds(by, self._clock(), number))) > 0:
            raise Limited(
                f"expected at most {_PER_MINUTE} receipts a minute by one token, and {_BURST} at once, came more; tell "
                f"of them in {wait} s",
                code="too_many_receipts",
                retry_after=wait,
            )

    def _kept(self, tx: Transaction, ends: Sequence[Ended], by: str) -> Recorded:
        events: list[ReadTaken] = []
        unknown: list[str] = []
        for end in ends:
            agreement = tx.agreements.get(end.agreement, role="consumer")
            if agreement is None:
                unknown.append(end.id)
                continue
            if not tx.messages.remember(sender=_SENDER, message_id=end.id, digest="", now=tx.now):
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
                        **({"seconds": end.seconds} if end.seconds is not None else {}),
                        **({"transfer": end.transfer} if ours else {}),
                        **({"told": end.end.to_json()} if end.end is not None else {}),
                    },
                )
            )
        for event in events:
            tx.publish(event)
        return Recorded(len(events), tuple(unknown))
