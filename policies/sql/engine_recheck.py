"""Step 7 of the gate: checks what the engine's own parser made of the generated statement.

The worker runs `RECHECK_SQL` with the statement and passes the JSON here. Two parsers must agree that the statement
uses only known relations and allowed functions. Pure; must not know how the SQL was made.
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
_JOINS = frozenset({"REGULAR", "CROSS"})
_SOURCES = frozenset({"BASE_TABLE", "SUBQUERY", "JOIN", "EMPTY", "EMPTY_FROM"})
_EXPRESSIONS = (
    "BETWEEN CASE CAST COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION OPERATOR PARAMETER STAR SUBQUERY TYPE WINDOW"
)
_CLASSES = frozenset(_EXPRESSIONS.split())
# Most parts need no check: those without a class or type, and expressions of these classes.
_TELLING = frozenset({"class", "function_name", "type", "sample", "at_clause", "ref_type", "table_name"})
_SILENT = _CLASSES - {"CAST", "STAR", "FUNCTION"}


def check(text: str, *, names: Iterable[str], functions: frozenset[str]) -> None:
    """Require that `text`, the output of `RECHECK_SQL`, is one query over `names` that calls only `functions`.

    Raises: QueryRefused (`recheck_failed`).
    """
    known = frozenset(names)

    def judge(part: dict[str, Any]) -> dict[str, Any]:
        if not _TELLING.isdisjoint(part) and (part.get("class") not in _SILENT or "function_name" in part):
            _check_part(part, known, functions)
        return part

    try:
        read = json.loads(text, object_hook=judge)  # checks each object once, while parsing
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _recheck_failed("its answer cannot be read") from None
    if not isinstance(read, dict) or read.get("error") is not False:
        raise _recheck_failed("it does not take the statement for one query")
    statements = read.get("statements")
    if not isinstance(statements, list) or len(statements) != 1:
        raise _recheck_failed("it reads more than one statement")
    root = statements[0].get("node") if isinstance(statements[0], dict) else None
    if not isinstance(root, dict) or root.get("type") not in _NODES:
        raise _recheck_failed("it does not take the statement for a query")


def _check_part(part: dict[str, Any], names: frozenset[str], functions: frozenset[str]) -> None:
    class_ = part.get("class")
    if class_ is None:
        _check_structure(part, names)
    elif class_ not in _CLASSES:
        raise _recheck_failed(f"it finds {class_}")
    elif class_ == "CAST" and part.get("try_cast") is not True:
        raise _recheck_failed("it finds a cast that can fail")
    elif class_ == "STAR" and (part.get("columns") or part.get("expr")):
        raise _recheck_failed("it finds columns chosen by a pattern")
    if "function_name" in part:
        _check_function(part, functions)


def _check_function(part: dict[str, Any], functions: frozenset[str]) -> None:
    if part["function_name"] not in functions or part.get("schema") or part.get("catalog"):
        raise _recheck_failed("it finds a function that is not on the list")
    if part.get("export_state"):
        raise _recheck_failed("it finds an exported state")


def _check_structure(part: dict[str, Any], names: frozenset[str]) -> None:
    """Check a part that is not an expression: queries, sources, orders and limits."""
    kind = part.get("type")
    if isinstance(kind, str) and not _is_known_kind(kind):
        raise _recheck_failed(f"it finds {kind}")
    if part.get("sample") or part.get("at_clause"):
        raise _recheck_failed("it finds a sample or a version")
    if "ref_type" in part and part["ref_type"] not in _JOINS:
        raise _recheck_failed(f"it finds a {part['ref_type']} join")
    if "table_name" in part and not _is_known_table(part, names):
        raise _recheck_failed("it finds a relation that is not part of the agreement")


def _is_known_table(part: dict[str, Any], names: frozenset[str]) -> bool:
    name = part["table_name"]
    if part.get("type") != "BASE_TABLE" or part.get("schema_name") or part.get("catalog_name"):
        return False
    qualified = part.get("qualified_name")
    return name in names and (qualified is None or qualified.get("path") == [name])


def _is_known_kind(kind: str) -> bool:
    return kind in _NODES or kind in _SOURCES or kind in _MODIFIERS or kind in _ORDERS


def _recheck_failed(what: str) -> QueryRefused:
    return QueryRefused(
        f"the engine's parser reads the query differently: {what}", rule="gate/recheck", code="recheck_failed"
    )
