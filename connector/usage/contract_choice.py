"""Under which of an agreement's contracts a read runs, and until when that is sure (steps 2 to 5 of `grants`). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from connector.errors import HanseError, Refused
from connector.usage.fact_collector import DECLARED, PURPOSE, USES
from connector.usage.held_agreement import EXPIRED, Held, Own
from connector.usage.quotas import check_concurrency, check_left, uses_spent
from policies.contracts import coverage
from policies.contracts.contract import DataContract
from policies.errors import QueryRefused
from policies.evaluation.evaluate import Decision, Facts, evaluate, next_change
from policies.model import ODRL
from policies.vocabulary import Phase

DISTRIBUTE = ODRL + "distribute"
_NOT_NOW = "the agreement does not permit this now: "
_ANOTHER = "the permission that this read was under has ended, and another one may go on; read on from here"
_NEAREST = ("concurrency", "count_spent", "quota_spent", "not_permitted")  # what passes by itself comes first


def covering(contracts: Sequence[DataContract], *, action: str, purpose: str, now: float) -> list[DataContract]:
    """The contracts that cover this action, purpose and time; Refused where none does."""
    try:
        return coverage.find_covering(contracts, action=action, purpose=purpose or None, now=now)
    except QueryRefused as refusal:
        raise Refused(str(refusal), code=refusal.code, rule=refusal.rule) from refusal


def check_still(held: Held, contract: DataContract, *, action: str, purpose: str, now: float) -> None:
    """Refused where a contract that covered a read's time does not any more: as the next read is, or, where that is
    covered by another one, with the code after which a reader goes on."""
    if contract not in covering(held.contracts, action=action, purpose=purpose, now=now):
        raise Refused(_ANOTHER, code=EXPIRED, rule=contract.permission)


def chosen(
    held: Held,
    candidates: Sequence[DataContract],
    facts: Facts,
    own: Own,
    *,
    action: str,
    running: int,
    now: float,
) -> tuple[DataContract, float]:
    """The first whose own permission is active and has something left, and until when (UTC seconds) that is sure.

    Else Refused or Limited, with what is missing for each: two permissions are never merged.
    """
    facts = facts.adding(Facts.of({"ds:concurrency": running}, source="counter"))
    refusals: list[HanseError] = []
    for contract in candidates:
        try:
            check_concurrency(contract, running)  # 3
            until = permitted_until(held, contract, facts, action=action, now=now)  # 4
            check_left(held, contract, own)  # 5
        except HanseError as refusal:
            refusals.append(refusal)
        else:
            return contract, until
    raise refusal_of(refusals)


def refusal_of(refusals: Sequence[HanseError]) -> HanseError:
    """The one refusal, or the one that the least stands against with the words of all."""
    nearest = min(refusals, key=lambda one: _NEAREST.index(one.code))
    if len(refusals) == 1:
        return nearest
    told = dict.fromkeys(one.message.removeprefix(_NOT_NOW) for one in refusals)
    return type(nearest)(f"{_NOT_NOW}{'; '.join(told)}", code=nearest.code, **nearest.facts)


def permitted_until(held: Held, contract: DataContract, facts: Facts, *, action: str, now: float) -> float:
    """Until when (UTC seconds) the party surely may: the first end of a fact that the decision rests on, or the first
    time at which a prohibition may begin. Refused where the contract's own permission is not active."""
    decision = decided(held, contract, facts, action=action, now=now)
    if not decision.permitted:
        raise not_permitted(contract, decision)
    return min(_sure_until(decision, facts), next_change(held.policy, action=action, now=now))


def decided(held: Held, contract: DataContract, facts: Facts, *, action: str, now: float) -> Decision:
    """What the evaluator says of the contract's own permission; what another one permits does not count."""
    own = contract.permission
    return evaluate(held.policy, facts, action=action, permission=own, phase=Phase.TRANSFER, now=now)


def passed_on(held: Held, facts: Facts, *, now: float) -> frozenset[str]:
    """Those of the permissions whose rows and columns these facts let the party distribute: under the permission
    itself, or under another one that gives the same (`may: [query, distribute]` are two). Leave to distribute other
    rows, columns or purposes is none for these."""
    free = [one for one in held.contracts if DISTRIBUTE in one.actions and _may_distribute(held, one, facts, now=now)]
    return frozenset(one.permission for one in held.contracts if any(_gives_the_same(one, other) for other in free))


def _may_distribute(held: Held, contract: DataContract, facts: Facts, *, now: float) -> bool:
    """Whether it surely may. A purpose may still be declared where only the permission asks for it: the contract names
    the purposes that it is for."""
    decision = decided(held, contract, facts, action=DISTRIBUTE, now=now)
    open_ = {PURPOSE} - set(facts)
    forbids = any(one.rule.startswith("/prohibition") and one.left in open_ for one in decision.findings)
    return decision.permitted or (against(decision) <= open_ and not forbids)


def _gives_the_same(one: DataContract, other: DataContract) -> bool:
    """Whether two contracts differ at most in their actions and in where their rules stand."""
    named = {name: getattr(one, name) for name in ("permission", "actions", "requires", "reasons", "contractual")}
    return replace(other, **named) == one


def not_permitted(contract: DataContract, decision: Decision) -> HanseError:
    """Why a permission is not active: Limited where its uses are spent, and at most what a request may declare stands
    against it beside; else Refused."""
    if contract.limits.queries is not None and against(decision) - DECLARED == {USES}:
        return uses_spent(contract, contract.limits.queries)
    return Refused(
        f"{_NOT_NOW}{'; '.join(decision.reasons) or 'no permission is active'}",
        code="not_permitted",
        rule=contract.permission,
        decision=decision.to_json(),
    )


def against(decision: Decision) -> set[str]:
    """The facts that stand against a permission; under a prohibition it is those that meet it or are not known."""
    permission = ("unknown", "unsatisfied"), ("unknown", "satisfied")
    return {one.left for one in decision.findings if one.result in permission[one.rule.startswith("/prohibition")]}


def _sure_until(decision: Decision, facts: Facts) -> float:
    """The first end (UTC seconds) of a fact that the decision looked at; infinite where none ends."""
    seen = {finding.left for finding in decision.findings}
    ends = [fact.valid_until for key, fact in facts.items() if fact.valid_until is not None and key in seen]
    return min(ends, default=float("inf"))
