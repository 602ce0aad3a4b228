"""When this connector answers without a person: one pure table from role, state and facts to our next message.

auto       answers at once: agrees to the offer as published, answers other terms with the published ones
rules      agrees where the policy's facts permit, and leaves the rest to a person
manual     sends only what a person orders
four_eyes  as manual; the person who asked may not approve (`check_approver`)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from connector.dsp import states
from connector.dsp.states import CONSUMER, PROVIDER
from connector.errors import Forbidden

AUTO, RULES, MANUAL, FOUR_EYES = "auto", "rules", "manual", "four_eyes"
_BY_PERSONS = (MANUAL, FOUR_EYES)
APPROVALS = frozenset({"agree", "finalize", "approve"})  # commands of the provider's persons
WAIT = ""


class SamePerson(Forbidden):
    code = "four_eyes"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCase:
    """The input of a decision.

    same_terms: the terms are those that were published, or those that we requested.
    permitted: the known facts of the party permit the offer to be concluded.
    anew: the party had an agreement under this offer, and another one needs a person (see `negotiation`).
    """

    decide: str
    same_terms: bool = True
    permitted: bool = True
    anew: bool = False


def _answer_request(case: DecisionCase) -> str:
    if case.anew:
        return WAIT
    if not case.same_terms:
        return states.OFFER if case.decide == AUTO else WAIT
    return states.AGREEMENT if case.permitted else WAIT


Table: TypeAlias = Mapping[tuple[str, str], Callable[[DecisionCase], str]]  # (our role, state) to the message, or WAIT

NEGOTIATION: Table = MappingProxyType(
    {
        (PROVIDER, states.REQUESTED): _answer_request,
        (PROVIDER, states.ACCEPTED): lambda case: states.AGREEMENT if case.permitted and not case.anew else WAIT,
        (PROVIDER, states.VERIFIED): lambda case: WAIT if case.anew else states.FINALIZED_EVENT,
        (CONSUMER, states.OFFERED): lambda case: states.ACCEPTED_EVENT if case.same_terms else WAIT,
        (CONSUMER, states.AGREED): lambda case: states.VERIFICATION,
    }
)
TRANSFER: Table = MappingProxyType(
    {(PROVIDER, states.REQUESTED): lambda case: states.START if case.permitted else WAIT}
)


def is_our_turn(table: Table, *, role: str, state: str) -> bool:
    """Whether the next message is ours, decided by the table or by a person."""
    return (role, state) in table


def next_message(table: Table, *, role: str, state: str, case: DecisionCase) -> str:
    """The message that we send without a person, by its name in the state tables; WAIT for none."""
    decide = table.get((role, state))
    return WAIT if decide is None or case.decide in _BY_PERSONS else decide(case)


def check_approver(approver: str, askers: Collection[str]) -> None:
    """Check that a person who did not ask approves. Persons are issuer and subject; empty: a token without a person.

    Such a token says nothing about who holds it, so it neither asks nor approves here. `askers` are ours alone: the
    request of a counterparty names no person.

    Raises: SamePerson.
    """
    if not approver:
        raise SamePerson("expected a person who logged in, as the offer wants four eyes; got a token without a person")
    if "" in askers:
        raise SamePerson("this was asked for here with a token without a person; ask again as a person who logged in")
    if approver in askers:
        raise SamePerson("you asked for this agreement; the offer says that another person approves it (four eyes)")
