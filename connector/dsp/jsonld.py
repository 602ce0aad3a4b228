"""Reading JSON that may be compact, prefixed or expanded JSON-LD, through the local copy of the contexts. Pure.

Nothing is fetched. A member's name becomes the term that the protocol's context has for it; names that the context
does not know stay absolute IRIs. Policies are left as they came: `policies.odrl.reader` reads all their spellings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from connector.errors import MessageInvalid
from policies.evaluation.values import is_whole
from policies.odrl import strictjson

Json: TypeAlias = dict[str, Any]

CONTEXT = "https://w3id.org/dspace/2025/1/context.jsonld"
DSPACE = "https://w3id.org/dspace/2025/1/"
DEPTH_MAX = 64
NODES_MAX = 50_000
_PREFIXES_MAX, _PREFIX_MAX = 100, 255  # of an inline context; characters of the IRI that a prefix stands for
_RAW = frozenset({"offer", "agreement", "hasPolicy"})  # policies: read elsewhere, whole
_ALIASES = {"id": "@id", "type": "@type"}  # read where the keyword is missing; beside it, they are somebody's own
_PREFIXES = {
    "dspace": DSPACE,
    "dcat": "http://www.w3.org/ns/dcat#",
    "dct": "http://purl.org/dc/terms/",
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}


def parse(body: bytes | str) -> Any:
    """JSON within bounds that every database and peer can hold, or MessageInvalid."""
    try:
        value = strictjson.loads(body, parse_constant=_refuse_constant)
    except strictjson.DuplicateMember as error:
        raise MessageInvalid(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise MessageInvalid(f"expected JSON in UTF-8, came something else ({type(error).__name__})") from error
    _check(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check(value: Any) -> None:
    """Bounded depth and size; no text or number that a database would refuse later."""
    waiting, seen = [(value, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > DEPTH_MAX or seen > NODES_MAX:
            raise MessageInvalid(f"expected at most {NODES_MAX} values nested at most {DEPTH_MAX} deep")
        if isinstance(node, dict):
            waiting.extend((part, depth + 1) for pair in node.items() for part in pair)
        elif isinstance(node, list):
            waiting.extend((part, depth + 1) for part in node)
        elif isinstance(node, str):
            if not _storable(node):
                raise MessageInvalid("expected text without NUL characters and lone surrogates")
        elif isinstance(node, float) and not math.isfinite(node):
            raise MessageInvalid("expected numbers that are finite")


def values_in(value: Any) -> int:
    """How many values a document has, as `parse` counts them."""
    waiting, seen = [value], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if isinstance(node, dict):
            waiting.extend(part for pair in node.items() for part in pair)
        elif isinstance(node, list):
            waiting.extend(node)
    return seen


def _storable(text: str) -> bool:
    return "\0" not in text and is_whole(text)


def node_of(document: Any) -> Json:
    """The one object of a document: itself, or the only member of an expanded document, with the context of both."""
    around: list[Any] = []
    if isinstance(document, dict) and "@graph" in document:
        around, document = listed(document.get("@context")), document["@graph"]
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict):
        raise MessageInvalid("expected one JSON object as message, came something else")
    return {**document, "@context": [*around, *listed(document.get("@context"))]} if around else document


def prefixes_of(node: Json) -> dict[str, str]:
    """The context's prefixes and those that an inline context adds. Documents it refers to are never fetched.

    MessageInvalid for more or longer ones than anybody needs: each name could become as long as such an IRI.
    """
    own: dict[str, str] = {}
    for part in listed(node.get("@context")):
        if isinstance(part, dict):
            own.update({key: value for key, value in part.items() if isinstance(value, str) and key[:1] != "@"})
    if len(own) > _PREFIXES_MAX or any(len(iri) > _PREFIX_MAX for iri in own.values()):
        raise MessageInvalid(
            f"expected at most {_PREFIXES_MAX} prefixes in an inline context, each for at most {_PREFIX_MAX} "
            "characters, came more; write full names where they are used"
        )
    return {**_PREFIXES, **own}


def members(node: Json, prefixes: Mapping[str, str]) -> Json:
    """A node's members by the context's terms, their values unwrapped; nested nodes likewise, policies as they came.

    MessageInvalid where two spellings of one member say different things: another reader would take the other one.
    """
    found: Json = {}
    for key, value in node.items():
        term = term_of(key, prefixes)
        if term == "@context" or (key in _ALIASES and term in node):
            continue
        read = _with_prefixes(value, _own(prefixes)) if term in _RAW else unwrapped(value, prefixes)
        if found.setdefault(term, read) != read:
            raise MessageInvalid(f"{term[:200]} is given twice under different spellings; keep one")
    return found


def term_of(name: str, prefixes: Mapping[str, str]) -> str:
    """The term for a written name: `dspace:consumerPid` and the full IRI are `consumerPid`."""
    if name.startswith("@") or ":" not in name:
        return _ALIASES.get(name, name)
    iri = absolute(name, prefixes)
    return _terms().get(iri, iri)


def absolute(name: str, prefixes: Mapping[str, str]) -> str:
    """The IRI of a prefixed name; anything else stays as it is."""
    prefix, colon, local = name.partition(":")
    known = prefixes.get(prefix) if colon and not local.startswith("//") else None
    return name if known is None else known + local


def local(value: str, prefixes: Mapping[str, str]) -> str:
    """A value of the protocol's own vocabulary by its bare name: `dspace:FINALIZED` is `FINALIZED`."""
    return absolute(value, prefixes).removeprefix(DSPACE)


