"""Stores a credential from a file, for `hanse connector import-credential`: how most members get theirs."""

from __future__ import annotations

from pathlib import Path

from connector.errors import Invalid
from connector.events import Bus
from connector.identity import did
from connector.identity.credentials.credential import CREDENTIAL_MAX
from connector.identity.did import DidResolver
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.settings import Settings
from connector.store import Store
from connector.store.tables import HeldCredential
from connector.wallet.held_credentials import store_credential


async def import_credential(settings: Settings, path: Path) -> HeldCredential:
    """Check and store the credential in a file (a JWT). The issuer's DID document must be reachable.

    Raises: Invalid, Unavailable.
    """
    text = _read(path)
    participant = settings.participant_id or did.did_of(settings.root_url)
    guard = AddressGuard(allow=settings.allow_private, insecure_http=settings.insecure_http)
    net = HttpClient(guard, timeout=settings.call_timeout, max_bytes=settings.call_max_bytes)
    store = Store(settings.database, bus=Bus())
    try:
        return await store_credential(store, DidResolver(net), text, did=participant, by="command line")
    finally:
        store.close()
        await net.close()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(CREDENTIAL_MAX + 1).strip()
    except (OSError, ValueError):
        raise Invalid(f"expected a readable file with a credential as a JWT, got {path}") from None
    if len(text) > CREDENTIAL_MAX:
        raise Invalid(f"expected a credential of at most {CREDENTIAL_MAX} characters in {path}, got more")
    return text
