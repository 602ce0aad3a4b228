"""What negotiations and transfers have in common: a message is taken in once, ours is put on its way in the same
transaction as the change that causes it, and counts as said when the counterparty has acknowledged it.

Subclasses say what each message means. Everything here runs inside one transaction, and nothing here awaits.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from connector.dsp import messages, states
from connector.dsp.jsonld import Json
from connector.dsp.messages import Message, Numbered
from connector.dsp.process_limits import Admission, Limits
from connector.dsp.protocol_client import Peer, segment
from connector.dsp.states import CONSUMER, PROVIDER, Received, Step, Table
from connector.errors import AlreadyExists, Conflict, HanseError, IllegalStep, Limited, MessageInvalid, NotFound
from connector.events import Event, RequestRefused
from connector.identity.did import host_of
from connector.infra.net import resolver
from connector.outbox import delivery_classes
from connector.outbox.sender import DeliveryOutcome, DeliveryResult, Sender
from connector.store import Store, Transaction
from connector.store.tables import Negotiation, Outbox, Transfer
from connector.usage.fact_collector import FactsOf

Row = TypeVar("Row", Negotiation, Transfer)
T = TypeVar("T")

_NOT_YET = frozenset({401, 404, 408, 425})  # a peer that has not stored our pid, or not seen our key yet
_REASON_MAX = 2_000
_UNNUMBERED_SECONDS = 5.0  # half of what a message of ours waits for its answer
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Taken(Generic[Row]):
    """A process after a change that is committed, and what may leave now. `fresh` is False for a repeat."""

    row: Row
    send: tuple[Outbox, ...] = ()
    fresh: bool = True


def new_pid() -> str:
    """A pid, message id or agreement id of ours."""
    return f"urn:uuid:{uuid.uuid4()}"


def step_of(wire: Json) -> str:
    """The name that a message of ours has in the state tables."""
    event = wire.get("eventType")
    return f"{wire['@type']}:{event}" if event else str(wire["@type"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What both protocols work with. `participant` is our id, `base` the address that we announce."""

    store: Store
    sender: Sender
    peer: Peer
    participant: str
    base: str
    facts_of: FactsOf


