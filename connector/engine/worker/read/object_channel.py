"""The worker's end of the socket over which it borrows blocks of objects; `object_lender` is the other end."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(slots=True)
class ObjectChannel:
    """The channel over which a job borrows blocks of its objects, whatever the relation.

    A reader holds `turn` until all answers have come: they come in the order of the requests and do not name their
    request.
    """

    socket: socket.socket
    turn: threading.Lock = field(default_factory=threading.Lock)
    fault: Exception | None = None

    def end(self, fault: Exception) -> None:
        """Borrow nothing more after a fault: unread answers would reach the next reader."""
        self.fault = self.fault or fault
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
