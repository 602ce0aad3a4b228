"""Whose an id is by its own words: a member has what begins with its URL, its DID or `urn:hanse:<its name>`. Pure.

Ids are compared in one spelling, so that none passes for another's by a capital, a default port or an encoded letter.
Of namespaces within each other the innermost counts; members that share one URL share what lies in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

PREFIX = "urn:hanse:"
_ENDS = ("", ":", "/", "?", "#")  # what follows a namespace


class Namespaces:
    """Made of each member's DID, short name and URL."""

    def __init__(self, members: Iterable[tuple[str, str, str]]) -> None:
        self._owners: dict[str, set[str]] = {}
        for did, name, url in members:
            for space in (did, url, PREFIX + name):
                self._owners.setdefault(_spelled(space), set()).add(did)
        self._lengths = sorted(set(map(len, self._owners)), reverse=True)

    def owners(self, dataset_id: str) -> set[str] | None:
        """DIDs of the members whose namespace it lies in; None where that is nobody's. `urn:hanse:` is never anybody's:
        a name that no member has is one that a member may get."""
        text = _spelled(dataset_id)
        for length in self._lengths:
            if text[length : length + 1] in _ENDS and (found := self._owners.get(text[:length])):
                return found
        return set() if text.startswith(PREFIX) else None


def _spelled(text: str) -> str:
    """Small letters, nothing percent-encoded but the colon of a DID's port; a URL with its port, http as https."""
    text = unquote(text.lower().replace("%3a", "%253a"))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return text
    if parts.scheme not in ("http", "https"):
        return text
    usual = port is None or (parts.scheme, port) == ("http", 80)
    rest = text.partition("//")[2].removeprefix(parts.netloc)
    return f"https://{(parts.hostname or '').rstrip('.')}:{443 if usual else port}{rest}"
