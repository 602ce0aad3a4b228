"""Docstrings name only modules that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("connector", "catalogue", "policies", "client/hanse", "benchmarks")
PACKAGES = ("connector", "catalogue", "policies")  # `hanse.` also begins names of entry points and ASGI extensions
_QUOTED = re.compile(r"`([A-Za-z_][\w.]*)`")


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def defined(module: Path) -> set[str]:
    """The names that a module imports, defines or assigns."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return names


def resolves(name: str, files: frozenset[str]) -> bool:
    """Whether a quoted name is no module's, or is of a module that exists."""
    if name.endswith(".py"):
        return name in files
    package, *parts = name.split(".")
    if package not in PACKAGES or not parts:
        return True
    place = ROOT / package
    for part in parts:
        if not (place / part / "__init__.py").is_file():
            return (place / f"{part}.py").is_file() or part in defined(place / "__init__.py")
        place = place / part
    return True


FILES = frozenset(path.name for folder in (*CODE, "tests") for path in (ROOT / folder).rglob("*.py"))


def test_each_module_that_a_docstring_names_exists() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: `{name}`"
        for folder in CODE
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in docstrings(path.read_text())
        for name in _QUOTED.findall(text)
        if not resolves(name, FILES)
    ]
    assert not wrong, "docstrings name modules that do not exist:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rows.py", False),
        ("governed_stream.py", True),
        ("connector.query.pool", False),
        ("connector.engine.pool", True),
        ("policies.enforce.gate", True),
        ("policies.enforce.guard", False),
        ("hanse.connect", True),
        ("min_group", True),
    ],
)
def test_a_module_that_is_gone_is_noticed(name: str, *, expected: bool) -> None:
    assert resolves(name, FILES) is expected
