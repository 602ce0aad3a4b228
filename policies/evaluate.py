"""Facts and a policy give a Decision: four values per constraint, collapsed only at the rule.

Pure: the same policy, facts, clock reading and engine version give the same decision, so that an auditor
can replay it (usage-policies, section 4). Gathers nothing, stores nothing; a policy is compiled to
closures once and the plan is kept.

Three points where the specification leaves room, decided towards "no":
- before its phase an operand is deferred whatever facts lie there, so that leaving one out never helps;
- under a prohibition `or` ranks unknown above deferred, for the same reason;
- a broad permission (`use`) reaches training only where the asset is known not to reserve mining.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

from policies import known, operators, values, vocabulary, words
from policies.model import Atom, Conflict, Connective, Constraint, Duty, Group, Kind, Literal, Policy, Rule
from policies.vocabulary import Counting, Operand, Phase, ValueType, compact, expand

ENGINE = "hanse-policies/1"

UNSATISFIED, SATISFIED, UNKNOWN, DEFERRED = 0, 1, 2, 3
_RESULTS = ("unsatisfied", "satisfied", "unknown", "deferred")

Observed: TypeAlias = str | int | float | Decimal | bool | date | None


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known under one key, who says so, and until when (UTC seconds); `personal` is hashed when shown."""

    values: tuple[Observed, ...]
    source: str = ""
    valid_until: float | None = None
    personal: bool = False


class Facts(Mapping[str, Fact]):
    """A frozen snapshot of facts by short key (`ds:membership`, `odrl:purpose`). What is absent is unknown.

    Beside the operands' own keys: `ds:fulfilled` and `ds:violated` hold paths or actions of duties,
    `ds:enforced` holds paths or operands that a compiled contract makes true, `ds:start` the start of
    elapsed time where the policy has no timestamp, `ds:miningReserved` whether the asset reserves mining.
    Counting facts (`odrl:count`, `ds:queriesPerDay`, `ds:concurrency`) state what went before.
    """

    __slots__ = ("_facts",)

    def __init__(self, facts: Mapping[str, Fact] | None = None) -> None:
        self._facts: dict[str, Fact] = {compact(expand(key)): fact for key, fact in (facts or {}).items()}

    @classmethod
    def of(cls, given: Mapping[str, Observed | Iterable[Observed] | Fact], *, source: str = "") -> Facts:
        """Facts from plain values: `Facts.of({"ds:membership": "active", "odrl:purpose": ["dpv:X"]})`."""
        return cls({key: _fact(value, source) for key, value in given.items()})

    def adding(self, more: Mapping[str, Fact]) -> Facts:
        """These facts and more; the newer one wins."""
        return Facts({**self._facts, **more})

    def without(self, key: str) -> Facts:
        """These facts without one."""
        return Facts({name: fact for name, fact in self._facts.items() if name != compact(expand(key))})

    def __getitem__(self, key: str) -> Fact:
        return self._facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __repr__(self) -> str:
        return f"Facts({sorted(self._facts)})"

    def to_json(self) -> dict[str, Any]:
        """The snapshot for the audit log; personal values as hashes."""
        return {
            key: {
                "values": [_shown(value, fact.personal) for value in fact.values],
                "source": fact.source,
                **({} if fact.valid_until is None else {"validUntil": fact.valid_until}),
            }
            for key, fact in sorted(self._facts.items())
        }


def _fact(value: Observed | Iterable[Observed] | Fact, source: str) -> Fact:
    if isinstance(value, Fact):
        return value
    if value is None or isinstance(value, str | int | float | Decimal | date):
        return Fact((value,), source)
    return Fact(tuple(value), source)


