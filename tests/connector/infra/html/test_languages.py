"""Which language a page gets, for headers of browsers and of attackers."""

from __future__ import annotations

import pytest

from connector.infra.html.languages import LANGUAGES, choose_language, translations

HEADERS = [
    ("", "en"), ("de", "de"), ("DE", "de"), ("de-AT", "de"), ("de-CH,de;q=0.9,en;q=0.8", "de"),
    ("en-GB,en;q=0.9", "en"),
    ("fr,de;q=0.5,en;q=0.4", "de"), ("fr", "en"), ("en;q=0.2, de;q=0.7", "de"), ("de;q=0, en", "en"), ("de;q=0", "en"),
    ("*", "en"), ("de;q=nan", "en"), ("de;q=1e9", "en"), ("de;q=", "en"), (";;,,;q=1", "en"), ("d\u00e9", "en"),
]  # fmt: skip


@pytest.mark.parametrize(("accepted", "language"), HEADERS)
def test_the_header_gives_the_best_language_there_is(accepted: str, language: str) -> None:
    assert choose_language("", accepted) == language


@pytest.mark.parametrize("cookie", ["en", "de"])
def test_the_cookie_goes_before_the_header(cookie: str) -> None:
    assert choose_language(cookie, "de" if cookie == "en" else "en") == cookie


@pytest.mark.parametrize("cookie", ["", "fr", "../de", "DE", "de\n"])
def test_a_cookie_with_no_language_of_ours_counts_for_nothing(cookie: str) -> None:
    assert choose_language(cookie, "de") == "de"


def test_of_a_long_header_only_the_beginning_counts() -> None:
    assert choose_language("", "xx," * 20 + "de") == "en"
    assert choose_language("", " " * 500 + "de") == "en"
    assert choose_language("", "de;q=" + "9" * 10_000_000) == "en"


def test_every_language_has_its_texts() -> None:
    for language in LANGUAGES:
        assert translations(language).gettext("Log out") == ("Abmelden" if language == "de" else "Log out")
