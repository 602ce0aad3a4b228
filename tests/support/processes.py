"""Connectors as real processes on loopback, and a lean client for their APIs. For benchmarks and crash tests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.support.ports import free_range
from tests.support.warm import Forked

PATIENCE = 120.0
_KEPT = 10.0  # seconds after which a connection is not used again: a connector closes it after thirty
_ANYBODY = "/.well-known/dspace-version"
POLICY = {"permission": [{"action": "use"}]}


class Failed(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, body: bytes, *, retry_after: int = 0) -> None:
        super().__init__(f"{status}: {body[:300]!r}")
        self.status = status
        self.body = body
        self.retry_after = retry_after  # seconds; 0 where the answer does not say


class Client:
    """JSON over one kept connection. Lean, so that it does not measure itself."""

    def __init__(self, port: int, *, token: str = "", prefix: str = "", timeout: float = 120.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._prefix = prefix
        self._used = 0.0

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of a successful answer, whole."""
        return self.start(method, path, body, headers).read()

    def start(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """An answer whose body is still to be read."""
        sent = {**self._headers, **(headers or {})}
        text = None if body is None else json.dumps(body)
        if text is not None:
            sent["Content-Type"] = "application/json"
        if time.monotonic() - self._used > _KEPT:
            self._connection.close()
        try:
            self._connection.request(method, self._prefix + path, text, sent)
            reply = self._connection.getresponse()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        self._used = time.monotonic()
        if not 200 <= reply.status < 300:
            raise Failed(reply.status, reply.read(), retry_after=int(reply.headers.get("retry-after", "0")))
        return reply

    def get(self, path: str) -> Any:
        return json.loads(self.call("GET", path))

    def post(self, path: str, body: Any = None) -> Any:
        return json.loads(self.call("POST", path, body or {}))

    def close(self) -> None:
        self._connection.close()


@dataclass
class Process:
    """One connector. `start`, `kill` and `start` again as often as you like: its directory keeps everything."""

    name: str
    directory: Path
    public_port: int
    management_port: int
    database_url: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    certificate: Path | None = None  # with its key: the public listener speaks TLS, and everybody here believes it
    front_port: int = 0  # where others reach the public listener, if it stands behind a relay
    running: subprocess.Popen[bytes] | Forked | None = None
    forked: bool = False  # from a process that has imported everything, rather than started as an operator does
    program: tuple[str, ...] = ("-m", "connector", "serve")  # what Python is to run
    environment: Callable[[Process], dict[str, str]] = lambda _: {}  # more of it, for another program
    open_path: str = _ANYBODY  # of the public listener: it answers anybody once the process is up

    @property
    def participant(self) -> str:
        return f"did:web:127.0.0.1%3A{self.front_port or self.public_port}"

    @property
    def base(self) -> str:
        return f"{self._url}/dsp/2025-1"

    @property
    def _url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.front_port or self.public_port}"

    @property
    def token(self) -> str:
        return (self.directory / "admin.token").read_text().strip()

    def start(self, *, wait: bool = True) -> None:
        """Start it and, unless told otherwise, wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        log = (self.directory / "log").open("ab")
        begin = Forked if self.forked else subprocess.Popen
        self.running = begin(
            [sys.executable, *self.program], env=self.environ(), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        log.close()
        if wait:
            self.wait()

    def wait(self) -> None:
        ends = time.monotonic() + PATIENCE
        port, path = (self.management_port, "/health/live") if self.certificate else (self.public_port, self.open_path)
        while time.monotonic() < ends:
            if self.running is None or self.running.poll() is not None:
                raise RuntimeError(f"{self.name} ended by itself: {(self.directory / 'log').read_text()[-2000:]}")
            try:
                Client(port, timeout=2).call("GET", path)
            except (OSError, http.client.HTTPException, Failed):
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{self.name} does not answer after {PATIENCE:g} s")

    def kill(self) -> None:
        """SIGKILL it and its workers, now; nothing where they have ended by themselves."""
        if self.running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()
            self.running = None

    def api(self) -> Client:
        """The management API as its administrator."""
        return Client(self.management_port, token=self.token, prefix="/api/v1")

    def publish(self, dataset: str, *, rows: int = 1_000, decide: str = "auto") -> tuple[str, str]:
        """A small dataset with an offer; their ids."""
        path = self.directory / f"{dataset}.parquet"
        pq.write_table(pa.table({"id": (ids := pa.array(range(rows))), "value": pc.multiply(ids, 0.5)}), path)
        api = self.api()
        made = api.post("/datasets", {"name": dataset, "path": str(path)})
        offer = api.post("/offers", {"dataset": dataset, "policy": POLICY, "decide": decide})
        api.close()
        return str(made["id"]), str(offer["id"])

    def offer(self, name: str, path: Path, policy: Mapping[str, Any] = POLICY) -> tuple[str, str]:
        """A dataset from a path, with an offer that is agreed to by itself; their ids."""
        api = self.api()
        made = api.post("/datasets", {"name": name, "path": str(path)})
        offer = api.post("/offers", {"dataset": name, "policy": policy, "decide": "auto"})
        api.close()
        return str(made["id"]), str(offer["id"])

    def agree(self, owner: Process, dataset: str, offer: str, *, form: str = "HttpData-PULL") -> tuple[str, str]:
        """As a consumer, from an offer of `owner` to a started transfer; the agreement and the transfer."""
        api = self.api()
        asked = {"counter_party_id": owner.participant, "counter_party_address": owner.base}
        negotiation = api.post("/negotiations", {**asked, "dataset": dataset, "offer_id": offer})
        done = api.get(f"/negotiations/{negotiation['id']}?wait=60&until=FINALIZED")
        if done["state"] != "FINALIZED":
            raise RuntimeError(f"{dataset}: expected an agreement, came {done['state']} {done.get('reason')}")
        transfer = api.post("/transfers", {"agreement_id": done["agreement_id"], "format": form})
        begun = api.get(f"/transfers/{transfer['id']}?wait=60&until=STARTED")
        api.close()
        if begun["state"] != "STARTED":
            raise RuntimeError(f"{dataset}: expected a started transfer, came {begun['state']} {begun.get('reason')}")
        return str(done["agreement_id"]), str(transfer["id"])

    def environ(self) -> dict[str, str]:
        ours = {
            "NAME": self.name,
            "DATA_DIR": str(self.directory),
            "SOURCE_ROOTS": str(self.directory),
            "PUBLIC_PORT": str(self.public_port),
            "PUBLIC_URL": self._url if self.front_port else "",
            "MANAGEMENT_PORT": str(self.management_port),
            "ADMIN_TOKEN_FILE": str(self.directory / "admin.token"),
            "DATABASE_URL": self.database_url,
            "ALLOW_PRIVATE": "127.0.0.1",
            "INSECURE_HTTP": "" if self.certificate else "true",
            "LOG_LEVEL": "warning",
            "TLS_CERTIFICATE": str(self.certificate or ""),
            **self.settings,
        }
        rest = {key: value for key, value in os.environ.items() if not key.startswith("HANSE_")}
        settings = {f"HANSE_{key}": value for key, value in ours.items() if value}
        return rest | settings | self.environment(self)


def catalogue_process(directory: Path, port: int, **settings: str) -> Process:
    """A catalogue, not started; its `api` is the operator's."""
    program = ("-m", "catalogue", "serve")
    return Process("catalogue", directory, port, port, settings=settings, program=program, open_path="/health/live")


@contextmanager
def two(
    directory: Path,
    *,
    urls: tuple[str, str] = ("", ""),
    program: tuple[str, ...] = Process.program,
    environment: Callable[[Process], dict[str, str]] = Process.environment,
    forked: bool = False,
    **settings: str,
) -> Iterator[tuple[Process, Process]]:
    """A provider `north` and a consumer `south`, running; killed at the end."""
    first = free_range(4)
    north = Process("north", directory / "north", first, first + 1, urls[0], dict(settings))
    south = Process("south", directory / "south", first + 2, first + 3, urls[1], dict(settings))
    for one in (north, south):
        one.program, one.environment, one.forked = program, environment, forked
    try:
        north.start()
        south.start()
        yield north, south
    finally:
        north.kill()
        south.kill()
