"""Limits on negotiations and transfers: open ones, new ones, changes of one, and how long one may stay idle.

Open and new processes are counted in the database: for each counterparty, and for all unknown parties together, as new
identifiers cost nothing. New pids and further instances of this connector therefore do not raise a limit. Changes are
counted in memory for each process. A request over a limit gets status 429 before anything is stored; the sender tries
again later.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from connector.dsp import states
from connector.errors import Denied, Limited, Unavailable
from connector.infra.concurrency.recent_keys import RateLimit, put_recent
from connector.store import Transaction
from connector.store.tables import Outbox
from policies.evaluation.evaluate import Facts

_MINUTE = 60.0
_DAY = 86_400.0
_OPEN_AGAIN = 30  # seconds until the next try where only the end of another process makes room
_RECORDED_MAX = 1_024
_MEMBERSHIP = "ds:membership"
# States that a negotiation reaches only after we agreed, requested, or accepted an offer.
_PARTNERS = {
    states.PROVIDER: (states.FINALIZED,),
    states.CONSUMER: (states.REQUESTED, states.ACCEPTED, states.AGREED, states.VERIFIED, states.FINALIZED),
}
_STRANGERS = ""  # the key under which all unknown parties are counted together
_CHANGING_MAX = 4_096  # processes; a party that takes turns among more changes none of them often


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Limits of one kind of process.

    open: open processes of one counterparty, in each of our roles.
    per_minute: new processes of one counterparty a minute, and the burst.
    all_open: open processes of all parties, in each of our roles, from which on unknown parties begin none.
    changes: changes of one process a minute that its counterparty causes, and the burst.
    members_offer: only members of the data space, and partners, may send unsolicited offers.
    idle, idle_stranger: seconds for which a negotiation waits for its counterparty, and for an unknown one.
    strangers_per_minute: new negotiations of all unknown parties together.
    """

    open: int = 2_000
    per_minute: int = 3_000
    all_open: int = 5_000
    changes: int = 60
    members_offer: bool = False
    idle: float = 30 * _DAY
    idle_stranger: float = 7 * _DAY
    strangers_per_minute: int = 1_000


class ProcessAdmission:
    """The limits of one kind of process: `negotiation` or `transfer`."""

    def __init__(self, kind: str, limits: ProcessLimits) -> None:
        self._kind = kind
        self._limits = limits
        self._recorded: OrderedDict[str, float] = OrderedDict()  # counterparty to the time of its last record
        self._changes = RateLimit(limits.changes, burst=limits.changes, most=_CHANGING_MAX)

    def admit_negotiation(self, tx: Transaction, counterparty: str, *, role: str, facts: Facts) -> None:
        """Count one more negotiation that any party begins. Where we are the consumer, it is an unsolicited offer.

        Raises:
            Limited: a limit is reached; nothing is counted then.
            Denied: only members may make such offers, and this party is not a member.
            Unavailable: membership is not known at present.
        """
        stranger = _is_stranger(tx, counterparty, role=role, facts=facts)
        if role == states.CONSUMER and self._limits.members_offer and stranger:
            if facts.get(_MEMBERSHIP) is None:
                raise Unavailable("your membership of the data space is not known here now; try again later")
            raise Denied(
                "expected an unsolicited offer from an active member of the data space; join it, or wait for a request",
                code="not_a_member",
            )
        self.admit(tx, counterparty, role=role, stranger=stranger)

    @property
    def shortest_patience(self) -> float:
        """Seconds for which every negotiation waits for its counterparty."""
        return min(self._limits.idle, self._limits.idle_stranger)

    def patience(self, tx: Transaction, counterparty: str, *, role: str, facts: Facts) -> float:
        """Seconds for which a negotiation waits for this counterparty, as for a member while membership is unknown."""
        known = facts.get(_MEMBERSHIP) is not None
        stranger = known and _is_stranger(tx, counterparty, role=role, facts=facts)
        return self._limits.idle_stranger if stranger else self._limits.idle

    def admit(self, tx: Transaction, counterparty: str, *, role: str, stranger: bool = False) -> None:
        """Count one more process that `counterparty` begins, or raise Limited and count nothing.

        `stranger`: it is no active member of the data space, and nothing was agreed with it. A transaction calls this
        before it locks anything else, so that two instances count one after the other.
        """
        self._count(tx, counterparty, self._limits.per_minute, whose="one participant", code="too_many_new")
        rows = tx.negotiations if self._kind == "negotiation" else tx.transfers
        if rows.count_open_with(counterparty, role=role, up_to=self._limits.open) >= self._limits.open:
            raise Limited(
                f"expected at most {self._limits.open} open {self._kind}s with one participant, and you have as many; "
                "end one, then ask again",
                code="too_many_open",
                retry_after=_OPEN_AGAIN,
            )
        if stranger:  # after the party's own row: one order of locks prevents a deadlock
            whose = "all parties that are neither members nor partners"
            self._count(tx, _STRANGERS, self._limits.strangers_per_minute, whose=whose, code="too_many_strangers")
        if stranger and rows.count_open_in(role=role, up_to=self._limits.all_open) >= self._limits.all_open:
            raise Limited(
                f"expected fewer than {self._limits.all_open} open {self._kind}s here for a party that is neither a "
                "member nor a partner, and there are as many; ask again later, or ask the operator to end some",
                code="too_many_strangers",
                retry_after=_OPEN_AGAIN,
            )

    def _count(self, tx: Transaction, key: str, per_minute: int, *, whose: str, code: str) -> None:
        wait = tx.process_counters.take(key, kind=self._kind, step=_MINUTE / per_minute, most=_MINUTE, now=tx.now)
        if wait > 0:
            raise Limited(
                f"expected at most {per_minute} new {self._kind}s a minute from {whose}, got more; ask again in "
                f"{math.ceil(wait)} s",
                code=code,
                retry_after=math.ceil(wait),
            )

    def count_change(self, process: str, now: float) -> None:
        """Count one more change of a process, or raise Limited: the inbox and the log keep each change."""
        if (wait := math.ceil(self._changes.wait_seconds(process, now))) > 0:
            raise Limited(
                f"expected at most {self._limits.changes} changes of one {self._kind} a minute, got more; try again "
                f"in {wait} s",
                code="too_many_changes",
                retry_after=wait,
            )

    def should_record(self, counterparty: str, now: float) -> bool:
        """Whether to record a refusal: one a minute for each party, as refused parties could fill our disk."""
        if now - self._recorded.get(counterparty, float("-inf")) < _MINUTE:
            return False
        put_recent(self._recorded, counterparty, now, most=_RECORDED_MAX)
        return True


def is_partner(tx: Transaction, counterparty: str, *, role: str = "") -> bool:
    """Whether we agreed something with this party or requested something from it; in our `role`, or in either."""
    roles = (role,) if role else tuple(_PARTNERS)
    return any(tx.negotiations.has_any_with(counterparty, role=ours, states=_PARTNERS[ours]) for ours in roles)


def makes_partner(row: Outbox) -> bool:
    """Whether sending this message makes its receiver a partner: it is our request, or is under an agreement."""
    return row.kind == "transfer" or row.message.get("@type") == states.REQUEST


def _is_stranger(tx: Transaction, counterparty: str, *, role: str, facts: Facts) -> bool:
    """Whether this party is no active member of the data space, and no partner in our `role`."""
    status = facts.get(_MEMBERSHIP)
    if status is not None and "active" in status.values:
        return False
    return not is_partner(tx, counterparty, role=role)
