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
from pathlib import Path
from typing import Any

import obstore
import yaml
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.ports import free_range

KEY, SECRET = "AKIAHANSETESTKEY", "s3cr3t-canary-of-the-object-store"
BUCKET = "research"
_START_SECONDS = 60
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
