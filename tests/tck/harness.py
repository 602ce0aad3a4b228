"""The app between the conformance kit and a connector. Outside the product: it steers one as an operator would.

It starts a connector, registers what the kit asks for, makes the agreements that transfers need, answers the two calls
by which the kit has the connector begin something, and plays the table of behaviours on the connector's events.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import httpx2
import uvicorn
import yaml
from fastapi import FastAPI
from pydantic import BaseModel

from connector.infra.http import problem_json
from tests.support.issuer import TYPE, Issuer, import_credential
from tests.tck.participant import Participant, rules
from tests.tck.peer import Peer
from tests.tck.product import Place, Product, free_port
from tests.tck.script import Case, Player, Table

HERE = Path(__file__).parent
LIMITS = httpx2.Limits(max_connections=50)


class Negotiate(BaseModel):
    """What the kit posts to have a negotiation begun."""

    providerId: str  # noqa: N815 - the kit's spelling
    connectorAddress: str  # noqa: N815
    offerId: str  # noqa: N815
    datasetId: str  # noqa: N815


class Transfer(BaseModel):
    """What the kit posts to have a transfer begun."""

    providerId: str  # noqa: N815
    connectorAddress: str  # noqa: N815
    agreementId: str  # noqa: N815
    format: str


@dataclass
class Harness:
    """Everything that a run needs; `serving` brings it up and takes it down."""

    table: Table
    product: Product
    peer: Peer
    participant: Participant
    address: str
    agreements: dict[str, str] = field(default_factory=dict)  # case -> agreement id

    def __post_init__(self) -> None:
        self.player = Player(self._command, after=0.0)

    def app(self, issuer: Issuer | None) -> FastAPI:
        """The two calls of the kit, and the counterparty for agreements."""
        app = FastAPI(openapi_url=None)
        app.add_api_route("/kit/negotiations", self._negotiate, methods=["POST"])
        app.add_api_route("/kit/transfers", self._transfer, methods=["POST"])
        app.include_router(self.peer.router, prefix="/peer")
        app.include_router(self.participant.router)
        if issuer is not None:
            app.include_router(issuer.router())
        problem_json.install(app)
        return app

    async def _negotiate(self, ask: Negotiate) -> dict[str, str]:
        return await self._ask(ask.datasetId, ask.offerId, ask.connectorAddress)

    async def _ask(self, dataset: str, offer: str, address: str) -> dict[str, str]:
        body = {"dataset_id": dataset, "offer_id": offer, "policy": self.table.policy, "decide": "manual"}
        return {"id": str((await self.product.post("/negotiations", {**body, **self._whom(address)}))["id"])}

    async def _transfer(self, ask: Transfer) -> dict[str, str]:
        body = {"agreement_id": ask.agreementId, "format": ask.format, **self._whom(ask.connectorAddress)}
        return {"id": str((await self.product.post("/transfers", body))["id"])}

    def _whom(self, address: str) -> dict[str, str]:
        return {"counter_party_id": self.participant.did, "counter_party_address": self.participant.back(address)}

    async def _command(self, kind: str, pid: str, command: str) -> None:
        try:
            await self.product.post(f"/{kind}s/{pid}/{command}", {})
        except (RuntimeError, httpx2.TransportError) as error:
            print(f"harness: {command} of {kind} {pid} failed: {error}", file=sys.stderr, flush=True)

    async def follow(self) -> None:
        """Play the table on every state change."""
        async for change in self.product.changes():
            print(f"harness: {change}", file=sys.stderr)
            self.player.on(change)

    async def seed(self) -> None:
        """Register datasets and offers, make the agreements, and assign every script to its subject."""
        ours, theirs = self.table.agreements["provider"], self.table.agreements["consumer"]
        for case in (ours, theirs, *self.table.cases.values()):
            if case.dataset:
                self.player.assign("negotiation", case.dataset, case.play)
        await asyncio.gather(*(self._offered(case) for case in (ours, *self.table.cases.values()) if case.offer))
        await asyncio.gather(*(self._agreed(case) for case in self.table.cases.values() if case.agreement))
        self.player.after = self.table.after

    async def _offered(self, case: Case) -> None:
        await self.product.dataset(case.dataset)
        await self.product.offer(case.offer, case.dataset, self.table.policy)

    async def _agreed(self, case: Case) -> None:
        make = self._provided if case.agreement == "provider" else self._consumed
        self.agreements[case.id] = await make(self.table.agreements[case.agreement])
        self.player.assign("transfer", self.agreements[case.id], case.play)

    async def _provided(self, terms: Case) -> str:
        return await self.peer.consume(dataset=terms.dataset, offer=terms.offer, policy=self.table.policy)

    async def _consumed(self, terms: Case) -> str:
        begun = await self._ask(terms.dataset, terms.offer, f"{self.address}/peer")
        return await self.peer.agreed(begun["id"])

    def properties(self, kit_port: int) -> str:
        """The kit's properties file for this run."""
        place = self.product.place
        front = self.participant.front
        known = {"base": f"{front}/dsp/2025-1", "root": front, "participant": place.participant}
        head = Template((HERE / "kit.properties").read_text()).substitute(
            known, kit_port=kit_port, harness=self.address
        )
        return head + "\n".join(line for case in self.table.cases.values() for line in self._ids(case)) + "\n"

    def _ids(self, case: Case) -> list[str]:
        if case.agreement:
            said = {"AGREEMENTID": self.agreements[case.id], "FORMAT": self.table.format}
        else:
            said = {"DATASETID": case.dataset, "OFFERID": case.offer}
        return [f"{case.prefix}_{key}={value}" for key, value in said.items() if value]


@asynccontextmanager
async def serving(table: Table, directory: Path, *, credentials: bool) -> AsyncIterator[Harness]:
    """A harness with a running, seeded connector in `directory`. `credentials`: both sides present and demand some."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    place = Place(directory, free_port(), free_port())
    issuer = Issuer(address) if credentials else None
    async with (
        httpx2.AsyncClient(timeout=30, limits=LIMITS, trust_env=False) as operator,
        httpx2.AsyncClient(timeout=30, limits=LIMITS, trust_env=False) as counterparty,
    ):
        product = Product(place, {}, operator, _credential_settings(directory, issuer))
        participant = Participant(
            address,
            name=table.participant,
            connector=place.participant,
            root=place.root,
            http=counterparty,
            issuer=issuer,
        )
        peer = Peer(
            participant=table.participant,
            connector=place.participant,
            base=f"{participant.front}/dsp/2025-1",
            address=f"{address}/peer",
            http=counterparty,
        )
        harness = Harness(table, product, peer, participant, address)
        server = uvicorn.Server(uvicorn.Config(harness.app(issuer), port=port, log_level="warning", lifespan="off"))
        tasks = [asyncio.create_task(server.serve())]
        try:
            await product.start()
            if issuer is not None:
                membership, _ = issuer.issue(place.participant, {"name": "connector"})
                await asyncio.to_thread(import_credential, membership, directory / "ours.jwt", product.environment)
            tasks.append(asyncio.create_task(harness.follow()))
            await asyncio.sleep(0.3)  # the stream of events is joined before anything happens
            await harness.seed()
            yield harness
        finally:
            product.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await participant.close()


def _credential_settings(directory: Path, issuer: Issuer | None) -> dict[str, str]:
    """How the connector demands credentials and presents its own."""
    if issuer is None:
        return {}
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules(issuer)))
    return {"CREDENTIAL_RULES": str(directory / "rules.yaml"), "CREDENTIAL_SCOPES": TYPE}
