"""Our requests for credentials: who is asked, what is recorded, and which deliveries they let in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from connector.errors import Absent, ConnectorError, Invalid, PeerNonsense, PeerRefused
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import Reply
from connector.store import Store
from connector.wallet.credential_requests import CredentialRequests
from connector.wallet.held_credentials import check_credential, store_checked, store_credential
from tests.connector.identity.credentials.world import HOLDER, ISSUER, KEYS, LIST, OTHER, World

SERVICE = "https://office.example/issuer"
TYPE = "MembershipCredential"


class Office(World):
    """The issuer's service, with what it was asked."""

    def __init__(self, **changes: Any) -> None:
        service = [{"id": "#is", "type": "IssuerService", "serviceEndpoint": SERVICE}]
        super().__init__(**{f"document {ISSUER}": {"service": service}})
        self.answers: dict[str, Reply] = {
            "metadata": Reply(
                200, {}, json.dumps({"credentialsSupported": [{"id": "m-1", "credentialType": TYPE}]}).encode()
            ),
            "credentials": Reply(201, {"location": "requests/7"}, b""),
            "requests/7": Reply(200, {}, b'{"status": "RECEIVED"}'),
            **changes,
        }
        self.asked: list[tuple[str, str, Any]] = []

    async def call(self, method: str, url: str, **more: Any) -> Reply:
        if not url.startswith(SERVICE):
            return await super().call(method, url, **more)
        body = json.loads(more["body"]) if more.get("body") else None
        self.asked.append((method, url, body))
        return self.answers[url.removeprefix(f"{SERVICE}/")]


def requests(store: Store, office: Office) -> CredentialRequests:
    resolver = DidResolver(office)  # type: ignore[arg-type]  # a fake
    identity = Identity(did=HOLDER, key=KEYS[HOLDER], resolver=resolver)
    return CredentialRequests(store, office, resolver, identity.mint, did=HOLDER, issuers=[ISSUER])  # type: ignore[arg-type]  # a fake


async def deliver(store: Store, office: Office, pid: str, *, sender: str = ISSUER) -> None:
    credential = await check_credential(DidResolver(office), office.credential(), did=HOLDER)  # type: ignore[arg-type]  # a fake
    await store_checked(store, [credential], by=sender, holder_pid=pid)


async def test_a_request_is_followed_until_its_credential_is_here(store: Store) -> None:
    seen: list[Any] = []
    store.bus.subscribe(seen.append)
    office = Office()
    asking = requests(store, office)
    made = await asking.request(ISSUER, TYPE, by="ann")
    assert (made.status, made.status_url) == ("RECEIVED", f"{SERVICE}/requests/7")
    method, url, message = office.asked[-1]
    assert (method, url, message["type"]) == ("POST", f"{SERVICE}/credentials", "CredentialRequestMessage")
    assert (message["holderPid"], message["credentials"]) == (made.id, [{"id": "m-1"}])
    assert (await asking.refresh(made.id)).status == "RECEIVED"
    await deliver(store, office, made.id)
    assert (await asking.refresh(made.id)).status == "ISSUED"
    assert [(event.actor, event.detail["status"]) for event in seen if event.kind == "CredentialRequested"] == [
        ("ann", "REQUESTED"), (ISSUER, "RECEIVED"), (ISSUER, "ISSUED"),
    ]  # fmt: skip
    (held,) = await asking.list_held()
    assert (held.row.issuer, held.status) == (ISSUER, "valid")


async def test_an_issuer_that_rejects_a_request_delivers_nothing_for_it(store: Store) -> None:
    office = Office()
    asking = requests(store, office)
    made = await asking.request(ISSUER, TYPE, by="ann")
    office.answers["requests/7"] = Reply(200, {}, b'{"status": "REJECTED"}')
    assert (await asking.refresh(made.id)).status == "REJECTED"
    with pytest.raises(Invalid):
        await deliver(store, office, made.id)
    assert await store.read(lambda tx: tx.held_credentials.count()) == 0


async def test_a_delivery_for_a_request_to_another_issuer_is_refused(store: Store) -> None:
    office = Office()
    made = await requests(store, office).request(ISSUER, TYPE, by="ann")
    with pytest.raises(Invalid):
        await deliver(store, office, made.id, sender=OTHER)
    await deliver(store, office, "an unasked one")  # a listed issuer may (decision 77)
    assert await store.read(lambda tx: tx.held_credentials.count()) == 1


OTHERS = b'{"credentialsSupported": [{"id": "x", "credentialType": "Y"}]}'
WRONG: dict[str, tuple[dict[str, Reply], type[ConnectorError]]] = {
    "no metadata": ({"metadata": Reply(404, {}, b"<html>")}, PeerNonsense),
    "metadata that is a list": ({"metadata": Reply(200, {}, b"[]")}, PeerNonsense),
    "another type": ({"metadata": Reply(200, {}, OTHERS)}, Invalid),
    "a refusal": ({"credentials": Reply(403, {}, b"")}, PeerRefused),
    "no address": ({"credentials": Reply(201, {}, b"")}, PeerNonsense),
    "an address elsewhere": ({"credentials": Reply(201, {"location": "https://other.example/7"}, b"")}, PeerNonsense),
}  # fmt: skip


@pytest.mark.parametrize(("answers", "error"), WRONG.values(), ids=WRONG.keys())
async def test_a_request_that_its_issuer_does_not_take_has_failed(
    store: Store, answers: dict[str, Reply], error: type[ConnectorError]
) -> None:
    asking = requests(store, Office(**answers))
    with pytest.raises(error):
        await asking.request(ISSUER, TYPE, by="ann")
    rows = await asking.list_requests()
    assert [(row.status, bool(row.reason)) for row in rows] in ([], [("FAILED", True)])
    assert bool(rows) == ("credentials" in answers)


async def test_only_listed_issuers_are_asked_and_known_requests_shown(store: Store) -> None:
    office = Office()
    with pytest.raises(Invalid, match="HANSE_CREDENTIAL_ISSUERS"):
        await requests(store, office).request(OTHER, TYPE, by="ann")
    with pytest.raises(Absent):
        await requests(store, office).refresh("urn:uuid:none")
    assert office.asked == []


@pytest.mark.parametrize(
    ("purpose", "bit", "status"),
    [
        ("revocation", 1, "revoked"),
        ("suspension", 1, "suspended"),
        ("other", 1, "withdrawn"),
        ("revocation", 0, "valid"),
    ],
)
async def test_a_held_credential_is_listed_with_its_status(store: Store, purpose: str, bit: int, status: str) -> None:
    office = Office()
    office.bits[0] = bit
    office.changes |= {
        "in": {"credentialStatus": office.entry(statusPurpose=purpose)},
        "list": {"vc.credentialSubject.statusPurpose": purpose},
    }
    await store_credential(store, DidResolver(office), office.credential(), did=HOLDER, by="test")  # type: ignore[arg-type]  # a fake
    assert [one.status for one in await requests(store, office).list_held()] == [status]


async def test_a_status_list_that_cannot_be_had_leaves_the_status_unknown(store: Store) -> None:
    office = Office()
    office.changes["in"] = {"credentialStatus": office.entry()}
    office.pages[LIST] = 503
    await store_credential(store, DidResolver(office), office.credential(), did=HOLDER, by="test")  # type: ignore[arg-type]  # a fake
    assert [one.status for one in await requests(store, office).list_held()] == ["unknown"]
