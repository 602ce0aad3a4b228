"""Every purpose that can be chosen has a title and a meaning, and no text is about another name."""

from __future__ import annotations

from pathlib import Path

import pytest

import policies.vocabulary
from policies.vocabulary import expand
from policies.vocabulary.purpose_texts import purpose_texts, title_of


def test_each_purpose_of_the_hierarchy_has_a_text() -> None:
    shipped = (Path(policies.vocabulary.__file__).parent / "purposes.txt").read_text(encoding="utf-8")
    lines = (line.replace(":", " ").split() for line in shipped.splitlines() if not line.startswith("#"))
    assert set(purpose_texts()) == {f"dpv:{name}" for line in lines for name in line}
    assert all(one.meaning and not one.meaning.endswith(".") for one in purpose_texts().values())


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("dpv:ScientificResearch", "Scientific research"),
        (expand("dpv:ProtectionOfIPR"), "Protection of IPR"),
        ("dpv:ImproveInternalCRMProcesses", "Improve internal CRM processes"),
        ("https://w3id.org/hanse/purpose/quality-management", "https://w3id.org/hanse/purpose/quality-management"),
        ("dpv:research", "dpv:research"),
    ],
)
def test_a_title_is_the_words_of_the_name(name: str, title: str) -> None:
    assert title_of(name) == title
