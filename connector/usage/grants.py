"""Admits reads under agreements: whether a party may read a dataset now, and how much is left.

An agreement never changes, and its contracts are derived from it. This module holds what changes: revocation, uses,
rows, bytes, and leases of running reads. `examine` and `begin` admit a read in these steps; the numbers are repeated
in the code, here and in `contract_choice` and `quotas`:
1. the agreement exists, is final, has not ended, and is this consumer's; the transfer is started, the ticket current;
2. the agreement compiles to contracts, with nothing undecided, over columns of the types that they had when it was
   signed. A contract belongs to a permission. Those that cover the action and purpose now are tried in order, and the
   read is under the first that passes 3 to 5;
3. fewer reads are running than it allows;
4. the party's facts, gathered again, make that permission active: another active permission gives no right to its
   columns and rows;
5. it has uses (of today), rows and bytes left;
6. `begin`, after the gate accepted the query: a use is counted, a first chunk of the row and byte quota is reserved
   with conditional updates, and a place is taken if the agreement limits reads at once, over all processes.
Revocation and the end of a transfer reach running reads through the event bus at once. A poll covers revocation by
another process, and reads that are being admitted at that moment.
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
from connector.errors import Absent, ConnectorError, Denied, Limited, Unavailable
from connector.events import AgreementRevoked, Event, TransferAdvanced
from connector.store import UNKNOWN, Store, Transaction
from connector.store.queries.agreements import AgreementSnapshot, TransferState, count_today
from connector.store.tables import Agreement, DatasetVersion, RegisteredDataset, Transfer
from connector.telemetry import logger
from connector.usage.contract_choice import (
    check_still,
    choose_contract,
    decide,
    find_covering,
    find_obstacles,
    find_passed_on,
    merge_refusals,
    not_permitted,
    permitted_until,
)
from connector.usage.duty_ledger import read_fulfilled
from connector.usage.fact_collector import DECLARED, FactsOf, with_counters, with_declared
from connector.usage.held_agreement import (
    NOT_STARTED,
    CompiledAgreement,
    EndReason,
    GrantRequest,
    ReadGrant,
    UsageCounters,
)
from connector.usage.quotas import DAY, admit, keep_places, reserve
from policies.contracts import column_binding
from policies.contracts.batch_gate import Lease
from policies.contracts.contract import DataContract, TableSchema
from policies.evaluation.evaluate import Facts

_T = TypeVar("_T")
_log = logger("usage")
_POLL_SECONDS = 0.5
_RECHECK_SECONDS = 5.0  # how often a running read's facts are checked again and its place is renewed
_MOMENT_SECONDS = 0.05
_BLIND_SECONDS = 5.0  # how long reads go on while the database does not answer
_BLIND = "the connector cannot check in its database whether the agreement still holds; try again"
_UNTOLD = "the time of the read has ended, and its agreement cannot be checked now; try again"
_DISPLACED = "the connector did not answer for a minute, and another read took this read's place; try again"
_CACHED_MAX = 512
# In `suspended_by`: what the owner ordered while our start message was being sent; it is sent after the reply.
SUSPENDING, COMPLETING = "suspending", "completing"
HELD = frozenset({SUSPENDING, COMPLETING})
PUSH_FAILED = "push_failed"  # in `code`: the owner has given up sending


class Grants:
    """The grants of a provider. `facts_of` gathers the facts about a party."""

    def __init__(self, store: Store, *, facts_of: FactsOf) -> None:
        self._store = store
        self._facts_of = facts_of
        self._live: dict[str, list[ReadGrant]] = {}
        self._cached: OrderedDict[tuple[str, str], tuple[str, CompiledAgreement]] = (
            OrderedDict()
        )  # with the location of the files
        self._poll: asyncio.Task[None] | None = None
        store.bus.subscribe(self._on_event)

    async def load(self, agreement_id: str, *, consumer: str) -> CompiledAgreement:
        """The agreement with its contracts (step 1 without the transfer). Raises: Denied, Absent."""
        return self._compile((await self._store.read(lambda tx: self._load_rows(tx, agreement_id, consumer)))[0])

    async def left_out(self, held: CompiledAgreement) -> Mapping[str, Any]:
        """The share of rows that small groups leave out, by permission, as the owner published it for the offer and the
        current version; otherwise empty."""
        offers = await self._store.read(lambda tx: tx.datasets.list_offers_in_force([held.dataset.id]))
        published = (offer.left_out for offer in offers if offer.digest == held.agreement.digest and offer.left_out)
        return next((entry["shares"] for entry in published if entry["version"] == held.version.digest), {})

    def load_in(self, tx: Transaction, agreement_id: str, *, consumer: str) -> CompiledAgreement:
        """As `load`, inside a transaction."""
        return self._compile(self._load_rows(tx, agreement_id, consumer)[0])

    async def check_started(self, agreement_id: str, *, transfer: str, generation: int) -> None:
        """Check that the transfer is started and `generation` is that of its tickets. Raises: Denied."""
        row = await self._store.read(lambda tx: tx.transfers.peek(transfer))
        _check_transfer(row, agreement_id, generation)

    async def find_contract(
        self,
        agreement_id: str,
        *,
        consumer: str,
        action: str,
        purpose: str,
        application: str = "",
        transfer: tuple[str, int] | None = None,
    ) -> tuple[CompiledAgreement, DataContract]:
        """The agreement and the contract for a read of this action and purpose now, without opening a read.

        `transfer`: id and generation of the transfer that must be started. Running reads are not counted. Raises:
        Denied, Limited, Absent.
        """
        now = time.time()

        found, own = await self._store.read(lambda tx: self._look(tx, agreement_id, consumer, transfer, now))
        held = self._compile(found)
        candidates = find_covering(held.contracts, action=action, purpose=purpose, now=now)
        facts = with_declared(
            (await self._facts_of(consumer)).adding(own.facts), purpose=purpose, application=application
        )
        return held, choose_contract(held, candidates, facts, own, action=action, running=0, now=now)[0]

    async def examine(self, *wanted: GrantRequest) -> list[ReadGrant]:
        """Grants for a read under these agreements, all or none (steps 1 to 5); no use is counted yet.

        The caller must call `forget` in any case, and after `begin` also `end`. Raises: Denied, Limited or Absent
        with the first reason.
        """
        now = time.time()

        def work(tx: Transaction) -> list[tuple[_LoadedRows, UsageCounters]]:
            found = []
            for one in wanted:
                with name_agreement(one.agreement_id):
                    transfer = one.transfer_id, one.generation
                    found.append(self._look(tx, one.agreement_id, one.consumer, transfer, now))
            return found

        grants: list[ReadGrant] = []
        try:
            for one, (found, own) in zip(wanted, await self._store.read(work), strict=True):  # 1
                with name_agreement(one.agreement_id):
                    grants.append(await self._examine(one, self._compile(found), own, now))
        except BaseException:
            self.forget(grants)
            raise
        self._watch()
        return grants

    async def begin(self, grants: Sequence[ReadGrant], start: Callable[[Transaction], _T], *, read_id: str) -> _T:
        """Step 6: count a use of each grant, take places, reserve quota and run `start`, in a single commit.

        Call it after the gate, as a refused query must not count as a use, and before the read, as no read may run
        uncounted. Raises: Denied, Limited, Unavailable.
        """
        # Always in the same order, so that two reads of the same agreements do not deadlock.
        ordered, now = sorted(grants, key=lambda grant: grant.agreement_id), time.time()

        reserved: list[tuple[int, int]] = []

        def work(tx: Transaction) -> _T:
            reserved.clear()
            for grant in ordered:
                with name_agreement(grant.agreement_id):
                    reserved.append(admit(tx, grant, now, read_id))
            return start(tx)

        def take() -> None:
            for grant, quota in zip(ordered, reserved, strict=True):
                grant.take(*quota)
                grant.day = int(now // DAY)
                grant.place = "" if grant.contract.limits.concurrency is None else read_id

        try:
            started = await self._store.write(work)  # 6
        except Unavailable as error:
            if error.code == UNKNOWN:  # it may be committed: the end of the read gives it back
                take()
            raise
        take()
        return started

    async def _examine(
        self, wanted: GrantRequest, held: CompiledAgreement, own: UsageCounters, now: float
    ) -> ReadGrant:
        """Choose the contract and make the grant, which counts as running from here on."""
        candidates = find_covering(held.contracts, action=wanted.action, purpose=wanted.purpose, now=now)  # 2
        facts = (await self._facts_of(wanted.consumer)).adding(own.facts)
        # No await from here to `_live`: two reads at once would both find the place free.
        running = self.running(wanted.agreement_id)
        facts = with_declared(facts, purpose=wanted.purpose, application=wanted.application)
        contract, known = choose_contract(held, candidates, facts, own, action=wanted.action, running=running, now=now)
        ends = min(wanted.longest, (contract.not_after or float("inf")) - now, known - now)
        begun = time.monotonic()
        lease = Lease(deadline=begun + min(ends, wanted.seconds))
        grant = ReadGrant(
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

    async def load_usable(
        self, agreement_id: str, *, consumer: str, purpose: str = "", transfer: tuple[str, int] | None = None
    ) -> CompiledAgreement:
        """The agreement with only those contracts whose permission the party's facts make active.

        Facts that a request may still declare can be missing, and counters are not checked. `transfer`: as in
        `find_contract`. Raises: Denied if no contract is left.
        """
        now = time.time()

        def work(tx: Transaction) -> tuple[_LoadedRows, UsageCounters]:
            found, _ = self._load_rows(tx, agreement_id, consumer, transfer)
            return found, _read_counters(tx, found.agreement, now)

        found, own = await self._store.read(work)
        held = self._compile(found)
        facts = with_declared((await self._facts_of(consumer)).adding(own.facts), purpose=purpose)
        decisions = [(one, decide(held, one, facts, action=one.actions[0], now=now)) for one in held.contracts]
        later = DECLARED - set(facts)
        contracts = tuple(one for one, decision in decisions if decision.permitted or find_obstacles(decision) <= later)
        if not contracts:
            raise merge_refusals([not_permitted(one, decision) for one, decision in decisions])
        active = replace(held, contracts=contracts)
        return replace(active, passed_on=find_passed_on(active, facts, now=now))

    async def recheck(self, grant: ReadGrant) -> float:
        """Check again that a grant's permission is in force and active; return the seconds that this surely holds.

        Otherwise stop the read with the refusal that a new read would get. Uses were counted at admission and are not
        checked again. Raises: Denied.
        """
        now = time.time()
        try:
            with name_agreement(grant.agreement_id):
                check_still(grant.held, grant.contract, action=grant.action, purpose=grant.purpose, now=now)
                own = await _in_time(self._store.read(lambda tx: _read_counters(tx, grant.held.agreement, now)))
                facts = (await self._facts_of(grant.consumer)).adding(own.facts)
                facts = with_declared(facts, purpose=grant.purpose, application=grant.application)
                return permitted_until(grant.held, grant.contract, facts, action=grant.action, now=now) - now
        except Denied as refused:
            # A copy: the exception itself is reported and recorded where it is caught.
            grant.stop(Denied(refused.message, code=refused.code, **refused.facts))
            raise

    async def recheck_ended(self, grants: Sequence[ReadGrant]) -> None:
        """Recheck the grants whose lease has ended, and stop those that a new read would not get.

        A grant that cannot be checked in time is stopped as busy, as its read occupies a worker. The remaining ones may
        go on with a renewed ticket.
        """
        await asyncio.sleep(_MOMENT_SECONDS)  # clocks differ: a lease that ends just now has ended after this
        over = [grant for grant in grants if grant.lease.clock() >= grant.lease.deadline]
        await asyncio.gather(*map(self._recheck_ended, over))

    async def _recheck_ended(self, grant: ReadGrant) -> None:
        try:
            await _in_time(self.recheck(grant))
        except (Denied, Limited):  # `recheck` has stopped it; spent uses do not end a read that has taken its use
            return
        except Exception as error:  # noqa: BLE001  # it must end whatever fails
            _log.warning("the agreement of an ended read could not be checked", error=type(error).__name__)
            grant.stop(Unavailable(_UNTOLD))

    async def refill(self, grant: ReadGrant, *, rows: int, nbytes: int) -> bool:
        """Reserve another chunk of quota, at least `rows` and `nbytes` for the waiting batch; False if it is spent."""
        filling = asyncio.ensure_future(self._refill(grant, rows=rows, nbytes=nbytes))
        try:
            return await asyncio.shield(filling)
        except asyncio.CancelledError:
            await asyncio.wait([filling])  # the reader left: what is committed now is given back at the end
            raise

    async def _refill(self, grant: ReadGrant, *, rows: int, nbytes: int) -> bool:
        quota = await self._store.write(lambda tx: reserve(tx, grant, rows=rows, nbytes=nbytes))
        if quota is not None:
            grant.take(*quota)
        return quota is not None

    def end(self, tx: Transaction, grants: Sequence[ReadGrant], *, least: int = 0, unused: bool = False) -> None:
        """Settle a read that has begun: give back its place and the quota that was reserved and not sent.

        `least`: rows that it counts at least, as any end reveals something. `unused`: it revealed nothing, and its use
        is given back as well.
        """
        for grant in sorted(grants, key=lambda grant: grant.agreement_id):  # as in `begin`
            if unused:
                tx.agreements.uncount_use(grant.agreement_id, day=grant.day)
            unspent = max(0, grant.reserved_rows - (0 if unused else max(least, grant.packed)))
            rows = min(grant.lease.rows, unspent) if grant.reserved_rows else 0
            nbytes = grant.lease.bytes if grant.reserved_bytes else 0
            if rows or nbytes:
                tx.agreements.release(grant.agreement_id, rows=rows, nbytes=nbytes)
            if grant.place:
                tx.reads.free_places(grant.place)

    def forget(self, grants: Sequence[ReadGrant]) -> None:
        """Remove grants from the running ones. Must follow each `examine`."""
        for grant in grants:
            left = [other for other in self._live.get(grant.agreement_id, ()) if other is not grant]
            if left:
                self._live[grant.agreement_id] = left
            else:
                self._live.pop(grant.agreement_id, None)

    def stop(self, *, agreement_id: str, reason: str) -> None:
        """Stop the running reads of an agreement that its owner has revoked."""
        for grant in self._all():
            if grant.agreement_id == agreement_id:
                grant.revoke(reason)

    def stop_under(self, transfer_id: str, how: EndReason) -> None:
        """Stop the running reads of a transfer that has ended."""
        for grant in self._all():
            if grant.transfer_id == transfer_id:
                grant.over(how)

    def stop_all(self, reason: str, *, code: str) -> None:
        """Stop all reads as busy, for a temporary reason of our own."""
        for grant in self._all():
            grant.stop(Unavailable(reason, code=code))

    def running(self, agreement_id: str) -> int:
        """The number of running reads under an agreement in this process."""
        return len(self._live.get(agreement_id, ()))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, AgreementRevoked):
            self.stop(agreement_id=event.agreement, reason=event.reason or "the owner revoked the agreement")
        elif isinstance(event, TransferAdvanced) and event.detail.get("state") not in ("REQUESTED", "STARTED"):
            self.stop_under(event.process, event_to_end_reason(event))

    def _watch(self) -> None:
        if self._poll is None or self._poll.done():
            self._poll = asyncio.get_running_loop().create_task(self._poll_revoked())

    async def _poll_revoked(self) -> None:
        """While reads run, poll the database for ends by other processes; stop all reads if it does not answer."""
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
            except Exception as error:  # noqa: BLE001  # reads must not go on unchecked
                _log.warning("running grants could not be checked", error=type(error).__name__)
                if time.monotonic() - heard >= _BLIND_SECONDS:
                    self.stop_all(_BLIND, code=Unavailable.code)

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
        for grant in grants:  # a read that was being admitted missed the event of its transfer
            state = states.get(grant.transfer_id)
            if state is None or not is_started(state):
                grant.over(_transfer_to_end_reason(state))

    async def _keep_places(self) -> None:
        """Renew places; stop reads whose place was lost because this process hung for a minute."""
        having = [grant for grant in self._all() if grant.place]
        if not having:
            return
        ids = {grant.place for grant in having}
        kept = await _in_time(self._store.write(lambda tx: keep_places(tx, ids)))
        for grant in having:
            if grant.place not in kept and grant in self._live.get(grant.agreement_id, ()):
                grant.stop(Unavailable(_DISPLACED))

    def _all(self) -> list[ReadGrant]:
        return [grant for grants in self._live.values() for grant in grants]

    async def _recheck_all(self) -> None:
        """Recheck all running reads, as membership and other facts may end."""
        # In parallel: a fact source may take seconds, and revocations and places wait for this.
        await asyncio.gather(*map(self._recheck_one, self._all()))

    async def _recheck_one(self, grant: ReadGrant) -> None:
        with suppress(ConnectorError):  # `recheck` has stopped it; if the database is down, the lease ends it
            await self.recheck(grant)

    def _look(
        self, tx: Transaction, agreement_id: str, consumer: str, transfer: tuple[str, int] | None, now: float
    ) -> tuple[_LoadedRows, UsageCounters]:
        """Step 1, with our own counters."""
        found, looked = self._load_rows(tx, agreement_id, consumer, transfer)
        return found, _read_counters(tx, found.agreement, now, looked)

    def _load_rows(
        self, tx: Transaction, agreement_id: str, consumer: str, transfer: tuple[str, int] | None = None
    ) -> tuple[_LoadedRows, AgreementSnapshot]:
        name, generation = transfer or ("", 0)
        looked = _check_agreement(tx, agreement_id, consumer, transfer_id=name)
        if transfer is not None:
            _check_transfer(looked.transfer, agreement_id, generation)
        source, held = self._cached.get((agreement_id, looked.version or ""), ("", None))
        if held is not None and source == looked.source:
            return held, looked
        return _read_uncompiled(tx, agreement_id, looked.source or ""), looked

    def _compile(self, found: _LoadedRows) -> CompiledAgreement:
        if isinstance(found, CompiledAgreement):
            return found
        agreement, dataset, version, signed, source = found
        policy = stored_policies.read_agreement_policy(agreement)
        contracts = stored_policies.compile_agreement(agreement, policy, version)
        for contract in contracts:
            _check_types(contract, signed, dataset)
        held = CompiledAgreement(agreement, dataset, version, policy, contracts)
        self._cached[agreement.id, version.digest] = source, held
        while len(self._cached) > _CACHED_MAX:
            self._cached.popitem(last=False)
        return held


@contextmanager
def name_agreement(agreement_id: str) -> Iterator[None]:
    """Add the agreement's id to refusals raised in the block, as a read may be under several."""
    try:
        yield
    except (Denied, Limited, Absent) as error:
        error.facts.setdefault("agreement", agreement_id)
        raise