class Finding(NamedTuple):
    """One constraint that was looked at (a NamedTuple: thousands are made per second)."""

    rule: str
    constraint: str
    left: str
    op: str
    expected: tuple[str, ...]
    observed: tuple[str, ...]
    result: str
    source: str
    phase: str

    def to_json(self) -> dict[str, Any]:
        """As in the specification's example line."""
        return {**self._asdict(), "expected": list(self.expected), "observed": list(self.observed)}


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no, by which permission, and why. `carried` names what a later phase still has to decide."""

    permitted: bool
    permission: str | None
    findings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    action: str = ""
    phase: Phase = Phase.TRANSFER

    def to_json(self) -> dict[str, Any]:
        """For replies, log and page alike."""
        return {
            "permitted": self.permitted,
            "permission": self.permission,
            "action": compact(self.action),
            "phase": self.phase.value,
            "reasons": list(self.reasons),
            "carried": list(self.carried),
            "findings": [finding.to_json() for finding in self.findings],
            "engine": ENGINE,
        }


# --- the moment of a decision ----------------------------------------------------------------------------


class _Moment:
    """All that a compiled check may look at."""

    __slots__ = ("enforced", "facts", "fulfilled", "lenient", "now", "ns", "phase", "start", "violated")

    def __init__(self, facts: Facts, phase: int, now: float, start: int | None, lenient: bool) -> None:
        self.facts = facts._facts
        self.phase = phase
        self.now = now
        self.ns = values.nanoseconds(now)
        self.start = start if start is not None else self._stated_start()
        self.lenient = lenient
        self.fulfilled = self._named("ds:fulfilled")
        self.violated = self._named("ds:violated") if lenient else frozenset()
        self.enforced = self._named("ds:enforced")

    def fresh(self, key: str) -> Fact | None:
        """The fact, unless it is missing, empty or past its time."""
        fact = self.facts.get(key)
        if fact is None or not fact.values or (fact.valid_until is not None and self.now >= fact.valid_until):
            return None
        return fact

    def _named(self, key: str) -> frozenset[str]:
        fact = self.fresh(key) if key in self.facts else None
        return frozenset(expand(str(value)) for value in fact.values) if fact else frozenset()

    def _stated_start(self) -> int | None:
        fact = self.fresh("ds:start") if "ds:start" in self.facts else None
        return _start_of(str(fact.values[0])) if fact and len(fact.values) == 1 else None


def _start_of(text: str) -> int | None:
    try:
        moment = values.instant(text)
    except ValueError:
        return None
    return moment.start if moment.start == moment.end else None


Check: TypeAlias = Callable[[_Moment], int]
_TRANSFER, _QUERY, _BATCH = Phase.TRANSFER.order, Phase.QUERY.order, Phase.BATCH.order


# --- atoms -----------------------------------------------------------------------------------------------


class _Leaf:
    """One compiled atom or duty: its check, and what an explanation says about it."""

    __slots__ = ("check", "expected", "fact", "left", "op", "path", "personal", "said")

    def __init__(self, path: str, *, left: str, op: str, expected: tuple[str, ...], fact: str, check: Check) -> None:
        self.path, self.left, self.op, self.expected = path, left, op, expected
        self.fact, self.check = fact, check
        self.personal = False
        self.said = ""

    def finding(self, moment: _Moment, rule: str, phase: str) -> Finding:
        result = self.check(moment)
        observed, source = self._observed(moment, result)
        return Finding(rule, self.path, self.left, self.op, self.expected, observed, _RESULTS[result], source, phase)

    def _observed(self, moment: _Moment, result: int) -> tuple[tuple[str, ...], str]:
        if self.fact == "clock":
            return (values.written(moment.now),), "clock"
        if result == DEFERRED:
            return (), ""
        fact = moment.facts.get(self.fact)
        if fact is None:
            return ((), "contract") if result == SATISFIED else ((), "")
        personal = self.personal or fact.personal
        return tuple(_shown(value, personal) for value in fact.values), fact.source


def _shown(value: Observed, personal: bool) -> str:
    text = "null" if value is None else str(value)
    if personal:
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return compact(text)


def _leaf(atom: Atom, path: str) -> _Leaf:
    operand = vocabulary.operand(atom.left)
    if operand is None:  # the policy is refused as a whole before this is asked
        check, key = _constant(UNKNOWN), ""
    else:
        check, key = _check(operand, atom, path)
    leaf = _Leaf(
        path,
        left=compact(atom.left),
        op=atom.operator,
        expected=tuple(compact(literal.text) for literal in atom.right),
        fact=key,
        check=check,
    )
    leaf.personal = operand.personal if operand else False
    leaf.said = words.atom(atom)
    return leaf


def _constant(code: int) -> Check:
    return lambda moment: code


def _check(operand: Operand, atom: Atom, path: str) -> tuple[Check, str]:
    """The check of one atom, and the key under which its fact is found."""
    try:
        if operand.counting is Counting.CLOCK:
            return _clock_check(operand, atom), "clock"
        if operand.counting is Counting.ELAPSED:
            return _elapsed_check(operand, atom), "clock"
        key = compact(atom.left) if operand.parameter else operand.fact
        return _fact_check(operand, atom, key, path), key
    except (ValueError, KeyError, IndexError):  # unreadable: the policy is refused as a whole before this is asked
        return _constant(UNKNOWN), operand.fact


def _verdict(answer: bool | None) -> int:
    return UNKNOWN if answer is None else SATISFIED if answer else UNSATISFIED


def _clock_check(operand: Operand, atom: Atom) -> Check:
    """Before its phase only what can never change again is said: time moves forward."""
    literal, op = atom.right[0], atom.operator
    right = values.instant(literal.text, literal.datatype)
    at, final = operand.phase.order, _final(op)

    def check(moment: _Moment) -> int:
        answer = operators.moment(op, moment.ns, right)
        if moment.phase < at:
            settled = answer if op not in ("eq", "neq") else (answer if moment.ns > right.end else None)
            return _verdict(settled) if settled is not None and settled in final else DEFERRED
        return _verdict(answer)

    return check


def _final(op: str) -> tuple[bool, ...]:
    """Answers that stay: a deadline once missed, a start once reached."""
    if op in ("lt", "lteq"):
        return (False,)
    return (True,) if op in ("gt", "gteq") else (True, False)


def _elapsed_check(operand: Operand, atom: Atom) -> Check:
    span = values.duration(atom.right[0].text)
    op, at = atom.operator, operand.phase.order
    over = op in ("gt", "gteq")

    def check(moment: _Moment) -> int:
        if moment.phase < at:
            return DEFERRED
        if moment.start is None:
            return UNKNOWN
        end = values.later(moment.start, span)
        if over:
            return int(moment.ns > end if op == "gt" else moment.ns >= end)
        return int(moment.ns < end if op == "lt" else moment.ns <= end)

    return check


def _fact_check(operand: Operand, atom: Atom, key: str, path: str) -> Check:
    compare = _comparison(operand, atom)
    at = _BATCH if operand.by_engine else operand.phase.order
    by_engine, names = operand.by_engine, frozenset((path, atom.left, operand.name))

    def check(moment: _Moment) -> int:
        if moment.phase < at:
            return DEFERRED
        if by_engine and not names.isdisjoint(moment.enforced):
            return SATISFIED
        fact = moment.fresh(key)
        return UNKNOWN if fact is None else _verdict(compare(fact))

    return check


def _comparison(operand: Operand, atom: Atom) -> Callable[[Fact], bool | None]:
    """Fact in, answer out; a fact that cannot be read as the operand's type leaves it unknown."""
    if operand.type is ValueType.SCALAR:
        texts = [literal.text for literal in atom.right]
        return lambda fact: operators.scalar(atom.operator, fact.values[0], texts) if len(fact.values) == 1 else None
    right = [values.parse(operand.type, one.text, one.datatype, operand.levels) for one in atom.right]
    test = operators.test_for(atom.operator, right)
    type_, levels, extra = operand.type, operand.levels, operand.counting is Counting.BEFORE

    def compare(fact: Fact) -> bool | None:
        try:
            left = [values.parse(type_, str(value), "", levels) for value in fact.values if value is not None]
        except ValueError:
            return None
        if not left or len(left) != len(fact.values):
            return None
        if extra:
            left = [value + 1 for value in left if isinstance(value, Decimal)]
        return test(left)

    return compare


