"""JSON parsing that refuses duplicate members of an object.

Parsers differ in which duplicate they keep, so two systems could read two policies from one text. Every text that may
hold a policy is parsed here. Must not know policies.
"""

from __future__ import annotations

import json
from typing import Any


class DuplicateMember(json.JSONDecodeError):
    """A member occurs twice in one object. A JSONDecodeError, so callers treat the text as invalid JSON."""

    def __init__(self, name: str) -> None:
        super().__init__(f"expected each member once, got {name[:80]!r} twice in one object; keep one", "", 0)

    def __str__(self) -> str:
        return self.msg  # its position in the text is not known


def loads(text: str | bytes, **options: Any) -> Any:
    """Parse JSON as `json.loads` does, with the same options.

    Raises: DuplicateMember for an object with a duplicate member; json.JSONDecodeError for invalid JSON.
    """
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


def list_of(value: object) -> list[Any]:
    """Return the values of a member that may be single or a list (JSON-LD 1.1, section 4.4); None is empty."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
