"""The API's page says all that the OpenAPI document says, escaped, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from connector.app import management_app
from connector.infra.html import api_reference
from tests.connector.console.support import opened

EVIL = "<script>alert(1)</script>"


@pytest.fixture
async def document(tmp_path: Path) -> Any:
    async with opened(tmp_path) as made:
        yield management_app(made.parts).openapi()


async def test_every_operation_and_parameter_is_there(document: Mapping[str, Any]) -> None:
    text = api_reference.render_page(document)
    for path, item in document["paths"].items():
        for method, told in item.items():
            assert f'<b class="method">{method.upper()}</b> <code>{path}</code>' in text
            for parameter in told.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in text
    assert len(set(re.findall(r'<details class="card" id="([^"]+)"', text))) == sum(
        map(len, document["paths"].values())
    )


async def test_nothing_is_loaded_from_elsewhere(document: Mapping[str, Any]) -> None:
    text = api_reference.render_page(document)
    assert {link for link in re.findall(r'(?:src|href)="([^"]+)"', text) if not link.startswith("#")} == {
        "/", "/openapi.json", "/static/hanse.css", "/static/hanse.js", "/static/mark.svg",
    }  # fmt: skip


def test_what_is_said_of_fields_is_text() -> None:
    field = {"type": "array", "items": {"anyOf": [{"$ref": "#/components/schemas/Odd"}, {"type": "null"}]}}
    document = {
        "info": {"title": EVIL, "description": EVIL},
        "paths": {
            "/x/{id}": {
                "post": {
                    "description": f"{EVIL}\nmore",
                    "parameters": [{"name": EVIL, "in": "path", "required": True, "schema": {"enum": [1, EVIL]}}],
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Odd"}}}},
                    "responses": {"200": {"description": EVIL}},
                }
            }
        },
        "components": {"schemas": {"Odd": {"properties": {"of": field}, "required": ["of"]}}},
    }
    text = api_reference.render_page(document)
    assert EVIL not in text
    assert "list of Odd or null" in text
