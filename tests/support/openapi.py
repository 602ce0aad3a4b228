"""`openapi.yaml`, the public HTTP contract, written from the apps: `python -m tests.support.openapi [--check] FILE`.

One file for three listeners: each path names its server. The catalogue's paths stand under a server that ends in
`/api`, so that they differ from the connector's where both have, say, a search.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI

from connector.dataplane.http.schemas import Envelope, PlanForm

DATA_PLANE = Path(__file__).with_name("data_plane.yaml")
_PUBLIC = {"url": "https://connector.example", "description": "a connector's public listener"}
_MANAGEMENT = {"url": "http://127.0.0.1:8081", "description": "a connector's management listener"}
_CATALOGUE = {"url": "https://catalogue.example/api", "description": "the data space's catalogue"}


def document() -> dict[str, Any]:
    """The whole contract as one OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder:
        public, management, catalogue = _apps(Path(folder))
        whole: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {
                "title": "Hanse",
                "version": management.version,
                "description": "A governed, federated data-space connector and catalogue.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [_MANAGEMENT],
            "security": [{"bearer": []}],
            "paths": {},
            "components": {"schemas": {}, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        }
        for part, server, prefix in (
            (_described(management), _MANAGEMENT, "connector"),
            (_described(public), _PUBLIC, "public"),
            (_data_plane(), _PUBLIC, "public"),
            (_described(catalogue), _CATALOGUE, "catalogue"),
        ):
            _merge(whole, part, server, prefix)
    return whole


def _apps(folder: Path) -> tuple[FastAPI, FastAPI, FastAPI]:
    from catalogue.app import create_app
    from catalogue.settings import CatalogueSettings
    from connector.app import management_app, public_app
    from connector.services import build
    from connector.settings import Settings
    from connector.store.migrate import upgrade

    settings = Settings(name="connector", data_dir=folder / "connector")
    upgrade(settings.database)
    parts = build(settings)
    try:
        catalogue = create_app(CatalogueSettings(data_dir=folder / "catalogue", issuer_types=("MembershipCredential",)))
        return public_app(parts), management_app(parts), catalogue
    finally:
        parts.store.close()


def _described(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def _data_plane() -> dict[str, Any]:
    """What goes past the framework: the paths as they are written down, their bodies as the models have them."""
    paths = yaml.safe_load(DATA_PLANE.read_text())["paths"]
    schemas: dict[str, Any] = {}
    for model in (Envelope, PlanForm):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    return {"paths": paths, "components": {"schemas": schemas}}


def _merge(whole: dict[str, Any], part: dict[str, Any], server: dict[str, str], prefix: str) -> None:
    """Add one app's paths and schemas; schemas of one name that differ get the app's prefix."""
    known = whole["components"]["schemas"]
    renamed: dict[str, str] = {}
    for name, schema in part.get("components", {}).get("schemas", {}).items():
        renamed[name] = name if known.get(name, schema) == schema else f"{prefix.title()}{name}"
    for name, schema in part.get("components", {}).get("schemas", {}).items():
        known[renamed[name]] = _repointed(schema, renamed)
    for path, operations in part["paths"].items():
        shown = path.removeprefix("/api") if server is _CATALOGUE else path
        if shown in whole["paths"]:
            continue  # health and metrics are the same everywhere
        whole["paths"][shown] = {"servers": [server], **_repointed(operations, renamed)}


def _repointed(value: Any, renamed: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _pointer(item, renamed) if key == "$ref" else _repointed(item, renamed) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_repointed(item, renamed) for item in value]
    return value


def _pointer(value: str, renamed: dict[str, str]) -> str:
    head, _, name = value.rpartition("/")
    return f"{head}/{renamed.get(name, name)}"


def text() -> str:
    head = "# Written by `make openapi` from the apps; compared in CI. Do not edit.\n"
    return head + yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120)


def main(arguments: list[str]) -> int:
    target = Path(arguments[-1])
    written = text()
    if "--check" not in arguments:
        target.write_text(written)
        return 0
    if target.exists() and target.read_text() == written:
        return 0
    print(f"{target} is not what the apps say; run `make openapi` and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
