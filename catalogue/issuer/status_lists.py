"""Publishes signed status lists. Each is signed again when a bit changed or a tenth of its life is over."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from catalogue.issuer.credential_signer import CredentialSigner
from catalogue.store import CatalogueStore, CatalogueTransaction
from connector.errors import Absent
from connector.infra.concurrency.recent_keys import put_recent

_FRESH_PART = 0.1
_KEPT_MAX = 64


@dataclass(frozen=True, slots=True)
class SignedStatusList:
    """A status list as served: its JWT, its ETag, when it was signed and of what revision it is."""

    jwt: str
    etag: str
    signed_at: float
    revision: int


class StatusListPublisher:
    """Signs lists of which a copy counts for `seconds`."""

    def __init__(self, store: CatalogueStore, signer: CredentialSigner, *, seconds: float) -> None:
        self._store, self._signer, self.seconds = store, signer, seconds
        self._signed: OrderedDict[tuple[str, int], SignedStatusList] = OrderedDict()

    async def current(self, kind: str, number: int) -> SignedStatusList:
        """The list, signed recently enough. Raises: Absent."""
        signed = await self._store.read(partial(self._current, kind=kind, number=number))
        put_recent(self._signed, (kind, number), signed, most=_KEPT_MAX)
        return signed

    def _current(self, tx: CatalogueTransaction, *, kind: str, number: int) -> SignedStatusList:
        if (row := tx.issuances.find_list(kind, number)) is None:
            raise Absent(f"there is no status list {kind[:20]}/{number}")
        kept = self._signed.get((kind, number))
        age = tx.now - kept.signed_at if kept else 0.0  # below 0: the clock was set back
        if kept is not None and kept.revision == row.revision and 0 <= age < self.seconds * _FRESH_PART:
            return kept
        places = tx.issuances.list_set(kind, number)
        jwt = self._signer.sign_list(kind, number, places, begins=tx.now, ends=tx.now + self.seconds)
        return SignedStatusList(jwt, f'"{hashlib.sha256(jwt.encode()).hexdigest()[:32]}"', tx.now, row.revision)