# --- groups and rules ------------------------------------------------------------------------------------


def _node(constraint: Constraint, path: str, leaves: list[_Leaf], *, strict: bool) -> Check:
    if isinstance(constraint, Atom):
        leaf = _leaf(constraint, path)
        leaves.append(leaf)
        return leaf.check
    return _group(constraint, path, leaves, strict=strict)


def _group(group: Group, path: str, leaves: list[_Leaf], *, strict: bool) -> Check:
    checks = tuple(
        _node(member, f"{path}/{group.connective.value}/{index}", leaves, strict=strict)
        for index, member in enumerate(group.members)
    )
    if group.connective is Connective.AND:
        return _all(checks)
    if group.connective is Connective.XONE:
        return _exactly_one(checks)
    ranks = (SATISFIED, UNKNOWN, DEFERRED) if strict else (SATISFIED, DEFERRED, UNKNOWN)
    return _any(checks, ranks)


def _all(checks: tuple[Check, ...]) -> Check:
    """`and`: unsatisfied wins, then unknown, then deferred."""

    def check(moment: _Moment) -> int:
        worst = SATISFIED
        for one in checks:
            code = one(moment)
            if code == UNSATISFIED:
                return UNSATISFIED
            if code == UNKNOWN or (code == DEFERRED and worst == SATISFIED):
                worst = code
        return worst

    return check


