"""Our secure token service: signs self-issued tokens for other programs of ours (Decentralized Claims 1.0, 4.4).

Its secret is enough to act as us. So it is off without HANSE_STS_SERVE_SECRET_FILE, and on the management listener.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from fastapi import APIRouter, Request

from connector.errors import Invalid, Unproven
from connector.events import RequestRefused, TokenIssued
from connector.identity import keys
from connector.identity.identity_service import Wallet
from connector.infra.http.form import parse_form
from connector.store import Store

_SECRET_MIN = 16
_SCOPES_MAX = 64
_SECONDS = 60  # that our tokens live


def router(wallet: Wallet, store: Store, *, client: str, secret_file: Path) -> APIRouter:
    """The route. `client`: the only client id, our DID; `secret_file` holds its secret. Each token and each refusal is
    recorded."""
    routes = APIRouter(prefix="/sts", tags=["credentials"])

    @routes.post("/token", include_in_schema=False)
    async def token(request: Request) -> dict[str, str | int]:
        form = parse_form(await request.body())
        try:
            _check_client(form, client, _read_secret(secret_file))
        except Unproven as error:
            await store.record_refusal(_refused(error))
            raise
        scopes, audience = form.get("bearer_access_scope", "").split(), form.get("audience", "")
        if form.get("grant_type") != "client_credentials" or not audience.startswith("did:") or len(audience) > 255:
            raise Invalid("expected grant_type=client_credentials and the receiver's DID as audience")
        if len(scopes) > _SCOPES_MAX:
            raise Invalid(f"expected at most {_SCOPES_MAX} scopes, got {len(scopes)}")
        about = {"audience": audience, "scopes": scopes, "self_issued": True}
        await store.write(lambda tx: tx.publish(TokenIssued(actor=client, detail=about)))
        signed = await wallet.sign(audience, scopes=scopes, token=form.get("token", ""))
        return {"access_token": signed, "token_type": "Bearer", "expires_in": _SECONDS}

    return routes


def _refused(error: Unproven) -> RequestRefused:
    reason = error.private or error.message
    return RequestRefused(actor="unknown", outcome="refused", code="token_service_refused", reason=reason)


def _check_client(form: dict[str, str], client: str, secret: str) -> None:
    known = hmac.compare_digest(form.get("client_id", "").encode(), client.encode())
    if not (hmac.compare_digest(form.get("client_secret", "").encode(), secret.encode()) and known):
        raise Unproven("expected the client id and secret of our settings")


def _read_secret(path: Path) -> str:
    """The secret, read at each call. Raises: Unproven where it is missing or too short to protect us."""
    text = keys.read_secret(path)
    if len(text) < _SECRET_MIN:
        raise Unproven("the token service is not available", private=f"{path}: expected 16 characters or more")
    return text
