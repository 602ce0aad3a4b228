"""The reader's sockets: much at a time where it is known to come, never more patience than was given."""

from __future__ import annotations

import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hanse._transport.sockets import Plain, Tls

from tests.client.support import listening
from tests.support.certificates import self_signed, server_side
from tests.support.stalls import in_real_time

MUCH = 4 * 2**20
PIECE = 16 * 1024
DATA = bytes(range(256)) * (MUCH // 256)

Peer = Callable[[Any], None]
Connect = Callable[..., Any]


@pytest.fixture(params=["plain", "tls"])
def connect(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """A reader's socket on which a peer in a thread sends what a test says."""
    context = None
    if request.param == "tls":
        file = self_signed(tmp_path / "owner.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        context = server_side(file)

    @contextmanager
    def connected(peer: Peer, *, seconds: float) -> Iterator[Any]:
        def taken(accepted: socket.socket) -> None:
            with context.wrap_socket(accepted, server_side=True) if context else accepted as one:
                peer(one)
                if isinstance(one, ssl.SSLSocket):
                    one.unwrap()

        with listening(taken) as where:
            plain = Plain(socket.create_connection(where), seconds)
            try:
                yield Tls(plain, "127.0.0.1") if context else plain
            finally:
                plain.close()

    return connected


def taken(reader: Any, size: int) -> tuple[bytes, int]:
    """`size` bytes that are known to come, fewer at the end, and by how many calls."""
    data, done, calls = bytearray(size), 0, 0
    view = memoryview(data)
    while done < size and (got := reader.receive(view[done:], size - done)):
        done, calls = done + got, calls + 1
    return bytes(data[:done]), calls


def in_pieces(peer: Any) -> None:
    """Much, in pieces that are seen one by one."""
    for at in range(0, MUCH, PIECE):
        peer.sendall(DATA[at : at + PIECE])
        time.sleep(0.0005)


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux does a reader wait for much to arrive")
def test_a_reader_sleeps_until_there_is_much(connect: Connect) -> None:
    with connect(in_pieces, seconds=60) as reader:
        data, calls = taken(reader, MUCH)
    assert data == DATA
    assert calls <= MUCH // 2**20 + 1


@in_real_time
def test_a_slow_peer_is_read_to_the_end(connect: Connect) -> None:
    def slowly(peer: Any) -> None:
        for at in range(0, 10 * PIECE, PIECE):
            peer.sendall(DATA[at : at + PIECE])
            time.sleep(0.15)  # more than is gathered for, less than is borne; all of it takes longer than that

    with connect(slowly, seconds=0.8) as reader:
        data, _ = taken(reader, 10 * PIECE)
    assert data == DATA[: 10 * PIECE]


def test_silence_is_borne_for_as_long_as_was_said(connect: Connect) -> None:
    until = threading.Event()

    def silent(peer: Any) -> None:
        peer.sendall(DATA[:PIECE])
        until.wait(10)

    with connect(silent, seconds=0.4) as reader:
        assert reader.receive(memoryview(bytearray(PIECE)), PIECE)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            taken(reader, MUCH)
        assert time.monotonic() - begun >= 0.4
        until.set()


def test_next_to_nothing_is_silence(connect: Connect) -> None:
    """A byte now and then ends no wait: neither of what has begun, nor of a handshake."""
    over = threading.Event()

    def dripping(peer: Any) -> None:
        while not over.wait(0.02):
            peer.sendall(b"x")

    with connect(dripping, seconds=0.5) as reader:
        with pytest.raises(TimeoutError):
            taken(reader, MUCH)
        over.set()


@in_real_time
def test_what_is_new_may_be_as_long_in_coming_as_silence(connect: Connect) -> None:
    def rarely(peer: Any) -> None:
        for _ in range(5):
            time.sleep(0.3)
            peer.sendall(b"x")

    with connect(rarely, seconds=1.2) as reader:
        for _ in range(5):
            reader.begin()
            assert reader.receive(memoryview(bytearray(PIECE))) == 1


def test_both_waits_together_are_the_patience() -> None:
    waits: list[float] = []

    class Silent:
        def setsockopt(self, *_: int) -> None:
            """Anything is well."""

        def settimeout(self, seconds: float) -> None:
            waits.append(seconds)

        def recv_into(self, _: memoryview) -> int:
            raise TimeoutError

    for seconds in (0.1, 1.0, 60.0):
        waits.clear()
        with pytest.raises(TimeoutError):
            Plain(Silent(), seconds).receive(memoryview(bytearray(MUCH)), MUCH)  # type: ignore[arg-type]  # a stand-in
        assert sum(waits) == pytest.approx(seconds)


def test_an_end_is_seen_while_more_is_waited_for(connect: Connect) -> None:
    with connect(lambda peer: peer.sendall(DATA[:PIECE]), seconds=60) as reader:
        data, _ = taken(reader, MUCH)
        assert data == DATA[:PIECE]
        assert reader.receive(memoryview(bytearray(PIECE))) == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="Python's own TLS cannot ask for new keys")
def test_whoever_wants_new_keys_again_and_again_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are kept would be memory without bound."""
    file = self_signed(tmp_path / "owner.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", str(file), "-key", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        port = next(int(line.rsplit(b":", 1)[1]) for line in owner.stdout if line.startswith(b"ACCEPT "))
        connected = socket.create_connection(("127.0.0.1", port))
        reader = Tls(Plain(connected, 10), "127.0.0.1")
        for words in [b"x\n", *[b"K\n", b"x\n"] * 20]:
            owner.stdin.write(words)  # K: that both sides take new keys
            assert select.select([connected], [], [], 10)[0]
            if words == b"x\n":
                assert reader.receive(memoryview(bytearray(2)), 2) == 2
        reader.close()
        owner.kill()
    assert reader._outgoing.pending < 100


def test_a_little_after_much_is_not_waited_for(connect: Connect) -> None:
    until = threading.Event()

    def much_and_a_little(peer: Any) -> None:
        peer.sendall(DATA + b"x")
        until.wait(10)

    with connect(much_and_a_little, seconds=60) as reader:
        data, _ = taken(reader, MUCH)
        last = bytearray(PIECE)
        assert (data, reader.receive(memoryview(last)), last[:1]) == (DATA, 1, b"x")
        until.set()


def test_what_comes_is_given_to_whoever_knows_nothing_of_more(connect: Connect) -> None:
    until = threading.Event()

    def little(peer: Any) -> None:
        peer.sendall(b"x")
        until.wait(10)

    with connect(little, seconds=60) as reader:
        assert reader.receive(memoryview(bytearray(MUCH))) == 1
        until.set()