def _any(checks: tuple[Check, ...], ranks: tuple[int, ...]) -> Check:
    """`or`: the first of `ranks` that occurs, else unsatisfied."""

    def check(moment: _Moment) -> int:
        seen = {one(moment) for one in checks}
        for code in ranks:
            if code in seen:
                return code
        return UNSATISFIED

    return check


def _exactly_one(checks: tuple[Check, ...]) -> Check:
    """`xone`: two satisfied is unsatisfied; else any unknown, any deferred, exactly one satisfied."""

    def check(moment: _Moment) -> int:
        codes = [one(moment) for one in checks]
        yes = codes.count(SATISFIED)
        if yes > 1:
            return UNSATISFIED
        if UNKNOWN in codes:
            return UNKNOWN
        return DEFERRED if DEFERRED in codes else int(yes == 1)

    return check


@dataclass(frozen=True, slots=True)
class _RulePlan:
    path: str
    action: str
    check: Check
    leaves: tuple[_Leaf, ...]


def _permission(rule: Rule, path: str) -> _RulePlan:
    leaves: list[_Leaf] = []
    checks = [
        _node(one, f"{path}/constraint/{index}", leaves, strict=False) for index, one in enumerate(rule.constraints)
    ]
    for index, duty in enumerate(rule.duties):
        leaf = _duty_leaf(duty, f"{path}/duty/{index}")
        if leaf is not None:
            leaves.append(leaf)
            checks.append(leaf.check)
    return _RulePlan(path, rule.action, _all(tuple(checks)), tuple(leaves))


def _duty_leaf(duty: Duty, path: str) -> _Leaf | None:
    """A duty before use: the permission sleeps until it is fulfilled. Masks are the engine's own work."""
    action = vocabulary.ACTIONS.get(duty.action)
    if action is not None and action.by_engine:
        return None
    name = duty.action

    def check(moment: _Moment) -> int:
        if moment.phase < _TRANSFER:
            return DEFERRED
        if moment.lenient:
            return int(path not in moment.violated and name not in moment.violated)
        return SATISFIED if path in moment.fulfilled or name in moment.fulfilled else UNSATISFIED

    leaf = _Leaf(path, left=compact(name), op="duty", expected=("fulfilled",), fact="ds:fulfilled", check=check)
    leaf.said = f"first: {words.duty(duty)}"
    return leaf


def _prohibition(rule: Rule, path: str) -> _RulePlan:
    leaves: list[_Leaf] = []
    checks = tuple(
        _node(one, f"{path}/constraint/{index}", leaves, strict=True) for index, one in enumerate(rule.constraints)
    )
    return _RulePlan(path, rule.action, _all(checks), tuple(leaves))


# --- plans -----------------------------------------------------------------------------------------------


class _Plan:
    """A policy compiled once."""

    __slots__ = ("_by_action", "assignee", "conflict", "permissions", "prohibitions", "refused", "start")

    def __init__(self, policy: Policy) -> None:
        self.permissions = [_permission(rule, f"/permission/{i}") for i, rule in enumerate(policy.permissions)]
        self.prohibitions = [_prohibition(rule, f"/prohibition/{i}") for i, rule in enumerate(policy.prohibitions)]
        self.conflict = policy.conflict
        self.start = _start_of(policy.timestamp) if policy.timestamp else None
        self.refused = tuple(f"{one.path}: {one.message}" for one in known.unclear(policy)) + _void(policy)
        self.assignee = _assignee(policy)
        self._by_action: dict[str, tuple[list[_RulePlan], list[_RulePlan]]] = {}

    def covering(self, action: str) -> tuple[list[_RulePlan], list[_RulePlan]]:
        """Permissions and prohibitions whose action reaches `action`."""
        found = self._by_action.get(action)
        if found is None:
            reach = vocabulary.action_includes
            found = (
                [_guarded(rule, action) for rule in self.permissions if reach(rule.action, action)],
                [rule for rule in self.prohibitions if reach(rule.action, action)],
            )
            if len(self._by_action) < 64:  # the caller may ask for anything
                self._by_action[action] = found
        return found


