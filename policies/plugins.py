"""Words, masks and sources of installed plugins, by the entry point `hanse.policy_terms`: one file, one object.

The object (a module, most often) has any of: `OPERANDS` and `ACTIONS` (iterables), `SOURCES` (name of a source of facts
to who that is), `LOWER` (operand IRI to the function that makes it part of a contract, as in `lowering.LOWER`), and
`MASKS` (`masks.MaskWord`). What claims to be technical must bring what makes it so, or nothing of it is taken in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from policies import vocabulary
from policies.contracts import lowering, masks
from policies.vocabulary import ENFORCERS, Operand, Tier, compact

GROUP = "hanse.policy_terms"
_OWN = frozenset({"clock", "counter", "ledger"})  # sources that the owner's connector is by itself


def load_plugins(group: str = GROUP) -> list[str]:
    """Take in every installed plugin; the names of their entry points. ValueError names the word that does not hold.

    Loading twice is harmless: what is there already is passed over.
    """
    loaded = []
    for entry in sorted(entry_points(group=group), key=lambda point: point.name):
        register_plugin(entry.load())
        loaded.append(entry.name)
    return loaded


def register_plugin(plugin: Any) -> None:
    """Take in one plugin, whole or not at all."""
    operands: Iterable[Operand] = getattr(plugin, "OPERANDS", ())
    lower: Mapping[str, lowering.Lower] = getattr(plugin, "LOWER", {})
    fresh = [word for word in operands if vocabulary.OPERANDS.get(word.name) is not word]
    for word in fresh:
        _check_operand(word, lower)
    actions = [one for one in getattr(plugin, "ACTIONS", ()) if vocabulary.ACTIONS.get(one.name) is not one]
    for action in actions:
        if action.tier is Tier.TECHNICAL:
            raise ValueError(
                f"{compact(action.name)} claims to be technical; what plugins let do rests on the contract"
            )
    vocabulary.register(operands=fresh, new_actions=actions, sources=getattr(plugin, "SOURCES", {}))
    for iri, function in lower.items():
        lowering.LOWER.setdefault(iri, function)
    for mask in getattr(plugin, "MASKS", ()):
        masks.register(mask)


def _check_operand(word: Operand, lower: Mapping[str, lowering.Lower]) -> None:
    name = compact(word.name)
    if word.enforced_by and word.enforced_by not in ENFORCERS:
        raise ValueError(
            f"{name} names {word.enforced_by!r} as what enforces it; expected one of {', '.join(ENFORCERS)}"
        )
    if word.by_engine and word.name not in lower:
        raise ValueError(f"{name} is to be made true by the engine and brings no function in LOWER that does it")
    if word.tier is Tier.TECHNICAL and not word.by_engine and not set(word.sources) <= _OWN:
        raise ValueError(f"{name} rests on what others say ({', '.join(word.sources)}): it is attested, not technical")
