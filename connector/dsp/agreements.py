"""Signed agreements: read them, and end them. The rules of an agreement never change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from connector.datasets import stored_policies
from connector.dsp.negotiation import NegotiationService
from connector.dsp.states import CONSUMER, PROVIDER
from connector.dsp.transfer import AGREEMENT_REVOKED, TransferService, agreement_event
from connector.errors import Absent, Denied, Unavailable, WrongState
from connector.outbox.sender import Sender
from connector.store import UNKNOWN, Store, Transaction
from connector.store.tables import Agreement, DatasetVersion, GrantState, Outbox
from connector.telemetry import logger
from policies.contracts.contract import DataContract
from policies.model import Policy

_log = logger("agreements")
_STOP_READS_AFTER_SECONDS = 0.5  # if the database is slow to store a revocation; otherwise its event stops the reads


class StopReads(Protocol):
    """Stops the reads that run in this process under an agreement."""

    def __call__(self, *, agreement_id: str, reason: str) -> None: ...


def _stop_nothing(*, agreement_id: str, reason: str) -> None:
    """For a process that serves no reads."""


@dataclass(frozen=True, slots=True)
class InterpretedAgreement:
    """An agreement's policy and its contracts. `problem`: why nothing is served under it, and what to do."""

    policy: Policy | None = None
    contracts: tuple[DataContract, ...] = ()
    problem: str = ""


