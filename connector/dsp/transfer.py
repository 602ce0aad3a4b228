"""Transfer processes, as provider and as consumer: take a message in, carry out a command, answer by ourselves.

Bytes are not our business: a `DataPlane` gives addresses, stops what runs, and pushes. A start is stored without its
address; the ticket in it is made when the message leaves, so that none lies in the outbox and none is stale. So is
a request for a push to ourselves.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from connector.datasets import stored_policies
from connector.dsp import agreement_terms, auto_decisions, messages, states
from connector.dsp.jsonld import Json
from connector.dsp.messages import (
    DataAddress,
    Numbered,
    TransferCompletionMessage,
    TransferRequestMessage,
    TransferStartMessage,
    TransferSuspensionMessage,
)
from connector.dsp.negotiation import Negotiations
from connector.dsp.process import Exchange, Parts, Taken, new_pid
from connector.dsp.process_limits import Limits
from connector.dsp.protocol_client import segment
from connector.dsp.states import CONSUMER, PROVIDER, Received
from connector.errors import (
    AddressRefused,
    BadInput,
    Conflict,
    HanseError,
    IllegalStep,
    MessageInvalid,
    NotFound,
    PeerNonsense,
    PeerUnreachable,
    Refused,
    check_harmless,
)
from connector.events import AgreementRevoked, DecisionNeeded, DecisionTaken, Event, TransferAdvanced
from connector.identity.principal import Principal
from connector.infra.net.http_client import fits_header, origin
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
FACTS_ENDED, FACTS = "facts_ended", "facts"  # suspended as long as the party's facts do not permit it
_DAY = 86_400
_RENEW_BEFORE = 60.0  # seconds before its end
_OVER = frozenset({states.SUSPENDED, states.COMPLETED, states.TERMINATED})
_AS_HTTP = MappingProxyType({"grpc": "http", "grpc+tcp": "http", "grpc+tls": "https"})  # Flight's, for the same guard

AGREEMENT_REVOKED = "agreement_revoked"  # the code of the terminations that follow a revocation
AGREEMENT_ENDED = "agreement_ended"  # of the refusals of what is asked under it later
PUSH_AGAIN = "push_again"  # of a transfer whose push broke off, until it has arrived or is given up
_AGAIN = "push, to be sent again: "  # before its reason


class DataPlane(Protocol):
    """What moves the bytes."""

    def address(self, tx: Transaction, transfer: Transfer) -> DataAddress:
        """Where and with which ticket the consumer reads; valid for the transfer's present generation.

        A HanseError where its agreement does not hold any more. Runs in a reading transaction.
        """

    def receives(self, transfer_id: str) -> DataAddress:
        """As consumer: where a provider pushes to us under this transfer. BadInput where we receive nothing."""

    async def stop(self, transfer_id: str, how: EndReason) -> None:
        """End what runs under a transfer, now: that is over."""

    async def push(self, transfer: Transfer, data_address: DataAddress) -> None:
        """Send everything to the consumer's address; back when all of it has arrived."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a consumer needs to read: the address with its ticket, and when that ends (UTC seconds; 0: not said)."""

    address: DataAddress
    expires: float
    agreement_id: str