async def _in_time(asked: Awaitable[_T]) -> _T:
    """Await a database call with a time limit of half of `_BLIND_SECONDS`. Raises: Unavailable after it.

    A write that hangs then leaves time for a read before all reads are stopped.
    """
    try:
        async with asyncio.timeout(_BLIND_SECONDS / 2):
            return await asked
    except TimeoutError:
        raise Unavailable("timed out waiting for the database; try again in a moment") from None


class _Uncompiled(NamedTuple):
    """The rows that contracts are compiled from, the schema at signing, and `Looked.source`."""

    agreement: Agreement
    dataset: RegisteredDataset
    version: DatasetVersion
    signed: TableSchema
    source: str


_LoadedRows = CompiledAgreement | _Uncompiled


def _read_uncompiled(tx: Transaction, agreement_id: str, source: str) -> _Uncompiled:
    agreement = tx.agreements.of(agreement_id, role="provider")
    dataset = tx.datasets.of(agreement.dataset_id)
    version = tx.datasets.get_current(dataset)
    return _Uncompiled(agreement, dataset, version, _read_signed_schema(tx, agreement, version), source)


def _read_signed_schema(tx: Transaction, agreement: Agreement, version: DatasetVersion) -> TableSchema:
    """The schema at signing. Older agreements only have the time of signing, some in whole seconds."""
    if not agreement.version:
        return published_schema(tx.datasets.get_version_at(agreement.dataset_id, agreement.signed_at + 1) or version)
    signed = tx.datasets.get_version(agreement.dataset_id, agreement.version)
    if signed is None:
        raise Denied(
            "the dataset version that this agreement was signed for is unknown here, so its rules cannot be checked "
            "against the current columns; negotiate a new agreement",
            code="schema_changed",
        )
    return published_schema(signed)


