"""Authentication of services by a signed assertion (`private_key_jwt`; RFC 7523, section 2.2).

An assertion is checked in these steps, cheap ones first:
1. It is a signed token of at most 8 kB for a service of the operator's file, and comes without a secret.
2. An asymmetric algorithm and a key of that service signed it.
3. `iss` and `sub` are the service, `aud` is this connector alone, and it ends within ten minutes.
4. It has a `jti`. The transaction that issues the token notes it, so that it is used once at all processes together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from authlib.oauth2.rfc7523 import JWTBearerClientAssertion

from connector.errors import Invalid, harmless
from connector.identity.openid.issuer_client import LEEWAY_S, IssuerClient
from connector.infra.net.http_client import HttpClient
from connector.management.sign_on.sign_on_file import ServiceClient

ASSERTION_TYPE = JWTBearerClientAssertion.CLIENT_ASSERTION_TYPE
LIFETIME_MAX_S = 600
_ASSERTION_MAX = 8 * 2**10
_JTI_MAX = 255


@dataclass(frozen=True, slots=True)
class CheckedAssertion:
    """An assertion after steps 1 to 3: its service, and a digest of its `jti`, to keep until `until` (UTC seconds)."""

    service: ServiceClient
    digest: str
    until: float


class _Assertion(JWTBearerClientAssertion):  # type: ignore[misc]  # Authlib has no types
    """Authlib's check of the claims. The `jti` is noted later, with the token."""

    def __init__(self, audience: str) -> None:
        super().__init__(validate_jti=False, leeway=LEEWAY_S)
        self._audience = audience

    def get_audiences(self) -> list[str]:
        return [self._audience]


class ServiceClients:
    """The services of the operator's file. `token_url`: audience of those that the file names none for."""

    def __init__(self, net: HttpClient, services: Sequence[ServiceClient], *, token_url: str) -> None:
        self._services = {one.name: (one, _make_client(net, one)) for one in services}
        self._token_url = token_url

    async def authenticate(self, form: Mapping[str, str], *, now: float) -> CheckedAssertion:
        """Check the assertion of a form (steps 1 to 3).

        Raises: Invalid, JoseError or AuthlibBaseError with the reason for our log; Unavailable if the keys cannot be
        had.
        """
        text = form.get("client_assertion", "")
        if form.get("client_assertion_type") != ASSERTION_TYPE or "client_secret" in form:
            raise Invalid(f"expected a client assertion of the type {ASSERTION_TYPE} and no secret")
        if not 0 < len(text) <= _ASSERTION_MAX or not text.isascii():
            raise Invalid(f"expected a client assertion of at most {_ASSERTION_MAX} ASCII characters")
        named = _peek_service(text, form.get("client_id"))
        if named not in self._services:
            raise Invalid(f"expected an assertion of a configured service, got one of {harmless(named)[:200]!r}")
        service, client = self._services[named]
        claims = await client.decode(text)
        _Assertion(service.audience or self._token_url).verify_claims(dict(claims))
        return _check_use(service, claims, now)


def _make_client(net: HttpClient, service: ServiceClient) -> IssuerClient:
    return IssuerClient(net, name=service.name, issuer=service.name, jwks_url=service.jwks_url, jwks=service.jwks)


def _peek_service(text: str, declared: str | None) -> str:
    """Return the service that an unchecked assertion names. Raises: Invalid, AuthlibBaseError."""
    subject = _Assertion("").extract_assertion(text)[1].get("sub")
    if not isinstance(subject, str) or declared not in (None, subject):
        raise Invalid("expected an assertion whose `sub` is the service, and no other `client_id`")
    return subject


def _check_use(service: ServiceClient, claims: Mapping[str, Any], now: float) -> CheckedAssertion:
    audience, jti = claims["aud"], claims.get("jti")
    if isinstance(audience, list) and len(audience) != 1:
        raise Invalid(f"expected an assertion for this connector alone, got {len(audience)} audiences")
    if claims["exp"] > int(now) + LIFETIME_MAX_S + LEEWAY_S:
        raise Invalid(f"expected an assertion that ends within {LIFETIME_MAX_S} s, got one that lasts longer")
    if not isinstance(jti, str) or not 0 < len(jti) <= _JTI_MAX:
        raise Invalid(f"expected a jti of at most {_JTI_MAX} characters")
    digest = sha256(f"client-assertion {service.name} {jti}".encode(errors="surrogatepass")).hexdigest()
    return CheckedAssertion(service, digest, float(claims["exp"]) + LEEWAY_S)
