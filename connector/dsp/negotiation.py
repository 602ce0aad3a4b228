"""Contract negotiations, as provider and as consumer: take a message in, carry out a command, answer by ourselves.

Every public call commits before it returns. What it returns names the messages that may leave now: a route hands them
over once its reply has left, a command at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from connector.dsp import agreement_terms, auto_decisions, messages, states
from connector.dsp.jsonld import Json
from connector.dsp.messages import (
    ContractAgreementMessage,
    ContractAgreementVerificationMessage,
    ContractNegotiationEventMessage,
    ContractOfferMessage,
    ContractRequestMessage,
    Message,
    Numbered,
)
from connector.dsp.process import Exchange, Taken, new_pid
from connector.dsp.process_limits import partner
from connector.dsp.protocol_client import segment
from connector.dsp.states import CONSUMER, PROVIDER, Received
from connector.errors import BadInput, Conflict, MessageInvalid, NotFound, Refused
from connector.events import AgreementConcluded, DecisionNeeded, DecisionTaken, Event, NegotiationAdvanced
from connector.identity.principal import Principal
from connector.offers import offer_conflicts
from connector.outbox.sender import DeliveryOutcome
from connector.store import Transaction
from connector.store.tables import Agreement, GrantState, Negotiation, Offer, Outbox
from policies.evaluation.evaluate import Facts
from policies.model import Policy
from policies.vocabulary import Phase

# Which message a command sends, and who may: the management API's words for the protocol's messages.
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
    if state not in states.FINAL and not auto_decisions.our_turn(auto_decisions.NEGOTIATION, role=role, state=state)
)
NOT_ANSWERED = "not_answered"
WITHDRAWN = "request_withdrawn"  # its consumer's own end of what it asked for: nobody's no
_PAGE = 500
_WRITTEN = 0.001  # seconds: agreements say when they were signed in whole milliseconds


class Negotiations(Exchange[Negotiation]):
    """Both sides of every contract negotiation of this participant."""

    table = states.NEGOTIATION
    kind = "negotiation"
    termination: ClassVar[type[messages.Reasoned]] = messages.ContractNegotiationTerminationMessage

    # First messages.

    async def requested(self, message: ContractRequestMessage, caller: Principal) -> Taken[Negotiation]:
        """A consumer's first request. Its repeat (same caller, same consumerPid) is answered with the same process.

        MessageInvalid for terms that cannot be read, and for an offer that is not there or not for this caller;
        Refused where the policy could not be enforced; Limited where the caller has or begins too many.
        """
        read = agreement_terms.read_asked(message.offer or {})
        address = await self._callback(message.callback_address, caller.id)
        facts = await self._facts_of(caller.id)

        def work(tx: Transaction) -> Taken[Negotiation]:
            known = tx.negotiations.find_by_peer(role=PROVIDER, counterparty=caller.id, peer_pid=message.consumer_pid)
            if known is not None:
                return Taken(known, fresh=False)
            self._admission.admit_negotiation(tx, caller.id, role=PROVIDER, facts=facts)
            offer, verdict = _visible(tx, read, facts)
            asked = _in_published_words(read, message, offer, consumer=caller.id)
            wire = agreement_terms.taken_wire(asked, target=offer.dataset_id, beside=offer.policy)
            row = self._new(tx, PROVIDER, caller.id, address, offer.dataset_id, wire, offer.decide)
            row.peer_pid, row.state, row.offer_id = message.consumer_pid, states.REQUESTED, offer.id
            self._repeated(tx, caller.id, message)
            tx.publish(self._advanced(row, actor=caller.id, message=message.step))
            sent = self._answer(tx, row, asked=asked, offer=offer, verdict=verdict)
            tx.negotiations.add(row)
            return Taken(row, tuple(sent))

        return await self._refusals_recorded(work, caller=caller.id, message=message, pid=message.consumer_pid)

    async def offered(self, message: ContractOfferMessage, caller: Principal) -> Taken[Negotiation]:
        """A provider's unasked offer. It waits for a person, who accepts, counters or ends it.

        Refused or Busy where only members make such offers; Limited where too many wait.
        """
        policy = agreement_terms.read_offer(message.offer or {})
        if not policy.target:
            raise MessageInvalid("expected the offer to have a target, came none")
        address = await self._callback(message.callback_address, caller.id)
        facts = await self._facts_of(caller.id)

        def work(tx: Transaction) -> Taken[Negotiation]:
            known = tx.negotiations.find_by_peer(role=CONSUMER, counterparty=caller.id, peer_pid=message.provider_pid)
            if known is not None:
                return Taken(known, fresh=False)
            self._admission.admit_negotiation(tx, caller.id, role=CONSUMER, facts=facts)
            wire = agreement_terms.taken_wire(policy, target=policy.target, beside={})
            row = self._new(tx, CONSUMER, caller.id, address, policy.target, wire, auto_decisions.AUTO)
            row.peer_pid, row.state, row.offer_id = message.provider_pid, states.OFFERED, policy.id
            self._repeated(tx, caller.id, message)
            tx.negotiations.add(row)
            tx.publish(self._advanced(row, actor=caller.id, message=message.step))
            self._ask_person(tx, row, "the provider made this offer unasked")
            return Taken(row)

        return await self._refusals_recorded(work, caller=caller.id, message=message, pid=message.provider_pid)

    # Later messages.

    async def received(self, message: Numbered, caller: Principal, *, pid: str) -> Taken[Negotiation]:
        """Any later message for the process `pid`. NotFound for unknown and foreign ones alike; IllegalStep and
        MessageInvalid change nothing."""
        read = self._read(message)
        facts = await self._facts_of(caller.id) if message.step in _NEEDS_FACTS else Facts()

        def work(tx: Transaction) -> Taken[Negotiation]:
            row = tx.negotiations.of(pid, caller.id)
            judged = self._take(tx, row, message)
            if judged is None:
                return Taken(row, fresh=False)
            return Taken(row, tuple(self._accept(tx, row, message, read, judged, facts)))

        return await self._refusals_recorded(work, caller=caller.id, message=message, pid=pid)

    async def status(self, pid: str, caller: Principal) -> messages.ContractNegotiation:
        """The state, for the counterparty. NotFound also where its own pid is not known here yet."""
        return self.view(await self._told(pid, lambda tx: tx.negotiations.peek_of(pid, caller.id)))

    def view(self, row: Negotiation) -> messages.ContractNegotiation:
        """The process object that tells a negotiation's state. Only the protocol's own states are told."""
        state = states.published(self.table, row.state, row.pending, row.role)
        return messages.ContractNegotiation(**self._pids(row), state=state)

    def _read(self, message: Numbered) -> Policy | None:
        """The terms in a message, read before any lock is held."""
        if isinstance(message, ContractAgreementMessage):
            return agreement_terms.read_agreement(message.agreement or {})
        if isinstance(message, ContractRequestMessage):
            return agreement_terms.read_asked(message.offer or {})
        if isinstance(message, ContractOfferMessage):
            return agreement_terms.read_offer(message.offer or {})
        return None

    def _accept(
        self,
        tx: Transaction,
        row: Negotiation,
        message: Numbered,
        read: Policy | None,
        judged: Received,
        facts: Facts,
    ) -> list[Outbox]:
        """Check what a legal message says, change the state, and answer."""
        earlier = row.offer
        if isinstance(message, ContractRequestMessage | ContractOfferMessage) and read is not None:
            if read.target and read.target != row.dataset_id:
                raise MessageInvalid(f"expected an offer for {row.dataset_id}, came one for {read.target}")
            offer = tx.datasets.get_offer(row.offer_id) if isinstance(message, ContractRequestMessage) else None
            if isinstance(message, ContractRequestMessage) and offer is not None:
                read = _in_published_words(read, message, offer, consumer=row.counterparty)
            row.offer = agreement_terms.taken_wire(read, target=row.dataset_id, beside=row.offer)
        if isinstance(message, ContractAgreementMessage) and read is not None:
            self._sign(tx, row, message, read)
        follow = self._apply(tx, row, message, judged)
        if message.step == states.FINALIZED_EVENT:
            self._conclude(tx, row)
        return [*follow, *self._reply(tx, row, read, earlier, facts)]

    def _sign(self, tx: Transaction, row: Negotiation, message: ContractAgreementMessage, read: Policy) -> None:
        """Check an agreement against what was agreed on, and keep it."""
        agreed = agreement_terms.read_offer(row.offer)
        agreement_terms.check_agreement(
            read, terms=agreed, target=row.dataset_id, assigner=row.counterparty, assignee=self._us
        )
        if row.counterparty != self._us and tx.agreements.get(read.id, role=PROVIDER) is not None:
            raise MessageInvalid(f"expected an agreement with an id of its own, came {read.id!r}, which we gave to one")
        row.agreement_id = read.id  # an id that is taken is refused by the table's key
        self._keep(tx, row, read, message.agreement or {})

    def _keep(self, tx: Transaction, row: Negotiation, policy: Policy, wire: Json, *, version: str = "") -> None:
        """Store an agreement, not final yet. `version`: of our dataset, as we looked at it."""
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

    # What follows by itself.

    def _answer(
        self, tx: Transaction, row: Negotiation, *, asked: Policy, offer: Offer, verdict: agreement_terms.Verdict
    ) -> list[Outbox]:
        """A provider's answer to a request, where the offer lets it answer by itself."""
        published = agreement_terms.published(offer)
        same = agreement_terms.same_rules(asked, published, consumer=row.counterparty)
        if not verdict.permitted and not (verdict.lacking and row.decide != auto_decisions.AUTO):
            raise Refused(f"this offer is not for you: {'; '.join(verdict.reasons)}", code="not_permitted")
        anew = _anew(tx, row, published)
        case = auto_decisions.Case(decide=row.decide, same_terms=same, permitted=verdict.permitted, anew=bool(anew))
        move = auto_decisions.next_message(auto_decisions.NEGOTIATION, role=PROVIDER, state=row.state, case=case)
        if move == states.OFFER:
            return [self._offer(tx, row, published)]
        if move == states.AGREEMENT:
            return [self._agree(tx, row)]
        lacking = "; ".join(verdict.reasons) if verdict.lacking else ""
        self._ask_person(tx, row, anew or ("other terms than published" if not same else lacking))
        return []

    def _reply(
        self, tx: Transaction, row: Negotiation, read: Policy | None, earlier: Json, facts: Facts
    ) -> list[Outbox]:
        """Our next message after a later message of the counterparty, or the call for a person."""
        if not auto_decisions.our_turn(auto_decisions.NEGOTIATION, role=row.role, state=row.state):
            return []
        why = ""
        if row.role == PROVIDER and row.state in (states.REQUESTED, states.ACCEPTED):
            offer, verdict = _offer_of(tx, row, facts)
            if row.state == states.REQUESTED and read is not None:
                return self._answer(tx, row, asked=read, offer=offer, verdict=verdict)
            anew = _anew(tx, row, agreement_terms.read_offer(row.offer))
            why = anew or ("; ".join(verdict.reasons) if verdict.lacking else "")
            case = auto_decisions.Case(decide=row.decide, permitted=verdict.permitted, anew=bool(anew))
        elif row.role == PROVIDER:
            signed = tx.agreements.of(row.agreement_id, role=PROVIDER)
            why = _taken_back(tx, row, since=signed.signed_at + _WRITTEN)  # one that was kept for that is asked anew
            case = auto_decisions.Case(decide=row.decide, anew=bool(why))
        else:
            same = read is None or row.state != states.OFFERED or _as_asked(read, earlier, self._us)
            why = "" if same else "other terms than we asked for"
            case = auto_decisions.Case(decide=row.decide, same_terms=same)
        move = auto_decisions.next_message(auto_decisions.NEGOTIATION, role=row.role, state=row.state, case=case)
        if not move:
            self._ask_person(tx, row, why)
            return []
        return [self._move(tx, row, move)]

    def _ask_person(self, tx: Transaction, row: Negotiation, why: str) -> None:
        row.reason = why  # until it goes on
        tx.publish(
            DecisionNeeded(
                actor=row.counterparty,
                process=row.id,
                dataset=row.dataset_id,
                reason=why,
                detail={"role": row.role, "state": row.state, "counterparty": row.counterparty},
            )
        )

    def _move(self, tx: Transaction, row: Negotiation, step: str) -> Outbox:
        """Send the message of that name, with nothing to say beyond the process itself."""
        if step == states.AGREEMENT:
            return self._agree(tx, row)
        pids, to = self._pids(row), f"/negotiations/{segment(row.peer_pid)}"
        if step == states.VERIFICATION:
            return self._send(tx, row, ContractAgreementVerificationMessage(**pids), f"{to}/agreement/verification")
        event = ContractNegotiationEventMessage(**pids, event_type=step.partition(":")[2])
        return self._send(tx, row, event, f"{to}/events")

    def _offer(self, tx: Transaction, row: Negotiation, policy: Policy) -> Outbox:
        row.offer = agreement_terms.offer_wire(policy, target=row.dataset_id, assigner=self._us)
        message = ContractOfferMessage(**self._pids(row), offer=row.offer)
        return self._send(tx, row, message, f"/negotiations/{segment(row.peer_pid)}/offers")

    def _agree(self, tx: Transaction, row: Negotiation) -> Outbox:
        """Sign what lies on the table, if all of it can be enforced."""
        agreed = agreement_terms.read_offer(row.offer)
        fits = agreement_terms.check_compiles(tx, agreed, dataset_id=row.dataset_id)
        if fits.exact:
            offer_conflicts.check_agreed(tx, agreed, dataset_id=row.dataset_id, consumer=row.counterparty)
        signed = agreement_terms.sign(
            agreed,
            agreement_id=new_pid(),
            target=row.dataset_id,
            assigner=self._us,
            assignee=row.counterparty,
            now=tx.now,
        )
        wire = agreement_terms.agreement_wire(signed)
        message = ContractAgreementMessage(**self._pids(row), agreement=wire)
        sent = self._send(tx, row, message, f"/negotiations/{segment(row.peer_pid)}/agreement")
        refused = tx.agreements.get(row.agreement_id, role=PROVIDER) if row.agreement_id else None
        if refused is not None:
            refused.ended_at, refused.end_reason = tx.now, agreement_terms.REPLACED
        row.agreement_id = signed.id
        self._keep(tx, row, signed, wire, version=fits.version)
        return sent

    def _conclude(self, tx: Transaction, row: Negotiation) -> None:
        """The agreement is final: at the provider it becomes a grant."""
        agreement = tx.agreements.of(row.agreement_id, role=row.role)
        agreement.finalized = True
        if row.role == PROVIDER:
            tx.agreements.add(GrantState(agreement_id=agreement.id, revoked_at=None))
        tx.publish(
            AgreementConcluded(
                actor=self._us,
                dataset=row.dataset_id,
                agreement=agreement.id,
                process=row.id,
                detail={"role": row.role, "counterparty": row.counterparty, "policy": agreement.digest},
            )
        )

    def abandon(self, tx: Transaction, agreement: Agreement, *, code: str, reason: str, actor: str) -> list[Outbox]:
        """End the negotiation of an agreement that ends before it is final, or it would be concluded all the same.

        Where our FINALIZED is on its way its consumer may have taken that: then it counts, and goes on being sent. What
        ends is a final agreement, or each side would have its own last state for good.
        """
        row = tx.negotiations.get(agreement.negotiation_id)
        if row is None or row.state in states.FINAL:
            return []
        if row.pending == states.FINALIZED_EVENT:
            self._count(tx, row, row.pending)
            return []
        return self._end(tx, row, code=code, reason=reason, actor=actor)

    def finalized_at_consumer(self, tx: Transaction, agreement: Agreement) -> None:
        """A consumer that transfers under an agreement has our FINALIZED, even if its acknowledgement is still out."""
        row = tx.negotiations.get(agreement.negotiation_id)
        if row is not None and row.pending == states.FINALIZED_EVENT:
            self._drop(tx, row)
            self._count(tx, row, row.pending)

    def _apply(self, tx: Transaction, row: Negotiation, message: Message, judged: Received) -> list[Outbox]:
        before = row.state
        follow = super()._apply(tx, row, message, judged)
        self._shorten(tx, row, before)
        return follow

    def _end(self, tx: Transaction, row: Negotiation, *, code: str, reason: str, actor: str) -> list[Outbox]:
        before = row.state
        sent = super()._end(tx, row, code=code, reason=reason, actor=actor)
        self._shorten(tx, row, before)
        return sent

    def _not_said(self, tx: Transaction, row: Negotiation, step: str, outcome: DeliveryOutcome) -> None:
        before = row.state
        super()._not_said(tx, row, step, outcome)
        self._shorten(tx, row, before)

    def _shorten(self, tx: Transaction, row: Negotiation, before: str) -> None:
        """Keep little of what somebody asked or offered that we have nothing with: anybody may begin and end such as
        often as it likes, and ended ones stay."""
        theirs = row.role == PROVIDER or before == states.OFFERED
        if row.state != states.TERMINATED or row.agreement_id or not theirs:
            return
        if not partner(tx, row.counterparty, role=row.role):
            row.offer = agreement_terms.come_to_nothing(row.offer)

    # What time brings.

    def idle(self, tx: Transaction, *, after: str = "") -> Sequence[Negotiation]:
        """Some in which a step of the other side has been awaited for so long that `expire` has to look, by id."""
        before = tx.now - self._admission.least_patience
        return tx.negotiations.list_idle(_THEIR_TURN, before=before, after=after, limit=_PAGE)

    async def expire(self, seen: Negotiation) -> None:
        """End one of `idle` where its counterparty has had its time and has not moved meanwhile; it is told so."""
        facts = await self._facts_of(seen.counterparty)

        def over(tx: Transaction) -> bool:
            patience = self._admission.patience(tx, seen.counterparty, role=seen.role, facts=facts)
            return tx.now - seen.updated_at > patience

        def work(tx: Transaction) -> list[Outbox]:
            row = tx.negotiations.get(seen.id)
            if row is None or row.pending or (row.state, row.updated_at) != (seen.state, seen.updated_at):
                return []
            since = datetime.fromtimestamp(row.updated_at, UTC).date()
            why = f"{row.counterparty} has not answered since {since}, longer than is waited here; negotiate anew"
            return self._end(tx, row, code=NOT_ANSWERED, reason=why, actor="clock")

        if await self._store.read(over):
            self._leave(await self._store.write(work))

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
        """Ask a provider for an agreement on `offer` (an ODRL offer with its @id); the new negotiation.

        Where it is known what for (`purpose`), on the first that is for it, of that and the `others` that may be asked
        for instead; Refused where none is.
        """
        offers = agreement_terms.readable([{"@type": "Offer", **one} for one in (offer, *(others if purpose else ()))])
        address = await self._checked(address, decide)

        def work(tx: Transaction) -> tuple[Negotiation, Outbox]:
            policy = agreement_terms.first_for(purpose, offers, consumer=self._us, now=tx.now) if purpose else offers[0]
            wire = agreement_terms.offer_wire(policy, target=dataset_id)
            row = self._new(tx, CONSUMER, counterparty, address, dataset_id, wire, decide)
            row.offer_id, row.purpose, row.correlation = policy.id, purpose, correlation
            tx.negotiations.add(row)
            tx.publish(self._ordered(row, "request", by=by))
            message = ContractRequestMessage(consumer_pid=row.id, offer=wire, callback_address=self._base)
            return row, self._send(tx, row, message, "/negotiations/request")

        row, sent = await self._store.write(work)
        self._leave([sent])
        return row

    async def propose(self, *, counterparty: str, address: str, offer_id: str, by: str) -> Negotiation:
        """Make a published offer to a consumer that has not asked; the new negotiation."""
        address = await self._checked(address, auto_decisions.AUTO)

        def work(tx: Transaction) -> tuple[Negotiation, Outbox]:
            offer = tx.datasets.get_offer(offer_id)
            if offer is None or offer.withdrawn_at is not None:
                raise NotFound(f"no offer {offer_id!r} is in force; list them with `hanse offer list`")
            wire = agreement_terms.offer_wire(
                agreement_terms.published(offer), target=offer.dataset_id, assigner=self._us
            )
            row = self._new(tx, PROVIDER, counterparty, address, offer.dataset_id, wire, offer.decide)
            row.offer_id = offer.id
            tx.negotiations.add(row)
            tx.publish(self._ordered(row, "offer", by=by))
            message = ContractOfferMessage(provider_pid=row.id, offer=wire, callback_address=self._base)
            return row, self._send(tx, row, message, "/negotiations/offers")

        row, sent = await self._store.write(work)
        self._leave([sent])
        return row

    async def command(
        self, pid: str, name: str, *, by: str, offer: Json | None = None, code: str = "", reason: str = ""
    ) -> Negotiation:
        """Carry out `offer`, `agree`, `finalize`, `accept`, `counter`, `verify`, `approve` or `terminate`.

        IllegalStep or Conflict where it is not possible now, NotFound for an unknown pid. `approve` sends what the
        other side waits for and lets the rest of this negotiation, and transfers under it, run by themselves.
        """

        def work(tx: Transaction) -> tuple[Negotiation, list[Outbox]]:
            row = tx.negotiations.get(pid)
            if row is None:
                raise NotFound(f"no negotiation {pid!r}; list them with `hanse negotiations`")
            tx.publish(self._ordered(row, name, by=by, reason=reason))
            if name == "terminate":
                return row, self._end(tx, row, code=code or _code_of_end(row), reason=reason, actor=by)
            return row, [self._carry_out(tx, row, name, offer)]

        await self._sender.acknowledgements.record_now(pid)
        row, sent = await self._store.write(work)
        self._leave(sent)
        return row

    def _carry_out(self, tx: Transaction, row: Negotiation, name: str, offer: Json | None) -> Outbox:
        if name == "approve":
            row.decide = auto_decisions.AUTO
            name = _APPROVALS.get((row.role, row.state), name)
        if name not in COMMANDS:
            raise BadInput(f"expected one of {', '.join(COMMANDS)}, approve, terminate; came {name!r}")
        role, step = COMMANDS[name]
        if role != row.role:
            raise Conflict(f"{name} is for the {role} of a negotiation, and we are its {row.role}")
        if name == "offer":
            return self._offer(tx, row, self._terms_of(tx, row, offer))
        if name == "counter":
            row.offer = agreement_terms.offer_wire(self._terms_of(tx, row, offer), target=row.dataset_id)
            message = ContractRequestMessage(**self._pids(row), offer=row.offer)
            return self._send(tx, row, message, f"/negotiations/{segment(row.peer_pid)}/request")
        return self._move(tx, row, step)

    def _terms_of(self, tx: Transaction, row: Negotiation, offer: Json | None) -> Policy:
        """The terms of a command: those given, else the published ones (provider) or those on the table."""
        if offer:
            return agreement_terms.read_offer({"@type": "Offer", "@id": row.offer_id or new_pid(), **offer})
        known = tx.datasets.get_offer(row.offer_id) if row.role == PROVIDER else None
        return agreement_terms.published(known) if known is not None else agreement_terms.read_offer(row.offer)

    async def _checked(self, address: str, decide: str) -> str:
        if decide not in (auto_decisions.AUTO, auto_decisions.MANUAL):
            raise BadInput(f"expected decide to be auto or manual, came {decide!r}")
        return await self._peer.check(address)

    # For the machinery.

    def _new(
        self,
        tx: Transaction,
        role: str,
        counterparty: str,
        address: str,
        dataset_id: str,
        offer: Json,
        decide: str,
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

    def _get(self, tx: Transaction, pid: str) -> Negotiation | None:
        return tx.negotiations.get(pid)

    def _peek(self, tx: Transaction, pid: str) -> Negotiation | None:
        return tx.negotiations.peek(pid)

    def _of_peer(self, tx: Transaction, row: Negotiation, peer_pid: str) -> Negotiation | None:
        return tx.negotiations.find_by_peer(role=row.role, counterparty=row.counterparty, peer_pid=peer_pid)

    def _advanced(self, row: Negotiation, **about: Any) -> Event:
        message = about.pop("message")
        return NegotiationAdvanced(
            process=row.id,
            dataset=row.dataset_id,
            agreement=row.agreement_id,
            correlation=row.correlation,
            code=row.code,
            reason=row.reason,
            detail={"role": row.role, "counterparty": row.counterparty, "state": row.state, "message": message},
            **about,
        )

    def _ordered(self, row: Negotiation, command: str, *, by: str, reason: str = "") -> Event:
        return DecisionTaken(
            actor=by,
            on_behalf_of=self._us,
            process=row.id,
            dataset=row.dataset_id,
            reason=reason,
            correlation=row.correlation,
            detail={"role": row.role, "counterparty": row.counterparty, "state": row.state, "command": command},
        )

    def _stuck(self, tx: Transaction, row: Negotiation) -> None:
        self._ask_person(tx, row, row.reason)

    def _said(self, tx: Transaction, row: Negotiation, step: str) -> list[Outbox]:
        if step == states.FINALIZED_EVENT:
            self._conclude(tx, row)
        return []


def _code_of_end(row: Negotiation) -> str:
    """For machines, why a person here ends it: a no to what the other side says, or what we asked for taken back."""
    ours = row.role == PROVIDER or auto_decisions.our_turn(auto_decisions.NEGOTIATION, role=row.role, state=row.state)
    return "terminated" if ours else WITHDRAWN


def _visible(tx: Transaction, asked: Policy, facts: Facts) -> tuple[Offer, agreement_terms.Verdict]:
    """The published offer that a request names, if this party may know of it. Otherwise it is as if not there."""
    offer = tx.datasets.get_offer(asked.id)
    if offer is None or offer.withdrawn_at is not None or asked.target not in ("", offer.dataset_id):
        raise _not_offered(asked)
    try:
        policy = agreement_terms.published(offer)
    except Refused:
        raise _not_offered(asked) from None
    verdict = agreement_terms.judge(policy, facts, phase=Phase.CATALOGUE, now=tx.now)
    if verdict.permitted:
        return offer, agreement_terms.judge(policy, facts, phase=Phase.NEGOTIATION, now=tx.now)
    # Where only a fact is missing, a person may know it: an offer that a person decides on is not hidden by that.
    if not verdict.lacking or offer.decide == auto_decisions.AUTO:
        raise _not_offered(asked)
    return offer, verdict


def _in_published_words(read: Policy, message: ContractRequestMessage, offer: Offer, *, consumer: str) -> Policy:
    return agreement_terms.as_published(
        read, message.offer or {}, published=agreement_terms.published(offer), consumer=consumer
    )


def _not_offered(asked: Policy) -> MessageInvalid:
    return MessageInvalid(f"expected an offer of the catalogue, came {asked.id!r} for {asked.target!r}")


def _offer_of(tx: Transaction, row: Negotiation, facts: Facts) -> tuple[Offer, agreement_terms.Verdict]:
    """The published offer behind a negotiation, and what the facts say now."""
    offer = tx.datasets.get_offer(row.offer_id)
    if offer is None or offer.withdrawn_at is not None:
        raise Refused(f"the offer {row.offer_id!r} was withdrawn; look into the catalogue again", code="withdrawn")
    return offer, agreement_terms.judge(agreement_terms.published(offer), facts, phase=Phase.NEGOTIATION, now=tx.now)


def _anew(tx: Transaction, row: Negotiation, policy: Policy) -> str:
    """Why another agreement of this party under this offer is for a person to decide; empty where it is not.

    What its owner took back would be had again at once, and what may be used up once would be had any number of times.
    Where the time of an earlier one is over, so are its quantities; what was told under a privacy budget stays told.
    """
    if why := _taken_back(tx, row):
        return why
    who = row.counterparty
    limited, private = agreement_terms.quantities(policy)
    if not limited:
        return ""
    tx.datasets.lock_offer(row.offer_id)  # two of its negotiations at once would both see no other
    if not tx.agreements.has_under_offer(row.offer_id, consumer=who, ended=private):
        return ""
    return "this party has an agreement under this offer already, and its quantities would count anew"


def _taken_back(tx: Transaction, row: Negotiation, *, since: float = 0.0) -> str:
    """That the owner revoked an agreement of this party under this offer, after `since`; empty where it did not."""
    if not tx.agreements.has_ended_under_offer(
        row.offer_id, consumer=row.counterparty, lapsed=agreement_terms.LAPSED, since=since
    ):
        return ""
    return "an agreement of this party under this offer was revoked"


def _as_asked(read: Policy, earlier: Json, us: str) -> bool:
    """Whether an offer has the terms that we asked for."""
    return bool(earlier) and agreement_terms.same_rules(read, agreement_terms.read_offer(earlier), consumer=us)
