"""Delivers credentials to the credential services of members, in the background (Decentralized Claims, section 6.5).

One delivery at a time per holder, few at once in all and per host. Hosts take turns, and so do holders of a host: slow
ones with many requests hold up their own alone. Which are due is in the database; this only sends.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from functools import partial

from catalogue.issuer.issuing import CredentialParcel, Issuing
from catalogue.store import CatalogueStore
from connector.errors import ConnectorError, harmless
from connector.identity.did import DidResolver, host_of
from connector.identity.identity_service import Wallet
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net.http_client import HttpClient
from connector.telemetry import logger

_AT_ONCE, _OF_ONE_HOST, _LOOKED_AT = 8, 4, 1024
_SECONDS = 20.0  # for one delivery, all calls together
_TURNS_KEPT = 4096
_TICK_SECONDS, _HOUR = 1.0, 3600.0
_ANSWER_MAX = 64 * 2**10


class CredentialDelivery:
    """`run()` delivers what is due; `wake()` has it look now."""

    def __init__(
        self, store: CatalogueStore, issuing: Issuing, net: HttpClient, resolver: DidResolver, wallet: Wallet
    ) -> None:
        self._store, self._issuing = store, issuing
        self._net, self._resolver, self._wallet = net, resolver, wallet
        self._running: dict[str, asyncio.Task[None]] = {}  # by holder
        self._turns: OrderedDict[str, float] = OrderedDict()  # hosts and holders, and when each had its last turn
        self._awake = asyncio.Event()
        self._log = logger("issuer")

    def wake(self) -> None:
        """Look for due deliveries now: something was requested."""
        self._awake.set()

    async def run(self) -> None:
        """Deliver what is due, until cancelled."""
        renewed = -_HOUR
        while True:
            self._awake.clear()
            try:
                if time.monotonic() - renewed > _HOUR:
                    await self._store.write(self._issuing.renew)
                    renewed = time.monotonic()
                await self.start_due()
            except Exception as error:  # noqa: BLE001  # else no member would get a credential any more
                self._log.error("delivery_round_failed", reason=repr(error))
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def start_due(self) -> list[asyncio.Task[None]]:
        """Start what is due, as far as there is room; the tasks."""
        running = set(self._running)
        due = await self._store.read(lambda tx: tx.issuances.list_due(tx.now, apart_from=running, limit=_LOOKED_AT))
        waiting = dict(due)
        while len(self._running) < _AT_ONCE and (holder := self._choose(waiting)):
            now = time.monotonic()
            put_recent(self._turns, host_of(holder), now, most=_TURNS_KEPT)
            put_recent(self._turns, holder, now, most=_TURNS_KEPT)
            task = self._running[holder] = asyncio.create_task(self._deliver(waiting.pop(holder)))
            task.add_done_callback(partial(self._on_done, holder))
        return list(self._running.values())

    def _choose(self, waiting: Iterable[str]) -> str:
        """Return the holder that takes the next free place: its host, then itself, had a turn the longest ago."""
        hosts = Counter(host_of(holder) for holder in self._running)
        free = [one for one in waiting if one not in self._running and hosts[host_of(one)] < _OF_ONE_HOST]
        return min(free, key=lambda one: (self._turns.get(host_of(one), 0.0), self._turns.get(one, 0.0)), default="")

    def _on_done(self, holder: str, done: asyncio.Task[None]) -> None:
        del self._running[holder]
        if done.cancelled():
            return
        if (error := done.exception()) is not None:  # it is due still: tried again at the next tick
            self._log.error("delivery_broke", holder=holder, reason=repr(error))
        else:
            self._awake.set()  # its place is free, and it may have another one

    async def close(self) -> None:
        """Stop every delivery; each is tried again at the next start."""
        for task in (tasks := list(self._running.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, issuance: str) -> None:
        delivery = await self._store.write(partial(self._issuing.prepare, issuance=issuance))
        if delivery is None:
            return
        problem = await self._send(delivery)
        await self._store.write(partial(self._issuing.settle, issuance=issuance, problem=problem))
        about = {"holder": delivery.holder, "request": issuance, "status": delivery.message["status"]}
        if problem:
            self._log.warning("not_delivered", **about, why=problem)
        else:
            self._log.info("delivered", **about, credentials=len(delivery.message["credentials"]))

    async def _send(self, delivery: CredentialParcel) -> str:
        """Send a message. Returns what went wrong; empty if the holder has taken it."""
        try:
            async with asyncio.timeout(_SECONDS):
                service = await self._resolver.service(delivery.holder, "CredentialService")
                token = await self._wallet.sign(delivery.holder, token=delivery.token)
                headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
                reply = await self._net.call(
                    "POST",
                    f"{service.rstrip('/')}/credentials",
                    headers=headers,
                    body=json.dumps(delivery.message).encode(),
                    max_bytes=_ANSWER_MAX,
                )
        except ConnectorError as error:
            return harmless(f"{error.message} ({error.private})" if error.private else error.message)
        except TimeoutError:
            return f"expected the credential service of {delivery.holder} to answer within {_SECONDS:g} s"
        if 200 <= reply.status < 300:
            return ""
        said = harmless(reply.body[:200].decode("utf-8", "replace"))
        return f"expected the credential service of {delivery.holder} to take it, got {reply.status}: {said}"