class Transfers(Exchange[Transfer]):
    """Both sides of every transfer of this participant. `formats` names what is spoken, and who moves."""

    table = states.TRANSFER
    kind = "transfer"
    termination: ClassVar[type[messages.Reasoned]] = messages.TransferTerminationMessage

    def __init__(
        self,
        parts: Parts,
        *,
        negotiations: Negotiations,
        data_plane: DataPlane,
        formats: Mapping[str, str] = FORMATS,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(parts, limits=limits)
        self._negotiations = negotiations
        self._data_plane = data_plane
        self._formats = formats
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logger("transfer")
        self._sender.register(PUSH, _Pusher(self), lasting=True)
        self._store.bus.subscribe(self._heard)

    # Messages.

    async def requested(self, message: TransferRequestMessage, caller: Principal) -> Taken[Transfer]:
        """A consumer's request under an agreement. Its repeat is answered with the same process.

        MessageInvalid where there is no such agreement with this caller, the format is not spoken or an address cannot
        be called; Refused where
        the agreement has ended or does not hold for this party, this purpose or this time any more; Limited where the
        caller has or begins too many.
        """
        pushed = message.data_address if self._formats.get(message.format) == PUSH else None
        sink = pushed.endpoint if pushed is not None else ""
        address = await self._callback(message.callback_address, caller.id, sink=sink)
        facts = with_declared(await self._facts_of(caller.id), purpose=message.purpose)

        def work(tx: Transaction) -> Taken[Transfer]:
            known = tx.transfers.find_by_peer(role=PROVIDER, counterparty=caller.id, peer_pid=message.consumer_pid)
            if known is not None:
                return Taken(known, fresh=False)
            self._admission.admit(tx, caller.id, role=PROVIDER)
            agreement, grant = self._held(tx, message, caller)
            self._check_format(message)
            _check_permitted(tx, agreement, grant, facts)
            row = self._new(tx, PROVIDER, agreement, message.format, message.purpose)
            row.address, row.peer_pid, row.state = address, message.consumer_pid, states.REQUESTED
            if message.data_address and self._formats[message.format] == PUSH:
                row.data_address = message.data_address.to_wire()
            self._repeated(tx, caller.id, message)
            tx.publish(self._advanced(row, actor=caller.id, message=message.step))
            sent = self._answer(tx, row, agreement)
            tx.transfers.add(row)
            return Taken(row, tuple(sent))

        return await self._refusals_recorded(work, caller=caller.id, message=message, pid=message.consumer_pid)

    async def received(self, message: Numbered, caller: Principal, *, pid: str) -> Taken[Transfer]:
        """Any later message for the process `pid`. NotFound for unknown and foreign ones alike; IllegalStep and
        MessageInvalid change nothing."""
        resumes = isinstance(message, TransferStartMessage)
        facts = await self._facts_of(caller.id) if resumes else Facts()

        def work(tx: Transaction) -> Taken[Transfer]:
            row = tx.transfers.of(pid, caller.id)
            judged = self._take(tx, row, message)
            if judged is None:
                return Taken(row, fresh=False)
            return Taken(row, tuple(self._accept(tx, row, message, judged, facts)))

        return await self._refusals_recorded(work, caller=caller.id, message=message, pid=pid)

    async def status(self, pid: str, caller: Principal) -> messages.TransferProcess:
        """The state, for the counterparty. NotFound also where its own pid is not known here yet."""
        return self.view(await self._told(pid, lambda tx: tx.transfers.peek_of(pid, caller.id)))

    def view(self, row: Transfer) -> messages.TransferProcess:
        """The process object that tells a transfer's state."""
        state = states.published(self.table, row.state, row.pending, row.role)
        return messages.TransferProcess(**self._pids(row), state=state)

    def _take(self, tx: Transaction, row: Transfer, message: Numbered) -> Received | None:
        try:
            return super()._take(tx, row, message)
        except IllegalStep:
            # DSP 2025-1 leaves this open: after a consumer's resume the provider's own start brings the address.
            awaited = row.role == CONSUMER and row.state == states.STARTED and not row.data_address
            if awaited and isinstance(message, TransferStartMessage) and message.data_address:
                return Received(row.state, row.state, row.pending)
            raise

    def _accept(
        self, tx: Transaction, row: Transfer, message: Numbered, judged: Received, facts: Facts
    ) -> list[Outbox]:
        """Check what a legal message asks, change the state, and answer."""
        if isinstance(message, TransferStartMessage) and row.role == PROVIDER:
            return self._resumed(tx, row, message, judged, facts)
        follow = self._apply(tx, row, message, judged)
        if isinstance(message, TransferStartMessage):
            row.data_address = message.data_address.to_wire() if message.data_address else {}
            row.suspended_by = ""
        elif isinstance(message, TransferSuspensionMessage):
            # Ours may have been on its way, or refused: who ordered it first is who resumes it.
            row.suspended_by = PROVIDER if row.suspended_by in HELD else row.suspended_by or states.other(row.role)
        elif row.role == CONSUMER and row.state == states.TERMINATED and row.code == AGREEMENT_REVOKED:
            self._agreement_ended(tx, row, reason=row.reason)
        self._close(tx, row)
        return follow

    def _agreement_ended(self, tx: Transaction, row: Transfer, *, reason: str) -> None:
        """Our provider says that the agreement itself has ended, not only this transfer: there is nothing to hold on
        to any more."""
        agreement = tx.agreements.get(row.agreement_id, role=CONSUMER)
        if agreement is not None and agreement.ended_at is None:
            agreement.ended_at, agreement.end_reason = tx.now, reason or "revoked by its provider"
            tx.publish(revoked(agreement, actor=row.counterparty))

    def _resumed(
        self, tx: Transaction, row: Transfer, message: Numbered, judged: Received, facts: Facts
    ) -> list[Outbox]:
        """The consumer resumes: allowed where it was not the owner who suspended, and everything still holds."""
        stopped = row.suspended_by in {PROVIDER, *HELD}
        if stopped or row.pending == states.SUSPENSION:  # ours has arrived, or it could not resume
            raise Refused("the provider suspended this transfer, so only the provider resumes it", code="suspended")
        agreement = tx.agreements.of(row.agreement_id, role=PROVIDER)
        _check_permitted(tx, agreement, _check_holds(tx, agreement), with_declared(facts, purpose=row.purpose))
        follow = self._apply(tx, row, message, judged)
        row.suspended_by = ""
        if row.pending == states.START:
            return follow
        return [*follow, self._start(tx, row)]

    def _held(
        self, tx: Transaction, message: TransferRequestMessage, caller: Principal
    ) -> tuple[Agreement, GrantState]:
        """The agreement that a request names and its grant, if it is between exactly us two and in force."""
        agreement = tx.agreements.get(message.agreement_id, role=PROVIDER)
        if agreement is None or agreement.consumer != caller.id:
            raise MessageInvalid(
                f"expected an agreement between us, came {message.agreement_id!r}", code="no_agreement"
            )
        if not agreement.finalized:
            self._negotiations.finalized_at_consumer(tx, agreement)
            agreement = tx.agreements.refresh(agreement)  # its acknowledgement may have been taken in while we waited
        if not agreement.finalized and agreement.ended_at is None:
            raise MessageInvalid("this agreement is not final yet; finish its negotiation", code="not_final")
        return agreement, _check_holds(tx, agreement)

    def _check_format(self, message: TransferRequestMessage) -> None:
        direction = self._formats.get(message.format)
        if direction is None:
            raise MessageInvalid(f"expected format {' or '.join(self._formats)}, came {message.format[:100]!r}")
        if direction != PUSH:
            return
        if message.data_address is None or not message.data_address.endpoint:
            raise MessageInvalid(
                f"expected a dataAddress with an endpoint to send to with format {message.format}, came none"
            )
        if not fits_header(message.data_address.get("authorization")):
            raise MessageInvalid("expected an authorization of printable ASCII, which a header can carry, came another")

    # What follows.

    def _answer(self, tx: Transaction, row: Transfer, agreement: Agreement) -> list[Outbox]:
        negotiation = tx.negotiations.peek(agreement.negotiation_id)
        case = auto_decisions.Case(decide=negotiation.decide if negotiation is not None else auto_decisions.MANUAL)
        if auto_decisions.next_message(auto_decisions.TRANSFER, role=PROVIDER, state=row.state, case=case):
            return [self._start(tx, row)]
        detail = {"role": row.role, "state": row.state, "counterparty": row.counterparty, "format": row.format}
        tx.publish(DecisionNeeded(actor=row.counterparty, process=row.id, agreement=row.agreement_id, detail=detail))
        return []

    def _start(self, tx: Transaction, row: Transfer) -> Outbox:
        """Our start as provider. In STARTED (after the consumer's resume) it only brings the address."""
        row.generation += 1
        message = TransferStartMessage(**self._pids(row))
        path = f"/transfers/{segment(row.peer_pid)}/start"
        if row.state == states.STARTED:
            return self._put(tx, row, message, path)
        return self._send(tx, row, message, path)

    def _close(self, tx: Transaction, row: Transfer) -> None:
        """What was handed out for a transfer is void once it does not run any more."""
        if row.state in _OVER:
            tx.outbox.drop(_push_process(row.id))
            row.generation += 1
            if row.state == states.COMPLETED:
                row.suspended_by = ""
            if row.role == CONSUMER or row.state in states.FINAL:
                row.data_address = {}

    def _end(self, tx: Transaction, row: Transfer, *, code: str, reason: str, actor: str) -> list[Outbox]:
        sent = super()._end(tx, row, code=code, reason=reason, actor=actor)
        self._close(tx, row)
        return sent

    def _why(self, row: Transfer, step: str) -> tuple[str, str]:
        stands = step == states.SUSPENSION  # it is suspended for that
        return (row.code, row.reason) if stands else super()._why(row, step)

    def _said(self, tx: Transaction, row: Transfer, step: str) -> list[Outbox]:
        if step == states.SUSPENSION:
            row.suspended_by = row.suspended_by or row.role
        if step == states.START:
            if row.suspended_by in HELD:  # its owner ordered that meanwhile
                return [self._carry_out(tx, row, "suspend" if row.suspended_by == SUSPENDING else "complete")]
            row.suspended_by = ""
        self._close(tx, row)
        if step == states.START and row.role == PROVIDER and self._formats.get(row.format) == PUSH:
            return [self._queue_push(tx, row)]
        return []

    def _not_said(self, tx: Transaction, row: Transfer, step: str, outcome: DeliveryOutcome) -> None:
        super()._not_said(tx, row, step, outcome)
        if row.suspended_by in HELD:  # there is nothing to wait for any more
            row.suspended_by = PROVIDER
        if row.state in states.FINAL:
            row.data_address = {}
        if row.role == CONSUMER and step == states.TRANSFER_REQUEST and outcome.code == AGREEMENT_ENDED:
            self._agreement_ended(tx, row, reason=outcome.why[:2_000])  # no transfer was there to be told by

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

    async def _finished(self, row: Outbox) -> Json | None:
        """A provider's start of a pull transfer gets its address now, a consumer's request for a push to itself too."""
        if row.message["@type"] == states.TRANSFER_REQUEST and self._comes_here(row.message):
            return {**row.message, "dataAddress": self._data_plane.receives(row.process).to_wire()}
        if row.message["@type"] != states.START:
            return row.message
        return await self._store.read(lambda tx: self._started(tx, row))

    def _comes_here(self, request: Json) -> bool:
        return self._formats.get(request["format"]) == PUSH and "dataAddress" not in request

    def _started(self, tx: Transaction, row: Outbox) -> Json | None:
        transfer = tx.transfers.peek(row.process)
        if transfer is None or transfer.pending != states.START:
            return None
        if transfer.role == CONSUMER or self._formats.get(transfer.format) == PUSH:
            return row.message
        return {**row.message, "dataAddress": self._data_plane.address(tx, transfer).to_wire()}

    def _heard(self, event: Event) -> None:
        """Stop the bytes of a transfer that does not run any more, whoever ended it."""
        if not isinstance(event, TransferAdvanced) or event.detail.get("role") != PROVIDER:
            return
        if event.detail.get("state") in _OVER:
            self._stop(event.process, event_to_end_reason(event))

    def _stop(self, pid: str, how: EndReason) -> None:
        task = asyncio.get_running_loop().create_task(self._stopped(pid, how))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stopped(self, pid: str, how: EndReason) -> None:
        try:
            await self._data_plane.stop(pid, how)
        except HanseError as error:
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
        """Ask the provider of an agreement for a transfer. A push without a `data_address` comes to us.

        `counterparty`: refused unless it is the provider. `address`: where its connector has moved since.
        """
        if address:
            address = await self._peer.check(address)
        if data_address is not None:
            messages.checked(data_address)

        def work(tx: Transaction) -> tuple[Transfer, Outbox]:
            agreement = tx.agreements.of(agreement_id, role=CONSUMER)
            if not agreement.finalized or agreement.ended_at is not None:
                raise Conflict(f"this agreement is not in force: {agreement.end_reason or 'it is not final yet'}")
            if counterparty not in ("", agreement.provider):
                raise BadInput(f"this agreement is with {agreement.provider}, not with {counterparty}")
            row = self._new(tx, CONSUMER, agreement, format, purpose)
            row.address, row.correlation = address or agreement.address, correlation
            tx.transfers.add(row)
            tx.publish(self._ordered(row, "request", by=by))
            message = TransferRequestMessage(
                consumer_pid=row.id,
                agreement_id=agreement_id,
                format=format,
                data_address=data_address,
                callback_address=self._base,
                purpose=purpose,
            )
            if self._comes_here(message.to_wire()):
                self._data_plane.receives(row.id)  # or it is refused here and now
            return row, self._send(tx, row, message, "/transfers/request")

        row, sent = await self._store.write(work)
        self._leave([sent])
        return row

    async def command(
        self, pid: str, name: str, *, by: str, code: str = "", reason: str = "", stopper: str = PROVIDER
    ) -> Transfer:
        """Carry out `start`, `suspend`, `resume`, `complete` or `terminate`; IllegalStep where it is not possible.

        What a provider suspends, completes or ends stops at once, before the counterparty has the message, and
        whatever it says to it. Where our start is on its way, that message follows once it is acknowledged; what is
        suspended already the owner may keep so. `stopper`: who resumes what a provider suspends, the owner (PROVIDER)
        or time (FACTS).
        """

        def work(tx: Transaction) -> tuple[Transfer, list[Outbox]]:
            row = tx.transfers.get(pid)
            if row is None:
                raise NotFound(f"no transfer {pid!r}; list them with `hanse transfers`")
            tx.publish(self._ordered(row, name, by=by, reason=reason))
            if name == "terminate":
                return row, self._end(tx, row, code=code or "terminated", reason=reason, actor=by)
            if row.role == PROVIDER and stopper == PROVIDER and _held(row, name):
                row.updated_at = tx.now
                if name == "suspend":
                    row.code, row.reason = code, reason
                return row, []
            return row, [self._carry_out(tx, row, name, code, reason, stopper)]

        await self._sender.acknowledgements.record_now(pid)
        row, sent = await self._store.write(work)
        if row.role == PROVIDER and name in ("suspend", "complete"):
            self._stop(pid, EndReason(f"{name.removesuffix('e')}ed", stopper, reason))
        self._leave(sent)
        return row

    def _carry_out(
        self, tx: Transaction, row: Transfer, name: str, code: str = "", reason: str = "", stopper: str = PROVIDER
    ) -> Outbox:
        pids = self._pids(row)
        to = f"/transfers/{segment(row.peer_pid)}" if row.peer_pid else ""
        if name == "start" and row.role == CONSUMER:
            raise Conflict("a transfer is started by its provider; a consumer can resume one that is suspended")
        if name in ("start", "resume"):
            if row.role == PROVIDER and row.state == states.STARTED and row.suspended_by and not row.pending:
                row.suspended_by = ""  # its consumer refused to rest: it may go on, whatever it says to a new address
            else:
                states.advance(self.table, states.Step(row.state, states.START, row.role))
            if row.role == PROVIDER:
                _check_holds(tx, tx.agreements.of(row.agreement_id, role=PROVIDER))
                return self._start(tx, row)
            return self._send(tx, row, TransferStartMessage(**pids), f"{to}/start")
        if name == "suspend":
            why = (reason,) if reason else ()
            sent = self._send(tx, row, TransferSuspensionMessage(**pids, code=code, reason=why), f"{to}/suspension")
            row.code, row.reason = code, reason
        elif name == "complete":
            sent = self._send(tx, row, TransferCompletionMessage(**pids), f"{to}/completion")
        else:
            raise BadInput(f"expected start, suspend, resume, complete or terminate, came {name!r}")
        if row.role == PROVIDER:  # from here on no ticket is good, and none is had (`usage.grants.is_started`)
            row.generation += 1
            row.suspended_by = PROVIDER if PROVIDER in (stopper, row.suspended_by) else stopper
        return sent

    async def reading(self, pid: str) -> Reading:
        """Where the consumer of a started transfer reads; the ticket is renewed at the provider when it is near its
        end. NotFound for a transfer that is not there or not started, AddressRefused where nobody may be sent to,
        PeerUnreachable where the owner's name does not resolve."""
        row = await self._store.read(lambda tx: tx.transfers.peek(pid))
        address = messages.address_of(row.data_address) if row is not None and row.role == CONSUMER else None
        if row is None or row.state != states.STARTED or address is None:
            state = "unknown" if row is None else row.state.lower() or "on its way"
            raise NotFound(f"the transfer {pid!r} is {state}, or has no address; expected one that is started")
        expires = _ends(address)
        if expires and expires - time.time() < _RENEW_BEFORE:
            address = await self._renewed(row, address)
            expires = _ends(address)
        await self._check_address(row.counterparty, address)
        return Reading(address, expires, row.agreement_id)

    async def _check_address(self, owner: str, address: DataAddress) -> None:
        """A training job stands within our network and asks where its owner says: nowhere that we would not ask."""
        for url in {address.http, address.endpoint.rstrip("/")} - {""}:
            scheme, _, rest = url.partition("://")
            try:
                await self._peer.check(f"{_AS_HTTP.get(scheme, scheme)}://{rest}")
            except MessageInvalid as error:
                if isinstance(error.__cause__, PeerUnreachable):  # a name that does not resolve may in a moment
                    raise error.__cause__ from None
                raise AddressRefused(f"{owner} sends readers where they are not sent from here: {error}") from error

    async def _renewed(self, row: Transfer, old: DataAddress) -> DataAddress:
        """A fresh address from the provider's data plane, kept for the next who asks."""
        url = f"{old.http}/tickets"
        answer = await self._peer.fetch("POST", url, audience=row.counterparty, message={"transfer": row.peer_pid})
        fresh = messages.given(answer.document) if isinstance(answer.document, dict) else None
        if fresh is None or not fresh.get("authorization"):
            raise PeerNonsense(f"expected a data address with a ticket from {row.counterparty}, came something else")

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
        return [one for row in running for one in self._end(tx, row, code=code, reason=reason, actor=actor)]

    # For the machinery.

    def _new(self, tx: Transaction, role: str, agreement: Agreement, format: str, purpose: str) -> Transfer:
        """BadInput for a purpose that no read could declare: its tickets, or its push, would be under it."""
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

    def _get(self, tx: Transaction, pid: str) -> Transfer | None:
        return tx.transfers.get(pid)

    def _peek(self, tx: Transaction, pid: str) -> Transfer | None:
        return tx.transfers.peek(pid)

    def _of_peer(self, tx: Transaction, row: Transfer, peer_pid: str) -> Transfer | None:
        return tx.transfers.find_by_peer(role=row.role, counterparty=row.counterparty, peer_pid=peer_pid)

    def _advanced(self, row: Transfer, **about: Any) -> Event:
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
            detail={**detail, "message": about.pop("message")},
            **about,
        )

    def _ordered(self, row: Transfer, command: str, *, by: str, reason: str = "") -> Event:
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


