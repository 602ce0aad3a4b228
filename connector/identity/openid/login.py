"""Login of people at OpenID providers: from the provider's address to the person whom a checked ID token names.

The response and the ID token are checked in these steps:
1. The browser brings the cookie of its own login attempt, with the same `state`; a response names no other issuer.
2. The code is exchanged with PKCE; the provider refuses a code that was used before.
3. The ID token has a signature of an asymmetric algorithm by a key of the provider.
4. Issuer, audience, nonce and times are those of this login.
5. A claim gives the person at least one role.
Sources: OpenID Connect Core 1.0 (3.1.2, 3.1.3.7), RFC 7636 (PKCE), RFC 9207, RP-Initiated Logout 1.0, Back-Channel
Logout 1.0 (2.6).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from authlib.integrations.base_client import OAuthError
from authlib.oauth2.claims import JWTClaims
from joserfc import jwe, jws
from joserfc.jwk import OctKey
from pydantic import BaseModel, ConfigDict, Field

from connector.errors import Absent, Invalid, harmless
from connector.identity.openid.issuer_client import FAILED, LEEWAY_S, IssuerClient
from connector.infra.net.http_client import HttpClient
from connector.setting_types import NAME, Address

ATTEMPT_SECONDS = 600
SESSION_SECONDS_MAX = 12 * 3600
_SUBJECT_MAX = 250
_LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


class Provider(BaseModel):
    """A provider of the operator's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$", description="Short name, in addresses and after a person's name in the log.")
    title: str = Field("", max_length=64, description="Name on the login page.")
    issuer: Address
    client_id: str = Field(min_length=1)
    client_secret: str = Field("", repr=False)
    client_key: dict[str, Any] | None = Field(None, repr=False, description="Private JWK, in place of the secret.")
    scopes: str = Field("openid profile email", description="Scopes that are requested.")
    roles_claim: str = Field("groups", description="Claim of the ID token; a dot leads into an object.")
    roles: dict[str, str] = Field(min_length=1, description="Role by value of the claim.")
    cli_client_id: str = Field("", description="Public client of `hanse login`; empty: it does not log in here.")
    cli_scopes: str = Field("openid profile email offline_access", description="Scopes that `hanse login` requests.")


@dataclass(frozen=True, slots=True)
class Person:
    """A person as a checked ID token names it."""

    subject: str
    name: str
    roles: tuple[str, ...]
    sid: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class FinishedLogin:
    """A login whose response was checked: the provider, the person, the sealed ID token, and the page to show."""

    provider: Provider
    person: Person
    sealed_id_token: str
    to: str


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """What a checked logout token names: a subject as `Person` has it, a provider's session, or both."""

    subject: str
    sid: str


class ProviderClient(IssuerClient):
    """The client of a provider that people log in at."""

    def __init__(self, provider: Provider, net: HttpClient) -> None:
        self.provider = provider
        names = ("name", "issuer", "client_id", "client_secret", "client_key", "scopes")
        about = {one: getattr(provider, one) for one in names}
        super().__init__(net, **about)