class AgreementService:
    """Every agreement of this participant, as either side."""

    def __init__(
        self,
        *,
        store: Store,
        sender: Sender,
        negotiations: NegotiationService,
        transfers: TransferService,
        stop: StopReads = _stop_nothing,
    ) -> None:
        self._store = store
        self._sender = sender
        self._negotiations = negotiations
        self._transfers = transfers
        self._stop = stop

    async def list_page(
        self, *, role: str = "", dataset_id: str = "", counterparty: str = "", limit: int = 100, offset: int = 0
    ) -> Sequence[Agreement]:
        """A page of agreements, the newest first."""
        filters = {"role": role, "dataset_id": dataset_id, "counterparty": counterparty}
        return await self._store.read(lambda tx: tx.agreements.page(**filters, limit=limit, offset=offset))

    async def get(self, agreement_id: str, *, role: str = "") -> tuple[Agreement, GrantState | None]:
        """An agreement, and at its provider the grant, which counts its use. Absent for an unknown id."""

        def work(tx: Transaction) -> tuple[Agreement, GrantState | None]:
            row = agreement_of(tx, agreement_id, role)
            return row, tx.agreements.get_grant(row.id) if row.role == PROVIDER else None

        return await self._store.read(work)

    async def list_others(self, row: Agreement) -> Sequence[str]:
        """Ids of the consumer's other agreements under the same offer, in force or not final yet.

        Empty as consumer. Revoking `row` does not revoke these.
        """
        if row.role != PROVIDER:
            return ()
        return await self._store.read(lambda tx: tx.agreements.list_others_under_offer(row))

    async def interpret(self, row: Agreement) -> InterpretedAgreement:
        """An agreement's policy, and as provider its contracts for the dataset as it is now."""

        def work(tx: Transaction) -> DatasetVersion | None:
            dataset = tx.datasets.find(row.dataset_id) if row.role == PROVIDER else None
            return None if dataset is None else tx.datasets.get_current(dataset)

        return _interpret(row, await self._store.read(work))

    async def find_problems(self, rows: Sequence[Agreement]) -> Mapping[str, str]:
        """Agreement id to the reason why nothing is served under it, for agreements in force as their provider.

        Agreements with the same rules on the same dataset are compiled once.
        """
        provided = [row for row in rows if row.role == PROVIDER and row.ended_at is None]

        def work(tx: Transaction) -> dict[str, DatasetVersion | None]:
            datasets = {row.dataset_id: tx.datasets.find(row.dataset_id) for row in provided}
            return {
                key: None if dataset is None else tx.datasets.get_current(dataset) for key, dataset in datasets.items()
            }

        return await asyncio.to_thread(_find_problems, provided, await self._store.read(work)) if provided else {}

    async def revoke(self, agreement_id: str, *, reason: str, by: str, role: str = "") -> Agreement:
        """End an agreement now, with its grant, its transfers, and its negotiation where that is not final yet.

        The other side gets the reason. If the database does not confirm in time, reads in this process stop all the
        same: each new read asks the database again.

        Raises:
            Absent: there is no such agreement.
            WrongState: it has ended already.
            Unavailable: the database did not answer in time.
        """

        def work(tx: Transaction) -> tuple[Agreement, list[Outbox]]:
            row = agreement_of(tx, agreement_id, role)
            unfinished: list[Outbox] = []
            if not row.finalized:
                unfinished = self._negotiations.abandon(tx, row, code=AGREEMENT_REVOKED, reason=reason, actor=by)
            row = tx.agreements.lock(row)  # it may have become final, or ended, while we waited
            if row.ended_at is not None:
                raise WrongState(f"this agreement has ended already: {row.end_reason or 'no reason given'}")
            row.ended_at, row.end_reason = tx.now, reason
            tx.publish(agreement_event(row, actor=by))
            sent = [] if row.role == PROVIDER else self._end_transfers(tx, row, by)
            return row, [*unfinished, *sent]

        stop = partial(self._stop, agreement_id=agreement_id, reason=reason or "the owner revokes the agreement")
        timer = asyncio.get_running_loop().call_later(_STOP_READS_AFTER_SECONDS, stop)
        try:
            known, _ = await self.get(agreement_id, role=role)
            if not known.finalized:  # acknowledged messages count first
                await self._sender.wait_recorded(known.negotiation_id)
            row, sent = await self._store.write(work)
        except Unavailable as error:
            if error.code == UNKNOWN:
                stop()
            raise
        finally:
            timer.cancel()
        self._sender.hand_over(sent)
        if row.role == PROVIDER:
            try:
                await self.complete_end(row.id, by=by)
            except Unavailable as error:  # the agreement has ended already, and the next round of `Upkeep` repeats this
                _log.warning("revocation_not_followed", agreement=row.id, reason=error.message)
        return row

    async def complete_end(self, agreement_id: str, *, by: str) -> None:
        """As provider, make the grant of an ended agreement void and end its transfers.

        This is a transaction of its own, after the agreement's end. The end itself locks nothing that the consumer can
        keep locked, so other processes learn of the end at once. `Upkeep` calls this too, for ends
        without it (`unfollowed` of the agreement queries).
        """

        def work(tx: Transaction) -> list[Outbox]:
            row = tx.agreements.of(agreement_id, role=PROVIDER)
            # Lock transfers before the grant, in the same order as a resume.
            sent = self._end_transfers(tx, row, by)
            grant = tx.agreements.lock_grant(row.id, to_change=True)
            if grant is not None and grant.revoked_at is None:
                grant.revoked_at, grant.reason = row.ended_at, row.end_reason
                grant.generation += 1
            return [*sent, *self._end_transfers(tx, row, by)]  # and those that began while we waited for the grant

        self._sender.hand_over(await self._store.write(work))

    def _end_transfers(self, tx: Transaction, row: Agreement, by: str) -> list[Outbox]:
        reason = row.end_reason
        return self._transfers.terminate_under(
            tx, row.id, role=row.role, code=AGREEMENT_REVOKED, reason=reason, actor=by
        )


def _interpret(row: Agreement, version: DatasetVersion | None) -> InterpretedAgreement:
    try:
        policy = stored_policies.read_agreement_policy(row)
    except Denied as refused:
        return InterpretedAgreement(problem=refused.message)
    try:
        return InterpretedAgreement(
            policy, stored_policies.compile_agreement(row, policy, version) if version is not None else ()
        )
    except Denied as refused:
        return InterpretedAgreement(policy, problem=refused.message)


def _find_problems(rows: Sequence[Agreement], versions: Mapping[str, DatasetVersion | None]) -> dict[str, str]:
    problems: dict[str, str] = {}
    sound: set[tuple[str, str]] = set()
    for row in rows:
        if (row.digest, row.dataset_id) not in sound:
            if problem := _interpret(row, versions[row.dataset_id]).problem:
                problems[row.id] = problem
            else:
                sound.add((row.digest, row.dataset_id))
    return problems


def agreement_of(tx: Transaction, agreement_id: str, role: str) -> Agreement:
    """The agreement with this id in our `role`; without a role, as provider first. Absent for an unknown id."""
    for ours in (role,) if role else (PROVIDER, CONSUMER):
        if (row := tx.agreements.get(agreement_id, role=ours)) is not None:
            return row
    raise Absent(f"no agreement {agreement_id!r}; list them with `hanse agreements`")
