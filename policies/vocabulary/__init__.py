"""The policy vocabulary: registered operands and actions, and functions to look them up.

One file for each family of terms. Plugins register theirs through `register`. Data only: nothing here evaluates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from policies.model import HANSE, ODRL
from policies.vocabulary import actions, after_use, party, quantity, shape, time, training
from policies.vocabulary.terms import (
    ENFORCERS,
    OTHER_FACTS,
    PREFIXES,
    SOURCES,
    Action,
    Counting,
    Operand,
    Phase,
    Tier,
    ValueType,
    column_of,
    column_term,
    compact,
    ds,
    expand,
    odrl,
)

__all__ = [
    "ACTIONS",
    "ENFORCERS",
    "OPERANDS",
    "OPERATORS",
    "OTHER_FACTS",
    "PREFIXES",
    "PROFILES",
    "SOURCES",
    "Action",
    "Counting",
    "Operand",
    "Phase",
    "Tier",
    "ValueType",
    "action",
    "action_includes",
    "column_of",
    "column_term",
    "compact",
    "describe_suppliers",
    "ds",
    "expand",
    "odrl",
    "operand",
    "register",
    "resolve_alias",
]

OPERANDS: dict[str, Operand] = {}
ACTIONS: dict[str, Action] = {}
OPERATORS: frozenset[str] = frozenset(
    ["eq", "neq", "lt", "lteq", "gt", "gteq", "isAnyOf", "isNoneOf", "isAllOf", "isPartOf", "hasPart", "isA"]
)
PROFILES: frozenset[str] = frozenset({HANSE, HANSE.rstrip("/"), ODRL, ODRL + "core"})

_FAMILIES: dict[str, Operand] = {}
_ABOVE: dict[str, frozenset[str]] = {}


def operand(iri: str) -> Operand | None:
    """Return the operand with that IRI, or None. `ds:row/<column>` returns the operand of its family `ds:row/`."""
    found = OPERANDS.get(iri)
    if found is not None:
        return None if found.parameter else found
    if not iri.startswith(HANSE):
        return None
    head, slash, column = iri[len(HANSE) :].partition("/")
    return _FAMILIES.get(f"{HANSE}{head}/") if slash and column else None


def describe_suppliers(iri: str) -> str:
    """Return in words who can supply the fact of an operand (IRI); empty when no source can."""
    word = operand(iri)
    names = word.sources if word is not None else OTHER_FACTS.get(compact(iri), ())
    return " or ".join(SOURCES[name] for name in names if name in SOURCES)


def resolve_alias(action: str) -> str:
    """Return the action (IRI) that a name is an alias of; the name itself when it is not an alias."""
    return actions.ALIASES.get(action, action)


def action(name: str) -> Action | None:
    """Return the action that a name (IRI) stands for, or None."""
    return ACTIONS.get(resolve_alias(name))


def action_includes(broad: str, narrow: str) -> bool:
    """Return whether a rule on action `broad` covers action `narrow` (IRIs; ODRL 2.2 `includedIn`)."""
    return resolve_alias(broad) in _including_actions(narrow)


def _including_actions(action: str) -> frozenset[str]:
    action = resolve_alias(action)
    known = _ABOVE.get(action)
    if known is None:
        found, current = [action], ACTIONS.get(action)
        while current is not None and current.parent and current.parent not in found:
            found.append(current.parent)
            current = ACTIONS.get(current.parent)
        known = frozenset(found)
        if action in ACTIONS:  # an unknown name must not fill the cache
            _ABOVE[action] = known
    return known


def register(
    *,
    operands: Iterable[Operand] = (),
    new_actions: Iterable[Action] = (),
    sources: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Register operands, actions and sources of facts.

    Raises: ValueError when a name is registered already.
    """
    for name, who in sources.items():
        if SOURCES.setdefault(name, who) != who:
            raise ValueError(f"a source of facts {name!r} is registered already; choose another name")
    for entry in operands:
        if entry.name in OPERANDS:
            raise ValueError(f"operand {compact(entry.name)} is registered already; choose another name")
        OPERANDS[entry.name] = entry
        if entry.parameter:
            _FAMILIES[entry.name] = entry
    for action in new_actions:
        if action.name in ACTIONS:
            raise ValueError(f"action {compact(action.name)} is registered already; choose another name")
        ACTIONS[action.name] = action
    _ABOVE.clear()


for _family in (party, time, quantity, shape, training, after_use):
    register(operands=_family.OPERANDS)
for _table in (actions.ACTIONS, training.ACTIONS, after_use.ACTIONS):
    register(new_actions=_table)
ACTION_ALIASES = actions.ALIASES
