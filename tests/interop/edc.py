"""Processes of Eclipse EDC's runtime, and EDC itself with its management API. All listens on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx2
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.tck.product import free_port

MOCK_PARTICIPANT = "did:web:edc.example"
PROTOCOL = "dataspace-protocol-http:2025-1"
PREFIX = "https://w3id.org/edc/v0.0.1/ns/"
PATIENCE = 120.0  # seconds for the process to come up, and for a state
CONTEXTS = ("control", "management", "protocol", "version")
Json = dict[str, Any]


def mock_token(participant: str, audience: str) -> str:
    """A token of EDC's iam-mock. It proves nothing."""
    return json.dumps({"region": "eu", "audience": audience, "clientId": participant}, separators=(",", ":"))


def mock_tokens(participant: str, audiences: Iterable[str]) -> list[str]:
    """Every token that iam-mock may make: its members have no fixed order, and versions differ in the audience."""
    made = (json.loads(mock_token(participant, audience)) for audience in audiences)
    orders = (dict(items) for token in made for items in permutations(token.items()))
    return [json.dumps(token, separators=(",", ":")) for token in orders]


@dataclass
class Runtime:
    """A process of EDC's runtime, `name`d in its logs; `contexts`: its listeners besides that for its health."""

    name: str
    directory: Path
    classes: str
    http: httpx2.AsyncClient
    contexts: tuple[str, ...]
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.ports |= {name: free_port() for name in (*self.contexts, "api", "own")}

    def url(self, context: str) -> str:
        return f"http://127.0.0.1:{self.ports[context]}/{context}"

    async def start(self, settings: Mapping[str, object]) -> None:
        """Start the process and wait until it is healthy. RuntimeError where it ends by itself."""
        path = self.directory / f"{self.name}.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in {**self._listeners(), **settings}.items()))
        command = ["java", "-Xmx512m", f"-Dedc.fs.config={path}", "-cp", self.classes]
        with (self.directory / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - starting does not block
                [*command, "org.eclipse.edc.boot.system.runtime.BaseRuntime", "--log-level=DEBUG"],
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith(("EDC_", "WEB_"))},
            )
        async with asyncio.timeout(PATIENCE):
            while not await self._is_healthy():
                await asyncio.sleep(0.2)

    def _listeners(self) -> dict[str, object]:
        named: dict[str, object] = {"edc.hostname": "127.0.0.1", "web.http.port": self.ports["api"]}
        named["web.http.path"] = "/api"
        for name in self.contexts:
            named |= {f"web.http.{name}.port": self.ports[name], f"web.http.{name}.path": f"/{name}"}
        return named

    async def _is_healthy(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended by itself: see {self.directory / self.name}.log")
        try:
            return (await self.http.get(f"http://127.0.0.1:{self.ports['api']}/api/check/health")).is_success
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        """End the process that `start` began."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Edc:
    """The running EDC, which is `participant`. `more`: further settings, such as those of its identity."""

    def __init__(self, directory: Path, classes: str, http: httpx2.AsyncClient, participant: str) -> None:
        self.runtime = Runtime("edc", directory, classes, http, CONTEXTS)
        self.participant = participant
        self.more: dict[str, object] = {}
        self.callback = self.protocol
        self._http = http

    @property
    def protocol(self) -> str:
        """Where it speaks the protocol, whatever address it announces in `callback`."""
        return self.runtime.url("protocol")

    @property
    def management(self) -> str:
        return f"{self.runtime.url('management')}/v3"

    def settings(self) -> dict[str, object]:
        """Its settings. EDC has its keys in a vault in memory, which `Interop.java` fills."""
        private, public = _write_keys(self.runtime.directory)
        named: dict[str, object] = {
            "edc.participant.id": self.participant,
            "edc.participant.context.id": "interop",
            "edc.dsp.callback.address": self.callback,
            "edc.transfer.proxy.token.signer.privatekey.alias": "private",
            "edc.transfer.proxy.token.verifier.publickey.alias": "public",
            "interop.port": self.runtime.ports["own"],
            "interop.private": private,
            "interop.public": public,
        }
        for machine in ("negotiation.consumer", "negotiation.provider", "transfer", "policy.monitor", "dataplane"):
            named[f"edc.{machine}.state-machine.iteration-wait-millis"] = 100
        return named | self.more

    async def start(self) -> None:
        """Start the process and wait until it is healthy. RuntimeError where it ends by itself."""
        await self.runtime.start(self.settings())

    def stop(self) -> None:
        """End the process."""
        self.runtime.stop()

    async def post(self, path: str, body: Json) -> Json:
        """One management call. RuntimeError with the answer where it is no success."""
        message = {"@context": {"@vocab": PREFIX, "odrl": "http://www.w3.org/ns/odrl/2/"}, **body}
        reply = await self._http.post(f"{self.management}{path}", json=message)
        if not reply.is_success:
            raise RuntimeError(f"EDC: POST {path}: expected 2xx, came {reply.status_code}: {reply.text[:800]}")
        return dict(reply.json()) if reply.content else {}

    async def query(self, path: str, body: Json) -> list[Json]:
        """The rows of a query."""
        reply = await self._http.post(f"{self.management}{path}", json={"@context": {"@vocab": PREFIX}, **body})
        return [dict(row) for row in reply.raise_for_status().json()]

    async def reach(self, path: str, state: str) -> Json:
        """The negotiation or transfer once it is in `state`."""
        return await reach(lambda: self.show(path), lambda row: str(row.get("state")), state)

    async def show(self, path: str) -> Json:
        """One row of its management API."""
        return dict((await self._http.get(f"{self.management}{path}")).json())

    async def address(self, transfer: str) -> Json:
        """The properties of the data address that EDC got as consumer, by bare name."""
        reply = await self._http.get(f"http://127.0.0.1:{self.runtime.ports['own']}/addresses/{transfer}")
        return {name.removeprefix(PREFIX): value for name, value in reply.raise_for_status().json().items()}


async def reach(look: Callable[[], Any], state_of: Callable[[Json], str], state: str) -> Json:
    """The row of `look` once it is in `state`. RuntimeError where it ends in another state, or does not get there."""
    row: Json = {}
    try:
        async with asyncio.timeout(PATIENCE):
            while state_of(row := await look()) != state:
                if state_of(row) == "TERMINATED":
                    break
                await asyncio.sleep(0.1)
            else:
                return row
    except TimeoutError:
        pass
    raise RuntimeError(f"expected {state}, came {json.dumps(row)[:800]}")


def _write_keys(directory: Path) -> tuple[Path, Path]:
    """A new key pair of EC P-256, as two PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / "private.pem", directory / "public.pem"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public
