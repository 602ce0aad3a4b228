"""Namespaces of dataset ids: a member owns ids that begin with its URL, its DID or `urn:hanse:<its name>`. Pure.

Ids are compared in one spelling, so that none passes for another's by a capital, a default port or an encoded letter.
Of namespaces within each other the innermost counts; members that share one URL share what lies in it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

PREFIX = "urn:hanse:"
_WEB = "did:web:"
_SCHEMES = ("http:", "https:")
_ENDS = ("", ":", "/", "?", "#")  # what follows a namespace


class Namespaces:
    """Made of each member's DID, short name and URL; a `did:web` has its own address, too."""

    def __init__(self, members: Iterable[tuple[str, str, str]]) -> None:
        self._owners: dict[str, set[str]] = {}
        for did, name, url in members:
            for space in {_normalise(space) for space in (did, _did_to_url(did), url, PREFIX + name)} - {""}:
                self._owners.setdefault(space, set()).add(did)
        self._lengths = sorted(set(map(len, self._owners)), reverse=True)

    def owners(self, dataset_id: str) -> set[str] | None:
        """DIDs of the members whose namespace the id lies in; None if it lies in no namespace.

        The set is empty for an unused name under `urn:hanse:`, which a future member may get.
        """
        text = _normalise(dataset_id)
        for length in self._lengths:
            if text[length : length + 1] in _ENDS and (found := self._owners.get(text[:length])):
                return found
        return set() if text.startswith(PREFIX) else None


def are_alike(one: str, other: str) -> bool:
    """Whether two DIDs have one namespace: each of two members could list what is the other's."""
    return _normalise(one) == _normalise(other)


def _did_to_url(did: str) -> str:
    """Where a `did:web` has its document, without the document's own name."""
    rest = did.lower().removeprefix(_WEB)
    return "" if rest == did.lower() else "https://" + unquote(rest.replace(":", "/"))


def _normalise(text: str) -> str:
    """Small plain letters, hosts in ASCII, nothing encoded but the colon of a DID's port; a URL with its port, without
    dots or empty steps on its way, http as https."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = unquote(text.replace("%3a", "%253a") if text.startswith("did:") else text)
    text = unicodedata.normalize("NFKC", text).lower()  # also of what was encoded
    if text.startswith(_WEB):
        server, sign, path = text.removeprefix(_WEB).partition(":")
        name, _, number = server.partition("%3a")
        plain = number.lstrip("0")
        mark = "" if plain in ("", "443") else f"%3a{plain}"
        return f"{_WEB}{_to_ascii(name.rstrip('.'))}{mark}{sign}{path}"
    if text.startswith(_SCHEMES):
        text = text.replace("\\", "/")  # as browsers read it
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return text
    if not text.startswith(_SCHEMES):
        return text
    usual = port is None or (parts.scheme, port) == ("http", 80)
    rest = text.partition("//")[2].removeprefix(parts.netloc).removeprefix(parts.path)
    host = _to_ascii((parts.hostname or "").rstrip("."))
    return f"https://{host}:{443 if usual else port}{_resolve_dots(parts.path)}{rest}"


def _to_ascii(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


def _resolve_dots(path: str) -> str:
    steps: list[str] = []
    for step in path.split("/"):
        if step == "..":
            del steps[-1:]
        elif step not in ("", "."):
            steps.append(step)
    return "".join(f"/{step}" for step in steps)
