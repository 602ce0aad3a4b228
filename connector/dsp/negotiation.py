"""Contract negotiations as provider and as consumer: messages received, commands carried out, automatic answers.

Every public call commits before it returns. Its result names the messages that may leave now. A route hands them to the
sender after its reply has left, a command hands them over at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from connector import acting
from connector.dsp import agreement_terms, auto_decisions, messages, states
from connector.dsp.jsonld import Json
from connector.dsp.messages import (
    ContractAgreementMessage,
    ContractAgreementVerificationMessage,
    ContractNegotiationEventMessage,
    ContractOfferMessage,
    ContractRequestMessage,
    ProcessMessage,
)
from connector.dsp.process import MessageCourier, MessageResult, ProcessContext, StateMachine, new_pid, pids_of
from connector.dsp.process_limits import ProcessAdmission, ProcessLimits, is_partner
from connector.dsp.protocol_client import segment
from connector.dsp.states import CONSUMER, PROVIDER, Transition
from connector.errors import Absent, Denied, Invalid, MessageInvalid, WrongState
from connector.events import (
    AgreementConcluded,
    DecisionNeeded,
    DecisionTaken,
    Event,
    NegotiationAdvanced,
    RequestRefused,
)
from connector.identity.principal import Principal
from connector.offers import offer_conflicts
from connector.outbox.sender import DeliveryOutcome
from connector.store import Transaction
from connector.store.tables import Agreement, GrantState, Negotiation, Offer, Outbox
from policies.evaluation.evaluate import Facts
from policies.model import Policy
from policies.vocabulary import Phase

# The commands of the management API: the role that may give each, and the message that it sends.
COMMANDS = {
    "offer": (PROVIDER, states.OFFER),
    "agree": (PROVIDER, states.AGREEMENT),
    "finalize": (PROVIDER, states.FINALIZED_EVENT),
    "accept": (CONSUMER, states.ACCEPTED_EVENT),
    "counter": (CONSUMER, states.REQUEST),
    "verify": (CONSUMER, states.VERIFICATION),
}


_APPROVALS = {
    (PROVIDER, states.REQUESTED): "agree",
    (PROVIDER, states.ACCEPTED): "agree",
    (PROVIDER, states.VERIFIED): "finalize",
    (CONSUMER, states.OFFERED): "accept",
    (CONSUMER, states.AGREED): "verify",
}
_NEEDS_FACTS = frozenset({states.REQUEST, states.ACCEPTED_EVENT})
_THEIR_TURN = tuple(
    (role, state)
    for role in (PROVIDER, CONSUMER)
    for state in states.states(states.NEGOTIATION)
    if state not in states.FINAL and not auto_decisions.is_our_turn(auto_decisions.NEGOTIATION, role=role, state=state)
)
NOT_ANSWERED = "not_answered"
WITHDRAWN = "request_withdrawn"  # the consumer ended its own request; neither side refused
_PAGE = 500
_SIGNED_STEP_S = 0.001  # agreements state their signing time in whole milliseconds


class NegotiationService:
    """Both sides of every contract negotiation of this participant."""

    def __init__(self, context: ProcessContext, *, limits: ProcessLimits | None = None) -> None:
        self._store, self._sender, self._peer = context.store, context.sender, context.peer
        self._us, self._base, self._facts_of = context.participant, context.base, context.facts_of
        self._admission = ProcessAdmission("negotiation", limits or ProcessLimits())
        self._machine: StateMachine[Negotiation] = StateMachine(
            context=context,
            kind="negotiation",
            table=states.NEGOTIATION,
            termination=messages.ContractNegotiationTerminationMessage,
            admission=self._admission,
            rows=lambda tx: tx.negotiations,
            event_of=_event_of,
            on_delivered=self._on_delivered,
            on_changed=_shorten_refused_terms,
            on_stuck=lambda tx, row: _ask_person(tx, row, row.reason),
            on_undelivered=_end_refused_agreement,
        )
        self._sender.register("negotiation", MessageCourier(self._machine))

    # First messages.

    async def on_request(self, message: ContractRequestMessage, caller: Principal) -> MessageResult[Negotiation]:
        """Receive a consumer's first request. A repeat (same caller and consumerPid) returns the same process.

        Raises:
            MessageInvalid: the terms cannot be read, or there is no such offer for this caller.
            Denied: the policy cannot be enforced, or does not permit this party.
            Limited: the caller has too many negotiations, or begins too many.
        """
        read = agreement_terms.read_requested_offer(message.offer or {})
        address = await self._machine.check_callback(message.callback_address, caller.id)
        facts = await self._facts_of(caller.id)

        def work(tx: Transaction) -> MessageResult[Negotiation]:
            known = tx.negotiations.find_by_peer(role=PROVIDER, counterparty=caller.id, peer_pid=message.consumer_pid)
            if known is not None:
                return MessageResult(known, fresh=False)
            self._admission.admit_negotiation(tx, caller.id, role=PROVIDER, facts=facts)
            offer, verdict = _visible_offer(tx, read, facts)
            asked = _in_published_words(read, message, offer, consumer=caller.id)
            wire = agreement_terms.received_offer_wire(asked, target=offer.dataset_id, compared_with=offer.policy)
            row = _new_row(tx, PROVIDER, caller.id, address, offer.dataset_id, wire, offer.decide)
            row.peer_pid, row.state, row.offer_id = message.consumer_pid, states.REQUESTED, offer.id
            row.verified = caller.proof()
            self._machine.is_repeat(tx, caller.id, message)
            tx.publish(_event_of(row, actor=caller.id, message=message.step, **caller.evidence()))
            sent = self._answer(tx, row, asked=asked, offer=offer, verdict=verdict)
            tx.negotiations.add(row)
            return MessageResult(row, tuple(sent))

        return await self._machine.write_or_record_refusal(
            work, caller=caller.id, message=message, pid=message.consumer_pid
        )

    async def on_offer(self, message: ContractOfferMessage, caller: Principal) -> MessageResult[Negotiation]:
        """Receive a provider's unsolicited offer. It waits for a person, who accepts, counters or ends it.

        Raises:
            MessageInvalid: the terms cannot be read, or have no target.
            Denied: only members of the data space may make such offers.
            Unavailable: membership is not known at present.
            Limited: the caller has too many negotiations, or begins too many.
        """
        policy = agreement_terms.read_offer(message.offer or {})
        if not policy.target:
            raise MessageInvalid("expected an offer with a target, got none")
        address = await self._machine.check_callback(message.callback_address, caller.id)
        facts = await self._facts_of(caller.id)

        def work(tx: Transaction) -> MessageResult[Negotiation]:
            known = tx.negotiations.find_by_peer(role=CONSUMER, counterparty=caller.id, peer_pid=message.provider_pid)
            if known is not None:
                return MessageResult(known, fresh=False)
            self._admission.admit_negotiation(tx, caller.id, role=CONSUMER, facts=facts)
            wire = agreement_terms.received_offer_wire(policy, target=policy.target, compared_with={})
            row = _new_row(tx, CONSUMER, caller.id, address, policy.target, wire, auto_decisions.AUTO)
            row.peer_pid, row.state, row.offer_id = message.provider_pid, states.OFFERED, policy.id
            row.verified = caller.proof()
            self._machine.is_repeat(tx, caller.id, message)
            tx.negotiations.add(row)
            tx.publish(_event_of(row, actor=caller.id, message=message.step, **caller.evidence()))
            _ask_person(tx, row, "the provider made this offer unasked")
            return MessageResult(row)

        return await self._machine.write_or_record_refusal(
            work, caller=caller.id, message=message, pid=message.provider_pid
        )

    # Later messages.

    async def on_message(self, message: ProcessMessage, caller: Principal, *, pid: str) -> MessageResult[Negotiation]:
        """Receive any later message for the process `pid`. A refused message changes nothing.

        Raises:
            Absent: there is no such process with this caller.
            IllegalStep: the state does not allow this message.
            MessageInvalid: its terms cannot be read, or are not those of this process.
        """
        read = self._read(message)
        facts = await self._facts_of(caller.id) if message.step in _NEEDS_FACTS else Facts()

        def work(tx: Transaction) -> MessageResult[Negotiation]:
            row = tx.negotiations.of(pid, caller.id)
            judged = self._machine.take(tx, row, message)
            if judged is None:
                return MessageResult(row, fresh=False)
            row.verified = caller.proof()
            return MessageResult(row, tuple(self._accept(tx, row, message, read, judged, facts)))

        return await self._machine.write_or_record_refusal(work, caller=caller.id, message=message, pid=pid)

    async def read_status(self, pid: str, caller: Principal) -> messages.ContractNegotiation:
        """The state of a process, for its counterparty. Absent too while the counterparty's pid is not known."""
        return self.view(await self._machine.read_numbered(pid, lambda tx: tx.negotiations.peek_of(pid, caller.id)))

    def view(self, row: Negotiation) -> messages.ContractNegotiation:
        """The protocol's object for a negotiation, with one of the protocol's own states."""
        state = states.published(states.NEGOTIATION, row.state, row.pending, row.role)
        return messages.ContractNegotiation(**pids_of(row), state=state)

    def _read(self, message: ProcessMessage) -> Policy | None:
        """The terms in a message; None where it has none. Runs before any lock is held."""
        if isinstance(message, ContractAgreementMessage):
            return agreement_terms.read_agreement(message.agreement or {})
        if isinstance(message, ContractRequestMessage):
            return agreement_terms.read_requested_offer(message.offer or {})
        if isinstance(message, ContractOfferMessage):
            return agreement_terms.read_offer(message.offer or {})
        return None

    def _accept(
        self,
        tx: Transaction,
        row: Negotiation,
        message: ProcessMessage,
        read: Policy | None,
        judged: Transition,
        facts: Facts,
    ) -> list[Outbox]:
        """Check the content of a legal message, change the state, and answer."""
        earlier = row.offer
        if isinstance(message, ContractRequestMessage | ContractOfferMessage) and read is not None:
            if read.target and read.target != row.dataset_id:
                raise MessageInvalid(f"expected an offer for {row.dataset_id}, got an offer for {read.target}")
            offer = tx.datasets.get_offer(row.offer_id) if isinstance(message, ContractRequestMessage) else None
            if isinstance(message, ContractRequestMessage) and offer is not None:
                read = _in_published_words(read, message, offer, consumer=row.counterparty)
            row.offer = agreement_terms.received_offer_wire(read, target=row.dataset_id, compared_with=row.offer)
        if isinstance(message, ContractAgreementMessage) and read is not None:
            self._keep_received_agreement(tx, row, message, read)
        follow = self._machine.apply(tx, row, message, judged)
        if message.step == states.FINALIZED_EVENT:
            self._conclude(tx, row)
        return [*follow, *self._reply(tx, row, read, earlier, facts)]

    def _keep_received_agreement(
        self, tx: Transaction, row: Negotiation, message: ContractAgreementMessage, read: Policy
    ) -> None:
        """Check an agreement against the agreed terms, and store it."""
        agreed = agreement_terms.read_offer(row.offer)
        agreement_terms.check_agreement(
            read, terms=agreed, target=row.dataset_id, assigner=row.counterparty, assignee=self._us
        )
        if row.counterparty != self._us and tx.agreements.get(read.id, role=PROVIDER) is not None:
            raise MessageInvalid(f"expected an agreement with a new id, got {read.id!r}, the id of another agreement")
        row.agreement_id = read.id  # the table's key refuses an id that is in use
        self._store_agreement(tx, row, read, message.agreement or {})

    def _store_agreement(
        self, tx: Transaction, row: Negotiation, policy: Policy, wire: Json, *, version: str = ""
    ) -> None:
        """Store an agreement that is not final yet. `version`: the version of our dataset that was checked."""
        provider = self._us if row.role == PROVIDER else row.counterparty
        consumer = self._us if row.role == CONSUMER else row.counterparty
        tx.agreements.add(
            Agreement(
                id=policy.id,
                role=row.role,
                negotiation_id=row.id,
                dataset_id=row.dataset_id,
                offer_id=row.offer_id,
                provider=provider,
                consumer=consumer,
                address=row.address,
                policy=wire,
                digest=agreement_terms.digest_of(policy),
                signed_at=agreement_terms.signed_at(policy, now=tx.now),
                version=version,
                ended_at=None,
            )
        )

    # Automatic answers.

    def _answer(
        self, tx: Transaction, row: Negotiation, *, asked: Policy, offer: Offer, verdict: agreement_terms.Verdict
    ) -> list[Outbox]:
        """The provider's next message after a request; none where a person decides."""
        published = agreement_terms.read_published(offer)
        same = agreement_terms.has_same_rules(asked, published, consumer=row.counterparty)
        if not verdict.permitted and not (verdict.lacking and row.decide != auto_decisions.AUTO):
            raise Denied(f"this offer is not for you: {'; '.join(verdict.reasons)}", code="not_permitted")
        anew = _why_again_needs_person(tx, row, published)
        case = auto_decisions.DecisionCase(
            decide=row.decide, same_terms=same, permitted=verdict.permitted, anew=bool(anew)
        )
        move = auto_decisions.next_message(auto_decisions.NEGOTIATION, role=PROVIDER, state=row.state, case=case)
        if move == states.OFFER:
            return [self._send_offer(tx, row, published)]
        if move == states.AGREEMENT:
            return [self._send_agreement(tx, row)]
        lacking = "; ".join(verdict.reasons) if verdict.lacking else ""
        _ask_person(tx, row, anew or ("other terms than published" if not same else lacking))
        return []

    def _reply(
        self, tx: Transaction, row: Negotiation, read: Policy | None, earlier: Json, facts: Facts
    ) -> list[Outbox]:
        """Our next message after a later message of the counterparty; none where a person decides."""
        if not auto_decisions.is_our_turn(auto_decisions.NEGOTIATION, role=row.role, state=row.state):
            return []
        why = ""
        if row.role == PROVIDER and row.state in (states.REQUESTED, states.ACCEPTED):
            offer, verdict = _offer_of(tx, row, facts)
            if row.state == states.REQUESTED and read is not None:
                return self._answer(tx, row, asked=read, offer=offer, verdict=verdict)
            anew = _why_again_needs_person(tx, row, agreement_terms.read_offer(row.offer))
            why = anew or ("; ".join(verdict.reasons) if verdict.lacking else "")
            case = auto_decisions.DecisionCase(decide=row.decide, permitted=verdict.permitted, anew=bool(anew))
        elif row.role == PROVIDER:
            signed = tx.agreements.of(row.agreement_id, role=PROVIDER)
            why = _why_revoked(tx, row, since=signed.signed_at + _SIGNED_STEP_S)
            case = auto_decisions.DecisionCase(decide=row.decide, anew=bool(why))
        else:
            same = read is None or row.state != states.OFFERED or _has_requested_terms(read, earlier, self._us)
            why = "" if same else "other terms than we asked for"
            case = auto_decisions.DecisionCase(decide=row.decide, same_terms=same)
        move = auto_decisions.next_message(auto_decisions.NEGOTIATION, role=row.role, state=row.state, case=case)
        if not move:
            _ask_person(tx, row, why)
            return []
        return [self._send_step(tx, row, move)]

    def _send_step(self, tx: Transaction, row: Negotiation, step: str) -> Outbox:
        """Send the agreement, verification or event message of this name in the state tables."""
        if step == states.AGREEMENT:
            return self._send_agreement(tx, row)
        pids, to = pids_of(row), f"/negotiations/{segment(row.peer_pid)}"
        if step == states.VERIFICATION:
            return self._machine.send(
                tx, row, ContractAgreementVerificationMessage(**pids), f"{to}/agreement/verification"
            )
        event = ContractNegotiationEventMessage(**pids, event_type=step.partition(":")[2])
        return self._machine.send(tx, row, event, f"{to}/events")

    def _send_offer(self, tx: Transaction, row: Negotiation, policy: Policy) -> Outbox:
        row.offer = agreement_terms.offer_wire(policy, target=row.dataset_id, assigner=self._us)
        message = ContractOfferMessage(**pids_of(row), offer=row.offer)
        return self._machine.send(tx, row, message, f"/negotiations/{segment(row.peer_pid)}/offers")

    def _send_agreement(self, tx: Transaction, row: Negotiation) -> Outbox:
        """Sign the terms of the last offer or request, if all of them can be enforced."""
        agreed = agreement_terms.read_offer(row.offer)
        fits = agreement_terms.check_compiles(tx, agreed, dataset_id=row.dataset_id)
        if fits.exact:
            offer_conflicts.check_agreement(tx, agreed, dataset_id=row.dataset_id, consumer=row.counterparty)
        signed = agreement_terms.sign(
            agreed,
            agreement_id=new_pid(),
            target=row.dataset_id,
            assigner=self._us,
            assignee=row.counterparty,
            now=tx.now,
        )
        wire = agreement_terms.agreement_wire(signed)
        message = ContractAgreementMessage(**pids_of(row), agreement=wire)
        sent = self._machine.send(tx, row, message, f"/negotiations/{segment(row.peer_pid)}/agreement")
        refused = tx.agreements.get(row.agreement_id, role=PROVIDER) if row.agreement_id else None
        if refused is not None:
            refused.ended_at, refused.end_reason = tx.now, agreement_terms.REPLACED
        row.agreement_id = signed.id
        self._store_agreement(tx, row, signed, wire, version=fits.version)
        return sent

    def _conclude(self, tx: Transaction, row: Negotiation) -> None:
        """Make the agreement final. At the provider this creates its grant."""
        agreement = tx.agreements.of(row.agreement_id, role=row.role)
        agreement.finalized, agreement.verified = True, row.verified
        if row.role == PROVIDER:
            tx.agreements.add(GrantState(agreement_id=agreement.id, revoked_at=None))
        tx.publish(
            AgreementConcluded(
                actor=self._us,
                dataset=row.dataset_id,
                agreement=agreement.id,
                process=row.id,
                detail={
                    "role": row.role,
                    "counterparty": row.counterparty,
                    "policy": agreement.digest,
                    **({"verified": row.verified} if row.verified else {}),
                },
            )
        )

    def abandon(self, tx: Transaction, agreement: Agreement, *, code: str, reason: str, actor: str) -> list[Outbox]:
        """End the negotiation of an agreement that ends before it is final; otherwise it would still be concluded.

        Where our FINALIZED is on its way, the consumer may have it already. Then it counts, is sent until it arrives,
        and the final agreement ends: otherwise the two sides could keep different last states.
        """
        row = tx.negotiations.get(agreement.negotiation_id)
        if row is None or row.state in states.FINAL:
            return []
        if row.pending == states.FINALIZED_EVENT:
            self._machine.count(tx, row, row.pending)
            return []
        return self._machine.end(tx, row, code=code, reason=reason, actor=actor)

    def confirm_finalized(self, tx: Transaction, agreement: Agreement) -> None:
        """Count our FINALIZED as delivered: a consumer that asks for a transfer has it, acknowledged or not."""
        row = tx.negotiations.get(agreement.negotiation_id)
        if row is not None and row.pending == states.FINALIZED_EVENT:
            tx.outbox.drop(row.id)
            self._machine.count(tx, row, row.pending)

    def _on_delivered(self, tx: Transaction, row: Negotiation, step: str) -> list[Outbox]:
        if step == states.FINALIZED_EVENT:
            self._conclude(tx, row)
        return []

    # Idle negotiations.

    def list_idle(self, tx: Transaction, *, after: str = "") -> Sequence[Negotiation]:
        """A page of negotiations, ordered by id, that have waited for the other side for so long that they may end."""
        before = tx.now - self._admission.shortest_patience
        return tx.negotiations.list_idle(_THEIR_TURN, before=before, after=after, limit=_PAGE)

    async def expire(self, seen: Negotiation) -> None:
        """End an idle negotiation whose counterparty's time is over. The counterparty gets a termination message."""
        facts = await self._facts_of(seen.counterparty)

        def is_over(tx: Transaction) -> bool:
            patience = self._admission.patience(tx, seen.counterparty, role=seen.role, facts=facts)
            return tx.now - seen.updated_at > patience

        def work(tx: Transaction) -> list[Outbox]:
            row = tx.negotiations.get(seen.id)
            if row is None or row.pending or (row.state, row.updated_at) != (seen.state, seen.updated_at):
                return []
            since = datetime.fromtimestamp(row.updated_at, UTC).date()
            why = f"{row.counterparty} has not answered since {since} and its time is over; negotiate anew"
            return self._machine.end(tx, row, code=NOT_ANSWERED, reason=why, actor="clock")

        if await self._store.read(is_over):
            self._sender.hand_over(await self._store.write(work))

    # Commands.

    async def request(
        self,
        *,
        counterparty: str,
        address: str,
        dataset_id: str,
        offer: Json,
        others: Sequence[Json] = (),
        decide: str = auto_decisions.AUTO,
        purpose: str = "",
        by: str,
        correlation: str = "",
    ) -> Negotiation:
        """Ask a provider for an agreement on `offer` (an ODRL offer with its @id); returns the new negotiation.

        With a `purpose`, the request is for the first of `offer` and `others` that allows that purpose.

        Raises:
            Invalid: `decide` is neither auto nor manual.
            MessageInvalid: no offer can be read, or the address cannot be called.
            Denied: no offer allows the purpose.
        """
        candidates = (offer, *(others if purpose else ()))
        offers = agreement_terms.read_offers([{"@type": "Offer", **candidate} for candidate in candidates])
        address = await self._check_new(address, decide)
        asker = _current_person()

        def work(tx: Transaction) -> tuple[Negotiation, Outbox]:
            policy = agreement_terms.first_for(purpose, offers, consumer=self._us, now=tx.now) if purpose else offers[0]
            wire = agreement_terms.offer_wire(policy, target=dataset_id)
            row = _new_row(tx, CONSUMER, counterparty, address, dataset_id, wire, decide)
            row.offer_id, row.purpose, row.correlation = policy.id, purpose, correlation
            row.asked_by = asker
            tx.negotiations.add(row)
            tx.publish(self._command_event(row, "request", by=by))
            message = ContractRequestMessage(consumer_pid=row.id, offer=wire, callback_address=self._base)
            return row, self._machine.send(tx, row, message, "/negotiations/request")

        row, sent = await self._store.write(work)
        self._sender.hand_over([sent])
        return row

    async def propose(self, *, counterparty: str, address: str, offer_id: str, by: str) -> Negotiation:
        """Send a published offer to a consumer that has not asked for it; returns the new negotiation.

        Raises:
            MessageInvalid: the address cannot be called.
            Absent: no such offer is in force.
        """
        address = await self._check_new(address, auto_decisions.AUTO)
        asker = _current_person()

        def work(tx: Transaction) -> tuple[Negotiation, Outbox]:
            offer = tx.datasets.get_offer(offer_id)
            if offer is None or offer.withdrawn_at is not None:
                raise Absent(f"no offer {offer_id!r} is in force; list them with `hanse offer list`")
            wire = agreement_terms.offer_wire(
                agreement_terms.read_published(offer), target=offer.dataset_id, assigner=self._us
            )
            row = _new_row(tx, PROVIDER, counterparty, address, offer.dataset_id, wire, offer.decide)
            row.offer_id, row.asked_by = offer.id, asker
            tx.negotiations.add(row)
            tx.publish(self._command_event(row, "offer", by=by))
            message = ContractOfferMessage(provider_pid=row.id, offer=wire, callback_address=self._base)
            return row, self._machine.send(tx, row, message, "/negotiations/offers")

        row, sent = await self._store.write(work)
        self._sender.hand_over([sent])
        return row

    async def command(
        self, pid: str, name: str, *, by: str, offer: Json | None = None, code: str = "", reason: str = ""
    ) -> Negotiation:
        """Carry out `offer`, `agree`, `finalize`, `accept`, `counter`, `verify`, `approve` or `terminate`.

        `approve` sends the message that the other side waits for. From then on, this negotiation and transfers under
        it continue automatically.

        Raises:
            Absent: there is no such negotiation.
            IllegalStep, WrongState: the command is not possible now.
            Invalid: there is no such command.
            SamePerson: the offer wants four eyes, and the person asked or is not known; this is recorded.
        """
        person = _current_person()

        def work(tx: Transaction) -> tuple[Negotiation, list[Outbox]]:
            row = tx.negotiations.get(pid)
            if row is None:
                raise Absent(f"no negotiation {pid!r}; list them with `hanse negotiations`")
            tx.publish(self._command_event(row, name, by=by, reason=reason))
            if name == "terminate":
                return row, self._machine.end(tx, row, code=code or _termination_code(row), reason=reason, actor=by)
            return row, [self._carry_out(tx, row, name, offer, by_person=person)]

        await self._sender.wait_recorded(pid)
        try:
            row, sent = await self._store.write(work)
        except auto_decisions.SamePerson as error:
            await self._record_same_person(error, pid, name, by=by)
            raise
        self._sender.hand_over(sent)
        return row

    async def _record_same_person(self, error: auto_decisions.SamePerson, pid: str, name: str, *, by: str) -> None:
        refused = RequestRefused(actor=by, outcome="refused", code=error.code, reason=error.message, process=pid)
        await self._store.record_refusal(replace(refused, subject=_current_person(), detail={"command": name}))

    def _carry_out(self, tx: Transaction, row: Negotiation, name: str, offer: Json | None, *, by_person: str) -> Outbox:
        if row.decide == auto_decisions.FOUR_EYES and name in auto_decisions.APPROVALS:
            auto_decisions.check_approver(by_person, self._list_askers(tx, row))
        if name == "approve":
            row.decide = auto_decisions.AUTO
            name = _APPROVALS.get((row.role, row.state), name)
        if name not in COMMANDS:
            raise Invalid(f"expected one of {', '.join(COMMANDS)}, approve, terminate; got {name!r}")
        role, step = COMMANDS[name]
        if role != row.role:
            raise WrongState(f"{name} is for the {role} of a negotiation, and we are its {row.role}")
        if name == "offer":
            row.asked_by = by_person
            return self._send_offer(tx, row, _terms_of(tx, row, offer))
        if name == "counter":
            row.offer = agreement_terms.offer_wire(_terms_of(tx, row, offer), target=row.dataset_id)
            message = ContractRequestMessage(**pids_of(row), offer=row.offer)
            return self._machine.send(tx, row, message, f"/negotiations/{segment(row.peer_pid)}/request")
        return self._send_step(tx, row, step)

    def _list_askers(self, tx: Transaction, row: Negotiation) -> set[str]:
        """Return who asked on our side: here, or as the consumer of our own offer."""
        rows = [row]
        if row.counterparty == self._us and (other := tx.negotiations.peek(row.peer_pid)) is not None:
            rows.append(other)
        return {one.asked_by for one in rows if one.asked_by is not None}

    async def _check_new(self, address: str, decide: str) -> str:
        if decide not in (auto_decisions.AUTO, auto_decisions.MANUAL):
            raise Invalid(f"expected decide to be auto or manual, got {decide!r}")
        return await self._peer.check(address)

    def _command_event(self, row: Negotiation, command: str, *, by: str, reason: str = "") -> Event:
        return DecisionTaken(
            actor=by,
            on_behalf_of=self._us,
            process=row.id,
            dataset=row.dataset_id,
            reason=reason,
            correlation=row.correlation,
            detail={"role": row.role, "counterparty": row.counterparty, "state": row.state, "command": command},
        )


