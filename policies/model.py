"""A usage policy as values: Policy, Rule, Duty, Group, Atom (ODRL 2.2, limited to what DSP 2025-1 carries).

All classes are frozen and hashable. Terms are absolute IRIs (`http://www.w3.org/ns/odrl/2/purpose`); short names such
as `odrl:purpose` are used at the edges only (`vocabulary.compact`).

  Rule(ODRL + "use", (Atom(ODRL + "purpose", "isAnyOf", (Literal(DPV + "ScientificResearch"),), many=True),))
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
    """The three types of policy (DSP 2025-1, section 5). A Set is used locally only and is never sent."""

    OFFER = "Offer"
    AGREEMENT = "Agreement"
    SET = "Set"


class ConflictStrategy(StrEnum):
    """Which rule wins when a permission and a prohibition both apply (ODRL 2.2, section 2.10)."""

    PROHIBIT = "prohibit"
    PERM = "perm"
    INVALID = "invalid"


class Connective(StrEnum):
    """How the members of a logical constraint combine (ODRL 2.2, section 2.5.2)."""

    AND = "and"
    OR = "or"
    XONE = "xone"


@dataclass(frozen=True, slots=True)
class Literal:
    """One right operand: its lexical text and its datatype IRI, empty where none was given. IRIs are texts too."""

    text: str
    datatype: str = ""


@dataclass(frozen=True, slots=True)
class Atom:
    """One constraint, `left operator right` (ODRL 2.2, section 2.5.1).

    `right` holds one or more values; `many` records that it was written as a list.
    """

    left: str
    operator: str  # bare term of the protocol: eq, lteq, isAnyOf, ...
    right: tuple[Literal, ...]
    many: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """A logical constraint over at least one member (ODRL 2.2, section 2.5.2).

    `andSequence` is read as `and`, because the protocol's JSON-LD context keeps no order.
    """

    connective: Connective
    members: tuple[Constraint, ...]


Constraint: TypeAlias = Atom | Group


@dataclass(frozen=True, slots=True)
class Duty:
    """A required action: before use under a permission, otherwise as an obligation (ODRL 2.2, section 2.6.3)."""

    action: str
    constraints: tuple[Constraint, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A permission or prohibition: one action, constraints that must all hold, duties before use (ODRL 2.2, 2.6)."""

    action: str
    constraints: tuple[Constraint, ...] = ()
    duties: tuple[Duty, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """An offer, agreement or set (ODRL 2.2, section 2.1). `target` and parties are empty where the type has none."""

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
