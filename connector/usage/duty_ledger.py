"""The duties of agreements, their state and the evidence for them.

A duty before use unlocks data, so only the owner's record fulfils it. A duty after use is reported by the party that
did it, and both sides keep the report. `look` publishes an event for each change of state, as a reminder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from connector.datasets import stored_policies
from connector.errors import Absent, Invalid, Limited, WrongState
from connector.events import DutyChanged, DutyReported
from connector.store import Transaction
from connector.store.tables import Agreement, DutyEvidence, DutyWatch
from policies import duties as rules
from policies.duties import DutyState
from policies.evaluation.evaluate import Fact, Facts
from policies.model import Duty, Policy
from policies.review import phrases
from policies.vocabulary import ACTIONS, compact, ds

PROVIDER, CONSUMER = "provider", "consumer"
BREACH = ds("event/breach")
_UNCHANGED_MAX = 10  # reports of a side that leave a duty unchanged: all are read with the duty
_LATER = 3_600  # seconds to wait after too many reports


@dataclass(frozen=True, slots=True)
class DutyStatus:
    """The state of a duty of an agreement now; `opens` and `closes` are UTC seconds."""

    path: str
    duty: Duty
    before_use: bool
    state: DutyState
    opens: float | None
    closes: float | None
    evidence: tuple[DutyEvidence, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON form for API and console."""
        return {
            "path": self.path,
            "action": compact(self.duty.action),
            "says": phrases.duty(self.duty),
            "before_use": self.before_use,
            "state": self.state.value,
            "opens": self.opens or None,
            "closes": self.closes,
            "evidence": [
                {"given_by": one.given_by, "actor": one.actor, "at": one.fulfilled_at, "evidence": one.evidence}
                for one in self.evidence
            ],
        }


def list_duties(tx: Transaction, agreement: Agreement, *, now: float) -> list[DutyStatus]:
    """All duties of an agreement, in the policy's order, without masks, which the engine enforces.

    Raises: Denied if the policy is not understood any more.
    """
    policy = stored_policies.read_agreement_policy(agreement)
    happened = _read_event_times(tx, agreement, policy, now)
    given = tx.duties.list_evidence(agreement.id, role=agreement.role)
    return [_duty_status(path, duty, given, happened, now=now) for path, duty in _duties(policy)]


def _duty_status(
    path: str, duty: Duty, given: Sequence[DutyEvidence], happened: dict[str, float], *, now: float
) -> DutyStatus:
    before_use = path.startswith("/permission")
    mine = tuple(one for one in given if one.path == path)
    counts = [one.fulfilled_at for one in mine if not before_use or one.given_by == PROVIDER]
    try:
        window = rules.duty_window(duty, happened)
        state = rules.duty_state(duty, events=happened, fulfilled_at=max(counts, default=None), now=now)
    except ValueError:  # lint refuses such duties; an older agreement may have one
        window, state = rules.DutyWindow(None, None), DutyState.DUE
    return DutyStatus(path, duty, before_use, state, window.opens, window.closes, mine)


def read_fulfilled(tx: Transaction, agreement: Agreement, *, now: float) -> Facts:
    """The duties before use that are fulfilled, as a fact for the evaluator; empty without any."""
    if not any("duty" in rule for rule in agreement.policy.get("permission", ())):
        return Facts()
    done = [one.path for one in list_duties(tx, agreement, now=now) if one.before_use and one.state == "fulfilled"]
    return Facts({"ds:fulfilled": Fact(tuple(done), "ledger")}) if done else Facts()


def report(tx: Transaction, agreement: Agreement, path: str, *, given_by: str, actor: str, evidence: str) -> DutyStatus:
    """Record evidence that a duty was fulfilled now, and return its state.

    Raises: Absent for a path without a duty; WrongState if it is fulfilled, not due, or has this evidence already;
    Invalid without evidence; Limited after many reports of `given_by` that changed nothing.
    """
    found = next((one for one in list_duties(tx, agreement, now=tx.now) if one.path == path), None)
    if found is None:
        paths = ", ".join(name for name, _ in _duties(stored_policies.read_agreement_policy(agreement))) or "none"
        raise Absent(f"the agreement has no duty at {path[:100]!r}; it has {paths}")
    if found.state == DutyState.FULFILLED and any(one.given_by == given_by for one in found.evidence):
        raise WrongState(f"{path} is fulfilled already")
    if found.state == DutyState.NOT_DUE:
        raise WrongState(f"{path} is not due yet: {phrases.duty(found.duty)}")
    if not evidence.strip():
        raise Invalid("expected evidence in words: what was done, when, and where to see it")
    _check_new(tx, agreement, found, given_by=given_by, evidence=evidence)
    tx.duties.add(
        DutyEvidence(
            agreement_id=agreement.id,
            role=agreement.role,
            path=path,
            given_by=given_by,
            actor=actor,
            fulfilled_at=tx.now,
            evidence=evidence,
        )
    )
    detail = {"path": path, "duty": phrases.duty(found.duty), "given_by": given_by, "counterparty": _other(agreement)}
    tx.publish(
        DutyReported(actor=actor, dataset=agreement.dataset_id, agreement=agreement.id, reason=evidence, detail=detail)
    )
    tx.session.flush()
    look(tx, agreement, now=tx.now)
    return next(one for one in list_duties(tx, agreement, now=tx.now) if one.path == path)


