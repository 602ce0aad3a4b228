"""Transfers on the management API: request, list, wait, control, the consumer's read address, and pushed data."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from connector.dataplane.foreign_fetch import FetchSource, ForeignFetches
from connector.dataplane.push.push_receiver import PushReceiver
from connector.dsp import states
from connector.dsp.messages import DataAddress
from connector.dsp.states import PROVIDER
from connector.dsp.transfer import FORMATS, PUSH, TransferService
from connector.errors import Absent, ScopeMissing
from connector.events import DataFetched, DataReceived
from connector.infra.http.media_type import ARROW_STREAM, OCTETS
from connector.management.agreements import AsRole
from connector.management.notify import long_poll
from connector.management.sign_on.auth import Caller, Tokens
from connector.store import Store, Transaction
from connector.store.tables import PushedData, Transfer
from connector.usage.grants import HELD

_UNREAD = MappingProxyType({"x-content-type-options": "nosniff"})  # a browser shows nothing of what others sent
Command = Literal["start", "suspend", "resume", "complete", "terminate"]
State = Literal["", "REQUESTED", "STARTED", "SUSPENDED", "COMPLETED", "TERMINATED"]


class Address(BaseModel):
    """The target of a push."""

    model_config = ConfigDict(extra="forbid")

    endpoint: str = Field(max_length=2_000)
    endpoint_type: str = Field("https://w3id.org/idsa/v4.1/HTTP", max_length=255)
    properties: dict[str, str] = Field(default_factory=dict, max_length=50)


class NewTransfer(BaseModel):
    """A transfer under an agreement where we are the consumer."""

    model_config = ConfigDict(extra="forbid")

    agreement_id: str = Field(max_length=255)
    format: str = Field("HttpData-PULL", max_length=64)
    purpose: str = Field(
        "", max_length=1_024, description="What the ticket is bound to: IRI or short name (dpv:ScientificResearch)."
    )
    data_address: Address | None = Field(
        None, description="For push formats: where to; without one, to this connector (`/transfers/{id}/received`)."
    )
    counter_party_id: str = Field("", max_length=255, description="The provider, if it is to be checked.")
    counter_party_address: str = Field("", max_length=2_000, description="Where it has moved to, if it has.")
    correlation: str = Field("", max_length=255)


class TransferCommandBody(BaseModel):
    """Why a transfer is suspended or ended."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field("", max_length=255)
    reason: str = Field("", max_length=2_000)


class ReceivedView(BaseModel):
    """Data that a provider pushed to us. `whole`: the sender's end record confirms that it is complete.

    `coming`: it is not complete yet, and only its bytes so far are known. `rows`: of Arrow only; other media types come
    from other kinds of connectors, and nothing is read in them.
    """

    coming: bool
    bytes: int
    media: str = ""
    rows: int | None
    whole: bool
    received_at: float | None
    removed_at: float | None


class TransferView(BaseModel):
    """A transfer. Tickets are never shown here: see `/transfers/{id}/address`."""

    id: str
    role: str
    peer_pid: str
    counterparty: str
    address: str
    state: str
    pending: str
    agreement_id: str
    format: str
    purpose: str
    suspended_by: str
    code: str
    reason: str
    correlation: str
    created_at: float
    updated_at: float
    received: ReceivedView | None = None


class TicketView(BaseModel):
    """The read address, its ticket, and the expiry (UTC seconds; 0 if the provider does not say)."""

    endpoint: str
    endpoint_type: str
    ticket: str
    expires: float
    agreement_id: str
    properties: dict[str, str]


def view(row: Transfer, received: ReceivedView | None = None) -> TransferView:
    """Return a transfer for people and programs."""
    shown = {name: getattr(row, name) for name in TransferView.model_fields if name != "received"}
    state = states.published(states.TRANSFER, row.state, row.pending, row.role)
    by = PROVIDER if row.suspended_by in HELD else row.suspended_by
    return TransferView(**{**shown, "state": state, "suspended_by": by, "received": received})


async def views(
    store: Store, receiving: PushReceiver, look: Callable[[Transaction], list[Transfer]]
) -> list[TransferView]:
    """Return transfers with the data that was pushed to us under them."""

    def work(tx: Transaction) -> tuple[list[Transfer], dict[str, PushedData]]:
        rows = look(tx)
        return rows, tx.pushed_data.get_many([row.id for row in rows])

    rows, known = await store.read(work)
    return [view(row, _received_view(known.get(row.id), receiving.progress(row.id))) for row in rows]


def _received_view(row: PushedData | None, coming: int | None) -> ReceivedView | None:
    if row is not None:
        about = {name: getattr(row, name) for name in ("bytes", "media", "whole", "received_at", "removed_at")}
        return ReceivedView(coming=False, rows=row.rows if row.media == ARROW_STREAM else None, **about)
    if coming is None:
        return None
    return ReceivedView(coming=True, bytes=coming, rows=None, whole=False, received_at=None, removed_at=None)