class _Pusher:
    """Carries the pushes that `Transfers` queued: bytes go out after the start was acknowledged."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers

    async def carry(self, row: Outbox) -> DeliveryOutcome:
        """Push everything. REFUSED where the transfer does not run any more, or not in this generation."""
        transfer = await self._transfers._store.read(lambda tx: tx.transfers.peek(row.message["transfer"]))
        address = messages.address_of(transfer.data_address) if transfer is not None else None
        if transfer is None or address is None or transfer.generation != row.message["generation"]:
            return DeliveryOutcome(DeliveryResult.REFUSED, "the transfer does not run any more")
        await self._transfers._data_plane.push(transfer, address)
        return DeliveryOutcome(DeliveryResult.DELIVERED)

    def hold(self, tx: Transaction, row: Outbox) -> Transfer | None:
        return tx.transfers.get(row.message["transfer"])

    def put_off(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Transfer | None) -> None:
        """It is sent again: until then the transfer says why, and the log once for each reason in turn. The record of
        its read ended before its consumer said what it thinks of it."""
        if held is None or held.generation != row.message["generation"]:
            return
        before = held.code, held.reason
        held.code, held.reason, held.updated_at = PUSH_AGAIN, f"{_AGAIN}{outcome.why}"[:2_000], tx.now
        if before != (held.code, held.reason):
            tx.publish(self._transfers._advanced(held, actor=self._transfers._us, message="push", outcome="broken"))

    def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Transfer | None) -> list[Outbox]:
        """All has arrived: complete. Otherwise nothing will come any more: terminate, so that its consumer is told, and
        of its agreement's end where that has cut it: what it has then is taken back."""
        transfer, transfers = held, self._transfers
        if transfer is None or transfer.generation != row.message["generation"]:
            return []
        if outcome.result is DeliveryResult.DELIVERED:
            transfer.code = transfer.reason = ""
            return [transfers._carry_out(tx, transfer, "complete")]
        agreement = tx.agreements.get(transfer.agreement_id, role=PROVIDER)
        if agreement is not None and agreement.ended_at is not None:  # its transfers end in a later transaction
            reason = agreement.end_reason
            return transfers._end(tx, transfer, code=AGREEMENT_REVOKED, reason=reason, actor=transfers._us)
        before = transfer.reason.removeprefix(_AGAIN) if transfer.code == PUSH_AGAIN else ""
        # The last attempt may have found nothing but that those before it have used up the agreement.
        also = f"; the attempt before it: {before}" if before not in ("", outcome.why) else ""
        transfer.code, transfer.reason = PUSH_FAILED, f"push: {outcome.why[:900]}{also}"[:2_000]
        tx.publish(transfers._advanced(transfer, actor=transfers._us, message="push", outcome="failed"))
        full = transfer.reason
        told = "push: its address cannot be called from here" if outcome.private else full
        sent = transfers._end(tx, transfer, code=transfer.code, reason=told, actor=transfers._us)
        transfer.reason = full
        return sent


