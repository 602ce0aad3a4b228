"""The page that shows how to read what was agreed on: its programs are whole whatever an owner calls its data."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from connector.console.view.snippets import ReadTarget, list_programs
from connector.infra.client_wheel import wheel_name

NAMES = ["plain", "two words", "it's", 'say "hi"', "a\nb", "\\", "{braces}", "%s", "größe"]


def _texts(code: str) -> set[str]:
    """Every text that a program holds."""
    constants = (node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


@pytest.mark.parametrize("allowed", [{}, {"queries": False}, {"streams": False}, {"streams": False, "groups": True}])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_text_in_every_program_and_nothing_else(name: str, allowed: dict[str, bool]) -> None:
    plain = ReadTarget(
        connector="http://127.0.0.1:8081", transfer="urn:uuid:1", owner="o", dataset="d", purpose="p",
        flight='address["endpoint"]', **allowed,
    )  # fmt: skip
    strange = replace(plain, owner=name, dataset=name, purpose=name)
    assert [way.title for way in list_programs(strange)] == [way.title for way in list_programs(plain)]
    for mine, other in zip(list_programs(strange), list_programs(plain), strict=True):
        assert _shape(mine.code) == _shape(other.code)
    asked = f'"{name.replace(chr(34), 2 * chr(34))}"'
    assert any(f"FROM {asked}.{asked}" in text for way in list_programs(strange) for text in _texts(way.code))


def _shape(code: str) -> str:
    """A program without what its texts say."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            node.value = ""
    return ast.dump(tree)


def test_an_owner_without_flight_is_read_without_it() -> None:
    found = list_programs(ReadTarget(connector="http://c", transfer="t", owner="o", dataset="d"))
    assert [way.title for way in found] == ["Hanse's client", "Arrow over HTTP"]
    assert found[0].install == f"pip install http://c/client/{wheel_name()}"
