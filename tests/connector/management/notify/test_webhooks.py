"""Webhooks: stored with the event, signed, in order, retried; nothing goes where the operator may not call."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from connector.dsp.protocol_client import ProtocolClient
from connector.errors import Absent, Invalid, MessageInvalid, PeerUnreachable
from connector.events import DecisionNeeded, NegotiationAdvanced
from connector.infra.net.http_client import AddressGuard, Reply
from connector.management.notify.webhooks import Webhooks, signature
from connector.outbox.sender import Sender
from connector.store import Store, Transaction
from tests.support.minted import minting

URL = "https://198.51.100.7/hook"


@dataclass
class Receiver:
    """The other server: answers with the statuses it is given, then with 204."""

    statuses: list[int] = field(default_factory=list)
    got: list[tuple[Mapping[str, str], bytes]] = field(default_factory=list)
    guard: AddressGuard = field(default_factory=lambda: AddressGuard(allow=("198.51.100.0/24",)))

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int | None = None,
    ) -> Reply:
        self.got.append((headers or {}, body or b""))
        status = self.statuses.pop(0) if self.statuses else 204
        if status == 0:
            raise PeerUnreachable("gone")
        return Reply(status, {}, b"")

    async def until(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(60):
            while len(self.got) < count:
                await asyncio.sleep(0.002)
        return [json.loads(body) for _, body in self.got]


@asynccontextmanager
async def hooks(store: Store, receiver: Receiver) -> AsyncIterator[Webhooks]:
    sender = Sender(store=store, retry_first=0.005, retry_cap=0.02)
    made = Webhooks(store=store, sender=sender, peer=ProtocolClient(wire=receiver, mint=minting("{}")), wire=receiver)
    await sender.start()
    try:
        yield made
    finally:
        await sender.stop()


def advanced(state: str) -> NegotiationAdvanced:
    return NegotiationAdvanced(actor="did:web:x", process="p", detail={"state": state})


async def test_an_event_is_delivered_signed_by_the_webhooks_secret(sqlite_store: Store) -> None:
    receiver = Receiver()
    async with hooks(sqlite_store, receiver) as webhooks:
        hook = await webhooks.add(url=URL, kinds=["NegotiationAdvanced"], by="admin")
        await sqlite_store.write(lambda tx: tx.publish(advanced("AGREED")))
        await sqlite_store.write(lambda tx: tx.publish(DecisionNeeded(actor="x")))
        (body,) = await receiver.until(1)
    assert (body["kind"], body["process"], body["detail"]) == ("NegotiationAdvanced", "p", {"state": "AGREED"})
    headers, raw = receiver.got[0]
    at, _, mac = headers["Hanse-Signature"].removeprefix("t=").partition(",v1=")
    wanted = hmac.new(hook.secret.encode(), f"{at}.".encode() + raw, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(mac, wanted)
    assert headers["Hanse-Delivery"] == body["id"]


async def test_a_process_whose_clock_is_ahead_keeps_no_delivery_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be sent goes by the database's clock."""
    clock = SimpleNamespace(time=lambda: time.time() + 300, monotonic=time.monotonic)
    for module in ("outbox.sender", "store.engine"):
        monkeypatch.setattr(f"connector.{module}.time", clock)
    receiver = Receiver()
    async with hooks(store, receiver) as webhooks:
        await webhooks.add(url=URL, kinds=["NegotiationAdvanced"], by="admin")
        await store.write(lambda tx: tx.publish(advanced("AGREED")))
        await receiver.until(1)


async def test_deliveries_are_tried_again_in_order_with_the_same_id(sqlite_store: Store) -> None:
    receiver = Receiver(statuses=[500, 0, 404, 200])
    async with hooks(sqlite_store, receiver) as webhooks:
        await webhooks.add(url=URL, kinds=["NegotiationAdvanced"], by="admin")
        for state in ("REQUESTED", "AGREED"):
            await sqlite_store.write(lambda tx, state=state: tx.publish(advanced(state)))  # type: ignore[misc]  # bound
        bodies = await receiver.until(5)
    assert [body["detail"]["state"] for body in bodies] == ["REQUESTED"] * 4 + ["AGREED"]
    assert len({body["id"] for body in bodies}) == 2


async def test_a_delivery_is_stored_with_its_event_or_not_at_all(sqlite_store: Store) -> None:
    receiver = Receiver(statuses=[0] * 1_000)
    async with hooks(sqlite_store, receiver) as webhooks:
        await webhooks.add(url=URL, kinds=["NegotiationAdvanced"], by="admin")

        def fails(tx: Transaction) -> None:
            tx.publish(advanced("AGREED"))
            raise Absent("no")

        with pytest.raises(Absent):
            await sqlite_store.write(fails)
        assert await sqlite_store.read(lambda tx: tx.outbox.count_waiting()) == 0
        await sqlite_store.write(lambda tx: tx.publish(advanced("AGREED")))
        assert await sqlite_store.read(lambda tx: tx.outbox.count_waiting()) == 1


async def test_a_removed_webhook_gets_nothing_more(sqlite_store: Store) -> None:
    receiver = Receiver(statuses=[500] * 1_000)
    async with hooks(sqlite_store, receiver) as webhooks:
        hook = await webhooks.add(url=URL, kinds=["NegotiationAdvanced"], by="admin")
        await sqlite_store.write(lambda tx: tx.publish(advanced("AGREED")))
        await receiver.until(1)
        await webhooks.remove(hook.id, by="admin")
        assert await webhooks.all() == []
        assert await sqlite_store.read(lambda tx: tx.outbox.count_waiting()) == 0
        with pytest.raises(Absent):
            await webhooks.remove(hook.id, by="admin")


async def test_410_says_that_nobody_is_there_any_more(sqlite_store: Store) -> None:
    receiver = Receiver(statuses=[410])
    async with hooks(sqlite_store, receiver) as webhooks:
        await webhooks.add(url=URL, kinds=["NegotiationAdvanced"], by="admin")
        for state in ("AGREED", "VERIFIED"):
            await sqlite_store.write(lambda tx, state=state: tx.publish(advanced(state)))  # type: ignore[misc]  # bound
        bodies = await receiver.until(2)
    assert [body["detail"]["state"] for body in bodies] == ["AGREED", "VERIFIED"]


@pytest.mark.parametrize(
    "url",
    ["http://198.51.100.7/x", "https://10.0.0.1/x", "nowhere", "https://169.254.169.254", "https://198.51.100.7/x\n",
     "https://198.51.100.7/\tx", "https://198.51.100.7/a b", "\u200bhttps://198.51.100.7/x"],
)  # fmt: skip
async def test_addresses_that_we_do_not_call_are_refused(sqlite_store: Store, url: str) -> None:
    async with hooks(sqlite_store, Receiver()) as webhooks:
        with pytest.raises(MessageInvalid):
            await webhooks.add(url=url, kinds=["*"], by="admin")


async def test_there_are_not_endlessly_many(sqlite_store: Store) -> None:
    async with hooks(sqlite_store, Receiver()) as webhooks:
        for i in range(100):
            await webhooks.add(url=f"{URL}/{i}", kinds=["DecisionNeeded"], by="admin")
        with pytest.raises(Invalid, match="at most 100"):
            await webhooks.add(url=URL, kinds=["DecisionNeeded"], by="admin")


def test_the_signature_is_the_documented_one() -> None:
    wanted = hmac.new(b"secret", b"1700000000.{}", "sha256").hexdigest()
    assert signature("secret", b"{}", at=1_700_000_000) == f"t=1700000000,v1={wanted}"
