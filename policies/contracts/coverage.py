"""Whether a contract covers a request: its action, purpose and time. The party is decided from facts elsewhere.

Each check raises QueryRefused with the path of the rule. Pure; the time is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from policies.contracts.contract import DataContract
from policies.errors import QueryRefused
from policies.evaluation.values import is_below, purpose_hint
from policies.model import HANSE
from policies.vocabulary import compact, resolve_alias

_QUERY, _STREAM = HANSE + "query", HANSE + "stream"


def rule_path(contract: DataContract, effect: str) -> str:
    """Return the path of the rule that had this effect, or of the permission itself."""
    return next((path for name, path in contract.reasons if name == effect), contract.permission)


def check_action(contract: DataContract, action: str) -> None:
    """Require that the permission covers the action (IRI) and that the contract is fully decided.

    Raises: QueryRefused (`action_not_agreed`).
    """
    if contract.residual:
        raise QueryRefused(
            f"the agreement has rules that cannot be decided: {'; '.join(contract.residual)}; negotiate another",
            rule=contract.residual[0].partition(" ")[0],
            code="contract_undecided",
        )
    if resolve_alias(action) not in contract.actions:
        rows = resolve_alias(action) == _STREAM and _QUERY in contract.actions
        instead = ". Its rows do not leave one by one: send a query (`space.query`)" if rows else ""
        raise QueryRefused(
            f"{compact(action)} is not agreed; agreed: {_join_iris(contract.actions)}{instead}",
            rule=contract.permission,
            code="action_not_agreed",
        )


def check_purpose(contract: DataContract, purpose: str | None) -> None:
    """Require an agreed purpose (IRI); None passes only when the contract names no purpose.

    A narrower purpose than an agreed one is covered; a broader one is not. A purpose narrower or broader than a refused
    one is refused.

    Raises: QueryRefused (`purpose_not_agreed`).
    """
    named, refused = contract.purposes, contract.purposes_refused
    if not named and not refused:
        return
    agreed = f"agreed: {_join_iris(named)}" if named else f"any but {_join_iris(refused)}"
    if not purpose:
        problem = "the request names no purpose"
    elif (named and not any(is_below(purpose, one) for one in named)) or any(
        is_below(purpose, one) or is_below(one, purpose) for one in refused
    ):
        problem = f"purpose {compact(purpose)} is not agreed{purpose_hint(purpose)}"
    else:
        return
    raise QueryRefused(
        f"{problem}; {agreed}. Name one of these, or negotiate another agreement",
        rule=rule_path(contract, "purpose"),
        code="purpose_not_agreed",
    )


def check_time(contract: DataContract, now: float) -> None:
    """Require that the contract is in force at `now` (UTC seconds).

    Raises: QueryRefused (`not_in_force`).
    """
    if contract.not_before is not None and now < contract.not_before:
        raise QueryRefused(
            f"the agreement is not in force before {_format_time(contract.not_before)}",
            rule=_time_rule(contract),
            code="not_in_force",
        )
    if contract.not_after is not None and now > contract.not_after:
        raise QueryRefused(
            f"the agreement ended {_format_time(contract.not_after)}; negotiate another",
            rule=_time_rule(contract),
            code="not_in_force",
        )


def find_covering(
    contracts: Sequence[DataContract], *, action: str, purpose: str | None, now: float | None = None
) -> list[DataContract]:
    """Return the contracts that cover the request, in order. Whether their permissions are active depends on facts.

    Columns and rows of two permissions are never merged: the server takes the first contract whose permission is
    active.

    Raises: QueryRefused of the contract that passed the most checks.
    """
    if not contracts:
        raise QueryRefused("there is no agreement for this dataset; negotiate one", code="action_not_agreed")
    found: list[DataContract] = []
    closest: tuple[int, QueryRefused] | None = None
    for contract in contracts:
        steps = 0
        try:
            check_action(contract, action)
            steps = 1
            check_purpose(contract, purpose)
            steps = 2
            if now is not None:
                check_time(contract, now)
        except QueryRefused as refused:
            if closest is None or steps > closest[0]:
                closest = (steps, refused)
        else:
            found.append(contract)
    if not found:
        assert closest is not None
        raise closest[1]
    return found


def _join_iris(iris: Sequence[str]) -> str:
    return ", ".join(compact(iri) for iri in iris)


def _time_rule(contract: DataContract) -> str:
    return next((path for name, path in contract.reasons if name in ("dateTime", "elapsedTime")), contract.permission)


def _format_time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return "the end of time"
