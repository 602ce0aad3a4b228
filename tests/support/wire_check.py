"""Messages and replies of the protocol against the published schemas of their types: a second opinion."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema

from tests.support import dsp_schemas


@cache
def schemas() -> dict[str, str]:
    """Schema file by message type."""
    found = {}
    for path in sorted(dsp_schemas.FOLDER.rglob("*-schema.json")):
        for definition in json.loads(path.read_text("utf-8")).get("definitions", {}).values():
            for part in (definition, *definition.get("allOf", ())):
                kind = part.get("properties", {}).get("@type", {}).get("const", "")
                if kind.endswith(("Message", "Error", "Process", "ContractNegotiation")):
                    found[kind] = f"{path.parent.name}/{path.name}"
    return {**found, "Catalog": "catalog/catalog-schema.json", "Dataset": "catalog/dataset-schema.json"}


def check(document: Any) -> None:
    """AssertionError for a document that the schema of its type does not accept, or whose type is unknown."""
    kind = document.get("@type") if isinstance(document, dict) else None
    assert kind in schemas(), f"expected a message of the protocol, came {document!r}"
    try:
        dsp_schemas.validate(schemas()[kind], document)
    except jsonschema.ValidationError as error:
        raise AssertionError(f"{kind} does not fit its schema: {error.message} at {error.json_path}") from error
    _strict(document, top=True)


def _strict(node: Any, *, top: bool = False) -> None:
    """What the schemas do not say: no nulls, no empty lists, a context on top only, types on nested objects."""
    if isinstance(node, list):
        assert node, "an empty list: leave the member out"
        for part in node:
            _strict(part)
    elif isinstance(node, dict):
        assert top == ("@context" in node), "the context belongs on the outermost object only"
        for key, value in node.items():
            assert value is not None, f"{key} is null: leave it out"
            if key not in ("@list", "rightOperand"):
                _strict(value)
