"""The profile `dcp`: both sides have a did:web and a credential. No token is fixed or mocked.

EDC's wallet is an IdentityHub, which signs its tokens and presents its credential; Hanse has its own. EDC's credential
is of a test's issuer (`tests/support/issuer.py`), Hanse's is delivered by a Hanse catalogue that admits it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import yaml
from joserfc.jwk import ECKey

from tests.interop import steps
from tests.interop.edc import Edc, Runtime
from tests.interop.files import Files
from tests.support.issuer import TYPE, Issuer
from tests.support.processes import Process, catalogue_process
from tests.support.waiting import eventually
from tests.tck.product import Place, Product, free_port

LIST_SECONDS, PRESENTATION_SECONDS = 3.0, 2  # how long copies of the status list and presentations count
CATALOGUE_LIST_SECONDS = 5
CONTEXTS = ("credentials", "identity", "did", "sts", "version")
FACTS = {
    "ds:membership": {"credential": TYPE, "value": "active"},
    "ds:participantCountry": {"credential": TYPE, "path": "country"},
    "ds:role": {"credential": TYPE, "path": "role"},
    "ds:frameworkAgreement": {"credential": TYPE, "path": "framework_agreements"},
}


class Hub:
    """EDC's wallet: an IdentityHub with one participant and its credential."""

    def __init__(self, directory: Path, classes: str, http: httpx2.AsyncClient) -> None:
        self.runtime = Runtime("hub", directory, classes, http, CONTEXTS)
        self.participant = f"did:web:127.0.0.1%3A{self.runtime.ports['did']}"
        self.secret = secrets.token_urlsafe(24)

    async def start(self, issuer: Issuer, credential: str) -> None:
        """Start it with a new key and this credential."""
        directory = self.runtime.directory
        key = ECKey.generate_key("P-256").as_dict(private=True) | {"kid": f"{self.participant}#key"}
        (directory / "hub.jwk").write_text(json.dumps(key))
        (directory / "hub.jwt").write_text(credential)
        service = f"{self.runtime.url('credentials')}/v1/participants/{urlsafe_b64encode(b'edc').decode()}"
        await self.runtime.start(
            {
                "web.http.did.path": "/",
                "edc.iam.did.web.use.https": "false",
                "edc.iam.sts.publickey.id": "unused",
                "edc.iam.sts.privatekey.alias": "unused",
                "edc.iam.accesstoken.jti.validation": "true",
                "edc.iam.credential.revocation.mimetype": "application/json",
                "interop.did": self.participant,
                "interop.issuer": issuer.did,
                "interop.credentials": service,
                "interop.secret": self.secret,
                "interop.key": directory / "hub.jwk",
                "interop.credential": directory / "hub.jwt",
            }
        )

    def settings_of_edc(self, catalogue: str, issuer: str) -> dict[str, object]:
        """How EDC uses it. It trusts the catalogue, which issues Hanse's credential, and the issuer of its own."""
        return {
            "edc.iam.issuer.id": self.participant,
            "edc.iam.did.web.use.https": "false",
            "edc.iam.sts.oauth.token.url": f"{self.runtime.url('sts')}/token",
            "edc.iam.sts.oauth.client.id": self.participant,
            "edc.iam.credential.revocation.mimetype": "application/json",
            "edc.iam.credential.revocation.cache.validity": 1_000,
            "edc.iam.trusted-issuer.space.id": catalogue,
            "edc.iam.trusted-issuer.office.id": issuer,
            "interop.secret": self.secret,
        }


def settings_of_hanse(directory: Path, issuer: Issuer, edc: str, catalogue: str) -> dict[str, str]:
    """Hanse presents its credential, which a catalogue delivers, and asks EDC for its own."""
    rules = {
        "issuers": {issuer.did: [TYPE]},
        "scopes": [TYPE],
        "facts": FACTS,
        "presentation_seconds": PRESENTATION_SECONDS,
        # The document of IdentityHub 0.15 lists no key for any purpose.
        "peers": {edc: {"keys_for_all_purposes": True}},
    }
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
    holding = {"CREDENTIAL_SCOPES": TYPE, "CREDENTIAL_ISSUERS": catalogue}
    return {"CREDENTIAL_RULES": str(directory / "rules.yaml"), **holding}


def admit(catalogue: Process, participant: str) -> None:
    """Admit Hanse to the catalogue's data space, and wait for the delivery of its credential."""
    client = catalogue.api()
    client.post("/members", {"id": participant, "name": "hanse"})
    eventually(lambda: client.get("/credentials?member=hanse")["requests"][0]["status"] == "ISSUED")
    client.close()


def set_status(catalogue: Process, status: str) -> None:
    """Suspend Hanse, or lift its suspension."""
    client = catalogue.api()
    client.call("PATCH", "/members/hanse", {"status": status})
    client.close()


@asynccontextmanager
async def running(classes: Mapping[str, str], directory: Path) -> AsyncIterator[steps.Space]:
    """Both connectors with their wallets, not seeded yet."""
    files = Files(free_port())
    issuer = Issuer(files.url, list_seconds=LIST_SECONDS)
    catalogue = catalogue_process(
        directory / "catalogue", free_port(), ISSUER_TYPES=TYPE, ISSUER_STATUS_SECONDS=str(CATALOGUE_LIST_SECONDS)
    )
    files.app.include_router(issuer.router())
    place = Place(directory, free_port(), free_port())
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False) as operator,
        httpx2.AsyncClient(timeout=60, trust_env=False) as http,
    ):
        hub = Hub(directory, classes["hub"], http)
        edc = Edc(directory, classes["dcp"], http, hub.participant)
        edc.more = hub.settings_of_edc(catalogue.participant, issuer.did)
        settings = settings_of_hanse(directory, issuer, hub.participant, catalogue.participant)
        hanse = Product(place, {}, operator, settings)
        space = steps.Space(edc, hanse, http, directory, f"{edc.protocol}/2025-1", f"{files.url}/files", files.sunk)
        credential, index = issuer.issue(hub.participant, steps.MEMBER)
        space.withdraw = lambda: issuer.revoked.add(index)
        space.set_status = partial(set_status, catalogue)
        space.issue = lambda holder: issuer.issue(holder, {"name": "catalogue"})[0]
        async with files.serving():
            try:
                await hub.start(issuer, credential)
                async with space.started():
                    await asyncio.to_thread(catalogue.start)
                    await asyncio.to_thread(admit, catalogue, place.participant)
                    yield space
            finally:
                catalogue.kill()
                hub.runtime.stop()
