"""Sockets for bulk reading, in large helpings: plain, and over TLS, decrypted straight into Arrow's memory.

A reader that is woken for every few packets takes twice the processor time, and so does whoever sends to it on the same
machine. `ssl.SSLSocket` asks the kernel for every record of 16 kB; that alone costs a fifth of the speed.
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

_ANEW_SECONDS = 3600
_BLOCK = 256 * 1024  # of ciphertext: it stays in the processor's cache until it is decrypted
_RECORD = 17 * 1024  # so much of what came may lie in OpenSSL, as a part of a record
_HELPING = 2**20
_GATHER_SECONDS = 1.0
SLOWEST = 4 * 2**10  # bytes a second of what has begun to come: less is as nothing (decision 37)


def trusted() -> ssl.SSLContext:
    """Whose certificates are believed: those of the system's store, or of what SSL_CERT_FILE or SSL_CERT_DIR name.

    The same for the management API and for streams, and loaded once an hour: it takes 20 ms, more than a small read,
    and a job that runs for weeks has to hear of new ones.
    """
    return _loaded(*_named(), time.monotonic() // _ANEW_SECONDS)[0]


def renewed(before: ssl.SSLContext) -> bool:
    """Whether `trusted` is another by now than the one before, which did not believe a certificate.

    So it is where what SSL_CERT_FILE names has changed since: its authority may have been renewed while a job runs.
    """
    if _version(*_named()) != _loaded(*_named(), time.monotonic() // _ANEW_SECONDS)[1]:
        _loaded.cache_clear()
    return trusted() is not before  # another thread may have asked first


def _named() -> tuple[str | None, str | None]:
    return os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")


def _version(file: str | None, folder: str | None) -> tuple[int, ...]:
    """What is another number once a file, or what is in a folder, has been replaced."""
    try:
        found = os.stat(file or folder or "")
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)
def _loaded(file: str | None, folder: str | None, _hour: float) -> tuple[ssl.SSLContext, tuple[int, ...]]:
    """What is believed, and the version of what says so, looked at before that is read."""
    version = _version(file, folder)
    return _read(file, folder), version


def _read(file: str | None, folder: str | None) -> ssl.SSLContext:
    if not (file or folder):
        return httpx2.create_ssl_context()
    try:  # as httpx2 does, without loading what carries its requests: 20 ms again
        return ssl.create_default_context(cafile=file or None, capath=None if file else folder)
    except OSError as error:
        name, given = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", folder)
        why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise BadInput(f"expected certificates where {name} says, {given}; it cannot be used: {why}") from error


def untrusted(where: str, error: ssl.SSLCertVerificationError) -> Unreachable:
    """A certificate that is not believed: said at once, as none becomes good by waiting."""
    why = str(error.verify_message).rstrip(".")
    return Unreachable(
        f"no trusted connection to {where}: its certificate is not believed ({why}); expected one for this name and "
        "time, from an authority that this machine knows. Ask whoever runs it, or, where it has an authority of its "
        "own, name that one's certificate in SSL_CERT_FILE",
        code="certificate_untrusted",
    )


def here(process: int) -> None:
    """BadInput where this is another process than the one that began to read: it was forked from that, which reads on
    from the same sockets, and has the threads."""
    if os.getpid() != process:
        raise BadInput(
            f"expected to be read on in process {process}, which began to read; came one that was forked from it: "
            "make the iterator or the stream in the process that reads it, such as a DataLoader's worker"
        )


class Plain:
    """A connected socket. Sleeps until there is much to take, where it knows that it comes."""

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        """`seconds`: the longest silence that is borne."""
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._seconds = connected, seconds
        self._process = os.getpid()
        self._wakes_at = 1
        self.begin()

    def bear(self, seconds: float) -> None:
        """The longest silence from now on."""
        self._seconds = seconds

    def begin(self) -> None:
        """Something new is waited for. Once a byte of it is there, next to nothing is borne for no longer than silence.

        That is less than `SLOWEST` on average over those seconds.
        """
        self._begun = False
        self._waited, self._came = 0.0, 0
        self._until = math.inf

    def short(self) -> None:
        """What is read next is short: all of it is there within the silence that is borne, however it comes."""
        self.begin()
        self._until = time.monotonic() + self._seconds

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self._seconds)
        self._socket.sendall(data)

    def receive(self, view: memoryview, coming: int = 1) -> int:
        """At least one byte into `view`, 0 at the end. TimeoutError after too long a silence.

        `coming`: so many bytes are certainly on their way, and are waited for, for a second at most.
        """
        since = time.monotonic()
        if (seconds := min(self._seconds - self._waited, self._until - since)) <= 0:
            raise TimeoutError
        got = self._gathered(view, min(coming, len(view), _HELPING), seconds)
        if self._begun:
            self._waited += time.monotonic() - since  # here: the time between two calls is the caller's
        self._begun, self._came = True, self._came + got
        if self._came >= SLOWEST * self._seconds:
            self._waited, self._came = 0.0, 0
        elif got and self._waited >= self._seconds:
            raise TimeoutError
        return got

    def close(self) -> None:
        """Also wakes another thread that waits for something to come."""
        if os.getpid() == self._process:  # one that was forked lets go of its own alone
            with suppress(OSError):  # the other side may have left
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _gathered(self, view: memoryview, wanted: int, seconds: float) -> int:
        if wanted == 1 or sys.platform != "linux":  # others may wait for more than they have room for
            return self._received(view, 1, seconds)
        gather = min(_GATHER_SECONDS, seconds / 2)
        try:
            return self._received(view, wanted, gather)
        except TimeoutError:
            return self._received(view, 1, seconds - gather)

    def _received(self, view: memoryview, least: int, seconds: float) -> int:
        if least != self._wakes_at:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._wakes_at = least
        self._socket.settimeout(seconds)
        return self._socket.recv_into(view)


class Tls:
    """The same over TLS. Certificates are checked, always."""

    def __init__(self, plain: Plain, host: str) -> None:
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

    def bear(self, seconds: float) -> None:
        self._plain.bear(seconds)

    def begin(self) -> None:
        self._plain.begin()

    def short(self) -> None:
        self._plain.short()

    def receive(self, view: memoryview, coming: int = 1) -> int:
        """At least `coming` bytes, as many as are there; fewer after the other side said that it is done."""
        read, size, done = self._tls.read, len(view), 0
        while True:
            try:
                while done < size and (got := read(size - done, view[done:])):
                    done += int(got)
            except ssl.SSLWantReadError:
                if done < coming:
                    self._fill(coming - done - _RECORD)
                    continue
            except ssl.SSLZeroReturnError:
                pass
            return done

    def close(self) -> None:
        self._plain.close()

    def _handshake(self) -> None:
        self._plain.short()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._fill(1)
            except ssl.SSLError:
                with suppress(OSError):  # it may have left, and what was wrong with it is to be told
                    self._flush()  # tell the other side why
                raise
            else:
                self._flush()
                self._plain.begin()
                return

    def _fill(self, coming: int) -> None:
        self._flush()  # what is asked between records, for new keys, is answered before more is waited for
        got = self._plain.receive(self._block, max(coming, 1))
        if got:
            self._incoming.write(self._block[:got])
        else:
            self._incoming.write_eof()  # read() then tells a proper end from a cut one

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())
