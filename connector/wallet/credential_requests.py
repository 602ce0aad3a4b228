"""Asks issuers for credentials about us, and says what we hold (Decentralized Claims 1.0, section 6).

The request is committed before it is sent, as the issuer may deliver before it has answered. Only issuers that may
deliver to us are asked. Must not know the management API.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from connector.errors import Absent, ConnectorError, Invalid, PeerNonsense, PeerRefused, Unavailable, Unproven
from connector.events import CredentialRequested
from connector.identity.credentials.credential import read_credential
from connector.identity.credentials.status_list import StatusLists
from connector.identity.did import CONTEXT, DidResolver
from connector.infra.net.http_client import HttpClient, Reply, origin
from connector.store import Store, Transaction
from connector.store.tables import CredentialRequest, HeldCredential
from policies.odrl.strictjson import list_of

_OPEN_MAX = 100
_SHOWN_MAX = 100
_ANSWER_MAX = 256 * 2**10
_SECONDS = 8.0  # to read the status lists of all shown credentials
_TYPE_MAX = 200
_STATUSES = ("RECEIVED", "ISSUED", "REJECTED")
_PURPOSES = {"revocation": "revoked", "suspension": "suspended"}

Mint = Callable[[str], Awaitable[str]]  # an Authorization header for a receiver


@dataclass(frozen=True, slots=True)
class HeldView:
    """A credential that we hold. `status`: valid, expired, revoked, suspended, withdrawn, or unknown for now."""

    row: HeldCredential
    status: str


class CredentialRequests:
    """Our requests to `issuers`, and the credentials of `did`, who is us."""

    def __init__(
        self, store: Store, net: HttpClient, resolver: DidResolver, mint: Mint, *, did: str, issuers: Collection[str]
    ) -> None:
        self.issuers = tuple(issuers)
        self._store, self._net, self._resolver, self._mint, self._did = store, net, resolver, mint, did
        self._lists = StatusLists(net, resolver)

    async def request(self, issuer: str, kind: str, *, by: str) -> CredentialRequest:
        """Ask `issuer` for a credential of the type `kind`; it delivers to our credential service.

        Raises: Invalid if the issuer may not deliver to us or has no such type; PeerFailed, Unavailable. A request that
        the issuer does not take is kept with its reason.
        """
        if issuer not in self.issuers:
            raise Invalid(
                f"expected an issuer that may deliver to us, got {issuer[:200]!r}; list it in HANSE_CREDENTIAL_ISSUERS"
            )
        service = await self._find_service(issuer)
        found = await self._find_offered(service, kind)
        row = await self._store.write(lambda tx: _record(tx, issuer, kind, by))
        message = _message("CredentialRequestMessage", {"holderPid": row.id, "credentials": [{"id": found}]})
        try:
            reply = await self._call("POST", f"{service}/credentials", issuer, message)
            where = _read_location(reply, service)
        except ConnectorError as error:
            reason = error.message
            await self._store.write(lambda tx: _change(tx, row.id, "FAILED", reason=reason))
            raise
        return await self._store.write(lambda tx: _change(tx, row.id, "RECEIVED", status_url=where))

    async def refresh(self, id: str) -> CredentialRequest:
        """A request with its status, asked of its issuer while it is open. Raises: Absent, PeerFailed, Unavailable."""
        row = await self._store.read(lambda tx: tx.held_credentials.get_request(id))
        if row is None:
            raise Absent(f"no request {id[:100]!r}; list them with `hanse credential requests`")
        if row.status != "RECEIVED":
            return row
        reply = await self._call("GET", row.status_url, row.issuer)
        said = _read_json(reply)
        if reply.status != 200 or said.get("status") not in _STATUSES:
            raise PeerNonsense(f"expected the status of a request from {row.issuer}, got {reply.status}")
        if said["status"] == row.status:
            return row
        return await self._store.write(lambda tx: _change(tx, id, str(said["status"])))

    async def list_requests(self) -> Sequence[CredentialRequest]:
        """Our newest requests, as last known."""
        return await self._store.read(lambda tx: tx.held_credentials.list_requests(_SHOWN_MAX))

    async def list_held(self) -> list[HeldView]:
        """The newest credentials that we hold, each with its status now."""
        rows = await self._store.read(lambda tx: list(tx.held_credentials.list_all())[:_SHOWN_MAX])
        ends = asyncio.get_running_loop().time() + _SECONDS
        return [HeldView(row, await self._find_status(row, ends)) for row in rows]

    async def _find_status(self, row: HeldCredential, ends: float) -> str:
        now = time.time()
        if row.expires is not None and row.expires <= now:
            return "expired"
        try:
            async with asyncio.timeout_at(ends):
                credential = read_credential(row.jwt, holder=self._did, now=now)
                for entry in credential.statuses:
                    if (await self._lists.read(entry, issuer=row.issuer, now=now))[0]:
                        return _PURPOSES.get(str(entry.get("statusPurpose")), "withdrawn")
        except (Unproven, Unavailable, TimeoutError):
            return "unknown"
        return "valid"

    async def _find_service(self, issuer: str) -> str:
        try:
            return (await self._resolver.service(issuer, "IssuerService")).rstrip("/")
        except Unproven as error:
            raise PeerRefused(error.message, private=error.private) from error

    async def _find_offered(self, service: str, kind: str) -> str:
        """The issuer's id of what it issues as `kind`. Raises: Invalid with the types that it has."""
        metadata = _read_json(await self._net.call("GET", f"{service}/metadata", max_bytes=_ANSWER_MAX))
        offered = [one for one in list_of(metadata.get("credentialsSupported")) if isinstance(one, dict)]
        for one in offered:
            if kind in (one.get("credentialType"), one.get("id")) and isinstance(one.get("id"), str):
                return str(one["id"])
        known = ", ".join(sorted({str(one.get("credentialType"))[:_TYPE_MAX] for one in offered})[:16])
        raise Invalid(f"expected a type that the issuer has ({known or 'it names none'}), got {kind[:_TYPE_MAX]!r}")

    async def _call(self, method: str, url: str, issuer: str, body: bytes | None = None) -> Reply:
        headers = {"authorization": await self._mint(issuer), "content-type": "application/json"}
        return await self._net.call(method, url, headers=headers, body=body, max_bytes=_ANSWER_MAX)


