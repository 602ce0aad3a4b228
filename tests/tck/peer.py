"""The counterparty with which agreements are made before the kit starts. Speaks just enough of the protocol for that.

It takes the participant's name that the kit will use, and knows nothing of the connector but its protocol address.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from typing import Any

import httpx2
from fastapi import APIRouter, Request

Message = dict[str, Any]
CONTEXT = ["https://w3id.org/dspace/2025/1/context.jsonld"]
PATIENCE = 60.0  # seconds for one message of the connector


def _pid() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


class Peer:
    """Agreements in both roles: `consume` asks the connector for one, `agreed` waits for one that it asked for."""

    def __init__(self, *, participant: str, connector: str, base: str, address: str, http: httpx2.AsyncClient) -> None:
        self._participant = participant
        self._connector = connector
        self._base = base
        self._address = address
        self._http = http
        self._inbox: dict[tuple[str, str], asyncio.Queue[Message]] = defaultdict(asyncio.Queue)
        self._agreed: dict[str, asyncio.Queue[str]] = defaultdict(asyncio.Queue)
        self._tasks: set[asyncio.Task[None]] = set()
        self.router = APIRouter()
        self.router.add_api_route("/negotiations/request", self._requested, methods=["POST"], status_code=201)
        self.router.add_api_route("/negotiations/{pid}/{what:path}", self._received, methods=["POST"])

    async def consume(self, *, dataset: str, offer: str, policy: Message) -> str:
        """Negotiate as consumer until FINALIZED; the agreement's id."""
        pid = _pid()
        terms = {"@type": "Offer", "@id": offer, "target": dataset, **policy}
        body = _message("ContractRequestMessage", consumerPid=pid, offer=terms, callbackAddress=self._address)
        peer_pid = (await self._post(f"{self._base}/negotiations/request", body)).json()["providerPid"]
        agreement = (await self._next(pid, "agreement"))["agreement"]
        verified = _message("ContractAgreementVerificationMessage", consumerPid=pid, providerPid=peer_pid)
        await self._post(f"{self._base}/negotiations/{peer_pid}/agreement/verification", verified)
        await self._next(pid, "events")
        return str(agreement["@id"])

    async def agreed(self, consumer_pid: str) -> str:
        """Wait until the negotiation that the connector began is FINALIZED; the agreement's id."""
        return await asyncio.wait_for(self._agreed[consumer_pid].get(), PATIENCE)

    async def _requested(self, request: Request) -> Message:
        body = await request.json()
        pid = _pid()
        task = asyncio.create_task(self._provide(pid, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _message("ContractNegotiation", providerPid=pid, consumerPid=body["consumerPid"], state="REQUESTED")

    async def _provide(self, pid: str, request: Message) -> None:
        await asyncio.sleep(0.1)  # the reply to the request goes first
        consumer, callback = request["consumerPid"], request["callbackAddress"].rstrip("/")
        pids = {"providerPid": pid, "consumerPid": consumer}
        agreement = self._agreement(request["offer"])
        to = f"{callback}/negotiations/{consumer}"
        await self._post(f"{to}/agreement", _message("ContractAgreementMessage", **pids, agreement=agreement))
        await self._next(pid, "agreement/verification")
        await self._post(f"{to}/events", _message("ContractNegotiationEventMessage", **pids, eventType="FINALIZED"))
        self._agreed[consumer].put_nowait(agreement["@id"])

    def _agreement(self, offer: Message) -> Message:
        terms = {key: value for key, value in offer.items() if key not in ("@id", "@type", "assigner", "assignee")}
        parties = {"assigner": self._participant, "assignee": self._connector}
        return {"@type": "Agreement", "@id": _pid(), **terms, **parties, "timestamp": "2026-01-01T00:00:00Z"}

    async def _received(self, pid: str, what: str, request: Request) -> Message:
        self._inbox[pid, what].put_nowait(await request.json())
        return {}

    async def _next(self, pid: str, what: str) -> Message:
        return await asyncio.wait_for(self._inbox[pid, what].get(), PATIENCE)

    async def _post(self, url: str, body: Message) -> httpx2.Response:
        reply = await self._http.post(url, json=body)
        if not reply.is_success:
            raise RuntimeError(f"POST {url}: expected 2xx, came {reply.status_code}: {reply.text[:500]}")
        return reply


def _message(kind: str, **members: Any) -> Message:
    return {"@context": CONTEXT, "@type": kind, "@id": _pid(), **members}