def _held(row: Transfer, name: str) -> bool:
    """Note an order of a transfer's owner that no message can follow now; whether it was one."""
    if row.pending == states.START and name in ("suspend", "complete"):
        row.suspended_by = SUSPENDING if name == "suspend" else COMPLETING
    elif row.pending == states.START and name in ("start", "resume") and row.suspended_by in HELD:
        row.suspended_by = ""  # our start is still on its way, and its ticket is good again
    elif row.state == states.SUSPENDED and not row.pending and name == "suspend" and row.suspended_by != PROVIDER:
        row.suspended_by = PROVIDER  # its consumer or the clock did, and would resume it
    else:
        return False
    return True


def _ends(address: DataAddress) -> float:
    """When a ticket ends, as its provider says beside it; 0 where it does not."""
    try:
        told = float(address.get("expires") or 0)
    except ValueError:
        return 0.0
    return told if math.isfinite(told) else 0.0


def revoked(agreement: Agreement, *, actor: str) -> Event:
    """That an agreement has ended, for its reason: `actor` wanted it, of whichever side."""
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


def _check_holds(tx: Transaction, agreement: Agreement) -> GrantState:
    # Of what has ended nobody locks the grant any more, so whoever ends it comes to it.
    grant = tx.agreements.lock_grant(agreement.id) if agreement.ended_at is None else None
    if agreement.ended_at is not None or grant is None or grant.revoked_at is not None:
        reason = agreement.end_reason or (grant.reason if grant else "") or "revoked by its owner"
        raise Refused(f"this agreement has ended: {reason}; negotiate a new one", code=AGREEMENT_ENDED)
    return grant


