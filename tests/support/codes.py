"""The codes that the sources of a package give to errors and ends."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_CODE = re.compile("[a-z]+(_[a-z]+)*")
_GIVING = {"refuse", "Coded", "error_of", "find_end_reason"}  # functions whose first argument is a code


def said_in(*packages: str) -> set[str]:
    """Every literal that is given as a code, is the code of a class, or is a key of the table of workers' codes."""
    files = (path for package in packages for path in sorted((_ROOT / package).rglob("*.py")))
    found = {code for path in files for code in _of(ast.parse(path.read_text("utf-8")))}
    return {code for code in found if _CODE.fullmatch(code)}


def _of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = [word.value for word in node.keywords if word.arg == "code"]
            if isinstance(node.func, ast.Name | ast.Attribute) and _name(node.func) in _GIVING:
                given += node.args[:1]
            for value in given:
                yield from _texts(value)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id == "code" for one in targets) and node.value is not None:
                yield from _texts(node.value)
            if any(isinstance(one, ast.Name) and one.id == "_ERRORS" for one in targets):
                assert isinstance(node.value, ast.Dict)
                for key in node.value.keys:
                    yield from _texts(key) if key is not None else ()


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _texts(node: ast.AST) -> Iterator[str]:
    """The text that an expression is, one of whose branches it is, or that it falls back to."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _texts(value)
