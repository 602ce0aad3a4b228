"""Every pattern of the usage-policy reference has a positive, a negative and a missing-fact case as data."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support import policy_cases as cases

WHERE: dict[str, list[str]] = yaml.safe_load((cases.FOLDER / "patterns.yaml").read_text(encoding="utf-8"))
NEEDED = {"positive", "negative", "missing fact"}


def kinds(file: str, names: list[str]) -> set[str]:
    """Which of the three kinds the entries of a file have."""
    if file == "masks":
        masks = yaml.safe_load((cases.FOLDER.parent / "masks.yaml").read_text(encoding="utf-8"))
        return {kind for entry in masks if entry["mask"] in names for kind in _masked(entry["shown"])}
    return {kind for entry in cases.load(file) if entry["pattern"] in names for kind in _decided(entry)}


def _masked(shown: dict[str | None, str | None]) -> set[str]:
    """A mask is seen where it shows, seen to hide where that is not the value, and missing is missing."""
    found = {"positive"}
    found |= {"negative"} if any(value is not None and value != told for value, told in shown.items()) else set()
    return found | ({"missing fact"} if None in shown else set())


def _decided(entry: dict[str, Any]) -> set[str]:
    found = {case["name"] for case in entry.get("cases", ())} & NEEDED
    if "positive" in entry:  # `policy_cases` makes the missing fact of each of these
        found |= NEEDED
    if "moments" in entry:  # time is always known; what may be missing is where a duration starts, or a zone
        found |= {"positive" if permitted else "negative" for permitted in entry["moments"].values()}
        found |= {"missing fact"} if "unknown" in entry["pattern"] else set()
    return found


@pytest.mark.parametrize("pattern", WHERE)
def test_a_pattern_has_its_three_cases(pattern: str) -> None:
    file, *names = WHERE[pattern]
    assert kinds(file, names) == NEEDED


def test_no_pattern_is_left_out() -> None:
    ends = yaml.safe_load((cases.FOLDER / "end_to_end.yaml").read_text(encoding="utf-8"))
    assert set(WHERE) == {entry["pattern"] for entry in ends}
    assert len(WHERE) >= 45
