"""A consumer that compares the agreement with the offer of the catalogue word for word, as Eclipse EDC does."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response

from connector.demo import story
from connector.dsp import agreement_terms, routes, states
from connector.dsp.protocol_client import segment
from connector.errors import Unavailable
from connector.identity.principal import Principal
from connector.store import Transaction
from connector.store.tables import Agreement, Offer
from policies.authoring import convert
from policies.evaluation.evaluate import Facts
from policies.model import Kind
from policies.odrl import reader
from tests.support.counterparty import DATASET, OFFER_ID, Counterparty
from tests.support.pair import Json, Pair, add_dataset, emptied, offer_row, pair, settled
from tests.support.strict import request_of, tree

READY_MADE = {
    **{name: convert.template(name) for name in convert.TEMPLATES},
    **{path.stem: path.read_text() for path in sorted(story.OFFERS.glob("*.yaml"))},
}
TEXTS = ("person_id", "name", "email", "address", "phone", "region", "consent", "diagnosis", "patient", "horTh",
         "menostat", "tgrade", "minute", "flight")  # fmt: skip
NUMBERS = ("amount", "age", "value", "time", "cens", "tsize", "estrec", "distance", "speed")
COLUMNS = [
    *({"name": name, "type": "VARCHAR"} for name in TEXTS),
    *({"name": name, "type": "DOUBLE"} for name in NUMBERS),
]
DS = "https://w3id.org/hanse/policy/1/"
PERM: Json = {
    "odrl:conflict": {"@id": "odrl:perm"},
    "permission": [{"action": "use"}],
    "prohibition": [{"action": "odrl:distribute"}],
}
LISTS: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [
                {"leftOperand": "odrl:purpose", "operator": "isAnyOf",
                 "rightOperand": ["https://w3id.org/dpv#ScientificResearch", "https://w3id.org/dpv#AcademicResearch"]},
                {"leftOperand": f"{DS}membership", "operator": "eq", "rightOperand": "active"},
                {"leftOperand": "odrl:dateTime", "operator": "lt",
                 "rightOperand": {"@value": "2130-01-01T00:00:00Z", "@type": "xsd:dateTime"}},
                {"or": [
                    {"leftOperand": f"{DS}role", "operator": "eq", "rightOperand": "analyst"},
                    {"leftOperand": f"{DS}participantCountry", "operator": "isAnyOf", "rightOperand": ["DE", "FR"]},
                ]},
            ],
        }
    ]
}  # fmt: skip
WORDINGS: dict[str, Json] = {"conflict perm": PERM, "lists and types": LISTS}


def ready(text: str) -> tuple[str, Json, str]:
    """Dataset, policy as published, and who decides, of a ready-made offer."""
    form = convert.read_form(text)
    policy = convert.to_policy(form)
    return policy.target, reader.write(policy, in_catalog=True), form.decide


async def publish(two: Pair, dataset: str, policy: Json, *, decide: str = "auto", offer_id: str = OFFER_ID) -> None:
    def work(tx: Transaction) -> None:
        if tx.datasets.find(dataset) is None:
            add_dataset(tx, dataset)
            tx.datasets.get_current(tx.datasets.of(dataset)).schema = COLUMNS
        content = {key: value for key, value in policy.items() if key not in ("@id", "@type")}
        tx.datasets.add(offer_row(offer_id, dataset, content, decide=decide, now=tx.now))

    await two.north.store.write(work)


def known(participant: str) -> Facts:
    """All that the ready-made offers ask of a party."""
    facts = {
        "ds:participant": participant,
        "ds:membership": "active",
        "ds:participantCountry": "DE",
        "ds:role": "analyst",
        "ds:frameworkAgreement": "manufacturing:1.0",
    }
    return Facts.of(facts, source="register")


class Strict(Counterparty):
    """A consumer at `host` that acknowledges what it is sent."""

    async def copied(self, dataset: str, offer_id: str = OFFER_ID) -> Json:
        """The offer as the catalogue has it, with its provider, whom EDC has its user name."""
        reply = await self.get(f"/catalog/datasets/{segment(dataset)}")
        assert reply.status == 200, reply.body
        (offer,) = (one for one in json.loads(reply.body)["hasPolicy"] if one["@id"] == offer_id)
        return {**offer, "assigner": self.to.participant}

    async def negotiated(self, two: Pair, offer: Json, *, asked: Json, decide: str) -> Json:
        """The agreement that comes for this request; a person agrees where one has to."""
        taken = FastAPI(openapi_url=None)
        taken.add_api_route("/{path:path}", lambda: Response(), methods=["POST"])
        two.cable.apps[self.host] = taken
        reply = await self.post("/negotiations/request", self.request(offer=asked))
        assert reply.status == 201, reply.body
        pid = json.loads(reply.body)["providerPid"]
        if decide == "manual":
            await settled(self.to, "negotiation", pid, states.REQUESTED)
            await self.to.negotiations.command(pid, "approve", by="test")
        row = await settled(self.to, "negotiation", pid, states.AGREED)
        assert (await self.say(states.VERIFICATION, row)).status == 200
        await settled(self.to, "negotiation", pid, states.FINALIZED)
        (message,) = two.cable.sent("ContractAgreementMessage")
        agreement: Json = message["agreement"]
        return agreement


async def stored(two: Pair, agreement: Json) -> Agreement:
    row: Agreement = await two.north.store.read(lambda tx: tx.agreements.of(agreement["@id"], role=states.PROVIDER))
    return row


async def check(two: Pair, dataset: str, policy: Json, *, decide: str = "auto", **asked: Any) -> Json:
    """Publish, copy, ask, and compare: the agreement that came."""
    await publish(two, dataset, policy, decide=decide)
    peer = Strict(two.north)
    two.north.facts[peer.participant] = known(peer.participant)
    offer = await peer.copied(dataset)
    request = request_of(offer, offer_id=OFFER_ID, target=dataset, **asked)
    agreement = await peer.negotiated(two, offer, asked=request, decide=decide)
    assert tree(agreement) == tree(offer)
    row = await stored(two, agreement)
    assert row.policy == agreement, "what is stored is what was sent"
    (told,) = [event for event in two.north.events if event.kind == "AgreementConcluded"]
    published = reader.read({"@type": "Offer", **policy}, kind=Kind.OFFER)
    assert row.digest == told.detail["policy"] == reader.digest(published) == reader.digest(reader.read(agreement))
    return agreement


@pytest.mark.parametrize("name", READY_MADE)
async def test_an_agreement_has_the_words_of_a_ready_made_offer(tmp_path: Path, name: str) -> None:
    dataset, policy, decide = ready(READY_MADE[name])
    async with pair(tmp_path) as two:
        agreement = await check(two, dataset, policy, decide=decide)
    assert agreement.get("profile") == policy.get("profile")


@pytest.mark.parametrize("policy", WORDINGS.values(), ids=WORDINGS.keys())
async def test_an_agreement_has_the_words_of_the_offer(tmp_path: Path, policy: Json) -> None:
    async with pair(tmp_path) as two:
        await check(two, DATASET, policy)


async def test_for_you_alone_in_a_request_adds_no_condition_to_the_agreement(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await check(two, DATASET, LISTS, assignee=Counterparty(two.north).participant)


async def test_a_request_in_another_order_gets_the_published_order(tmp_path: Path) -> None:
    turned = json.loads(json.dumps(LISTS))
    turned["permission"][0]["constraint"].reverse()
    async with pair(tmp_path) as two:
        await check(two, DATASET, LISTS, permission=turned["permission"])


async def test_other_terms_that_a_person_takes_stay_in_the_consumers_words_with_the_profile(tmp_path: Path) -> None:
    _, policy, _ = ready(READY_MADE["members-only"])
    async with pair(tmp_path) as two:
        await publish(two, DATASET, policy, decide="manual")
        peer = Strict(two.north)
        two.north.facts[peer.participant] = known(peer.participant)
        offer = await peer.copied(DATASET)
        asked = request_of(offer, offer_id=OFFER_ID, target=DATASET)
        del asked["permission"][1:]
        agreement = await peer.negotiated(two, offer, asked=asked, decide="manual")
        changed = {**offer, "permission": offer["permission"][:1]}
        assert tree(agreement) == tree(changed)


async def test_an_offer_to_a_consumer_names_its_provider_as_the_agreement_does(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await publish(two, DATASET, LISTS)
        two.north.facts[two.south.participant] = known(two.south.participant)
        made = await two.north.negotiations.propose(
            counterparty=two.south.participant, address=two.south.base, offer_id=OFFER_ID, by="test"
        )
        await settled(two.north, "negotiation", made.id, states.OFFERED)
        await emptied(two)
        here = await two.south.only("negotiations")
        await two.south.negotiations.command(here.id, "approve", by="test")
        await settled(two.south, "negotiation", here.id, states.FINALIZED)
        (offered,), (agreed,) = (two.cable.sent(f"Contract{kind}Message") for kind in ("Offer", "Agreement"))
        assert offered["offer"]["assigner"] == two.north.participant
        assert tree(agreed["agreement"]) == tree(offered["offer"])


async def test_offers_that_mean_the_same_have_each_its_own_words(tmp_path: Path) -> None:
    """The catalogue keeps what it wrote; by the digest, an offer would be shown in the words of another one."""
    turned = json.loads(json.dumps({"profile": DS.rstrip("/"), **LISTS}))
    turned["permission"][0]["constraint"].reverse()
    async with pair(tmp_path) as two:
        await publish(two, DATASET, LISTS, offer_id="offer:one")
        await publish(two, DATASET, turned, offer_id="offer:two")

        def digests(tx: Transaction) -> set[str]:
            rows: list[Offer | None] = [tx.datasets.get_offer(name) for name in ("offer:one", "offer:two")]
            return {row.digest for row in rows if row is not None}

        peer = Strict(two.north)
        two.north.facts[peer.participant] = known(peer.participant)
        for name, policy in (("offer:one", LISTS), ("offer:two", turned)):
            written = reader.write(reader.read({"@type": "Offer", "@id": name, **policy}), in_catalog=True)
            assert await peer.copied(DATASET, name) == {**written, "assigner": two.north.participant}
        assert len(await two.north.store.read(digests)) == 1


@pytest.mark.parametrize(
    "path", ["/negotiations/request", "/negotiations/x/events", "/transfers/request", "/catalog/request"]
)
async def test_a_caller_who_cannot_be_identified_now_is_asked_to_come_again(tmp_path: Path, path: str) -> None:
    """EDC ends its process after any 4xx, and tries again after 503."""

    async def unknown(_: str | None) -> Principal:
        raise Unavailable("the DID document of did:web:other.example cannot be fetched now; try again in a moment")

    async with pair(tmp_path) as two:
        side = two.north
        app = FastAPI(openapi_url=None)
        app.include_router(
            routes.router(
                negotiations=side.negotiations,
                transfers=side.transfers,
                catalog=side.catalog,
                sender=side.sender,
                authenticate=unknown,
            )
        )
        peer = Counterparty(side)
        side.app = app
        reply = await peer.post(path, peer.request())
        assert (reply.status, json.loads(reply.body)["code"]) == (503, "busy")
        assert reply.headers["retry-after"] == "1"


def test_the_context_of_the_strict_reader_is_the_protocols() -> None:
    text = (files("connector.dsp") / "schemas" / "context" / "odrl.jsonld").read_text()
    assert json.loads(text)["@context"]["profile"] == {"@type": "@id", "@id": "odrl:profile"}
    assert tree({"@type": "Offer", "nonsense": 1, **PERM})["extensible"] == {
        "http://www.w3.org/ns/odrl/2/conflict": [{"@id": "http://www.w3.org/ns/odrl/2/perm"}]
    }


@pytest.mark.parametrize("unsaid", [("profile",), ("odrl:conflict",), ("profile", "odrl:conflict")], ids="+".join)
def test_what_a_request_leaves_out_is_as_published_and_what_it_says_is_not(unsaid: tuple[str, ...]) -> None:
    offer = {"@type": "Offer", "@id": OFFER_ID, "profile": ["https://example.org/b", "https://example.org/a"], **PERM}
    published = reader.read(offer)
    left = {key: value for key, value in offer.items() if key not in unsaid}
    said = {**left, "profile": "https://example.org/c", "odrl:conflict": {"@id": "odrl:prohibit"}}
    words = [
        agreement_terms.in_published_words(
            agreement_terms.read_requested_offer(one), one, published=published, consumer="did:x"
        )
        for one in (left, said)
    ]
    assert words[0] == published
    assert words[1] == reader.read(said)


@pytest.mark.parametrize(
    "text",
    ['[{"@value":"a"}, 1]', '[{"@value":"a"}', '[{"@value":"a","@value":"b"}]', '[{"@value":"a","x":1}]',
     '[ {"@id":"a"}]', "[" * 3_000 + "]" * 3_000, '[{"@value":"a"}] and more'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_text_that_is_no_list_of_values_stays_a_text(text: str) -> None:
    atom = {"leftOperand": f"{DS}role", "operator": "eq", "rightOperand": text}
    offer = {"@type": "Offer", "@id": OFFER_ID, "permission": [{"action": "use", "constraint": [atom]}]}
    assert agreement_terms.read_requested_offer(offer) == agreement_terms.read_offer(offer)
