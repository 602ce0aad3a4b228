"""Random policies, facts and spellings for property tests.

What is drawn from is made once: Hypothesis looks through a new strategy before it draws, which takes longer than that.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from policies import vocabulary
from policies.model import HANSE, Atom, ConflictStrategy, Connective, Duty, Group, Kind, Literal, Policy, Rule
from policies.vocabulary import Operand, ValueType, column_term, ds, odrl
from policies.vocabulary.terms import DUTY, RULE

COLUMNS = ["age", "country", "consent", "person id", "größe", "a/b"]
TEXTS = ["active", "research", "a b", "NO", "10", "true", "null", "x: y", "it's", 'say "so"', "ü#1"]
IRIS = [
    "https://w3id.org/dpv#ScientificResearch",
    "https://w3id.org/dpv#Marketing",
    "did:web:a.example",
    "urn:example:x",
]
PLACES = ["DE", "NO", "US", HANSE + "region/EEA", HANSE + "region/EU"]
NUMBERS = ["0", "1", "5", "10", "25", "5000000"]
TIMES = ["2027-12-31T22:59:59Z", "2027-01-01T00:00:00+01:00", "2027-06-30", "2028-02-29T12:00:00.123Z"]
SPANS = ["P30D", "PT12H", "P2M", "P1Y", "P1DT2H", "P2W"]
USES = [ds("query"), ds("stream"), ds("train"), odrl("use"), odrl("read"), odrl("distribute"), ds("trainGenerative")]
OWED = [odrl("delete"), odrl("inform"), odrl("attribute"), odrl("compensate"), ds("log"), ds("registerModel")]
MANY = frozenset({"isAnyOf", "isNoneOf", "isAllOf", "isPartOf", "hasPart", "isA"})


def _pool(operand: Operand) -> list[str]:
    pools = {
        ValueType.TEXT: TEXTS,
        ValueType.SCALAR: TEXTS + NUMBERS,
        ValueType.IRI: IRIS,
        ValueType.PLACE: PLACES,
        ValueType.DECIMAL: [*NUMBERS, "0.5"],
        ValueType.INTEGER: NUMBERS,
        ValueType.INSTANT: TIMES,
        ValueType.DURATION: SPANS,
        ValueType.GRID: ["exact", "10", "0.5"],
        ValueType.RANGE: ["free", "0..3000", "-1.5..2"],
        ValueType.LEVEL: list(operand.levels),
        ValueType.CHOICE: list(operand.levels),
    }
    return pools[operand.type]


@st.composite
def atoms(draw: st.DrawFn, where: str = RULE, *, only: tuple[str, ...] = ()) -> Atom:
    """An atom of known words whose value its operand can take."""
    operand = vocabulary.OPERANDS[draw(_known(where, only))]
    operator = draw(_operators(operand.name))
    many = operator in MANY
    texts = draw(_texts(operand.name, 3 if many else 1))
    left = operand.name
    if operand.parameter:
        left = column_term(operand.name[len(HANSE) :].rstrip("/"), draw(_COLUMN))
    return Atom(left, operator, tuple(Literal(text) for text in texts), many)


_COLUMN = st.sampled_from(COLUMNS)


@cache
def _known(where: str, only: tuple[str, ...]) -> st.SearchStrategy[str]:
    known = [name for name, one in vocabulary.OPERANDS.items() if where in one.where and (not only or name in only)]
    return st.sampled_from(known)


@cache
def _operators(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(vocabulary.OPERANDS[name].ops))


@cache
def _texts(name: str, most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(_pool(vocabulary.OPERANDS[name])), min_size=1, max_size=most, unique=True)


def constraints(where: str = RULE, *, only: tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    """Atoms and nested groups of them."""
    return st.recursive(
        atoms(where, only=only),
        lambda inner: st.builds(
            Group, st.sampled_from(list(Connective)), st.lists(inner, min_size=1, max_size=3).map(tuple)
        ),
        max_leaves=4,
    )


def masks() -> st.SearchStrategy[Duty]:
    """A mask on one or two columns."""
    return st.builds(
        lambda columns, method: Duty(
            ds("mask"),
            (
                Atom(ds("column"), "isAnyOf", tuple(map(Literal, columns)), many=True),
                Atom(ds("method"), "eq", (Literal(method),)),
            ),
        ),
        st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=2, unique=True),
        st.sampled_from(["null", "hash"]),
    )


def duties() -> st.SearchStrategy[Duty]:
    """Something owed, with plain details."""
    details = st.lists(atoms(DUTY, only=_DETAILS), max_size=2).map(tuple)
    return st.builds(Duty, st.sampled_from(OWED), details)


_DETAILS = (odrl("delayPeriod"), odrl("event"), ds("informedParty"), odrl("payAmount"), ds("attributionText"))


def rules(*, only: tuple[str, ...] = (), duty: bool = True) -> st.SearchStrategy[Rule]:
    """A permission or prohibition."""
    owed = st.lists(st.one_of(masks(), duties()), max_size=1).map(tuple) if duty else st.just(())
    return st.builds(Rule, st.sampled_from(USES), st.lists(constraints(only=only), max_size=3).map(tuple), owed)


def policies(
    *, only: tuple[str, ...] = (), conflict: st.SearchStrategy[ConflictStrategy] | None = None
) -> st.SearchStrategy[Policy]:
    """An offer of known words, with everything that a message needs."""
    return st.builds(
        Policy,
        kind=st.just(Kind.OFFER),
        id=st.just("urn:uuid:6f0c3c1e-5b8e-4f63-9a53-0f6f5f9a7c11"),
        permissions=st.lists(rules(only=only), min_size=1, max_size=2).map(tuple),
        prohibitions=st.lists(rules(only=only, duty=False), max_size=2).map(tuple),
        obligations=st.lists(duties(), max_size=2).map(tuple),
        target=st.just("urn:example:dataset"),
        conflict=st.just(ConflictStrategy.PROHIBIT) if conflict is None else conflict,
        profile=st.sampled_from(["", HANSE]),
    )


# --- few words, so that rules and facts meet often ---------------------------------------------------------

_FEW = [
    Atom(ds("membership"), "eq", (Literal("active"),)),
    Atom(ds("membership"), "neq", (Literal("active"),)),
    Atom(ds("role"), "isAnyOf", (Literal("research"),), many=True),
    Atom(ds("role"), "isNoneOf", (Literal("research"),), many=True),
    Atom(odrl("purpose"), "isAnyOf", (Literal(IRIS[0]),), many=True),
    Atom(odrl("purpose"), "isNoneOf", (Literal(IRIS[0]),), many=True),
    Atom(odrl("count"), "lteq", (Literal("5"),)),
    Atom(odrl("dateTime"), "lteq", (Literal("2027-01-15T08:00:00Z"),)),
    Atom(odrl("dateTime"), "gteq", (Literal("2027-01-15T08:00:00Z"),)),
    Atom(ds("minGroupSize"), "gteq", (Literal("10"),)),
]
_FEW_FACTS = {
    "ds:membership": ["active", "ended"],
    "ds:role": ["research", "other"],
    "odrl:purpose": [IRIS[0], IRIS[1]],
    "odrl:count": [4, 5],
    "ds:minGroupSize": [10, 9],
    "ds:enforced": [ds("minGroupSize"), ds("rowQuota")],
    "ds:fulfilled": [odrl("compensate"), odrl("inform")],
    "ds:miningReserved": ["true", "false"],
}
_FEW_VALUES = {key: st.sampled_from(pool) for key, pool in _FEW_FACTS.items()}
_MOSTLY = st.integers(0, 3)
FEW_USES = [ds("query"), odrl("use"), ds("train")]


def few_constraints() -> st.SearchStrategy[Any]:
    """Constraints over a handful of words, nested."""
    return st.recursive(
        st.sampled_from(_FEW),
        lambda inner: st.builds(
            Group, st.sampled_from(list(Connective)), st.lists(inner, min_size=2, max_size=3).map(tuple)
        ),
        max_leaves=4,
    )


def few_rules(*, duty: bool) -> st.SearchStrategy[Rule]:
    """Rules over a handful of words."""
    owed = st.sampled_from([(), (), (Duty(odrl("compensate")),)]) if duty else st.just(())
    return st.builds(Rule, st.sampled_from(FEW_USES), st.lists(few_constraints(), max_size=2).map(tuple), owed)


def few_policies() -> st.SearchStrategy[Policy]:
    """Policies over a handful of words, so that each decision is close to the other one."""
    return st.builds(
        Policy,
        kind=st.just(Kind.SET),
        id=st.just("urn:few"),
        permissions=st.lists(few_rules(duty=True), min_size=1, max_size=2).map(tuple),
        prohibitions=st.lists(few_rules(duty=False), max_size=2).map(tuple),
        conflict=st.sampled_from(list(ConflictStrategy)),
    )


@st.composite
def few_facts(draw: st.DrawFn) -> dict[str, Any]:
    """One of two values for each fact, mostly present."""
    return {key: draw(value) for key, value in _FEW_VALUES.items() if draw(_MOSTLY)}


# --- spellings -------------------------------------------------------------------------------------------


@cache
def _place(many: int) -> st.SearchStrategy[int]:
    return st.integers(0, many - 1)


@cache
def _order(many: int) -> st.SearchStrategy[list[int]]:
    return st.permutations(range(many))


class Spelling:
    """Rewrites strict wire JSON into another spelling of the same meaning, choice by choice."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def pick(self, *options: Any) -> Any:
        return options[self._draw(_place(len(options)))]

    def shuffled(self, items: list[Any]) -> list[Any]:
        return [items[place] for place in self._draw(_order(len(items)))]

    def policy(self, wire: dict[str, Any]) -> dict[str, Any]:
        found = {self.pick("@id", "uid", "odrl:uid"): wire["@id"]}
        found["@type"] = self.pick("Offer", ["Offer"], "odrl:Offer", vocabulary.odrl("Offer"))
        found[self.key("target")] = self.pick(wire["target"], {"@id": wire["target"]}, [{"@id": wire["target"]}])
        if "profile" in wire:
            found[self.key("profile")] = self.pick(wire["profile"], [wire["profile"]], {"@id": wire["profile"]})
        if "odrl:conflict" in wire:
            name = wire["odrl:conflict"]["@id"]
            found[self.pick("odrl:conflict", vocabulary.odrl("conflict"))] = self.pick(
                {"@id": name}, {"@id": vocabulary.expand(name)}, [{"@id": name}], name
            )
        for kind in ("permission", "prohibition", "obligation"):
            if kind in wire:
                found[self.key(kind)] = self.several([self.rule(rule) for rule in self.shuffled(wire[kind])])
        return found

    def key(self, name: str) -> str:
        return str(self.pick(name, f"odrl:{name}", vocabulary.odrl(name)))

    def several(self, items: list[Any]) -> Any:
        options: list[Any] = [items, {"@set": items}, {"@list": items}]
        return self.pick(*options, items[0]) if len(items) == 1 else self.pick(*options)

    def rule(self, rule: dict[str, Any]) -> dict[str, Any]:
        found = {self.key("action"): self.term(rule["action"])}
        for kind, rewrite in (("constraint", self.constraint), ("duty", self.rule)):
            if kind in rule:
                found[self.key(kind)] = self.several([rewrite(one) for one in self.shuffled(rule[kind])])
        return found

    def term(self, term: str) -> Any:
        iri = vocabulary.odrl("use") if term == "use" else vocabulary.expand(term)
        short = vocabulary.compact(iri)
        options: list[Any] = [iri, short, {"@id": iri}, {"@id": short}, [iri]]
        bare = short.removeprefix("odrl:")
        return self.pick(*options, bare) if short.startswith("odrl:") else self.pick(*options)

    def constraint(self, one: dict[str, Any]) -> dict[str, Any]:
        if "leftOperand" not in one:
            ((logic, members),) = one.items()
            return {self.key(logic): self.several([self.constraint(member) for member in self.shuffled(members)])}
        operator = one["operator"]
        return {
            self.key("leftOperand"): self.term(one["leftOperand"]),
            self.key("operator"): self.pick(operator, f"odrl:{operator}", {"@id": f"odrl:{operator}"}),
            self.key("rightOperand"): self.right(one["rightOperand"], one["leftOperand"]),
        }

    def right(self, right: Any, left: str) -> Any:
        texts = self.shuffled(right) if isinstance(right, list) else [right]
        return self.several([self.value(text, left) for text in texts])

    def value(self, text: Any, left: str) -> Any:
        operand = vocabulary.operand(vocabulary.expand(left))
        if not isinstance(text, str) or operand is None:
            return text
        options: list[Any] = [text, {"@value": text}, {"@value": text, "@type": "xsd:string"}]
        if operand.type in (ValueType.IRI, ValueType.PLACE) and ":" in text:
            options += [{"@id": text}, vocabulary.compact(text), {"@id": vocabulary.compact(text)}]
        if operand.type in (ValueType.INTEGER, ValueType.DECIMAL):
            options += [{"@value": text, "@type": "xsd:decimal"}, f"{text}.0" if "." not in text else text]
            options += [int(text)] if text.isdecimal() else [float(text)]
        if operand.type is ValueType.INSTANT and text == "2027-01-01T00:00:00+01:00":
            options += ["2026-12-31T23:00:00Z", {"@value": "2026-12-31T23:00:00.000Z", "@type": "xsd:dateTime"}]
        if operand.type is ValueType.DURATION:
            options += [{"P2M": "P0Y2M", "P1Y": "P12M", "PT12H": "PT720M", "P30D": "PT720H"}.get(text, text)]
        return self.pick(*options)


