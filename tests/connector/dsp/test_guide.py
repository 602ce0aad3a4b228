"""docs/protocol.md shows the tables as they are."""

from __future__ import annotations

from tests.support.protocol_page import PAGE, written


def test_the_pictures_and_tables_of_the_page_are_current() -> None:
    page = PAGE.read_text("utf-8")
    assert written(page) == page, "run `python -m tests.support.protocol_page`"
