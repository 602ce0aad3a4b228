"""The data space's member register, signed by its operator: facts about participants.

The register is a compact JWS (ES256) over {"iss", "iat", "exp", "members": [{id, name, status, role, country, url}]}.
It is fetched when first needed, and again when older than `max_age`. Past its own `exp`, or if it cannot be fetched or
verified, membership is unknown, and unknown never permits. Signatures are checked with the operator's DID document.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from connector.errors import ConnectorError, Unproven
from connector.identity.did import DidResolver, address_of
from connector.identity.signed_jwt import ALGORITHMS, public_key
from connector.infra.net.http_client import HttpClient
from connector.setting_types import port_hint
from connector.telemetry import logger

_REGISTER_MAX = 4 * 2**20
_LARGE = JWSRegistry(algorithms=list(ALGORITHMS))
_LARGE.max_payload_length = _REGISTER_MAX  # the library's default is reached with 600 members
_RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 1.0  # to wait for a newer register if a valid one is cached
_NEWCOMER_SECONDS = 0.2  # unknown parties cause at most five fetches a second


@dataclass(frozen=True, slots=True)
class RegisterSnapshot:
    """A verified register: members by id, its expiry (UTC seconds), and ids by name."""

    members: Mapping[str, Mapping[str, Any]]
    expires: float
    names: Mapping[str, str]


def _if_valid(register: RegisterSnapshot | None) -> RegisterSnapshot | None:
    return register if register is not None and register.expires > time.time() else None


class MemberRegister:
    """The member register: fetched, verified and cached. `anchor` is the operator's DID; empty means no register."""

    def __init__(
        self, net: HttpClient, resolver: DidResolver, *, anchor: str, register_url: str, max_age: float
    ) -> None:
        self._net, self._resolver = net, resolver
        self._anchor = anchor
        self._url = register_url
        self._max_age = max_age
        self._register: RegisterSnapshot | None = None
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._retry_at = float("-inf")
        self._fetching: asyncio.Task[RegisterSnapshot | None] | None = None
        self._lock = asyncio.Lock()
        self._log = logger("trust")
        resolver.expect([anchor])

    async def find_member(self, participant: str) -> Mapping[str, Any] | None:
        """The operator's entry for a participant; {} for a non-member; None if membership is unknown."""
        return await self._entry(lambda register: register.members.get(participant))

    async def find_member_by_name(self, participant: str) -> Mapping[str, Any] | None:
        """As `find_member`, for a name or a DID."""
        return await self._entry(lambda register: register.members.get(register.names.get(participant, participant)))

    async def _entry(self, of: Callable[[RegisterSnapshot], Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
        register = await self._current(self._max_age)
        if register is not None and of(register) is None:  # it may have joined a moment ago
            register = await self._current(_NEWCOMER_SECONDS)
        register = _if_valid(register)
        return None if register is None else of(register) or {}

    def valid_until(self) -> float | None:
        """The expiry of the cached register (UTC seconds); None without one."""
        return None if self._register is None else self._register.expires

    async def members(self, *, newest: bool = False) -> Mapping[str, Mapping[str, Any]]:
        """All members by id, from a register of age `max_age` at most; empty if membership is unknown.

        `newest`: fetch the register first, but wait a second at most if a valid one is cached.
        """
        register = _if_valid(await (self._newest() if newest else self._current(self._max_age)))
        return {} if register is None else register.members

    async def names(self) -> Mapping[str, str]:
        """The ids of members by name; empty if membership is unknown.

        Uses the cached register if it is valid, and waits for the operator only without one.
        """
        register = _if_valid(self._register) or _if_valid(await self._current(self._max_age))
        return {} if register is None else register.names

    async def _newest(self) -> RegisterSnapshot | None:
        """Fetch the register; if that takes long, return the cached one while the fetch goes on.

        After a failure, the next attempt waits for as long as the failed one took.
        """
        cached = _if_valid(self._register)
        if cached is not None and time.monotonic() < self._retry_at:
            return cached
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._current(_NEWCOMER_SECONDS))
        await asyncio.wait([self._fetching], timeout=None if cached is None else _PATIENCE_SECONDS)
        return self._register

    async def _current(self, max_age: float) -> RegisterSnapshot | None:
        """The register, fetched again if it is older than `max_age` seconds and no attempt was made just now.

        Callers that wait for another caller's attempt do not try again: otherwise, with an operator that is down, each
        would wait for a time-out of its own, in turn.
        """
        if not self._anchor:
            return None
        asked = time.monotonic()
        if asked - self._fetched > max_age:
            async with self._lock:
                now = time.monotonic()
                rested = now - self._tried > min(max_age, _RETRY_SECONDS)
                if rested and self._tried < asked and now - self._fetched > max_age:
                    await self._refresh()
                    self._tried = time.monotonic()
        return self._register

    async def _refresh(self) -> None:
        began = time.monotonic()
        try:
            url = self._url or _register_url(address_of(self._anchor, insecure_http=self._net.guard.insecure_http))
            reply = await self._net.call("GET", url, max_bytes=_REGISTER_MAX)
            if reply.status != 200:
                raise Unproven(f"expected the member register at {url}, got status {reply.status}")
            self._register = await self._verify(reply.body.decode("ascii", "replace"))
            self._fetched = time.monotonic()
            self._resolver.expect([self._anchor, *self._register.members])
        except ConnectorError as error:
            self._retry_at = 2 * time.monotonic() - began
            self._log.warning("register_unavailable", reason=error.message + port_hint(self._anchor), why=error.private)

    async def _verify(self, text: str) -> RegisterSnapshot:
        try:
            header = jws.extract_compact(text.encode(), registry=_LARGE).headers()
            jwk = await self._resolver.key(self._anchor, str(header.get("kid", "")), purpose="assertionMethod")
            body = json.loads(jws.deserialize_compact(text, public_key(jwk), registry=_LARGE).payload)
            if body["iss"] != self._anchor or body["exp"] <= time.time():
                raise Unproven("expected a current member register of our operator, got an expired or foreign one")
            members = {entry["id"]: entry for entry in body["members"]}
            names = {entry["name"]: entry["id"] for entry in body["members"] if "name" in entry}
            return RegisterSnapshot(members, float(body["exp"]), names)
        except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unproven(
                f"expected a member register signed by its operator, got something else ({type(error).__name__})"
            ) from error


def _register_url(did_document: str) -> str:
    base = did_document.removesuffix("/did.json").removesuffix("/.well-known")
    return f"{base}/members.jws"