def _check_new(tx: Transaction, agreement: Agreement, duty: DutyStatus, *, given_by: str, evidence: str) -> None:
    """Refuse evidence repeated since the last change of state, and too many reports. Raises: WrongState, Limited."""
    told = tx.duties.read_states(agreement.id, role=agreement.role).get(duty.path)
    if told is None or told.state != duty.state:  # it has changed since the last event
        return
    said = [one.evidence for one in duty.evidence if one.given_by == given_by and one.fulfilled_at >= told.told_at]
    if evidence in said:
        raise WrongState(f"this evidence for {duty.path} is kept already")
    if len(said) >= _UNCHANGED_MAX:
        raise Limited(
            f"expected at most {_UNCHANGED_MAX} reports of the {given_by} that leave {duty.path} {duty.state}, "
            "got more; ask the other side what is missing",
            code="reports_max",
            retry_after=_LATER,
        )


def look(tx: Transaction, agreement: Agreement, *, now: float) -> list[DutyStatus]:
    """The state of every duty; each change since the last call is published once as an event."""
    found = list_duties(tx, agreement, now=now)
    told = tx.duties.read_states(agreement.id, role=agreement.role)
    for one in found:
        before = told.get(one.path)
        if one.state == (DutyState.NOT_DUE if before is None else before.state):
            continue
        key = {"agreement_id": agreement.id, "role": agreement.role, "path": one.path}
        tx.duties.store_state(DutyWatch(**key, state=one.state.value, told_at=now))
        said = {"path": one.path, "duty": phrases.duty(one.duty), "state": one.state.value, "closes": one.closes}
        tx.publish(
            DutyChanged(
                actor="clock",
                dataset=agreement.dataset_id,
                agreement=agreement.id,
                reason=_reminder(one),
                rule=one.path,
                detail={**said, "role": agreement.role, "counterparty": _other(agreement)},
            )
        )
    return found


def _reminder(one: DutyStatus) -> str:
    said = phrases.duty(one.duty)
    return {
        DutyState.DUE: f"to do: {said}",
        DutyState.VIOLATED: f"overdue: {said}",
        DutyState.FULFILLED: f"done: {said}",
        DutyState.NOT_DUE: f"not due: {said}",
    }[one.state]


def _duties(policy: Policy) -> Iterator[tuple[str, Duty]]:
    for index, rule in enumerate(policy.permissions):
        for number, duty in enumerate(rule.duties):
            known = ACTIONS.get(duty.action)
            if known is None or not known.by_engine:
                yield f"/permission/{index}/duty/{number}", duty
    for index, duty in enumerate(policy.obligations):
        yield f"/obligation/{index}", duty


def _read_event_times(tx: Transaction, agreement: Agreement, policy: Policy, now: float) -> dict[str, float]:
    """The times (UTC seconds) of past events that duties refer to."""
    found: dict[str, float] = {}
    end = rules.agreement_end(policy)
    if agreement.ended_at is not None:
        found[ds("event/revoked")] = agreement.ended_at
        end = agreement.ended_at if end is None else min(end, agreement.ended_at)
    if end is not None and end <= now:
        found[rules.AGREEMENT_END] = end
    moments = tx.transfers.read_moments(agreement.id, role=agreement.role)
    found |= {ds(f"event/transfer{name}"): at for name, at in moments.items()}
    breach = tx.duties.read_first_violation(agreement.id, role=agreement.role)
    return found | ({BREACH: breach} if breach is not None else {})


def _other(agreement: Agreement) -> str:
    return agreement.consumer if agreement.role == PROVIDER else agreement.provider
