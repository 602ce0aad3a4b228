"""Chooses the contract for a read, and until when the choice is valid (steps 2 to 5 of `grants`). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from connector.errors import ConnectorError, Denied
from connector.usage.fact_collector import DECLARED, PURPOSE, USES
from connector.usage.held_agreement import EXPIRED, CompiledAgreement, UsageCounters
from connector.usage.quotas import check_concurrency, check_left, uses_spent
from policies.contracts import coverage
from policies.contracts.contract import DataContract
from policies.errors import QueryRefused
from policies.evaluation.evaluate import Decision, Facts, evaluate, next_change
from policies.model import ODRL
from policies.vocabulary import Phase

DISTRIBUTE = ODRL + "distribute"
_NOT_NOW = "the agreement does not permit this now: "
_ANOTHER = "the permission of this read has ended, and another one may apply; continue with a new read from here"
_NEAREST = ("concurrency", "count_spent", "quota_spent", "not_permitted")  # temporary reasons first


def find_covering(contracts: Sequence[DataContract], *, action: str, purpose: str, now: float) -> list[DataContract]:
    """The contracts that cover this action, purpose and time. Raises: Denied without one."""
    try:
        return coverage.find_covering(contracts, action=action, purpose=purpose or None, now=now)
    except QueryRefused as refusal:
        raise Denied(str(refusal), code=refusal.code, rule=refusal.rule) from refusal


def check_still(held: CompiledAgreement, contract: DataContract, *, action: str, purpose: str, now: float) -> None:
    """Check that a contract still covers a running read. Raises: Denied.

    If another contract covers a new read, the code is `lease_expired`, after which clients continue with a new read.
    """
    if contract not in find_covering(held.contracts, action=action, purpose=purpose, now=now):
        raise Denied(_ANOTHER, code=EXPIRED, rule=contract.permission)


def choose_contract(
    held: CompiledAgreement,
    candidates: Sequence[DataContract],
    facts: Facts,
    own: UsageCounters,
    *,
    action: str,
    running: int,
    now: float,
) -> tuple[DataContract, float]:
    """The first contract whose permission is active and has quota left, and until when (UTC seconds) that surely holds.

    Raises: Denied or Limited with the reasons of all contracts. Permissions are never merged.
    """
    facts = facts.adding(Facts.of({"ds:concurrency": running}, source="counter"))
    refusals: list[ConnectorError] = []
    for contract in candidates:
        try:
            check_concurrency(contract, running)  # 3
            until = permitted_until(held, contract, facts, action=action, now=now)  # 4
            check_left(held, contract, own)  # 5
        except ConnectorError as refusal:
            refusals.append(refusal)
        else:
            return contract, until
    raise merge_refusals(refusals)


def merge_refusals(refusals: Sequence[ConnectorError]) -> ConnectorError:
    """The refusal that is easiest to resolve, with the messages of all."""
    nearest = min(refusals, key=lambda refusal: _NEAREST.index(refusal.code))
    if len(refusals) == 1:
        return nearest
    messages = dict.fromkeys(refusal.message.removeprefix(_NOT_NOW) for refusal in refusals)
    return type(nearest)(f"{_NOT_NOW}{'; '.join(messages)}", code=nearest.code, **nearest.facts)


def permitted_until(held: CompiledAgreement, contract: DataContract, facts: Facts, *, action: str, now: float) -> float:
    """Until when (UTC seconds) the permission surely holds: the first end of a fact that the decision uses, or the
    first time that a prohibition may begin. Raises: Denied or Limited if the permission is not active."""
    decision = decide(held, contract, facts, action=action, now=now)
    if not decision.permitted:
        raise not_permitted(contract, decision)
    return min(_sure_until(decision, facts), next_change(held.policy, action=action, now=now))


def decide(held: CompiledAgreement, contract: DataContract, facts: Facts, *, action: str, now: float) -> Decision:
    """Evaluate the contract's own permission, regardless of other permissions."""
    own = contract.permission
    return evaluate(held.policy, facts, action=action, permission=own, phase=Phase.TRANSFER, now=now)


def find_passed_on(held: CompiledAgreement, facts: Facts, *, now: float) -> frozenset[str]:
    """The permissions whose rows and columns the party may distribute, by these facts.

    The right may come from the permission itself or from another with the same rows, columns and purposes, as
    `may: [query, distribute]` makes two permissions.
    """
    free = [one for one in held.contracts if DISTRIBUTE in one.actions and _may_distribute(held, one, facts, now=now)]
    return frozenset(one.permission for one in held.contracts if any(_gives_the_same(one, other) for other in free))


def _may_distribute(held: CompiledAgreement, contract: DataContract, facts: Facts, *, now: float) -> bool:
    """Whether the party surely may distribute. A purpose that only the permission requires may still be declared
    later, as the contract limits it."""
    decision = decide(held, contract, facts, action=DISTRIBUTE, now=now)
    open_ = {PURPOSE} - set(facts)
    forbids = any(one.rule.startswith("/prohibition") and one.left in open_ for one in decision.findings)
    return decision.permitted or (find_obstacles(decision) <= open_ and not forbids)


def _gives_the_same(one: DataContract, other: DataContract) -> bool:
    """Whether two contracts differ at most in their actions and the paths of their rules."""
    named = {name: getattr(one, name) for name in ("permission", "actions", "requires", "reasons", "contractual")}
    return replace(other, **named) == one


def not_permitted(contract: DataContract, decision: Decision) -> ConnectorError:
    """The error for an inactive permission: Limited if only spent uses (and facts that a request may declare) are
    against it, otherwise Denied."""
    if contract.limits.queries is not None and find_obstacles(decision) - DECLARED == {USES}:
        return uses_spent(contract, contract.limits.queries)
    return Denied(
        f"{_NOT_NOW}{'; '.join(decision.reasons) or 'no permission is active'}",
        code="not_permitted",
        rule=contract.permission,
        decision=decision.to_json(),
    )


def find_obstacles(decision: Decision) -> set[str]:
    """The facts against a decision: unknown, or unsatisfied by a permission, or satisfying a prohibition."""
    permission = ("unknown", "unsatisfied"), ("unknown", "satisfied")
    return {one.left for one in decision.findings if one.result in permission[one.rule.startswith("/prohibition")]}


def _sure_until(decision: Decision, facts: Facts) -> float:
    """The first end (UTC seconds) of a fact that the decision used; infinite without one."""
    seen = {finding.left for finding in decision.findings}
    ends = [fact.valid_until for key, fact in facts.items() if fact.valid_until is not None and key in seen]
    return min(ends, default=float("inf"))
