"""Duties of agreements, and what happens to agreements as time passes.

`DutyLedger.report` stores evidence that a duty was fulfilled; a consumer's evidence goes to its provider too.
`Upkeep` looks at every agreement periodically. It publishes reminders of duties that are due or overdue. It ends an
agreement whose time has ended. It suspends transfers while the party's facts do not permit them. It also ends every
negotiation that has waited too long for its other side.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from connector.datasets import stored_policies
from connector.dsp import agreement_terms, messages
from connector.dsp.agreements import AgreementService, agreement_of
from connector.dsp.negotiation import NegotiationService
from connector.dsp.protocol_client import PeerTransport
from connector.dsp.states import CONSUMER, PROVIDER
from connector.dsp.transfer import FACTS, FACTS_ENDED, TransferService
from connector.errors import Absent, ConnectorError, Denied, PeerRefused, Unavailable, WrongState
from connector.store import Store, Transaction
from connector.store.tables import Agreement, Negotiation, Transfer
from connector.telemetry import logger
from connector.usage import duty_ledger
from connector.usage.duty_ledger import DutyStatus
from connector.usage.fact_collector import DECLARED, FactsOf, with_declared
from policies import duties as rules
from policies.errors import PolicyError
from policies.model import Policy
from policies.vocabulary import Phase, expand

Row = TypeVar("Row", Agreement, Negotiation)

_PROTOCOL = "/dsp/2025-1"
_PAGE = 500
_SECONDS = 30.0
_log = logger("upkeep")


@dataclass(frozen=True, slots=True)
class DutyReport:
    """A duty after its evidence was stored. `told`: the other side has the evidence; otherwise `why` says why not."""

    standing: DutyStatus
    told: bool
    why: str = ""


class DutyLedger:
    """The duties of every agreement of this participant, as provider and as consumer."""

    def __init__(self, store: Store, wire: PeerTransport, mint: Callable[[str], Awaitable[str]]) -> None:
        self._store, self._wire, self._mint = store, wire, mint

    async def of(self, agreement_id: str, *, role: str = "") -> list[DutyStatus]:
        """Every duty of one agreement in its present state. Absent for an unknown id."""

        def work(tx: Transaction) -> list[DutyStatus]:
            return duty_ledger.list_duties(tx, agreement_of(tx, agreement_id, role), now=tx.now)

        return await self._store.read(work)

    async def find_role(self, agreement_id: str, *, role: str = "") -> str:
        """Our role in the agreement with this id: `role` if given, else provider before consumer."""
        return (await self._store.read(lambda tx: agreement_of(tx, agreement_id, role))).role

    async def list_open(self, *, limit: int = 1_000) -> list[tuple[Agreement, DutyStatus]]:
        """Duties that are due or overdue, of the `limit` newest agreements."""

        def work(tx: Transaction) -> list[tuple[Agreement, DutyStatus]]:
            rows = (row for row in tx.agreements.page(limit=limit) if row.finalized)
            duties = ((row, duty) for row in rows for duty in _read_standings(tx, row))
            return [(row, duty) for row, duty in duties if duty.state in ("due", "violated")]

        return await self._store.read(work)

    async def report(self, agreement_id: str, path: str, *, evidence: str, by: str, role: str = "") -> DutyReport:
        """Store evidence that a duty was fulfilled. As consumer, also send it to the provider.

        Raises:
            Absent: there is no such agreement or duty.
            WrongState: as provider, the duty has evidence already or needs none now.
        """

        def work(tx: Transaction) -> tuple[Agreement, DutyStatus, str]:
            row = agreement_of(tx, agreement_id, role)
            try:
                done = duty_ledger.report(tx, row, path, given_by=row.role, actor=by, evidence=evidence)
            except WrongState:
                if row.role == PROVIDER:
                    raise
                done = next(duty for duty in duty_ledger.list_duties(tx, row, now=tx.now) if duty.path == path)
                if not done.evidence:
                    raise
            return row, done, _provider_endpoint(tx, row)

        row, done, endpoint = await self._store.write(work)
        if row.role == PROVIDER:
            return DutyReport(done, told=True)
        if not endpoint:
            return DutyReport(
                done, told=False, why="the provider's address for reports is not known; send the evidence to its people"
            )
        try:
            await self._send_report(row, endpoint, path, evidence)
        except ConnectorError as error:
            return DutyReport(done, told=False, why=error.message)
        return DutyReport(done, told=True)

    async def on_report(self, agreement_id: str, path: str, *, evidence: str, consumer: str) -> DutyStatus:
        """As provider, store a consumer's report. Absent unless the agreement is with this consumer."""

        def work(tx: Transaction) -> DutyStatus:
            row = tx.agreements.get(agreement_id, role=PROVIDER)
            if row is None or row.consumer != consumer:
                raise Absent(f"no agreement {agreement_id!r} with you")
            return duty_ledger.report(tx, row, path, given_by=CONSUMER, actor=consumer, evidence=evidence)

        return await self._store.write(work)

    async def _send_report(self, row: Agreement, endpoint: str, path: str, evidence: str) -> None:
        body = json.dumps({"agreement": row.id, "path": path, "evidence": evidence}).encode()
        headers = {"content-type": "application/json", "authorization": await self._mint(row.provider)}
        reply = await self._wire.call("POST", f"{endpoint}/duties", headers=headers, body=body, max_bytes=64 * 2**10)
        if reply.status >= 300 and reply.status != 409:  # 409: it has this evidence already
            raise PeerRefused(f"the provider answered {reply.status} to the report; try again, or ask its people")