def router(
    *, transfers: TransferService, receiving: PushReceiver, fetches: ForeignFetches, store: Store, tokens: Tokens
) -> APIRouter:
    routes = APIRouter(prefix="/transfers", tags=["transfers"])
    reader = Depends(tokens.require("read"))
    consumer = Depends(tokens.require("consume"))
    bound_reader = Depends(tokens.require("read", bound=True))
    bound_consumer = Depends(tokens.require("consume", bound=True))
    receiver = Depends(tokens.require_raw("consume", DataReceived, bound=True))
    fetcher = Depends(tokens.require_raw("consume", DataFetched, bound=True))

    async def find_row(pid: str) -> Transfer:
        row = await store.read(lambda tx: tx.transfers.peek(pid))
        if row is None:
            raise Absent(f"no transfer {pid!r}; list them with `hanse transfers`")
        return row

    async def check_bound(pid: str, caller: Caller) -> None:
        if caller.agreement or caller.purpose:
            row = await find_row(pid)
            caller.check_bound(row.agreement_id, row.purpose)

    async def send_received(pid: str) -> FileResponse:
        path, media = await receiving.file(pid)
        ending = ".arrows" if media == ARROW_STREAM else mimetypes.guess_extension(media) or ".bin"
        name = f"{pid.rpartition(':')[2][:40]}{ending}"
        return FileResponse(path, media_type=media, filename=name, headers=_UNREAD)

    @routes.post("", status_code=201, summary="Ask for a transfer under an agreement")
    async def ask(new: NewTransfer, caller: Caller = bound_consumer) -> TransferView:
        caller.check_bound(new.agreement_id, new.purpose)
        to = new.data_address
        row = await transfers.request(
            agreement_id=new.agreement_id,
            format=new.format,
            purpose=new.purpose,
            data_address=DataAddress(to.endpoint_type, to.endpoint, tuple(to.properties.items())) if to else None,
            counterparty=new.counter_party_id,
            address=new.counter_party_address,
            by=caller.name,
            correlation=new.correlation,
        )
        return view(row)

    @routes.get("", summary="Transfers, the newest first")
    async def list_transfers(
        role: AsRole = "",
        state: State = "",
        agreement: Annotated[str, Query(max_length=255)] = "",
        correlation: Annotated[str, Query(max_length=255, description="As given when it was asked for.")] = "",
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        _: Caller = reader,
    ) -> list[TransferView]:
        wanted: dict[str, Any] = {"role": role, "state": state, "agreement_id": agreement, "correlation": correlation}
        return await views(store, receiving, lambda tx: list(tx.transfers.page(limit=limit, offset=offset, **wanted)))

    @routes.get("/{pid}", summary="One transfer; `wait` for it to get somewhere")
    async def get(
        pid: str,
        wait: Annotated[float, Query(ge=0, le=long_poll.LONGEST)] = 0.0,
        until: State = "",
        caller: Caller = bound_reader,
    ) -> TransferView:
        await check_bound(pid, caller)
        row = (
            await long_poll.wait_until(store, pid, lambda: find_row(pid), state=until, seconds=wait)
            if wait
            else await find_row(pid)
        )
        return (await views(store, receiving, lambda _: [row]))[0]

    @routes.get("/{pid}/address", summary="Where a consumer reads, with a ticket that lasts")
    async def address(pid: str, caller: Caller = bound_consumer) -> TicketView:
        await check_bound(pid, caller)
        found = await transfers.get_read_address(pid)
        known = dict(found.address.properties)
        return TicketView(
            endpoint=found.address.endpoint,
            endpoint_type=found.address.endpoint_type,
            ticket=known.pop("authorization", ""),
            expires=found.expires,
            agreement_id=found.agreement_id,
            properties=known,
        )

    @routes.get(
        "/{pid}/data",
        summary="The data of an owner with another kind of connector, as its endpoint sends it, or as it was pushed",
        response_class=StreamingResponse,
        responses={200: {"content": {OCTETS: {}}}},
    )
    async def fetch(pid: str, caller: Caller = fetcher) -> Response:
        await check_bound(pid, caller)
        row = await find_row(pid)
        if FORMATS.get(row.format) == PUSH:
            return await send_received(pid)
        found = await transfers.get_read_address(pid)
        source = FetchSource(row, found.address.endpoint, dict(found.address.properties))
        head, pieces = await fetches.open(source, by=caller.name)
        headers = {**_UNREAD, "content-disposition": "attachment"}
        if head.length >= 0:
            headers["content-length"] = str(head.length)
        return StreamingResponse(pieces, media_type=head.media, headers=headers)

    @routes.get(
        "/{pid}/received",
        summary="What a provider pushed to us: an Arrow stream, or the file that another kind of connector sent",
        response_class=FileResponse,
        responses={200: {"content": {ARROW_STREAM: {}, OCTETS: {}}}},
    )
    async def get_received(pid: str, caller: Caller = receiver) -> FileResponse:
        await check_bound(pid, caller)
        return await send_received(pid)

    @routes.delete("/{pid}/received", status_code=204, summary="Remove what a provider pushed to us")
    async def remove_received(pid: str, caller: Caller = consumer) -> Response:
        await receiving.remove(pid, by=caller.name)
        return Response(status_code=204)

    @routes.post("/{pid}/{command}", summary="Start, suspend, resume, complete or end a transfer")
    async def command(
        pid: str, command: Command, said: TransferCommandBody | None = None, caller: Caller = reader
    ) -> TransferView:
        row = await find_row(pid)
        needed = "owner" if row.role == PROVIDER else "consume"
        if not caller.may(needed):
            raise ScopeMissing(f"expected a token with the scope {needed!r} for a transfer as {row.role}")
        given = said or TransferCommandBody()
        return view(await transfers.command(pid, command, by=caller.name, code=given.code, reason=given.reason))

    return routes
