"""Masks of plugins, in addition to the built-in ones: `MASKS`, by the text of `ds:method`.

A mask is enforced in every query. Its description and argument are here; `build` makes its SQL and is called by
`enforce.policy_view` only. Must not know SQL or the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from policies.contracts import columns
from policies.contracts.contract import Mask, MaskKind, Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskWord:
    """One mask of a plugin.

    `families`: the kinds of column that it accepts (`columns.TEXT`, ...). `argument` parses `ds:argument`, None when
    absent, and raises ValueError. `build(value, argument, builder)` returns the expression that replaces the column;
    add values with `builder.parameters.add`. `text`: the masked values are texts whatever the column type.

    Raises: ValueError without a callable `build`.
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
            raise ValueError(f"the mask {self.name} has no function that enforces it; give it `build`")


MASKS: dict[str, MaskWord] = {}


def register(word: MaskWord) -> None:
    """Add a mask.

    Raises: ValueError when the name is registered already.
    """
    if word.name in set(MaskKind) or MASKS.setdefault(word.name, word) is not word:
        raise ValueError(f"a mask {word.name} is registered already; choose another name")


def text_columns(masks: Iterable[Mask]) -> frozenset[str]:
    """Return the columns whose masked values are texts whatever their type: hashed and truncated ones."""
    return frozenset(mask.column for mask in masks if _shows_text(mask))


def _shows_text(mask: Mask) -> bool:
    word = MASKS.get(mask.kind)
    return mask.kind in (MaskKind.HASH, MaskKind.TRUNCATE) or (word is not None and word.text)


def mask_names() -> list[str]:
    """Return the names of all masks."""
    return [*MaskKind, *sorted(MASKS)]
