"""An OpenID provider as `hanse login` uses it: login with a browser or on another device, refresh, revocation.

Authlib does OAuth 2.0. Sources: RFC 8252 (native apps), RFC 7636 (PKCE), RFC 8628 (device flow), RFC 7009 (revocation).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oauth2.rfc8628 import DEVICE_CODE_GRANT_TYPE
from authlib.oidc.discovery import get_well_known_url
from joserfc import jws
from joserfc.errors import JoseError

from hanse._transport.sockets import load_trust
from hanse.errors import BadInput, Broken, Refused, Unauthenticated, Unreachable

_CALL_SECONDS = 30.0
_LOGIN_SECONDS = 300.0  # for a person to log in with the browser
_INTERVAL_S, _SLOWER_S, _INTERVAL_MAX_S = 5.0, 5.0, 60.0  # between two questions of the device flow (RFC 8628, 3.5)
_PATH = "/callback"
_DONE = b"<!doctype html><title>Hanse</title><p>You may close this page and go back to the terminal.</p>"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class ProviderTokens:
    """What a provider gave: an ID token, and a refresh token if it gives any."""

    id_token: str
    refresh_token: str


class ProviderConnection:
    """A provider and our public client there."""

    def __init__(self, issuer: str, client_id: str, scopes: str = "") -> None:
        self.issuer, self._client_id, self._scopes = issuer, client_id, scopes
        _check_address(issuer)

    def log_in_with_browser(self, tell: Callable[[str], None]) -> ProviderTokens:
        """Log in with the browser of this machine; `tell` gets the address, for a browser that does not open.

        Raises:
            HanseError: no login within five minutes, or a refused one.
        """
        with _callback() as server, self._calling(f"http://127.0.0.1:{server.server_port}{_PATH}") as client:
            about = self._metadata(client)
            verifier, nonce, state = (secrets.token_urlsafe(48) for _ in range(3))
            address, _ = client.create_authorization_url(
                about["authorization_endpoint"], state=state, code_verifier=verifier, nonce=nonce, **self._prompt()
            )
            tell(_check_address(address))
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            came = _wait_for(server, state)
            answer = client.fetch_token(
                about["token_endpoint"], authorization_response=came, state=state, code_verifier=verifier
            )
        return _read_tokens(answer, self.issuer, nonce=nonce)

    def log_in_on_device(self, tell: Callable[[str, str], None]) -> ProviderTokens:
        """Log in on another device; `tell` gets the address and the code to type there (RFC 8628).

        Raises:
            BadInput: the provider has no device flow.
            HanseError: a refused login, or none within the provider's time.
        """
        with self._calling() as client:
            about = self._metadata(client)
            if "device_authorization_endpoint" not in about:
                raise BadInput(
                    f"{self.issuer} has no login on another device; log in where a browser is, or use a token "
                    "(`hanse login --token`)",
                    code="no_device_flow",
                )
            verifier = secrets.token_urlsafe(48)  # Keycloak wants PKCE here too where the client must use it
            form = {
                "client_id": self._client_id,
                "scope": self._scopes,
                "code_challenge": create_s256_code_challenge(verifier),
                "code_challenge_method": "S256",
            }
            begun = client.request("POST", about["device_authorization_endpoint"], data=form, withhold_token=True)
            asked = _read_device(begun, self.issuer)
            tell(_check_address(asked["verification_uri_complete"]), asked["user_code"])
            answer = _poll(client, about["token_endpoint"], asked, self.issuer, verifier=verifier)
        return _read_tokens(answer, self.issuer)

    def refresh(self, refresh_token: str) -> ProviderTokens:
        """Refresh. Raises: Unauthenticated if the login has ended at the provider; Unreachable; Broken."""
        with self._calling() as client:
            try:
                answer = client.refresh_token(self._metadata(client)["token_endpoint"], refresh_token=refresh_token)
            except OAuthError as error:
                raise Unauthenticated(
                    f"the login at {self.issuer} has ended ({error.error}); run `hanse login` again", code="login_ended"
                ) from None
        return _read_tokens(answer, self.issuer)

    def revoke(self, refresh_token: str) -> bool:
        """Revoke a refresh token (RFC 7009); return whether the provider has revocation and did it."""
        with self._calling() as client:
            endpoint = self._metadata(client).get("revocation_endpoint")
            if not endpoint:
                return False
            answer = client.revoke_token(endpoint, token=refresh_token, token_type_hint="refresh_token")  # noqa: S106  # no secret
            return bool(answer.status_code == 200)

    def _prompt(self) -> dict[str, str]:
        """OpenID Connect Core, 11: `offline_access` takes a consent."""
        return {"prompt": "consent"} if "offline_access" in self._scopes.split() else {}

    @contextmanager
    def _calling(self, redirect_uri: str | None = None) -> Iterator[OAuth2Client]:
        """Yield Authlib's client. Errors of OAuth and of the network become ours."""
        try:
            with OAuth2Client(
                client_id=self._client_id,
                token_endpoint_auth_method="none",  # noqa: S106  # a public client
                revocation_endpoint_auth_method="none",
                scope=self._scopes or None,
                redirect_uri=redirect_uri,
                code_challenge_method="S256",
                verify=load_trust(),
                timeout=_CALL_SECONDS,
            ) as client:
                yield client
        except OAuthError as error:
            why = f"{error.error}: {error.description}" if error.description else error.error
            raise Refused(f"{self.issuer} refused the login ({why}); try again", code="login_refused") from None
        except httpx2.HTTPError as error:
            raise Unreachable(f"{self.issuer} does not answer ({error}); try again in a moment") from error

    def _metadata(self, client: OAuth2Client) -> Mapping[str, Any]:
        """Return the provider's metadata (OpenID Connect Discovery, 4.3). Raises: Broken for that of another."""
        answer = client.request("GET", get_well_known_url(self.issuer, external=True), withhold_token=True)
        about = _read_object(answer, self.issuer)
        if about.get("issuer") != self.issuer:
            raise Broken(f"expected metadata of {self.issuer}, got {str(about.get('issuer'))[:200]!r}")
        for name in ("authorization_endpoint", "token_endpoint"):
            _check_address(str(about.get(name, "")))
        return about


