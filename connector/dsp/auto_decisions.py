"""Who answers by itself and when. One table, pure: states and facts in, the next message of ours out.

auto     answers at once: agrees to the offer as it was published, answers other terms with the published ones
rules    agrees where the policy's facts permit, and leaves the rest to a person
manual   sends nothing that a person has not asked for
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from connector.dsp import states
from connector.dsp.states import CONSUMER, PROVIDER

AUTO, RULES, MANUAL = "auto", "rules", "manual"
WAIT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a decision may look at. `same_terms`: what lies on the table is what was published, or what we asked for.

    `permitted`: the facts that are known of the party let the offer be concluded. `anew`: the party had an agreement
    under this offer, and another one would give it more than one agreement gives (`negotiation`).
    """

    decide: str
    same_terms: bool = True
    permitted: bool = True
    anew: bool = False


def _asked(case: Case) -> str:
    if case.anew:
        return WAIT
    if not case.same_terms:
        return states.OFFER if case.decide == AUTO else WAIT
    return states.AGREEMENT if case.permitted else WAIT


Table: TypeAlias = Mapping[tuple[str, str], Callable[[Case], str]]  # (our role, state) to the message, or WAIT

NEGOTIATION: Table = MappingProxyType(
    {
        (PROVIDER, states.REQUESTED): _asked,
        (PROVIDER, states.ACCEPTED): lambda case: states.AGREEMENT if case.permitted and not case.anew else WAIT,
        (PROVIDER, states.VERIFIED): lambda case: WAIT if case.anew else states.FINALIZED_EVENT,
        (CONSUMER, states.OFFERED): lambda case: states.ACCEPTED_EVENT if case.same_terms else WAIT,
        (CONSUMER, states.AGREED): lambda case: states.VERIFICATION,
    }
)
TRANSFER: Table = MappingProxyType(
    {(PROVIDER, states.REQUESTED): lambda case: states.START if case.permitted else WAIT}
)


def our_turn(table: Table, *, role: str, state: str) -> bool:
    """Whether the next message is ours: if nothing decides it, a person has to."""
    return (role, state) in table


def next_message(table: Table, *, role: str, state: str, case: Case) -> str:
    """The message that we send by ourselves, by its name in the state tables; WAIT for none."""
    decide = table.get((role, state))
    return WAIT if decide is None or case.decide == MANUAL else decide(case)
