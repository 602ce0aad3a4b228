"""Both tables against the specification's, written down a second time; and how messages that cross are judged."""

from __future__ import annotations

import itertools

import pytest

from connector.dsp import states
from connector.dsp.states import CONSUMER, NEGOTIATION, PROVIDER, TRANSFER, Step, Transition
from connector.errors import IllegalStep

# Dataspace Protocol 2025-1, contract negotiation: state, message, senders, next state.
NEGOTIATION_SPEC = """
-          ContractRequestMessage                     C   REQUESTED
-          ContractOfferMessage                       P   OFFERED
REQUESTED  ContractOfferMessage                       P   OFFERED
REQUESTED  ContractAgreementMessage                   P   AGREED
REQUESTED  ContractNegotiationTerminationMessage      CP  TERMINATED
OFFERED    ContractRequestMessage                     C   REQUESTED
OFFERED    ContractNegotiationEventMessage:ACCEPTED   C   ACCEPTED
OFFERED    ContractNegotiationTerminationMessage      CP  TERMINATED
ACCEPTED   ContractAgreementMessage                   P   AGREED
ACCEPTED   ContractNegotiationTerminationMessage      CP  TERMINATED
AGREED     ContractAgreementVerificationMessage       C   VERIFIED
AGREED     ContractNegotiationTerminationMessage      CP  TERMINATED
VERIFIED   ContractNegotiationEventMessage:FINALIZED  P   FINALIZED
VERIFIED   ContractNegotiationTerminationMessage      CP  TERMINATED
"""
TRANSFER_SPEC = """
-          TransferRequestMessage      C   REQUESTED
REQUESTED  TransferStartMessage        P   STARTED
REQUESTED  TransferTerminationMessage  CP  TERMINATED
STARTED    TransferCompletionMessage   CP  COMPLETED
STARTED    TransferSuspensionMessage   CP  SUSPENDED
STARTED    TransferTerminationMessage  CP  TERMINATED
SUSPENDED  TransferStartMessage        CP  STARTED
SUSPENDED  TransferTerminationMessage  CP  TERMINATED
"""
SIDES = {"C": CONSUMER, "P": PROVIDER}


def spec(text: str) -> dict[Step, str]:
    found = {}
    for line in text.strip().splitlines():
        state, message, senders, after = line.split()
        found.update({Step(state.strip("-"), message, SIDES[side]): after for side in senders})
    return found


TABLES = [(NEGOTIATION, spec(NEGOTIATION_SPEC)), (TRANSFER, spec(TRANSFER_SPEC))]


def triples(table: states.Table) -> list[Step]:
    """Every state, message and sender of a machine, possible or not."""
    everything = itertools.product(("", *states.states(table)), states.messages(table), (CONSUMER, PROVIDER))
    return [Step(*triple) for triple in everything]


CASES = [(table, known, step) for table, known in TABLES for step in triples(table)]


@pytest.mark.parametrize(("table", "known", "step"), CASES, ids=["-".join(case[2]) for case in CASES])
def test_every_triple_leads_where_the_specification_says_or_nowhere(
    table: states.Table, known: dict[Step, str], step: Step
) -> None:
    if step in known:
        assert states.advance(table, step) == known[step]
    else:
        with pytest.raises(IllegalStep) as refused:
            states.advance(table, step)
        assert step.message in refused.value.message


def test_the_tables_hold_nothing_that_the_specification_does_not() -> None:
    for table, known in TABLES:
        assert dict(table) == known


def test_a_rejection_says_what_could_have_come() -> None:
    with pytest.raises(IllegalStep, match="ContractAgreementVerificationMessage from the consumer"):
        states.advance(NEGOTIATION, Step("AGREED", states.FINALIZED_EVENT, PROVIDER))
    with pytest.raises(IllegalStep, match="nothing, COMPLETED is final"):
        states.advance(TRANSFER, Step("COMPLETED", states.START, PROVIDER))


