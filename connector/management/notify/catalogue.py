"""Tells the data space's catalogue that what we offer has changed, so that it visits us now, not at its next time.

A hint in the background: the catalogue visits every connector anyway, only later. So nothing waits for it, no command
fails with it, and what stands in its way is in the log alone. A catalogue that is down is told again, and a process
that starts tells what was taken back shortly before: it would be shown there until three visits have missed it. It
hears nothing of a dataset that was never offered: its name may tell what nobody is to know.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection

from connector.errors import Busy, HanseError, PeerBusy, PeerUnreachable
from connector.events import DatasetRemoved, DatasetVersioned, Event, OfferPublished, OfferWithdrawn
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import HttpClient
from connector.store import Store, Transaction
from connector.telemetry import logger

_CHANGES = (OfferPublished, DatasetVersioned)
_ENDS = (OfferWithdrawn, DatasetRemoved)
_GATHER_SECONDS = 0.5  # what changes together is told at once
_REST_SECONDS = 10.0  # between two words to the catalogue; doubling while it does not answer, to
_REST_SECONDS_MAX = 300.0
_BEFORE_SECONDS = 3_600.0  # by then visits have noticed what the process before this one did not tell
_MOST = 1000  # datasets that a catalogue lets a member take back in one word
_log = logger("announcing")


class Announcer:
    """One per process: it tells of what this process commits. `catalogue_url` and `operator` (its DID) are the
    operator's settings; without either nobody is told."""

    def __init__(self, store: Store, net: HttpClient, identity: Identity, *, catalogue_url: str, operator: str) -> None:
        self._store, self._net, self._identity = store, net, identity
        self._url = f"{catalogue_url.rstrip('/')}/api/v1/crawl?wait=0"
        self._operator = operator
        self._changed: set[str] = set()
        self._ended: set[str] = set()
        self._news = asyncio.Event()
        self._told_of = bool(catalogue_url and operator)
        if self._told_of:
            store.bus.subscribe(self._heard, own=True)

    def _heard(self, event: Event) -> None:
        if isinstance(event, _CHANGES + _ENDS):
            (self._ended if isinstance(event, _ENDS) else self._changed).add(event.dataset)
            self._news.set()

    async def run(self) -> None:
        """Tell of what changes, until cancelled."""
        rest = _REST_SECONDS
        await self._recall()
        while True:
            await self._news.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._news.clear()
            changed, self._changed = self._changed, set()
            ended, self._ended = self._ended, set()
            again = False
            try:
                if not await self._tell(changed, ended):
                    continue
            except Exception as error:  # noqa: BLE001  # the next change is told of all the same
                reason = error.message if isinstance(error, HanseError) else repr(error)
                _log.warning("catalogue_not_told", reason=reason)
                again = isinstance(error, Busy | PeerBusy | PeerUnreachable)
            if again:
                self._later(changed, ended)
            await asyncio.sleep(rest)
            rest = min(2 * rest, _REST_SECONDS_MAX) if again else _REST_SECONDS

    async def _recall(self) -> None:
        """What was withdrawn shortly before this process started: the one that did it may have told nobody."""
        if not self._told_of:
            return
        try:
            lately = await self._store.read(lambda tx: tx.datasets.list_withdrawn_since(tx.now - _BEFORE_SECONDS))
        except HanseError as error:
            _log.warning("catalogue_not_told", reason=error.message)
            return
        if lately:
            self._later((), lately)

    def _later(self, changed: Collection[str], ended: Collection[str]) -> None:
        self._changed |= {*changed}
        self._ended |= {*ended}
        self._news.set()

    async def _tell(self, changed: Collection[str], ended: Collection[str]) -> bool:
        """Whether there was something to tell. PeerBusy where the catalogue says that it takes nothing now."""
        some = sorted(ended)[:_MOST]
        if rest := {*ended}.difference(some):  # looked up when it is their turn, or each word would take as long as all
            self._later((), rest)
        offered, withdrawn = await self._store.read(
            lambda tx: (any(_is_in_force(tx, one) for one in (*some, *changed)), _withdrawn(tx, some))
        )
        if not (offered or withdrawn):
            return False
        body = json.dumps({"withdrawn": withdrawn}).encode()
        headers = {"authorization": self._identity.mint(self._operator), "content-type": "application/json"}
        reply = await self._net.call("POST", self._url, headers=headers, body=body)
        if reply.status >= 500 or reply.status == 429:
            raise PeerBusy(f"the catalogue answered {reply.status}")
        if reply.status != 200:
            _log.warning("catalogue_not_told", reason=f"the catalogue answered {reply.status}")
        return True


def _is_in_force(tx: Transaction, dataset: str) -> bool:
    """Whether an offer in force is for the dataset."""
    return bool(tx.datasets.list_offers(dataset_id=dataset, withdrawn=False, limit=1))


def _withdrawn(tx: Transaction, datasets: Collection[str]) -> list[str]:
    """Those that were offered once, and are not now. The offers of a removed dataset are kept."""
    once = (one for one in datasets if tx.datasets.list_offers(dataset_id=one, limit=1))
    return [one for one in once if not _is_in_force(tx, one)]
