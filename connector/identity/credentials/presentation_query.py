"""Answers queries for our credentials (Decentralized Claims 1.0, section 5.4), wherever they are stored.

A query gets what its access token grants to its sender alone. Must not know where credentials are stored.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from joserfc.jwk import ECKey

from connector.errors import Forbidden, Invalid
from connector.identity.credentials.access_token import verify_access_token
from connector.identity.credentials.presenting import make_presentations
from connector.identity.credentials.scopes import Scope, read_scope
from connector.identity.did import CONTEXT
from connector.identity.identity_service import Identity
from connector.identity.signed_jwt import ReadJwt

PATH = "/presentations/query"  # below the address of a credential service
_SCOPES_MAX = 64

FindCredentials = Callable[[Collection[Scope], float], Awaitable[list[ReadJwt]]]  # those within the scopes, valid now


class DefinitionUnsupported(Invalid):
    status = 501
    code = "definition_unsupported"


class PresentationService:
    """Presents the credentials of `find` to verifiers.

    `former`: our former public keys, whose access tokens count until they end. `refuse_ungranted`: refuse a query
    beyond its access token, instead of answering within it.
    """

    def __init__(
        self,
        identity: Identity,
        find: FindCredentials,
        *,
        former: Sequence[ECKey] = (),
        refuse_ungranted: bool = False,
    ) -> None:
        self._identity, self._find = identity, find
        self._keys, self._refuse_ungranted = (identity.key, *former), refuse_ungranted

    async def answer(self, authorization: str | None, read: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """The PresentationResponseMessage for a query, which `read` gets once its sender is known.

        Raises: Unproven, Unavailable, Invalid, Forbidden.
        """
        caller, token = await self._identity.authenticate_query(authorization)
        now, did = time.time(), self._identity.did
        granted = verify_access_token(token, self._keys, did=did, presenter=caller, now=now)
        asked = read_query(await read())
        may = {read_scope(text) for text in granted}
        if self._refuse_ungranted and not may.issuperset(asked):
            raise Forbidden("expected a query within its access token; ask for less")
        found = await self._find([scope for scope in asked if scope in may], now)
        made = make_presentations(found, self._identity.key, did=did, verifier=caller, now=now)
        return {"@context": [CONTEXT], "type": "PresentationResponseMessage", "presentation": made}


def read_query(message: Any) -> list[Scope]:
    """The scopes of a PresentationQueryMessage. Raises: Invalid; DefinitionUnsupported for a valid definition."""
    if not isinstance(message, dict) or message.get("type") != "PresentationQueryMessage":
        raise Invalid("expected a PresentationQueryMessage, got another message")
    scopes, definition = message.get("scope"), message.get("presentationDefinition")
    if ("scope" in message) == ("presentationDefinition" in message):
        raise Invalid("expected either scope or presentationDefinition in the query, got both or neither")
    if isinstance(definition, dict) and definition:
        raise DefinitionUnsupported("presentation definitions are not supported; query by scope")
    if not isinstance(scopes, list) or not 0 < len(scopes) <= _SCOPES_MAX:
        raise Invalid(f"expected 1 to {_SCOPES_MAX} scopes in the query")
    try:
        return [read_scope(str(text)) for text in scopes]
    except ValueError as error:
        raise Invalid(str(error)) from None