def _current_person() -> str:
    """Return issuer and subject of the current request's caller; empty for a token without a person."""
    current = acting.current()
    return current.subject if current is not None else ""


def _new_row(
    tx: Transaction, role: str, counterparty: str, address: str, dataset_id: str, offer: Json, decide: str
) -> Negotiation:
    return Negotiation(
        id=new_pid(),
        role=role,
        peer_pid="",
        counterparty=counterparty,
        address=address,
        state=states.NEW,
        pending="",
        dataset_id=dataset_id,
        offer_id="",
        offer=offer,
        decide=decide,
        agreement_id="",
        purpose="",
        code="",
        reason="",
        correlation="",
        created_at=tx.now,
        updated_at=tx.now,
    )


def _event_of(row: Negotiation, **about: Any) -> Event:
    message, credentials = about.pop("message"), about.pop("credentials", None)
    detail = {"role": row.role, "counterparty": row.counterparty, "state": row.state, "message": message}
    return NegotiationAdvanced(
        process=row.id,
        dataset=row.dataset_id,
        agreement=row.agreement_id,
        correlation=row.correlation,
        code=row.code,
        reason=row.reason,
        detail=detail if credentials is None else {**detail, "credentials": credentials},
        **about,
    )


def _shorten_refused_terms(tx: Transaction, row: Negotiation, before: str) -> None:
    """Cut long terms of a terminated negotiation where we have no agreement with the counterparty.

    Any party may begin and end negotiations as often as it likes, and ended ones stay stored.
    """
    theirs = row.role == PROVIDER or before == states.OFFERED
    if row.state != states.TERMINATED or row.agreement_id or not theirs:
        return
    if not is_partner(tx, row.counterparty, role=row.role):
        row.offer = agreement_terms.shorten_offer(row.offer)


