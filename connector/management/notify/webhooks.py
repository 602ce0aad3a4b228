"""Webhooks: committed events, delivered to addresses of the operator's choice, signed and in order.

A delivery is stored in the same transaction as the event, and is sent through the same outbox as protocol messages.
Each request carries `Hanse-Signature: t=<seconds>,v1=<hex>`: HMAC-SHA256 over `<seconds>.<body>` with the webhook's
secret. A receiver checks the signature, refuses times that are minutes off, and recognises repeats by `Hanse-Delivery`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
import uuid
from collections.abc import Sequence

from connector.dsp.protocol_client import PeerTransport, ProtocolClient
from connector.errors import Absent, Invalid
from connector.events import Event, WebhookChanged
from connector.outbox.sender import DeliveryOutcome, DeliveryResult, Sender
from connector.store import Store, Transaction
from connector.store.tables import Outbox, Webhook

KIND = "webhook"
EVERY = "*"
_GONE = 410
_KNOWN_SECONDS = 2.0  # how long another process's change of webhooks may go unnoticed
_MOST = 100


class Webhooks:
    """The webhooks of one connector."""

    def __init__(self, *, store: Store, sender: Sender, peer: ProtocolClient, wire: PeerTransport) -> None:
        self._store = store
        self._sender = sender
        self._peer = peer
        self._wire = wire
        self._known: tuple[float, tuple[Webhook, ...]] = (float("-inf"), ())
        self._changes = 0  # counts changes by this process: a read from before a change is not kept
        sender.register(KIND, self)
        store.event_hooks.append(self._store_deliveries)
        store.bus.subscribe(lambda _: sender.wake() if self._known[1] else None, own=True)
        store.bus.subscribe(self._on_event)

    async def add(self, *, url: str, kinds: Sequence[str], by: str) -> Webhook:
        """Add a webhook and return it with its secret, which is shown only this once.

        Raises: Invalid for an address that the connector may not call.
        """
        await self._peer.check(url)
        row = Webhook(id=f"urn:uuid:{uuid.uuid4()}", url=url, secret=secrets.token_urlsafe(32), kinds=list(kinds))

        def work(tx: Transaction) -> Webhook:
            if len(tx.outbox.list_webhooks()) >= _MOST:
                raise Invalid(f"expected at most {_MOST} webhooks; remove one first")
            row.created_at = tx.now
            tx.outbox.add_webhook(row)
            tx.publish(WebhookChanged(actor=by, process=row.id, detail={"change": "added", "url": url}))
            return row

        made = await self._store.write(work)
        self._forget()
        return made

    async def all(self) -> list[Webhook]:
        return list(await self._store.read(lambda tx: tx.outbox.list_webhooks()))

    async def remove(self, webhook_id: str, *, by: str) -> None:
        """Remove a webhook and its pending deliveries."""

        def work(tx: Transaction) -> None:
            if (row := tx.outbox.get_webhook(webhook_id)) is None:
                raise Absent(f"no webhook {webhook_id!r}")
            tx.outbox.remove_webhook(row)
            tx.outbox.drop(_process(webhook_id))
            tx.publish(WebhookChanged(actor=by, process=webhook_id, detail={"change": "removed", "url": row.url}))

        await self._store.write(work)
        self._forget()

    def _on_event(self, event: Event) -> None:
        """Forget the known webhooks: another process on this database may have changed them."""
        if isinstance(event, WebhookChanged):
            self._forget()

    def _forget(self) -> None:
        self._changes += 1
        self._known = (float("-inf"), ())

    def _store_deliveries(self, tx: Transaction, event: Event) -> None:
        """Put a delivery into the outbox for each webhook that is subscribed to this event."""
        changes, (read, hooks) = self._changes, self._known
        if time.monotonic() - read > _KNOWN_SECONDS:
            hooks = tuple(tx.outbox.list_webhooks())
            if changes == self._changes:  # transactions run side by side on PostgreSQL
                self._known = (time.monotonic(), hooks)
        for hook in hooks:
            if EVERY in hook.kinds or event.kind in hook.kinds:
                tx.outbox.send(_delivery(hook, event, tx.now))

    async def carry(self, row: Outbox) -> DeliveryOutcome:
        """Deliver once. Any answer but 2xx is tried again; 410 ends the delivery, as the receiver is gone."""
        hook = await self._store.read(lambda tx: tx.outbox.get_webhook(row.process.removeprefix(f"{KIND}:")))
        if hook is None:
            return DeliveryOutcome(DeliveryResult.REFUSED, "the webhook was removed")
        body = json.dumps(row.message, separators=(",", ":"), ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "Hanse-Signature": signature(hook.secret, body, at=int(time.time())),
            "Hanse-Delivery": str(row.message["id"]),
        }
        reply = await self._wire.call("POST", hook.url, headers=headers, body=body, max_bytes=64 * 2**10)
        if 200 <= reply.status < 300:
            return DeliveryOutcome(DeliveryResult.DELIVERED)
        result = DeliveryResult.REFUSED if reply.status == _GONE else DeliveryResult.AGAIN
        return DeliveryOutcome(result, f"{hook.url} answered {reply.status}")

    def hold(self, tx: Transaction, row: Outbox) -> None:
        """Hold nothing: a delivery depends on no state."""

    def put_off(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: None) -> None:
        """Do nothing: no process waits for a delivery."""

    def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: None) -> list[Outbox]:
        """Return no further messages: nothing follows a delivery."""
        return []


def signature(secret: str, body: bytes, *, at: int) -> str:
    """Return the signature header of a delivery."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


def _process(webhook_id: str) -> str:
    return f"{KIND}:{webhook_id}"


def _delivery(hook: Webhook, event: Event, now: float) -> Outbox:
    message = {"id": f"urn:uuid:{uuid.uuid4()}", "time": now, **event.body()}
    return Outbox(  # due at once by any clock
        process=_process(hook.id), kind=KIND, address=hook.url, path="", message=message, due_at=0.0, created_at=now
    )