class Exchange(ABC, Generic[Row]):
    """The machinery of one protocol."""

    table: ClassVar[Table]
    kind: ClassVar[str]
    termination: ClassVar[type[messages.Reasoned]]

    def __init__(self, parts: Parts, *, limits: Limits | None = None) -> None:
        self._store = parts.store
        self._sender = parts.sender
        self._peer = parts.peer
        self._us = parts.participant
        self._base = parts.base
        self._facts_of = parts.facts_of
        self._admission = Admission(self.kind, limits or Limits())
        self._waited_for: set[str] = set()  # processes whose counterparty asks for a state that cannot be told yet
        self._sender.register(self.kind, self, answered=True)

    # What a subclass says.

    @abstractmethod
    def _get(self, tx: Transaction, pid: str) -> Row | None:
        """For update, by our own pid."""

    @abstractmethod
    def _peek(self, tx: Transaction, pid: str) -> Row | None:
        """By our own pid, to be looked at only."""

    @abstractmethod
    def _of_peer(self, tx: Transaction, row: Row, peer_pid: str) -> Row | None:
        """The process in which the counterparty of `row` uses this pid, in our same role."""

    @abstractmethod
    def _advanced(self, row: Row, **about: Any) -> Event:
        """The event that tells of a change."""

    @abstractmethod
    def _said(self, tx: Transaction, row: Row, step: str) -> list[Outbox]:
        """What follows from the acknowledgement of a message of ours."""

    def _stuck(self, tx: Transaction, row: Row) -> None:
        """Our message was refused and the process goes on: somebody has to look."""

    # Telling.

    async def _told(self, pid: str, look: Callable[[Transaction], Row]) -> Row:
        """What `look` reads, for its counterparty, once both sides have numbered it: no state can be told before.

        Who asks before its answer to our first message has reached us waits a moment for that; then it is NotFound, as
        at once for whoever else asks meanwhile: each that waits looks into the database again and again.
        """
        waits = pid not in self._waited_for
        if waits:
            self._waited_for.add(pid)
        try:
            return await self._numbered(pid, look, seconds=_UNNUMBERED_SECONDS if waits else 0)
        finally:
            if waits:
                self._waited_for.discard(pid)

    async def _numbered(self, pid: str, look: Callable[[Transaction], Row], *, seconds: float) -> Row:
        until = time.monotonic() + seconds
        while True:
            await self._sender.acknowledgements.record_now(pid)
            row = await self._store.read(look)
            if row.peer_pid:
                return row
            if not row.pending or time.monotonic() >= until:
                raise NotFound(f"{row.counterparty} has not told its pid for this {self.kind} yet; ask again later")
            await asyncio.sleep(_LOOK_SECONDS)

    # Taking in.

    async def _callback(self, address: str, caller: str, *, sink: str = "") -> str:
        """The address that a counterparty names for our messages, if we could call it, and the `sink` for data that it
        names beside it; they are looked up in the places of this party's circle."""
        circle = await self._store.read(lambda tx: self._sender.circle_of(tx, caller))
        with resolver.use_group(circle, host_of(caller) if circle == delivery_classes.STRANGERS else caller):
            if sink:
                await self._peer.check_sink(sink)
            return await self._peer.check_theirs(address)

    async def _refusals_recorded(
        self, work: Callable[[Transaction], T], *, caller: str, message: Message, pid: str = ""
    ) -> T:
        """Run `work`; where it refuses, nothing has changed, and the refusal itself is recorded."""
        try:
            try:
                return await self._store.write(work)
            except AlreadyExists:  # the same first message was taken in by somebody else at the same time
                return await self._store.write(work)
        except HanseError as error:
            if error.status < 500:
                await self._record_refusal(error, caller=caller, message=message, pid=pid)
            raise

    async def _record_refusal(self, error: HanseError, *, caller: str, message: Message, pid: str = "") -> None:
        """Keep in the log that a counterparty's message was refused, and why; not all of a flood of them."""
        refused = RequestRefused(
            actor=caller,
            outcome="refused",
            code=error.code,
            reason=error.message[:_REASON_MAX],
            rule=str(error.facts.get("rule", "")),
            process=pid,
            detail={"message": message.step},
        )
        now = time.monotonic()
        if isinstance(error, Limited) and not self._admission.worth_telling(caller, now):
            self._store.refusals.count(refused, now)
        else:
            await self._store.record_refusal(refused)

    def _take(self, tx: Transaction, row: Row, message: Numbered) -> Received | None:
        """Judge a message for a process that is the caller's. None: it was taken in before."""
        if row.id not in (message.consumer_pid, message.provider_pid):
            raise MessageInvalid(f"expected one of the message's pids to be {row.id}, the one of the address")
        repeated = self._repeated(tx, row.counterparty, message)
        if repeated and message.id:
            return None
        try:
            judged = states.receive(
                self.table, state=row.state, pending=row.pending, role=row.role, message=message.step
            )
        except IllegalStep:
            led_to = {after for step, after in self.table.items() if step.message == message.step}
            if repeated and row.state in led_to:  # no id of its own: told by its content and our state
                return None
            raise
        if judged.after not in states.FINAL:
            self._admission.change(row.id, time.monotonic())
        row.peer_pid = row.peer_pid or (message.provider_pid if row.role == CONSUMER else message.consumer_pid)
        return judged

    def _repeated(self, tx: Transaction, sender: str, message: Message) -> bool:
        """Whether this very message was taken in before; remembered from now on."""
        wire = message.to_wire()
        if message.id:  # a start's address holds a ticket, made afresh for each delivery of the same message
            wire.pop("dataAddress", None)
        digest = hashlib.sha256(json.dumps(wire, sort_keys=True).encode()).hexdigest()
        key = message.id or f"sha256:{digest}"
        if tx.outbox.record_received(sender=sender, message_id=key, digest=digest, now=tx.now):
            return False
        known = tx.outbox.find_received(sender, key)
        if known is not None and known.digest != digest:
            raise MessageInvalid(f"the message id {key} was used for another message; give each message its own")
        return True

    def _apply(self, tx: Transaction, row: Row, message: Message, judged: Received) -> list[Outbox]:
        """Change the state as judged. A message that proves delivery of ours lets that count first."""
        follow: list[Outbox] = []
        if row.pending and not judged.pending:
            self._drop(tx, row)
        if row.pending and judged.before != row.state:
            follow = self._count(tx, row, row.pending)
        row.state, row.pending, row.updated_at = judged.after, judged.pending, tx.now
        row.code = row.reason = ""
        if isinstance(message, messages.Reasoned):
            row.code, row.reason = message.code[:255], "; ".join(message.reason)[:_REASON_MAX]
        tx.publish(self._advanced(row, actor=row.counterparty, message=message.step))
        return follow

    # Sending.

    def _send(self, tx: Transaction, row: Row, message: Message, path: str) -> Outbox:
        """Put our next message on its way. IllegalStep or Conflict where it is not possible now."""
        if row.pending:
            raise Conflict(f"{row.pending} is still on its way to {row.counterparty}; wait until it is acknowledged")
        states.advance(self.table, Step(row.state, message.step, row.role))
        return self._put(tx, row, message, path)

    def _put(self, tx: Transaction, row: Row, message: Message, path: str) -> Outbox:
        row.pending, row.updated_at = message.step, tx.now
        return self._outbox(tx, row, message, path)

    def _outbox(self, tx: Transaction, row: Row, message: Message, path: str) -> Outbox:
        return self._sender.queue(
            tx,
            Outbox(
                process=row.id,
                kind=self.kind,
                address=row.address,
                path=path,
                audience=row.counterparty,
                message={**message.to_wire(), "@id": new_pid()},
            ),
        )

    def _end(self, tx: Transaction, row: Row, *, code: str, reason: str, actor: str) -> list[Outbox]:
        """Terminate from our side. It counts at once (DSP 2025-1, section 7.1: a failed termination may be ignored)."""
        if row.state in states.FINAL:
            raise IllegalStep(f"this {self.kind} is {row.state.lower()}; nothing can end it any more", state=row.state)
        row.state, row.pending, row.updated_at = states.TERMINATED, "", tx.now
        row.code, row.reason = code, reason or code
        tx.publish(self._advanced(row, actor=actor, message=self.termination.__name__))
        if not row.peer_pid:  # the counterparty may know of it or not: once it answers, `_acknowledged` tells it
            return []
        self._drop(tx, row)
        return [self._termination(tx, row, code=code, reason=reason)]

    def _termination(self, tx: Transaction, row: Row, *, code: str, reason: str) -> Outbox:
        message = self.termination(**self._pids(row), code=code, reason=(reason,) if reason else ())
        return self._outbox(tx, row, message, f"/{self.kind}s/{_segment(row)}/termination")

    def _drop(self, tx: Transaction, row: Row) -> None:
        """Nothing of ours is on its way in this process any more."""
        tx.outbox.drop(row.id)
        tx.after_commit(lambda: self._sender.acknowledgements.mark_recorded(row.id))

    def _pids(self, row: Row) -> dict[str, Any]:
        ours, theirs = ("provider_pid", "consumer_pid") if row.role == PROVIDER else ("consumer_pid", "provider_pid")
        return {ours: row.id, theirs: row.peer_pid}

    # Delivery (a `sender.Courier`).

    async def carry(self, row: Outbox) -> DeliveryOutcome:
        """Deliver a message of ours and read the answer."""
        message = await self._finished(row)
        if message is None:
            return DeliveryOutcome(DeliveryResult.REFUSED, "nothing to deliver any more")
        answer = await self._peer.post(row.address + row.path, message, audience=row.audience)
        if answer.accepted:
            return DeliveryOutcome(DeliveryResult.DELIVERED, document=answer.document)
        why = f"{row.audience} answered {answer.status}: {answer.reason or 'no reason given'}"
        if answer.status in _NOT_YET:
            return DeliveryOutcome(DeliveryResult.SOON, why)
        if answer.status >= 500 or answer.status == 429:
            return DeliveryOutcome(DeliveryResult.AGAIN, why)
        if row.attempts and await self._was_taken(row, message):
            return DeliveryOutcome(DeliveryResult.DELIVERED)
        said = f"refused ({answer.status}): {answer.reason or 'no reason given'}"  # whose word it is stands beside it
        return DeliveryOutcome(DeliveryResult.REFUSED, said, code=answer.code)

    async def _finished(self, row: Outbox) -> Json | None:
        """The message as it leaves: what must not be stored, or must be fresh, is added here."""
        return row.message

    async def _was_taken(self, row: Outbox, message: Json) -> bool:
        """Whether an earlier attempt got through although we saw no answer: ask the counterparty for its state."""
        theirs = message["consumerPid"] if message.get("providerPid") == row.process else message.get("providerPid")
        if not theirs:
            return False
        known = await self._peer.get(f"{row.address}/{self.kind}s/{segment(theirs)}", audience=row.audience)
        told = messages.status_of(known.document) if known.accepted else None
        current = await self._store.read(lambda tx: self._peek(tx, row.process))
        if told is None or current is None:
            return False
        wanted = self.table.get(Step(current.state, step_of(message), current.role))
        return wanted is not None and getattr(told, "state", "") == wanted

    def hold(self, tx: Transaction, row: Outbox) -> Row | None:
        """The process that a message belongs to, locked."""
        return self._get(tx, row.process)

    def put_off(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Row | None) -> None:
        """A process says itself that our message is on its way."""

    def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Row | None) -> list[Outbox]:
        """What follows from an answer, or from giving up."""
        process = held
        if process is None:
            return []
        step = step_of(row.message)
        if outcome.result is DeliveryResult.DELIVERED:
            outcome = self._named(tx, process, outcome)
        if outcome.result is DeliveryResult.DELIVERED:
            return self._acknowledged(tx, process, step)
        if process.pending == step:
            self._not_said(tx, process, step, outcome)
        return []

    def _named(self, tx: Transaction, row: Row, outcome: DeliveryOutcome) -> DeliveryOutcome:
        """Learn the counterparty's pid from its answer. One that it uses for another process is no answer to ours."""
        told = messages.status_of(outcome.document)
        if told is None or row.peer_pid:
            return outcome
        theirs = told.provider_pid if row.role == CONSUMER else told.consumer_pid
        if self._of_peer(tx, row, theirs) is not None:
            why = f"{row.counterparty} answered with the pid {theirs}, which another {self.kind} with it has already"
            return DeliveryOutcome(DeliveryResult.REFUSED, why, code="pid_taken")
        row.peer_pid = theirs
        return outcome

    def _acknowledged(self, tx: Transaction, row: Row, step: str) -> list[Outbox]:
        if row.pending == step:
            return self._count(tx, row, step)
        first = Step(states.NEW, step, row.role) in self.table
        if first and row.state == states.TERMINATED and row.peer_pid:  # ended by us before it was answered
            return [self._termination(tx, row, code=row.code, reason=row.reason)]
        return []

    def _count(self, tx: Transaction, row: Row, step: str) -> list[Outbox]:
        """Our message is known to have arrived: now it counts."""
        row.state = self.table.get(Step(row.state, step, row.role), row.state)
        row.pending, row.updated_at = "", tx.now
        row.code, row.reason = self._why(row, step)
        tx.publish(self._advanced(row, actor=self._us, message=step))
        return self._said(tx, row, step)

    def _why(self, row: Row, step: str) -> tuple[str, str]:
        """The code and the reason that stand when our message has arrived."""
        return "", ""

    def _not_said(self, tx: Transaction, row: Row, step: str, outcome: DeliveryOutcome) -> None:
        """Our message was refused, or could not be delivered in time. A refused first message ends the process."""
        row.pending, row.updated_at = "", tx.now
        row.code = (outcome.code or "refused") if outcome.result is DeliveryResult.REFUSED else "undeliverable"
        refused = outcome.result is DeliveryResult.REFUSED
        row.reason = (outcome.why if refused else f"{step}: {outcome.why}")[:_REASON_MAX]
        if row.state == states.NEW or outcome.result is DeliveryResult.EXPIRED:
            row.state = states.TERMINATED
        else:
            self._stuck(tx, row)
        tx.publish(self._advanced(row, actor=self._us, message=step, outcome="refused"))

    def _leave(self, rows: list[Outbox]) -> None:
        self._sender.hand_over(rows)


def _segment(row: Negotiation | Transfer) -> str:
    if not row.peer_pid:
        raise Conflict(f"{row.counterparty} has not told its pid yet; wait for its first message")
    return segment(row.peer_pid)
