"""Client of the protocol: posts messages to a counterparty, asks for states, and finds its protocol version.

Replies are read leniently: any 2xx is an acknowledgement, with or without a body. Knows no state machine and no
database. The transport is `connector.infra.net.http_client.HttpClient`, or an object with the same methods.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from connector import urls
from connector.dsp import jsonld, messages
from connector.dsp.jsonld import Json
from connector.errors import (
    INWARD,
    ConnectorError,
    MessageInvalid,
    PeerBusy,
    PeerFailed,
    PeerNonsense,
    PeerRefused,
    PeerUnreachable,
    Unavailable,
)
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net.http_client import AddressGuard, Reply

VERSION = "2025-1"
_VERSIONS_SECONDS = 300.0
_VERSIONS_MAX = 1_024


class PeerTransport(Protocol):
    """Sends a request: the guarded HTTP client, or a test's connection in memory."""

    guard: AddressGuard

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int | None = None,
    ) -> Reply: ...


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """A counterparty's reply. `document`: the body if it is JSON. `reason`, `code`: of a refusal. `size`: in bytes."""

    status: int
    document: Any = None
    reason: str = ""
    code: str = ""
    headers: Mapping[str, str] | None = None
    size: int = 0

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300


class ProtocolClient:
    """Every outbound call of the protocol. `await mint(audience)` makes the Authorization header of one call."""

    def __init__(self, *, wire: PeerTransport, mint: Callable[[str], Awaitable[str]]) -> None:
        self._wire = wire
        self._mint = mint
        self._bases: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def post(self, url: str, message: Json, *, audience: str) -> PeerAnswer:
        """Deliver one message. PeerFailed if there is no answer."""
        body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
        return await self._call("POST", url, audience=audience, body=body)

    async def get(self, url: str, *, audience: str) -> PeerAnswer:
        """Read a state or a dataset. PeerFailed if there is no answer."""
        return await self._call("GET", url, audience=audience)

    async def fetch(self, method: str, url: str, *, audience: str, message: Json | None = None) -> PeerAnswer:
        """As `get` and `post`, for callers that need an accepted answer.

        Raises:
            PeerRefused: the counterparty refuses; with its reason.
            PeerBusy: the counterparty answers 429 or 503, for example as it has just started.
            PeerFailed: there is no answer.
        """
        body = None if message is None else json.dumps(message).encode()
        answer = await self._call(method, url, audience=audience, body=body)
        if not answer.accepted:
            kind = PeerBusy if answer.status in (429, 503) else PeerRefused
            raise kind(
                f"{audience} answered {answer.status} to {method} {urlsplit(url).path}: "
                f"{answer.reason or 'no reason given'}",
                peer_status=answer.status,
                peer_code=answer.code,
            )
        return answer

    async def check(self, address: str) -> str:
        """Check that we could call a base URL; returns it without its trailing slash.

        Raises:
            MessageInvalid: it is no such URL, or an address that may not be called from here.
        """
        try:
            urls.read_base(address)
        except ValueError as error:
            raise MessageInvalid(str(error)) from None
        try:
            await self._wire.guard.check(address)
        except PeerFailed as error:
            raise MessageInvalid(f"the address {address[:200]!r} cannot be called from here: {error}") from error
        return address.removesuffix("/")

    async def check_theirs(self, address: str) -> str:
        """As `check`, for an address from another party, which must not learn names and addresses of our network.

        The result of resolving it is in the error's `private` field, for our log only.
        """
        try:
            return await self.check(address)
        except MessageInvalid as error:
            if isinstance(error.__cause__, PeerFailed):
                raise _public_error(address, error.__cause__) from error
            raise

    async def check_sink(self, endpoint: str) -> None:
        """As `check_theirs`, for the target of a push: any URL, also with a query."""
        try:
            await self._wire.guard.check(endpoint)
        except PeerFailed as error:
            raise _public_error(endpoint, error) from error

    async def base_of(self, root: str) -> str:
        """The base of the 2025-1 endpoints under a connector's root URL, from its version document. Cached for 300 s.

        Raises:
            PeerNonsense: it offers no version that we support; then we must stop (DSP 2025-1, section 2).
        """
        root, now = root.removesuffix("/"), time.monotonic()
        read_at, known = self._bases.get(root, (0.0, ""))
        if known and now - read_at < _VERSIONS_SECONDS:
            return known
        reply = await self._wire.call("GET", f"{root}/.well-known/dspace-version", max_bytes=64 * 2**10)
        base = root + _path_of(reply, root)
        try:
            urls.read_base(base)
        except ValueError as error:
            raise PeerNonsense(f"expected a valid address in the version document of {root}: {error}") from None
        put_recent(self._bases, root, (now, base), most=_VERSIONS_MAX)
        return base

    async def _call(self, method: str, url: str, *, audience: str, body: bytes | None = None) -> PeerAnswer:
        headers = {"Authorization": await self._mint(audience), "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return _read_answer(await self._wire.call(method, url, headers=headers, body=body))


def _public_error(address: str, error: PeerFailed) -> ConnectorError:
    """Why we cannot call an address, for the party that gave it, without the result of resolving it."""
    if isinstance(error, INWARD):
        why = f"the address {address[:200]!r} cannot be called from here; give a publicly reachable address"
        return MessageInvalid(why, private=error.message)
    if isinstance(error, PeerUnreachable):
        return Unavailable(error.message)
    return MessageInvalid(f"the address {address[:200]!r} cannot be called from here: {error}")


def _read_answer(reply: Reply) -> PeerAnswer:
    if not 200 <= reply.status < 300:
        code, reason = messages.read_problem(reply.body)
        return PeerAnswer(reply.status, reason=reason, code=code, headers=reply.headers)
    try:
        document = jsonld.parse(reply.body) if reply.body.strip() else None
    except MessageInvalid:
        document = None  # an acknowledgement needs no body, so an unreadable body is ignored
    return PeerAnswer(reply.status, document, headers=reply.headers, size=len(reply.body))


def _path_of(reply: Reply, root: str) -> str:
    document = _read_answer(reply).document
    offered = document.get("protocolVersions") if isinstance(document, dict) else None
    for entry in offered if isinstance(offered, list) else ():
        if isinstance(entry, dict) and entry.get("version") == VERSION and entry.get("binding") == "HTTPS":
            path = str(entry.get("path", "")).removesuffix("/")
            if not path or path.startswith("/"):
                return path
    raise PeerNonsense(f"expected Dataspace Protocol {VERSION} over HTTPS at {root}, got none (status {reply.status})")


def segment(identifier: str) -> str:
    """An identifier as one percent-encoded segment of a path."""
    return quote(identifier, safe=":@")
