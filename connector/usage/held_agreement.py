"""Values of an admitted read: the compiled agreement and the grant. No database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from connector.datasets import rounded_counts
from connector.errors import ConnectorError, Denied, Unavailable, Withdrawn
from connector.store.tables import Agreement, DatasetVersion, RegisteredDataset
from policies.contracts.batch_gate import Lease
from policies.contracts.contract import DataContract
from policies.evaluation.evaluate import Facts
from policies.model import Policy

REVOKED, EXPIRED = "revoked", "lease_expired"  # ends: by the owner; and one that a reader may continue after
NOT_STARTED = "transfer_not_started"  # code of refusals under a transfer that is not started


@dataclass(frozen=True, slots=True)
class CompiledAgreement:
    """An agreement at its provider: the rows, the policy, and a contract per permission.

    `passed_on`: the permissions (`/permission/0`) whose rows and columns the party may distribute by its current facts;
    only `Grants.load_usable` fills it.
    """

    agreement: Agreement
    dataset: RegisteredDataset
    version: DatasetVersion
    policy: Policy
    contracts: tuple[DataContract, ...]
    passed_on: frozenset[str] = frozenset()


class EndReason(NamedTuple):
    """How a transfer ended: its state, the side that ended it, and its reason.

    `by` is "provider", "consumer", or another text if it ended by itself or that is unknown.
    """

    state: str
    by: str = ""
    reason: str = ""

    @property
    def sentence(self) -> str:
        state, who = self.state.lower(), {"provider": "the owner", "consumer": "the consumer"}.get(self.by)
        summary = f"{who} {state} the transfer" if who else f"the transfer is {state}"
        return f"{summary}: {self.reason}" if self.reason and self.reason.lower() != state else summary


@dataclass(slots=True, eq=False)
class ReadGrant:
    """The grant of an admitted read. The gate checks `lease` before each batch; `Grants.end` settles it.

    `drawn`: how often the query uses all rows of the dataset at once (`PreparedQuery.row_multiplicity`). A row quota
    then counts all rows that often, as a single row of the answer may contain all of them.
    """

    held: CompiledAgreement
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
    day: int = 0  # the day (since the epoch) that its use was counted on
    served: bool = False  # whether a worker has run its read
    place: str = ""  # the read's id, if the agreement limits reads at once
    ended: ConnectorError | None = None  # why it was stopped; see `stop`
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
        """Rows that count as used whatever the answer contains; see `drawn`."""
        if not self.drawn:
            return 0
        rows = int(self.held.version.profile["rows"])
        # Rounded up: a refusal must not reveal the number of hidden rows, and no answer may cost too little.
        return self.drawn * (rows if self.contract.row_filter is None else rounded_counts.at_most(rows))

    def take(self, rows: int, nbytes: int) -> None:
        """Add reserved quota to what the read may still send; 0 for a quota that is not limited."""
        if rows:
            self.lease.rows = rows + (self.lease.rows if self.reserved_rows else 0)
        if nbytes:
            self.lease.bytes = nbytes + (self.lease.bytes if self.reserved_bytes else 0)
        self.reserved_rows += rows
        self.reserved_bytes += nbytes

    def revoke(self, reason: str) -> None:
        """End the read because its owner revoked the agreement."""
        rule, agreement = self.contract.permission, self.agreement_id
        self.stop(Denied(reason, code=REVOKED, rule=rule, agreement=agreement))

    def over(self, how: EndReason) -> None:
        """End the read because its transfer has ended; an end by the owner counts as a revocation."""
        if how.by == "provider":
            self.revoke(how.sentence)
            return
        kind = Withdrawn if how.by == "consumer" else Denied
        self.stop(kind(how.sentence, code=NOT_STARTED, agreement=self.agreement_id))

    def stop(self, why: ConnectorError) -> None:
        """End the read at its next batch and wake the task that waits for it. The most important reason is kept."""
        if self.ended is None or _weight(self.ended) < _weight(why):
            self.ended = why
        self.lease.revoked = True
        self.stopped.set()


def ended_by(grants: Iterable[ReadGrant]) -> ConnectorError | None:
    """The most important reason why a read under these grants was stopped; None if it was not."""
    return max((grant.ended for grant in grants if grant.ended is not None), key=_weight, default=None)


def _weight(why: ConnectorError) -> int:
    """The importance of an end: revocation, then other ends, then ends after which another read may continue."""
    if isinstance(why, Unavailable):
        return 0
    return {EXPIRED: 1, REVOKED: 3}.get(why.code, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest:
    """A request to admit a read of at most `longest` seconds by its ticket and `seconds` by its own wish."""

    agreement_id: str
    consumer: str
    transfer_id: str
    generation: int
    action: str
    purpose: str
    longest: float
    seconds: float = math.inf
    application: str = ""


class UsageCounters(NamedTuple):
    """The provider's own counters of an agreement at a moment, also as facts."""

    facts: Facts
    uses: int
    today: int
    rows: int
    bytes: int