def can_open_browser(environment: Mapping[str, str], platform: str) -> bool:
    """Return whether a browser for a person can be opened here: on Linux, one needs a display or BROWSER."""
    if platform.startswith("linux") and not any(map(environment.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


class _CallbackServer(HTTPServer):
    """Keeps the address that a browser came back to, if it has the state of this login."""

    state, came = "", ""


class _CallbackHandler(BaseHTTPRequestHandler):
    server: _CallbackServer
    timeout = 5.0  # a connection that sends nothing keeps nothing waiting

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        fits = parts.path == _PATH and parse_qs(parts.query).get("state") == [self.server.state]
        if fits:
            self.server.came = self.path
        self.send_response(200 if fits else 404)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("cache-control", "no-store")
        self.end_headers()
        self.wfile.write(_DONE if fits else b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address has a code."""


@contextmanager
def _callback() -> Iterator[_CallbackServer]:
    with _CallbackServer(("127.0.0.1", 0), _CallbackHandler) as server:
        server.timeout = 1.0
        yield server


def _wait_for(server: _CallbackServer, state: str) -> str:
    """Return the address that the browser came back to. Raises: Unauthenticated if it does not in time."""
    server.state, until = state, time.monotonic() + _LOGIN_SECONDS
    while not server.came:
        if time.monotonic() > until:
            raise Unauthenticated(
                f"expected a login within {_LOGIN_SECONDS:g} s, got none; run `hanse login` again, with --device if "
                "the browser is on another machine",
                code="login_timeout",
            )
        server.handle_request()
    return f"http://127.0.0.1:{server.server_port}{server.came}"


def _poll(
    client: OAuth2Client, endpoint: str, asked: Mapping[str, Any], issuer: str, *, verifier: str
) -> Mapping[str, Any]:
    """Ask until the person has decided (RFC 8628, 3.4 and 3.5)."""
    interval, until = asked["interval"], time.monotonic() + asked["expires_in"]
    while time.monotonic() + interval < until:
        time.sleep(interval)
        try:
            answer: Mapping[str, Any] = client.fetch_token(
                endpoint, grant_type=DEVICE_CODE_GRANT_TYPE, device_code=asked["device_code"], code_verifier=verifier
            )
        except OAuthError as error:
            if error.error not in ("authorization_pending", "slow_down"):
                raise
            interval = min(interval + _SLOWER_S * (error.error == "slow_down"), _INTERVAL_MAX_S)
        else:
            return answer
    raise Unauthenticated(
        f"expected a login at {issuer} in time, got none; run `hanse login` again", code="login_timeout"
    )


def _read_device(answer: httpx2.Response, issuer: str) -> dict[str, Any]:
    """Return the answer of a device authorisation (RFC 8628, 3.2). Raises: Broken."""
    read = _read_object(answer, issuer)
    texts = [read.get(name) for name in ("device_code", "user_code", "verification_uri")]
    times = [read.get("expires_in", 600), read.get("interval", _INTERVAL_S)]
    if not all(isinstance(one, str) and one for one in texts) or not all(isinstance(one, int | float) for one in times):
        raise Broken(f"expected a code and an address for another device from {issuer}, got another answer")
    complete = read.get("verification_uri_complete") or read["verification_uri"]
    interval = min(max(float(times[1]), 1.0), _INTERVAL_MAX_S)
    return {**read, "verification_uri_complete": str(complete), "expires_in": float(times[0]), "interval": interval}


def _read_tokens(answer: Mapping[str, Any], issuer: str, *, nonce: str = "") -> ProviderTokens:
    """Return the tokens. The connector checks the ID token; its nonce is ours alone to check. Raises: Broken."""
    token = answer.get("id_token")
    if not isinstance(token, str):
        raise Broken(f"expected an ID token from {issuer}, got none; its client needs the scope openid")
    try:
        claims = json.loads(jws.extract_compact(token.encode()).payload)
    except (JoseError, ValueError):
        raise Broken(f"expected a signed ID token from {issuer}, got something else") from None
    if nonce and claims.get("nonce") != nonce:
        raise Broken(f"expected the nonce of this login in the ID token of {issuer}, got another; log in again")
    return ProviderTokens(token, str(answer.get("refresh_token") or ""))


def _read_object(answer: httpx2.Response, issuer: str) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises: Broken for another form; OAuthError for a refusal."""
    try:
        read = answer.json()
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise Broken(f"expected JSON of an OpenID provider from {issuer}, got status {answer.status_code}")
    if answer.status_code != 200:
        raise OAuthError(str(read.get("error", answer.status_code))[:100], str(read.get("error_description", ""))[:300])
    return read


def _check_address(address: str) -> str:
    """Return an address that a browser or token may be sent to: https or loopback. Raises: Broken."""
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return address
    raise Broken(f"expected an https address of the provider, got {address[:200]!r}; ask the connector's operator")
