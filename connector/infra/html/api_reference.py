"""The API reference as an HTML page: every operation with its parameters, fields and responses.

It is generated from the OpenAPI document that tools read, so the two cannot differ. It has no script and loads nothing
from other hosts: it shares an origin with the console, whose session a foreign script could use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from connector.infra.html import FOLDER

_METHODS = ("get", "post", "put", "patch", "delete")
_NAMES_DEEP = 3


def render_page(document: Mapping[str, Any]) -> str:
    """The HTML page of an OpenAPI 3.1 document."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                name = next(iter(item[method].get("tags", ())), "") or _first_word(path)
                groups.setdefault(name, []).append(_operation(document, path, method, item[method]))
    templates = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    return templates.get_template("reference.html").render(
        title=document["info"]["title"],
        about=document["info"].get("description") or document["info"].get("summary", ""),
        operations=sum(map(len, groups.values())),
        groups=[
            {"name": name.replace("-", " ").capitalize(), "anchor": _anchor(name), "operations": entries}
            for name, entries in groups.items()
        ],
    )


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    text = str(operation.get("description", "")).strip()
    summary, _, rest = text.partition("\n")
    return {
        "method": method.upper(),
        "path": path,
        "anchor": _anchor(f"{method} {path}"),
        "summary": summary or operation.get("summary", ""),
        "text": rest.strip(),
        "fields": [*_parameters(operation), *_body(document, operation)],
        "answers": [(code, answer.get("description", "")) for code, answer in operation.get("responses", {}).items()],
    }


def _parameters(operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for parameter in operation.get("parameters", ()):
        text = parameter.get("description", "")
        yield {
            "name": parameter["name"], "where": parameter["in"], "required": parameter.get("required", False),
            "type": _type(parameter.get("schema", {})), "text": text,
        }  # fmt: skip


def _body(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolve(document, body.get("schema", {}))
        for name, field in schema.get("properties", {}).items():
            needed = name in schema.get("required", ())
            text = field.get("description") or _resolve(document, field).get("description", "")
            yield {"name": name, "where": "body", "required": needed, "type": _type(field), "text": text}
        if not schema.get("properties"):
            yield {"name": media, "where": "body", "required": True, "type": _type(schema), "text": ""}


def _resolve(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: Mapping[str, Any] = document.get("components", {}).get("schemas", {}).get(name, schema)
    return found


def _type(schema: Mapping[str, Any], deep: int = 0) -> str:
    """A short name of a JSON schema's type, such as `list of string`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if deep < _NAMES_DEEP and (several := schema.get("anyOf") or schema.get("oneOf")):
        return " or ".join(dict.fromkeys(_type(option, deep + 1) for option in several))
    if deep < _NAMES_DEEP and schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), deep + 1)}"
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    return str(schema.get("format") or schema.get("const") or schema.get("type", "anything"))


def _first_word(path: str) -> str:
    words = [part for part in path.split("/") if part and part not in ("api", "v1") and "{" not in part]
    return words[0] if words else "Pages"


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
