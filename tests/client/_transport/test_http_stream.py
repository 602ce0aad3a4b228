"""However a body is cut, framed and delayed on its way, a reader has the same rows; of one that ends too early, the
first of them and an error of ours. Over real sockets, plain and TLS, at random from a seed."""

from __future__ import annotations

import os
import random
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hanse._transport import http_stream, sockets
from hanse.errors import Broken, HanseError, Unreachable
from hanse.stream import Stream

from tests.client.support import batch, complete, ipc, listening
from tests.support.certificates import self_signed, server_side

SEED = int(os.environ.get("CUTS_SEED", "0"))
CASES = int(os.environ.get("CUTS_CASES", "100"))  # of each kind
MARK = 8  # bytes that end Arrow's stream, behind the end record
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection is not closed but torn down
HEAD = f"HTTP/1.1 200 OK\r\ncontent-type: {http_stream.ARROW}\r\ntransfer-encoding: chunked\r\n\r\n".encode()


def body(rng: random.Random, batches: list[pa.RecordBatch]) -> tuple[bytes, int]:
    """A whole answer: its stream in chunks of any size, some with extensions, some with lines after the last. And how
    much of it has the end record whole, after which nothing is missed."""
    data = b"".join(ipc(batches, complete(sum(one.num_rows for one in batches)), codec=rng.choice([None, "zstd"])))
    most = rng.choice([*([1, 7, 100] if len(data) < 10_000 else []), 500, 3000, 50_000, len(data)])
    made, at, needed = bytearray(HEAD), 0, 0
    while at < len(data):
        part = data[at : at + rng.randint(1, most)]
        made += b"%x%s\r\n" % (len(part), rng.choice([b"", b"", b";a=b"]))
        needed = needed or max(0, len(made) + len(data) - MARK - at) * (at + len(part) >= len(data) - MARK)
        made += part + b"\r\n"
        at += len(part)
    return bytes(made) + b"0\r\n" + b"x: y\r\n" * rng.choice([0, 0, 1, 50]) + b"\r\n", needed


def said(rng: random.Random, peer: Any, data: bytes) -> None:
    """In pieces of any size: in a go, in some, byte by byte; with pauses about as long as is gathered for."""
    most = rng.choice([len(data), len(data) // 2, 20_000, 900, 30])
    most = max(most, len(data) // 200, 1)
    pause = rng.choice([0, 0, 0.0005, sockets._GATHER_SECONDS * rng.uniform(0.8, 1.2)])
    pauses = 10
    while data:
        piece = rng.randint(1, most)
        peer.sendall(data[:piece])
        data = data[piece:]
        if pauses and rng.random() < 0.2:
            pauses -= 1
            time.sleep(pause)


@contextmanager
def owner(rng: random.Random, context: ssl.SSLContext | None, data: bytes, end: str) -> Iterator[str]:
    """An address whose answer is `data`, and then: a proper end, one without TLS's, or a reset."""

    def asked(accepted: socket.socket) -> None:
        accepted.settimeout(10)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, rng.choice([0, 1]))
        if rng.random() < 0.3:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with context.wrap_socket(accepted, server_side=True) if context else accepted as peer:
            peer.recv(65_536)
            said(rng, peer, data)
            if end == "reset":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif isinstance(peer, ssl.SSLSocket) and end == "proper":
                peer.unwrap()

    with listening(asked) as (host, port):
        yield f"{'https' if context else 'http'}://{host}:{port}/"


def read(url: str) -> tuple[list[Any], HanseError | None]:
    """The rows that came, and what ended them."""
    rows: list[Any] = []
    try:
        with Stream(http_stream.open_stream(http_stream.HttpRequest("GET", url, idle_seconds=10))) as stream:
            for one in stream:
                rows += one.to_pylist()
    except HanseError as error:
        return rows, error
    return rows, None


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_rows_are_the_same_however_they_are_cut(tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = None
    if tls:
        file = self_signed(tmp_path / "owner.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        context = server_side(file)
    monkeypatch.setattr(sockets, "_GATHER_SECONDS", 0.01)  # so that some wait longer
    rng = random.Random(SEED)
    for number in range(CASES):
        sizes = [rng.choice([1, 3, 40, 400, 4000]) for _ in range(rng.randint(0, 4))]
        batches = [batch(*range(start, start + size)) for start, size in enumerate(sizes)]
        expected = [row for one in batches for row in one.to_pylist()]
        data, needed = body(rng, batches)
        monkeypatch.setattr(sockets, "_PORTION_BYTES", rng.choice([100, 5000, 2**20]))
        monkeypatch.setattr(sockets, "_BLOCK_BYTES", rng.choice([64, 5000, 2**18]))
        cut = rng.choice([None, None, rng.randrange(len(data)), rng.randrange(len(data) - 60, len(data))])
        end = rng.choice(["proper", "silent", "proper" if cut is None else "reset"])
        with owner(rng, context, data[:cut], end) as url:
            rows, error = read(url)
        case = f"case {number} of seed {SEED}: {len(data)} bytes cut at {cut}, {end}"
        assert rows == expected[: len(rows)], case
        if cut is None:
            assert error is None, case
            assert len(rows) == len(expected), case
        else:
            assert error is None or isinstance(error, Unreachable | Broken), case
            assert error is not None or (len(rows) == len(expected) and cut >= needed), case
