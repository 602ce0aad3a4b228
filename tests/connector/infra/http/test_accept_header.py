"""Weights of headers by which a client says what it prefers."""

from __future__ import annotations

import pytest

from connector.infra.http.accept_header import read_weights

HEADERS = [
    ("", {}), (" , ;q=1,", {}), ("de", {"de": 1.0}), ("Text/CSV;level=1; Q=0.5", {"text/csv": 0.5}),
    ("de;q=0.2, en, de;q=0.7", {"de": 0.7, "en": 1.0}), ("de;q=0", {"de": 0.0}),
    ("de;q=", {}), ("de;q=nan", {}), ("de;q=1.1", {}), ("de;q=-1", {}), ("de;q=x,en", {"en": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("header", "weights"), HEADERS)
def test_each_name_has_its_weight(header: str, weights: dict[str, float]) -> None:
    assert read_weights(header) == weights


def test_only_the_first_entries_count() -> None:
    assert list(read_weights("a,b,c", most=2)) == ["a", "b"]
