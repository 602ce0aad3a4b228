"""How much may be begun with us: processes open at once and new ones in a time, of one counterparty and of strangers
all together, whose identifiers cost nothing; how often a process may change, and for how long one may stand still.

Counted in the database and by counterparty, so that neither fresh pids nor another instance of this connector gives
more; changes in memory, by process. What is over a limit is refused before anything is stored, with 429: a connector
like ours tries again later.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from connector.dsp import states
from connector.errors import Busy, Limited, Refused
from connector.infra.concurrency.recent_keys import RateLimit, put_recent
from connector.store import Transaction
from connector.store.tables import Outbox
from policies.evaluation.evaluate import Facts

_MINUTE = 60.0
_DAY = 86_400.0
_OPEN_AGAIN = 30  # seconds: when to ask again where only the end of another process makes room
_TOLD_MAX = 1_024
_MEMBERSHIP = "ds:membership"
# What a negotiation only comes to where we agreed, or where it was we who asked or took up what was offered.
_PARTNERS = {
    states.PROVIDER: (states.FINALIZED,),
    states.CONSUMER: (states.REQUESTED, states.ACCEPTED, states.AGREED, states.VERIFIED, states.FINALIZED),
}
_STRANGERS = ""  # all of them together, where others are counted by their identifier
_CHANGING_MAX = 4_096  # processes; who goes round more of them than that changes none of them often


@dataclass(frozen=True, slots=True)
class Limits:
    """For one counterparty: `open` processes in each of our roles, `per_minute` new ones, as many of them at once.

    `all_open` in each role, of everybody: as soon as there are as many, strangers begin none. `changes` of one process
    a minute that the counterparty brings about, as many of them at once. `members_offer`: only members of the data
    space, and partners, make us offers that we did not ask for. `strangers_per_minute`: new negotiations of all
    strangers together. `idle`: seconds for which a negotiation waits for its counterparty, and for one that is known to
    be a stranger.
    """

    open: int = 2_000
    per_minute: int = 3_000
    all_open: int = 5_000
    changes: int = 60
    members_offer: bool = False
    idle: float = 30 * _DAY
    idle_stranger: float = 7 * _DAY
    strangers_per_minute: int = 1_000


class Admission:
    """The limits of one kind of process: `negotiation` or `transfer`."""

    def __init__(self, kind: str, limits: Limits) -> None:
        self._kind = kind
        self._limits = limits
        self._told: OrderedDict[str, float] = OrderedDict()
        self._changes = RateLimit(limits.changes, burst=limits.changes, most=_CHANGING_MAX)

    def admit_negotiation(self, tx: Transaction, counterparty: str, *, role: str, facts: Facts) -> None:
        """As `admit`, for anybody. Where we are the consumer it is an offer that we did not ask for: Refused where it
        is not for this party to make one, Busy where that is not known now."""
        stranger = _stranger(tx, counterparty, role=role, facts=facts)
        if role == states.CONSUMER and self._limits.members_offer and stranger:
            if facts.get(_MEMBERSHIP) is None:
                raise Busy("whether you are a member of the data space is not known here now; try again later")
            raise Refused(
                "expected an offer that nobody asked for from an active member of the data space; join it, or wait to "
                "be asked",
                code="not_a_member",
            )
        self.admit(tx, counterparty, role=role, stranger=stranger)

    @property
    def least_patience(self) -> float:
        """For how many seconds every negotiation waits for its counterparty."""
        return min(self._limits.idle, self._limits.idle_stranger)

    def patience(self, tx: Transaction, counterparty: str, *, role: str, facts: Facts) -> float:
        """For how many seconds a negotiation waits for this counterparty; where its membership is not known now, as
        for a member."""
        known = facts.get(_MEMBERSHIP) is not None
        stranger = known and _stranger(tx, counterparty, role=role, facts=facts)
        return self._limits.idle_stranger if stranger else self._limits.idle

    def admit(self, tx: Transaction, counterparty: str, *, role: str, stranger: bool = False) -> None:
        """Count one more process that `counterparty` begins, or raise Limited; then nothing is counted.

        `stranger`: the member register does not vouch for it, and nothing was agreed with it.
        The first thing that a transaction locks: what two instances admit at the same time is counted one by one.
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
        if stranger:  # after its own row, so that two who begin at once never wait for each other
            whose = "all who are no members and have no agreement with us"
            self._count(tx, _STRANGERS, self._limits.strangers_per_minute, whose=whose, code="too_many_strangers")
        if stranger and rows.count_open_in(role=role, up_to=self._limits.all_open) >= self._limits.all_open:
            raise Limited(
                f"{self._limits.all_open} {self._kind}s are open here, as many as may be while somebody begins one who "
                "is no member and has no agreement with us; ask again later, or have the operator end some",
                code="too_many_strangers",
                retry_after=_OPEN_AGAIN,
            )

    def _count(self, tx: Transaction, who: str, per_minute: int, *, whose: str, code: str) -> None:
        wait = tx.process_counters.take(who, kind=self._kind, step=_MINUTE / per_minute, most=_MINUTE, now=tx.now)
        if wait > 0:
            raise Limited(
                f"expected at most {per_minute} new {self._kind}s a minute from {whose}, came more; ask again in "
                f"{math.ceil(wait)} s",
                code=code,
                retry_after=math.ceil(wait),
            )

    def change(self, process: str, now: float) -> None:
        """Count one more change of a process, or raise Limited: each is kept, in the inbox and in the log."""
        if (wait := math.ceil(self._changes.wait_seconds(process, now))) > 0:
            raise Limited(
                f"expected at most {self._limits.changes} changes of one {self._kind} a minute, came more; try again "
                f"in {wait} s",
                code="too_many_changes",
                retry_after=wait,
            )

    def worth_telling(self, counterparty: str, now: float) -> bool:
        """Whether the log should have this refusal: one a minute, or who is refused could fill our disk with it."""
        if now - self._told.get(counterparty, float("-inf")) < _MINUTE:
            return False
        put_recent(self._told, counterparty, now, most=_TOLD_MAX)
        return True


def partner(tx: Transaction, counterparty: str, *, role: str = "") -> bool:
    """Whether something was agreed with it, or it was we who asked; in this role of ours, or in either."""
    roles = (role,) if role else tuple(_PARTNERS)
    return any(tx.negotiations.has_any_with(counterparty, role=one, states=_PARTNERS[one]) for one in roles)


def asked(row: Outbox) -> bool:
    """Whether this message itself makes its receiver a partner: it is we who ask, or it is under an agreement."""
    return row.kind == "transfer" or row.message.get("@type") == states.REQUEST


def _stranger(tx: Transaction, counterparty: str, *, role: str, facts: Facts) -> bool:
    """Whether the member register does not vouch for it, and it is no partner in this role of ours."""
    status = facts.get(_MEMBERSHIP)
    if status is not None and "active" in status.values:
        return False
    return not partner(tx, counterparty, role=role)
