"""The steps that negotiations and transfers share, as functions over a row: take, apply, send and count a message.

Methods of `StateMachine` that get a transaction run inside it and await nothing. Our message is stored in the
transaction of the change that causes it. It counts when the counterparty has acknowledged it. `MessageCourier` delivers
it and settles the answer. `negotiation` and `transfer` decide what a message means; they pass that in as functions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from connector.dsp import messages, states
from connector.dsp.jsonld import Json
from connector.dsp.messages import Message, ProcessMessage
from connector.dsp.process_limits import ProcessAdmission
from connector.dsp.protocol_client import ProtocolClient, segment
from connector.dsp.states import CONSUMER, PROVIDER, Step, Table, Transition
from connector.errors import Absent, AlreadyExists, ConnectorError, IllegalStep, Limited, MessageInvalid, WrongState
from connector.events import Event, RequestRefused
from connector.identity.did import host_of
from connector.infra.net import resolver
from connector.outbox import delivery_classes
from connector.outbox.sender import DeliveryOutcome, DeliveryResult, Sender
from connector.store import Store, Transaction
from connector.store.tables import Negotiation, Outbox, Transfer
from connector.usage.fact_collector import FactsOf

Row = TypeVar("Row", Negotiation, Transfer)
FoundRow = TypeVar("FoundRow", covariant=True)
T = TypeVar("T")

_NOT_YET = frozenset({401, 404, 408, 425})  # the peer may not have stored our pid, or not seen our key yet
_REASON_MAX = 2_000  # characters
_UNNUMBERED_SECONDS = 5.0  # half of the time that our message waits for its answer
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class MessageResult(Generic[Row]):
    """A row after a committed change, and the messages that may leave now. `fresh` is False for a repeated message."""

    row: Row
    send: tuple[Outbox, ...] = ()
    fresh: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContext:
    """What both protocols work with. `participant` is our id, `base` the protocol address that we announce."""

    store: Store
    sender: Sender
    peer: ProtocolClient
    participant: str
    base: str
    facts_of: FactsOf


class ProcessRows(Protocol[FoundRow]):
    """The stored rows of one protocol."""

    def get(self, pid: str) -> FoundRow | None:
        """The row with our pid, locked for update."""

    def peek(self, pid: str) -> FoundRow | None:
        """The row with our pid, to read only."""

    def find_by_peer(self, *, role: str, counterparty: str, peer_pid: str) -> FoundRow | None:
        """The row for which the counterparty uses this pid, where we have this role."""


def new_pid() -> str:
    """A new pid, message id or agreement id."""
    return f"urn:uuid:{uuid.uuid4()}"


def step_of(wire: Json) -> str:
    """The name of our message in the state tables."""
    event = wire.get("eventType")
    return f"{wire['@type']}:{event}" if event else str(wire["@type"])


def pids_of(row: Negotiation | Transfer) -> dict[str, Any]:
    """Both pids of a process, as keyword arguments of a message."""
    ours, theirs = ("provider_pid", "consumer_pid") if row.role == PROVIDER else ("consumer_pid", "provider_pid")
    return {ours: row.id, theirs: row.peer_pid}


def _do_nothing(*_: object) -> None:
    """For a hook that a protocol does not need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMachine(Generic[Row]):
    """One protocol: its state table, its rows, and the functions of the service that gives its messages their meaning.

    kind: `negotiation` or `transfer`.
    event_of: the event that records a change of a row.
    on_delivered: called when our message, named by its step, was acknowledged; returns the messages that follow.
    on_changed: called after a change of state, with the state before it.
    on_stuck: called when our message was refused and the process continues, before that is recorded.
    on_undelivered: called when our message, named by its step, was refused or expired, after that is recorded.
    """

    context: ProcessContext
    kind: str
    table: Table
    termination: type[messages.MessageWithReason]
    admission: ProcessAdmission
    rows: Callable[[Transaction], ProcessRows[Row]]
    event_of: Callable[..., Event]
    on_delivered: Callable[[Transaction, Row, str], list[Outbox]]
    on_changed: Callable[[Transaction, Row, str], None]
    on_stuck: Callable[[Transaction, Row], None] = _do_nothing
    on_undelivered: Callable[[Transaction, Row, str, DeliveryOutcome], None] = _do_nothing
    waiting: set[str] = field(default_factory=set)  # pids for which a counterparty waits in `read_numbered`

    # Before a transaction, or around it.

    async def read_numbered(self, pid: str, look: Callable[[Transaction], Row]) -> Row:
        """Read a row for its counterparty once it holds the pids of both sides: a status reply needs both.

        A counterparty may ask before its answer to our first message has reached us. One such request for a pid waits
        up to five seconds. Others meanwhile fail at once, as each waiting request reads the database repeatedly.

        Raises:
            Absent: `look` finds no row, or the counterparty's pid is still unknown.
        """
        if pid in self.waiting:
            return await self._poll(pid, look, seconds=0)
        self.waiting.add(pid)
        try:
            return await self._poll(pid, look, seconds=_UNNUMBERED_SECONDS)
        finally:
            self.waiting.discard(pid)

    async def _poll(self, pid: str, look: Callable[[Transaction], Row], *, seconds: float) -> Row:
        until = time.monotonic() + seconds
        while True:
            await self.context.sender.wait_recorded(pid)
            row = await self.context.store.read(look)
            if row.peer_pid:
                return row
            if not row.pending or time.monotonic() >= until:
                raise Absent(f"the pid of {row.counterparty} for this {self.kind} is not known yet; ask again later")
            await asyncio.sleep(_LOOK_SECONDS)

    async def check_callback(self, address: str, caller: str, *, sink: str = "") -> str:
        """Check that we could call a counterparty's callback address, and the `sink` to which it wants data pushed.

        Host names are resolved in the delivery class of this party. Returns the address without a trailing slash.
        """
        sender, peer = self.context.sender, self.context.peer
        circle = await self.context.store.read(lambda tx: sender.circle_of(tx, caller))
        with resolver.use_group(circle, host_of(caller) if circle == delivery_classes.STRANGERS else caller):
            if sink:
                await peer.check_sink(sink)
            return await peer.check_theirs(address)

    async def write_or_record_refusal(
        self, work: Callable[[Transaction], T], *, caller: str, message: Message, pid: str = ""
    ) -> T:
        """Run `work` in a transaction. If it refuses the message, nothing has changed and the refusal is recorded."""
        try:
            try:
                return await self.context.store.write(work)
            except AlreadyExists:  # the same first message was stored by another task at the same time
                return await self.context.store.write(work)
        except ConnectorError as error:
            if error.status < 500:
                await self._record_refusal(error, caller=caller, message=message, pid=pid)
            raise

    async def _record_refusal(self, error: ConnectorError, *, caller: str, message: Message, pid: str) -> None:
        """Record why a counterparty's message was refused. During a flood of them, only some are recorded."""
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
        if isinstance(error, Limited) and not self.admission.should_record(caller, now):
            self.context.store.refusals.count(refused, now)
        else:
            await self.context.store.record_refusal(refused)

    # Receiving.

    def take(self, tx: Transaction, row: Row, message: ProcessMessage) -> Transition | None:
        """Judge a message for a process of its sender. None for a repeated message."""
        if row.id not in (message.consumer_pid, message.provider_pid):
            raise MessageInvalid(f"expected {row.id}, the pid of the address, among the message's pids; got another")
        repeated = self.is_repeat(tx, row.counterparty, message)
        if repeated and message.id:
            return None
        try:
            judged = states.receive(
                self.table, state=row.state, pending=row.pending, role=row.role, message=message.step
            )
        except IllegalStep:
            led_to = {after for step, after in self.table.items() if step.message == message.step}
            if repeated and row.state in led_to:  # without an id, content and state tell that it is a repeat
                return None
            raise
        if judged.after not in states.FINAL:
            self.admission.count_change(row.id, time.monotonic())
        row.peer_pid = row.peer_pid or (message.provider_pid if row.role == CONSUMER else message.consumer_pid)
        return judged

    def is_repeat(self, tx: Transaction, sender: str, message: Message) -> bool:
        """Whether this very message was stored before. It is remembered from now on."""
        wire = message.to_wire()
        if message.id:  # a start's address holds a ticket, which is new in each delivery of the same message
            wire.pop("dataAddress", None)
        digest = hashlib.sha256(json.dumps(wire, sort_keys=True).encode()).hexdigest()
        key = message.id or f"sha256:{digest}"
        if tx.outbox.record_received(sender=sender, message_id=key, digest=digest, now=tx.now):
            return False
        known = tx.outbox.find_received(sender, key)
        if known is not None and known.digest != digest:
            raise MessageInvalid(f"the message id {key} was used for another message; give each message its own")
        return True

    def apply(self, tx: Transaction, row: Row, message: Message, judged: Transition) -> list[Outbox]:
        """Change the state as judged. A message that proves delivery of our pending one lets that count first."""
        follow: list[Outbox] = []
        if row.pending and not judged.pending:
            tx.outbox.drop(row.id)
        if row.pending and judged.before != row.state:
            follow = self.count(tx, row, row.pending)
        before = row.state
        row.state, row.pending, row.updated_at = judged.after, judged.pending, tx.now
        row.code = row.reason = ""
        if isinstance(message, messages.MessageWithReason):
            row.code, row.reason = message.code[:255], "; ".join(message.reason)[:_REASON_MAX]
        tx.publish(self.event_of(row, actor=row.counterparty, message=message.step))
        self._report_change(tx, row, before)
        return follow

    # Sending.

    def send(self, tx: Transaction, row: Row, message: Message, path: str) -> Outbox:
        """Queue our next message.

        Raises:
            WrongState: our message before it is not acknowledged yet.
            IllegalStep: the state does not allow it.
        """
        if row.pending:
            raise WrongState(f"{row.pending} is still on its way to {row.counterparty}; wait until it is acknowledged")
        states.advance(self.table, Step(row.state, message.step, row.role))
        return self.send_unchecked(tx, row, message, path)

    def send_unchecked(self, tx: Transaction, row: Row, message: Message, path: str) -> Outbox:
        """Queue our next message without looking at the state."""
        row.pending, row.updated_at = message.step, tx.now
        return self._queue(tx, row, message, path)

    def _queue(self, tx: Transaction, row: Row, message: Message, path: str) -> Outbox:
        return self.context.sender.queue(
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

    def end(self, tx: Transaction, row: Row, *, code: str, reason: str, actor: str) -> list[Outbox]:
        """Terminate from our side. It counts at once (DSP 2025-1, section 7.1: a failed termination may be ignored)."""
        if row.state in states.FINAL:
            raise IllegalStep(f"this {self.kind} is {row.state.lower()} already and cannot be ended", state=row.state)
        before = row.state
        row.state, row.pending, row.updated_at = states.TERMINATED, "", tx.now
        row.code, row.reason = code, reason or code
        tx.publish(self.event_of(row, actor=actor, message=self.termination.__name__))
        sent: list[Outbox] = []
        if row.peer_pid:  # without it, `acknowledge` sends the termination once the counterparty has answered
            tx.outbox.drop(row.id)
            sent = [self._send_termination(tx, row, code=code, reason=reason)]
        self._report_change(tx, row, before)
        return sent

    def _send_termination(self, tx: Transaction, row: Row, *, code: str, reason: str) -> Outbox:
        message = self.termination(**pids_of(row), code=code, reason=(reason,) if reason else ())
        return self._queue(tx, row, message, f"/{self.kind}s/{_peer_segment(row)}/termination")

    # After a delivery.

    def acknowledge(self, tx: Transaction, row: Row, step: str) -> list[Outbox]:
        """Our message was acknowledged; what is to be sent next."""
        if row.pending == step:
            return self.count(tx, row, step)
        first = Step(states.NEW, step, row.role) in self.table
        if first and row.state == states.TERMINATED and row.peer_pid:  # we ended it before it was answered
            return [self._send_termination(tx, row, code=row.code, reason=row.reason)]
        return []

    def count(self, tx: Transaction, row: Row, step: str) -> list[Outbox]:
        """Let our delivered message change the state; what is to be sent next."""
        before = row.state
        row.state = self.table.get(Step(row.state, step, row.role), row.state)
        row.pending, row.updated_at = "", tx.now
        if step != states.SUSPENSION:  # a suspended transfer keeps the reason of its suspension
            row.code = row.reason = ""
        tx.publish(self.event_of(row, actor=self.context.participant, message=step))
        follow = self.on_delivered(tx, row, step)
        self._report_change(tx, row, before)
        return follow

    def refuse(self, tx: Transaction, row: Row, step: str, outcome: DeliveryOutcome) -> None:
        """Our message was refused or not delivered in time. A refused first message ends the process."""
        before, refused = row.state, outcome.result is DeliveryResult.REFUSED
        row.pending, row.updated_at = "", tx.now
        row.code = (outcome.code or "refused") if refused else "undeliverable"
        row.reason = (outcome.why if refused else f"{step}: {outcome.why}")[:_REASON_MAX]
        if row.state == states.NEW or outcome.result is DeliveryResult.EXPIRED:
            row.state = states.TERMINATED
        else:
            self.on_stuck(tx, row)
        tx.publish(self.event_of(row, actor=self.context.participant, message=step, outcome="refused"))
        self.on_undelivered(tx, row, step, outcome)
        self._report_change(tx, row, before)

    def _report_change(self, tx: Transaction, row: Row, before: str) -> None:
        if row.state != before:
            self.on_changed(tx, row, before)


def _peer_segment(row: Negotiation | Transfer) -> str:
    if not row.peer_pid:
        raise WrongState(f"the pid of {row.counterparty} is not known yet; wait for its first message")
    return segment(row.peer_pid)


async def _as_stored(row: Outbox) -> Json | None:
    return row.message


class MessageCourier(Generic[Row]):
    """Delivers the messages of one state machine and settles their answers (a `sender.Courier`).

    `complete` returns the message as it leaves, with what must be fresh or must not be stored; None cancels it.
    """

    def __init__(
        self, machine: StateMachine[Row], *, complete: Callable[[Outbox], Awaitable[Json | None]] = _as_stored
    ) -> None:
        self._machine: StateMachine[Row] = machine
        self._peer = machine.context.peer
        self._complete = complete

    async def carry(self, row: Outbox) -> DeliveryOutcome:
        """Deliver our message once and read the answer."""
        message = await self._complete(row)
        if message is None:
            return DeliveryOutcome(DeliveryResult.REFUSED, "nothing is left to deliver")
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
        if answer.status == 409:  # EDC answers this until it has stored the message that ours answers
            return DeliveryOutcome(DeliveryResult.SOON, why, code=answer.code)
        refusal = f"refused ({answer.status}): {answer.reason or 'no reason given'}"  # the row names who refused
        return DeliveryOutcome(DeliveryResult.REFUSED, refusal, code=answer.code)

    async def _was_taken(self, row: Outbox, message: Json) -> bool:
        """Whether an earlier attempt arrived although we saw no answer: ask the counterparty for its state."""
        theirs = message["consumerPid"] if message.get("providerPid") == row.process else message.get("providerPid")
        if not theirs:
            return False
        machine = self._machine
        reply = await self._peer.get(f"{row.address}/{machine.kind}s/{segment(theirs)}", audience=row.audience)
        status = messages.status_of(reply.document) if reply.accepted else None
        current = await machine.context.store.read(lambda tx: machine.rows(tx).peek(row.process))
        if status is None or current is None:
            return False
        wanted = machine.table.get(Step(current.state, step_of(message), current.role))
        return wanted is not None and getattr(status, "state", "") == wanted

    def hold(self, tx: Transaction, row: Outbox) -> Row | None:
        """The process that a message belongs to, locked."""
        return self._machine.rows(tx).get(row.process)

    def put_off(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Row | None) -> None:
        """Nothing to note: `pending` says that our message is on its way."""

    def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Row | None) -> list[Outbox]:
        """Change the process after an answer, or after giving up; what is to be sent next."""
        process = held
        if process is None:
            return []
        step = step_of(row.message)
        if outcome.result is DeliveryResult.DELIVERED:
            outcome = self._learn_pid(tx, process, outcome)
        if outcome.result is DeliveryResult.DELIVERED:
            return self._machine.acknowledge(tx, process, step)
        if process.pending == step:
            self._machine.refuse(tx, process, step, outcome)
        return []

    def _learn_pid(self, tx: Transaction, row: Row, outcome: DeliveryOutcome) -> DeliveryOutcome:
        """Keep the counterparty's pid from its answer; REFUSED where it uses that pid for another process with us."""
        status = messages.status_of(outcome.document)
        if status is None or row.peer_pid:
            return outcome
        theirs = status.provider_pid if row.role == CONSUMER else status.consumer_pid
        if (
            self._machine.rows(tx).find_by_peer(role=row.role, counterparty=row.counterparty, peer_pid=theirs)
            is not None
        ):
            why = f"{row.counterparty} answered with the pid {theirs}, which another {self._machine.kind} with it has"
            return DeliveryOutcome(DeliveryResult.REFUSED, why, code="pid_taken")
        row.peer_pid = theirs
        return outcome
