"""Sign-on of people by OpenID Connect; Authlib and joserfc do the protocol.

A person logs in at a provider of the operator's file. The ID token is checked in these steps:
1. The browser brings the cookie of its own login attempt, with the same `state`; a response names no other issuer.
2. The code is exchanged with PKCE; the provider refuses a code that was used before.
3. The ID token has a signature of an asymmetric algorithm by a key of the provider.
4. Issuer, audience, nonce and times are those of this login.
5. A claim gives the person at least one role.
The session lasts no longer than the ID token, and ends with a back-channel logout of the provider. Refusals keep their
reason for our log; the browser gets none.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import httpx2
import yaml
from authlib.integrations.base_client import OAuthError
from authlib.integrations.starlette_client import StarletteOAuth2App
from authlib.oauth2.claims import JWTClaims
from authlib.oidc.discovery import get_well_known_url
from joserfc import jwe, jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet, OctKey
from joserfc.jws import JWSRegistry
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from connector.errors import BadInput, HanseError, NotFound, Unauthenticated, harmless
from connector.events import RequestRefused, SessionEnded, SessionStarted
from connector.infra.net.http_client import HttpClient
from connector.infra.net.httpx_transport import GuardedTransport
from connector.management.auth import digest_of
from connector.setting_types import NAME, Address
from connector.store import Store, Transaction
from connector.store.tables import SignOnSession

T = TypeVar("T", bound=BaseModel)

ROLES: Mapping[str, tuple[str, ...]] = {
    "reader": ("read", "consume"),
    "owner": ("read", "owner"),
    "approver": ("read", "approve"),
    "auditor": ("audit",),
    "operator": ("admin",),
}
WORKLOAD_SCOPES = ("read", "consume", "metrics")
_FIELDS_MAX = 20
ATTEMPT_COOKIE = "hanse_sign_on"
ATTEMPT_SECONDS = 600
SESSION_SECONDS_MAX = 12 * 3600
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
_LEEWAY_S = 30
_SUBJECT_MAX = 250
_METADATA_SECONDS = 3600.0  # then discovery and keys are read again
_KEYS_PAUSE_SECONDS = 10.0  # between two readings of the keys on account of an unknown one
_ANSWER_BYTES = 2**20
_LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
FAILED = (
    OAuthError,
    JoseError,
    httpx2.HTTPError,
    HanseError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AttributeError,
)


class Provider(BaseModel):
    """A provider of the operator's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$", description="Short name, in addresses and after a person's name in the log.")
    title: str = Field("", max_length=64, description="Name on the login page.")
    issuer: Address
    client_id: str = Field(min_length=1)
    client_secret: str = Field("", repr=False)
    scopes: str = Field("openid profile email", description="Scopes that are requested.")
    roles_claim: str = Field("groups", description="Claim of the ID token; a dot leads into an object.")
    roles: dict[str, str] = Field(min_length=1, description="Role by value of the claim.")


class WorkloadIssuer(BaseModel):
    """An issuer of the operator's file whose tokens workloads exchange."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$", description="Short name, after a workload's subject in the log.")
    issuer: str = Field(min_length=1, max_length=200, description="`iss` as its tokens write it.")
    audience: str = Field(min_length=1, description="`aud` that a token must have.")
    jwks_url: Address = Field("", description="Address of its keys; empty: by discovery from the issuer.")
    subjects: dict[str, tuple[str, ...]] = Field(min_length=1, description="Scopes by subject; * stands for any text.")
    job_claim: str = Field("", description="Claim with the job's id; a slash leads into an object.")


@dataclass(frozen=True, slots=True)
class Person:
    """A person as a checked ID token names it."""

    subject: str
    name: str
    roles: tuple[str, ...]
    sid: str
    expires_at: float

    @property
    def scopes(self) -> list[str]:
        return sorted({scope for role in self.roles for scope in ROLES[role]})


@dataclass(frozen=True, slots=True)
class Login:
    """A person who has logged in: the session's text, until when it holds, and the page to show."""

    session: str
    seconds: int
    to: str
    scopes: Sequence[str]


def read_providers(file: Path | None) -> tuple[Provider, ...]:
    """Read the providers of the operator's file. Raises: BadInput for a malformed file, or one that others can read."""
    found = _read_file(file, "providers", Provider)
    if file is not None:
        _check_providers(file, found)
    return found


def read_issuers(file: Path | None) -> tuple[WorkloadIssuer, ...]:
    """Read the issuers of workloads in the operator's file. Raises: BadInput as `read_providers` does."""
    found = _read_file(file, "workloads", WorkloadIssuer)
    unknown = {scope for one in found for scopes in one.subjects.values() for scope in scopes} - set(WORKLOAD_SCOPES)
    if unknown:
        expected = ", ".join(WORKLOAD_SCOPES)
        raise BadInput(f"{file}: expected scopes among {expected} for workloads, got {', '.join(sorted(unknown))}")
    return found


