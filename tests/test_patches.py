"""No test patches what the whole process uses: `asyncio`, `os`, `time` or a class of another library.

Such a patch reaches every thread and task of the process, so what a test sees depends on what else runs just then.
Patch the name of the module under test instead, as `tests.support.own_name` shows.
"""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
OWN = {"connector", "catalogue", "policies", "hanse", "tests", "benchmarks"}
# The file and what it patches, with the reason why no module has a name of its own for it.
ALLOWED = {
    ("tests/client/loaders/test_prefetch.py", "sys"): "the interpreter calls `sys.unraisablehook`, no module does",
    ("tests/support/warm.py", "sys"): "a program: its process runs one other program, with that one's `sys.argv`",
}
_PATCHING = {"setattr", "delattr", "object", "patch"}


def global_patches(source: str) -> Iterator[tuple[int, str]]:
    """The line and the target of each patch of a module or class that is not from this repository."""
    tree = ast.parse(source)
    imported, bound = _imported(tree), _bound(tree)
    for node in ast.walk(tree):
        for target in _targets(node):
            for path in dict.fromkeys(_paths(target, imported, bound)):
                if _is_foreign(path):
                    yield node.lineno, path  # type: ignore[attr-defined]  # a call or an assignment has a line


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name to dotted path, for everything that the file imports at any place."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.asname or one.name.partition(".")[0]: one.name if one.asname else one.name.partition(".")[0]
                      for one in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return names


def _bound(tree: ast.AST) -> dict[str, list[ast.expr]]:
    """Local name to the expressions that it may stand for, by assignments and loops."""
    found: defaultdict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension):
            targets, value = [node.target], node.iter
        elif isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        else:
            continue
        for inner in (inner for target in targets for inner in ast.walk(target)):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                found[inner.id].append(value)
    return found


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What `node` patches: the first argument of `setattr` and its like, the left side of `module.name = value`."""
    if isinstance(node, ast.Call) and node.args:
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name in _PATCHING:
            yield node.args[0]
    elif isinstance(node, ast.Assign):
        yield from (target.value for target in node.targets if isinstance(target, ast.Attribute))


def _paths(target: ast.expr, imported: dict[str, str], bound: dict[str, list[ast.expr]]) -> Iterator[str]:
    """The dotted paths of the modules and classes that `target` may be."""
    if isinstance(target, ast.Constant) and isinstance(target.value, str):
        path = target.value.rpartition(".")[0]
        yield from [path] if all(map(str.isidentifier, path.split("."))) else []
    elif isinstance(target, ast.Attribute):
        yield from (f"{path}.{target.attr}" for path in _paths(target.value, imported, bound))
    elif isinstance(target, ast.IfExp):
        for side in (target.body, target.orelse):
            yield from _paths(side, imported, bound)
    elif isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _paths(element, imported, bound)
    elif isinstance(target, ast.Name):
        if target.id in imported:
            yield imported[target.id]
        else:
            others = {name: values for name, values in bound.items() if name != target.id}
            for value in bound.get(target.id, ()):
                yield from _paths(value, imported, others)


def _is_foreign(path: str) -> bool:
    """Whether a dotted path names a module or a class of another library. One that is not installed counts, too."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            value = getattr(value, part, None)
        return isinstance(value, ModuleType | type) and _root(value) not in OWN
    return parts[0] not in OWN


def _root(value: ModuleType | type) -> str:
    return (value.__name__ if isinstance(value, ModuleType) else value.__module__).partition(".")[0]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("monkeypatch.setattr(asyncio, 'sleep', rest)", ["asyncio"]),
        ("monkeypatch.setattr('asyncio.sleep', rest)", ["asyncio"]),
        ("monkeypatch.setattr(registry.asyncio, 'sleep', rest)", ["connector.datasets.registry.asyncio"]),
        ("monkeypatch.setattr('connector.datasets.registry.os.stat', rest)", ["connector.datasets.registry.os"]),
        ("patched.delattr(os, 'memfd_create')", ["os"]),
        ("monkeypatch.setattr(Path, 'unlink', rest)", ["pathlib.Path"]),
        ("monkeypatch.setattr(os if early else asyncio, name, rest)", ["os", "asyncio"]),
        ("for one in (registry, os): setattr(one, 'x', rest)", ["os"]),
        ("mock.patch.object(os, 'stat', rest)", ["os"]),
        ("mock.patch('os.stat', rest)", ["os"]),
        ("os.stat = rest", ["os"]),
        ("monkeypatch.setattr(not_installed.part, 'x', rest)", ["not_installed.part"]),
        ("monkeypatch.setattr(registry, 'asyncio', changed(asyncio, sleep=rest))", []),
        ("monkeypatch.setattr('connector.datasets.registry.asyncio', changed(asyncio, sleep=rest))", []),
        ("monkeypatch.setattr(asyncio.get_running_loop(), 'start_tls', rest)", []),
        ("registry.looking.name = 'os.stat'", []),
    ],
)
def test_a_patch_of_another_library_is_found(written: str, found: list[str]) -> None:
    begin = "import asyncio, os, not_installed\nfrom pathlib import Path\nfrom connector.datasets import registry\n"
    assert [target for _, target in global_patches(begin + written)] == found


def test_no_test_patches_what_the_whole_process_uses() -> None:
    found = {
        (str(path.relative_to(ROOT)), target): line
        for folder in ("tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line, target in global_patches(path.read_text())
    }
    wrong = sorted(
        f"{file}:{line}: {target}" for (file, target), line in found.items() if (file, target) not in ALLOWED
    )
    assert not wrong, "patch the own name of the module under test instead:\n" + "\n".join(wrong)
    assert not ALLOWED.keys() - found.keys(), "expected every exception to be needed; remove these"
