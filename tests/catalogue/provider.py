"""A connector of the tests' own, over real HTTP on loopback: as good or as hostile as its `answer` makes it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from joserfc.jwk import ECKey

from connector.identity import self_issued_token
from connector.identity.did import did_of, document
from connector.identity.keys import public_jwk

CONTEXT = ["https://w3id.org/dspace/2025/1/context.jsonld"]
Json = dict[str, Any]


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """What goes back. `trickle` sends one byte at a time with a pause of so many seconds."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trickle: float = 0.0

    @classmethod
    def of(cls, value: object, *, status: int = 200, **headers: str) -> Reply:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, {"content-type": "application/json", **named}, json.dumps(value).encode())


Answer = Callable[["Provider", Request], Reply | Awaitable[Reply]]


class Provider:
    """A participant with a key, a DID and a catalogue. Change `datasets` or `answer` at any time."""

    def __init__(self) -> None:
        self.key = ECKey.generate_key("P-256")
        self.datasets: list[Json] = []
        self.answer: Answer = good
        self.requests: list[Request] = []
        self.participant: str = ""  # what the catalogue says that it is; empty is the truth
        self.url = ""
        self.document: Callable[[], Reply] = self._own_document

    @property
    def did(self) -> str:
        return did_of(self.url)

    def token(self, audience: str) -> str:
        """An Authorization header of this participant."""
        return f"Bearer {self_issued_token.mint(self.key, did=self.did, audience=audience, now=time.time())}"

    def catalog(self, datasets: list[Json] | None = None, **more: object) -> Json:
        """A root catalogue in the protocol's form."""
        found = self.datasets if datasets is None else datasets
        made = {
            "@context": CONTEXT,
            "@id": "urn:uuid:5f7d6f4e-0000-4000-8000-000000000001",
            "@type": "Catalog",
            "participantId": self.participant or self.did,
            "service": [{"@id": "urn:svc", "@type": "DataService", "endpointURL": f"{self.url}/dsp/2025-1"}],
        }
        return {**made, **({"dataset": found} if found else {}), **more}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader)
            self.requests.append(request)
            reply = self._fixed(request)
            if reply is None:
                made = self.answer(self, request)
                reply = made if isinstance(made, Reply) else await made
            await _write(writer, reply)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _fixed(self, request: Request) -> Reply | None:
        return self.document() if request.path == "/.well-known/did.json" else None

    def _own_document(self) -> Reply:
        return Reply.of(document(self.did, jwk=public_jwk(self.key), root_url=self.url))


def good(provider: Provider, request: Request) -> Reply:
    """A well-behaved connector with one page."""
    if request.path == "/.well-known/dspace-version":
        return versions()
    if request.path == "/dsp/2025-1/catalog/request" and request.method == "POST":
        return Reply.of(provider.catalog())
    return Reply.of({}, status=404)


def versions() -> Reply:
    return Reply.of({"protocolVersions": [{"version": "2025-1", "path": "/dsp/2025-1", "binding": "HTTPS"}]})


def dataset(dataset_id: str, *, policy: Json | None = None, **more: object) -> Json:
    """A dataset with good defaults; `members=False` in `policy` is up to the caller."""
    offer = policy or {"permission": [{"action": "use"}]}
    return {
        "@id": dataset_id,
        "@type": "Dataset",
        "dct:title": dataset_id.rpartition(":")[2],
        "hasPolicy": [{"@id": f"{dataset_id}:offer", "@type": "Offer", **offer}],
        "distribution": [
            {
                "@type": "Distribution",
                "format": "HttpData-PULL",
                "accessService": {"@id": "urn:svc", "@type": "DataService", "endpointURL": "http://127.0.0.1/dsp"},
            }
        ],
        **more,
    }


MEMBERS_ONLY: Json = {
    "permission": [
        {
            "action": "ds:query",
            "constraint": [{"leftOperand": "ds:membership", "operator": "eq", "rightOperand": "active"}],
        }
    ]
}


@asynccontextmanager
async def running() -> AsyncIterator[Provider]:
    """A provider that listens on a free port of 127.0.0.1."""
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = first.split(" ")
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    headers = {"content-length": str(len(reply.body)), "connection": "close", **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    if not reply.trickle:
        writer.write(reply.body)
        await writer.drain()
        return
    for byte in reply.body:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(reply.trickle)
