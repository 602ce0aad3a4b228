"""Has our tokens signed by a secure token service elsewhere, such as an IdentityHub's (Decentralized Claims 1.0, 4.4).

That wallet holds our key and credentials, and our DID is hosted there. A service that refuses us or does not answer is
`Busy`: our own message is kept and sent again, instead of ending a negotiation for a mistake in the settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from connector.errors import ConnectorError, Unavailable, Unproven
from connector.identity import keys
from connector.identity.credentials import fetched
from connector.infra.net.http_client import HttpClient

_ANSWER_MAX = 64 * 2**10
_WHAT = "the answer of the secure token service"


class RemoteWallet:
    """Signs self-issued tokens at `url` (its token endpoint), as OAuth client `client`."""

    def __init__(self, net: HttpClient, *, url: str, client: str, secret_file: Path) -> None:
        self._net, self._url, self._client, self._secret_file = net, url, client, secret_file

    async def sign(self, audience: str, *, scopes: Sequence[str] = (), token: str = "") -> str:
        """A self-issued token for `audience`; see `identity_service.Wallet`. Raises: Unavailable."""
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client,
            "client_secret": self._secret(),
            "audience": audience,
        }
        if token:
            form["token"] = token
        elif scopes:
            form["bearer_access_scope"] = " ".join(scopes)
        try:
            body = await fetched.call(
                self._net,
                "POST",
                self._url,
                what=_WHAT,
                max_bytes=_ANSWER_MAX,
                headers={"content-type": "application/x-www-form-urlencoded", "accept": "application/json"},
                body=urlencode(form).encode(),
            )
        except Unproven as error:
            raise _unsigned(error) from error
        return _read_token(body)

    def _secret(self) -> str:
        """The client's secret, read at each call, so that a rotated one is used at once."""
        if not (text := keys.read_secret(self._secret_file)):
            raise Unavailable(
                f"our tokens cannot be signed: expected a secret in {self._secret_file} (HANSE_STS_SECRET_FILE)"
            )
        return text


def _read_token(body: bytes) -> str:
    try:
        token = json.loads(body)["access_token"]
    except (ValueError, KeyError, TypeError, RecursionError):
        token = None
    if not isinstance(token, str) or token.count(".") != 2 or not (token.isascii() and token.isprintable()):
        raise _unsigned(Unproven("it sent no token"))
    return token


def _unsigned(error: ConnectorError) -> Unavailable:
    return Unavailable(
        "our tokens cannot be signed now; check HANSE_STS_URL and the client's secret",
        private=error.private or error.message,
    )
