"""Duties at work: evidence is kept and told to the other side, and what time brings is carried out.

`Ledger.report` keeps evidence; a consumer's goes to its provider too, whose ledger counts it for duties after use.
`Upkeep` looks at every agreement now and then: reminders where a duty has fallen due or is overdue; an agreement whose
time has ended is ended over the protocol; transfers of a party whose facts permit it no longer are suspended, and
resumed when they do again. And at every negotiation that waits for its other side, which it ends when that takes too
long.
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
from connector.dsp.agreements import Agreements, agreement_of
from connector.dsp.negotiation import Negotiations
from connector.dsp.protocol_client import Wire
from connector.dsp.states import CONSUMER, PROVIDER
from connector.dsp.transfer import FACTS, FACTS_ENDED, Transfers
from connector.errors import Busy, Conflict, HanseError, NotFound, PeerRefused, Refused
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
class Reported:
    """A duty after its evidence was kept. `told`: the other side has it; `why` says what stood in the way."""

    standing: DutyStatus
    told: bool
    why: str = ""


class Ledger:
    """The duties of every agreement of this participant, as either side."""

    def __init__(self, store: Store, wire: Wire, mint: Callable[[str], str]) -> None:
        self._store, self._wire, self._mint = store, wire, mint

    async def of(self, agreement_id: str, *, role: str = "") -> list[DutyStatus]:
        """Every duty of one agreement, as it stands now."""

        def work(tx: Transaction) -> list[DutyStatus]:
            return duty_ledger.list_duties(tx, agreement_of(tx, agreement_id, role), now=tx.now)

        return await self._store.read(work)

    async def role(self, agreement_id: str, *, role: str = "") -> str:
        """As which side an agreement is meant by this id: `role` where it is said, else the provider first."""
        return (await self._store.read(lambda tx: agreement_of(tx, agreement_id, role))).role

    async def open(self, *, limit: int = 1_000) -> list[tuple[Agreement, DutyStatus]]:
        """Duties that are due or overdue, over the newest agreements."""

        def work(tx: Transaction) -> list[tuple[Agreement, DutyStatus]]:
            rows = (row for row in tx.agreements.page(limit=limit) if row.finalized)
            found = ((row, one) for row in rows for one in _readable(tx, row))
            return [(row, one) for row, one in found if one.state in ("due", "violated")]

        return await self._store.read(work)

    async def report(self, agreement_id: str, path: str, *, evidence: str, by: str, role: str = "") -> Reported:
        """Keep evidence that we (or, as provider, the other side) did what is owed; as consumer, tell the provider."""

        def work(tx: Transaction) -> tuple[Agreement, DutyStatus, str]:
            row = agreement_of(tx, agreement_id, role)
            try:
                done = duty_ledger.report(tx, row, path, given_by=row.role, actor=by, evidence=evidence)
            except Conflict:
                if row.role == PROVIDER:
                    raise
                done = next(one for one in duty_ledger.list_duties(tx, row, now=tx.now) if one.path == path)
                if not done.evidence:
                    raise
            return row, done, _endpoint(tx, row)

        row, done, endpoint = await self._store.write(work)
        if row.role == PROVIDER:
            return Reported(done, told=True)
        if not endpoint:
            return Reported(done, told=False, why="it is not known where the provider takes reports: tell its people")
        try:
            await self._tell(row, endpoint, path, evidence)
        except HanseError as error:
            return Reported(done, told=False, why=error.message)
        return Reported(done, told=True)

    async def received(self, agreement_id: str, path: str, *, evidence: str, consumer: str) -> DutyStatus:
        """A consumer's report, at its provider. NotFound for anybody else's agreement."""

        def work(tx: Transaction) -> DutyStatus:
            row = tx.agreements.get(agreement_id, role=PROVIDER)
            if row is None or row.consumer != consumer:
                raise NotFound(f"no agreement {agreement_id!r} with you")
            return duty_ledger.report(tx, row, path, given_by=CONSUMER, actor=consumer, evidence=evidence)

        return await self._store.write(work)

    async def _tell(self, row: Agreement, endpoint: str, path: str, evidence: str) -> None:
        body = json.dumps({"agreement": row.id, "path": path, "evidence": evidence}).encode()
        headers = {"content-type": "application/json", "authorization": self._mint(row.provider)}
        reply = await self._wire.call("POST", f"{endpoint}/duties", headers=headers, body=body, max_bytes=64 * 2**10)
        if reply.status >= 300 and reply.status != 409:  # 409: it has this evidence already
            raise PeerRefused(f"the provider answered {reply.status} to the report; try again, or tell its people")


class Upkeep:
    """What time brings. `look` does it once; `run` does it every `seconds` until cancelled."""

    def __init__(
        self,
        store: Store,
        *,
        negotiations: Negotiations,
        agreements: Agreements,
        transfers: Transfers,
        facts_of: FactsOf,
        seconds: float = _SECONDS,
    ) -> None:
        self._store, self._negotiations, self._agreements, self._transfers = store, negotiations, agreements, transfers
        self._facts_of, self._seconds = facts_of, seconds
        self._told: set[str] = set()  # agreements of which our log says that they are not understood

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except HanseError as error:  # the database may be away for a while
                _log.warning("upkeep_failed", code=error.code, reason=error.message)

    async def look(self) -> None:
        """Every agreement once (reminders, ends, suspensions), and every negotiation that waits for its other side.

        One that cannot be read keeps nobody from the others.
        """
        for ended in await self._store.read(lambda tx: tx.agreements.list_unrevoked()):
            with suppress(Busy):  # the next look finds it again
                await self._agreements.follow(ended, by="clock")
        await self._each(_page, self._one)
        await self._each(self._negotiations.idle, self._negotiations.expire)

    async def _each(self, page: Callable[..., Sequence[Row]], look: Callable[[Row], Awaitable[None]]) -> None:
        """Look at each row of every page, which `page(tx, after=...)` reads in the order of their ids."""
        after = ""
        while rows := await self._store.read(partial(page, after=after)):
            for row in rows:
                try:
                    await look(row)
                except (PolicyError, ValueError, HanseError) as error:
                    _log.warning("not_looked_at", row=row.id, role=row.role, reason=str(error))
            after = rows[-1].id

    async def _one(self, row: Agreement) -> None:
        try:
            policy = stored_policies.agreed(row)
        except Refused as refused:
            await self._not_understood(row, refused)
            return
        if policy.obligations or any(rule.duties for rule in policy.permissions):
            await self._store.write(lambda tx: duty_ledger.look(tx, row, now=tx.now))
        if row.role != PROVIDER or row.ended_at is not None:
            return
        if (end := rules.agreement_end(policy)) is not None and end <= time.time():
            with suppress(Conflict):  # somebody ended it a moment ago
                await self._agreements.revoke(row.id, reason=agreement_terms.TIME_ENDED, by="clock", role=PROVIDER)
            return
        await self._hold_transfers(row, policy)

    async def _not_understood(self, row: Agreement, refused: Refused) -> None:
        """Nothing can be known of what is owed or permitted; transfers wait until somebody ends the agreement."""
        if row.ended_at is not None:
            return
        if row.id not in self._told:
            self._told.add(row.id)
            _log.warning("agreement_unreadable", agreement=row.id, role=row.role, reason=refused.message)
        if row.role == PROVIDER:
            for transfer in await self._held(row):
                await self._hold(transfer, agreement_terms.Verdict(False, (refused.message,)), missing=frozenset())

    async def _held(self, row: Agreement) -> list[Transfer]:
        """Transfers that we may have to suspend or resume."""
        return await self._store.read(lambda tx: list(tx.transfers.list_started_or_suspended(row.id, role=PROVIDER)))

    async def _hold_transfers(self, row: Agreement, policy: Policy) -> None:
        """Suspend what the party's facts rule out now; what is merely unknown is refused at the next read anyway."""
        if not (held := await self._held(row)):
            return
        known = await self._facts_of(row.consumer)
        own = await self._store.read(lambda tx: duty_ledger.read_fulfilled(tx, row, now=tx.now))
        for transfer in held:
            facts = with_declared(known.adding(own), purpose=expand(transfer.purpose))
            verdict = agreement_terms.judge(policy, facts, phase=Phase.TRANSFER, now=time.time())
            await self._hold(transfer, verdict, missing=DECLARED - set(facts))

    async def _hold(self, transfer: Transfer, verdict: agreement_terms.Verdict, *, missing: frozenset[str]) -> None:
        ruled_out = not verdict.permitted and not verdict.lacking
        fine = verdict.permitted or verdict.waits_for(missing | _COUNTERS)
        with suppress(HanseError):  # the other side moved meanwhile: the next look sees it
            if transfer.state == "STARTED" and ruled_out and not transfer.suspended_by:
                why = {"code": FACTS_ENDED, "reason": "; ".join(verdict.reasons)[:1_000]}
                await self._transfers.command(transfer.id, "suspend", by="clock", stopper=FACTS, **why)
            elif fine and transfer.suspended_by == FACTS:
                await self._transfers.command(transfer.id, "resume", by="clock")


def _page(tx: Transaction, *, after: str) -> Sequence[Agreement]:
    return tx.agreements.list_after(after, limit=_PAGE)


def _readable(tx: Transaction, row: Agreement) -> list[DutyStatus]:
    """The duties of an agreement; none where its policy is not understood any more, which others say."""
    try:
        return duty_ledger.list_duties(tx, row, now=tx.now)
    except Refused:
        return []


_COUNTERS = frozenset({"odrl:count", "ds:queriesPerDay", "ds:concurrency"})


def _endpoint(tx: Transaction, row: Agreement) -> str:
    """Where the provider's data plane is: as a running transfer says, else beside the protocol as connectors like ours
    have it; empty where neither tells."""
    if row.role == PROVIDER:
        return ""
    rows: Sequence[Transfer] = tx.transfers.list_started(row.id, role=CONSUMER)
    told = next((a.http for one in rows if (a := messages.address_of(one.data_address)) and a.http), "")
    root, found, _ = row.address.rpartition(_PROTOCOL)
    return told or (f"{root}/data/v1" if found else "")
