"""Live events: a stream of committed events for programs, and webhooks for other servers.

The stream shows what the log shows: it requires the scope of the log, and joining it is recorded in the log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from connector import events
from connector.errors import Invalid, Limited
from connector.events import Bus, Event
from connector.management.audit import log_read_event
from connector.management.notify.webhooks import EVERY, Webhooks
from connector.management.sign_on.auth import Caller, Tokens
from connector.store.tables import Webhook

_WAITING_MAX = 1_000  # events that a slow reader may be behind
_READERS_MAX = 100
_PAUSE = 15.0  # seconds between keep-alive comments


class NewWebhook(BaseModel):
    """The address to which committed events are delivered."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2_000, description="Address that takes POST requests.")
    kinds: list[Annotated[str, Field(max_length=64)]] = Field(
        default_factory=lambda: ["NegotiationAdvanced", "TransferAdvanced", "DecisionNeeded"],
        min_length=1,
        max_length=50,
        description="Kinds of events, or * for all.",
    )


class WebhookView(BaseModel):
    id: str
    url: str
    kinds: list[str]
    created_at: float


class WebhookMade(WebhookView):
    """A new webhook. The secret signs every delivery and is shown this once."""

    secret: str


class Feed:
    """Committed events of all processes on this database. A reader that falls too far behind is cut off."""

    def __init__(self, bus: Bus) -> None:
        self._readers: set[asyncio.Queue[Event | None]] = set()
        self._closed = False
        bus.subscribe(self._on_event)

    def close(self) -> None:
        """End each stream, so that the listener can shut down."""
        self._closed = True
        for reader in tuple(self._readers):
            self._cut(reader)

    def _on_event(self, event: Event) -> None:
        for reader in tuple(self._readers):
            if reader.qsize() >= _WAITING_MAX:
                self._cut(reader)
            else:
                reader.put_nowait(event)

    def _cut(self, reader: asyncio.Queue[Event | None]) -> None:
        self._readers.discard(reader)
        while reader.qsize() >= _WAITING_MAX:
            reader.get_nowait()
        reader.put_nowait(None)

    def join(self) -> asyncio.Queue[Event | None]:
        """Return a queue of all events from now on; None is the end. Return it with `leave`."""
        if self._closed or len(self._readers) >= _READERS_MAX:
            raise Limited(f"expected at most {_READERS_MAX} readers of the event stream; close one first")
        reader: asyncio.Queue[Event | None] = asyncio.Queue()
        self._readers.add(reader)
        return reader

    def leave(self, reader: asyncio.Queue[Event | None]) -> None:
        self._readers.discard(reader)


async def frames(feed: Feed, reader: asyncio.Queue[Event | None], kinds: frozenset[str]) -> AsyncIterator[str]:
    """Yield events as Server-Sent Events, with regular comments so that a broken connection shows."""
    number = 0
    try:
        yield ": joined\n\n"
        while True:
            try:
                async with asyncio.timeout(_PAUSE):
                    event = await reader.get()
            except TimeoutError:
                yield ": here\n\n"
                continue
            if event is None:
                yield "event: end\ndata: {}\n\n"
                return
            if not kinds or event.kind in kinds:
                number += 1
                yield f"id: {number}\nevent: {event.kind}\ndata: {json.dumps(event.body(), default=str)}\n\n"
    finally:
        feed.leave(reader)


def _check_kinds(kinds: list[str]) -> None:
    known = events.kinds()
    if unknown := sorted(set(kinds) - set(known) - {EVERY}):
        raise Invalid(f"expected kinds among {', '.join(sorted(known))} or *, came {', '.join(unknown)}")


def _view(row: Webhook) -> dict[str, Any]:
    return {"id": row.id, "url": row.url, "kinds": row.kinds, "created_at": row.created_at}


def router(*, feed: Feed, webhooks: Webhooks, tokens: Tokens, note: Callable[[Event], Awaitable[None]]) -> APIRouter:
    """Return the routes. `note` durably records each join of the stream."""
    routes = APIRouter(tags=["events"])
    auditor = Depends(tokens.require("audit"))
    admin = Depends(tokens.require("admin"))

    @routes.get("/events/stream", summary="Committed events from now on, as Server-Sent Events")
    async def stream(
        kind: Annotated[list[str] | None, Query(max_length=50, description="Only these kinds.")] = None,
        caller: Caller = auditor,
    ) -> StreamingResponse:
        _check_kinds(kind or [])
        await note(log_read_event(caller, "stream", {"kinds": kind} if kind else {}))
        body = frames(feed, feed.join(), frozenset(kind or ()))
        return StreamingResponse(body, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @routes.post("/webhooks", status_code=201, summary="Have events delivered to an address, signed")
    async def add(new: NewWebhook, caller: Caller = admin) -> WebhookMade:
        _check_kinds(new.kinds)
        row = await webhooks.add(url=new.url, kinds=new.kinds, by=caller.name)
        return WebhookMade(**_view(row), secret=row.secret)

    @routes.get("/webhooks", summary="Where events are delivered")
    async def list_webhooks(_: Caller = admin) -> list[WebhookView]:
        return [WebhookView(**_view(row)) for row in await webhooks.all()]

    @routes.delete("/webhooks/{webhook_id}", status_code=204, summary="Stop deliveries")
    async def remove(webhook_id: str, caller: Caller = admin) -> None:
        await webhooks.remove(webhook_id, by=caller.name)

    return routes