def _check_types(contract: DataContract, signed: TableSchema, dataset: RegisteredDataset) -> None:
    """Check that the columns of the rules still have their types from signing. Raises: Denied."""
    if changed := column_binding.find_retyped(contract, signed):
        raise Denied(
            f"{dataset.name!r} has changed since the agreement: {'; '.join(map(str, changed))}. Its rules need "
            "the former types; ask its owner to restore them, or negotiate a new agreement",
            code="schema_changed",
            rule=contract.permission,
        )


def _check_agreement(tx: Transaction, agreement_id: str, consumer: str, *, transfer_id: str = "") -> AgreementSnapshot:
    """Check that an agreement is final, in force and the consumer's own. Raises: Denied, Absent."""
    looked = tx.agreements.read_snapshot(agreement_id, transfer_id=transfer_id)
    if looked is None or looked.consumer != consumer or not looked.finalized:
        raise Absent(f"no final agreement {agreement_id!r} with you; negotiate one first", code="no_agreement")
    if looked.ended_at is not None or looked.granted is None or looked.revoked_at is not None:
        why = looked.end_reason or looked.reason or "revoked by its owner"
        raise Denied(f"the agreement has ended: {why}; negotiate a new one", code="agreement_ended")
    return looked


def is_started(transfer: Transfer | TransferState) -> bool:
    """Whether tickets of a transfer are valid: our start message was sent, acknowledged or not.

    A transfer that its owner has since suspended or completed is not started, whatever its consumer replies.
    """
    if transfer.suspended_by in HELD:
        return False
    return transfer.pending == "TransferStartMessage" or (transfer.state == "STARTED" and not transfer.suspended_by)