def _end_refused_agreement(tx: Transaction, row: Negotiation, step: str, outcome: DeliveryOutcome) -> None:
    """End an agreement that its consumer refused, so that it does not count against the consumer's next request.

    The consumer cannot take it any more: the negotiation stays in its state before, where a verification is illegal.
    """
    agreement = tx.agreements.get(row.agreement_id, role=PROVIDER) if step == states.AGREEMENT else None
    if agreement is not None and agreement.ended_at is None:
        agreement.ended_at, agreement.end_reason = tx.now, agreement_terms.REFUSED


def _ask_person(tx: Transaction, row: Negotiation, why: str) -> None:
    """Leave the next step to a person. The row shows the reason until the negotiation continues."""
    row.reason = why
    tx.publish(
        DecisionNeeded(
            actor=row.counterparty,
            process=row.id,
            dataset=row.dataset_id,
            reason=why,
            detail={"role": row.role, "state": row.state, "counterparty": row.counterparty},
        )
    )


def _terms_of(tx: Transaction, row: Negotiation, offer: Json | None) -> Policy:
    """The terms of a command: those of `offer`, else the published ones (provider) or the last ones exchanged."""
    if offer:
        return agreement_terms.read_offer({"@type": "Offer", "@id": row.offer_id or new_pid(), **offer})
    known = tx.datasets.get_offer(row.offer_id) if row.role == PROVIDER else None
    return agreement_terms.read_published(known) if known is not None else agreement_terms.read_offer(row.offer)


