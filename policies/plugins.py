"""Loads policy terms, masks and fact sources of installed plugins (entry point `hanse.policy_terms`).

A plugin object, usually a module, may have any of: `OPERANDS` and `ACTIONS` (iterables), `SOURCES` (name of a fact
source to a description), `LOWER` (operand IRI to a lowering function, as in `contracts.lowering.LOWER`) and `MASKS`
(`contracts.masks.MaskWord`). A plugin that declares a technical operand without the code that enforces it is refused as
a whole. See `docs/policy-words.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from policies import vocabulary
from policies.contracts import lowering, masks
from policies.vocabulary import ENFORCERS, Operand, Tier, compact

GROUP = "hanse.policy_terms"
_OWN = frozenset({"clock", "counter", "ledger"})  # sources inside the owner's connector


def load_plugins(group: str = GROUP) -> list[str]:
    """Register every installed plugin and return the names of their entry points. Loading twice is harmless.

    Raises: ValueError naming the operand, action or mask that is not acceptable.
    """
    loaded = []
    for entry in sorted(entry_points(group=group), key=lambda point: point.name):
        register_plugin(entry.load())
        loaded.append(entry.name)
    return loaded


def register_plugin(plugin: Any) -> None:
    """Register one plugin as a whole, or nothing of it.

    Raises: ValueError as `load_plugins`.
    """
    operands: Iterable[Operand] = getattr(plugin, "OPERANDS", ())
    lower: Mapping[str, lowering.Lower] = getattr(plugin, "LOWER", {})
    fresh = [word for word in operands if vocabulary.OPERANDS.get(word.name) is not word]
    for word in fresh:
        _check_operand(word, lower)
    actions = [one for one in getattr(plugin, "ACTIONS", ()) if vocabulary.ACTIONS.get(one.name) is not one]
    for action in actions:
        if action.tier is Tier.TECHNICAL:
            raise ValueError(
                f"{compact(action.name)} is declared technical; expected contractual for an action of a plugin"
            )
    vocabulary.register(operands=fresh, new_actions=actions, sources=getattr(plugin, "SOURCES", {}))
    for iri, function in lower.items():
        lowering.LOWER.setdefault(iri, function)
    for mask in getattr(plugin, "MASKS", ()):
        masks.register(mask)


def _check_operand(word: Operand, lower: Mapping[str, lowering.Lower]) -> None:
    name = compact(word.name)
    if word.enforced_by and word.enforced_by not in ENFORCERS:
        raise ValueError(f"{name}: expected enforced_by to be one of {', '.join(ENFORCERS)}, got {word.enforced_by!r}")
    if word.by_engine and word.name not in lower:
        raise ValueError(f"{name} is enforced by the engine but has no function in LOWER; add one")
    if word.tier is Tier.TECHNICAL and not word.by_engine and not set(word.sources) <= _OWN:
        raise ValueError(
            f"{name} rests on claims of others ({', '.join(word.sources)}); declare it attested, not technical"
        )
