"""Announces changes of offers to the catalogue of the data space, so that it crawls this connector at once.

The announcement is a hint in the background: the catalogue crawls each connector anyway, only later. Nothing waits for
it, no command fails with it, and errors only go to the log. It is repeated while the catalogue is down. A starting
process announces recent withdrawals, which would otherwise stay listed until three crawls have missed them. Datasets
that were never offered are not announced, because their names may be confidential.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection

from connector.errors import ConnectorError, PeerBusy, PeerUnreachable, Unavailable
from connector.events import DatasetRemoved, DatasetVersioned, Event, OfferPublished, OfferWithdrawn
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import HttpClient
from connector.store import Store, Transaction
from connector.telemetry import logger

_CHANGES = (OfferPublished, DatasetVersioned)
_ENDS = (OfferWithdrawn, DatasetRemoved)
_GATHER_SECONDS = 0.5  # changes within this time are announced together
_REST_SECONDS = 10.0  # between two announcements; doubled while the catalogue does not answer, up to
_REST_SECONDS_MAX = 300.0
_BEFORE_SECONDS = 3_600.0  # older withdrawals have been noticed by crawls
_MOST = 1000  # withdrawn datasets in one announcement
_log = logger("announcing")


class Announcer:
    """Announces what this process commits; one per process.

    `catalogue_url` and `operator` (its DID) are settings of the operator; without either, nothing is announced.
    """

    def __init__(self, store: Store, net: HttpClient, identity: Identity, *, catalogue_url: str, operator: str) -> None:
        self._store, self._net, self._identity = store, net, identity
        self._url = f"{catalogue_url.rstrip('/')}/api/v1/crawl?wait=0"
        self._operator = operator
        self._changed: set[str] = set()
        self._ended: set[str] = set()
        self._news = asyncio.Event()
        self._is_enabled = bool(catalogue_url and operator)
        if self._is_enabled:
            store.bus.subscribe(self._on_event, own=True)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, _CHANGES + _ENDS):
            (self._ended if isinstance(event, _ENDS) else self._changed).add(event.dataset)
            self._news.set()

    async def run(self) -> None:
        """Announce changes until cancelled."""
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
            except Exception as error:  # noqa: BLE001  # the next change is still announced
                reason = error.message if isinstance(error, ConnectorError) else repr(error)
                _log.warning("catalogue_not_told", reason=reason)
                again = isinstance(error, Unavailable | PeerBusy | PeerUnreachable)
            if again:
                self._later(changed, ended)
            await asyncio.sleep(rest)
            rest = min(2 * rest, _REST_SECONDS_MAX) if again else _REST_SECONDS

    async def _recall(self) -> None:
        """Queue withdrawals from before this process started, which the earlier process may not have announced."""
        if not self._is_enabled:
            return
        try:
            lately = await self._store.read(lambda tx: tx.datasets.list_withdrawn_since(tx.now - _BEFORE_SECONDS))
        except ConnectorError as error:
            _log.warning("catalogue_not_told", reason=error.message)
            return
        if lately:
            self._later((), lately)

    def _later(self, changed: Collection[str], ended: Collection[str]) -> None:
        self._changed |= {*changed}
        self._ended |= {*ended}
        self._news.set()

    async def _tell(self, changed: Collection[str], ended: Collection[str]) -> bool:
        """Announce changes, and return whether there were any.

        Raises: PeerBusy where the catalogue takes nothing now.
        """
        some = sorted(ended)[:_MOST]
        if rest := {*ended}.difference(some):  # looked up in a later announcement, so that each stays short
            self._later((), rest)
        offered, withdrawn = await self._store.read(
            lambda tx: (any(_is_in_force(tx, one) for one in (*some, *changed)), _list_withdrawn(tx, some))
        )
        if not (offered or withdrawn):
            return False
        body = json.dumps({"withdrawn": withdrawn}).encode()
        headers = {"authorization": await self._identity.mint(self._operator), "content-type": "application/json"}
        reply = await self._net.call("POST", self._url, headers=headers, body=body)
        if reply.status >= 500 or reply.status == 429:
            raise PeerBusy(f"the catalogue answered {reply.status}")
        if reply.status != 200:
            _log.warning("catalogue_not_told", reason=f"the catalogue answered {reply.status}")
        return True


def _is_in_force(tx: Transaction, dataset: str) -> bool:
    """Return whether the dataset has an offer in force."""
    return bool(tx.datasets.list_offers(dataset_id=dataset, withdrawn=False, limit=1))


def _list_withdrawn(tx: Transaction, datasets: Collection[str]) -> list[str]:
    """Return the datasets that had an offer and have none now. Offers of removed datasets are kept."""
    once = (one for one in datasets if tx.datasets.list_offers(dataset_id=one, limit=1))
    return [one for one in once if not _is_in_force(tx, one)]
