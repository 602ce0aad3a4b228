"""Grants: whether an agreement still lets this party read this dataset now, and how much is left.

The agreement is immutable and the contract derived; what changes stands here: revoked, uses, rows, bytes, leases of
running reads. `examine` and `begin` answer for one read, in this order; the numbers stand beside the code, here, in
`deciding` and in `counting`:
1. the agreement exists, is final, has not ended, and is this consumer's; the transfer is started, the ticket its own;
2. the agreement compiles to contracts, with nothing undecided, over columns of the kinds that they had when it was
   signed; those are looked at, in order, that cover the asked action and purpose at this time. Each is of one
   permission, and the read is under the first that passes 3 to 5;
3. fewer reads are running than it allows;
4. the party's facts, gathered anew, make that very permission active: another one that is gives no right to this
   one's columns and rows;
5. it has uses of today, rows and bytes left;
6. `begin`, once the gate has let the question through: one use is counted, a first chunk of the row and byte quota is
   reserved, in conditional updates, and a place taken where fewer reads are allowed at once, over every process.
Revocation, and the end of a transfer, reaches running reads through the bus at once, and through a poll where another
process revoked, or the read was just being admitted.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from connector.datasets import stored_policies
from connector.datasets.registry import published_schema
from connector.errors import Busy, HanseError, Limited, NotFound, Refused
from connector.events import AgreementRevoked, Event, TransferAdvanced
from connector.store import UNKNOWN, Store, Transaction
from connector.store.queries.agreements import AgreementSnapshot, TransferState, count_today
from connector.store.tables import Agreement, DatasetVersion, RegisteredDataset, Transfer
from connector.telemetry import logger
from connector.usage.contract_choice import (
    against,
    check_still,
    chosen,
    covering,
    decided,
    not_permitted,
    passed_on,
    permitted_until,
    refusal_of,
)
from connector.usage.duty_ledger import fulfilled
from connector.usage.fact_collector import DECLARED, FactsOf, counted, requested
from connector.usage.held_agreement import NOT_STARTED, Grant, Held, Over, Own, Wanted
from connector.usage.quotas import DAY, admit, keep_places, reserve
from policies.contracts import column_binding
from policies.contracts.batch_gate import Lease
from policies.contracts.contract import DataContract, TableSchema
from policies.evaluation.evaluate import Facts

_T = TypeVar("_T")
_log = logger("usage")
_POLL_SECONDS = 0.5
_RECHECK_SECONDS = 5.0  # how often the party's facts are asked again, and its place kept, while a read runs
_MOMENT_SECONDS = 0.05
_BLIND_SECONDS = 5.0  # how long reads go on where the database cannot be asked about them
_BLIND = "the connector cannot ask its database whether the agreement still holds; ask again"
_UNTOLD = "the time of the read has ended, and whether its agreement still holds cannot be said now; ask again"
_DISPLACED = "the connector did not answer for a minute, and the read's place went to another; ask again"
_CACHED_MAX = 512
# In `suspended_by`: what its owner ordered while our start was on its way, which is told once that is acknowledged.
SUSPENDING, COMPLETING = "suspending", "completing"
HELD = frozenset({SUSPENDING, COMPLETING})
PUSH_FAILED = "push_failed"  # in `code`: its owner has given up sending


class Grants:
    """The grants of one provider. `facts_of` gathers what is known of a party now."""

    def __init__(self, store: Store, *, facts_of: FactsOf) -> None:
        self._store = store
        self._facts_of = facts_of
        self._live: dict[str, list[Grant]] = {}
        self._cached: OrderedDict[tuple[str, str], tuple[str, Held]] = OrderedDict()  # with where the files were
        self._poll: asyncio.Task[None] | None = None
        store.bus.subscribe(self._heard)

    async def hold(self, agreement_id: str, *, consumer: str) -> Held:
        """The agreement and its contracts; Refused or NotFound where it does not hold (step 1 without the transfer)."""
        return self._compiled((await self._store.read(lambda tx: self._found(tx, agreement_id, consumer)))[0])

    async def left_out(self, held: Held) -> Mapping[str, Any]:
        """The share that the groups of an agreement leave out, by permission, as its owner has published it with the
        offer and for the version that is read now; else nothing."""
        offers = await self._store.read(lambda tx: tx.datasets.list_offers_in_force([held.dataset.id]))
        said = (one.left_out for one in offers if one.digest == held.agreement.digest and one.left_out)
        return next((one["shares"] for one in said if one["version"] == held.version.digest), {})

    def held(self, tx: Transaction, agreement_id: str, *, consumer: str) -> Held:
        """As `hold`, in a transaction that reads already."""
        return self._compiled(self._found(tx, agreement_id, consumer)[0])

    async def check_started(self, agreement_id: str, *, transfer: str, generation: int) -> None:
        """Refused unless the transfer runs and this is the generation of its tickets."""
        row = await self._store.read(lambda tx: tx.transfers.peek(transfer))
        _check_transfer(row, agreement_id, generation)

    async def covers(
        self,
        agreement_id: str,
        *,
        consumer: str,
        action: str,
        purpose: str,
        application: str = "",
        transfer: tuple[str, int] | None = None,
    ) -> tuple[Held, DataContract]:
        """The contract that a read of this action and purpose would be under now; none is opened. Refused by its rule.

        `transfer`: id and generation of the transfer that must still be started. Reads that run are not counted.
        """
        now = time.time()

        found, own = await self._store.read(lambda tx: self._look(tx, agreement_id, consumer, transfer, now))
        held = self._compiled(found)
        candidates = covering(held.contracts, action=action, purpose=purpose, now=now)
        facts = requested((await self._facts_of(consumer)).adding(own.facts), purpose=purpose, application=application)
        return held, chosen(held, candidates, facts, own, action=action, running=0, now=now)[0]

    async def examine(self, *wanted: Wanted) -> list[Grant]:
        """A place for a read under these agreements, all or none, of which nothing is counted yet: Refused, Limited or
        NotFound with the first reason. Whoever has them calls `forget`, whatever happens, after `begin` also `end`."""
        now = time.time()

        def work(tx: Transaction) -> list[tuple[_Found, Own]]:
            found = []
            for one in wanted:
                with under(one.agreement_id):
                    transfer = one.transfer_id, one.generation
                    found.append(self._look(tx, one.agreement_id, one.consumer, transfer, now))
            return found

        grants: list[Grant] = []
        try:
            for one, (found, own) in zip(wanted, await self._store.read(work), strict=True):  # 1
                with under(one.agreement_id):
                    grants.append(await self._examined(one, self._compiled(found), own, now))
        except BaseException:
            self.forget(grants)
            raise
        self._watch()
        return grants

    async def begin(self, grants: Sequence[Grant], start: Callable[[Transaction], _T], *, read_id: str) -> _T:
        """A use of each of these grants, their places, the first of their quotas and what `start` records: all in one
        commit, or none. Refused or Limited.

        After the gate: a question that it refuses takes no use. Before the read: one that nobody counted never runs.
        """
        # Always in the same order: two reads of the same agreements would wait for each other otherwise.
        ordered, now = sorted(grants, key=lambda grant: grant.agreement_id), time.time()

        reserved: list[tuple[int, int]] = []

        def work(tx: Transaction) -> _T:
            reserved.clear()
            for grant in ordered:
                with under(grant.agreement_id):
                    reserved.append(admit(tx, grant, now, read_id))
            return start(tx)

        def take() -> None:
            for grant, quota in zip(ordered, reserved, strict=True):
                grant.take(*quota)
                grant.day = int(now // DAY)
                grant.place = "" if grant.contract.limits.concurrency is None else read_id

        try:
            started = await self._store.write(work)  # 6
        except Busy as error:
            if error.code == UNKNOWN:  # whoever ends the read gives it back where it was kept
                take()
            raise
        take()
        return started

    async def _examined(self, wanted: Wanted, held: Held, own: Own, now: float) -> Grant:
        """The grant, counted as running from here on, before anything of it is used."""
        candidates = covering(held.contracts, action=wanted.action, purpose=wanted.purpose, now=now)  # 2
        facts = (await self._facts_of(wanted.consumer)).adding(own.facts)
        # Nothing waits from here to the place among those that run: two reads at once would both find it free.
        running = self.running(wanted.agreement_id)
        facts = requested(facts, purpose=wanted.purpose, application=wanted.application)
        contract, known = chosen(held, candidates, facts, own, action=wanted.action, running=running, now=now)
        ends = min(wanted.longest, (contract.not_after or float("inf")) - now, known - now)
        begun = time.monotonic()
        lease = Lease(deadline=begun + min(ends, wanted.seconds))
        grant = Grant(
            held,
            contract,
            wanted.consumer,
            wanted.transfer_id,
            wanted.action,
            wanted.purpose,
            wanted.application,
            lease,
            asked_until=begun + wanted.seconds,
        )
        self._live.setdefault(wanted.agreement_id, []).append(grant)
        return grant

    async def usable(
        self, agreement_id: str, *, consumer: str, purpose: str = "", transfer: tuple[str, int] | None = None
    ) -> Held:
        """The agreement with those of its contracts whose own permission the party's facts make active. Refused where
        there is none.

        What a request declares may be missing, and counters are asked when something is read. `transfer`: as `covers`.
        """
        now = time.time()

        def work(tx: Transaction) -> tuple[_Found, Own]:
            found, _ = self._found(tx, agreement_id, consumer, transfer)
            return found, _own(tx, found.agreement, now)

        found, own = await self._store.read(work)
        held = self._compiled(found)
        facts = requested((await self._facts_of(consumer)).adding(own.facts), purpose=purpose)
        decisions = [(one, decided(held, one, facts, action=one.actions[0], now=now)) for one in held.contracts]
        later = DECLARED - set(facts)
        contracts = tuple(one for one, decision in decisions if decision.permitted or against(decision) <= later)
        if not contracts:
            raise refusal_of([not_permitted(one, decision) for one, decision in decisions])
        active = replace(held, contracts=contracts)
        return replace(active, passed_on=passed_on(active, facts, now=now))

    async def recheck(self, grant: Grant) -> float:
        """Ask again whether its own permission is in force and active: the seconds that this is sure to hold. Refused,
        as a read that begins now is, and this one stops with that, if not.

        Uses were counted when the read was admitted, so they are not asked again.
        """
        now = time.time()
        try:
            with under(grant.agreement_id):
                check_still(grant.held, grant.contract, action=grant.action, purpose=grant.purpose, now=now)
                own = await _in_time(self._store.read(lambda tx: _own(tx, grant.held.agreement, now)))
                facts = (await self._facts_of(grant.consumer)).adding(own.facts)
                facts = requested(facts, purpose=grant.purpose, application=grant.application)
                return permitted_until(grant.held, grant.contract, facts, action=grant.action, now=now) - now
        except Refused as refused:
            # Another one of the same words: this one is told, and recorded, where it was raised.
            grant.stop(Refused(refused.message, code=refused.code, **refused.facts))
            raise

    async def recheck_ended(self, grants: Sequence[Grant]) -> None:
        """Of these, those whose lease has ended: stop with its refusal what a read that begins now would be refused,
        and as busy that of which nobody can say so in time: until then its worker is held. What is left could go on
        with a renewed ticket."""
        await asyncio.sleep(_MOMENT_SECONDS)  # what ends at this very moment has ended by any clock then
        over = [grant for grant in grants if grant.lease.clock() >= grant.lease.deadline]
        await asyncio.gather(*map(self._recheck_ended, over))

    async def _recheck_ended(self, grant: Grant) -> None:
        try:
            await _in_time(self.recheck(grant))
        except (Refused, Limited):  # stopped with its reason; uses that are spent end no read that has taken one
            return
        except Exception as error:  # noqa: BLE001  whatever database and facts say: it ends all the same
            _log.warning("an ended read's agreement not looked at", error=type(error).__name__)
            grant.stop(Busy(_UNTOLD))

    async def refill(self, grant: Grant, *, rows: int, nbytes: int) -> bool:
        """Reserve another chunk, at least `rows` and `nbytes` for the batch that waits. Whether there was room."""
        filling = asyncio.ensure_future(self._refill(grant, rows=rows, nbytes=nbytes))
        try:
            return await asyncio.shield(filling)
        except asyncio.CancelledError:
            await asyncio.wait([filling])  # the reader has left; what is committed by now goes back with the rest
            raise

    async def _refill(self, grant: Grant, *, rows: int, nbytes: int) -> bool:
        quota = await self._store.write(lambda tx: reserve(tx, grant, rows=rows, nbytes=nbytes))
        if quota is not None:
            grant.take(*quota)
        return quota is not None

    def end(self, tx: Transaction, grants: Sequence[Grant], *, least: int = 0, unused: bool = False) -> None:
        """Settle a read that has begun: what was reserved and did not leave goes back, and so does its place. `least`:
        as how many rows it counts at least, whatever its end was: each end tells something. `unused`: this one told
        nothing, and its use goes back, too."""
        for grant in sorted(grants, key=lambda one: one.agreement_id):  # as `begin` does
            if unused:
                tx.agreements.uncount_use(grant.agreement_id, day=grant.day)
            unspent = max(0, grant.reserved_rows - (0 if unused else max(least, grant.packed)))
            rows = min(grant.lease.rows, unspent) if grant.reserved_rows else 0
            nbytes = grant.lease.bytes if grant.reserved_bytes else 0
            if rows or nbytes:
                tx.agreements.release(grant.agreement_id, rows=rows, nbytes=nbytes)
            if grant.place:
                tx.reads.free_places(grant.place)

    def forget(self, grants: Sequence[Grant]) -> None:
        """These run no more. Whoever has examined calls it, whatever happens."""
        for grant in grants:
            left = [other for other in self._live.get(grant.agreement_id, ()) if other is not grant]
            if left:
                self._live[grant.agreement_id] = left
            else:
                self._live.pop(grant.agreement_id, None)

    def stop(self, *, agreement_id: str, reason: str) -> None:
        """Stop running reads of an agreement: its owner has revoked it."""
        for grant in self._all():
            if grant.agreement_id == agreement_id:
                grant.revoke(reason)

    def stop_under(self, transfer_id: str, how: Over) -> None:
        """Stop running reads of a transfer, which runs no more."""
        for grant in self._all():
            if grant.transfer_id == transfer_id:
                grant.over(how)

    def stop_all(self, reason: str, *, code: str) -> None:
        """Stop every read, also those that give nothing yet, for a reason of our own that passes."""
        for grant in self._all():
            grant.stop(Busy(reason, code=code))

    def running(self, agreement_id: str) -> int:
        return len(self._live.get(agreement_id, ()))

    def _heard(self, event: Event) -> None:
        if isinstance(event, AgreementRevoked):
            self.stop(agreement_id=event.agreement, reason=event.reason or "the owner revoked the agreement")
        elif isinstance(event, TransferAdvanced) and event.detail.get("state") not in ("REQUESTED", "STARTED"):
            self.stop_under(event.process, over(event))

    def _watch(self) -> None:
        if self._poll is None or self._poll.done():
            self._poll = asyncio.get_running_loop().create_task(self._poll_revoked())

    async def _poll_revoked(self) -> None:
        """While reads run, ask the database what other processes have ended; blind for too long, end them."""
        heard = asked = time.monotonic()
        while self._live:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self._look_for_ends()
                heard = time.monotonic()
                if heard - asked >= _RECHECK_SECONDS:
                    await self._keep_places()
                    await self._recheck_all()
                    asked = time.monotonic()
            except Exception as error:  # noqa: BLE001  whatever the database says, the reads must not go on unwatched
                _log.warning("grants not looked at", error=type(error).__name__)
                if time.monotonic() - heard >= _BLIND_SECONDS:
                    self.stop_all(_BLIND, code=Busy.code)

    async def _look_for_ends(self) -> None:
        live, grants = tuple(self._live), self._all()
        transfers = {grant.transfer_id for grant in grants}
        ended, states = await _in_time(
            self._store.read(
                lambda tx: (tx.agreements.read_end_reasons(live), tx.agreements.read_transfer_states(transfers))
            )
        )
        for agreement_id, reason in ended.items():
            self.stop(agreement_id=agreement_id, reason=reason or "the owner revoked the agreement")
        for grant in grants:  # the event of its transfer passes by a read that is just being admitted
            state = states.get(grant.transfer_id)
            if state is None or not is_started(state):
                grant.over(_over(state))

    async def _keep_places(self) -> None:
        """A read whose place has gone to another, as this process was away for a minute, ends."""
        having = [grant for grant in self._all() if grant.place]
        if not having:
            return
        ids = {grant.place for grant in having}
        kept = await _in_time(self._store.write(lambda tx: keep_places(tx, ids)))
        for grant in having:
            if grant.place not in kept and grant in self._live.get(grant.agreement_id, ()):
                grant.stop(Busy(_DISPLACED))

    def _all(self) -> list[Grant]:
        return [grant for grants in self._live.values() for grant in grants]

    async def _recheck_all(self) -> None:
        """Membership may end while a read runs, and so may any fact about its party."""
        # At once: a source of facts may take seconds, and revocations and places wait behind all of them.
        await asyncio.gather(*map(self._recheck_one, self._all()))

    async def _recheck_one(self, grant: Grant) -> None:
        with suppress(HanseError):  # stopped with its reason; where the database does not answer, the lease ends it
            await self.recheck(grant)

    def _look(
        self, tx: Transaction, agreement_id: str, consumer: str, transfer: tuple[str, int] | None, now: float
    ) -> tuple[_Found, Own]:
        """Step 1, and what we know ourselves at this moment."""
        found, looked = self._found(tx, agreement_id, consumer, transfer)
        return found, _own(tx, found.agreement, now, looked)

    def _found(
        self, tx: Transaction, agreement_id: str, consumer: str, transfer: tuple[str, int] | None = None
    ) -> tuple[_Found, AgreementSnapshot]:
        name, generation = transfer or ("", 0)
        looked = _standing(tx, agreement_id, consumer, transfer_id=name)
        if transfer is not None:
            _check_transfer(looked.transfer, agreement_id, generation)
        source, held = self._cached.get((agreement_id, looked.version or ""), ("", None))
        if held is not None and source == looked.source:
            return held, looked
        return _uncompiled(tx, agreement_id, looked.source or ""), looked

    def _compiled(self, found: _Found) -> Held:
        if isinstance(found, Held):
            return found
        agreement, dataset, version, signed, source = found
        policy = stored_policies.agreed(agreement)
        contracts = stored_policies.contracts(agreement, policy, version)
        for contract in contracts:
            _check_types(contract, signed, dataset)
        held = Held(agreement, dataset, version, policy, contracts)
        self._cached[agreement.id, version.digest] = source, held
        while len(self._cached) > _CACHED_MAX:
            self._cached.popitem(last=False)
        return held


@contextmanager
def under(agreement_id: str) -> Iterator[None]:
    """What is refused in the block says which agreement was the reason: a read may be under several."""
    try:
        yield
    except (Refused, Limited, NotFound) as error:
        error.facts.setdefault("agreement", agreement_id)
        raise


async def _in_time(asked: Awaitable[_T]) -> _T:
    """What the database says; Busy where it says nothing: whoever waited for one that hangs would see no end. In half
    the time, so that a change that hangs makes nobody blind."""
    try:
        async with asyncio.timeout(_BLIND_SECONDS / 2):
            return await asked
    except TimeoutError:
        raise Busy("the database does not answer now; try again in a moment") from None


class _Uncompiled(NamedTuple):
    """What contracts are made of: the rows, and the schema that they were signed for; and `Looked.source`."""

    agreement: Agreement
    dataset: RegisteredDataset
    version: DatasetVersion
    signed: TableSchema
    source: str


_Found = Held | _Uncompiled


def _uncompiled(tx: Transaction, agreement_id: str, source: str) -> _Uncompiled:
    agreement = tx.agreements.of(agreement_id, role="provider")
    dataset = tx.datasets.of(agreement.dataset_id)
    version = tx.datasets.get_current(dataset)
    return _Uncompiled(agreement, dataset, version, _signed(tx, agreement, version), source)


def _signed(tx: Transaction, agreement: Agreement, version: DatasetVersion) -> TableSchema:
    """The schema that the rules were agreed for. Older agreements say only when, some in whole seconds."""
    if not agreement.version:
        return published_schema(tx.datasets.get_version_at(agreement.dataset_id, agreement.signed_at + 1) or version)
    signed = tx.datasets.get_version(agreement.dataset_id, agreement.version)
    if signed is None:
        raise Refused(
            "the version that this agreement was signed for is not known here any more, so nobody can say whether its "
            "rules still mean the same; negotiate a new agreement",
            code="schema_changed",
        )
    return published_schema(signed)


def _check_types(contract: DataContract, signed: TableSchema, dataset: RegisteredDataset) -> None:
    """Refused where a column that a rule looks at is of another kind than when it was agreed."""
    if changed := column_binding.find_retyped(contract, signed):
        raise Refused(
            f"{dataset.name!r} has changed since the agreement: {'; '.join(map(str, changed))}. Its rules were made "
            "for what it was; ask its owner to give it the types that it had, or negotiate a new agreement",
            code="schema_changed",
            rule=contract.permission,
        )


def _standing(tx: Transaction, agreement_id: str, consumer: str, *, transfer_id: str = "") -> AgreementSnapshot:
    """What is looked at of an agreement that holds; Refused or NotFound where it does not."""
    looked = tx.agreements.read_snapshot(agreement_id, transfer_id=transfer_id)
    if looked is None or looked.consumer != consumer or not looked.finalized:
        raise NotFound(f"no final agreement {agreement_id!r} with you; negotiate one first", code="no_agreement")
    if looked.ended_at is not None or looked.granted is None or looked.revoked_at is not None:
        why = looked.end_reason or looked.reason or "revoked by its owner"
        raise Refused(f"the agreement has ended: {why}; negotiate a new one", code="agreement_ended")
    return looked


def is_started(transfer: Transfer | TransferState) -> bool:
    """Whether tickets of this transfer are good: whoever holds one has our start, acknowledged already or not.

    What its owner has suspended or completed since is over, whatever its consumer says to that or to the start.
    """
    if transfer.suspended_by in HELD:
        return False
    return transfer.pending == "TransferStartMessage" or (transfer.state == "STARTED" and not transfer.suspended_by)


def seen(transfer: Transfer | TransferState | None) -> str:
    """The state of a transfer that is not started, as its consumer is told."""
    if transfer is None:
        return "unknown"
    return "stopped by its owner" if _is_stopped(transfer) else transfer.state.lower()


def _is_stopped(transfer: Transfer | TransferState) -> bool:
    """Whether a transfer that is not started is so before its consumer has been told."""
    return transfer.state == "STARTED" or transfer.suspended_by in HELD


def over(event: TransferAdvanced) -> Over:
    """How a transfer ended, as its event tells: a message of the other side's, an order of ours, or none of either."""
    ordered = event.detail.get("suspended_by", "provider")  # or what we suspend for the party's facts
    ours = ordered if event.outcome == "ok" else ""  # of ours that nobody took, nobody ordered the end
    by = "consumer" if event.actor == event.detail.get("counterparty") else ours
    return Over(event.detail.get("state", ""), by, event.reason)


