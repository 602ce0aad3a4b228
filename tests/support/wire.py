"""A recording relay before a listener: every byte that leaves it is kept, so that a test can look for what must not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


def _nothing() -> None:
    """Only the connection is cut."""


class Relay:
    """Listens on a port of its own, passes everything to `target` and back, and keeps what came back."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._left = bytearray()
        self._closed = False
        self._refused = False
        self._after = -1
        self._then: Callable[[], None] = _nothing
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def left(self) -> bytes:
        """Every byte that has left the listener so far."""
        with self._lock:
            return bytes(self._left)

    def refuse(self, refused: bool) -> None:
        """Break every new connection at once, as a machine that is down would."""
        self._refused = refused

    def after(self, size: int, then: Callable[[], None]) -> None:
        """Once that many more bytes have left on one connection: do this, and cut the connection. Once."""
        self._after, self._then = size, then

    def close(self) -> None:
        self._closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                inward, _ = self._listener.accept()
            except OSError:
                return
            if self._refused:
                inward.close()
                continue
            try:
                outward = socket.create_connection(("127.0.0.1", self._target), timeout=60)
            except OSError:
                inward.close()
                continue
            outward.settimeout(None)
            threading.Thread(target=self._pump, args=(inward, outward, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(outward, inward, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, keep: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if keep:
                    with self._lock:
                        self._left += data
                sink.sendall(data)
                passed += len(data)
                if keep and 0 <= self._after < passed:
                    self._after = -1
                    self._then()
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
