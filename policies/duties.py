"""The state of a duty (not due, due, fulfilled, violated), computed from events and evidence.

Pure: evidence is stored elsewhere (`connector.usage.duty_ledger`). Months follow the calendar in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from policies.evaluation import values
from policies.model import Atom, Connective, Duty, Group, Policy, Rule
from policies.vocabulary import ds, expand, odrl

AGREEMENT_END = ds("event/end")


class DutyState(StrEnum):
    """The four states of a duty."""

    NOT_DUE = "not-due"
    DUE = "due"
    FULFILLED = "fulfilled"
    VIOLATED = "violated"


@dataclass(frozen=True, slots=True)
class DutyWindow:
    """When a duty is open, in UTC seconds. `opens`: None before its event; `closes`: None without a deadline."""

    opens: float | None
    closes: float | None


def duty_window(duty: Duty, events: Mapping[str, float]) -> DutyWindow:
    """Return when the duty can be done and must be done.

    `events` maps event names (`ds:event/end`, `ds:event/revoked`, ...) to the UTC seconds at which they happened. A
    delay without `odrl:event` starts at the end of the agreement. A duty without event and delay is due from the start.

    Raises: ValueError when a value cannot be read, or a detail is not a plain constraint that occurs once.
    """
    details = _index_details(duty)
    happened = {expand(name): when for name, when in events.items()}
    delay = details.get(odrl("delayPeriod"))
    opens = _opening_time(details, happened, delayed=delay is not None)
    closes = None
    if delay is not None and opens is not None:
        closes = values.add_duration(values.nanoseconds(opens), values.duration(delay.right[0].text)) / values.SECOND
    by = details.get(odrl("dateTime"))
    if by is not None:
        end = values.instant(by.right[0].text, by.right[0].datatype)
        deadline = (end.start if by.operator == "lt" or end.loose else end.end) / values.SECOND
        closes = deadline if closes is None else min(closes, deadline)
    return DutyWindow(opens, closes)


def duty_state(duty: Duty, *, events: Mapping[str, float], fulfilled_at: float | None, now: float) -> DutyState:
    """Return the state of the duty at `now` (UTC seconds).

    `fulfilled_at` is the time of the latest evidence of fulfilment; evidence later than `now` is ignored. A duty
    fulfilled after its deadline stays violated. A repeated duty (`ds:every`) is due again one period after each
    fulfilment.

    Raises: ValueError as `duty_window`.
    """
    if fulfilled_at is not None and fulfilled_at > now:
        fulfilled_at = None
    found = duty_window(duty, events)
    every = _index_details(duty).get(ds("every"))
    if fulfilled_at is not None and (found.opens is None or fulfilled_at >= found.opens):
        if found.closes is not None and every is None and fulfilled_at > found.closes:
            return DutyState.VIOLATED
        return DutyState.FULFILLED if every is None else _repeated_state(every, fulfilled_at, now)
    if found.opens is None and (found.closes is None or now <= found.closes):
        return DutyState.NOT_DUE
    if found.closes is not None and now > found.closes:
        return DutyState.VIOLATED
    return DutyState.NOT_DUE if found.opens is None or now < found.opens else DutyState.DUE


def agreement_end(policy: Policy) -> float | None:
    """Return when an agreement ends by its own terms (UTC seconds): the end of its last permission; None without an
    end.

    Raises: ValueError when a time cannot be read.
    """
    started = values.instant(policy.timestamp).start if policy.timestamp else None
    closing = [_rule_end(rule, started) for rule in policy.permissions]
    return None if not closing or None in closing else max(end for end in closing if end is not None)


def _rule_end(rule: Rule, started: int | None) -> float | None:
    found: list[float] = []
    members = list(rule.constraints)
    while members:
        one = members.pop()
        if isinstance(one, Group):
            members += one.members if one.connective is Connective.AND else ()
        elif one.left == odrl("dateTime") and one.operator in ("lt", "lteq"):
            end = values.instant(one.right[0].text, one.right[0].datatype)
            found.append((end.start if one.operator == "lt" or end.loose else end.end) / values.SECOND)
        elif one.left == odrl("elapsedTime") and one.operator in ("lt", "lteq", "eq") and started is not None:
            found.append(values.add_duration(started, values.duration(one.right[0].text)) / values.SECOND)
    return min(found, default=None)


def _repeated_state(every: Atom, fulfilled_at: float, now: float) -> DutyState:
    period = values.duration(every.right[0].text)
    next_due = values.add_duration(values.nanoseconds(fulfilled_at), period)
    return DutyState.FULFILLED if values.nanoseconds(now) < next_due else DutyState.DUE


def _opening_time(details: Mapping[str, Atom], happened: Mapping[str, float], *, delayed: bool) -> float | None:
    event = details.get(odrl("event"))
    if event is None and not delayed:
        return 0.0  # due from the start
    names = [expand(literal.text) for literal in event.right] if event is not None else [AGREEMENT_END]
    times = [happened[name] for name in names if name in happened]
    return min(times) if times else None


def _index_details(duty: Duty) -> dict[str, Atom]:
    found: dict[str, Atom] = {}
    for constraint in duty.constraints:
        if not isinstance(constraint, Atom) or constraint.left in found:
            raise ValueError("expected a duty with plain constraints, each operand once; write two duties")
        found[constraint.left] = constraint
    return found
