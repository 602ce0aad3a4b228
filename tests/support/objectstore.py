"""A real S3 server for tests: SeaweedFS out of its wheel, on loopback, its data in a temporary directory.

What the tests put and change goes through another client's ordinary calls; the product reads through its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import obstore
import yaml
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.ports import free_range

KEY, SECRET = "AKIAHANSETESTKEY", "s3cr3t-canary-of-the-object-store"
BUCKET = "research"
_START_SECONDS = 60
_WHEN = "Sat, 01 Nov 2025 10:00:00 GMT"
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
          "s3.port", "s3.port.grpc")  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A running server; `log` is all that it has written."""

    endpoint: str
    log: Path

    def bucket(self, name: str = BUCKET, *, secret: str = SECRET) -> Any:
        """A client of the test's own."""
        config = {"endpoint": self.endpoint, "region": "us-east-1", "access_key_id": KEY, "secret_access_key": secret,
                  "virtual_hosted_style_request": False}  # fmt: skip
        return S3Store(name, config=config, client_options={"allow_http": True}, retry_config={"max_retries": 0})

    def connections(self, folder: Path, *, secret: str = SECRET, endpoint: str = "", **more: Any) -> Path:
        """A file for HANSE_CONNECTIONS with this server as the store `archive`."""
        store = {"endpoint": endpoint or self.endpoint, "access_key_id": KEY, "secret_access_key": secret,
                 "buckets": [BUCKET], "insecure_http": True}  # fmt: skip
        path = folder / "connections.yaml"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump({"stores": {"archive": store}, **more}))
        return path


@contextmanager
def server() -> Iterator[Server]:
    """Start a server with one bucket; stop it and remove everything afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="hanse-s3-"))
    first = free_range(len(_PORTS))
    ports = range(first, first + len(_PORTS))
    who = {"name": "owner", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
           "actions": ["Admin", "Read", "Write", "List"]}  # fmt: skip
    (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
    weed = Path(sys.prefix) / "bin" / "weed"
    command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.iam=false",
               f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=8",
               "-master.volumeSizeLimitMB=64",
               *(f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=True))]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    running = Server(f"http://127.0.0.1:{ports[6]}", folder / "log")
    try:
        _wait(running, process)
        yield running
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming(keys: set[str]) -> Iterator[Server]:
    """A store that has empty objects of any keys, also of such as the server's file system could not hold, and lists
    and tells of them only. The set may change meanwhile."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            prefix = parse_qs(urlsplit(self.path).query)["prefix"][0]
            there = "".join(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2025-11-01T10:00:00.000Z</LastModified>"
                f"<ETag>&quot;1&quot;</ETag><Size>0</Size></Contents>"
                for key in sorted(keys) if key.startswith(prefix)
            )  # fmt: skip
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{there}</ListBucketResult>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(200 if unquote(self.path).removeprefix(f"/{BUCKET}/") in keys else 404)
            for name, value in (("ETag", '"1"'), ("Content-Length", "0"), ("Last-Modified", _WHEN)):
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing of it."""

    with _answering(Answer) as store:
        yield store


@contextmanager
def elsewhere(status: int) -> Iterator[Server]:
    """A store that says of every bucket that it is in another region."""
    body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing of it."""

    with _answering(Answer) as store:
        yield store


@contextmanager
def _answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield Server(f"http://127.0.0.1:{listening.server_port}", Path())
        listening.shutdown()


def _wait(running: Server, process: subprocess.Popen[bytes]) -> None:
    ends, client = time.monotonic() + _START_SECONDS, running.bucket()
    while True:
        try:
            obstore.put(client, "probe", b"x")
            return
        except BaseError:
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"the S3 server did not start: {running.log.read_text()[-2000:]}") from None
            time.sleep(0.1)
