"""The signed register as connectors read it, and the operator's DID document."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
from joserfc import jws

from catalogue.members.register import RegisterSigner
from connector.identity.did import DidResolver
from connector.identity.member_register import MemberRegister
from connector.infra.net.http_client import AddressGuard, HttpClient, Reply
from tests.catalogue.conftest import ROOT, Catalogue
from tests.catalogue.provider import Provider


class InMemory:
    """Calls that end in the catalogue under test instead of in the network."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.guard = AddressGuard(insecure_http=True)
        self._http = catalogue.http

    async def call(self, method: str, url: str, *, max_bytes: int = 0, **_: object) -> Reply:
        answer = await self._http.request(method, url.replace("https://", "http://"))
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Reply(answer.status_code, headers, answer.content)


def trust(catalogue: Catalogue) -> MemberRegister:
    net = cast("HttpClient", InMemory(catalogue))
    return MemberRegister(net, DidResolver(net), anchor=catalogue.parts.settings.did, register_url="", max_age=0)


async def facts(catalogue: Catalogue, member: Provider) -> Mapping[str, Any] | None:
    return await trust(catalogue).find_member(member.did)


@pytest.fixture
def now(clock: Any) -> float:
    """The catalogue's clock at the real time: the reader of a register has no other."""
    clock.now = time.time()
    return float(clock.now)


@pytest.mark.usefixtures("now")
async def test_connectors_believe_the_register(catalogue: Catalogue, north: Provider) -> None:
    await catalogue.admit(north, "north", title="Northern Clinics", role="research", country="DE")
    found = await facts(catalogue, north)
    assert found == {
        "id": north.did,
        "name": "north",
        "title": "Northern Clinics",
        "role": "research",
        "country": "DE",
        "url": north.url,
        "status": "active",
    }
    operator = (await trust(catalogue).members())[catalogue.parts.settings.did]
    assert (operator["role"], operator["status"], operator["url"]) == ("operator", "active", ROOT)


@pytest.fixture
def in_germany(catalogue_settings: dict[str, Any]) -> None:
    catalogue_settings["country"] = "DE"


@pytest.mark.usefixtures("in_germany", "now")
async def test_the_operator_has_the_country_that_it_is_told(catalogue: Catalogue) -> None:
    """Connectors show it offers for members of that country, and of the regions that it lies in."""
    assert (await trust(catalogue).members())[catalogue.parts.settings.did]["country"] == "DE"


@pytest.mark.usefixtures("now")
async def test_a_suspension_and_the_end_of_a_membership_show_at_once(catalogue: Catalogue, north: Provider) -> None:
    await catalogue.admit(north, "north")
    url = f"/api/v1/members/{quote(north.did, safe='')}"
    await catalogue.http.patch(url, json={"status": "suspended"}, headers=catalogue.operator)
    assert (await facts(catalogue, north) or {})["status"] == "suspended"
    await catalogue.http.delete(url, headers=catalogue.operator)
    assert await facts(catalogue, north) == {}


async def test_the_register_lives_ten_minutes_and_names_the_key_that_signed_it(catalogue: Catalogue) -> None:
    text = (await catalogue.http.get("/members.jws")).text
    signed = jws.extract_compact(text.encode())
    body = json.loads(signed.payload)
    document = (await catalogue.http.get("/.well-known/did.json")).json()
    assert body["exp"] - body["iat"] == 600
    assert body["iss"] == document["id"] == catalogue.parts.settings.did
    assert signed.headers()["kid"] in document["assertionMethod"]
    assert signed.headers()["kid"] in document["capabilityInvocation"]


async def test_an_unchanged_register_is_not_sent_twice_and_a_changed_one_is(
    catalogue: Catalogue, north: Provider
) -> None:
    first = await catalogue.http.get("/members.jws")
    again = await catalogue.http.get("/members.jws", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    await catalogue.admit(north, "north")
    changed = await catalogue.http.get("/members.jws", headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200
    catalogue.clock.advance(61)
    renewed = await catalogue.http.get("/members.jws", headers={"if-none-match": changed.headers["etag"]})
    assert renewed.status_code == 200


async def test_the_did_document_names_a_credential_service_where_credentials_are_presented(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    services = (await catalogue.http.get("/.well-known/did.json")).json()["service"]
    assert "CredentialService" not in [one["type"] for one in services]
    about = {"credential_folder": tmp_path, "credential_scopes": ("MembershipCredential",)}
    settings = catalogue.parts.settings.model_copy(update=about)
    signer = RegisterSigner(catalogue.parts.store, catalogue.parts.identity.key, settings)
    found = {one["type"]: one["serviceEndpoint"] for one in signer.did_document()["service"]}
    assert found["CredentialService"] == f"{settings.root_url}/dcp"
