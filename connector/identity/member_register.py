"""What we know of a participant: facts from the data space's member register, signed by its operator.

The register is a compact JWS (ES256) over {"iss", "iat", "exp", "members": [{id, name, status, role, country, url}]}.
It is fetched when first needed and again when older than `max_age`; past its own `exp`, or when it cannot be had or
verified, membership is unknown, and unknown never permits. A signature is checked against the operator's DID document.
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

from connector.errors import HanseError, Unauthenticated
from connector.identity.did import DidResolver, address_of
from connector.identity.self_issued_token import ALGORITHMS, public_key
from connector.infra.net.http_client import HttpClient
from connector.setting_types import port_hint
from connector.telemetry import logger

_REGISTER_MAX = 4 * 2**20
_LARGE = JWSRegistry(algorithms=list(ALGORITHMS))
_LARGE.max_payload_length = _REGISTER_MAX  # the library's own limit is reached by 600 members
_RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 1.0  # for a newer register, where one is held that can be believed
_NEWCOMER_SECONDS = 0.2  # strangers make us ask the operator at most five times a second


@dataclass(frozen=True, slots=True)
class Register:
    """Members by id, as the operator signed them, until when (UTC seconds), and their ids by their names."""

    members: Mapping[str, Mapping[str, Any]]
    expires: float
    names: Mapping[str, str]


def _believed(register: Register | None) -> Register | None:
    return register if register is not None and register.expires > time.time() else None


class Trust:
    """The member register, as far as it can be believed now."""

    def __init__(
        self, net: HttpClient, resolver: DidResolver, *, anchor: str, register_url: str, max_age: float
    ) -> None:
        self._net, self._resolver = net, resolver
        self._anchor = anchor
        self._url = register_url
        self._max_age = max_age
        self._register: Register | None = None
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._rests_until = float("-inf")
        self._coming: asyncio.Task[Register | None] | None = None
        self._lock = asyncio.Lock()
        self._log = logger("trust")
        resolver.expect([anchor])

    async def member(self, participant: str) -> Mapping[str, Any] | None:
        """The operator's entry for a participant; {} for somebody who is not a member; None where that is unknown."""
        return await self._entry(lambda register: register.members.get(participant))

    async def called(self, participant: str) -> Mapping[str, Any] | None:
        """The same for a participant by its name or its DID."""
        return await self._entry(lambda register: register.members.get(register.names.get(participant, participant)))

    async def _entry(self, of: Callable[[Register], Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
        register = await self._current(self._max_age)
        if register is not None and of(register) is None:  # perhaps it joined a moment ago
            register = await self._current(_NEWCOMER_SECONDS)
        register = _believed(register)
        return None if register is None else of(register) or {}

    def believed_until(self) -> float | None:
        """When the register that we hold ends (UTC seconds); None where we hold none."""
        return None if self._register is None else self._register.expires

    async def members(self, *, newest: bool = False) -> Mapping[str, Mapping[str, Any]]:
        """Every member that the operator lists, by a register of up to `max_age`, or the `newest` that can be had in a
        second; empty where that is unknown."""
        register = _believed(await (self._newest() if newest else self._current(self._max_age)))
        return {} if register is None else register.members

    async def names(self) -> Mapping[str, str]:
        """Members by the name that the operator lists them under: each one's id; empty where that is unknown.

        By the register that we hold: the operator is waited for only where there is none that can be believed.
        """
        register = _believed(self._register) or _believed(await self._current(self._max_age))
        return {} if register is None else register.names

    async def _newest(self) -> Register | None:
        """The register anew. Where the operator takes its time, the one that we hold, while it is fetched on; who did
        not answer is not asked again for as long as that was waited for."""
        held = _believed(self._register)
        if held is not None and time.monotonic() < self._rests_until:
            return held
        if self._coming is None or self._coming.done():
            self._coming = asyncio.create_task(self._current(_NEWCOMER_SECONDS))
        await asyncio.wait([self._coming], timeout=None if held is None else _PATIENCE_SECONDS)
        return self._register

    async def _current(self, max_age: float) -> Register | None:
        """The register, fetched anew where it is older than `max_age` seconds and was not just tried.

        Who waits while another one tries does not try again: an operator that answers nobody would be waited for by
        one after the other.
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
            url = self._url or _beside(address_of(self._anchor, insecure_http=self._net.guard.insecure_http))
            reply = await self._net.call("GET", url, max_bytes=_REGISTER_MAX)
            if reply.status != 200:
                raise Unauthenticated(f"expected the member register at {url}, came status {reply.status}")
            self._register = await self._verify(reply.body.decode("ascii", "replace"))
            self._fetched = time.monotonic()
            self._resolver.expect([self._anchor, *self._register.members])
        except HanseError as error:
            self._rests_until = 2 * time.monotonic() - began
            self._log.warning("register_unavailable", reason=error.message + port_hint(self._anchor), why=error.private)

    async def _verify(self, text: str) -> Register:
        try:
            header = jws.extract_compact(text.encode(), registry=_LARGE).headers()
            jwk = await self._resolver.key(self._anchor, str(header.get("kid", "")), purpose="assertionMethod")
            body = json.loads(jws.deserialize_compact(text, public_key(jwk), registry=_LARGE).payload)
            if body["iss"] != self._anchor or body["exp"] <= time.time():
                raise Unauthenticated("the member register is expired or somebody else's")
            members = {entry["id"]: entry for entry in body["members"]}
            names = {entry["name"]: entry["id"] for entry in body["members"] if "name" in entry}
            return Register(members, float(body["exp"]), names)
        except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unauthenticated(
                f"the member register is not what its operator signs ({type(error).__name__})"
            ) from error


def _beside(did_document: str) -> str:
    base = did_document.removesuffix("/did.json").removesuffix("/.well-known")
    return f"{base}/members.jws"