def _void(policy: Policy) -> tuple[str, ...]:
    """Strategy `invalid`: any overlap of a permission and a prohibition voids the whole policy."""
    if policy.conflict is not Conflict.INVALID:
        return ()
    reach = vocabulary.action_includes
    for i, allowed in enumerate(policy.permissions):
        for j, forbidden in enumerate(policy.prohibitions):
            if reach(allowed.action, forbidden.action) or reach(forbidden.action, allowed.action):
                return (
                    f"/permission/{i} and /prohibition/{j} conflict, and the policy's strategy is invalid: "
                    "the whole policy is void; state the strategy prohibit",
                )
    return ()


def _assignee(policy: Policy) -> _Leaf | None:
    """An agreement gives rights to its assignee alone."""
    if policy.kind is not Kind.AGREEMENT:
        return None
    atom = Atom(vocabulary.ds("participant"), "eq", (Literal(policy.assignee),))
    return _leaf(atom, "/assignee")


_MINING = vocabulary.ds("mining")


def _guarded(rule: _RulePlan, action: str) -> _RulePlan:
    """A permission that does not name mining or training reaches them only where nothing is reserved."""
    reach = vocabulary.action_includes
    if not reach(_MINING, action) or reach(_MINING, rule.action):
        return rule

    def check(moment: _Moment) -> int:
        if moment.phase < _TRANSFER:
            return DEFERRED
        fact = moment.fresh("ds:miningReserved")
        if fact is None:
            return UNKNOWN
        return int(all(str(value).lower() in ("false", "0", "no") for value in fact.values))

    leaf = _Leaf(
        rule.path, left="ds:miningReserved", op="eq", expected=("false",), fact="ds:miningReserved", check=check
    )
    leaf.said = "the asset does not reserve mining and training"
    return _RulePlan(rule.path, rule.action, _all((rule.check, check)), (*rule.leaves, leaf))


# Keyed by identity, which costs nothing; the entry holds the policy, so that an id cannot come to mean another.
_PLANS: OrderedDict[int, tuple[Policy, _Plan]] = OrderedDict()
_MAX_PLANS = 2_048


def _plan(policy: Policy) -> _Plan:
    entry = _PLANS.get(id(policy))
    if entry is not None and entry[0] is policy:
        return entry[1]
    plan = _Plan(policy)
    while len(_PLANS) >= _MAX_PLANS:
        try:
            _PLANS.popitem(last=False)
        except KeyError:  # another thread emptied it
            break
    _PLANS[id(policy)] = (policy, plan)
    return plan


# --- decisions -------------------------------------------------------------------------------------------


class _Outcome(NamedTuple):
    permitted: bool
    active: _RulePlan | None
    hit: _RulePlan | None  # a prohibition that applies, or cannot be decided any more
    carried: tuple[_RulePlan, ...]  # prohibitions for a later phase


def _decide(plan: _Plan, moment: _Moment, action: str) -> _Outcome:
    permissions, prohibitions = plan.covering(action)
    hit, carried = None, []
    last = moment.phase >= _BATCH
    for rule in prohibitions:
        code = rule.check(moment)
        if code in (SATISFIED, UNKNOWN) or (code == DEFERRED and last):
            hit = rule
            break
        if code == DEFERRED:
            carried.append(rule)
    active = None
    if hit is None or plan.conflict is Conflict.PERM:
        for rule in permissions:
            code = rule.check(moment)
            if code == SATISFIED or (code == DEFERRED and not last):
                active = rule
                break
    if plan.conflict is Conflict.PERM and active is not None:
        return _Outcome(True, active, None, ())
    return _Outcome(hit is None and active is not None, active, hit, tuple(carried))


def permits(
    policy: Policy, facts: Facts, *, action: str, phase: Phase, now: float, lenient_duties: bool = False
) -> bool:
    """The yes or no of `evaluate`, without its explanation."""
    plan = _plan(policy)
    if plan.refused or (policy.kind is Kind.OFFER and phase.order >= _TRANSFER):
        return False
    moment = _Moment(facts, phase.order, now, plan.start, lenient_duties)
    if plan.assignee is not None and plan.assignee.check(moment) != SATISFIED:
        return False
    return _decide(plan, moment, expand(action)).permitted


