"""JSON in which no member is given twice: of two, most readers take the last, some the first, and nobody says so.

Every text that may hold a policy is read here. Must not know what a policy is.
"""

from __future__ import annotations

import json
from typing import Any


class DuplicateMember(json.JSONDecodeError):
    """A member that stands twice in one object; no JSON, for whoever cannot say which of the two is meant."""

    def __init__(self, name: str) -> None:
        super().__init__(f"expected each member once, got {name[:80]!r} twice in one object; keep one", "", 0)

    def __str__(self) -> str:
        return self.msg  # its place in the text is not known


def loads(text: str | bytes, **options: Any) -> Any:
    """As `json.loads`; GivenTwice, which is a JSONDecodeError too, for an object with a member twice."""
    return json.loads(text, object_pairs_hook=_refuse_duplicates, **options)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    node = dict(pairs)
    if len(node) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DuplicateMember(name)
            seen.add(name)
    return node
