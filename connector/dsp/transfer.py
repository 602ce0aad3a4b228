"""Transfer processes as provider and as consumer: messages received, commands carried out, automatic answers.

This module moves no bytes: a `DataPlane` gives addresses, stops reads, and pushes. A start message is stored without
its data address. The address with its ticket is added when the message leaves, so that the outbox holds no ticket and
no ticket is stale. The same holds for a request for a push to ourselves.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from connector import acting
from connector.dataplane.push.target import JOB_PROPERTY, Target
from connector.datasets import stored_policies
from connector.dsp import agreement_terms, auto_decisions, messages, states
from connector.dsp.jsonld import Json
from connector.dsp.messages import (
    DataAddress,
    ProcessMessage,
    TransferCompletionMessage,
    TransferRequestMessage,
    TransferStartMessage,
    TransferSuspensionMessage,
)
from connector.dsp.negotiation import NegotiationService
from connector.dsp.process import MessageCourier, MessageResult, ProcessContext, StateMachine, new_pid, pids_of
from connector.dsp.process_limits import ProcessAdmission, ProcessLimits
from connector.dsp.protocol_client import segment
from connector.dsp.states import CONSUMER, PROVIDER, Transition
from connector.errors import (
    Absent,
    AddressRefused,
    ConnectorError,
    Denied,
    IllegalStep,
    Invalid,
    MessageInvalid,
    PeerNonsense,
    PeerUnreachable,
    WrongState,
    check_harmless,
)
from connector.events import AgreementRevoked, DecisionNeeded, DecisionTaken, Event, TransferAdvanced
from connector.identity.principal import Principal
from connector.infra.net.http_client import origin
from connector.outbox.sender import DeliveryOutcome, DeliveryResult
from connector.store import Transaction
from connector.store.queries.agreements import count_today
from connector.store.tables import Agreement, GrantState, Outbox, Transfer
from connector.telemetry import logger
from connector.usage.duty_ledger import read_fulfilled
from connector.usage.fact_collector import DECLARED, PURPOSE, USES, with_counters, with_declared
from connector.usage.grants import COMPLETING, HELD, PUSH_FAILED, SUSPENDING, event_to_end_reason
from connector.usage.held_agreement import EndReason
from policies.evaluation.evaluate import Facts
from policies.vocabulary import Phase

PULL, PUSH = "pull", "push"
FORMATS: Mapping[str, str] = MappingProxyType({"HttpData-PULL": PULL, "HttpData-PUSH": PUSH})
FACTS_ENDED, FACTS = "facts_ended", "facts"  # suspended while the party's facts do not permit it
_DAY = 86_400
_RENEW_BEFORE = 60.0  # seconds before a ticket ends
_OVER = frozenset({states.SUSPENDED, states.COMPLETED, states.TERMINATED})
_AS_HTTP = MappingProxyType({"grpc": "http", "grpc+tcp": "http", "grpc+tls": "https"})  # for the address check

AGREEMENT_REVOKED = "agreement_revoked"  # the code of the terminations that follow a revocation
AGREEMENT_ENDED = "agreement_ended"  # the code of refusals of later requests under it
PUSH_AGAIN = "push_again"  # the code of a transfer whose push broke off, until it arrives or is given up
_JOB = "hanse:job"  # of a queued request for a push to us: it becomes a property of the address, which has a secret
_AGAIN = "push, to be sent again: "  # before its reason


class DataPlane(Protocol):
    """Moves the bytes of transfers."""

    def address(self, tx: Transaction, transfer: Transfer) -> DataAddress:
        """Where and with which ticket the consumer reads; valid for the transfer's present generation.

        Runs in a reading transaction.

        Raises:
            ConnectorError: the agreement is not in force any more.
        """

    def receives(self, transfer_id: str) -> DataAddress:
        """As consumer: the address to which a provider pushes under this transfer.

        Raises:
            Invalid: this connector receives no pushes.
        """

    async def stop(self, transfer_id: str, how: EndReason) -> None:
        """End all reads under a transfer now, for the reason `how`."""

    async def push(self, transfer: Transfer, data_address: DataAddress) -> None:
        """Send everything to the consumer's address. Returns when all of it has arrived."""


@dataclass(frozen=True, slots=True)
class ReadAddress:
    """The address at which a consumer reads, with its ticket. `expires`: UTC seconds, 0 where not stated."""

    address: DataAddress
    expires: float
    agreement_id: str