def describe_state(transfer: Transfer | TransferState | None) -> str:
    """The state of a transfer that is not started, for messages to its consumer."""
    if transfer is None:
        return "unknown"
    return "stopped by its owner" if _is_stopped(transfer) else transfer.state.lower()


def _is_stopped(transfer: Transfer | TransferState) -> bool:
    """Whether the owner stopped the transfer and its consumer does not know yet."""
    return transfer.state == "STARTED" or transfer.suspended_by in HELD


def event_to_end_reason(event: TransferAdvanced) -> EndReason:
    """How a transfer ended, from its event: by a message of the other side, by our order, or by itself."""
    ordered = event.detail.get("suspended_by", "provider")  # or our suspension because of the party's facts
    ours = ordered if event.outcome == "ok" else ""  # a message of ours that failed: the end was not ordered
    by = "consumer" if event.actor == event.detail.get("counterparty") else ours
    return EndReason(event.detail.get("state", ""), by, event.reason)


def _transfer_to_end_reason(transfer: TransferState | None) -> EndReason:
    """The same from the transfer itself, which does not record who completed or terminated it."""
    if transfer is None:
        return EndReason("unknown")
    if _is_stopped(transfer):
        return EndReason(
            "stopped", "provider" if transfer.suspended_by in HELD else transfer.suspended_by, transfer.reason
        )
    by = transfer.suspended_by if transfer.state == "SUSPENDED" else ""
    return EndReason(transfer.state, by, transfer.reason)


def _check_transfer(transfer: Transfer | TransferState | None, agreement_id: str, generation: int) -> None:
    if transfer is None or transfer.agreement_id != agreement_id or not is_started(transfer):
        raise Denied(f"the transfer of this ticket is {describe_state(transfer)}, expected started", code=NOT_STARTED)
    if transfer.generation != generation:
        raise Denied("this ticket was replaced by a newer one; request the current ticket", code="ticket_replaced")


def _read_counters(
    tx: Transaction, agreement: Agreement, now: float, looked: AgreementSnapshot | None = None
) -> UsageCounters:
    """Our counters of an agreement (0 without `looked`), and the duties before use that are fulfilled."""
    today = 0 if looked is None else count_today(looked, day=int(now // DAY))
    uses, rows, nbytes = (0, 0, 0) if looked is None else (looked.queries, looked.rows, looked.bytes)
    facts = with_counters(Facts(), uses=uses, uses_today=today, running=0)
    return UsageCounters(facts.adding(read_fulfilled(tx, agreement, now=now)), uses, today, rows, nbytes)
