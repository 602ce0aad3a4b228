"""Calls to a counterparty: posting messages, asking for state, finding the version we both speak.

Replies are read as leniently as can be: any 2xx is an acknowledgement, with or without a body. Knows no state machine
and no database. The wire is `connector.infra.net.http_client.HttpClient`, or anything that calls like it.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from connector import urls
from connector.dsp import jsonld, messages
from connector.dsp.jsonld import Json
from connector.errors import (
    INWARD,
    Busy,
    HanseError,
    MessageInvalid,
    PeerBusy,
    PeerFailed,
    PeerNonsense,
    PeerRefused,
    PeerUnreachable,
)
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net.http_client import AddressGuard, Reply

VERSION = "2025-1"
_VERSIONS_SECONDS = 300.0
_VERSIONS_MAX = 1_024


class Wire(Protocol):
    """What a call goes through: the guarded client, or two connectors joined in memory."""

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
class Answer:
    """A counterparty's reply: its status, the body if it is JSON, and the reason it gives where it refuses."""

    status: int
    document: Any = None
    reason: str = ""
    code: str = ""
    headers: Mapping[str, str] | None = None
    size: int = 0  # bytes of the body

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300


class Peer:
    """Every call of the protocol to somebody else. `mint(audience)` makes the Authorization header of one call."""

    def __init__(self, *, wire: Wire, mint: Callable[[str], str]) -> None:
        self._wire = wire
        self._mint = mint
        self._bases: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def post(self, url: str, message: Json, *, audience: str) -> Answer:
        """Deliver one message. PeerFailed where no answer came."""
        body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
        return await self._call("POST", url, audience=audience, body=body)

    async def get(self, url: str, *, audience: str) -> Answer:
        """Ask for a state, a dataset or the like."""
        return await self._call("GET", url, audience=audience)

    async def fetch(self, method: str, url: str, *, audience: str, message: Json | None = None) -> Answer:
        """As `get` and `post`, for callers who need the answer: PeerRefused with its reason where it is no, PeerBusy
        where it is no for now, as from a connector that has just started."""
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
        """A base URL that we could call, without its trailing slash. MessageInvalid says why we could not."""
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
        """As `check`, for an address that somebody else gives, who must not learn from us who has which name or address
        in our network: what came of looking it up is `private`, for our log."""
        try:
            return await self.check(address)
        except MessageInvalid as error:
            if isinstance(error.__cause__, PeerFailed):
                raise _for_them(address, error.__cause__) from error
            raise

    async def check_sink(self, endpoint: str) -> None:
        """As `check_theirs`, for where somebody has data pushed to: any URL, also with a query."""
        try:
            await self._wire.guard.check(endpoint)
        except PeerFailed as error:
            raise _for_them(endpoint, error) from error

    async def base_of(self, root: str) -> str:
        """The base of the 2025-1 endpoints under a connector's root URL, from its version document.

        PeerNonsense where it offers no version that we speak: then we must stop (DSP 2025-1, section 2).
        """
        root, now = root.removesuffix("/"), time.monotonic()
        asked, known = self._bases.get(root, (0.0, ""))
        if known and now - asked < _VERSIONS_SECONDS:
            return known
        reply = await self._wire.call("GET", f"{root}/.well-known/dspace-version", max_bytes=64 * 2**10)
        base = root + _path_of(reply, root)
        try:
            urls.read_base(base)
        except ValueError as error:
            raise PeerNonsense(f"the version document of {root} names no address that can be called: {error}") from None
        put_recent(self._bases, root, (now, base), most=_VERSIONS_MAX)
        return base

    async def _call(self, method: str, url: str, *, audience: str, body: bytes | None = None) -> Answer:
        headers = {"Authorization": self._mint(audience), "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return _answer(await self._wire.call(method, url, headers=headers, body=body))


def _for_them(address: str, error: PeerFailed) -> HanseError:
    """Why we cannot call an address, for whoever gave it: nothing of what came of looking it up."""
    if isinstance(error, INWARD):
        said = f"the address {address[:200]!r} cannot be called from here; give one that others can reach"
        return MessageInvalid(said, private=error.message)
    if isinstance(error, PeerUnreachable):
        return Busy(error.message)
    return MessageInvalid(f"the address {address[:200]!r} cannot be called from here: {error}")


def _answer(reply: Reply) -> Answer:
    if not 200 <= reply.status < 300:
        code, reason = messages.problem_of(reply.body)
        return Answer(reply.status, reason=reason, code=code, headers=reply.headers)
    try:
        document = jsonld.parse(reply.body) if reply.body.strip() else None
    except MessageInvalid:
        document = None  # an acknowledgement need not have a body, and one that we cannot read is none
    return Answer(reply.status, document, headers=reply.headers, size=len(reply.body))


def _path_of(reply: Reply, root: str) -> str:
    document = _answer(reply).document
    offered = document.get("protocolVersions") if isinstance(document, dict) else None
    for entry in offered if isinstance(offered, list) else ():
        if isinstance(entry, dict) and entry.get("version") == VERSION and entry.get("binding") == "HTTPS":
            path = str(entry.get("path", "")).removesuffix("/")
            if not path or path.startswith("/"):
                return path
    raise PeerNonsense(
        f"{root} offers no Dataspace Protocol {VERSION} over HTTPS (status {reply.status}); stopped there"
    )


def segment(identifier: str) -> str:
    """An identifier as one segment of a path."""
    return quote(identifier, safe=":@")
