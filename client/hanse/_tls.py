"""TLS for bulk reading: a quarter of a megabyte of ciphertext per system call, decrypted straight into Arrow's memory.

`ssl.SSLSocket` asks the kernel for every record of 16 kB; that alone costs a fifth of the speed.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from functools import lru_cache

import httpx2

_ANEW_SECONDS = 3600
_BLOCK = 256 * 1024


def trusted() -> ssl.SSLContext:
    """Whose certificates are believed: those of the system's store, or of what SSL_CERT_FILE or SSL_CERT_DIR name.

    The same for the management API and for streams, and loaded once an hour: it takes 20 ms, more than a small read,
    and a job that runs for weeks has to hear of new ones.
    """
    return _loaded(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"), time.monotonic() // _ANEW_SECONDS)


@lru_cache(maxsize=4)
def _loaded(_file: str | None, _folder: str | None, _hour: float) -> ssl.SSLContext:
    return httpx2.create_ssl_context()


class TlsSocket:
    """The part of a socket's interface that the reader needs, over TLS. Certificates are checked, always."""

    def __init__(self, plain: socket.socket, host: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusted().wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._block = memoryview(bytearray(_BLOCK))
        self._handshake()

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
            self._flush()

    def recv_into(self, view: memoryview) -> int:
        """At least one byte, as many as are there; 0 after the other side said that it is done."""
        done = 0
        while done < len(view):
            try:
                got = self._tls.read(len(view) - done, view[done:])
            except ssl.SSLWantReadError:
                if done:
                    break
                self._fill()
                continue
            except ssl.SSLZeroReturnError:
                break
            if not got:
                break
            done += int(got)
        return done

    def close(self) -> None:
        self._plain.close()

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError:
                self._flush()  # tell the other side why
                raise
            else:
                self._flush()
                return

    def _fill(self) -> None:
        got = self._plain.recv_into(self._block)
        if got:
            self._incoming.write(self._block[:got])
        else:
            self._incoming.write_eof()  # read() then tells a proper end from a cut one

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())