def check_delivery(tx: Transaction, issuer: str, holder_pid: str) -> None:
    """Refuse a delivery for a request of ours that went to another issuer, or that is rejected. An id that is none of
    ours is an unasked delivery, which listed issuers may send (decision 77). Raises: Invalid.
    """
    row = tx.held_credentials.get_request(holder_pid)
    if row is not None and (row.issuer != issuer or row.status == "REJECTED"):
        raise Invalid("expected a delivery for an open request to this issuer, got one for another or a rejected one")


def note_delivery(tx: Transaction, holder_pid: str, status: str) -> None:
    """Note what came of a request of ours, if it is one."""
    row = tx.held_credentials.get_request(holder_pid)
    if row is not None and row.status != status:
        _change(tx, holder_pid, status)


def _record(tx: Transaction, issuer: str, kind: str, by: str) -> CredentialRequest:
    if tx.held_credentials.count_open_requests() >= _OPEN_MAX:
        raise Invalid(f"expected at most {_OPEN_MAX} open requests for credentials; wait for the issuers")
    row = CredentialRequest(
        id=f"urn:uuid:{uuid.uuid4()}",
        issuer=issuer,
        type=kind,
        status="REQUESTED",
        status_url="",
        reason="",
        requested_by=by,
        created_at=tx.now,
        updated_at=tx.now,
    )
    tx.held_credentials.add_request(row)
    tx.publish(_event(row, by))
    return row


def _change(tx: Transaction, id: str, status: str, *, reason: str = "", status_url: str = "") -> CredentialRequest:
    row = tx.held_credentials.get_request(id)
    if row is None:
        raise Absent(f"no request {id[:100]!r}")
    if row.status not in ("ISSUED", "REJECTED"):  # a delivery may come before the answer to its request
        row.status, row.reason, row.updated_at = status, reason[:2_000], tx.now
        tx.publish(_event(row, row.issuer))
    row.status_url = status_url or row.status_url
    return row


def _event(row: CredentialRequest, actor: str) -> CredentialRequested:
    detail = {"issuer": row.issuer, "type": row.type, "status": row.status}
    return CredentialRequested(actor=actor, process=row.id, detail=detail, reason=row.reason)


def _message(kind: str, members: Mapping[str, Any]) -> bytes:
    return json.dumps({"@context": [CONTEXT], "type": kind, **members}).encode()


def _read_json(reply: Reply) -> dict[str, Any]:
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PeerNonsense(f"expected a JSON object from the issuer, got {reply.status} with something else")
    return found


def _read_location(reply: Reply, service: str) -> str:
    """The address of the request's status, at the issuer's own server. Raises: PeerRefused, PeerNonsense."""
    if reply.status != 201:
        raise PeerRefused(f"expected 201 from the issuer, got {reply.status}; ask its operator why")
    where = urljoin(f"{service}/", reply.headers.get("location", ""))
    if not reply.headers.get("location") or origin(where) != origin(service):
        raise PeerNonsense("expected the address of the request's status at the issuer's server as Location")
    return where
