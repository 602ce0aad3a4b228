"""Masks that plugins bring, beside the built-in ones: `MASKS`, by the text that `ds:method` names them with.

A mask is made true in every query: what it is and takes stands here, its SQL is made by `build`, which only
`enforce.wrap` calls. Must not know SQL or the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from policies.contracts import columns
from policies.contracts.contract import Mask, MaskKind, Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskWord:
    """One mask. `families`: the kinds of column it is for (`columns.TEXT`, ...). `argument` reads `ds:argument` (None
    where it is missing) or raises ValueError. `build(value, argument, maker)` gives the expression in its place;
    values go in by `maker.parameters.add`. `text`: its values are texts, whatever the column's type.
    """

    name: str
    help: str
    sentence: str  # completes "the column ... in every answer", with {} for the argument
    build: Callable[[Any, Scalar, Any], Any]
    argument: Callable[[str | None], Scalar]
    families: frozenset[str] = frozenset({columns.TEXT})
    text: bool = True

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise ValueError(f"the mask {self.name} brings nothing that makes it true; give it `build`")


MASKS: dict[str, MaskWord] = {}


def register(word: MaskWord) -> None:
    """Add a mask; ValueError for a name that is taken."""
    if word.name in set(MaskKind) or MASKS.setdefault(word.name, word) is not word:
        raise ValueError(f"a mask {word.name} is registered already; choose another name")


def text_columns(masks: Iterable[Mask]) -> frozenset[str]:
    """The columns whose values are shown as texts, whatever their type: those that are hashed or shortened."""
    return frozenset(mask.column for mask in masks if _shows_text(mask))


def _shows_text(mask: Mask) -> bool:
    word = MASKS.get(mask.kind)
    return mask.kind in (MaskKind.HASH, MaskKind.TRUNCATE) or (word is not None and word.text)


def mask_names() -> list[str]:
    """Every mask that a policy may name."""
    return [*MaskKind, *sorted(MASKS)]
