"""A relay before a listener that breaks connections when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class Link:
    """A relay that can cut connections: those that are open now, or each one after so many bytes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.cut_after: int | Callable[[], int | None] | None = (
            None  # bytes to the reader, for each connection from now
        )
        self.cuts = self.connections = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self.drop()

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
                outward = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            except OSError:  # nobody is there just now: the caller sees a connection that breaks
                inward.close()
                continue
            outward.settimeout(None)
            self.connections += 1
            self._open |= {inward, outward}
            most = self.cut_after() if callable(self.cut_after) else self.cut_after
            threading.Thread(target=self._pump, args=(inward, outward, None), daemon=True).start()
            threading.Thread(target=self._pump, args=(outward, inward, most), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if most is not None and (most := most - len(data)) < 0:
                    self.cuts += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open -= {source, sink}
