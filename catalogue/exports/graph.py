"""A small RDF graph and its writers for Turtle, JSON-LD and RDF/XML. Pure; independent of any vocabulary.

Terms are written with a prefix (`dct:title`) and expand by PREFIXES. A node without an id is blank. Written by template
because a graph library costs a second and 35 thousand triples of memory per thousand datasets.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from xml.sax.saxutils import escape, quoteattr

from catalogue.crawl.sanitize import writable

PREFIXES = {
    "adms": "http://www.w3.org/ns/adms#",
    "csvw": "http://www.w3.org/ns/csvw#",
    "dcat": "http://www.w3.org/ns/dcat#",
    "dcatap": "http://data.europa.eu/r5r/",
    "dct": "http://purl.org/dc/terms/",
    "foaf": "http://xmlns.com/foaf/0.1/",
    "hydra": "http://www.w3.org/ns/hydra/core#",
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "skos": "http://www.w3.org/2004/02/skos/core#",
    "vcard": "http://www.w3.org/2006/vcard/ns#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
_UNSAFE = {ord(mark): f"%{ord(mark):02X}" for mark in '<>"{}|^`\\ '} | {code: f"%{code:02X}" for code in range(0x20)}


@dataclass(frozen=True, slots=True)
class Iri:
    """A reference to a resource. Characters that no IRI may have are percent-encoded when written."""

    value: str

    @property
    def safe(self) -> str:
        return self.value.translate(_UNSAFE)


@dataclass(frozen=True, slots=True)
class RdfLiteral:
    """A text, with a language or a datatype (prefixed) where it has one."""

    text: str
    language: str = ""
    datatype: str = ""


@dataclass(slots=True)
class Node:
    """A resource: its id (empty: blank), its types and its properties in the order they are written."""

    types: tuple[str, ...]
    id: str = ""
    properties: list[tuple[str, Value]] = field(default_factory=list)

    def add(self, term: str, *values: Value | None) -> None:
        """One triple per value; None is left out."""
        self.properties += [(term, value) for value in values if value is not None]


Value: TypeAlias = Iri | RdfLiteral | Node


def expand(term: str) -> str:
    """`dct:title` → the IRI."""
    prefix, _, local = term.partition(":")
    return PREFIXES[prefix] + local


# -- Turtle


def turtle(nodes: Iterable[Node]) -> str:
    """The graph as Turtle."""
    head = "".join(f"@prefix {prefix}: <{iri}> .\n" for prefix, iri in PREFIXES.items())
    return head + "".join(f"\n{_turtle_subject(node)}{_turtle_body(node, 1)} .\n" for node in nodes)


def _turtle_subject(node: Node) -> str:
    return f"<{Iri(node.id).safe}>" if node.id else "[]"


def _turtle_body(node: Node, depth: int) -> str:
    indent = "\n" + "    " * depth
    lines = [f"a {', '.join(node.types)}"] if node.types else []
    lines += [f"{term} {_turtle_value(value, depth)}" for term, value in node.properties]
    return indent + f" ;{indent}".join(lines)


def _turtle_value(value: Value, depth: int) -> str:
    if isinstance(value, Iri):
        return f"<{value.safe}>"
    if isinstance(value, Node):
        # A node with an id that stands inside another is written there by reference only; see `flat`.
        return f"<{Iri(value.id).safe}>" if value.id else f"[{_turtle_body(value, depth + 1)} ]"
    text = json.dumps(value.text, ensure_ascii=False)  # JSON's escapes are a subset of Turtle's
    if value.language:
        return f"{text}@{value.language}"
    return f"{text}^^{value.datatype}" if value.datatype else text


# -- JSON-LD


def jsonld(nodes: Iterable[Node]) -> str:
    """The graph as JSON-LD, with prefixes as its whole context: nothing has to be fetched to read it."""
    document = {"@context": PREFIXES, "@graph": [jsonld_node(node) for node in nodes]}
    return json.dumps(document, ensure_ascii=False, indent=1)


def jsonld_node(node: Node) -> dict[str, Any]:
    """One node with the blank nodes inside it, in terms of PREFIXES."""
    made: dict[str, Any] = {"@id": Iri(node.id).safe} if node.id else {}
    if node.types:
        made["@type"] = node.types[0] if len(node.types) == 1 else list(node.types)
    for term, value in node.properties:
        made.setdefault(term, []).append(_jsonld_value(value))
    return {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in made.items()}


def _jsonld_value(value: Value) -> Any:
    if isinstance(value, Iri):
        return {"@id": value.safe}
    if isinstance(value, Node):
        return {"@id": Iri(value.id).safe} if value.id else jsonld_node(value)
    if value.language:
        return {"@value": value.text, "@language": value.language}
    return {"@value": value.text, "@type": value.datatype} if value.datatype else value.text


# -- RDF/XML


def rdfxml(nodes: Iterable[Node]) -> str:
    """The graph as RDF/XML."""
    spaces = "".join(f"\n  xmlns:{prefix}={quoteattr(iri)}" for prefix, iri in PREFIXES.items())
    body = "".join(_xml_node(node, 1) for node in nodes)
    # Readers clean what they take; whatever they overlook must not make the document none at all.
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<rdf:RDF{spaces}>\n{writable(body)}</rdf:RDF>\n'


def _xml_node(node: Node, depth: int) -> str:
    indent = "  " * depth
    kind, *more = node.types or ("rdf:Description",)
    about = f" rdf:about={quoteattr(Iri(node.id).safe)}" if node.id else ""
    lines = [f"{indent}  <rdf:type rdf:resource={quoteattr(expand(extra))}/>\n" for extra in more]
    lines += [_xml_property(term, value, depth + 1) for term, value in node.properties]
    return f"{indent}<{kind}{about}>\n{''.join(lines)}{indent}</{kind}>\n"


def _xml_property(term: str, value: Value, depth: int) -> str:
    indent = "  " * depth
    if isinstance(value, Node) and not value.id:
        return f"{indent}<{term}>\n{_xml_node(value, depth + 1)}{indent}</{term}>\n"
    if not isinstance(value, RdfLiteral):
        target = value.safe if isinstance(value, Iri) else Iri(value.id).safe
        return f"{indent}<{term} rdf:resource={quoteattr(target)}/>\n"
    kind = f" rdf:datatype={quoteattr(expand(value.datatype))}" if value.datatype else ""
    kind = f" xml:lang={quoteattr(value.language)}" if value.language else kind
    return f"{indent}<{term}{kind}>{escape(value.text)}</{term}>\n"


def merge_nodes(nodes: Iterable[Node]) -> list[Node]:
    """Nodes with an id, each once with all its properties, in order of appearance. Blank nodes stay inside others."""
    waiting, found = deque(nodes), dict[str, Node]()
    said = dict[str, set[Hashable]]()
    met = set[int]()  # one object that stands in many places is looked at once
    anonymous: list[Node] = []
    while waiting:
        node = waiting.popleft()
        if id(node) in met:
            continue
        met.add(id(node))
        waiting.extend(_list_identified(node))
        if not node.id:
            anonymous.append(node)
            continue
        known = found.setdefault(node.id, Node(node.types, node.id))
        there = said.setdefault(node.id, set())
        for term, value in node.properties:
            if (key := (term, _key(value))) not in there:
                there.add(key)
                known.properties.append((term, value))
    return [*found.values(), *anonymous]


def _key(value: Value) -> Hashable:
    """A key for comparing values. Two blank nodes with the same content are equal."""
    if not isinstance(value, Node):
        return value
    return value.id or (value.types, tuple((term, _key(inner)) for term, inner in value.properties))


def _list_identified(node: Node) -> list[Node]:
    found: list[Node] = []
    for _, value in node.properties:
        if isinstance(value, Node):
            found += [value] if value.id else _list_identified(value)
    return found
