"""The servers that Hanse is compared with, each a process of its own: `python -m benchmarks.stream.servers KIND ...`.

    raw  PORT CERT FILE...   a socket that sends the bytes of the file whose number is asked for; with CERT over TLS
    files PORT FOLDER        static files over HTTP/1.1 with ranges, by sendfile
    flight PORT CERT FILE... hand-written pyarrow Flight without any policy, over tables in memory; with CERT over TLS
    bare PORT FILE...        Hanse's own worker, framing and socket, without gate, accounting, log or digest

What is in memory is the mapped Arrow file, read once before the port is open.
"""

from __future__ import annotations

import contextlib
import http.server
import mmap
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

_PIECE = 2**20


def stream_of(path: str) -> mmap.mmap:
    """The file's bytes, in memory."""
    with open(path, "rb") as file:
        found = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    for at in range(0, len(found), 4096):
        found[at]
    return found


def raw(port: str, certificate: str, *paths: str) -> None:
    """Blocking `sendall` of a megabyte at a time: the limit to compare with."""
    held = [memoryview(stream_of(path)) for path in paths]
    context = _context(certificate)

    def answer(plain: socket.socket) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_side=True) if context else plain as client:
            view = held[int(client.recv(1))]
            for at in range(0, len(view), _PIECE):
                client.sendall(view[at : at + _PIECE])
            if isinstance(client, ssl.SSLSocket):
                client.unwrap()

    _serve(int(port), answer)


def _serve(port: int, answer: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=64) as listening:
        while True:
            client, _ = listening.accept()
            threading.Thread(target=_quietly, args=(answer, client), daemon=True).start()


def _quietly(answer: Callable[[socket.socket], None], client: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):  # the reader has left, or only looked whether we are there
        answer(client)


def _context(certificate: str) -> ssl.SSLContext | None:
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


class _Files(http.server.SimpleHTTPRequestHandler):
    """Whole files and single ranges, straight from the page cache to the socket."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last = self._range(size)
            partial = "range" in self.headers
            self.send_response(206 if partial else 200)
            self.send_header("accept-ranges", "bytes")
            self.send_header("content-length", str(last - first + 1))
            if partial:
                self.send_header("content-range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            self.wfile.flush()
            while first <= last:
                first += os.sendfile(self.connection.fileno(), file.fileno(), first, last - first + 1)

    def _range(self, size: int) -> tuple[int, int]:
        first, _, last = self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        if not first:
            return size - int(last), size - 1
        return int(first), min(int(last), size - 1) if last else size - 1

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


def files(port: str, folder: str) -> None:
    """A static file server."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", int(port)),
        lambda *given: _Files(*given, directory=folder),  # type: ignore[arg-type, misc]  # fits
    )
    server.daemon_threads = True
    server.serve_forever()


def flight(port: str, certificate: str, *paths: str) -> None:
    """Flight as people write it: one table per ticket."""
    from pyarrow import flight as fl

    held = [pa.ipc.open_file(pa.memory_map(path)).read_all() for path in paths]
    for path in paths:
        stream_of(path)

    class Server(fl.FlightServerBase):  # type: ignore[misc]  # it has no types
        def do_get(self, _: Any, ticket: Any) -> Any:
            return fl.RecordBatchStream(held[int(ticket.ticket)])

    if not certificate:
        Server(f"grpc://127.0.0.1:{port}").serve()
        return
    pem = Path(certificate).read_bytes()
    Server(f"grpc+tls://127.0.0.1:{port}", tls_certificates=[(pem, pem)]).serve()


def bare(port: str, *paths: str) -> None:
    """The product's way of a batch to the socket with nothing of its governance around it."""
    from benchmarks.stream.bare import serve

    serve(int(port), paths)


if __name__ == "__main__":
    {"raw": raw, "files": files, "flight": flight, "bare": bare}[sys.argv[1]](*sys.argv[2:])
