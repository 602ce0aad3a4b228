"""Agreements after they are signed: reading them, and ending them. Rules never change; only their end does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from connector.datasets import stored_policies
from connector.dsp.negotiation import Negotiations
from connector.dsp.states import CONSUMER, PROVIDER
from connector.dsp.transfer import AGREEMENT_REVOKED, Transfers, revoked
from connector.errors import Busy, Conflict, NotFound, Refused
from connector.outbox.sender import Sender
from connector.store import UNKNOWN, Store, Transaction
from connector.store.tables import Agreement, DatasetVersion, GrantState, Outbox
from connector.telemetry import logger
from policies.contracts.contract import DataContract
from policies.model import Policy

_log = logger("agreements")
_UNHEARD_SECONDS = 0.5  # how long reads go on while the database keeps a revocation; its event ends them otherwise


class Stop(Protocol):
    """Ends what runs here under an agreement."""

    def __call__(self, *, agreement_id: str, reason: str) -> None: ...


def _nothing_runs(*, agreement_id: str, reason: str) -> None:
    """For who serves no reads."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """An agreement as far as it is understood here; `problem`: why nothing is served under it, and what to do."""

    policy: Policy | None = None
    contracts: tuple[DataContract, ...] = ()
    problem: str = ""


class Agreements:
    """Every agreement of this participant, as either side."""

    def __init__(
        self,
        *,
        store: Store,
        sender: Sender,
        negotiations: Negotiations,
        transfers: Transfers,
        stop: Stop = _nothing_runs,
    ) -> None:
        self._store = store
        self._sender = sender
        self._negotiations = negotiations
        self._transfers = transfers
        self._stop = stop

    async def page(
        self, *, role: str = "", dataset_id: str = "", counterparty: str = "", limit: int = 100, offset: int = 0
    ) -> Sequence[Agreement]:
        """The newest first."""
        asked = {"role": role, "dataset_id": dataset_id, "counterparty": counterparty}
        return await self._store.read(lambda tx: tx.agreements.page(**asked, limit=limit, offset=offset))

    async def get(self, agreement_id: str, *, role: str = "") -> tuple[Agreement, GrantState | None]:
        """An agreement, and at its provider what has been used under it."""

        def work(tx: Transaction) -> tuple[Agreement, GrantState | None]:
            row = agreement_of(tx, agreement_id, role)
            return row, tx.agreements.get_grant(row.id) if row.role == PROVIDER else None

        return await self._store.read(work)

    async def others(self, row: Agreement) -> Sequence[str]:
        """Ids of what else its consumer holds under the same offer of ours, in force or soon perhaps; each is
        revoked by itself."""
        if row.role != PROVIDER:
            return ()
        return await self._store.read(lambda tx: tx.agreements.list_others_under_offer(row))

    async def meaning(self, row: Agreement) -> Meaning:
        """What an agreement says, and as provider what that means for its dataset as it is now."""

        def work(tx: Transaction) -> DatasetVersion | None:
            dataset = tx.datasets.find(row.dataset_id) if row.role == PROVIDER else None
            return None if dataset is None else tx.datasets.get_current(dataset)

        return _meaning(row, await self._store.read(work))

    async def problems(self, rows: Sequence[Agreement]) -> Mapping[str, str]:
        """Why nothing is served under those of these that we are to keep, by their ids; agreements of one meaning on
        one dataset are looked at once."""
        kept = [row for row in rows if row.role == PROVIDER and row.ended_at is None]

        def work(tx: Transaction) -> dict[str, DatasetVersion | None]:
            found = {row.dataset_id: tx.datasets.find(row.dataset_id) for row in kept}
            return {
                key: None if dataset is None else tx.datasets.get_current(dataset) for key, dataset in found.items()
            }

        return await asyncio.to_thread(_problems, kept, await self._store.read(work)) if kept else {}

    async def revoke(self, agreement_id: str, *, reason: str, by: str, role: str = "") -> Agreement:
        """End an agreement now: it is void, and so is its negotiation where that is not final yet; its grant and its
        transfers end with it, and the other side is told why.

        NotFound for an unknown one, Conflict for one that has ended. Where the database does not say in time whether
        it is kept, what runs here ends all the same: a read that begins asks the database anew.
        """

        def work(tx: Transaction) -> tuple[Agreement, list[Outbox]]:
            row = agreement_of(tx, agreement_id, role)
            unfinished: list[Outbox] = []
            if not row.finalized:
                unfinished = self._negotiations.abandon(tx, row, code=AGREEMENT_REVOKED, reason=reason, actor=by)
            row = tx.agreements.lock(row)  # it may have become final, or ended, while we waited
            if row.ended_at is not None:
                raise Conflict(f"this agreement has ended already: {row.end_reason or 'no reason given'}")
            row.ended_at, row.end_reason = tx.now, reason
            tx.publish(revoked(row, actor=by))
            sent = [] if row.role == PROVIDER else self._terminated(tx, row, by)
            return row, [*unfinished, *sent]

        stop = partial(self._stop, agreement_id=agreement_id, reason=reason or "the owner revokes the agreement")
        waited = asyncio.get_running_loop().call_later(_UNHEARD_SECONDS, stop)
        try:
            known, _ = await self.get(agreement_id, role=role)
            if not known.finalized:  # what its other side has acknowledged counts first
                await self._sender.acknowledgements.record_now(known.negotiation_id)
            row, sent = await self._store.write(work)
        except Busy as error:
            if error.code == UNKNOWN:
                stop()
            raise
        finally:
            waited.cancel()
        self._sender.hand_over(sent)
        if row.role == PROVIDER:
            try:
                await self.follow(row.id, by=by)
            except Busy as error:  # it holds already, and this comes with the next look
                _log.warning("revocation_not_followed", agreement=row.id, reason=error.message)
        return row

    async def follow(self, agreement_id: str, *, by: str) -> None:
        """What follows from the end of an agreement of ours as provider: its grant is void and its transfers end. For
        whoever ended it, and for whoever finds that this is missing (`store.agreements.list_unrevoked`).

        In a transaction after that of the end, which locks nothing that its consumer can keep locked: whatever the
        consumer does meanwhile, other processes hear of the end at once.
        """

        def work(tx: Transaction) -> list[Outbox]:
            row = tx.agreements.of(agreement_id, role=PROVIDER)
            # Transfers before the grant, as whoever resumes one locks them.
            sent = self._terminated(tx, row, by)
            grant = tx.agreements.lock_grant(row.id, to_change=True)
            if grant is not None and grant.revoked_at is None:
                grant.revoked_at, grant.reason = row.ended_at, row.end_reason
                grant.generation += 1
            return [*sent, *self._terminated(tx, row, by)]  # and those that had begun while we waited for the grant

        self._sender.hand_over(await self._store.write(work))

    def _terminated(self, tx: Transaction, row: Agreement, by: str) -> list[Outbox]:
        reason = row.end_reason
        return self._transfers.terminate_under(
            tx, row.id, role=row.role, code=AGREEMENT_REVOKED, reason=reason, actor=by
        )


def _meaning(row: Agreement, version: DatasetVersion | None) -> Meaning:
    try:
        policy = stored_policies.agreed(row)
    except Refused as refused:
        return Meaning(problem=refused.message)
    try:
        return Meaning(policy, stored_policies.contracts(row, policy, version) if version is not None else ())
    except Refused as refused:
        return Meaning(policy, problem=refused.message)


def _problems(rows: Sequence[Agreement], versions: Mapping[str, DatasetVersion | None]) -> dict[str, str]:
    found: dict[str, str] = {}
    sound: set[tuple[str, str]] = set()
    for row in rows:
        if (row.digest, row.dataset_id) not in sound:
            if problem := _meaning(row, versions[row.dataset_id]).problem:
                found[row.id] = problem
            else:
                sound.add((row.digest, row.dataset_id))
    return found


def agreement_of(tx: Transaction, agreement_id: str, role: str) -> Agreement:
    """The agreement with this id as `role`; without one, as its provider first. NotFound where there is none."""
    for ours in (role,) if role else (PROVIDER, CONSUMER):
        if (row := tx.agreements.get(agreement_id, role=ours)) is not None:
            return row
    raise NotFound(f"no agreement {agreement_id!r}; list them with `hanse agreements`")
