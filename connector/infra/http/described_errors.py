"""Makes an app's OpenAPI document tell its errors as they are: RFC 9457 problem objects, and 400 for bad input."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

MEDIA_TYPE = "application/problem+json"
_OURS = "Problem"
_API, _OAUTH = "/api/v1/", "/api/v1/oauth/"  # OAuth has errors of its own (RFC 6749, 5.2)
_FRAMEWORKS = ("HTTPValidationError", "ValidationError")
_SCHEMA: dict[str, Any] = {
    "title": _OURS,
    "type": "object",
    "description": "Why a request was not answered (RFC 9457). Further members name what was expected and what came.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string", "description": "`https://w3id.org/hanse/errors/` and the code."},
        "title": {"type": "string", "description": "The code in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "code": {"type": "string", "description": "Stable name of the error, such as `bad_input`."},
        "detail": {"type": "string", "description": "What was expected, what came, and what to do."},
    },
}


def describe_errors(app: FastAPI) -> None:
    """Replace the framework's errors in the document of an app: it answers 400 where FastAPI documents 422."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()  # made once, and kept by the app
        if _OURS not in document.setdefault("components", {}).setdefault("schemas", {}):
            _replace_errors(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to change the document


def _replace_errors(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in _FRAMEWORKS:
        schemas.pop(name, None)
    schemas[_OURS] = _SCHEMA
    for path, operations in document.get("paths", {}).items():
        for operation in operations.values():
            _replace_responses(operation["responses"], problems=path.startswith(_API) and not path.startswith(_OAUTH))


def _replace_responses(responses: dict[str, Any], *, problems: bool) -> None:
    """Other protocols have errors of their own: of their operations only the status is described."""
    checked = responses.pop("422", None) is not None
    if problems:
        responses["default"] = _response("The request was not answered: `code` and `detail` say why.")
    if checked and problems:
        responses["400"] = _response("The request does not fit: `detail` says what was expected.")
    elif checked:
        responses.setdefault("400", {"description": "The request does not fit."})


def _response(description: str) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_OURS}"}}}
    return {"description": description, "content": content}
