"""A library as one module sees it, for tests that need one call of it to fail, wait or be counted.

    monkeypatch.setattr(registry, "asyncio", changed(asyncio, sleep=meanwhile))

`monkeypatch.setattr(registry.asyncio, "sleep", meanwhile)` would change `asyncio` for every thread and task of the
process. `tests/test_patches.py` refuses that.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def changed(library: Any, *, without: Collection[str] = (), **names: Any) -> Any:
    """`library` with `names` in place of its own, and lacking those of `without`; itself it stays as it is."""
    return _Changed(library, frozenset(without), names)


class _Changed:
    def __init__(self, library: Any, without: frozenset[str], names: dict[str, Any]) -> None:
        self._library, self._without = library, without
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        if name in self._without:
            raise AttributeError(name)
        return getattr(self._library, name)
