"""The SQL gate's step 7: the engine's own parser reads the generated statement, and this judges what it read.

The worker runs `RECHECK_SQL` with the statement and hands the JSON here. Two parsers must agree that nothing
but known relations and allowed functions is named. A pure function; must not know how the SQL was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from policies.errors import QueryRefused

RECHECK_SQL = "SELECT json_serialize_sql(?)"

_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE"})
_MODIFIERS = frozenset({"ORDER_MODIFIER", "LIMIT_MODIFIER", "DISTINCT_MODIFIER"})
_ORDERS = frozenset({"ORDER_DEFAULT", "ASCENDING", "DESCENDING", "ASC", "DESC"})
_SOURCES = frozenset({"BASE_TABLE", "SUBQUERY", "JOIN", "EMPTY", "EMPTY_FROM"})
_EXPRESSIONS = (
    "BETWEEN CASE CAST COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION OPERATOR PARAMETER STAR SUBQUERY TYPE WINDOW"
)
_CLASSES = frozenset(_EXPRESSIONS.split())


def check(text: str, *, names: Iterable[str], functions: frozenset[str]) -> None:
    """Raise QueryRefused (`recheck_failed`) unless `text`, the output of RECHECK_SQL, is one query over `names`
    that calls nothing but `functions`."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        raise _failed("its answer cannot be read") from None
    if not isinstance(read, dict) or read.get("error") is not False:
        raise _failed("it does not take the statement for one query")
    statements = read.get("statements")
    if not isinstance(statements, list) or len(statements) != 1:
        raise _failed("it reads more than one statement")
    _walk(statements[0].get("node"), frozenset(names), functions)


def _walk(root: Any, names: frozenset[str], functions: frozenset[str]) -> None:
    if not isinstance(root, dict) or root.get("type") not in _NODES:
        raise _failed("it does not take the statement for a query")
    stack: list[Any] = [root]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(part)
        elif isinstance(part, dict):
            _part(part, names, functions)
            stack.extend(value for value in part.values() if isinstance(value, dict | list))


def _part(part: dict[str, Any], names: frozenset[str], functions: frozenset[str]) -> None:
    kind, class_ = part.get("type"), part.get("class")
    if "table_name" in part and kind == "BASE_TABLE":
        if part["table_name"] not in names or part.get("schema_name") or part.get("catalog_name"):
            raise _failed("it finds a relation that is not part of the agreement")
    elif "table_name" in part and class_ is None:
        raise _failed("it finds a source that is not a plain relation")
    if class_ is not None and class_ not in _CLASSES:
        raise _failed(f"it finds {class_}")
    if class_ is None and isinstance(kind, str) and not _known(kind):
        raise _failed(f"it finds {kind}")
    if "function_name" in part and (
        part["function_name"] not in functions or part.get("schema") or part.get("catalog")
    ):
        raise _failed("it finds a function that is not on the list")
    if class_ == "CAST" and part.get("try_cast") is not True:
        raise _failed("it finds a cast that can fail")


def _known(kind: str) -> bool:
    return kind in _NODES or kind in _SOURCES or kind in _MODIFIERS or kind in _ORDERS


def _failed(what: str) -> QueryRefused:
    return QueryRefused(
        f"the engine's parser reads the query differently: {what}", rule="gate/recheck", code="recheck_failed"
    )
