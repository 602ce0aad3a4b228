"""A scripted counterparty: says any message of the protocol to a side of the pair, in any state, as anybody."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from connector.dsp import states
from connector.dsp.routes import PATH
from connector.dsp.states import CONSUMER, PROVIDER
from connector.infra.net.http_client import Reply
from connector.store import Transaction
from connector.store.tables import Agreement, GrantState, Negotiation, Transfer
from tests.support.pair import USE, Json, Side, exchange

CONTEXT = ["https://w3id.org/dspace/2025/1/context.jsonld"]
DATASET, OFFER_ID, AGREEMENT_ID = "urn:hanse:north:air", "offer:air", "urn:uuid:agreement"
ADDRESS = {"@type": "DataAddress", "endpointType": "https://w3id.org/idsa/v4.1/HTTP", "endpoint": "http://203.0.113.9"}
THEIR_PID = "their-own-pid"
PATHS = {
    states.REQUEST: "request",
    states.OFFER: "offers",
    states.AGREEMENT: "agreement",
    states.VERIFICATION: "agreement/verification",
    states.ACCEPTED_EVENT: "events",
    states.FINALIZED_EVENT: "events",
    states.NEGOTIATION_TERMINATION: "termination",
    states.TRANSFER_REQUEST: "request",
    states.START: "start",
    states.COMPLETION: "completion",
    states.SUSPENSION: "suspension",
    states.TRANSFER_TERMINATION: "termination",
}


@dataclass
class Counterparty:
    """Speaks as `participant` to one side. `host` answers nothing unless a test puts an application there."""

    to: Side
    participant: str = "did:web:other.example"
    host: str = "203.0.113.9"

    @property
    def address(self) -> str:
        return f"http://{self.host}{PATH}"

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.participant}>{self.to.participant}"}

    async def post(self, path: str, message: Any) -> Reply:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await exchange(self.to.app, "POST", f"{self.to.base}{path}", self.headers(), body)

    async def get(self, path: str) -> Reply:
        return await exchange(self.to.app, "GET", f"{self.to.base}{path}", self.headers(), b"")

    async def say(self, step: str, row: Negotiation | Transfer, **more: Any) -> Reply:
        """One message of the state tables, about a process of the side that is spoken to."""
        kind = "negotiations" if isinstance(row, Negotiation) else "transfers"
        return await self.post(f"/{kind}/{row.id}/{PATHS[step]}", self.message(step, row, **more))

    def message(self, step: str, row: Negotiation | Transfer, **more: Any) -> Json:
        """A well formed message of that name. Each has an id of its own."""
        kind, _, event = step.partition(":")
        ours, theirs = ("providerPid", "consumerPid") if row.role == PROVIDER else ("consumerPid", "providerPid")
        wire = {"@context": CONTEXT, "@type": kind, "@id": f"urn:uuid:{uuid.uuid4()}", ours: row.id, theirs: THEIR_PID}
        if event:
            wire["eventType"] = event
        if step in (states.REQUEST, states.OFFER):
            wire["offer"] = {"@type": "Offer", "@id": OFFER_ID, "target": DATASET, **USE}
        if step == states.AGREEMENT:
            wire["agreement"] = self.agreement(f"urn:uuid:{uuid.uuid4()}")
        if step == states.START:
            wire["dataAddress"] = ADDRESS
        if step == states.TRANSFER_REQUEST:
            wire |= {"agreementId": AGREEMENT_ID, "format": "HttpData-PULL", "callbackAddress": self.address}
        return {**wire, **more}

    def agreement(self, agreement_id: str, **more: Any) -> Json:
        """An agreement by this participant as provider, with the side that is spoken to."""
        return {
            "@type": "Agreement",
            "@id": agreement_id,
            "target": DATASET,
            "assigner": self.participant,
            "assignee": self.to.participant,
            "timestamp": "2026-01-15T10:30:00.123456789Z",
            "permission": [{"action": "use", "constraint": []}],
            **more,
        }

    def request(self, pid: str = THEIR_PID, **more: Any) -> Json:
        """A first request for the offer."""
        offer = {"@type": "Offer", "@id": OFFER_ID, "target": DATASET, **USE}
        return {
            "@context": CONTEXT,
            "@type": "ContractRequestMessage",
            "consumerPid": pid,
            "offer": offer,
            "callbackAddress": self.address,
            **more,
        }

    async def negotiation(self, *, role: str, state: str, pending: str = "", decide: str = "manual") -> Negotiation:
        """A negotiation at the side that is spoken to, put into `state` directly."""

        def work(tx: Transaction) -> Negotiation:
            agreed = state in (states.AGREED, states.VERIFIED, states.FINALIZED)
            row = Negotiation(
                id=f"urn:uuid:{uuid.uuid4()}",
                role=role,
                peer_pid="" if pending else f"{THEIR_PID}:{uuid.uuid4()}",
                counterparty=self.participant,
                address=self.address,
                state=state,
                pending=pending,
                dataset_id=DATASET,
                offer_id=OFFER_ID,
                offer={"@type": "Offer", "@id": OFFER_ID, "target": DATASET, **USE},
                decide=decide,
                agreement_id=f"urn:uuid:{uuid.uuid4()}" if agreed else "",
                code="",
                reason="",
                correlation="",
                created_at=tx.now,
                updated_at=tx.now,
            )
            tx.negotiations.add(row)
            if agreed:
                self._agree(tx, row.agreement_id, role, row.id, finalized=state == states.FINALIZED)
            return row

        return await self.to.store.write(work)

    async def transfer(self, *, role: str, state: str, pending: str = "", suspended_by: str = "") -> Transfer:
        """A transfer at the side that is spoken to, put into `state` directly, under an agreement of its own."""

        def work(tx: Transaction) -> Transfer:
            agreement_id = f"urn:uuid:{uuid.uuid4()}"
            self._agree(tx, agreement_id, role, "none", finalized=True)
            row = Transfer(
                id=f"urn:uuid:{uuid.uuid4()}",
                role=role,
                peer_pid="" if pending else f"{THEIR_PID}:{uuid.uuid4()}",
                counterparty=self.participant,
                address=self.address,
                state=state,
                pending=pending,
                agreement_id=agreement_id,
                format="HttpData-PULL",
                purpose="",
                data_address=ADDRESS if role == CONSUMER and state == states.STARTED else {},
                suspended_by=suspended_by,
                generation=1,
                code="",
                reason="",
                correlation="",
                created_at=tx.now,
                updated_at=tx.now,
            )
            tx.transfers.add(row)
            return row

        return await self.to.store.write(work)

    def _agree(self, tx: Transaction, agreement_id: str, role: str, negotiation_id: str, *, finalized: bool) -> None:
        provider, consumer = self.to.participant, self.participant
        if role == CONSUMER:
            provider, consumer = consumer, provider
        policy = {**self.agreement(agreement_id), "assigner": provider, "assignee": consumer}
        tx.agreements.add(
            Agreement(
                id=agreement_id,
                role=role,
                negotiation_id=negotiation_id,
                dataset_id=DATASET,
                offer_id=OFFER_ID,
                provider=provider,
                consumer=consumer,
                address=self.address,
                policy=policy,
                digest="",
                signed_at=tx.now,
                finalized=finalized,
                ended_at=None,
            )
        )
        if role == PROVIDER and finalized:
            tx.agreements.add(GrantState(agreement_id=agreement_id, revoked_at=None))


async def snapshot(side: Side) -> dict[str, Any]:
    """Everything that a message could change: processes, agreements, outbox, and events but refusals."""

    def work(tx: Transaction) -> dict[str, Any]:
        rows = [*tx.negotiations.page(limit=1_000), *tx.transfers.page(limit=1_000), *tx.agreements.page(limit=1_000)]
        columns = [{key: value for key, value in vars(row).items() if key != "_sa_instance_state"} for row in rows]
        kinds = [row.body["kind"] for row in tx.audit.list_pending(100_000)]
        return {
            "rows": sorted(columns, key=lambda row: (row["id"], row["role"])),
            "outbox": tx.outbox.count_waiting(),
            "events": [kind for kind in kinds if kind != "RequestRefused"],
        }

    return await side.store.read(work)
