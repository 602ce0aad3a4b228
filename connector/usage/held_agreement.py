"""What a read has under an agreement: the agreement as it is held, and the read's own grant. Values; no database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from connector.datasets import rounded_counts
from connector.errors import Busy, HanseError, Refused, Withdrawn
from connector.store.tables import Agreement, DatasetVersion, RegisteredDataset
from policies.contracts.batch_gate import Lease
from policies.contracts.contract import DataContract
from policies.evaluation.evaluate import Facts
from policies.model import Policy

REVOKED, EXPIRED = "revoked", "lease_expired"  # codes of an end: by its owner, and one after which a read may go on
NOT_STARTED = "transfer_not_started"  # of the refusals of what is asked under a transfer that does not run


@dataclass(frozen=True, slots=True)
class Held:
    """An agreement as the provider holds it: the rows, the policy, and one contract per permission.

    `passed_on`: the permissions (`/permission/0`) whose rows and columns the party may distribute as its facts are now;
    none where nobody has asked (`grants.usable` does).
    """

    agreement: Agreement
    dataset: RegisteredDataset
    version: DatasetVersion
    policy: Policy
    contracts: tuple[DataContract, ...]
    passed_on: frozenset[str] = frozenset()


class Over(NamedTuple):
    """How a transfer came to run no more: its state, and who had it so ("provider", "consumer"), with the reason given;
    of one that ended by itself, or where nobody knows, who is anything else."""

    state: str
    by: str = ""
    reason: str = ""

    @property
    def sentence(self) -> str:
        state, who = self.state.lower(), {"provider": "the owner", "consumer": "the consumer"}.get(self.by)
        told = f"{who} {state} the transfer" if who else f"the transfer is {state}"
        return f"{told}: {self.reason}" if self.reason and self.reason.lower() != state else told


@dataclass(slots=True, eq=False)
class Grant:
    """One admitted read. `lease` is what the gate checks before each batch; `close` settles it.

    `drawn`: how often the question draws on all rows of the dataset at once (`PreparedQuery.row_multiplicity`). Where
    rows are counted, that many are, as if they had left: one row of the answer may carry all of them.
    """

    held: Held
    contract: DataContract
    consumer: str
    transfer_id: str
    action: str
    purpose: str
    application: str
    lease: Lease
    asked_until: float = math.inf  # a reading of the lease's clock: when the time ends that the read asked for itself
    reserved_rows: int = 0
    reserved_bytes: int = 0
    drawn: int = 0
    day: int = 0  # that its use was counted on
    served: bool = False  # whether a worker has had its read
    place: str = ""  # the read's id, where its agreement limits how many run at once
    ended: HanseError | None = None  # why it was stopped, as `stop` has weighed it
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def agreement_id(self) -> str:
        return self.held.agreement.id

    @property
    def is_late(self) -> bool:
        """Whether the time has ended that the read asked for itself, and nothing that it rests on did so before."""
        return self.lease.clock() >= self.lease.deadline >= self.asked_until

    def extend(self, seconds: float) -> None:
        """Let the read go on this long from now, within the time that it asked for itself."""
        self.lease.deadline = min(self.lease.clock() + seconds, self.asked_until)

    @property
    def packed(self) -> int:
        """Rows that are used whatever the answer has."""
        if not self.drawn:
            return 0
        rows = int(self.held.version.profile["rows"])
        # Upwards: a refusal for want of quota must not tell how many rows are hidden, and nothing be had for less.
        return self.drawn * (rows if self.contract.row_filter is None else rounded_counts.at_most(rows))

    def take(self, rows: int, nbytes: int) -> None:
        """Quota that was reserved for this read, onto what it may still send; nothing where none is counted."""
        if rows:
            self.lease.rows = rows + (self.lease.rows if self.reserved_rows else 0)
        if nbytes:
            self.lease.bytes = nbytes + (self.lease.bytes if self.reserved_bytes else 0)
        self.reserved_rows += rows
        self.reserved_bytes += nbytes

    def revoke(self, reason: str) -> None:
        """End the read: its owner has taken the right away."""
        rule, agreement = self.contract.permission, self.agreement_id
        self.stop(Refused(reason, code=REVOKED, rule=rule, agreement=agreement))

    def over(self, how: Over) -> None:
        """End the read: its transfer does not run any more. As revoked where its owner did that, and otherwise as what
        the next read is told."""
        if how.by == "provider":
            self.revoke(how.sentence)
            return
        kind = Withdrawn if how.by == "consumer" else Refused
        self.stop(kind(how.sentence, code=NOT_STARTED, agreement=self.agreement_id))

    def stop(self, why: HanseError) -> None:
        """End the read at its next batch, and wake whoever waits for the batch. Of several reasons the weightiest
        counts."""
        if self.ended is None or _weight(self.ended) < _weight(why):
            self.ended = why
        self.lease.revoked = True
        self.stopped.set()


def ended_by(grants: Iterable[Grant]) -> HanseError | None:
    """Why a read under these grants was stopped, if it was: the weightiest reason."""
    return max((grant.ended for grant in grants if grant.ended is not None), key=_weight, default=None)


def _weight(why: HanseError) -> int:
    """What the owner did outweighs any other end of a right, and that outweighs what passes: after the end of one
    permission of several, and even more where we are busy, another read may go on."""
    if isinstance(why, Busy):
        return 0
    return {EXPIRED: 1, REVOKED: 3}.get(why.code, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One read that asks to be admitted, for at most `longest` seconds by its ticket and `seconds` by its own wish."""

    agreement_id: str
    consumer: str
    transfer_id: str
    generation: int
    action: str
    purpose: str
    longest: float
    seconds: float = math.inf
    application: str = ""


class Own(NamedTuple):
    """What the provider knows itself of an agreement at one moment, as facts and as counters."""

    facts: Facts
    uses: int
    today: int
    rows: int
    bytes: int