class LoginClient:
    """Logins at the configured providers. `base` is our pages' address as browsers reach it.

    Except for an unknown provider, methods raise one of `FAILED`, with the reason for our log alone.
    """

    def __init__(self, net: HttpClient, providers: Sequence[Provider], *, base: str, secret: bytes) -> None:
        self._base = base.rstrip("/")
        self._key = OctKey.import_key(secret)
        self._clients = {provider.name: ProviderClient(provider, net) for provider in providers}
        self.providers = tuple(providers)

    def client(self, name: str) -> ProviderClient:
        """Return the client of a provider. Raises: Absent."""
        if name not in self._clients:
            raise Absent(f"no sign-on provider is named {name[:60]!r}")
        return self._clients[name]

    async def begin(self, name: str, *, to: str) -> tuple[str, str]:
        """Begin a login; return the provider's address for the browser, and the attempt for its cookie."""
        app = await self.client(name).app()
        begun = await app.create_authorization_url(self._callback(name))
        attempt: dict[str, Any] = {key: begun[key] for key in ("state", "nonce", "code_verifier")}
        attempt |= {"provider": name, "to": to, "exp": time.time() + ATTEMPT_SECONDS}
        return begun["url"], self._seal(json.dumps(attempt))

    async def finish(self, name: str, query: Mapping[str, str], cookie: str) -> FinishedLogin:
        """Check the provider's response and its ID token (steps 1 to 5)."""
        client = self.client(name)
        attempt = self._open_attempt(name, query, cookie)
        token = await self._exchange(client, query["code"], attempt)
        person = await self._read_person(client, token, attempt["nonce"])
        return FinishedLogin(client.provider, person, self._seal(str(token["id_token"])), attempt["to"])

    async def read_id_token(self, id_token: str) -> FinishedLogin:
        """Check an ID token that `hanse login` got from a provider, for the client that is registered for it.

        Its nonce is of the program, which has checked it. Steps 3 to 5 are those of a login.
        """
        named = json.loads(jws.extract_compact(id_token.encode()).payload)["iss"]
        clients = [one for one in self._clients.values() if one.provider.cli_client_id]
        client = next((one for one in clients if one.provider.issuer == named), None)
        if client is None:
            raise Invalid(f"expected an ID token of a provider with `cli_client_id`, got one of {str(named)[:200]!r}")
        claims = await client.decode(id_token)
        _check_cli_token(claims, client.provider)
        return FinishedLogin(client.provider, _make_person(claims, client.provider), "", "/")

    async def logout_url(self, name: str, sealed_id_token: str) -> str:
        """Return the provider's logout address for the browser; empty if it has none, or is down or unknown."""
        try:
            app = await self.client(name).app()
            about = {
                "post_logout_redirect_uri": f"{self._base}/login",
                "id_token_hint": self._unseal(sealed_id_token),
                "client_id": app.client_id,
            }
            url: str = (await app.create_logout_url(**about))["url"]
        except FAILED:
            return ""
        return url

    async def read_logout_token(self, name: str, logout_token: str) -> LogoutToken:
        """Check a back-channel logout token and return what it names."""
        client = self.client(name)
        claims = await client.decode(logout_token)
        _check_logout(claims, client.provider)
        subject = f"{client.provider.issuer}#{claims['sub']}" if "sub" in claims else ""
        return LogoutToken(subject, str(claims.get("sid", "")))

    def _callback(self, name: str) -> str:
        return f"{self._base}/login/with/{name}/callback"

    def _seal(self, text: str) -> str:
        return jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM"}, text, self._key)

    def _unseal(self, text: str) -> str:
        return (jwe.decrypt_compact(text, self._key).plaintext or b"").decode()

    def _open_attempt(self, name: str, query: Mapping[str, str], cookie: str) -> dict[str, Any]:
        """Return the login attempt of this browser, for this response (step 1)."""
        if not cookie:
            raise Invalid("expected the cookie of a login that this browser began, got none")
        attempt: dict[str, Any] = json.loads(self._unseal(cookie))
        if attempt["provider"] != name or attempt["exp"] <= time.time():
            raise Invalid("expected a login begun here within ten minutes, got an older one or another provider's")
        if not secrets.compare_digest(query.get("state", "").encode(), attempt["state"].encode()):
            raise Invalid("expected the state of this browser's login, got another")
        if query.get("iss", self.client(name).provider.issuer) != self.client(name).provider.issuer:  # RFC 9207
            raise Invalid("expected a response of this provider, got another's `iss`")
        if "error" in query:
            raise OAuthError(query["error"][:100], query.get("error_description", "")[:300])
        return attempt

    async def _exchange(self, client: ProviderClient, code: str, attempt: Mapping[str, Any]) -> Mapping[str, Any]:
        app = await client.app()
        token: Mapping[str, Any] = await app.fetch_access_token(
            self._callback(client.provider.name), code=code, code_verifier=attempt["code_verifier"]
        )
        if not isinstance(token.get("id_token"), str):
            raise Invalid("expected an ID token with the code, got none")
        return token

    async def _read_person(self, client: ProviderClient, token: Mapping[str, Any], nonce: str) -> Person:
        """Return the person of an ID token (steps 3 to 5). Raises: JoseError, Invalid."""
        provider, app = client.provider, await client.app()
        expected = {
            "iss": {"essential": True, "values": [provider.issuer]},
            "aud": {"essential": True, "values": [provider.client_id]},
            "nonce": {"essential": True, "values": [nonce]},
        }
        claims = await app.parse_id_token(dict(token), nonce, claims_options=expected, leeway=LEEWAY_S)
        return _make_person(claims, provider)


