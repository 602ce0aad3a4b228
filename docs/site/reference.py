"""The generated reference: settings, commands, REST, SDK and error codes, each from the place that decides it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import typer
import yaml
from hanse import errors as client_errors
from hanse.cli import _installed, _loaded, app
from pydantic_settings import BaseSettings

from catalogue.settings import CatalogueSettings
from connector import errors, peer_codes
from connector.settings import Settings

ROOT = Path(__file__).parents[2]
_METHODS = ("get", "post", "put", "patch", "delete")
_PYTHON = """import os

import httpx2

headers = {"authorization": f"Bearer {os.environ['HANSE_TOKEN']}"}
api = httpx2.Client(base_url=os.environ["HANSE_URL"], headers=headers)
"""
_MARKUP = re.compile(r"\[/?[a-z ]+\](?!\()")


def pages() -> dict[str, str]:
    """The Markdown of each page, by name."""
    return {
        "commands": "".join(commands()),
        "settings": "".join(settings()),
        "rest": "".join(rest(yaml.safe_load((ROOT / "openapi.yaml").read_text("utf-8")))),
        "sdk": sdk(),
        "error-codes": "".join(error_codes()),
    }


def commands() -> Iterator[str]:
    """Every command of `hanse` with its arguments and options, as `hanse ... --help` has them."""
    yield "# Commands\n\nThe command line `hanse`, as its help texts describe it. "
    yield f"{app.info.epilog}\n\n"
    for words, command in walk_commands():
        yield f"## hanse {words}\n\n{_plain(command.help)}\n\n"
        if not hasattr(command, "commands"):
            yield f"```text\n{_usage(words, command)}\n```\n\n"
            yield from _parameters(command)


def walk_commands() -> Iterator[tuple[str, Any]]:
    """Each command and group with its words: `dataset add`. Hidden ones are left out."""
    root: Any = typer.main.get_command(app)
    tops = dict(root.commands) | {name: _loaded(point) for name, point in _installed().items()}
    for name, command in sorted(tops.items()):
        yield from _walk(name, command)


def _walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    if command.hidden:
        return
    yield words, command
    for name, one in getattr(command, "commands", {}).items():
        yield from _walk(f"{words} {name}", one)


def _usage(words: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    names = [one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments]
    return " ".join(["hanse", words, "[OPTIONS]", *names])


def _parameters(command: Any) -> Iterator[str]:
    for one in command.params:
        if getattr(one, "hidden", False) or one.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts)) if one.opts else f"`{one.name}`"
        yield f"- {names}: {_plain(getattr(one, 'help', '')) or 'text'}\n"
    yield "\n"


def _plain(text: str | None) -> str:
    """A help text without marks of the terminal, safe as Markdown outside of its code."""
    parts = re.split(r"(`[^`]*`)", _MARKUP.sub("", (text or "").replace("\b", "")))
    return "".join(part if part.startswith("`") else _escape(part) for part in parts).strip()


def _escape(text: str) -> str:
    return re.sub(r"([<>*_\[\]|#])", r"\\\1", text)


def settings() -> Iterator[str]:
    """Each setting of connector and catalogue with its default and its text."""
    yield "# Settings\n\nEach setting is a variable of the environment. `hanse connector settings` prints those of a connector.\n\n"
    for title, model in (("Connector", Settings), ("Catalogue", CatalogueSettings)):
        yield f"## {title}\n\n"
        yield from _settings_of(model)


def _settings_of(model: type[BaseSettings]) -> Iterator[str]:
    prefix = str(model.model_config.get("env_prefix", "")).upper()
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = str(default).removeprefix(f"{ROOT}/") if default not in (None, "", (), [], {}) else "empty"
        title = f"{prefix}{name.upper()}"
        yield f"### {title} {{: #{model.__name__.lower()}-{name} }}\n\n{_plain(field.description)}\n\nDefault: `{shown}`\n\n"


def rest(document: Mapping[str, Any]) -> Iterator[str]:
    """Each operation of `openapi.yaml`, with calls in curl and Python."""
    yield "# REST\n\nOperations of the connector's management listener and of the catalogue, generated from `openapi.yaml`.\n"
    yield "The examples read address and token from `HANSE_URL` and `HANSE_TOKEN`. Replace what is in braces. "
    yield "`/docs` of each listener has all fields.\n\nThe Python examples go on from these lines:\n\n"
    yield f"```python\n{_PYTHON}```\n\n"
    yield "## Errors\n\nA refusal is `application/problem+json` with the members below. [Error codes](error-codes.md) says what to do.\n\n"
    yield "| member | meaning |\n|---|---|\n| `type`, `title` | the code, as address and as words |\n| `status` | the HTTP status |\n"
    yield "| `detail` | what was expected, what came, what to do |\n| `code` | the code, for programs |\n\n"
    groups: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                tag = next(iter(item[method].get("tags", ())), "other")
                groups.setdefault(tag, []).append((method, path, item[method]))
    for tag, operations in sorted(groups.items()):
        yield f"## {tag.replace('-', ' ').capitalize()}\n\n"
        for method, path, operation in operations:
            yield from _operation(document, method, path, operation)


def _operation(document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    body = _example(document, operation)
    yield f"### `{method.upper()} {path}`\n\n{_plain(operation.get('summary'))}\n\n"
    for one in operation.get("parameters", ()):
        needed = " (required)" if one.get("required") else ""
        yield f"- `{one['name']}`, in {one['in']}{needed}: {_plain(one.get('description')) or _type(one.get('schema', {}))}\n"
    yield f"\n```sh\n{_curl(method, path, body)}\n```\n\n```python\n{_python(method, path, body)}\n```\n\n"


def _curl(method: str, path: str, body: str | None) -> str:
    verb = "" if method == "get" else f" -X {method.upper()}"
    sent = "" if body is None else f" -H 'content-type: application/json' -d '{body}'"
    return f'curl{verb} "$HANSE_URL{path}" -H "authorization: Bearer $HANSE_TOKEN"{sent}'


def _python(method: str, path: str, body: str | None) -> str:
    sent = "" if body is None else f", json={json.loads(body)!r}"
    if method == "delete" and sent:
        return f'answer = api.request("DELETE", "{path}"{sent})'
    return f'answer = api.{method}("{path}"{sent})'


def _example(document: Mapping[str, Any], operation: Mapping[str, Any]) -> str | None:
    """The required fields of a JSON body with a value of their type; None without such a body."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return None if schema is None else json.dumps(_value(document, schema, depth=0))


