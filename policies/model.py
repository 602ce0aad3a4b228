"""A usage policy as values: Policy, Rule, Group, Atom (ODRL 2.2 as far as the Dataspace Protocol carries it).

Everything is frozen and hashable. Terms are absolute IRIs here (`odrl:purpose` is
`http://www.w3.org/ns/odrl/2/purpose`); short names exist only at the edges (`vocabulary.compact`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

ODRL = "http://www.w3.org/ns/odrl/2/"
DPV = "https://w3id.org/dpv#"
HANSE = "https://w3id.org/hanse/policy/1/"  # the project's own profile, written `ds:`
XSD = "http://www.w3.org/2001/XMLSchema#"


class Kind(StrEnum):
    """The three shapes of a policy (DSP 2025-1, section 5; a Set never travels)."""

    OFFER = "Offer"
    AGREEMENT = "Agreement"
    SET = "Set"


class ConflictStrategy(StrEnum):
    """What wins when a permission and a prohibition both apply (ODRL IM 2.2, section 2.10)."""

    PROHIBIT = "prohibit"
    PERM = "perm"
    INVALID = "invalid"


class Connective(StrEnum):
    AND = "and"
    OR = "or"
    XONE = "xone"


@dataclass(frozen=True, slots=True)
class Literal:
    """One right-hand value: its lexical text and, where given, its datatype IRI. IRIs are texts too."""

    text: str
    datatype: str = ""


@dataclass(frozen=True, slots=True)
class Atom:
    """`left operator right`. `right` holds one or more values; `many` says that it was written as a list."""

    left: str
    operator: str  # bare term of the protocol: eq, lteq, isAnyOf, ...
    right: tuple[Literal, ...]
    many: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """A logical constraint over at least one member; `andSequence` is read as `and` (the context drops order)."""

    connective: Connective
    members: tuple[Constraint, ...]


Constraint: TypeAlias = Atom | Group


@dataclass(frozen=True, slots=True)
class Duty:
    """Something owed: before use when it stands under a permission, on its own as an obligation."""

    action: str
    constraints: tuple[Constraint, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A permission or a prohibition: one action, a conjunction of constraints, duties before use."""

    action: str
    constraints: tuple[Constraint, ...] = ()
    duties: tuple[Duty, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """An offer or agreement. `target` and parties are empty where the shape has none."""

    kind: Kind
    id: str
    permissions: tuple[Rule, ...] = ()
    prohibitions: tuple[Rule, ...] = ()
    obligations: tuple[Duty, ...] = ()
    target: str = ""
    assigner: str = ""
    assignee: str = ""
    timestamp: str = ""
    conflict: ConflictStrategy = ConflictStrategy.PROHIBIT
    profile: str = ""
