"""A scripted connector on a real socket: JSON routes as a table, Arrow streams whose framing a test decides."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise, zip_longest
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import xxhash
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset, Space

from connector.infra.formats.digests import sealed
from tests.support.digested import digest_before

ARROW = "application/vnd.apache.arrow.stream"
_RECEIPTS = ("POST", "/receipts")  # which readers send when it suits them: only tests that are about them look at it
SCHEMA = pa.schema([("age", pa.int64()), ("name", pa.string())])


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a route sees it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True, slots=True)
class Raw:
    """An answer byte by byte: what goes out on the connection, which then closes."""

    data: bytes


Answer = Any  # JSON with status 200 | (status, JSON) | Raw | None (204)
Route = Callable[[Asked], Answer]


@dataclass
class Connector:
    """Its routes, and what it was asked."""

    url: str = ""
    routes: dict[tuple[str, str], Route | Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def calls(self) -> list[str]:
        return [f"{one.method} {one.path}" for one in self.asked]


@contextmanager
def listening(speak: Callable[[socket.socket], None], *, times: int = 1) -> Iterator[tuple[str, int]]:
    """Where one connection is taken, or so many after each other, which `speak` has in a thread; that either end hangs
    up is no error there."""

    def serve() -> None:
        for _ in range(times):
            with suppress(OSError):
                accepted = listener.accept()[0]
                with accepted:
                    speak(accepted)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join(10)


@contextmanager
def dripping(whole: Sequence[bytes], *, pause: float) -> Iterator[str]:
    """An owner that sends its answer in these pieces, with a pause after each."""
    over = threading.Event()

    def asked(accepted: socket.socket) -> None:
        accepted.recv(65_536)
        for piece in whole:
            accepted.sendall(piece)
            if over.wait(pause):
                return

    with listening(asked) as (host, port):
        try:
            yield f"http://{host}:{port}"
        finally:
            over.set()


def _parse_body(text: bytes, headers: Mapping[str, str]) -> Any:
    """The JSON or the form of a request."""
    if headers.get("content-type") == "application/x-www-form-urlencoded":
        return dict(parse_qsl(text.decode()))
    return json.loads(text) if text else None


@contextmanager
def connector(routes: dict[tuple[str, str], Any] | None = None) -> Iterator[Connector]:
    """Serve until the block ends."""
    made = Connector(routes=dict(routes or {}))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            text = self.rfile.read(length) if length else b""
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/api/v1")
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = dict(parse_qsl(parts.query))
            asked = Asked(self.command, path, query, headers, _parse_body(text, headers))
            if (self.command, path) == _RECEIPTS and _RECEIPTS not in made.routes:
                self._answer({"recorded": 0, "unknown": []})
                return
            made.asked.append(asked)
            missing = (404, {"code": "not_found", "detail": f"there is nothing at {path}"})
            route = made.routes.get((self.command, path), missing)
            with suppress(ConnectionError):  # a client that left early is the subject of some tests
                self._answer(route(asked) if callable(route) else route)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815  # the base class wants these names

        def _answer(self, answer: Answer) -> None:
            if isinstance(answer, Raw):
                self.wfile.write(answer.data)
                self.close_connection = True
                return
            status, value = answer if isinstance(answer, tuple) else (204 if answer is None else 200, answer)
            body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def batch(*ages: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(ages, pa.int64()), pa.array([f"n{age}" for age in ages])], schema=SCHEMA)


def ipc(
    batches: Sequence[pa.RecordBatch],
    end: dict[str, Any] | None,
    *,
    schema: pa.Schema = SCHEMA,
    codec: str | None = None,
    deltas: bool = False,
    places: Sequence[Any] = (),
    seal: bool = False,
) -> list[bytes]:
    """A governed stream as the owner sends it: schema, batches (with their places), end record; one piece a message.
    The record names the digest of what is before it, unless `end` names another; with `seal` it has one of itself."""
    sink = io.BytesIO()
    cuts = []
    options = pa.ipc.IpcWriteOptions(compression=codec, emit_dictionary_deltas=deltas)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        cuts.append(sink.tell())
        for one, place in zip_longest(batches, places):
            writer.write_batch(one, custom_metadata=None if place is None else {"hanse.at": json.dumps(place)})
            cuts.append(sink.tell())
        if end is not None:
            empty = batches[0].slice(0, 0) if batches else pa.RecordBatch.from_pylist([], schema=schema)
            end = {"digest": digest_before(sink, schema), **end}
            text = sealed(json.dumps(end)) if seal else json.dumps(end).encode()
            writer.write_batch(empty, custom_metadata={b"hanse.end": text})
            cuts.append(sink.tell())
    whole = sink.getvalue()
    borders = [0, *cuts, len(whole)]
    return [whole[a:b] for a, b in pairwise(borders) if b > a]


def redigested(pieces: Sequence[bytes]) -> list[bytes]:
    """The same, with the end record naming the digest of the messages before it as they are now."""
    at = next(number for number, piece in enumerate(pieces) if b"hanse.end" in piece)
    digest = b"xxh3:" + xxhash.xxh3_128_hexdigest(b"".join(pieces[:at])).encode()
    return [*pieces[:at], re.sub(rb"xxh3:[0-9a-f]{32}", digest, pieces[at]), *pieces[at + 1 :]]


def complete(rows: int, **more: Any) -> dict[str, Any]:
    return {"status": "complete", "rows": rows, **more}


@contextmanager
def owned(
    answer: Answer | Route,
    *,
    schema: pa.Schema = SCHEMA,
    rows: Sequence[int] = (),
    otherwise: Mapping[str, Any] | None = None,
) -> Iterator[Dataset]:
    """A dataset of a scripted owner: its plan has blocks of so many rows, and reads get this answer.

    `otherwise`: what stands in its plan in place of that.
    """
    text = base64.b64encode(schema.serialize()).decode()
    blocks = [{"rows": one, "bytes": 8 * one} for one in rows]
    plan = {
        "shown": "m",
        "snapshot": "s",
        "plan": "p",
        "schema": text,
        "blocks": blocks,
        "rows": sum(rows),
        "exact": True,
    }
    with connector({("POST", "/owner/streams"): plan | dict(otherwise or {}), ("GET", "/owner"): answer}) as served:
        address = {"endpoint": f"{served.url}/owner", "ticket": "t", "expires": time.time() + 3600}
        served.routes["GET", "/transfers/t/address"] = address
        with Space(served.url, "token") as space:
            yield Dataset(space, TransferAccess(Name("north", "people"), "urn:people", "a", "t", ""))


def chunked(pieces: Sequence[bytes], *, media: str = ARROW, last: bool = True, extra: str = "") -> Raw:
    """An answer in chunks; without `last` the connection closes before the last chunk."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media}\r\ntransfer-encoding: chunked\r\n{extra}\r\n".encode()
    body = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces if piece)
    return Raw(head + body + (b"0\r\n\r\n" if last else b""))


def recut(pieces: Sequence[bytes], size: int) -> list[bytes]:
    """The same bytes in pieces of `size`, as a proxy may cut them."""
    whole = b"".join(pieces)
    return [whole[at : at + size] for at in range(0, len(whole), size)]