def _termination_code(row: Negotiation) -> str:
    """The code for a person's end of a negotiation: we refuse the other side's terms, or withdraw our request."""
    ours = row.role == PROVIDER or auto_decisions.is_our_turn(
        auto_decisions.NEGOTIATION, role=row.role, state=row.state
    )
    return "terminated" if ours else WITHDRAWN


def _visible_offer(tx: Transaction, asked: Policy, facts: Facts) -> tuple[Offer, agreement_terms.Verdict]:
    """The published offer that a request names, with its verdict. An offer hidden from this party looks missing."""
    offer = tx.datasets.get_offer(asked.id)
    if offer is None or offer.withdrawn_at is not None or asked.target not in ("", offer.dataset_id):
        raise _not_offered(asked)
    try:
        policy = agreement_terms.read_published(offer)
    except Denied:
        raise _not_offered(asked) from None
    verdict = agreement_terms.judge(policy, facts, phase=Phase.CATALOGUE, now=tx.now)
    if verdict.permitted:
        return offer, agreement_terms.judge(policy, facts, phase=Phase.NEGOTIATION, now=tx.now)
    # Where only a fact is missing, a person may know it: that does not hide an offer on which a person decides.
    if not verdict.lacking or offer.decide == auto_decisions.AUTO:
        raise _not_offered(asked)
    return offer, verdict