class TransferService:
    """Both sides of every transfer of this participant. `formats`: name of each format to PULL or PUSH."""

    def __init__(
        self,
        context: ProcessContext,
        *,
        negotiations: NegotiationService,
        data_plane: DataPlane,
        formats: Mapping[str, str] = FORMATS,
        limits: ProcessLimits | None = None,
    ) -> None:
        self._store, self._sender, self._peer = context.store, context.sender, context.peer
        self._us, self._base, self._facts_of = context.participant, context.base, context.facts_of
        self._admission = ProcessAdmission("transfer", limits or ProcessLimits())
        self._machine: StateMachine[Transfer] = StateMachine(
            context=context,
            kind="transfer",
            table=states.TRANSFER,
            termination=messages.TransferTerminationMessage,
            admission=self._admission,
            rows=lambda tx: tx.transfers,
            event_of=self._event_of,
            on_delivered=self._on_delivered,
            on_changed=_void_access,
            on_undelivered=_on_undelivered,
        )
        self._negotiations = negotiations
        self._data_plane = data_plane
        self._formats = formats
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logger("transfer")
        courier = MessageCourier(self._machine, complete=self._add_data_address)
        self._sender.register("transfer", courier)
        self._sender.register(PUSH, _PushCourier(self), lasting=True)
        self._store.bus.subscribe(self._on_event)

    # Messages.

    async def on_request(self, message: TransferRequestMessage, caller: Principal) -> MessageResult[Transfer]:
        """Receive a consumer's request under an agreement. A repeat returns the same process.

        Raises:
            MessageInvalid: there is no such agreement with this caller, the format is not supported, or an address
                cannot be called.
            Denied: the agreement has ended, or does not permit this party, purpose or time any more.
            Limited: the caller has too many transfers, or begins too many.
        """
        pushed = message.data_address if self._formats.get(message.format) == PUSH else None
        sink = pushed.endpoint if pushed is not None else ""
        address = await self._machine.check_callback(message.callback_address, caller.id, sink=sink)
        party = await self._facts_of(caller.id)

        def work(tx: Transaction) -> MessageResult[Transfer]:
            known = tx.transfers.find_by_peer(role=PROVIDER, counterparty=caller.id, peer_pid=message.consumer_pid)
            if known is not None:
                return MessageResult(known, fresh=False)
            self._admission.admit(tx, caller.id, role=PROVIDER)
            agreement, grant = self._find_agreement(tx, message, caller)
            self._check_format(message)
            purpose = message.purpose or (_only_purpose(agreement) if message.from_edc else "")
            _check_permitted(tx, agreement, grant, with_declared(party, purpose=purpose))
            row = _new_row(tx, PROVIDER, agreement, message.format, purpose)
            row.address, row.peer_pid, row.state = address, message.consumer_pid, states.REQUESTED
            if message.data_address and self._formats[message.format] == PUSH:
                row.data_address = message.data_address.to_wire()
            self._machine.is_repeat(tx, caller.id, message)
            from_agreement = {"purpose_from": "agreement"} if purpose != message.purpose else {}
            more = {**from_agreement, **caller.evidence()}
            tx.publish(self._event_of(row, actor=caller.id, message=message.step, more=more))
            sent = self._answer(tx, row, agreement)
            tx.transfers.add(row)
            return MessageResult(row, tuple(sent))

        return await self._machine.write_or_record_refusal(
            work, caller=caller.id, message=message, pid=message.consumer_pid
        )

    async def on_message(self, message: ProcessMessage, caller: Principal, *, pid: str) -> MessageResult[Transfer]:
        """Receive any later message for the process `pid`. A refused message changes nothing.

        Raises:
            Absent: there is no such process with this caller.
            IllegalStep: the state does not allow this message.
            MessageInvalid: it does not fit this process.
            Denied: the consumer may not resume, or its agreement does not permit that any more.
        """
        resumes = isinstance(message, TransferStartMessage)
        facts = await self._facts_of(caller.id) if resumes else Facts()

        def work(tx: Transaction) -> MessageResult[Transfer]:
            row = tx.transfers.of(pid, caller.id)
            judged = self._take(tx, row, message)
            if judged is None:
                return MessageResult(row, fresh=False)
            return MessageResult(row, tuple(self._accept(tx, row, message, judged, facts)))

        return await self._machine.write_or_record_refusal(work, caller=caller.id, message=message, pid=pid)

    async def read_status(self, pid: str, caller: Principal) -> messages.TransferProcess:
        """The state of a process, for its counterparty. Absent too while the counterparty's pid is not known."""
        return self.view(await self._machine.read_numbered(pid, lambda tx: tx.transfers.peek_of(pid, caller.id)))

    def view(self, row: Transfer) -> messages.TransferProcess:
        """The protocol's object for a transfer."""
        state = states.published(states.TRANSFER, row.state, row.pending, row.role)
        return messages.TransferProcess(**pids_of(row), state=state)

    def _take(self, tx: Transaction, row: Transfer, message: ProcessMessage) -> Transition | None:
        try:
            return self._machine.take(tx, row, message)
        except IllegalStep:
            # DSP 2025-1 leaves this open: after a consumer's resume, the provider's own start carries the address.
            awaited = row.role == CONSUMER and row.state == states.STARTED and not row.data_address
            if awaited and isinstance(message, TransferStartMessage) and message.data_address:
                return Transition(row.state, row.state, row.pending)
            raise

    def _accept(
        self, tx: Transaction, row: Transfer, message: ProcessMessage, judged: Transition, facts: Facts
    ) -> list[Outbox]:
        """Check the content of a legal message, change the state, and answer."""
        if isinstance(message, TransferStartMessage) and row.role == PROVIDER:
            return self._resume(tx, row, message, judged, facts)
        follow = self._machine.apply(tx, row, message, judged)
        if isinstance(message, TransferStartMessage):
            row.data_address = message.data_address.to_wire() if message.data_address else {}
            row.suspended_by = ""
        elif isinstance(message, TransferSuspensionMessage):
            # Our own suspension may be on its way, or was refused: the side that ordered it first resumes.
            row.suspended_by = PROVIDER if row.suspended_by in HELD else row.suspended_by or states.other(row.role)
        elif row.role == CONSUMER and row.state == states.TERMINATED and row.code == AGREEMENT_REVOKED:
            _end_agreement(tx, row, reason=row.reason)
        return follow

    def _resume(
        self, tx: Transaction, row: Transfer, message: ProcessMessage, judged: Transition, facts: Facts
    ) -> list[Outbox]:
        """Let the consumer resume, unless the owner suspended the transfer or the agreement does not permit it now."""
        stopped = row.suspended_by in {PROVIDER, *HELD}
        if stopped or row.pending == states.SUSPENSION:  # a consumer that resumes has received our suspension
            raise Denied("the provider suspended this transfer, so only the provider resumes it", code="suspended")
        agreement = tx.agreements.of(row.agreement_id, role=PROVIDER)
        _check_permitted(tx, agreement, _check_in_force(tx, agreement), with_declared(facts, purpose=row.purpose))
        follow = self._machine.apply(tx, row, message, judged)
        row.suspended_by = ""
        if row.pending == states.START:
            return follow
        return [*follow, self._send_start(tx, row)]

    def _find_agreement(
        self, tx: Transaction, message: TransferRequestMessage, caller: Principal
    ) -> tuple[Agreement, GrantState]:
        """The agreement that a request names and its grant, if it is with this caller and in force."""
        agreement = tx.agreements.get(message.agreement_id, role=PROVIDER)
        if agreement is None or agreement.consumer != caller.id:
            raise MessageInvalid(f"expected an agreement between us, got {message.agreement_id!r}", code="no_agreement")
        if not agreement.finalized:
            self._negotiations.confirm_finalized(tx, agreement)
            agreement = tx.agreements.refresh(agreement)  # its acknowledgement may have been stored while we waited
        if not agreement.finalized and agreement.ended_at is None:
            raise MessageInvalid("this agreement is not final yet; finish its negotiation", code="not_final")
        return agreement, _check_in_force(tx, agreement)

    def _check_format(self, message: TransferRequestMessage) -> None:
        direction = self._formats.get(message.format)
        if direction is None:
            raise MessageInvalid(f"expected format {' or '.join(self._formats)}, got {message.format[:100]!r}")
        if direction != PUSH:
            return
        if message.data_address is None or not message.data_address.endpoint:
            raise MessageInvalid(f"expected a dataAddress with an endpoint for the format {message.format}, got none")
        try:
            Target.of(message.data_address.endpoint, dict(message.data_address.properties))
        except Invalid as error:
            raise MessageInvalid(f"dataAddress: {error}") from None

    # Automatic answers.

    def _answer(self, tx: Transaction, row: Transfer, agreement: Agreement) -> list[Outbox]:
        """The provider's start after a request; none where a person decides."""
        negotiation = tx.negotiations.peek(agreement.negotiation_id)
        case = auto_decisions.DecisionCase(
            decide=negotiation.decide if negotiation is not None else auto_decisions.MANUAL
        )
        if auto_decisions.next_message(auto_decisions.TRANSFER, role=PROVIDER, state=row.state, case=case):
            return [self._send_start(tx, row)]
        detail = {"role": row.role, "state": row.state, "counterparty": row.counterparty, "format": row.format}
        tx.publish(DecisionNeeded(actor=row.counterparty, process=row.id, agreement=row.agreement_id, detail=detail))
        return []

    def _send_start(self, tx: Transaction, row: Transfer) -> Outbox:
        """Send our start as provider. In STARTED (after the consumer's resume) it only carries the address."""
        row.generation += 1
        message = TransferStartMessage(**pids_of(row))
        path = f"/transfers/{segment(row.peer_pid)}/start"
        if row.state == states.STARTED:
            return self._machine.send_unchecked(tx, row, message, path)
        return self._machine.send(tx, row, message, path)

    def _on_delivered(self, tx: Transaction, row: Transfer, step: str) -> list[Outbox]:
        if step == states.SUSPENSION:
            row.suspended_by = row.suspended_by or row.role
        if step == states.START:
            if row.suspended_by in HELD:  # the owner ordered that meanwhile
                return [self._carry_out(tx, row, "suspend" if row.suspended_by == SUSPENDING else "complete")]
            row.suspended_by = ""
            if row.role == PROVIDER and self._formats.get(row.format) == PUSH:
                return [self._queue_push(tx, row)]
        return []

    def _queue_push(self, tx: Transaction, row: Transfer) -> Outbox:
        return self._sender.queue(
            tx,
            Outbox(
                process=_push_process(row.id),
                kind=PUSH,
                address=str(row.data_address.get("endpoint", "")),
                path="",
                audience=row.counterparty,
                message={"transfer": row.id, "generation": row.generation},
            ),
        )

    async def _add_data_address(self, row: Outbox) -> Json | None:
        """The message as it leaves: with its address, if it starts a pull or requests a push to ourselves."""
        if row.message["@type"] == states.TRANSFER_REQUEST and self._is_push_to_us(row.message):
            message = {name: value for name, value in row.message.items() if name != _JOB}
            address = _name_job(self._data_plane.receives(row.process), row.message.get(_JOB, ""))
            return {**message, "dataAddress": address.to_wire()}
        if row.message["@type"] != states.START:
            return row.message
        return await self._store.read(lambda tx: self._complete_start(tx, row))

    def _is_push_to_us(self, request: Json) -> bool:
        return self._formats.get(request["format"]) == PUSH and "dataAddress" not in request

    def _complete_start(self, tx: Transaction, row: Outbox) -> Json | None:
        transfer = tx.transfers.peek(row.process)
        if transfer is None or transfer.pending != states.START:
            return None
        if transfer.role == CONSUMER or self._formats.get(transfer.format) == PUSH:
            return row.message
        return {**row.message, "dataAddress": self._data_plane.address(tx, transfer).to_wire()}

    def _on_event(self, event: Event) -> None:
        """Stop the reads of a transfer that does not run any more, ended by either side."""
        if not isinstance(event, TransferAdvanced) or event.detail.get("role") != PROVIDER:
            return
        if event.detail.get("state") in _OVER:
            self._stop(event.process, event_to_end_reason(event))

    def _stop(self, pid: str, how: EndReason) -> None:
        task = asyncio.get_running_loop().create_task(self._stop_reads(pid, how))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop_reads(self, pid: str, how: EndReason) -> None:
        try:
            await self._data_plane.stop(pid, how)
        except ConnectorError as error:
            self._log.error("stop_failed", transfer=pid, reason=error.message)

    # Commands.

    async def request(
        self,
        *,
        agreement_id: str,
        format: str = "HttpData-PULL",
        purpose: str = "",
        data_address: DataAddress | None = None,
        counterparty: str = "",
        address: str = "",
        by: str,
        correlation: str = "",
    ) -> Transfer:
        """Ask the provider of an agreement for a transfer. A push without a `data_address` comes to this connector.

        counterparty: if given, the expected provider.
        address: if given, the provider's present protocol address, where it has moved.

        Raises:
            WrongState: the agreement is not in force.
            Invalid: the agreement is with another provider, or this connector receives no pushes.
            MessageInvalid: an address cannot be called.
        """
        if address:
            address = await self._peer.check(address)
        doer = acting.current()
        job = doer.job if doer else ""
        if data_address is not None:
            messages.check_data_address(data_address)
            data_address = _name_job(data_address, job)

        def work(tx: Transaction) -> tuple[Transfer, Outbox]:
            agreement = tx.agreements.of(agreement_id, role=CONSUMER)
            if not agreement.finalized or agreement.ended_at is not None:
                raise WrongState(f"this agreement is not in force: {agreement.end_reason or 'it is not final yet'}")
            if counterparty not in ("", agreement.provider):
                raise Invalid(f"this agreement is with {agreement.provider}, not with {counterparty}")
            row = _new_row(tx, CONSUMER, agreement, format, purpose)
            row.address, row.correlation = address or agreement.address, correlation
            tx.transfers.add(row)
            tx.publish(self._command_event(row, "request", by=by))
            message = TransferRequestMessage(
                consumer_pid=row.id,
                agreement_id=agreement_id,
                format=format,
                data_address=data_address,
                callback_address=self._base,
                purpose=purpose,
            )
            if self._is_push_to_us(message.to_wire()):
                self._data_plane.receives(row.id)  # fails now if this connector receives no pushes
            queued = self._machine.send(tx, row, message, "/transfers/request")
            queued.message = queued.message | ({_JOB: job} if job else {})
            return row, queued

        row, sent = await self._store.write(work)
        self._sender.hand_over([sent])
        return row

    async def command(
        self, pid: str, name: str, *, by: str, code: str = "", reason: str = "", stopper: str = PROVIDER
    ) -> Transfer:
        """Carry out `start`, `suspend`, `resume`, `complete` or `terminate`.

        When a provider suspends, completes or ends a transfer, its reads stop at once, whatever the counterparty
        answers. While our start is on its way, the message follows after its acknowledgement. The owner may also keep
        a transfer suspended that the consumer or the clock suspended.

        stopper: what resumes a transfer that a provider suspends: a person (PROVIDER) or the party's facts (FACTS).

        Raises:
            Absent: there is no such transfer.
            IllegalStep, WrongState: the command is not possible now.
            Invalid: there is no such command.
        """

        def work(tx: Transaction) -> tuple[Transfer, list[Outbox]]:
            row = tx.transfers.get(pid)
            if row is None:
                raise Absent(f"no transfer {pid!r}; list them with `hanse transfers`")
            tx.publish(self._command_event(row, name, by=by, reason=reason))
            if name == "terminate":
                return row, self._machine.end(tx, row, code=code or "terminated", reason=reason, actor=by)
            if row.role == PROVIDER and stopper == PROVIDER and _note_order(row, name):
                row.updated_at = tx.now
                if name == "suspend":
                    row.code, row.reason = code, reason
                return row, []
            return row, [self._carry_out(tx, row, name, code, reason, stopper)]

        await self._sender.wait_recorded(pid)
        row, sent = await self._store.write(work)
        if row.role == PROVIDER and name in ("suspend", "complete"):
            self._stop(pid, EndReason(f"{name.removesuffix('e')}ed", stopper, reason))
        self._sender.hand_over(sent)
        return row

    def _carry_out(
        self, tx: Transaction, row: Transfer, name: str, code: str = "", reason: str = "", stopper: str = PROVIDER
    ) -> Outbox:
        pids = pids_of(row)
        to = f"/transfers/{segment(row.peer_pid)}" if row.peer_pid else ""
        if name == "start" and row.role == CONSUMER:
            raise WrongState("a transfer is started by its provider; a consumer can resume one that is suspended")
        if name in ("start", "resume"):
            if row.role == PROVIDER and row.state == states.STARTED and row.suspended_by and not row.pending:
                row.suspended_by = ""  # the consumer refused our suspension, so the transfer may continue
            else:
                states.advance(states.TRANSFER, states.Step(row.state, states.START, row.role))
            if row.role == PROVIDER:
                _check_in_force(tx, tx.agreements.of(row.agreement_id, role=PROVIDER))
                return self._send_start(tx, row)
            return self._machine.send(tx, row, TransferStartMessage(**pids), f"{to}/start")
        if name == "suspend":
            why = (reason,) if reason else ()
            sent = self._machine.send(
                tx, row, TransferSuspensionMessage(**pids, code=code, reason=why), f"{to}/suspension"
            )
            row.code, row.reason = code, reason
        elif name == "complete":
            sent = self._machine.send(tx, row, TransferCompletionMessage(**pids), f"{to}/completion")
        else:
            raise Invalid(f"expected start, suspend, resume, complete or terminate, got {name!r}")
        if row.role == PROVIDER:  # from now on tickets are void, and none is issued (`usage.grants.is_started`)
            row.generation += 1
            row.suspended_by = PROVIDER if PROVIDER in (stopper, row.suspended_by) else stopper
        return sent

    async def get_read_address(self, pid: str) -> ReadAddress:
        """The address at which the consumer of a started transfer reads. A ticket near its end is renewed first.

        Raises:
            Absent: there is no such transfer, or it is not started.
            AddressRefused: the owner gives an address that may not be called from here.
            PeerUnreachable: the owner's host name does not resolve.
        """
        row = await self._store.read(lambda tx: tx.transfers.peek(pid))
        address = messages.address_of(row.data_address) if row is not None and row.role == CONSUMER else None
        if row is None or row.state != states.STARTED or address is None:
            state = "unknown" if row is None else row.state.lower() or "on its way"
            raise Absent(f"expected a started transfer with an address, got {pid!r}, which is {state}")
        expires = _expiry_of(address)
        if expires and expires - time.time() < _RENEW_BEFORE:
            address = await self._renew(row, address)
            expires = _expiry_of(address)
        await self._check_address(row.counterparty, address)
        return ReadAddress(address, expires, row.agreement_id)

    async def _check_address(self, owner: str, address: DataAddress) -> None:
        """Refuse an owner's address that we would not call: a training job in our network is about to call it."""
        for url in {address.http, address.endpoint.rstrip("/")} - {""}:
            scheme, _, rest = url.partition("://")
            try:
                await self._peer.check(f"{_AS_HTTP.get(scheme, scheme)}://{rest}")
            except MessageInvalid as error:
                if isinstance(error.__cause__, PeerUnreachable):  # the name may resolve in a moment
                    raise error.__cause__ from None
                raise AddressRefused(f"{owner} gives an address to which readers may not be sent: {error}") from error

    async def _renew(self, row: Transfer, old: DataAddress) -> DataAddress:
        """Get a fresh address from the provider's data plane, and store it."""
        url = f"{old.http}/tickets"
        answer = await self._peer.fetch("POST", url, audience=row.counterparty, message={"transfer": row.peer_pid})
        fresh = messages.read_data_address(answer.document) if isinstance(answer.document, dict) else None
        if fresh is None or not fresh.get("authorization"):
            raise PeerNonsense(f"expected a data address with a ticket from {row.counterparty}, got something else")

        def keep(tx: Transaction) -> None:
            now = tx.transfers.get(row.id)
            if now is not None and now.state == states.STARTED and now.generation == row.generation:
                now.data_address = fresh.to_wire()

        await self._store.write(keep)
        return fresh

    def terminate_under(
        self, tx: Transaction, agreement_id: str, *, role: str, code: str, reason: str, actor: str
    ) -> list[Outbox]:
        """End every transfer under an agreement that has ended."""
        running = (
            row for row in tx.transfers.lock_by_agreement(agreement_id, role=role) if row.state not in states.FINAL
        )
        ends = (self._machine.end(tx, row, code=code, reason=reason, actor=actor) for row in running)
        return [message for sent in ends for message in sent]

    def _event_of(self, row: Transfer, **about: Any) -> Event:
        detail = {"role": row.role, "counterparty": row.counterparty, "state": row.state, "format": row.format}
        if row.state == states.SUSPENDED and row.suspended_by:
            detail["suspended_by"] = row.suspended_by
        address = messages.address_of(row.data_address) if self._formats.get(row.format) == PUSH else None
        if address is not None:
            detail["to"] = origin(address.endpoint)[:255]
        return TransferAdvanced(
            process=row.id,
            agreement=row.agreement_id,
            purpose=row.purpose,
            correlation=row.correlation,
            code=row.code,
            reason=row.reason,
            detail={**detail, "message": about.pop("message"), **about.pop("more", {})},
            **about,
        )

    def _command_event(self, row: Transfer, command: str, *, by: str, reason: str = "") -> Event:
        return DecisionTaken(
            actor=by,
            on_behalf_of=self._us,
            process=row.id,
            agreement=row.agreement_id,
            purpose=row.purpose,
            reason=reason,
            correlation=row.correlation,
            detail={"role": row.role, "counterparty": row.counterparty, "state": row.state, "command": command},
        )