def parse_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form that a program posts; of a doubled field none.

    Raises: Unauthenticated without a reason for too many fields.
    """
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise Unauthenticated("expected a form with few fields") from error
    names = [name for name, _ in pairs]
    return {name: value for name, value in pairs if names.count(name) == 1}


def _read_file(file: Path | None, part: str, kind: type[T]) -> tuple[T, ...]:
    if file is None:
        return ()
    try:
        if file.stat().st_mode & 0o077:
            raise BadInput(f"{file} holds secrets and can be read by other users; run `chmod 600 {file}`")
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or set(said) - {"providers", "workloads"}:
            raise ValueError
        return tuple(kind.model_validate(entry) for entry in said.get(part, []))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise BadInput(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        expected = "expected YAML with `providers` and `workloads`, lists"
        raise BadInput(f"{file}: {expected}; {type(error).__name__}") from None


def _check_providers(file: Path, providers: Sequence[Provider]) -> None:
    names = [provider.name for provider in providers]
    if len(set(names)) != len(names):
        raise BadInput(f"{file}: expected a name for each provider, got the same twice")
    for provider in providers:
        if unknown := sorted(set(provider.roles.values()) - set(ROLES)):
            raise BadInput(f"{file}: expected roles among {', '.join(ROLES)}, got {', '.join(unknown)}")
        if "openid" not in provider.scopes.split():
            raise BadInput(f"{file}: expected the scope openid for {provider.name}, got {provider.scopes!r}")


class IssuerClient:
    """Authlib's client of an issuer, over the guarded HTTP client. `jwks_url`: in place of the discovery."""

    def __init__(
        self,
        net: HttpClient,
        *,
        name: str,
        issuer: str,
        client_id: str = "",
        client_secret: str = "",
        scopes: str = "",
        jwks_url: str = "",
    ) -> None:
        self._issuer = issuer
        self._make = partial(
            StarletteOAuth2App,
            None,
            name=name,
            client_id=client_id,
            client_secret=client_secret or None,
            client_kwargs={
                "scope": scopes,
                "code_challenge_method": "S256",
                "transport": GuardedTransport(net, max_bytes=_ANSWER_BYTES),
                "trust_env": False,
            },
            **(
                {"issuer": issuer, "jwks_uri": jwks_url, "id_token_signing_alg_values_supported": _ALGORITHMS}
                if jwks_url
                else {"server_metadata_url": get_well_known_url(issuer, external=True)}
            ),
        )
        self._app: StarletteOAuth2App | None = None
        self._loaded = self._keys_read = 0.0

    async def app(self) -> StarletteOAuth2App:
        """Return the client with current metadata. Raises: BadInput for metadata of another issuer."""
        if self._app is None or time.monotonic() - self._loaded > _METADATA_SECONDS:
            self._app, self._loaded = await self._load(), time.monotonic()
        return self._app

    async def _load(self) -> StarletteOAuth2App:
        app = self._make()
        metadata = await app.load_server_metadata()
        if metadata.get("issuer") != self._issuer:
            raise BadInput(f"expected metadata of {self._issuer}, got {str(metadata.get('issuer'))[:200]!r}")
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        metadata["id_token_signing_alg_values_supported"] = [name for name in _ALGORITHMS if name in offered]
        if not metadata["id_token_signing_alg_values_supported"]:
            raise BadInput(f"expected a signature algorithm among {', '.join(_ALGORITHMS)}, got {offered}")
        return app

    async def decode(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token that the issuer signed. Keys are read again for an unknown one, within a pace.

        Raises: JoseError.
        """
        app = await self.app()
        registry = JWSRegistry(
            algorithms=app.server_metadata["id_token_signing_alg_values_supported"], strict_check_header=False
        )
        try:
            return jwt.decode(token, KeySet.import_key_set(await app.fetch_jwk_set()), registry=registry).claims
        except InvalidKeyIdError:
            if time.monotonic() - self._keys_read < _KEYS_PAUSE_SECONDS:
                raise
            self._keys_read = time.monotonic()
            keys = KeySet.import_key_set(await app.fetch_jwk_set(force=True))
            return jwt.decode(token, keys, registry=registry).claims


class ProviderClient(IssuerClient):
    """The client of a provider that people log in at."""

    def __init__(self, provider: Provider, net: HttpClient) -> None:
        self.provider = provider
        about = {one: getattr(provider, one) for one in ("name", "issuer", "client_id", "client_secret", "scopes")}
        super().__init__(net, **about)


class SignOn:
    """Logins of people at the configured providers. `base` is the console's address as browsers reach it."""

    def __init__(
        self, store: Store, net: HttpClient, providers: Sequence[Provider], *, base: str, secret: bytes
    ) -> None:
        self._store = store
        self._base = base.rstrip("/")
        self._key = OctKey.import_key(secret)
        self._clients = {provider.name: ProviderClient(provider, net) for provider in providers}
        self.providers = tuple(providers)

    async def begin(self, name: str, *, to: str) -> tuple[str, str]:
        """Begin a login; return the provider's address for the browser, and the attempt for its cookie.

        Raises: NotFound for an unknown provider; Unauthenticated without a reason, which is recorded.
        """
        client = self._client(name)
        try:
            app = await client.app()
            begun = await app.create_authorization_url(self._callback(name))
        except FAILED as error:
            raise await self._refuse(name, error) from error
        attempt = {key: begun[key] for key in ("state", "nonce", "code_verifier")}
        return begun["url"], self._seal({**attempt, "provider": name, "to": to, "exp": time.time() + ATTEMPT_SECONDS})

    async def finish(self, name: str, query: Mapping[str, str], cookie: str) -> Login:
        """Check the provider's response and start a session.

        Raises: NotFound for an unknown provider; Unauthenticated without a reason, which is recorded.
        """
        client = self._client(name)
        try:
            attempt = self._open_attempt(name, query, cookie)
            token = await self._exchange(client, query["code"], attempt)
            person = await self._read_person(client, token, attempt["nonce"])
        except FAILED as error:
            raise await self._refuse(name, error) from error
        session = await self._start(client.provider, person, str(token["id_token"]))
        return Login(session, max(1, int(person.expires_at - time.time())), attempt["to"], person.scopes)

    async def end(self, session: str) -> str:
        """End a session; return the provider's logout address for the browser, or an empty text."""
        row = await self._remove(session)
        if row is None or row.provider not in self._clients:
            return ""
        try:
            app = await self._clients[row.provider].app()
            back = f"{self._base}/login"
            about = {"post_logout_redirect_uri": back, "id_token_hint": row.id_token, "client_id": app.client_id}
            url: str = (await app.create_logout_url(**about))["url"]
        except FAILED:
            return ""  # the provider has no logout, or is down; the session here has ended
        return url

    async def end_by_provider(self, name: str, logout_token: str) -> None:
        """End the sessions that a back-channel logout token names (OpenID Connect Back-Channel Logout 1.0, 2.6).

        Raises: NotFound for an unknown provider; Unauthenticated without a reason, which is recorded.
        """
        client = self._client(name)
        try:
            claims = await client.decode(logout_token)
            _check_logout(claims, client.provider)
        except FAILED as error:
            raise await self._refuse(name, error) from error
        subject, sid = f"{client.provider.issuer}#{claims.get('sub', '')}", str(claims.get("sid", ""))

        def work(tx: Transaction) -> None:
            for row in tx.sessions.list_of(provider=name, subject=subject if "sub" in claims else "", sid=sid):
                _end(tx, row, reason="logged out at the provider")

        await self._store.write(work)

    def _client(self, name: str) -> ProviderClient:
        if name not in self._clients:
            raise NotFound(f"no sign-on provider is named {name[:60]!r}")
        return self._clients[name]

    def _callback(self, name: str) -> str:
        return f"{self._base}/login/with/{name}/callback"

    def _seal(self, attempt: Mapping[str, Any]) -> str:
        return jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM"}, json.dumps(attempt), self._key)

    def _open_attempt(self, name: str, query: Mapping[str, str], cookie: str) -> dict[str, Any]:
        """Return the login attempt of this browser, for this response (step 1)."""
        if not cookie:
            raise BadInput("expected the cookie of a login that this browser began, got none")
        attempt: dict[str, Any] = json.loads(jwe.decrypt_compact(cookie, self._key).plaintext or b"")
        if attempt["provider"] != name or attempt["exp"] <= time.time():
            raise BadInput("expected a login begun here within ten minutes, got an older one or another provider's")
        if not secrets.compare_digest(query.get("state", "").encode(), attempt["state"].encode()):
            raise BadInput("expected the state of this browser's login, got another")
        if query.get("iss", self._client(name).provider.issuer) != self._client(name).provider.issuer:  # RFC 9207
            raise BadInput("expected a response of this provider, got another's `iss`")
        if "error" in query:
            raise OAuthError(query["error"][:100], query.get("error_description", "")[:300])
        return attempt

    async def _exchange(self, client: ProviderClient, code: str, attempt: Mapping[str, Any]) -> Mapping[str, Any]:
        app = await client.app()
        token: Mapping[str, Any] = await app.fetch_access_token(
            self._callback(client.provider.name), code=code, code_verifier=attempt["code_verifier"]
        )
        if not isinstance(token.get("id_token"), str):
            raise BadInput("expected an ID token with the code, got none")
        return token

    async def _read_person(self, client: ProviderClient, token: Mapping[str, Any], nonce: str) -> Person:
        """Return the person of an ID token (steps 3 to 5). Raises: JoseError, BadInput."""
        provider, app = client.provider, await client.app()
        expected = {
            "iss": {"essential": True, "values": [provider.issuer]},
            "aud": {"essential": True, "values": [provider.client_id]},
            "nonce": {"essential": True, "values": [nonce]},
        }
        claims = await app.parse_id_token(dict(token), nonce, claims_options=expected, leeway=_LEEWAY_S)
        if len(subject := f"{provider.issuer}#{claims['sub']}") > _SUBJECT_MAX:
            raise BadInput(f"expected issuer and subject of at most {_SUBJECT_MAX} characters, got {len(subject)}")
        roles = _read_roles(claims, provider)
        if not roles:
            raise BadInput(
                f"expected a value of {provider.roles_claim} that gives a role, got none for {claims['sub']}"
            )
        return Person(
            subject=subject,
            name=_read_name(claims, provider),
            roles=roles,
            sid=str(claims.get("sid", "")),
            expires_at=min(float(claims["exp"]), time.time() + SESSION_SECONDS_MAX),
        )

    async def _start(self, provider: Provider, person: Person, id_token: str) -> str:
        text = secrets.token_urlsafe(32)

        def work(tx: Transaction) -> None:
            tx.sessions.remove_over(tx.now)
            tx.sessions.add(
                SignOnSession(
                    digest=digest_of(text), provider=provider.name, subject=person.subject, sid=person.sid,
                    name=person.name, scopes=person.scopes, id_token=id_token, created_at=tx.now,
                    expires_at=person.expires_at,
                )
            )  # fmt: skip
            tx.publish(
                SessionStarted(
                    actor=person.name,
                    subject=person.subject,
                    detail={"provider": provider.name, "roles": list(person.roles)},
                )
            )

        await self._store.write(work)
        return text

    async def _remove(self, session: str) -> SignOnSession | None:
        def work(tx: Transaction) -> SignOnSession | None:
            row = tx.sessions.find(digest_of(session))
            if row is not None:
                _end(tx, row, reason="logged out")
            return row

        return await self._store.write(work)

    async def _refuse(self, name: str, error: BaseException) -> Unauthenticated:
        """Record why a login failed; return the error for the browser, which has no reason."""
        reason = harmless(str(error) or type(error).__name__)[:500]
        await self._store.record_refusal(
            RequestRefused(
                actor="unknown",
                outcome="refused",
                code="sign_on_failed",
                reason=f"{type(error).__name__}: {reason}",
                detail={"provider": name},
            )
        )
        return Unauthenticated("sign-on failed; try again, or ask the operator, whose log has the reason")


def _end(tx: Transaction, row: SignOnSession, *, reason: str) -> None:
    tx.sessions.remove(row)
    tx.publish(SessionEnded(actor=row.name, subject=row.subject, reason=reason, detail={"provider": row.provider}))


def _check_logout(claims: Mapping[str, Any], provider: Provider) -> None:
    """Check a logout token. Raises: JoseError, BadInput."""
    expected = {
        "iss": {"essential": True, "values": [provider.issuer]},
        "aud": {"essential": True, "values": [provider.client_id]},
        "iat": {"essential": True},
        "jti": {"essential": True},
    }
    JWTClaims(dict(claims), {}, expected).validate(leeway=_LEEWAY_S)
    if abs(time.time() - float(claims["iat"])) > ATTEMPT_SECONDS:
        raise BadInput("expected a logout token of the last ten minutes, got an older one")
    events = claims.get("events")
    if not (isinstance(events, dict) and _LOGOUT_EVENT in events) or "nonce" in claims:
        raise BadInput("expected a logout token, got another kind of token")
    if not (claims.get("sub") or claims.get("sid")):
        raise BadInput("expected `sub` or `sid` in a logout token, got neither")


def _read_roles(claims: Mapping[str, Any], provider: Provider) -> tuple[str, ...]:
    found: Any = claims
    for part in provider.roles_claim.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    values = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    given = {provider.roles[value] for value in values if isinstance(value, str) and value in provider.roles}
    return tuple(role for role in ROLES if role in given)


def _read_name(claims: Mapping[str, Any], provider: Provider) -> str:
    """Return the person's name for logs. The provider in brackets keeps it apart from every name of a token."""
    names = (claims.get(one) for one in ("name", "preferred_username", "email", "sub"))
    name = next(one for one in names if isinstance(one, str) and one.strip())
    return f"{harmless(name.strip()[:100])} ({provider.name})"