def _check_permitted(tx: Transaction, agreement: Agreement, grant: GrantState, facts: Facts) -> None:
    """Evaluate party, purpose and time again: an agreement is not a promise for ever (usage-policies, section 5).

    A purpose or an application that is not declared here has to be declared with each request for data.
    """
    today = count_today(grant, day=int(tx.now // _DAY))
    known = with_counters(facts, uses=grant.queries, uses_today=today, running=0)
    known = known.adding(read_fulfilled(tx, agreement, now=tx.now))
    policy, later = stored_policies.agreed(agreement), DECLARED - set(facts)
    verdict = agreement_terms.judge(policy, known, phase=Phase.TRANSFER, now=tx.now)
    if not verdict.permitted and not verdict.waits_for(later):
        undeclared = agreement_terms.judge(policy, known.without(PURPOSE), phase=Phase.TRANSFER, now=tx.now)
        uncounted = agreement_terms.judge(policy, known.without(USES), phase=Phase.TRANSFER, now=tx.now)
        code = "count_spent" if uncounted.waits_for({USES, *later}) else "not_permitted"
        raise Refused(
            f"the agreement does not permit this now: {'; '.join(verdict.reasons) or 'no permission is active'}",
            code="purpose_not_agreed" if undeclared.waits_for({PURPOSE, *later}) else code,
            rule=verdict.rule,
        )
