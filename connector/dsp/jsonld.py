"""Reader for compact, prefixed or expanded JSON-LD, with local copies of the contexts. Pure; fetches nothing.

A member's name becomes its term in the protocol's context. Names that the context does not define stay absolute IRIs.
Policies stay as received: `policies.odrl.reader` reads all their spellings.
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
from policies.odrl.strictjson import list_of

Json: TypeAlias = dict[str, Any]

CONTEXT = "https://w3id.org/dspace/2025/1/context.jsonld"
DSPACE = "https://w3id.org/dspace/2025/1/"
DEPTH_MAX = 64
NODES_MAX = 50_000
_PREFIXES_MAX, _PREFIX_MAX = 100, 255  # of an inline context; characters of the IRI that a prefix stands for
_RAW = frozenset({"offer", "agreement", "hasPolicy"})  # policies, which `policies.odrl.reader` reads
_ALIASES = {"id": "@id", "type": "@type"}  # read where the keyword is missing; next to it, they are other members
_PREFIXES = {
    "dspace": DSPACE,
    "dcat": "http://www.w3.org/ns/dcat#",
    "dct": "http://purl.org/dc/terms/",
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}


def parse(body: bytes | str) -> Any:
    """Parse JSON of bounded depth and size, with text and numbers that every database can store.

    Raises:
        MessageInvalid: it is no JSON, or is beyond a limit.
    """
    try:
        value = strictjson.loads(body, parse_constant=_refuse_constant)
    except strictjson.DuplicateMember as error:
        raise MessageInvalid(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise MessageInvalid(f"expected JSON in UTF-8, got something else ({type(error).__name__})") from error
    _check_bounds(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_bounds(value: Any) -> None:
    """Refuse too much depth or size, and text or numbers that a database would refuse later."""
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
            if not _is_storable(node):
                raise MessageInvalid("expected text without NUL characters and lone surrogates")
        elif isinstance(node, float) and not math.isfinite(node):
            raise MessageInvalid("expected numbers that are finite")


def count_values(value: Any) -> int:
    """The number of values in a document, as `parse` counts them."""
    waiting, seen = [value], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if isinstance(node, dict):
            waiting.extend(part for pair in node.items() for part in pair)
        elif isinstance(node, list):
            waiting.extend(node)
    return seen


def _is_storable(text: str) -> bool:
    return "\0" not in text and is_whole(text)


def node_of(document: Any) -> Json:
    """The only object of a document, compact or expanded, with the contexts of the document and of the object."""
    around: list[Any] = []
    if isinstance(document, dict) and "@graph" in document:
        around, document = list_of(document.get("@context")), document["@graph"]
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict):
        raise MessageInvalid("expected one JSON object as message, got something else")
    return {**document, "@context": [*around, *list_of(document.get("@context"))]} if around else document


def prefixes_of(node: Json) -> dict[str, str]:
    """The context's prefixes and those of an inline context, as prefix to IRI.

    Raises:
        MessageInvalid: there are too many prefixes, or an IRI is too long: each name could become as long as the IRI.
    """
    own: dict[str, str] = {}
    for part in list_of(node.get("@context")):
        if isinstance(part, dict):
            own.update({key: value for key, value in part.items() if isinstance(value, str) and key[:1] != "@"})
    if len(own) > _PREFIXES_MAX or any(len(iri) > _PREFIX_MAX for iri in own.values()):
        raise MessageInvalid(
            f"expected at most {_PREFIXES_MAX} prefixes in an inline context, each for at most {_PREFIX_MAX} "
            "characters, got more; write full names where they are used"
        )
    return {**_PREFIXES, **own}


def members(node: Json, prefixes: Mapping[str, str]) -> Json:
    """A node's members as term to plain value, nested nodes likewise; policies stay as received.

    Raises:
        MessageInvalid: two spellings of one member have different values, and another reader could take the other.
    """
    found: Json = {}
    for key, value in node.items():
        term = term_of(key, prefixes)
        if term == "@context" or (key in _ALIASES and term in node):
            continue
        read = _add_prefixes(value, _own_prefixes(prefixes)) if term in _RAW else unwrap(value, prefixes)
        if found.setdefault(term, read) != read:
            raise MessageInvalid(f"expected {term[:200]} once, got two spellings with different values; keep one")
    return found


def term_of(name: str, prefixes: Mapping[str, str]) -> str:
    """The term of a name: `dspace:consumerPid` and the full IRI become `consumerPid`."""
    if name.startswith("@") or ":" not in name:
        return _ALIASES.get(name, name)
    iri = absolute(name, prefixes)
    return _terms().get(iri, iri)


def absolute(name: str, prefixes: Mapping[str, str]) -> str:
    """The IRI of a prefixed name; any other name unchanged."""
    prefix, colon, local = name.partition(":")
    known = prefixes.get(prefix) if colon and not local.startswith("//") else None
    return name if known is None else known + local


def local(value: str, prefixes: Mapping[str, str]) -> str:
    """The bare name of a value in the protocol's vocabulary: `dspace:FINALIZED` becomes `FINALIZED`."""
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
    """The value of a member that has one value, also where it is written as a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def unwrap(value: Any, prefixes: Mapping[str, str]) -> Any:
    """A value without JSON-LD's wrapping: `{"@value": 1}` becomes 1, `{"@id": "urn:a"}` becomes `urn:a`."""
    if isinstance(value, list):
        return [unwrap(part, prefixes) for part in value]
    if not isinstance(value, dict):
        return value
    for wrapper in ("@value", "@list", "@set"):
        if wrapper in value:
            return unwrap(value[wrapper], prefixes)
    if set(value) == {"@id"}:
        return value["@id"]
    return members(value, prefixes)


def _own_prefixes(prefixes: Mapping[str, str]) -> dict[str, str]:
    """The prefixes that the message itself defines or changes."""
    return {key: iri for key, iri in prefixes.items() if _PREFIXES.get(key) != iri}


def _add_prefixes(value: Any, own: dict[str, str]) -> Any:
    """Policy nodes with the message's own prefixes as their context."""
    if isinstance(value, list):
        return [_add_prefixes(part, own) for part in value]
    if isinstance(value, dict) and set(value) in ({"@set"}, {"@list"}):
        return _add_prefixes(next(iter(value.values())), own)
    return {"@context": own, **value} if own and isinstance(value, dict) else value


@cache
def _terms() -> dict[str, str]:
    """IRI to term, for all terms of the protocol's two contexts."""
    found: dict[str, str] = {}
    for name in ("dspace.jsonld", "odrl.jsonld"):
        text = (files("connector.dsp") / "schemas" / "context" / name).read_text("utf-8")
        _collect_terms(json.loads(text)["@context"], found)
    return found


def _collect_terms(context: Json, found: dict[str, str]) -> None:
    for term, meaning in context.items():
        if term.startswith("@"):
            continue
        iri = meaning.get("@id", "") if isinstance(meaning, dict) else meaning
        if isinstance(iri, str) and not iri.endswith(("/", "#")):
            found.setdefault(absolute(iri, _PREFIXES), term)
        if isinstance(meaning, dict) and isinstance(meaning.get("@context"), dict):
            _collect_terms(meaning["@context"], found)
