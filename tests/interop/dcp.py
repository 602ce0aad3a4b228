"""The profile `dcp`: both sides have a did:web, and credentials of one issuer. No token is fixed or mocked.

EDC's wallet is an IdentityHub, which signs its tokens and presents its credential; Hanse has its own. The issuer signs
credentials and a status list, and is a test's (`tests/support/issuer.py`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import yaml
from joserfc.jwk import ECKey

from tests.interop import steps
from tests.interop.edc import Edc, Runtime
from tests.interop.files import Files
from tests.support.issuer import TYPE, Issuer, import_credential
from tests.tck.product import Place, Product, free_port

LIST_SECONDS, PRESENTATION_SECONDS = 3.0, 2  # how long copies of the status list and presentations count
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

    def settings_of_edc(self, issuer: Issuer) -> dict[str, object]:
        """How EDC uses it."""
        return {
            "edc.iam.issuer.id": self.participant,
            "edc.iam.did.web.use.https": "false",
            "edc.iam.sts.oauth.token.url": f"{self.runtime.url('sts')}/token",
            "edc.iam.sts.oauth.client.id": self.participant,
            "edc.iam.credential.revocation.mimetype": "application/json",
            "edc.iam.trusted-issuer.office.id": issuer.did,
            "interop.secret": self.secret,
        }


def settings_of_hanse(directory: Path, issuer: Issuer, edc: str) -> dict[str, str]:
    """Hanse presents its credential, and asks EDC for its own."""
    rules = {
        "issuers": {issuer.did: [TYPE]},
        "scopes": [TYPE],
        "facts": FACTS,
        "presentation_seconds": PRESENTATION_SECONDS,
        # The document of IdentityHub 0.15 lists no key for any purpose.
        "peers": {edc: {"keys_for_all_purposes": True}},
    }
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
    return {"CREDENTIAL_RULES": str(directory / "rules.yaml"), "CREDENTIAL_SCOPES": TYPE}


@asynccontextmanager
async def running(classes: Mapping[str, str], directory: Path) -> AsyncIterator[steps.Space]:
    """Both connectors with their wallets, not seeded yet."""
    files = Files(free_port())
    issuer = Issuer(files.url, list_seconds=LIST_SECONDS)
    files.app.include_router(issuer.router())
    place = Place(directory, free_port(), free_port())
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False) as operator,
        httpx2.AsyncClient(timeout=60, trust_env=False) as http,
    ):
        hub = Hub(directory, classes["hub"], http)
        edc = Edc(directory, classes["dcp"], http, hub.participant)
        edc.more = hub.settings_of_edc(issuer)
        hanse = Product(place, {}, operator, settings_of_hanse(directory, issuer, hub.participant))
        space = steps.Space(edc, hanse, http, directory, f"{edc.protocol}/2025-1", f"{files.url}/files", files.sunk)
        credential, index = issuer.issue(hub.participant, steps.MEMBER)
        space.withdraw = lambda: issuer.revoked.add(index)
        space.issue = lambda holder: issuer.issue(holder, {"name": "catalogue"})[0]
        async with files.serving():
            try:
                await hub.start(issuer, credential)
                async with space.started():
                    membership, _ = issuer.issue(place.participant, {"name": "hanse"})
                    await asyncio.to_thread(import_credential, membership, directory / "hanse.jwt", hanse.environment)
                    yield space
            finally:
                hub.runtime.stop()