# table, our role, state, our message on its way, what comes -> before, after, still on its way (None: refused)
CROSSINGS = [
    # A message that is possible only after ours proves that ours was delivered.
    (NEGOTIATION, CONSUMER, "", states.REQUEST, states.OFFER, ("REQUESTED", "OFFERED", "")),
    (NEGOTIATION, CONSUMER, "", states.REQUEST, states.AGREEMENT, ("REQUESTED", "AGREED", "")),
    (NEGOTIATION, PROVIDER, "", states.OFFER, states.ACCEPTED_EVENT, ("OFFERED", "ACCEPTED", "")),
    (NEGOTIATION, PROVIDER, "", states.OFFER, states.REQUEST, ("OFFERED", "REQUESTED", "")),
    (NEGOTIATION, PROVIDER, "REQUESTED", states.OFFER, states.ACCEPTED_EVENT, ("OFFERED", "ACCEPTED", "")),
    (NEGOTIATION, PROVIDER, "REQUESTED", states.AGREEMENT, states.VERIFICATION, ("AGREED", "VERIFIED", "")),
    (NEGOTIATION, CONSUMER, "OFFERED", states.ACCEPTED_EVENT, states.AGREEMENT, ("ACCEPTED", "AGREED", "")),
    (NEGOTIATION, CONSUMER, "OFFERED", states.REQUEST, states.OFFER, ("REQUESTED", "OFFERED", "")),
    (NEGOTIATION, CONSUMER, "AGREED", states.VERIFICATION, states.FINALIZED_EVENT, ("VERIFIED", "FINALIZED", "")),
    (TRANSFER, CONSUMER, "", states.TRANSFER_REQUEST, states.START, ("REQUESTED", "STARTED", "")),
    (TRANSFER, PROVIDER, "REQUESTED", states.START, states.COMPLETION, ("STARTED", "COMPLETED", "")),
    (TRANSFER, PROVIDER, "REQUESTED", states.START, states.SUSPENSION, ("STARTED", "SUSPENDED", "")),
    (TRANSFER, PROVIDER, "STARTED", states.SUSPENSION, states.START, ("SUSPENDED", "STARTED", "")),
    # Nothing proves anything that is not possible after ours either.
    (NEGOTIATION, CONSUMER, "", states.REQUEST, states.FINALIZED_EVENT, None),
    (NEGOTIATION, PROVIDER, "REQUESTED", states.OFFER, states.VERIFICATION, None),
    (NEGOTIATION, CONSUMER, "OFFERED", states.ACCEPTED_EVENT, states.FINALIZED_EVENT, None),
    (TRANSFER, PROVIDER, "REQUESTED", states.START, states.START, None),
    # A termination ends everything that has not ended, whatever is on its way.
    (NEGOTIATION, CONSUMER, "", states.REQUEST, states.NEGOTIATION_TERMINATION, ("REQUESTED", "TERMINATED", "")),
    (NEGOTIATION, PROVIDER, "VERIFIED", states.FINALIZED_EVENT, states.NEGOTIATION_TERMINATION,
     ("VERIFIED", "TERMINATED", "")),
    (TRANSFER, PROVIDER, "STARTED", states.COMPLETION, states.TRANSFER_TERMINATION, ("STARTED", "TERMINATED", "")),
    (TRANSFER, CONSUMER, "COMPLETED", "", states.TRANSFER_TERMINATION, None),
    (NEGOTIATION, PROVIDER, "FINALIZED", "", states.NEGOTIATION_TERMINATION, None),
    # Transfers, where both may act: completion stands against suspension, from both sides alike.
    (TRANSFER, PROVIDER, "STARTED", states.COMPLETION, states.SUSPENSION, None),
    (TRANSFER, CONSUMER, "STARTED", states.SUSPENSION, states.COMPLETION, ("STARTED", "COMPLETED", "")),
    (TRANSFER, CONSUMER, "STARTED", states.SUSPENSION, states.SUSPENSION, ("STARTED", "SUSPENDED", "")),
    (TRANSFER, CONSUMER, "STARTED", states.COMPLETION, states.COMPLETION, ("STARTED", "COMPLETED", "")),
    (TRANSFER, CONSUMER, "SUSPENDED", states.START, states.START, ("SUSPENDED", "STARTED", "")),
    (TRANSFER, PROVIDER, "SUSPENDED", states.START, states.START, ("SUSPENDED", "STARTED", states.START)),
]  # fmt: skip


@pytest.mark.parametrize(("table", "role", "state", "pending", "comes", "expected"), CROSSINGS)
def test_messages_that_cross(
    table: states.Table, role: str, state: str, pending: str, comes: str, expected: tuple[str, str, str] | None
) -> None:
    if expected is None:
        with pytest.raises(IllegalStep):
            states.receive(table, state=state, pending=pending, role=role, message=comes)
    else:
        judged = states.receive(table, state=state, pending=pending, role=role, message=comes)
        assert judged == Transition(*expected)


@pytest.mark.parametrize(("table", "known"), TABLES)
def test_without_a_message_on_its_way_only_the_table_counts(table: states.Table, known: dict[Step, str]) -> None:
    for step in triples(table):
        role = states.other(step.sender)
        try:
            judged = states.receive(table, state=step.state, pending="", role=role, message=step.message)
        except IllegalStep:
            assert step not in known
        else:
            assert judged.after == known[step]


def test_two_sides_that_wish_different_ends_of_a_transfer_agree_on_one() -> None:
    """Whatever both sides send at once in STARTED, accepting the other's and dropping one's own ends in one state."""
    wishes = (states.COMPLETION, states.SUSPENSION)
    for ours, theirs in itertools.product(wishes, wishes):
        ends = set()
        for role, own, other in ((CONSUMER, ours, theirs), (PROVIDER, theirs, ours)):
            try:
                ends.add(states.receive(TRANSFER, state="STARTED", pending=own, role=role, message=other).after)
            except IllegalStep:  # refused: then our own message counts
                ends.add(states.advance(TRANSFER, Step("STARTED", own, role)))
        assert len(ends) == 1, (ours, theirs, ends)


def test_only_states_of_the_protocol_are_told() -> None:
    assert states.published(NEGOTIATION, "", states.REQUEST, CONSUMER) == "REQUESTED"
    assert states.published(NEGOTIATION, "", states.OFFER, PROVIDER) == "OFFERED"
    assert states.published(TRANSFER, "", states.TRANSFER_REQUEST, CONSUMER) == "REQUESTED"
    assert states.published(TRANSFER, "STARTED", states.SUSPENSION, CONSUMER) == "STARTED"
