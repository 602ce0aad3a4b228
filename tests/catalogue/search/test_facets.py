"""How the values of facets are shown."""

from __future__ import annotations

import pytest

from catalogue.search.facets import FACETS


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("ScientificResearch", "Scientific Research"),
        ("GDPRCompliance", "GDPR Compliance"),
        ("trainModel2Times", "train Model2 Times"),
        ("plain", "plain"),
    ],
)
def test_a_purpose_is_spaced_and_keeps_its_letters(value: str, shown: str) -> None:
    assert FACETS["purpose"].label(value) == shown