def _in_published_words(read: Policy, message: ContractRequestMessage, offer: Offer, *, consumer: str) -> Policy:
    return agreement_terms.in_published_words(
        read, message.offer or {}, published=agreement_terms.read_published(offer), consumer=consumer
    )


def _not_offered(asked: Policy) -> MessageInvalid:
    return MessageInvalid(f"expected an offer of the catalogue, got {asked.id!r} for {asked.target!r}")


def _offer_of(tx: Transaction, row: Negotiation, facts: Facts) -> tuple[Offer, agreement_terms.Verdict]:
    """The published offer of a negotiation, and its verdict with the facts as they are now."""
    offer = tx.datasets.get_offer(row.offer_id)
    if offer is None or offer.withdrawn_at is not None:
        raise Denied(f"the offer {row.offer_id!r} was withdrawn; read the catalogue again", code="withdrawn")
    return offer, agreement_terms.judge(
        agreement_terms.read_published(offer), facts, phase=Phase.NEGOTIATION, now=tx.now
    )


def _why_again_needs_person(tx: Transaction, row: Negotiation, policy: Policy) -> str:
    """Why a person must decide on another agreement of this party under this offer; empty where none is needed.

    Otherwise revoked access would return at once, and quantities such as a row quota would count from zero again. The
    quantities of an agreement whose time is over do not matter; what was disclosed under a privacy budget does.
    """
    if why := _why_revoked(tx, row):
        return why
    limited, private = agreement_terms.quantities(policy)
    if not limited:
        return ""
    tx.datasets.lock_offer(row.offer_id)  # two negotiations at the same time would not see each other
    if not tx.agreements.has_under_offer(row.offer_id, consumer=row.counterparty, ended=private):
        return ""
    return "this party has an agreement under this offer already, and its quantities would count anew"


def _why_revoked(tx: Transaction, row: Negotiation, *, since: float = 0.0) -> str:
    """A reason where the owner revoked an agreement of this party under this offer after `since`; else empty."""
    if not tx.agreements.has_ended_under_offer(
        row.offer_id, consumer=row.counterparty, lapsed=agreement_terms.LAPSED, since=since
    ):
        return ""
    return "an agreement of this party under this offer was revoked"


def _has_requested_terms(read: Policy, earlier: Json, us: str) -> bool:
    return bool(earlier) and agreement_terms.has_same_rules(read, agreement_terms.read_offer(earlier), consumer=us)
