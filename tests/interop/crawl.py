"""A real catalogue process that visits EDC, with a credential of its own where EDC demands one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.support.issuer import TYPE
from tests.tck.product import free_port

PATIENCE = 60.0  # seconds for the process to come up


class CatalogueProcess:
    """The process in `directory`; `token` is its operator's once it is up."""

    def __init__(self, directory: Path, http: httpx2.AsyncClient, *, edc: str) -> None:
        self.directory, self._http, self._edc, self._port = directory, http, edc, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.participant = f"did:web:127.0.0.1%3A{self._port}"
        self.token = ""

    @asynccontextmanager
    async def running(self, credential: str) -> AsyncIterator[None]:
        """It runs while the block runs, and presents this credential."""
        folder = self.directory / "credentials"
        folder.mkdir(parents=True)
        (folder / "membership.jwt").write_text(credential)
        log = (self.directory / "catalogue.log").open("wb")
        command = [sys.executable, "-m", "catalogue", "serve"]
        process = subprocess.Popen(command, env=self._environment(folder), stdout=log, stderr=log)  # noqa: ASYNC220
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self._is_up():
                    if process.poll() is not None:
                        raise RuntimeError(f"the catalogue ended by itself: see {self.directory}")
                    await asyncio.sleep(0.1)
            self.token = (self.directory / "admin.token").read_text().strip()
            yield
        finally:
            process.terminate()
            process.wait(30)
            log.close()

    def _environment(self, credentials: Path) -> dict[str, str]:
        ours = {
            "DATA_DIR": str(self.directory / "catalogue"),
            "PUBLIC_PORT": str(self._port),
            "ADMIN_TOKEN_FILE": str(self.directory / "admin.token"),
            "ALLOW_PRIVATE": "127.0.0.1",
            "INSECURE_HTTP": "true",
            "CREDENTIAL_FOLDER": str(credentials),
            "CREDENTIAL_SCOPES": TYPE,
            "ISSUER_KEYS_FOR_ALL_PURPOSES": self._edc,  # the document of IdentityHub 0.15 lists no key for any purpose
        }
        rest = {name: value for name, value in os.environ.items() if not name.startswith("HANSE_")}
        return rest | {f"HANSE_{name}": value for name, value in ours.items()}

    async def _is_up(self) -> bool:
        try:
            return (await self._http.get(f"{self.url}/health/ready")).is_success
        except httpx2.TransportError:
            return False

    async def call(self, method: str, path: str, **more: Any) -> Any:
        """One call of its API as the operator. RuntimeError with the answer where it is no success."""
        heads = {"authorization": f"Bearer {self.token}"}
        reply = await self._http.request(method, f"{self.url}/api/v1{path}", headers=heads, **more)
        if not reply.is_success:
            raise RuntimeError(f"catalogue: {method} {path}: {reply.status_code}: {reply.text[:800]}")
        return reply.json()