# --- facts -----------------------------------------------------------------------------------------------


@st.composite
def facts(draw: st.DrawFn) -> dict[str, Any]:
    """Facts under the keys that the vocabulary asks for, some missing, some mistyped."""
    found: dict[str, Any] = {}
    for operand in vocabulary.OPERANDS.values():
        if RULE not in operand.where or operand.parameter or not operand.fact or draw(_EVEN):
            continue
        found[operand.fact] = draw(_START if operand.fact == "ds:start" else _texts(operand.name, 2))
    for column in COLUMNS:
        if draw(_EVEN):
            found[vocabulary.compact(column_term("row", column))] = draw(_CELL)
    for key, values in _SOME.items():
        if draw(_EVEN):
            found[key] = draw(values)
    return found


_EVEN = st.booleans()
_START = st.lists(st.sampled_from(TIMES), min_size=1, max_size=2, unique=True)
_CELL = st.sampled_from([*TEXTS, 10, 2.5, True])
_SOME = {
    key: st.lists(st.sampled_from(options), min_size=1, max_size=3, unique=True)
    for key, options in (
        ("ds:fulfilled", OWED),
        ("ds:enforced", [ds("minGroupSize"), ds("resultKind"), ds("row/")]),
        ("ds:miningReserved", ["true", "false"]),
    )
}
