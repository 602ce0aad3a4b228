"""The types of a vocabulary entry (Operand, Action, Phase, Tier), and conversion between short names and IRIs.

The entries themselves are in the family files. Must not know policies, facts or evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from urllib.parse import quote, unquote

from policies.model import DPV, HANSE, ODRL, XSD


class Phase(StrEnum):
    """When a constraint is decided, in order of time."""

    CATALOGUE = "catalogue"
    NEGOTIATION = "negotiation"
    AGREEMENT = "agreement"
    TRANSFER = "transfer"
    QUERY = "query"
    BATCH = "batch"
    AFTER = "after"

    @property
    def order(self) -> int:
        """Position in time; 0 for the catalogue."""
        return PHASE_ORDER[self]


PHASE_ORDER: dict[Phase, int] = {phase: index for index, phase in enumerate(Phase)}


class Tier(StrEnum):
    """What enforcement of a rule rests on: the owner's engine, a verified claim, a declaration of the party, the
    contract only.
    """

    TECHNICAL = "technical"
    ATTESTED = "attested"
    DECLARED = "declared"
    CONTRACTUAL = "contractual"


class ValueType(StrEnum):
    """How the right operand and the fact are parsed; never guessed from the text."""

    TEXT = "text"
    IRI = "iri"
    DECIMAL = "decimal"
    INTEGER = "integer"
    INSTANT = "instant"
    DURATION = "duration"
    PLACE = "place"  # ISO 3166-1 alpha-2, or a region of the shipped hierarchy
    LEVEL = "level"  # an ordered enumeration, lowest first in `Operand.levels`
    CHOICE = "choice"  # one of `Operand.levels`, which have no order
    SCALAR = "scalar"  # a column value: typed by the column, not by the policy
    GRID = "grid"  # "exact" or a bin width
    RANGE = "range"  # "low..high" or "free"


class Counting(StrEnum):
    """How an observed quantity relates to the execution being admitted."""

    PLAIN = ""
    BEFORE = "before"  # the fact counts earlier uses; this execution is one more
    ELAPSED = "elapsed"  # the fact is the clock, measured from the agreement's timestamp
    CLOCK = "clock"  # the fact is the clock itself


EQ, NEQ, LT, LTEQ, GT, GTEQ = "eq", "neq", "lt", "lteq", "gt", "gteq"
ANY, NONE, ALL, PART, HAS, ISA = "isAnyOf", "isNoneOf", "isAllOf", "isPartOf", "hasPart", "isA"
EQUALITY = frozenset({EQ, NEQ, ANY, NONE})
ORDER = frozenset({LT, LTEQ, GT, GTEQ})
SETS = EQUALITY | {ALL}
TREES = EQUALITY | {PART, HAS, ISA}

RULE, DUTY = "rule", "duty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One left operand and everything known about it.

    `fact`: the key of its observed value. `enforced_by`: the part of the system that enforces it (see `ENFORCERS`),
    empty when none does. `by_engine`: a condition on the answer, which the compiled contract enforces. `parameter`: a
    family of operands, `name` followed by a column. `sentence`: how `explain` phrases it, with {op} and {value}.
    `sources`: who can supply the fact (see `SOURCES`). `kinds`: an observed value also counts as each of its broader
    values. `absent`: the value of a party that has none; comparing it with `neq` or `isNoneOf` stays unknown.

    Raises: ValueError for a technical operand without `enforced_by`.
    """

    name: str
    type: ValueType
    ops: frozenset[str]
    phase: Phase
    tier: Tier
    help: str
    sentence: str
    fact: str = ""
    enforced_by: str = ""
    by_engine: bool = False
    parameter: bool = False
    personal: bool = False
    counting: Counting = Counting.PLAIN
    levels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    kinds: bool = False
    absent: str = ""
    where: frozenset[str] = field(default_factory=lambda: frozenset({RULE}))

    def __post_init__(self) -> None:
        if self.tier is Tier.TECHNICAL and not self.enforced_by:
            raise ValueError(
                f"{compact(self.name)} is declared technical but names nothing that enforces it; "
                "set enforced_by, or declare it attested or contractual"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action: its broader action (`parent`, empty for a root) and what enforces a rule on it.

    Raises: ValueError for a technical action without `enforced_by`.
    """

    name: str
    parent: str
    help: str
    phrase: str  # completes "may ..." / "must ..."
    tier: Tier = Tier.CONTRACTUAL
    enforced_by: str = ""
    duty: bool = False  # may stand in a duty or an obligation
    use: bool = True  # may stand in a permission or a prohibition
    by_engine: bool = False  # a duty that the engine fulfils in every answer; it never blocks

    def __post_init__(self) -> None:
        if self.tier is Tier.TECHNICAL and not self.enforced_by:
            raise ValueError(
                f"{compact(self.name)} is declared technical but names nothing that enforces it; "
                "set enforced_by, or declare it contractual"
            )


# The parts of the system that enforce rules; the enforceability report prints the sentence.
ENFORCERS: dict[str, str] = {
    "identity": "the member register and the owner's records about the caller, read for each request",
    "request": "the declaration that comes with each request, bound into its token and logged",
    "clock": "the owner's clock, at transfer start and before each batch",
    "grant": "the grant's counters, moved before the data leaves",
    "gate": "the query gate and the contract's view, inside every query",
    "batch": "the gate before each batch",
    "ledger": "the ledger of duties, with reminders and evidence",
    "negotiation": "the negotiation, which refuses what it does not understand",
}

# Who can supply a fact, for refusals when it is missing. Plugins add theirs (`vocabulary.register`).
SOURCES: dict[str, str] = {
    "signature": "the party itself, by proving its DID",
    "register": "the operator of the data space, in the signed member register",
    "owner": "the owner, who records it (hanse fact add)",
    "request": "the caller, by declaring it with the request",
    "clock": "the owner's clock",
    "counter": "the grant's counters",
    "ledger": "the owner's ledger of duties, from evidence (hanse duty done)",
}
# Facts without an operand.
OTHER_FACTS: dict[str, tuple[str, ...]] = {"ds:miningReserved": ("owner",), "ds:fulfilled": ("ledger",)}

PREFIXES: dict[str, str] = {
    "odrl": ODRL,
    "ds": HANSE,
    "dpv": DPV,
    "xsd": XSD,
    "dct": "http://purl.org/dc/terms/",
    "dcat": "http://www.w3.org/ns/dcat#",
    "dspace": "https://w3id.org/dspace/2025/1/",
    "cc": "http://creativecommons.org/ns#",
}


def ds(local: str) -> str:
    """Return the IRI of a term of this project's profile: `ds("query")`."""
    return HANSE + local


def odrl(local: str) -> str:
    """Return the IRI of an ODRL term: `odrl("purpose")`."""
    return ODRL + local


@lru_cache(maxsize=2_048)
def compact(iri: str) -> str:
    """Return an IRI with its known prefix (`odrl:purpose`); other IRIs unchanged."""
    for prefix, namespace in PREFIXES.items():
        if iri.startswith(namespace) and len(iri) > len(namespace):
            return f"{prefix}:{iri[len(namespace) :]}"
    return iri


def expand(term: str) -> str:
    """Return the IRI of a prefixed name (`ds:query`); names without known prefix unchanged."""
    prefix, colon, local = term.partition(":")
    if colon and not local.startswith("//") and prefix in PREFIXES:
        return PREFIXES[prefix] + local
    return term


def column_term(family: str, column: str) -> str:
    """Return the IRI of a column term such as `ds:row/<column>`, with the column percent-encoded."""
    return f"{HANSE}{family}/{quote(column, safe='')}"


def column_of(iri: str) -> str:
    """Return the column that `ds:row/<column>`, `ds:dimension/<column>` or `ds:measure/<column>` names; otherwise
    empty.
    """
    for family in ("row", "dimension", "measure"):
        head = f"{HANSE}{family}/"
        if iri.startswith(head):
            return unquote(iri[len(head) :])
    return ""