def _value(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> Any:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "default" in schema:
        return schema["default"]
    if depth < 4 and (fields := schema.get("properties")):
        return {name: _value(document, fields[name], depth + 1) for name in schema.get("required", ())}
    values = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}
    return values.get(str(schema.get("type")), "...")


def _type(schema: Mapping[str, Any]) -> str:
    return str(schema.get("type", "text"))


def sdk() -> str:
    """The public names of the client, whose docstrings are the text."""
    import hanse

    kinds = ("Space", "Dataset", "Entry", "Stream")
    homes = {"Space": "hanse.client.Space", "Dataset": "hanse.client.Dataset",
             "Entry": "hanse.notebook.found.Entry", "Stream": "hanse.stream.Stream"}  # fmt: skip
    parts = ["# Python SDK\n\n`import hanse` is the whole SDK. The texts below are its docstrings.\n\n"]
    parts.append("::: hanse.connect\n\n")
    parts += [f"::: {homes[name]}\n\n" for name in kinds if name in hanse.__all__]
    parts.append("## Errors\n\nEach error has a `code` and says what to do. All of them are kinds of `HanseError`.\n\n")
    for name in sorted(hanse.__all__):
        kind = getattr(client_errors, name, None)
        if isinstance(kind, type):
            parts.append(f"- `hanse.{name}`: {_plain((kind.__doc__ or '').split(chr(10) * 2)[0])}\n")
    return "".join(parts)


def error_codes() -> Iterator[str]:
    """The kinds of errors with their HTTP status, and each code with the sentences that the program says with it."""
    yield "# Error codes\n\nEach refusal carries a code, and a sentence that says what was expected, what came and what to do. "
    yield "The sentences below are those of the program; `...` stands for a value.\n\n"
    yield "## HTTP status\n\n| status | kinds |\n|---|---|\n"
    kinds = sorted({(kind.status, kind.code) for kind in _kinds(errors.ConnectorError)})
    for status, group in groupby(kinds, key=itemgetter(0)):
        yield f"| {status} {HTTPStatus(status).phrase} | {', '.join(f'`{code}`' for _, code in group)} |\n"
    yield "\n## Codes\n\nA code marked with * may come from another participant. "
    yield "A connector passes only those on; any other becomes `peer_nonsense`.\n\n"
    for code, sentences in sorted(_sentences().items()):
        yield f"### `{code}`{' *' if code in peer_codes.KNOWN else ''} {{: #{code} }}\n\n"
        yield "".join(f"- {_plain(one)}\n" for one in sorted(sentences)) + "\n"


def _sentences() -> dict[str, set[str]]:
    """The texts of each error code, read from the calls that name the code: `Refused("...", code="...")`."""
    found: dict[str, set[str]] = {}
    for package in ("connector", "catalogue", "policies", "client/hanse"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and (code := _code(node)) and (said := _said(node)):
                    found.setdefault(code, set()).add(said)
    return found


def _code(call: ast.Call) -> str:
    """The code that a call names: its keyword `code`, or a positional argument that is a known code."""
    named = [word.value for word in call.keywords if word.arg == "code"]
    texts = [one.value for one in (*named, *call.args) if isinstance(one, ast.Constant)]
    words = [one for one in texts if isinstance(one, str) and one.isidentifier()]
    return next((one for one in words if named or one in peer_codes.KNOWN), "")


def _said(call: ast.Call) -> str:
    """The first sentence among the arguments, with `...` for its values; empty without one."""
    return next((text for one in call.args if " " in (text := _text(one))), "")


def _text(argument: ast.expr) -> str:
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    if isinstance(argument, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in argument.values)
    return ""


def _kinds(kind: type[errors.ConnectorError]) -> Iterator[type[errors.ConnectorError]]:
    yield kind
    for one in kind.__subclasses__():
        if one.__module__ == errors.__name__:
            yield from _kinds(one)
