"""What the code imports is installed with it: a deployment has no test tools, and what they bring along."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = {"connector", "catalogue", "policies", "hanse", "tests"}


def project(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text())


SERVER, CLIENT = project("pyproject.toml"), project("client/pyproject.toml")
DEMO = [one for one in SERVER["dependency-groups"]["demo"] if isinstance(one, str)]


def extras(found: dict[str, Any]) -> list[str]:
    return [one for group in found["project"].get("optional-dependencies", {}).values() for one in group]


# Folders, and what is installed with them: what extras bring is imported where it is used, and its absence told.
PLACES = {
    "connector": SERVER["project"]["dependencies"] + extras(SERVER),
    "connector/demo": SERVER["project"]["dependencies"] + DEMO,
    "catalogue": SERVER["project"]["dependencies"],
    "policies": SERVER["project"]["dependencies"] + extras(SERVER),
    "client/hanse": CLIENT["project"]["dependencies"] + extras(CLIENT),
}


@cache
def closure(required: str) -> frozenset[str]:
    """The distributions that a requirement installs. What is not here is not looked into."""
    told = Requirement(required)
    name = canonicalize_name(told.name)
    found = {name}
    try:
        needed = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return frozenset(found)
    for one in map(Requirement, needed):
        wanted = [{"extra": extra} for extra in ("", *told.extras)]
        if one.marker is None or any(one.marker.evaluate(extra) for extra in wanted):
            found |= closure(str(Requirement(f"{one.name}[{','.join(one.extras)}]" if one.extras else one.name)))
    return frozenset(found)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def modules(place: str) -> Iterable[Path]:
    inner = [other for other in PLACES if other.startswith(place + "/")]
    found = sorted((ROOT / place).rglob("*.py"))
    return [path for path in found if not any((ROOT / other) in path.parents for other in inner)]


@pytest.mark.parametrize("place", PLACES)
def test_every_import_comes_with_what_is_declared(place: str) -> None:
    installed = {name for required in PLACES[place] for name in closure(required)}
    sources = metadata.packages_distributions()
    missing = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(place)
        for name in set(imported(path)) - OURS - sys.stdlib_module_names
        # Where it is not here either, the requirement of its own name has to do.
        if not {canonicalize_name(one) for one in sources.get(name, [name])} & installed
    }
    assert not missing


def test_the_image_has_the_client_with_all_that_it_needs() -> None:
    """Its command would begin, and end with the first call: not all that it imports is the services', too."""
    groups = re.findall(r"--group (\w+)", (ROOT / "deploy/Dockerfile").read_text())
    assert "hanse" in [one for group in groups for one in SERVER["dependency-groups"][group]]
