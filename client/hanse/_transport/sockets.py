"""Sockets for bulk reading in large portions: plain, and TLS, which is decrypted straight into Arrow's memory.

A reader that wakes for every few packets takes twice the processor time, and so does a sender on the same machine.
`ssl.SSLSocket` asks the kernel for every record of 16 kB; that alone costs a fifth of the speed.
"""

from __future__ import annotations

import math
import os
import socket
import ssl
import sys
import time
from contextlib import suppress
from functools import lru_cache

import httpx2

from hanse.errors import BadInput, Unreachable

_RELOAD_SECONDS = 3600
_BLOCK_BYTES = 256 * 1024  # of ciphertext: it stays in the processor's cache until it is decrypted
_RECORD_BYTES = 17 * 1024  # received bytes that OpenSSL may hold back, as part of a record
_PORTION_BYTES = 2**20
_GATHER_SECONDS = 1.0
SLOWEST = 4 * 2**10  # bytes a second once an answer has begun: a slower one counts as silent (decision 37)


def load_trust() -> ssl.SSLContext:
    """Return the certificates that are trusted: the system's store, or the files of SSL_CERT_FILE or SSL_CERT_DIR.

    The management API and streams share it. It is reloaded once an hour, because a job that runs for weeks needs new
    certificates; loading takes 20 ms, more than a small read.
    """
    return _load(*_configured_paths(), time.monotonic() // _RELOAD_SECONDS)[0]


def is_trust_renewed(before: ssl.SSLContext) -> bool:
    """Return whether `load_trust` now differs from `before`, which rejected a certificate.

    It differs if the file of SSL_CERT_FILE has changed: its authority may have been is_trust_renewed while a job runs.
    """
    if _version(*_configured_paths()) != _load(*_configured_paths(), time.monotonic() // _RELOAD_SECONDS)[1]:
        _load.cache_clear()
    return load_trust() is not before  # another thread may have reloaded it first


def _configured_paths() -> tuple[str | None, str | None]:
    return os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")


def _version(file: str | None, folder: str | None) -> tuple[int, ...]:
    """Return a value that changes when a file, or a folder's content, is replaced."""
    try:
        status = os.stat(file or folder or "")
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _load(file: str | None, folder: str | None, _hour: float) -> tuple[ssl.SSLContext, tuple[int, ...]]:
    """Return the trusted certificates, and the version of their file, taken before it is read."""
    version = _version(file, folder)
    return _read(file, folder), version


def _read(file: str | None, folder: str | None) -> ssl.SSLContext:
    if not (file or folder):
        return httpx2.create_ssl_context()
    try:  # as httpx2 does, without its transport, which takes another 20 ms to load
        return ssl.create_default_context(cafile=file or None, capath=None if file else folder)
    except OSError as error:
        name, given = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", folder)
        why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise BadInput(f"expected certificates at {given}, which {name} names; cannot use it: {why}") from error


def untrusted_error(where: str, error: ssl.SSLCertVerificationError) -> Unreachable:
    """Return the error for a rejected certificate. It is not retried: waiting does not mend a certificate."""
    why = str(error.verify_message).rstrip(".")
    return Unreachable(
        f"no trusted connection to {where}: its certificate is rejected ({why}); expected a valid one for this name, "
        "from an authority that this machine trusts. Ask its operator, or, if it has its own authority, name that "
        "authority's certificate in SSL_CERT_FILE",
        code="certificate_untrusted",
    )


def check_process(process: int) -> None:
    """Refuse a process that was forked after reading began: its parent keeps the sockets and the threads.

    Raises:
        BadInput: this is another process than `process`.
    """
    if os.getpid() != process:
        raise BadInput(
            f"expected a read in process {process}, which opened the stream, got one in a forked process: create the "
            "iterator or the stream in the process that reads it, such as a DataLoader's worker"
        )


class Plain:
    """A connected socket. Sleeps until a large portion has arrived, if it knows that it will."""

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        """`seconds`: the longest silence that is tolerated."""
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._seconds = connected, seconds
        self._process = os.getpid()
        self._wakes_at = 1
        self.begin()

    def set_silence(self, seconds: float) -> None:
        """Set the longest silence that is tolerated from now on."""
        self._seconds = seconds

    def begin(self) -> None:
        """Start to wait for a new answer. Once its first byte has arrived, fewer than `SLOWEST` bytes a second on
        average count as silence."""
        self._begun = False
        self._waited, self._came = 0.0, 0
        self._until = math.inf

    def begin_short(self) -> None:
        """Start to read something short: all of it must arrive within the longest silence."""
        self.begin()
        self._until = time.monotonic() + self._seconds

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self._seconds)
        self._socket.sendall(data)

    def receive(self, view: memoryview, coming: int = 1) -> int:
        """Read at least one byte into `view`; return their number, 0 at the end.

        `coming`: bytes that are certainly on their way; they are waited for, a second at most.

        Raises:
            TimeoutError: the silence was too long.
        """
        since = time.monotonic()
        if (seconds := min(self._seconds - self._waited, self._until - since)) <= 0:
            raise TimeoutError
        got = self._gather(view, min(coming, len(view), _PORTION_BYTES), seconds)
        if self._begun:
            self._waited += time.monotonic() - since  # only here: the time between two calls is the caller's
        self._begun, self._came = True, self._came + got
        if self._came >= SLOWEST * self._seconds:
            self._waited, self._came = 0.0, 0
        elif got and self._waited >= self._seconds:
            raise TimeoutError
        return got

    def close(self) -> None:
        """Close the socket, and wake another thread that waits for it."""
        if os.getpid() == self._process:  # a forked process closes its own descriptor only
            with suppress(OSError):  # the other side may have left
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _gather(self, view: memoryview, wanted: int, seconds: float) -> int:
        if wanted == 1 or sys.platform != "linux":  # other systems may wait for more than their buffer holds
            return self._receive_at_least(view, 1, seconds)
        gather = min(_GATHER_SECONDS, seconds / 2)
        try:
            return self._receive_at_least(view, wanted, gather)
        except TimeoutError:
            return self._receive_at_least(view, 1, seconds - gather)

    def _receive_at_least(self, view: memoryview, least: int, seconds: float) -> int:
        if least != self._wakes_at:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._wakes_at = least
        self._socket.settimeout(seconds)
        return self._socket.recv_into(view)


class Tls:
    """A `Plain` socket with TLS. Certificates are always verified."""

    def __init__(self, plain: Plain, host: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = load_trust().wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._block = memoryview(bytearray(_BLOCK_BYTES))
        self._handshake()

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
            self._flush()

    def set_silence(self, seconds: float) -> None:
        self._plain.set_silence(seconds)

    def begin(self) -> None:
        self._plain.begin()

    def begin_short(self) -> None:
        self._plain.begin_short()

    def receive(self, view: memoryview, coming: int = 1) -> int:
        """Read at least `coming` bytes, more if they have arrived; fewer after the other side has closed."""
        read, size, done = self._tls.read, len(view), 0
        while True:
            try:
                while done < size and (got := read(size - done, view[done:])):
                    done += int(got)
            except ssl.SSLWantReadError:
                if done < coming:
                    self._fill(coming - done - _RECORD_BYTES)
                    continue
            except ssl.SSLZeroReturnError:
                pass
            return done

    def close(self) -> None:
        self._plain.close()

    def _handshake(self) -> None:
        self._plain.begin_short()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._fill(1)
            except ssl.SSLError:
                with suppress(OSError):  # the other side may have closed; the first error is the one to raise
                    self._flush()  # sends the alert
                raise
            else:
                self._flush()
                self._plain.begin()
                return

    def _fill(self, coming: int) -> None:
        self._flush()  # answer a key update between records before waiting for more
        got = self._plain.receive(self._block, max(coming, 1))
        if got:
            self._incoming.write(self._block[:got])
        else:
            self._incoming.write_eof()  # read() then tells a proper close from a truncated stream

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())
