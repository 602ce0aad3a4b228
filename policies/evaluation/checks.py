"""Compiles an atom or duty to a check: a function from the moment of a decision to one of four codes.

Codes are small integers because millions are compared each second; `RESULTS` has their names. Groups and rules are
compiled in `compiled_policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple, TypeAlias

from policies import vocabulary
from policies.evaluation import operators, values
from policies.evaluation.facts import Fact, Moment, format_observed
from policies.model import Atom, Duty
from policies.review import phrases, unknown_terms
from policies.vocabulary import Counting, Operand, Phase, ValueType, compact

UNSATISFIED, SATISFIED, UNKNOWN, DEFERRED = 0, 1, 2, 3
RESULTS = ("unsatisfied", "satisfied", "unknown", "deferred")
TRANSFER, BATCH = Phase.TRANSFER.order, Phase.BATCH.order

Check: TypeAlias = Callable[[Moment], int]


class ConstraintFinding(NamedTuple):
    """The result of one constraint. A NamedTuple, because thousands are made each second."""

    rule: str
    constraint: str
    left: str
    op: str
    expected: tuple[str, ...]
    observed: tuple[str, ...]
    result: str
    source: str
    phase: str

    def to_json(self) -> dict[str, object]:
        """Return the finding as a JSON object."""
        return {**self._asdict(), "expected": list(self.expected), "observed": list(self.observed)}


class Leaf:
    """One compiled atom or duty: its check, and the texts for an explanation."""

    __slots__ = ("_waiting", "check", "expected", "fact", "left", "op", "path", "personal")

    def __init__(
        self,
        path: str,
        *,
        left: str,
        op: str,
        expected: tuple[str, ...],
        fact: str,
        check: Check,
        personal: bool = False,
    ) -> None:
        self.path, self.left, self.op, self.expected = path, left, op, expected
        self.fact, self.check, self.personal = fact, check, personal
        self._waiting: dict[tuple[str, str], ConstraintFinding] = {}

    def make_finding(self, moment: Moment, rule: str, phase: str, code: int) -> ConstraintFinding:
        """Return what was expected and observed, the source, and the result `code` of the check."""
        observed: tuple[str, ...]
        if self.fact == "clock":
            observed, source = (values.format_time(moment.now),), "clock"
        elif code == DEFERRED:  # the same each time, and the most frequent result in early phases
            return self._make_deferred(rule, phase)
        elif (fact := moment.facts.get(self.fact)) is None:
            observed, source = (), "contract" if code == SATISFIED else ""
        else:
            personal = self.personal or fact.personal
            observed, source = tuple([format_observed(value, personal=personal) for value in fact.values]), fact.source
        # The tuple's own constructor: the named one takes three times as long, and this is half of an explanation.
        fields = (rule, self.path, self.left, self.op, self.expected, observed, RESULTS[code], source, phase)
        return tuple.__new__(ConstraintFinding, fields)

    def _make_deferred(self, rule: str, phase: str) -> ConstraintFinding:
        found = self._waiting.get((rule, phase))
        if found is None:
            found = ConstraintFinding(
                rule, self.path, self.left, self.op, self.expected, (), RESULTS[DEFERRED], "", phase
            )
            self._waiting[rule, phase] = found
        return found


def atom_leaf(atom: Atom, path: str, *, claimable: bool = False) -> Leaf:
    """Compile one atom. An atom that cannot be read yields unknown; a policy with one is refused as a whole earlier.

    `claimable`: `ds:enforced` of a contract may stand for an observation. Only valid where satisfied is the best
    result: not in a prohibition and not under `xone`.
    """
    operand = vocabulary.operand(atom.left)
    check, key = _compile_atom(operand, atom, path, claimable) if operand else (constant_check(UNKNOWN), "")
    return Leaf(
        path,
        left=compact(atom.left),
        op=atom.operator,
        expected=tuple(compact(literal.text) for literal in atom.right),
        fact=key,
        check=check,
        personal=operand.personal if operand else False,
    )


def duty_leaf(duty: Duty, path: str) -> Leaf | None:
    """Compile a duty before use: the permission is inactive until it is fulfilled. Returns None for masks."""
    action = vocabulary.ACTIONS.get(duty.action)
    if action is not None and action.by_engine:
        return None
    names = frozenset((path, duty.action))

    def check(moment: Moment) -> int:
        if moment.phase < TRANSFER:
            return DEFERRED
        return int(not names.isdisjoint(moment.fulfilled))

    return Leaf(path, left=compact(duty.action), op="duty", expected=("fulfilled",), fact="ds:fulfilled", check=check)


def mining_leaf(path: str) -> Leaf:
    """Compile the check that the asset is known not to reserve mining and training."""

    def check(moment: Moment) -> int:
        if moment.phase < TRANSFER:
            return DEFERRED
        fact = moment.fresh("ds:miningReserved")
        if fact is None:
            return UNKNOWN
        return int(all(str(value).lower() in ("false", "0", "no") for value in fact.values))

    return Leaf(path, left="ds:miningReserved", op="eq", expected=("false",), fact="ds:miningReserved", check=check)


def describe_duty(duty: Duty) -> str:
    """Return how a reason names a duty before use."""
    return f"first: {phrases.duty(duty)}"


def constant_check(code: int) -> Check:
    """Return a check that always gives `code`."""
    return lambda moment: code


def _compile_atom(operand: Operand, atom: Atom, path: str, claimable: bool) -> tuple[Check, str]:
    """Return the check of an atom and the key of its fact."""
    try:
        if operand.counting is Counting.CLOCK:
            return _clock_check(operand, atom), "clock"
        if operand.counting is Counting.ELAPSED:
            return _elapsed_check(operand, atom), "clock"
        key = compact(atom.left) if operand.parameter else operand.fact
        claims = frozenset((path, atom.left, operand.name)) if claimable and operand.by_engine else frozenset()
        return _fact_check(operand, atom, key, claims), key
    except (ValueError, KeyError, IndexError):
        return constant_check(UNKNOWN), operand.fact


def _to_code(answer: bool | None) -> int:
    return UNKNOWN if answer is None else SATISFIED if answer else UNSATISFIED


def _clock_check(operand: Operand, atom: Atom) -> Check:
    """Time only moves forward: before its phase, the check gives a result only when no later moment changes it."""
    literal, op = atom.right[0], atom.operator
    right = values.instant(literal.text, literal.datatype)
    at = operand.phase.order

    def check(moment: Moment) -> int:
        answer = operators.compare_moment(op, moment.ns, right)
        if moment.phase >= at or answer is None:
            return _to_code(answer)
        return _to_code(answer) if _is_final(op, answer, passed=moment.ns > right.end) else DEFERRED

    return check


def _is_final(op: str, answer: bool, *, passed: bool) -> bool:
    """Whether later moments give the same answer, such as a missed deadline or a day that has passed."""
    if op in ("lt", "lteq"):
        return not answer
    return answer if op in ("gt", "gteq") else passed


def _elapsed_check(operand: Operand, atom: Atom) -> Check:
    span = values.duration(atom.right[0].text)
    op, at = atom.operator, operand.phase.order

    def check(moment: Moment) -> int:
        if moment.phase < at:
            return DEFERRED
        if moment.start is None:
            return UNKNOWN
        end = values.add_duration(moment.start, span)
        if op in ("gt", "gteq"):
            return int(moment.ns > end if op == "gt" else moment.ns >= end)
        return int(moment.ns < end if op == "lt" else moment.ns <= end)  # eq means a budget, as lteq

    return check


def _fact_check(operand: Operand, atom: Atom, key: str, claims: frozenset[str]) -> Check:
    compare = _comparison(operand, atom)
    at = BATCH if operand.by_engine else operand.phase.order

    def check(moment: Moment) -> int:
        if moment.phase < at:
            return DEFERRED
        if claims and not claims.isdisjoint(moment.enforced):
            return SATISFIED
        fact = moment.fresh(key)
        return UNKNOWN if fact is None else compare(fact)

    return check


def _comparison(operand: Operand, atom: Atom) -> Callable[[Fact], int]:
    """Return a function from a fact to a code; a fact that the operand's type cannot parse gives unknown."""
    if operand.type is ValueType.SCALAR:
        return _scalar_comparison(atom.operator, [literal.text for literal in atom.right])
    taken = atom.right
    if words_known := unknown_terms.known_choices(operand, atom):
        taken = tuple(one for one in atom.right if one.text in words_known)
    right = [values.parse(operand.type, one.text, one.datatype, operand.levels) for one in taken]
    test = operators.compile_comparison(atom.operator, right, kinds=operand.kinds)
    absent = operand.absent if atom.operator in ("neq", "isNoneOf") else ""
    read, one_more = values.make_reader(operand.type, operand.levels), operand.counting is Counting.BEFORE

    def compare(fact: Fact) -> int:
        if None in fact.values:
            return UNKNOWN
        try:
            left = [read(str(value)) for value in fact.values]
        except ValueError:
            return UNKNOWN
        if one_more:
            left = [value + 1 for value in left if isinstance(value, Decimal)]
        answer = test(left)
        if not answer and len(taken) < len(atom.right):  # an unknown word of the list may mean it
            return UNKNOWN
        if answer and absent and absent in fact.values:
            return UNKNOWN
        return UNKNOWN if answer is None else SATISFIED if answer else UNSATISFIED

    return compare


def _scalar_comparison(op: str, texts: list[str]) -> Callable[[Fact], int]:
    def compare(fact: Fact) -> int:
        return _to_code(operators.compare_scalar(op, fact.values[0], texts)) if len(fact.values) == 1 else UNKNOWN

    return compare
