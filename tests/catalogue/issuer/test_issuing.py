"""Credentials of members: admission, requests and deliveries, with a connector's verifier as the second opinion."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from catalogue.app import build
from catalogue.issuer.profiles import VC11, VC20
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueTransaction
from connector.errors import Unavailable, Unproven
from connector.identity.signed_jwt import read_jwt
from tests.catalogue.conftest import ROOT, Catalogue
from tests.catalogue.issuer.holder import MEMBERSHIP, OPERATOR, SENSITIVE, Holder, deliver, holding, verifier
from tests.catalogue.provider import Provider, Reply, Request
from tests.support.waiting import until

BOTH = (f"{MEMBERSHIP}-vc11", f"{MEMBERSHIP}-vc20")
DAY = 86_400.0


def claims_of(jwt: str) -> dict[str, Any]:
    return read_jwt(jwt, what="a credential", longest=2**16).claims


async def admitted(catalogue: Catalogue, holder: Holder, name: str = "north", **facts: str) -> None:
    await catalogue.admit(holder.provider, name, **facts)
    await deliver(catalogue)
    catalogue.clock.advance(0.001)  # what follows is newer


async def patch(catalogue: Catalogue, name: str = "north", **changes: str) -> None:
    answer = await catalogue.http.patch(f"/api/v1/members/{name}", json=changes, headers=catalogue.operator)
    assert answer.status_code == 200, answer.text


async def shown(catalogue: Catalogue, member: str = "north") -> dict[str, Any]:
    answer = await catalogue.http.get("/api/v1/credentials", params={"member": member}, headers=catalogue.operator)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_admission_delivers_a_membership_credential_that_a_verifier_accepts(
    catalogue: Catalogue, holder: Holder
) -> None:
    await admitted(catalogue, holder, role="research", country="DE")
    (message,) = holder.deliveries
    assert (message["type"], message["status"]) == ("CredentialMessage", "ISSUED")
    assert [(one["credentialType"], one["format"]) for one in message["credentials"]] == [(MEMBERSHIP, VC11.name)]
    assert (holder.tokens[0]["iss"], holder.tokens[0]["aud"]) == (OPERATOR, holder.did)
    (credential,) = await verifier(catalogue).verify(holder.did, "opaque")
    assert (credential.issuer, credential.types) == (OPERATOR, (MEMBERSHIP,))
    assert credential.subjects == (
        {"id": holder.did, "memberOf": "Test space", "name": "north", "role": "research", "country": "DE"},
    )


@pytest.mark.parametrize("profile", [VC11, VC20])
async def test_a_suspended_members_credential_is_refused_until_the_suspension_is_lifted(
    catalogue: Catalogue, holder: Holder, profile: Any
) -> None:
    await admitted(catalogue, holder)
    assert (await holder.request(catalogue, f"{SENSITIVE}-{profile.short}")).status_code == 201
    await deliver(catalogue)
    (credential,) = await verifier(catalogue, SENSITIVE).verify(holder.did, "opaque")
    assert credential.types == (SENSITIVE,)
    for status, accepted in (("suspended", False), ("active", True), ("suspended", False)):
        await patch(catalogue, status=status)
        if accepted:
            assert await verifier(catalogue, SENSITIVE).verify(holder.did, "opaque")
        else:
            with pytest.raises(Unproven) as refused:
                await verifier(catalogue, SENSITIVE).verify(holder.did, "opaque")
            assert f"scope org.eclipse.dspace.dcp.vc.type:{SENSITIVE}" in refused.value.private


async def test_the_credentials_of_a_removed_member_never_hold_again(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    old = holder.deliveries[-1]
    await catalogue.http.delete("/api/v1/members/north", headers=catalogue.operator)
    with pytest.raises(Unproven):
        await verifier(catalogue).verify(holder.did, "opaque")
    await admitted(catalogue, holder)
    assert await verifier(catalogue).verify(holder.did, "opaque")
    assert [one["state"] for one in (await shown(catalogue))["credentials"]] == ["active", "revoked"]
    await patch(catalogue, status="suspended")
    await patch(catalogue, status="active")
    holder.deliveries.append(old)
    with pytest.raises(Unproven):
        await verifier(catalogue).verify(holder.did, "opaque")


async def test_a_member_requests_both_profiles_and_follows_its_request(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    metadata = (await catalogue.http.get("/issuer/metadata")).json()
    assert (metadata["type"], metadata["issuer"]) == ("IssuerMetadata", OPERATOR)
    offered = {one["id"]: (one["credentialType"], one["profile"]) for one in metadata["credentialsSupported"]}
    assert set(offered.values()) == {
        (kind, profile.name) for kind in (MEMBERSHIP, SENSITIVE) for profile in (VC11, VC20)
    }
    answer = await holder.request(catalogue, *BOTH, headers=holder.header(token="our-access-token"))
    assert answer.status_code == 201
    address = answer.headers["location"]
    assert address.startswith(f"{ROOT}/issuer/requests/")
    status = (await catalogue.http.get(address, headers=holder.header())).json()
    assert (status["type"], status["holderPid"], status["status"]) == ("CredentialStatus", "our-request-1", "RECEIVED")
    await deliver(catalogue)
    assert (await catalogue.http.get(address, headers=holder.header())).json()["status"] == "ISSUED"
    assert holder.tokens[-1]["token"] == "our-access-token"
    message = holder.deliveries[-1]
    assert (message["issuerPid"], message["holderPid"]) == (status["issuerPid"], "our-request-1")
    assert {one["format"] for one in message["credentials"]} == {VC11.name, VC20.name}
    old, new = (claims_of(one) for one in holder.credentials)
    assert "vc" in old
    assert new["type"] == ["VerifiableCredential", MEMBERSHIP]
    assert isinstance(old["vc"]["credentialStatus"], dict)
    assert len(await verifier(catalogue).verify(holder.did, "opaque")) == 2


async def test_a_delivery_is_tried_again_and_sends_the_same_credential(
    catalogue: Catalogue, holder: Holder, catalogue_settings: dict[str, Any]
) -> None:
    holder.answers = [503, 404]
    await admitted(catalogue, holder)
    (request,) = (await shown(catalogue))["requests"]
    assert (holder.attempts, request["attempts"], request["status"]) == (1, 1, "RECEIVED")
    assert "got 503" in request["problem"]
    assert 4.9 < request["next_at"] - catalogue.clock.now < 5
    await deliver(catalogue)
    assert holder.attempts == 1
    catalogue.clock.advance(5)
    await deliver(catalogue)
    assert holder.attempts == 2
    again = build(CatalogueSettings(**catalogue_settings), clock=catalogue.clock)  # as a start of the process does
    catalogue.clock.advance(10)
    await deliver(Catalogue(again, catalogue.http, catalogue.token, catalogue.clock))
    await again.net.close()
    again.search.close()
    again.store.close()
    assert (holder.attempts, len(holder.deliveries)) == (3, 1)
    found = await shown(catalogue)
    assert [one["status"] for one in found["requests"]] == ["ISSUED"]
    assert [one["id"] for one in found["credentials"]] == [claims_of(holder.credentials[0])["jti"]]


async def test_a_delivery_that_never_succeeds_is_given_up(catalogue: Catalogue, holder: Holder) -> None:
    holder.answers = [500] * 100
    await admitted(catalogue, holder)
    for _ in range(40):
        catalogue.clock.advance(3600)
        await deliver(catalogue)
    (request,) = (await shown(catalogue))["requests"]
    assert (holder.attempts, request["status"], request["next_at"]) == (30, "REJECTED", None)
    assert request["problem"].startswith("given up after 30 attempts")
    assert [one["state"] for one in (await shown(catalogue))["credentials"]] == ["revoked"]
    holder.answers = []
    issuer, store = catalogue.parts.issuer, catalogue.parts.store
    assert issuer is not None
    await store.write(issuer.issuing.renew)  # more than a day later
    await deliver(catalogue)
    assert len(holder.deliveries) == 1


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (lambda holder: Reply.of({"id": holder.did, "service": []}), "has no service of type CredentialService"),
        (lambda _: Reply(500), "cannot be fetched now"),
        (lambda holder: inward(holder, "http://10.0.0.1/cs"), "10.0.0.1"),
        (lambda holder: inward(holder, "file:///etc"), "file:///etc"),
    ],
)
async def test_a_member_whose_credential_service_cannot_be_called_is_shown_with_the_reason(
    catalogue: Catalogue, holder: Holder, document: Any, says: str
) -> None:
    await catalogue.admit(holder.provider, "north")
    holder.provider.document = lambda: document(holder)
    await deliver(catalogue)
    (request,) = (await shown(catalogue))["requests"]
    assert says in request["problem"]


def inward(holder: Holder, endpoint: str) -> Reply:
    service = {"id": f"{holder.did}#cs", "type": "CredentialService", "serviceEndpoint": endpoint}
    return Reply.of({"id": holder.did, "service": [service]})


async def test_who_is_suspended_before_the_delivery_gets_a_rejection(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    answer = await holder.request(catalogue, *BOTH)
    await patch(catalogue, status="suspended")
    await deliver(catalogue)
    message = holder.deliveries[-1]
    assert (message["status"], message["credentials"], message["holderPid"]) == ("REJECTED", [], "our-request-1")
    status = (await catalogue.http.get(answer.headers["location"], headers=holder.header())).json()
    assert status["status"] == "REJECTED"
    assert len((await shown(catalogue))["credentials"]) == 1
    refused = await holder.request(catalogue, *BOTH)
    assert (refused.status_code, "suspended" in refused.json()["detail"]) == (403, True)


async def test_a_suspension_between_two_attempts_ends_what_was_signed(catalogue: Catalogue, holder: Holder) -> None:
    holder.answers = [503]
    await admitted(catalogue, holder)
    await patch(catalogue, status="suspended")
    catalogue.clock.advance(10)
    await deliver(catalogue)
    assert holder.deliveries[-1]["status"] == "REJECTED"
    await patch(catalogue, status="active")
    await deliver(catalogue)
    assert await verifier(catalogue).verify(holder.did, "opaque")
    found = await shown(catalogue)
    assert [one["state"] for one in found["credentials"]] == ["active", "revoked"]
    assert [(one["status"], one["problem"]) for one in found["requests"]] == [
        ("ISSUED", ""),
        ("REJECTED", "north is suspended"),
    ]


async def test_a_slow_wallet_holds_up_its_own_deliveries_alone(
    catalogue: Catalogue, holder: Holder, other: Holder
) -> None:
    await admitted(catalogue, holder)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(provider: Provider, request: Request) -> Reply:
        asked.set()
        await go_on.wait()
        return holder.answer(provider, request)

    holder.provider.answer = slow
    for _ in range(2):
        await holder.request(catalogue, *BOTH)
    issuer = catalogue.parts.issuer
    assert issuer is not None
    (waiting,) = await issuer.delivery.start_due()
    await asked.wait()
    await catalogue.admit(other.provider, "south")
    both = await issuer.delivery.start_due()
    assert len(both) == 2
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    assert (len(other.deliveries), len(holder.deliveries), waiting.done()) == (1, 1, False)
    go_on.set()
    await deliver(catalogue)
    assert len(holder.deliveries) == 3


async def test_slow_wallets_with_many_requests_let_the_others_have_a_turn(catalogue: Catalogue, holder: Holder) -> None:
    issuer, first, others = catalogue.parts.issuer, asyncio.Event(), asyncio.Event()
    assert issuer is not None
    async with AsyncExitStack() as stack:
        slow_ones = [await stack.enter_async_context(holding()) for _ in range(4)]  # the places of one host
        for number, one in enumerate(slow_ones):
            await admitted(catalogue, one, f"slow-{number}")
        for one in slow_ones:

            async def slow(provider: Provider, request: Request, *, one: Holder = one) -> Reply:
                await (first if one is slow_ones[0] else others).wait()
                return one.answer(provider, request)

            one.provider.answer = slow
            for _ in range(3):
                await one.request(catalogue, *BOTH)
        stack.callback(others.set)
        stack.callback(first.set)
        catalogue.clock.advance(1)
        running = await issuer.delivery.start_due()
        assert len(running) == 4
        await catalogue.admit(holder.provider, "north")
        catalogue.clock.advance(1)
        first.set()
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        running = await issuer.delivery.start_due()
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        assert len(holder.deliveries) == 1
        others.set()


async def test_what_a_wallet_answers_controls_no_terminal(catalogue: Catalogue, holder: Holder) -> None:
    holder.provider.answer = lambda *_: Reply(500, {}, b"\x1b]0;owned\x07\x00")
    await catalogue.admit(holder.provider, "north")
    await deliver(catalogue)
    (request,) = (await shown(catalogue))["requests"]
    assert request["problem"].endswith("got 500: \\u001b]0;owned\\u0007\\u0000")


async def test_the_running_issuer_delivers_what_is_requested_and_survives_a_broken_round(
    catalogue: Catalogue, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer, store = catalogue.parts.issuer, catalogue.parts.store
    assert issuer is not None
    broken = [Unavailable("full")]
    read = store.read

    async def failing_once(work: Any) -> Any:
        if broken:
            raise broken.pop()
        return await read(work)

    monkeypatch.setattr(store, "read", failing_once)
    running = asyncio.create_task(issuer.delivery.run())
    await until(lambda: not broken)
    await catalogue.admit(holder.provider, "north")
    await until(lambda: holder.deliveries)
    await holder.request(catalogue, *BOTH)
    await until(lambda: len(holder.deliveries) == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await issuer.delivery.close()


async def test_a_type_that_is_issued_no_more_is_rejected(
    catalogue: Catalogue, holder: Holder, catalogue_settings: dict[str, Any]
) -> None:
    await admitted(catalogue, holder)
    await holder.request(catalogue, f"{SENSITIVE}-vc11")
    fewer = CatalogueSettings(**{**catalogue_settings, "issuer_types": (MEMBERSHIP,)})
    again = build(fewer, clock=catalogue.clock)
    await deliver(Catalogue(again, catalogue.http, catalogue.token, catalogue.clock))
    await again.net.close()
    again.search.close()
    again.store.close()
    assert holder.deliveries[-1]["status"] == "REJECTED"
    assert "issues SensitiveDataCredential-vc11 no more" in (await shown(catalogue))["requests"][0]["problem"]


async def test_who_is_admitted_as_suspended_gets_a_credential_once_active(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder, status="suspended")
    assert holder.deliveries == []
    await patch(catalogue, status="active")
    await deliver(catalogue)
    assert len(holder.deliveries) == 1


async def test_a_changed_role_revokes_the_credential_and_delivers_another(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder, role="research")
    old = holder.deliveries[0]
    await patch(catalogue, role="observer")
    await deliver(catalogue)
    (credential,) = await verifier(catalogue).verify(holder.did, "opaque")
    assert credential.subjects[0]["role"] == "observer"
    holder.deliveries.append(old)
    with pytest.raises(Unproven):
        await verifier(catalogue).verify(holder.did, "opaque")
    await patch(catalogue, title="Another title")
    await deliver(catalogue)
    assert [one["state"] for one in (await shown(catalogue))["credentials"]] == ["active", "revoked"]


async def test_a_credential_is_renewed_before_its_end(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    issuer, store = catalogue.parts.issuer, catalogue.parts.store
    assert issuer is not None
    for days, deliveries in ((200, 1), (100, 2), (1, 2)):
        catalogue.clock.advance(days * DAY)
        await store.write(issuer.issuing.renew)
        await deliver(catalogue)
        assert len(holder.deliveries) == deliveries
    assert holder.deliveries[0]["holderPid"] == holder.deliveries[1]["holderPid"]
    catalogue.clock.advance(100 * DAY)  # the first one has ended a month ago
    await store.write(issuer.issuing.renew)
    assert len((await shown(catalogue))["credentials"]) == 1


async def test_members_from_before_the_issuer_get_their_credential_at_its_start(
    catalogue: Catalogue, holder: Holder, catalogue_settings: dict[str, Any]
) -> None:
    await admitted(catalogue, holder)
    store, issuer = catalogue.parts.store, catalogue.parts.issuer
    assert issuer is not None
    await store.write(forget_all)
    await store.write(issuer.issuing.renew)
    await deliver(catalogue)
    assert len(holder.deliveries) == 2


def forget_all(tx: CatalogueTransaction) -> None:
    tx.issuances.sweep(tx.now + 10_000 * DAY)


async def test_the_operator_has_a_credential_issued_again(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    post = catalogue.http.post
    answer = await post("/api/v1/credentials", json={"member": "north"}, headers=catalogue.operator)
    assert answer.status_code == 202
    again = await post("/api/v1/credentials", json={"member": "north"}, headers=catalogue.operator)
    assert (again.status_code, "under way" in again.json()["detail"]) == (409, True)
    await deliver(catalogue)
    assert len(holder.deliveries) == 2
    for headers, status in ((dict, 401), (holder.header, 403)):
        assert (await catalogue.http.get("/api/v1/credentials?member=north", headers=headers())).status_code == status
        assert (await post("/api/v1/credentials", json={"member": "north"}, headers=headers())).status_code == status
    assert (await post("/api/v1/credentials", json={"member": "x"}, headers=catalogue.operator)).status_code == 404


async def test_the_operators_page_of_members_shows_credentials_and_what_is_not_delivered(
    catalogue: Catalogue, holder: Holder
) -> None:
    async def look(headers: dict[str, str]) -> str:
        return (await catalogue.http.get("/members", headers={**headers, "accept": "text/html"})).text

    holder.answers = [500]
    await admitted(catalogue, holder)
    assert 'Credential not delivered yet: <span lang="en">expected the credential service' in await look(
        catalogue.operator
    )
    catalogue.clock.advance(5)
    await deliver(catalogue)
    await patch(catalogue, role="observer")
    await deliver(catalogue)
    page = await look(catalogue.operator)
    assert ("not delivered" in page, "Credentials: Active 1, Revoked 1" in page) == (False, True)
    assert "Credentials:" not in await look({})


class TestOnEachDatabase:
    @pytest.fixture
    def catalogue_settings(self, catalogue_settings: dict[str, Any], database_url: str) -> dict[str, Any]:
        return {**catalogue_settings, "database_url": database_url}

    async def test_members_are_admitted_served_at_once_suspended_and_removed(
        self, catalogue: Catalogue, holder: Holder, other: Holder
    ) -> None:
        await catalogue.admit(holder.provider, "north")
        await catalogue.admit(other.provider, "south")
        await deliver(catalogue)  # both at once, from lists that do not exist yet
        catalogue.clock.advance(0.001)
        await holder.request(catalogue, *BOTH)
        await deliver(catalogue)
        assert len(await verifier(catalogue).verify(holder.did, "opaque")) == 2
        await patch(catalogue, status="suspended")
        with pytest.raises(Unproven):
            await verifier(catalogue).verify(holder.did, "opaque")
        assert await verifier(catalogue).verify(other.did, "opaque")
        await patch(catalogue, status="active")
        assert len(await verifier(catalogue).verify(holder.did, "opaque")) == 2
        await patch(catalogue, role="observer")
        await deliver(catalogue)
        states = [one["state"] for one in (await shown(catalogue))["credentials"]]
        assert sorted(states) == ["active", "revoked", "revoked", "revoked"]
        await catalogue.http.delete("/api/v1/members/north", headers=catalogue.operator)
        found = await shown(catalogue, holder.did)
        assert {one["state"] for one in found["credentials"]} == {"revoked"}


class TestWithHubFormats:
    @pytest.fixture
    def catalogue_settings(self, catalogue_settings: dict[str, Any], holder: Holder) -> dict[str, Any]:
        return {**catalogue_settings, "issuer_hub_formats": (holder.did,)}

    async def test_a_listed_wallet_gets_the_names_of_formats_that_it_knows(
        self, catalogue: Catalogue, holder: Holder
    ) -> None:
        await admitted(catalogue, holder)
        await holder.request(catalogue, *BOTH)
        await deliver(catalogue)
        assert {one["format"] for one in holder.deliveries[-1]["credentials"]} == {"VC1_0_JWT", "VC2_0_JOSE"}


class TestWithoutTypes:
    @pytest.fixture
    def catalogue_settings(self, catalogue_settings: dict[str, Any]) -> dict[str, Any]:
        return {**catalogue_settings, "issuer_types": ()}

    async def test_a_catalogue_is_no_issuer(self, catalogue: Catalogue, north: Provider) -> None:
        await catalogue.admit(north, "north")
        document = (await catalogue.http.get("/.well-known/did.json")).json()
        assert "IssuerService" not in {one["type"] for one in document["service"]}
        for path in ("/issuer/metadata", "/issuer/requests/x", "/issuer/status/bitstring/1"):
            assert (await catalogue.http.get(path)).status_code == 404
        assert (await catalogue.http.post("/issuer/credentials", json={})).status_code in (404, 405)
        found = await shown(catalogue)
        assert found == {"credentials": [], "requests": []}
        body = {"member": "north"}
        answer = await catalogue.http.post("/api/v1/credentials", json=body, headers=catalogue.operator)
        assert (answer.status_code, "HANSE_ISSUER_TYPES" in answer.json()["detail"]) == (400, True)


async def test_the_did_document_names_the_issuer_and_its_keys(catalogue: Catalogue) -> None:
    document = (await catalogue.http.get("/.well-known/did.json")).json()
    services = {one["type"]: one["serviceEndpoint"] for one in document["service"]}
    assert services["IssuerService"] == f"{ROOT}/issuer"
    (method,) = document["verificationMethod"]
    for purpose in ("assertionMethod", "capabilityInvocation", "authentication"):
        assert document[purpose] == [method["id"]]