class _PushCourier:
    """Carries the pushes that `TransferService` queued: bytes leave after the start was acknowledged."""

    def __init__(self, transfers: TransferService) -> None:
        self._transfers = transfers

    async def carry(self, row: Outbox) -> DeliveryOutcome:
        """Push everything. REFUSED where the transfer does not run any more, or runs in a later generation."""
        transfer = await self._transfers._store.read(lambda tx: tx.transfers.peek(row.message["transfer"]))
        address = messages.address_of(transfer.data_address) if transfer is not None else None
        if transfer is None or address is None or transfer.generation != row.message["generation"]:
            return DeliveryOutcome(DeliveryResult.REFUSED, "the transfer does not run any more")
        await self._transfers._data_plane.push(transfer, address)
        return DeliveryOutcome(DeliveryResult.DELIVERED)

    def hold(self, tx: Transaction, row: Outbox) -> Transfer | None:
        return tx.transfers.get(row.message["transfer"])

    def put_off(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Transfer | None) -> None:
        """Note on the transfer why its push is sent again, and log each change of that reason.

        The read's own record ended before the consumer's reply, so it does not hold that reason.
        """
        if held is None or held.generation != row.message["generation"]:
            return
        before = held.code, held.reason
        held.code, held.reason, held.updated_at = PUSH_AGAIN, f"{_AGAIN}{outcome.why}"[:2_000], tx.now
        if before != (held.code, held.reason):
            tx.publish(self._transfers._event_of(held, actor=self._transfers._us, message="push", outcome="broken"))

    def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Transfer | None) -> list[Outbox]:
        """Complete a transfer whose push has arrived; otherwise terminate it, so that its consumer learns of that.

        Where the agreement's end cut the push, the termination says so: then the consumer may not use what it has.
        """
        transfer, transfers = held, self._transfers
        if transfer is None or transfer.generation != row.message["generation"]:
            return []
        if outcome.result is DeliveryResult.DELIVERED:
            transfer.code = transfer.reason = ""
            return [transfers._carry_out(tx, transfer, "complete")]
        agreement = tx.agreements.get(transfer.agreement_id, role=PROVIDER)
        if agreement is not None and agreement.ended_at is not None:  # its transfers end in a later transaction
            reason = agreement.end_reason
            return transfers._machine.end(tx, transfer, code=AGREEMENT_REVOKED, reason=reason, actor=transfers._us)
        before = transfer.reason.removeprefix(_AGAIN) if transfer.code == PUSH_AGAIN else ""
        # The last attempt may fail only because the attempts before it have used up the agreement.
        also = f"; the attempt before it: {before}" if before not in ("", outcome.why) else ""
        transfer.code, transfer.reason = PUSH_FAILED, f"push: {outcome.why[:900]}{also}"[:2_000]
        tx.publish(transfers._event_of(transfer, actor=transfers._us, message="push", outcome="failed"))
        full = transfer.reason
        public = "push: its address cannot be called from here" if outcome.private else full
        sent = transfers._machine.end(tx, transfer, code=transfer.code, reason=public, actor=transfers._us)
        transfer.reason = full
        return sent