class Upkeep:
    """Periodic work on agreements and negotiations. `look` does it once; `run` every `seconds` until cancelled."""

    def __init__(
        self,
        store: Store,
        *,
        negotiations: NegotiationService,
        agreements: AgreementService,
        transfers: TransferService,
        facts_of: FactsOf,
        seconds: float = _SECONDS,
    ) -> None:
        self._store, self._negotiations, self._agreements, self._transfers = store, negotiations, agreements, transfers
        self._facts_of, self._seconds = facts_of, seconds
        self._logged: set[str] = set()  # ids of agreements that our log names as unreadable

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except ConnectorError as error:  # the database may be away for a while
                _log.warning("upkeep_failed", code=error.code, reason=error.message)

    async def look(self) -> None:
        """Look once at every agreement, and at every negotiation that waits for its other side.

        An error with one of them is logged and does not affect the others.
        """
        for ended in await self._store.read(lambda tx: tx.agreements.list_unrevoked()):
            with suppress(Unavailable):  # the next look finds it again
                await self._agreements.complete_end(ended, by="clock")
        await self._for_each(_read_page, self._look_at_agreement)
        await self._for_each(self._negotiations.list_idle, self._negotiations.expire)

    async def _for_each(self, page: Callable[..., Sequence[Row]], look: Callable[[Row], Awaitable[None]]) -> None:
        """Call `look` for each row of every page; `page(tx, after=...)` reads rows in the order of their ids."""
        after = ""
        while rows := await self._store.read(partial(page, after=after)):
            for row in rows:
                try:
                    await look(row)
                except (PolicyError, ValueError, ConnectorError) as error:
                    _log.warning("not_looked_at", row=row.id, role=row.role, reason=str(error))
            after = rows[-1].id

    async def _look_at_agreement(self, row: Agreement) -> None:
        try:
            policy = stored_policies.read_agreement_policy(row)
        except Denied as refused:
            await self._suspend_unreadable(row, refused)
            return
        if policy.obligations or any(rule.duties for rule in policy.permissions):
            await self._store.write(lambda tx: duty_ledger.look(tx, row, now=tx.now))
        if row.role != PROVIDER or row.ended_at is not None:
            return
        if (end := rules.agreement_end(policy)) is not None and end <= time.time():
            with suppress(WrongState):  # it was ended a moment ago
                await self._agreements.revoke(row.id, reason=agreement_terms.TIME_ENDED, by="clock", role=PROVIDER)
            return
        await self._hold_transfers(row, policy)

    async def _suspend_unreadable(self, row: Agreement, refused: Denied) -> None:
        """Suspend the transfers of an agreement whose policy is not understood, until a person ends the agreement."""
        if row.ended_at is not None:
            return
        if row.id not in self._logged:
            self._logged.add(row.id)
            _log.warning("agreement_unreadable", agreement=row.id, role=row.role, reason=refused.message)
        if row.role == PROVIDER:
            for transfer in await self._list_transfers(row):
                await self._hold(transfer, agreement_terms.Verdict(False, (refused.message,)), missing=frozenset())

    async def _list_transfers(self, row: Agreement) -> list[Transfer]:
        """The transfers that may have to be suspended or resumed."""
        return await self._store.read(lambda tx: list(tx.transfers.list_started_or_suspended(row.id, role=PROVIDER)))

    async def _hold_transfers(self, row: Agreement, policy: Policy) -> None:
        """Suspend the transfers that the party's facts rule out now. Unknown facts are refused at the next read."""
        if not (transfers := await self._list_transfers(row)):
            return
        known = await self._facts_of(row.consumer)
        own = await self._store.read(lambda tx: duty_ledger.read_fulfilled(tx, row, now=tx.now))
        for transfer in transfers:
            facts = with_declared(known.adding(own), purpose=expand(transfer.purpose))
            verdict = agreement_terms.judge(policy, facts, phase=Phase.TRANSFER, now=time.time())
            await self._hold(transfer, verdict, missing=DECLARED - set(facts))

    async def _hold(self, transfer: Transfer, verdict: agreement_terms.Verdict, *, missing: frozenset[str]) -> None:
        """Suspend a transfer that the verdict rules out; resume a transfer that was suspended for its facts."""
        ruled_out = not verdict.permitted and not verdict.lacking
        fine = verdict.permitted or verdict.waits_for(missing | _COUNTERS)
        with suppress(ConnectorError):  # the other side changed the state meanwhile; the next look sees it
            if transfer.state == "STARTED" and ruled_out and not transfer.suspended_by:
                why = {"code": FACTS_ENDED, "reason": "; ".join(verdict.reasons)[:1_000]}
                await self._transfers.command(transfer.id, "suspend", by="clock", stopper=FACTS, **why)
            elif fine and transfer.suspended_by == FACTS:
                await self._transfers.command(transfer.id, "resume", by="clock")


def _read_page(tx: Transaction, *, after: str) -> Sequence[Agreement]:
    return tx.agreements.list_after(after, limit=_PAGE)


def _read_standings(tx: Transaction, row: Agreement) -> list[DutyStatus]:
    """The duties of an agreement; empty where its policy is not understood any more."""
    try:
        return duty_ledger.list_duties(tx, row, now=tx.now)
    except Denied:
        return []


_COUNTERS = frozenset({"odrl:count", "ds:queriesPerDay", "ds:concurrency"})


def _provider_endpoint(tx: Transaction, row: Agreement) -> str:
    """The provider's data plane: from a running transfer, else derived from its protocol address; else empty."""
    if row.role == PROVIDER:
        return ""
    rows: Sequence[Transfer] = tx.transfers.list_started(row.id, role=CONSUMER)
    stated = next((a.http for each in rows if (a := messages.address_of(each.data_address)) and a.http), "")
    root, separator, _ = row.address.rpartition(_PROTOCOL)
    return stated or (f"{root}/data/v1" if separator else "")