def _over(transfer: TransferState | None) -> Over:
    """The same, as the transfer itself tells: of one that is completed or terminated, not by whom."""
    if transfer is None:
        return Over("unknown")
    if _is_stopped(transfer):
        return Over("stopped", "provider" if transfer.suspended_by in HELD else transfer.suspended_by, transfer.reason)
    by = transfer.suspended_by if transfer.state == "SUSPENDED" else ""
    return Over(transfer.state, by, transfer.reason)


def _check_transfer(transfer: Transfer | TransferState | None, agreement_id: str, generation: int) -> None:
    if transfer is None or transfer.agreement_id != agreement_id or not is_started(transfer):
        raise Refused(f"the transfer of this ticket is {seen(transfer)}, expected started", code=NOT_STARTED)
    if transfer.generation != generation:
        raise Refused("this ticket was replaced by a newer one; ask for it", code="ticket_replaced")


def _own(tx: Transaction, agreement: Agreement, now: float, looked: AgreementSnapshot | None = None) -> Own:
    """What we know ourselves: what was used, where it is looked at, and which duties before use are fulfilled."""
    today = 0 if looked is None else count_today(looked, day=int(now // DAY))
    uses, rows, nbytes = (0, 0, 0) if looked is None else (looked.queries, looked.rows, looked.bytes)
    facts = counted(Facts(), uses=uses, uses_today=today, running=0)
    return Own(facts.adding(fulfilled(tx, agreement, now=now)), uses, today, rows, nbytes)