def evaluate(
    policy: Policy, facts: Facts, *, action: str, phase: Phase, now: float, lenient_duties: bool = False
) -> Decision:
    """Whether `action` is permitted in `phase` at `now` (UTC seconds), by which permission, and why.

    Only Sets and Agreements grant; an Offer is looked at up to the agreement, to see whether it could be
    concluded. An agreement demands the fact `ds:participant` to be its assignee. `lenient_duties` lets a
    duty block only once it is violated (an option for conformance runs). Never raises on policy content.
    """
    plan = _plan(policy)
    action = expand(action)
    refused = plan.refused
    if not refused and policy.kind is Kind.OFFER and phase.order >= _TRANSFER:
        refused = ("an offer grants nothing; conclude an agreement first",)
    if refused:
        return Decision(False, None, (), refused, (), action, phase)
    moment = _Moment(facts, phase.order, now, plan.start, lenient_duties)
    if plan.assignee is not None and plan.assignee.check(moment) != SATISFIED:
        finding = plan.assignee.finding(moment, "/assignee", phase.value)
        reason = f"the agreement is with {policy.assignee}, and the caller is not known to be that party"
        return Decision(False, None, (finding,), (reason,), (), action, phase)
    outcome = _decide(plan, moment, action)
    findings = tuple(_findings(plan, moment, action, phase.value))
    reasons, carried = _told(outcome, plan, findings, action)
    permission = outcome.active.path if outcome.permitted and outcome.active else None
    return Decision(outcome.permitted, permission, findings, reasons, carried, action, phase)


def concludable(policy: Policy, facts: Facts, *, phase: Phase, now: float) -> Decision:
    """Whether any permission of an offer could ever be active for this party: show it, or negotiate it.

    The decision for the first permission whose own action passes, else for the last with all reasons.
    """
    refusals: list[Decision] = []
    for action in dict.fromkeys(rule.action for rule in policy.permissions):
        decision = evaluate(policy, facts, action=action, phase=phase, now=now)
        if decision.permitted:
            return decision
        refusals.append(decision)
    if not refusals:
        return Decision(False, None, (), ("the policy holds no permission, so nothing can be agreed",), (), "", phase)
    reasons = tuple(dict.fromkeys(reason for one in refusals for reason in one.reasons))
    return replace(refusals[-1], reasons=reasons)


def as_if_agreed(policy: Policy) -> Policy:
    """The offer's rules as a Set, which grants without parties: to try a policy before it is published."""
    return replace(policy, kind=Kind.SET)


def _findings(plan: _Plan, moment: _Moment, action: str, phase: str) -> Iterator[Finding]:
    for group in plan.covering(action):
        for rule in group:
            for leaf in rule.leaves:
                yield leaf.finding(moment, rule.path, phase)


def _told(
    outcome: _Outcome, plan: _Plan, findings: tuple[Finding, ...], action: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reasons in plain words, and the paths that are carried to a later phase."""
    waiting = {rule.path for rule in outcome.carried}
    if outcome.permitted and outcome.active:
        waiting.add(outcome.active.path)
        carried = tuple(f.constraint for f in findings if f.result == "deferred" and f.rule in waiting)
        return (f"{outcome.active.path} permits to {words.action(outcome.active.action)}",), carried
    if outcome.hit is not None:
        return (_hit_reason(outcome.hit, findings),), ()
    permissions = plan.covering(action)[0]
    if not permissions:
        return (f"no permission covers {compact(action)}; what is not permitted is denied",), ()
    reasons = [reason for rule in permissions for reason in _missing(rule, findings)]
    return tuple(reasons), ()


def _hit_reason(rule: _RulePlan, findings: tuple[Finding, ...]) -> str:
    unknown = [one.left for one in findings if one.rule == rule.path and one.result in ("unknown", "deferred")]
    why = f"; not known, so it counts as met: {', '.join(unknown)}" if unknown else ""
    return f"{rule.path} forbids to {words.action(rule.action)}{why}"


def _missing(rule: _RulePlan, findings: tuple[Finding, ...]) -> Iterator[str]:
    said = {leaf.path: leaf.said for leaf in rule.leaves}
    for one in findings:
        if one.rule != rule.path or one.result == "satisfied":
            continue
        if one.result == "unsatisfied":
            came = f"observed {', '.join(one.observed)}" if one.observed else "it is not so"
            yield f"{one.constraint}: needed: {said.get(one.constraint, one.left)}; {came}"
        elif one.result == "unknown":
            yield f"{one.constraint}: needed: {said.get(one.constraint, one.left)}; nobody has vouched for {one.left}"
        elif one.phase in (Phase.BATCH.value, Phase.AFTER.value):
            yield f"{one.constraint}: needed: {said.get(one.constraint, one.left)}; nothing decided it in time"
