"""The published schemas of the Dataspace Protocol, as a second opinion on what we send."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
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