def _new_row(tx: Transaction, role: str, agreement: Agreement, format: str, purpose: str) -> Transfer:
    """A new transfer. Invalid for a purpose that no read could declare, as its tickets and its push state it."""
    check_harmless(purpose=purpose)
    return Transfer(
        id=new_pid(),
        role=role,
        peer_pid="",
        counterparty=agreement.consumer if role == PROVIDER else agreement.provider,
        address="",
        state=states.NEW,
        pending="",
        agreement_id=agreement.id,
        format=format,
        purpose=purpose,
        data_address={},
        suspended_by="",
        generation=0,
        code="",
        reason="",
        correlation="",
        created_at=tx.now,
        updated_at=tx.now,
    )


def _void_access(tx: Transaction, row: Transfer, before: str) -> None:
    """Make tickets, addresses and queued pushes void once a transfer does not run any more."""
    if row.state in _OVER:
        tx.outbox.drop(_push_process(row.id))
        row.generation += 1
        if row.state == states.COMPLETED:
            row.suspended_by = ""
        if row.role == CONSUMER or row.state in states.FINAL:
            row.data_address = {}


def _on_undelivered(tx: Transaction, row: Transfer, step: str, outcome: DeliveryOutcome) -> None:
    if row.suspended_by in HELD:  # the start that this order waited for does not arrive any more
        row.suspended_by = PROVIDER
    if row.role == CONSUMER and step == states.TRANSFER_REQUEST and outcome.code == AGREEMENT_ENDED:
        _end_agreement(tx, row, reason=outcome.why[:2_000])


