"""A real connector process for the kit, and its management API. Everything here is what any operator has."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq

from tests.tck.script import Change

PATIENCE = 60.0  # seconds for the process to come up
KINDS = {"NegotiationAdvanced": ("negotiation", "dataset"), "TransferAdvanced": ("transfer", "agreement")}


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Place:
    """Where the connector lives: its directory, ports and participant id."""

    directory: Path
    public_port: int
    management_port: int

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.public_port}"

    @property
    def base(self) -> str:
        return f"{self.root}/dsp/2025-1"

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.management_port}/api/v1"

    @property
    def participant(self) -> str:
        return f"did:web:127.0.0.1%3A{self.public_port}"

    @property
    def token_file(self) -> Path:
        return self.directory / "admin.token"

    def environment(self, tokens: Mapping[str, str]) -> dict[str, str]:
        """Settings for a lab on loopback whose one counterparty authenticates with a fixed token."""
        ours = {
            "NAME": "kit",
            "DATA_DIR": str(self.directory / "connector"),
            "SOURCE_ROOTS": str(self.directory),
            "PUBLIC_PORT": str(self.public_port),
            "MANAGEMENT_PORT": str(self.management_port),
            "PARTICIPANT_ID": self.participant,
            "ADMIN_TOKEN_FILE": str(self.token_file),
            "STATIC_TOKENS": json.dumps(dict(tokens)),
            "ALLOW_PRIVATE": "127.0.0.1",
            "INSECURE_HTTP": "true",
            "CALL_TIMEOUT": "5",
            # The kit is not ready for a message the moment it has answered: try again soon, and not for days.
            "DSP_RETRY_FIRST": "0.3",
            "DSP_RETRY_CAP": "1",
            "DSP_RETRY_DEADLINE": "8",
        }
        rest = {key: value for key, value in os.environ.items() if not key.startswith("HANSE_")}
        return rest | {f"HANSE_{key}": value for key, value in ours.items()} | database()


def database() -> dict[str, str]:
    """The database that the caller of `make tck` chose, if any; else SQLite in the directory."""
    url = os.environ.get("TCK_DATABASE_URL", "")
    return {"HANSE_DATABASE_URL": url} if url else {}


class Product:
    """The running connector. `start` and `stop` it; the rest are management calls."""

    def __init__(
        self, place: Place, tokens: Mapping[str, str], http: httpx2.AsyncClient, more: Mapping[str, str] | None = None
    ) -> None:
        """`more`: further settings, without their prefix. `environment` is that of the process."""
        self.place = place
        self.environment = place.environment(tokens) | {f"HANSE_{key}": one for key, one in (more or {}).items()}
        self._http = http
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the process and wait until it answers. Its first start writes a token for whoever manages it."""
        with (self.place.directory / "connector.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - starting does not block
                [sys.executable, "-m", "connector", "serve"], env=self.environment, stdout=log, stderr=log
            )
        async with asyncio.timeout(PATIENCE):
            while not await self._answers():
                await asyncio.sleep(0.1)
        self._http.headers["Authorization"] = f"Bearer {self.place.token_file.read_text().strip()}"

    def stop(self) -> None:
        """End the process that `start` began."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    async def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the connector ended by itself: see {self.place.directory / 'connector.log'}")
        try:
            return (await self._http.get(f"{self.place.root}/.well-known/dspace-version")).is_success
        except httpx2.TransportError:
            return False

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One management call. RuntimeError with the answer where it is not a success."""
        reply = await self._http.post(f"{self.place.management}{path}", json=body)
        if not reply.is_success:
            raise RuntimeError(f"POST {path}: expected 2xx, came {reply.status_code}: {reply.text[:500]}")
        return dict(reply.json()) if reply.content else {}

    async def dataset(self, name: str) -> None:
        """Register a small Parquet file under the id that the kit will ask for."""
        path = self.place.directory / f"{name}.parquet"
        await asyncio.to_thread(pq.write_table, pa.table({"id": [1, 2, 3], "value": ["a", "b", "c"]}), path)
        await self.post("/datasets", {"id": name, "name": name.lower(), "path": str(path)})

    async def offer(self, offer: str, dataset: str, policy: dict[str, Any]) -> None:
        """Attach an offer that a person decides on."""
        await self.post("/offers", {"id": offer, "dataset": dataset, "policy": policy, "decide": "manual"})

    async def changes(self) -> AsyncIterator[Change]:
        """State changes as they are committed, from the stream of events; joined again when it breaks off."""
        query = {"kind": list(KINDS)}
        while True:
            try:
                async with self._http.stream(
                    "GET", f"{self.place.management}/events/stream", params=query, timeout=None
                ) as reply:
                    reply.raise_for_status()
                    async for line in reply.aiter_lines():
                        if line.startswith("data:") and (change := _change(json.loads(line[5:]))):
                            yield change
            except httpx2.TransportError as error:
                print(f"harness: the stream of events broke off: {error}", file=sys.stderr)
            await asyncio.sleep(0.2)


def _change(event: dict[str, Any]) -> Change | None:
    """What an event says about a process, if anything."""
    kind, subject = KINDS.get(event.get("kind", ""), ("", ""))
    if not kind:
        return None
    state = event.get("detail", {}).get("state", "")
    return Change(kind=kind, pid=event["process"], subject=event.get(subject, ""), state=state)