def types(node: Json, prefixes: Mapping[str, str]) -> tuple[str, ...]:
    """The bare names of a node's types."""
    raw = node.get("@type", node.get("type", ()))
    return tuple(
        term_of(one, prefixes) if ":" in one else one
        for one in (raw if isinstance(raw, list) else [raw])
        if isinstance(one, str)
    )


def single(value: Any) -> Any:
    """The one value of a member that is never a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def listed(value: Any) -> list[Any]:
    """The values of a member that is always a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def unwrapped(value: Any, prefixes: Mapping[str, str]) -> Any:
    """What a value says without JSON-LD's wrapping: `{"@value": 1}` is 1, `{"@id": "urn:a"}` is `urn:a`."""
    if isinstance(value, list):
        return [unwrapped(part, prefixes) for part in value]
    if not isinstance(value, dict):
        return value
    for wrapper in ("@value", "@list", "@set"):
        if wrapper in value:
            return unwrapped(value[wrapper], prefixes)
    if set(value) == {"@id"}:
        return value["@id"]
    return members(value, prefixes)


def _own(prefixes: Mapping[str, str]) -> dict[str, str]:
    """Those that the message itself defines, or defines otherwise."""
    return {key: iri for key, iri in prefixes.items() if _PREFIXES.get(key) != iri}


def _with_prefixes(value: Any, own: dict[str, str]) -> Any:
    """Policy nodes with the prefixes that the message gave them, where it gave any of its own: all have the same."""
    if isinstance(value, list):
        return [_with_prefixes(part, own) for part in value]
    if isinstance(value, dict) and set(value) in ({"@set"}, {"@list"}):  # with more beside it, nobody reads it
        return _with_prefixes(next(iter(value.values())), own)
    return {"@context": own, **value} if own and isinstance(value, dict) else value


@cache
def _terms() -> dict[str, str]:
    """IRI to term, over everything that the protocol's two contexts define."""
    found: dict[str, str] = {}
    for name in ("dspace.jsonld", "odrl.jsonld"):
        text = (files("connector.dsp") / "schemas" / "context" / name).read_text("utf-8")
        _collect(json.loads(text)["@context"], found)
    return found


def _collect(context: Json, found: dict[str, str]) -> None:
    for term, meaning in context.items():
        if term.startswith("@"):
            continue
        iri = meaning.get("@id", "") if isinstance(meaning, dict) else meaning
        if isinstance(iri, str) and not iri.endswith(("/", "#")):
            found.setdefault(absolute(iri, _PREFIXES), term)
        if isinstance(meaning, dict) and isinstance(meaning.get("@context"), dict):
            _collect(meaning["@context"], found)