def _end_agreement(tx: Transaction, row: Transfer, *, reason: str) -> None:
    """As consumer, note that the provider has ended the agreement itself, and not only a transfer."""
    agreement = tx.agreements.get(row.agreement_id, role=CONSUMER)
    if agreement is not None and agreement.ended_at is None:
        agreement.ended_at, agreement.end_reason = tx.now, reason or "revoked by its provider"
        tx.publish(agreement_event(agreement, actor=row.counterparty))


def _note_order(row: Transfer, name: str) -> bool:
    """Note an owner's command for which no message can be sent now; False where one can."""
    if row.pending == states.START and name in ("suspend", "complete"):
        row.suspended_by = SUSPENDING if name == "suspend" else COMPLETING
    elif row.pending == states.START and name in ("start", "resume") and row.suspended_by in HELD:
        row.suspended_by = ""  # our start is still on its way, and its ticket is valid again
    elif row.state == states.SUSPENDED and not row.pending and name == "suspend" and row.suspended_by != PROVIDER:
        row.suspended_by = PROVIDER  # the consumer or the clock suspended it, and would resume it
    else:
        return False
    return True


def _expiry_of(address: DataAddress) -> float:
    """The end of an address's ticket in UTC seconds, as its provider states it; 0 where it states none."""
    try:
        seconds = float(address.get("expires") or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def agreement_event(agreement: Agreement, *, actor: str) -> Event:
    """The event of an agreement's end; `actor` ended it, on either side."""
    return AgreementRevoked(
        actor=actor,
        dataset=agreement.dataset_id,
        agreement=agreement.id,
        reason=agreement.end_reason,
        detail={
            "role": agreement.role,
            "counterparty": agreement.consumer if agreement.role == PROVIDER else agreement.provider,
        },
    )


def _push_process(pid: str) -> str:
    return f"push:{pid}"


def _check_in_force(tx: Transaction, agreement: Agreement) -> GrantState:
    """The grant of an agreement, locked; Denied where the agreement has ended."""
    # The grant of an ended agreement is not locked, so that the transaction that ends it need not wait.
    grant = tx.agreements.lock_grant(agreement.id) if agreement.ended_at is None else None
    if agreement.ended_at is not None or grant is None or grant.revoked_at is not None:
        reason = agreement.end_reason or (grant.reason if grant else "") or "revoked by its owner"
        raise Denied(f"this agreement has ended: {reason}; negotiate a new one", code=AGREEMENT_ENDED)
    return grant


def _name_job(address: DataAddress, job: str) -> DataAddress:
    """An address of a push that names the job to the provider, as the header `hanse-job` does for a pull."""
    return replace(address, properties=(*address.properties, (JOB_PROPERTY, job))) if job else address


def _only_purpose(agreement: Agreement) -> str:
    """The purpose of the agreement, where it names only one; else empty."""
    return agreement_terms.only_purpose(stored_policies.read_agreement_policy(agreement))


def _check_permitted(tx: Transaction, agreement: Agreement, grant: GrantState, facts: Facts) -> None:
    """Refuse a transfer unless the policy permits it now, with the present party, purpose and time.

    A purpose or an application that is not declared here has to be declared with each request for data.
    """
    today = count_today(grant, day=int(tx.now // _DAY))
    known = with_counters(facts, uses=grant.queries, uses_today=today, running=0)
    known = known.adding(read_fulfilled(tx, agreement, now=tx.now))
    policy, later = stored_policies.read_agreement_policy(agreement), DECLARED - set(facts)
    verdict = agreement_terms.judge(policy, known, phase=Phase.TRANSFER, now=tx.now)
    if not verdict.permitted and not verdict.waits_for(later):
        undeclared = agreement_terms.judge(policy, known.without(PURPOSE), phase=Phase.TRANSFER, now=tx.now)
        uncounted = agreement_terms.judge(policy, known.without(USES), phase=Phase.TRANSFER, now=tx.now)
        code = "count_spent" if uncounted.waits_for({USES, *later}) else "not_permitted"
        raise Denied(
            f"the agreement does not permit this now: {'; '.join(verdict.reasons) or 'no permission is active'}",
            code="purpose_not_agreed" if undeclared.waits_for({PURPOSE, *later}) else code,
            rule=verdict.rule,
        )
