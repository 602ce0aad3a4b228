"""How much one counterparty may begin with us: processes open at once, and new ones in a time.

Counted in the database and by counterparty, so that neither fresh pids nor another instance of this connector gives
more. What is over the limit is refused before anything is stored, with 429: a connector like ours tries again later.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from connector.errors import Limited
from connector.store import Transaction

_MINUTE = 60.0
_OPEN_AGAIN = 30  # seconds: when to ask again where only the end of another process makes room
_TOLD_MAX = 1_024


@dataclass(frozen=True, slots=True)
class Limits:
    """For one counterparty: `open` processes in each of our roles, `per_minute` new ones, as many of them at once."""

    open: int = 2_000
    per_minute: int = 3_000


class Admission:
    """The limits of one kind of process: `negotiation` or `transfer`."""

    def __init__(self, kind: str, limits: Limits) -> None:
        self._kind = kind
        self._limits = limits
        self._told: OrderedDict[str, float] = OrderedDict()

    def admit(self, tx: Transaction, counterparty: str, *, role: str) -> None:
        """Count one more process that `counterparty` begins, or raise Limited; then nothing is counted.

        The first thing that a transaction locks: what two instances admit at the same time is counted one by one.
        """
        step = _MINUTE / self._limits.per_minute
        wait = tx.admissions.take(counterparty, kind=self._kind, step=step, most=_MINUTE, now=tx.now)
        if wait > 0:
            raise Limited(
                f"expected at most {self._limits.per_minute} new {self._kind}s a minute from one participant, came "
                f"more; ask again in {math.ceil(wait)} s",
                code="too_many_new",
                retry_after=math.ceil(wait),
            )
        rows = tx.negotiations if self._kind == "negotiation" else tx.transfers
        if rows.open_with(counterparty, role=role, up_to=self._limits.open) >= self._limits.open:
            raise Limited(
                f"expected at most {self._limits.open} open {self._kind}s with one participant, and you have as many; "
                "end one, then ask again",
                code="too_many_open",
                retry_after=_OPEN_AGAIN,
            )

    def worth_telling(self, counterparty: str, now: float) -> bool:
        """Whether the log should have this refusal: one a minute, or who is refused could fill our disk with it."""
        if now - self._told.get(counterparty, float("-inf")) < _MINUTE:
            return False
        self._told[counterparty] = now
        self._told.move_to_end(counterparty)
        while len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)
        return True