def _make_person(claims: Mapping[str, Any], provider: Provider) -> Person:
    """Return the person whom checked claims name (step 5). Raises: Invalid without a role."""
    if len(subject := f"{provider.issuer}#{claims['sub']}") > _SUBJECT_MAX:
        raise Invalid(f"expected issuer and subject of at most {_SUBJECT_MAX} characters, got {len(subject)}")
    roles = _read_roles(claims, provider)
    if not roles:
        raise Invalid(f"expected a value of {provider.roles_claim} that gives a role, got none for {claims['sub']}")
    return Person(
        subject=subject,
        name=_read_name(claims, provider),
        roles=roles,
        sid=str(claims.get("sid", "")),
        expires_at=min(float(claims["exp"]), time.time() + SESSION_SECONDS_MAX),
    )


def _check_cli_token(claims: Mapping[str, Any], provider: Provider) -> None:
    """Check the ID token of `hanse login`. Raises: JoseError; Invalid for a token of another client or kind."""
    expected = {name: {"essential": True} for name in ("sub", "exp", "iat")} | {
        "iss": {"essential": True, "values": [provider.issuer]},
        "aud": {"essential": True, "values": [provider.cli_client_id]},
    }
    JWTClaims(dict(claims), {}, expected).validate(leeway=LEEWAY_S)
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if audiences != [provider.cli_client_id] or claims.get("azp", provider.cli_client_id) != provider.cli_client_id:
        raise Invalid(f"expected an ID token for {provider.cli_client_id} alone, got one for others too")
    if "events" in claims or claims.get("typ", "ID") != "ID":
        raise Invalid("expected an ID token, got another kind of token")


def _check_logout(claims: Mapping[str, Any], provider: Provider) -> None:
    """Check a logout token. Raises: JoseError, Invalid."""
    expected = {
        "iss": {"essential": True, "values": [provider.issuer]},
        "aud": {"essential": True, "values": [provider.client_id]},
        "iat": {"essential": True},
        "jti": {"essential": True},
    }
    JWTClaims(dict(claims), {}, expected).validate(leeway=LEEWAY_S)
    if abs(time.time() - float(claims["iat"])) > ATTEMPT_SECONDS:
        raise Invalid("expected a logout token of the last ten minutes, got an older one")
    events = claims.get("events")
    if not (isinstance(events, dict) and _LOGOUT_EVENT in events) or "nonce" in claims:
        raise Invalid("expected a logout token, got another kind of token")
    if not (claims.get("sub") or claims.get("sid")):
        raise Invalid("expected `sub` or `sid` in a logout token, got neither")


def _read_roles(claims: Mapping[str, Any], provider: Provider) -> tuple[str, ...]:
    found: Any = claims
    for part in provider.roles_claim.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    values = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    given = {provider.roles[value] for value in values if isinstance(value, str) and value in provider.roles}
    return tuple(sorted(given))


def _read_name(claims: Mapping[str, Any], provider: Provider) -> str:
    """Return the person's name for logs. The provider in brackets keeps it apart from every name of a token."""
    names = (claims.get(one) for one in ("name", "preferred_username", "email", "sub"))
    name = next(one for one in names if isinstance(one, str) and one.strip())
    return f"{harmless(name.strip()[:100])} ({provider.name})"
