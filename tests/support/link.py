"""A relay before a listener that breaks connections on request, passes nothing on, or changes what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path


class Link:
    """A relay that can cut connections: those that are open now, or each one after so many bytes.

    `to` is a port of this machine, or a socket that is a file.
    """

    def __init__(self, to: int | Path) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.cut_after: int | Callable[[], int | None] | None = (
            None  # bytes to the reader, for each connection from now
        )
        self.alter: Callable[[bytes], bytes] = bytes  # what passes, either way
        self.cuts = self.connections = 0
        self._open: set[socket.socket] = set()
        self._flows = [_set()]  # for connections from now on the last one, for those that are open an earlier one
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self.resume()
        self.drop()

    def hang(self) -> None:
        """From now on nothing passes, either way; connections are kept, and taken."""
        self._flows[-1].clear()

    def resume(self) -> None:
        """All passes again, also what was held back."""
        for flows in self._flows:
            flows.set()

    def renew(self) -> None:
        """New connections are as ever; over those that are open nothing will pass any more."""
        self._flows.append(_set())

    def drop(self) -> int:
        """Cut what is open now; how many ends that were."""
        ends = tuple(self._open)
        for one in ends:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        return len(ends)

    def _accept(self) -> None:
        while True:
            try:
                inward, _ = self._listener.accept()
            except OSError:
                return
            try:
                outward = self._outward()
            except OSError:  # nobody is there just now: the caller sees a connection that breaks
                inward.close()
                continue
            outward.settimeout(None)
            self.connections += 1
            self._open |= {inward, outward}
            most = self.cut_after() if callable(self.cut_after) else self.cut_after
            threading.Thread(target=self._pump, args=(inward, outward, None, self._flows[-1]), daemon=True).start()
            threading.Thread(target=self._pump, args=(outward, inward, most, self._flows[-1]), daemon=True).start()

    def _outward(self) -> socket.socket:
        if isinstance(self._to, int):
            return socket.create_connection(("127.0.0.1", self._to), timeout=60)
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(self._to))
        return made

    def _pump(self, source: socket.socket, sink: socket.socket, most: int | None, flows: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                flows.wait()
                passes = data[:most]
                sink.sendall(self.alter(passes))
                if most is not None and (most := most - len(passes)) == 0 and len(passes) < len(data):
                    self.cuts += 1
                    break
        flows.wait()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open -= {source, sink}


def _set() -> threading.Event:
    made = threading.Event()
    made.set()
    return made
