"""Who waits together: what is under way or waits for a place in this process, in circles that take nothing from each
other. Knows nothing of how a message is delivered.

Identifiers cost nothing, and an agreement may not either: all but those that are known are counted by the host of their
address as well, and take turns by that.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple
from urllib.parse import urlsplit

from connector.infra.concurrency.fair_semaphore import FairSemaphore
from connector.store.tables import Outbox

# `Outbox.circle` holds one of these. Known are members of the data space and our own webhooks.
KNOWN, PARTNERS, STRANGERS = "known", "partners", "strangers"
LASTING, LASTING_OTHERS = "lasting", "lasting_others"  # for hours, perhaps: to those that are known, and to others
_PER_HOST = {PARTNERS: 32, STRANGERS: 16, LASTING_OTHERS: 32}  # at once; the others are not counted by host
_AT_ONCE = 64  # in each circle
_AT_ONCE_PER_PEER = 32
# No more than a connector like ours takes of one (`dataplane.receiving`): what is pushed beyond that is refused, though
# its read has begun and is counted.
_LASTING_PER_PEER = 8
_TAKEN_UP_PER_PEER = 2 * _AT_ONCE_PER_PEER  # under way or waiting for a place; what is over that stays in the outbox
_WAITING_MAX = 400  # of one circle; within it everybody has an equal share
_LEAST_SHARE = 4  # and no less than this: whoever has had its share is named to the database, which bears some hundreds
_HOST_MAX = 255


class Full(NamedTuple):
    """What is not taken up now: whole circles, and within a circle whom or what host so much waits here for."""

    circles: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()


def host_of(address: str) -> str:
    """The host of an address, without its port: of those one host has many."""
    try:
        return (urlsplit(address).hostname or "")[:_HOST_MAX]
    except ValueError:
        return address[:_HOST_MAX]


def _names(row: Outbox) -> tuple[str, ...]:
    """What a delivery is counted by; whose turn it is goes by the first of them."""
    who = row.audience or row.process
    return (row.host, who) if row.circle in _PER_HOST else (who,)


class Circles:
    def __init__(self) -> None:
        self._circles = {
            name: _Circle(per_host=_PER_HOST.get(name), each=each)
            for each, names in (
                (_AT_ONCE_PER_PEER, (KNOWN, PARTNERS, STRANGERS)),
                (_LASTING_PER_PEER, (LASTING, LASTING_OTHERS)),
            )
            for name in names
        }
        self._passed_over = Full()

    def enter(self, row: Outbox) -> bool:
        """Count one more. False where there is no room for it here: then nothing is counted."""
        return self._circles[row.circle].enter(_names(row))

    def leave(self, row: Outbox) -> bool:
        """It has ended. Whether the outbox may have what was passed over for its sake, and is to be looked at."""
        circle, names = self._circles[row.circle], _names(row)
        circle.leave(names)
        if row.circle in self._passed_over.circles:
            return circle.waiting <= _WAITING_MAX // 2
        over = {name for of, name in self._passed_over.names if of == row.circle}
        return any(name in over for name in names) and circle.most(names) <= _PER_HOST.get(
            row.circle, _AT_ONCE_PER_PEER
        )

    def full(self) -> Full:
        """What is not to be taken up now; remembered for `leave`."""
        circles = tuple(name for name, circle in self._circles.items() if circle.waiting >= _WAITING_MAX)
        names = [(of, name) for of, one in self._circles.items() if of not in circles for name in one.full()]
        self._passed_over = Full(circles, tuple(names))
        return self._passed_over

    def place(self, row: Outbox) -> AbstractAsyncContextManager[None]:
        return self._circles[row.circle].places.hold(*_names(row))


class _Circle:
    def __init__(self, *, per_host: int | None, each: int) -> None:
        self.waiting = 0
        self.places = FairSemaphore(_AT_ONCE, each=each, first=per_host)
        self._by: tuple[Counter[str], Counter[str]] = (Counter(), Counter())  # in the order of the names

    def enter(self, names: tuple[str, ...]) -> bool:
        of = list(zip(self._by, names, strict=False))
        if self.waiting >= _WAITING_MAX or any(by[name] >= _share(by) for by, name in of):
            return False
        self.waiting += 1
        for by, name in of:
            by[name] += 1
        return True

    def leave(self, names: tuple[str, ...]) -> None:
        self.waiting -= 1
        for by, name in zip(self._by, names, strict=False):
            by[name] -= 1
            if not by[name]:
                del by[name]

    def most(self, names: tuple[str, ...]) -> int:
        return max(by[name] for by, name in zip(self._by, names, strict=False))

    def full(self) -> list[str]:
        return [name for by in self._by for name, count in by.items() if count >= min(_TAKEN_UP_PER_PEER, _share(by))]


def _share(by: Counter[str]) -> int:
    return max(_LEAST_SHARE, _WAITING_MAX // (len(by) + 1))
