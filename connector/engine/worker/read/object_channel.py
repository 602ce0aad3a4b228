"""A worker's end of the socket over which it borrows blocks of objects (`query.lending` is the other)."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(slots=True)
class Desk:
    """Where a job borrows its objects, of whichever relation. Who asks has its `turn` until all answers are there: they
    come in the order of the requests, and say not whose they are."""

    socket: socket.socket
    turn: threading.Lock = field(default_factory=threading.Lock)
    fault: Exception | None = None

    def end(self, fault: Exception) -> None:
        """Nothing more is borrowed: answers that nobody took would be those of whoever asks next."""
        self.fault = self.fault or fault
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
