"""The published schemas and contexts of the Dataspace Protocol, as a second opinion on what we send."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from rdflib import RDF, BNode, Graph, Literal, URIRef
from referencing import Registry, Resource

FOLDER = Path(__file__).parent.parent.parent / "connector" / "dsp" / "schemas"
BASE = "https://w3id.org/dspace/2025/1/"
CONTEXT = ["https://w3id.org/dspace/2025/1/context.jsonld"]


@cache
def registry() -> Registry[Any]:
    """All schemas by their id; three of them lack the slash after `#`."""
    found: list[tuple[str, Resource[Any]]] = []
    for path in sorted(FOLDER.rglob("*-schema.json")):
        text = path.read_text(encoding="utf-8").replace("#definitions/", "#/definitions/")
        schema = json.loads(text)
        found.append((schema["$id"], Resource.from_contents(schema)))
    return Registry().with_resources(found)


@cache
def _validator(reference: str) -> jsonschema.Draft201909Validator:
    return jsonschema.Draft201909Validator({"$ref": reference}, registry=registry())


def validate(name: str, instance: Any) -> None:
    """Raise jsonschema.ValidationError when the instance does not fit the schema file."""
    _validator(BASE + name).validate(instance)


def validate_definition(name: str, instance: Any) -> None:
    """The same against one definition of the contract schema: Offer, MessageOffer, Agreement."""
    _validator(f"{BASE}negotiation/contract-schema.json#/definitions/{name}").validate(instance)


def offer_message(offer: dict[str, Any]) -> dict[str, Any]:
    """A ContractOfferMessage around an offer."""
    return {
        "@context": CONTEXT,
        "@type": "ContractOfferMessage",
        "providerPid": "urn:uuid:1",
        "consumerPid": "urn:uuid:2",
        "offer": offer,
    }


@cache
def context() -> dict[str, Any]:
    """The protocol's context with its one import put in place, so that nothing is fetched."""

    def merged(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        own = {key: merged(value) for key, value in node.items() if key != "@import"}
        return {**odrl, **own} if "@import" in node else own

    odrl, dspace = (
        json.loads((FOLDER / "context" / f"{name}.jsonld").read_text(encoding="utf-8"))["@context"]
        for name in ("odrl", "dspace")
    )
    found = merged(dspace)
    assert isinstance(found, dict)
    return found


def through_rdf(message: dict[str, Any], member: str) -> dict[str, Any]:
    """One member of a message as expanded JSON-LD, after an independent reader made RDF of the whole."""
    graph = Graph()
    graph.parse(data=json.dumps({**message, "@context": context()}), format="json-ld")
    (subject,) = graph.objects(None, URIRef(BASE + member))
    return _node(graph, subject)


def _node(graph: Graph, subject: Any) -> dict[str, Any]:
    found: dict[str, Any] = {} if isinstance(subject, BNode) else {"@id": str(subject)}
    for predicate, value in graph.predicate_objects(subject):
        key = "@type" if predicate == RDF.type else str(predicate)
        found.setdefault(key, []).append(str(value) if key == "@type" else _value(graph, value))
    return found


def _value(graph: Graph, value: Any) -> dict[str, Any]:
    if isinstance(value, Literal):
        return {"@value": str(value), **({"@type": str(value.datatype)} if value.datatype else {})}
    return _node(graph, value) if isinstance(value, BNode) else {"@id": str(value)}
