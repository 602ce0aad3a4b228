"""Both state machines of the protocol as tables, and the rules for reading them. Pure: no database, clock or wire form.

Rejections, status replies, the diagram in docs/protocol.md and the tests follow from NEGOTIATION and TRANSFER.

Our message counts once the counterparty has acknowledged it. Until then it is `pending` and the state is the old one.
`receive` judges what arrives meanwhile: the two messages may cross on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from connector.errors import IllegalStep

CONSUMER, PROVIDER = "consumer", "provider"

REQUESTED, OFFERED, ACCEPTED, AGREED, VERIFIED, FINALIZED, TERMINATED = (
    "REQUESTED",
    "OFFERED",
    "ACCEPTED",
    "AGREED",
    "VERIFIED",
    "FINALIZED",
    "TERMINATED",
)
STARTED, SUSPENDED, COMPLETED = "STARTED", "SUSPENDED", "COMPLETED"
NEW = ""  # no state yet: our first message is not acknowledged, or no message was received

REQUEST = "ContractRequestMessage"
OFFER = "ContractOfferMessage"
AGREEMENT = "ContractAgreementMessage"
VERIFICATION = "ContractAgreementVerificationMessage"
ACCEPTED_EVENT = "ContractNegotiationEventMessage:ACCEPTED"
FINALIZED_EVENT = "ContractNegotiationEventMessage:FINALIZED"
NEGOTIATION_TERMINATION = "ContractNegotiationTerminationMessage"

TRANSFER_REQUEST = "TransferRequestMessage"
START = "TransferStartMessage"
COMPLETION = "TransferCompletionMessage"
SUSPENSION = "TransferSuspensionMessage"
TRANSFER_TERMINATION = "TransferTerminationMessage"

TERMINATIONS = frozenset({NEGOTIATION_TERMINATION, TRANSFER_TERMINATION})
FINAL = frozenset({FINALIZED, TERMINATED, COMPLETED})


class Step(NamedTuple):
    """In `state`, `message` from `sender` (consumer or provider)."""

    state: str
    message: str
    sender: str


Table: TypeAlias = Mapping[Step, str]


def _with_terminations(table: dict[Step, str], message: str) -> Table:
    # DSP 2025-1, section 7.1: the diagram names one side for each state, the text lets either side end it at any time.
    for state in [state for state in dict.fromkeys(table.values()) if state not in FINAL]:
        for sender in (CONSUMER, PROVIDER):
            table[Step(state, message, sender)] = TERMINATED
    return MappingProxyType(table)


NEGOTIATION: Table = _with_terminations(
    {
        Step(NEW, REQUEST, CONSUMER): REQUESTED,
        Step(NEW, OFFER, PROVIDER): OFFERED,
        Step(REQUESTED, OFFER, PROVIDER): OFFERED,
        Step(REQUESTED, AGREEMENT, PROVIDER): AGREED,
        Step(OFFERED, REQUEST, CONSUMER): REQUESTED,  # counter-offer
        Step(OFFERED, ACCEPTED_EVENT, CONSUMER): ACCEPTED,
        Step(ACCEPTED, AGREEMENT, PROVIDER): AGREED,
        Step(AGREED, VERIFICATION, CONSUMER): VERIFIED,
        Step(VERIFIED, FINALIZED_EVENT, PROVIDER): FINALIZED,
    },
    NEGOTIATION_TERMINATION,
)

TRANSFER: Table = _with_terminations(
    {
        Step(NEW, TRANSFER_REQUEST, CONSUMER): REQUESTED,
        Step(REQUESTED, START, PROVIDER): STARTED,
        Step(STARTED, COMPLETION, CONSUMER): COMPLETED,
        Step(STARTED, COMPLETION, PROVIDER): COMPLETED,
        Step(STARTED, SUSPENSION, CONSUMER): SUSPENDED,
        Step(STARTED, SUSPENSION, PROVIDER): SUSPENDED,
        Step(SUSPENDED, START, CONSUMER): STARTED,
        Step(SUSPENDED, START, PROVIDER): STARTED,
    },
    TRANSFER_TERMINATION,
)


def states(table: Table) -> tuple[str, ...]:
    """Every state of a machine, in the order of its table, without the empty first one."""
    return tuple(dict.fromkeys(state for step, after in table.items() for state in (step.state, after) if state))


def messages(table: Table) -> tuple[str, ...]:
    """Every message of a machine, in the order of its table."""
    return tuple(dict.fromkeys(step.message for step in table))


def other(role: str) -> str:
    """The opposite side."""
    return PROVIDER if role == CONSUMER else CONSUMER


def advance(table: Table, step: Step) -> str:
    """The next state. IllegalStep names the messages that are possible."""
    if (after := table.get(step)) is not None:
        return after
    raise IllegalStep(
        f"{step.message} from the {step.sender} is not possible in state {step.state or '(new)'}; "
        f"possible: {_possible(table, step.state)}",
        state=step.state,
    )


def _possible(table: Table, state: str) -> str:
    known = [f"{step.message} from the {step.sender}" for step in table if step.state == state]
    return ", ".join(known) or f"nothing, {state} is final"


def published(table: Table, state: str, pending: str, role: str) -> str:
    """The state to report to the counterparty.

    A counterparty that asks before its reply has arrived has our first message already.
    """
    return state or table.get(Step(NEW, pending, role), TERMINATED)


class Transition(NamedTuple):
    """The effect of a message from the counterparty: the state `before` and `after` it.

    `before` differs from the stored state where the message proves that our pending one was delivered.
    `pending` is our message that is still to be delivered afterwards.
    """

    before: str
    after: str
    pending: str


def receive(table: Table, *, state: str, pending: str, role: str, message: str) -> Transition:
    """Judge a message of the counterparty while we, as `role`, are in `state` with `pending` on its way.

    1. A termination ends every process that has not ended, whatever is on its way.
    2. A message that is possible in `state` crossed ours. That happens in transfers, where both sides may act:
       completion wins over suspension, the same message from both sides counts once, and a provider's start is still
       delivered, as it carries the address.
    3. A message that is possible only after our pending one proves that ours was delivered.

    Raises:
        IllegalStep: none of these holds. Nothing has changed.
    """
    sender = other(role)
    ours = state == NEW and pending != ""  # we began this process, so the other side cannot begin it
    after = None if ours else table.get(Step(state, message, sender))
    delivered = table.get(Step(state, pending, role)) if pending else None
    if message in TERMINATIONS and (after or ours):  # 1
        return Transition(state or delivered or NEW, TERMINATED, "")
    if after is not None:  # 2
        if pending == COMPLETION and message == SUSPENSION:
            raise IllegalStep("a completion of this transfer is on its way, so it cannot be suspended")
        keeps = pending == START and message == START and role == PROVIDER
        return Transition(state, after, START if keeps else "")
    if delivered is not None:  # 3
        return Transition(delivered, advance(table, Step(delivered, message, sender)), "")
    return Transition(state, advance(table, Step(state, message, sender)), "")
