"""Classes of deliveries with separate limits: members, partners, strangers, and deliveries that last for hours.

Limits count deliveries that run or wait in this process, per counterparty. Identifiers cost nothing, and agreements may
not either, so unknown counterparties are also counted by the host of their address. Knows nothing of how a message is
delivered.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple
from urllib.parse import urlsplit

from connector.infra.concurrency.fair_semaphore import FairSemaphore
from connector.store.tables import Outbox

# The values of `Outbox.circle`. KNOWN are members of the data space and our own webhooks.
KNOWN, PARTNERS, STRANGERS = "known", "partners", "strangers"
LASTING, LASTING_OTHERS = "lasting", "lasting_others"  # possibly for hours: to known counterparties, and to others
_PER_HOST = {PARTNERS: 32, STRANGERS: 16, LASTING_OTHERS: 32}  # at once; the other classes are not counted by host
_AT_ONCE = 64  # in each class
_AT_ONCE_PER_PEER = 32
# Not more than a connector like ours accepts from a sender (`dataplane.push.push_receiver`): it refuses further pushes
# whose reads have begun and were counted.
_LASTING_PER_PEER = 8
_TAKEN_UP_PER_PEER = 2 * _AT_ONCE_PER_PEER  # running or waiting; further deliveries stay in the outbox
_WAITING_MAX = 400  # in a class; counterparties have equal shares
_LEAST_SHARE = 4  # and at least this: the database query names all that have used their share, some hundreds at most
_HOST_MAX = 255


class FullClasses(NamedTuple):
    """What is not claimed at the moment: whole classes, and (class, counterparty or host) pairs."""

    circles: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()


def host_of(address: str) -> str:
    """The host of an address, without its port, as a host has many ports."""
    try:
        return (urlsplit(address).hostname or "")[:_HOST_MAX]
    except ValueError:
        return address[:_HOST_MAX]


def _names(row: Outbox) -> tuple[str, ...]:
    """The names that a delivery is counted under; turns go by the first."""
    who = row.audience or row.process
    return (row.host, who) if row.circle in _PER_HOST else (who,)


class DeliveryClasses:
    """The deliveries of this process, counted by class, counterparty and host."""

    def __init__(self) -> None:
        self._circles = {
            name: _DeliveryClass(per_host=_PER_HOST.get(name), each=each)
            for each, names in (
                (_AT_ONCE_PER_PEER, (KNOWN, PARTNERS, STRANGERS)),
                (_LASTING_PER_PEER, (LASTING, LASTING_OTHERS)),
            )
            for name in names
        }
        self._passed_over = FullClasses()

    def enter(self, row: Outbox) -> bool:
        """Count a delivery; False, and count nothing, if there is no room for it."""
        return self._circles[row.circle].enter(_names(row))

    def leave(self, row: Outbox) -> bool:
        """Count a delivery as ended; True if the outbox may now hold deliveries that there is room for."""
        circle, names = self._circles[row.circle], _names(row)
        circle.leave(names)
        if row.circle in self._passed_over.circles:
            return circle.waiting <= _WAITING_MAX // 2
        over = {name for of, name in self._passed_over.names if of == row.circle}
        return any(name in over for name in names) and circle.most(names) <= _PER_HOST.get(
            row.circle, _AT_ONCE_PER_PEER
        )

    def full(self) -> FullClasses:
        """What is not claimed at the moment; remembered for `leave`."""
        circles = tuple(name for name, circle in self._circles.items() if circle.waiting >= _WAITING_MAX)
        names = [(of, name) for of, one in self._circles.items() if of not in circles for name in one.full()]
        self._passed_over = FullClasses(circles, tuple(names))
        return self._passed_over

    def place(self, row: Outbox) -> AbstractAsyncContextManager[None]:
        """A place for a delivery, held within the block."""
        return self._circles[row.circle].places.hold(*_names(row))


class _DeliveryClass:
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
