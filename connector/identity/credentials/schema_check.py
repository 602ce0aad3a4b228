"""Checks a credential's subject against the JSON Schemas that the credential names. Schemas are cached for minutes.

A schema that cannot be fetched or read means that the credential is not valid. References of a schema to other
addresses are not followed.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema_rs import ReferencingError, RegexOptions, ValidationError, validator_for

from connector.errors import Unproven
from connector.identity.credentials import fetched
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net.http_client import HttpClient

_KINDS = ("JsonSchema", "JsonSchemaValidator2018", "FullJsonSchemaValidator2021")
_SCHEMA_MAX = 64 * 2**10
_KEPT_MAX = 64
_SECONDS = 300.0
_DEPTH_MAX = 32
_PATTERN_MAX = 2**20  # bytes of a compiled pattern
_WHAT = "a credential's schema"


class SchemaChecker:
    """Checks subjects against cached schemas."""

    def __init__(self, net: HttpClient) -> None:
        self._net = net
        self._kept: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    async def check(
        self, named: Sequence[Mapping[str, Any]], subjects: Sequence[Mapping[str, Any]], *, now: float
    ) -> None:
        """Check all subjects against all schemas. Raises: Unproven, Unavailable."""
        for entry in named:
            url = entry.get("id")
            if entry.get("type") not in _KINDS or not isinstance(url, str):
                raise Unproven(f"expected a schema of type {' or '.join(_KINDS)} with an id")
            schema = await self._schema(url, now)
            await asyncio.to_thread(_check, schema, subjects)

    async def _schema(self, url: str, now: float) -> Any:
        at, schema = self._kept.get(url, (float("-inf"), None))
        if now - at > _SECONDS:
            body = await fetched.call(self._net, "GET", url, what=_WHAT, max_bytes=_SCHEMA_MAX)
            try:
                schema = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise Unproven("expected a credential's schema as JSON") from error
            put_recent(self._kept, url, (now, schema), most=_KEPT_MAX)
        return schema


def _check(schema: Any, subjects: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(schema, dict) or _depth(schema) > _DEPTH_MAX:
        raise Unproven(f"expected a JSON Schema as an object of at most {_DEPTH_MAX} levels")
    if schema.get("$ref") == "#":  # the library takes it for one that allows everything
        raise Unproven("a credential's schema is not valid", private="it refers to itself only")
    try:  # RegexOptions: patterns take linear time; the other engine of the library goes back and tries again
        validator = validator_for(
            schema, validate_formats=False, offline=True, pattern_options=RegexOptions(size_limit=_PATTERN_MAX)
        )
    except (ValidationError, ReferencingError, RecursionError, ValueError) as error:
        raise Unproven("a credential's schema is not valid", private=str(error)[:200]) from None
    try:
        for subject in subjects:
            validator.validate(dict(subject))
    except (ValidationError, ReferencingError, RecursionError, ValueError) as error:
        raise Unproven(
            "a credential's subject does not fit the schema that it names", private=str(error)[:200]
        ) from None


def _depth(value: object) -> int:
    """The levels of a JSON value, counted to one more than the limit."""
    level, depth = [value], 0
    while level and depth <= _DEPTH_MAX:
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return depth
