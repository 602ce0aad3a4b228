"""Clients that connect and say nothing keep nobody from a connector, however many there are."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.certificates import self_signed
from tests.support.ports import free_range
from tests.support.processes import Process

pytestmark = pytest.mark.e2e

_DESCRIPTORS = 600  # of the connector
_SILENT = 700  # clients
_SMALL = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({_DESCRIPTORS}, {_DESCRIPTORS}))
from connector.__main__ import commands
commands(["serve"])
"""
_ASKED = "GET /.well-known/did.json HTTP/1.1\r\nhost: a\r\n\r\n"


def _hello(context: ssl.SSLContext) -> bytes:
    """How a TLS handshake begins."""
    said = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="127.0.0.1").do_handshake()
    return said.read()


def _silent(port: int, said: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=10)
    made.sendall(said)
    return made


def _shaken(port: int, context: ssl.SSLContext, said: bytes) -> socket.socket:
    made = context.wrap_socket(_silent(port, b""), server_hostname="127.0.0.1")
    made.sendall(said)
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "TLS"])
def owner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("silent")
    first = free_range(2)
    certificate = self_signed(folder / "certificate.pem") if request.param else None
    north = Process(
        "north", folder / "north", first, first + 1, certificate=certificate, program=("-c", _SMALL), forked=True
    )
    north.start()
    try:
        yield north
    finally:
        north.kill()


@pytest.mark.parametrize("how", ["nothing", "half a hello", "a hello", "no request", "half a request", "one request"])
def test_silent_clients_keep_nobody_out(owner: Process, how: str) -> None:
    port = owner.public_port
    context = ssl.create_default_context(cafile=str(owner.certificate)) if owner.certificate else None
    if context is None and how.endswith("hello"):
        pytest.skip("a connection without TLS begins with no hello")
    clients: dict[str, Callable[[], socket.socket]] = {"nothing": lambda: _silent(port, b"")}
    said = {"no request": b"", "half a request": b"GET / HTTP/1.1\r\na", "one request": _ASKED.encode()}.get(how, b"")
    if context is not None:
        hello = _hello(context)
        clients |= {
            "half a hello": lambda: _silent(port, hello[: len(hello) // 2]),
            "a hello": lambda: _silent(port, hello),
        }
    client = clients.get(how) or (
        (lambda: _silent(port, said)) if context is None else lambda: _shaken(port, context, said)
    )
    held: list[socket.socket] = []
    try:
        for _ in range(_SILENT):
            with suppress(OSError):  # a connector that is full of the silent says so
                held.append(client())
        asking = (
            http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            if context is None
            else http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
        )
        for _ in range(3):
            asking.request("GET", "/.well-known/did.json")
            answer = asking.getresponse()
            assert (answer.status, b"verificationMethod" in answer.read()) == (200, True)
        asking.close()
        assert owner.api().get("/datasets") == []
        assert owner.running is not None
        assert len(os.listdir(f"/proc/{owner.running.pid}/fd")) < _DESCRIPTORS - 100
    finally:
        for one in held:
            one.close()


def test_a_connector_stops_though_handshakes_have_not_ended(tmp_path: Path) -> None:
    first = free_range(2)
    certificate = self_signed(tmp_path / "certificate.pem")
    north = Process("north", tmp_path / "north", first, first + 1, certificate=certificate, forked=True)
    north.start()
    try:
        with _silent(first, b""):
            assert north.running is not None
            north.running.send_signal(signal.SIGTERM)
            assert north.running.wait(20) == 0  # its servers would wait for thirty seconds, and be cut off at forty
    finally:
        with suppress(ProcessLookupError):
            north.kill()
