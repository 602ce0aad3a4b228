"""Languages of the pages: which one a request gets, and the texts of each, as Jinja reads them. Pure but for one file.

The templates are in English, and their texts are the keys of the message catalogue `locale/<language>.po` (gettext).
A catalogue is read once, when the first page in its language is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path

from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from jinja2 import Environment

from connector.infra.http.accept_header import read_weights

LANGUAGES: Mapping[str, str] = {"en": "English", "de": "Deutsch"}
"""Languages by code, each by its own name. The first is the language of the templates."""

COOKIE = "hanse_language"
COOKIE_SECONDS = 365 * 86_400
DEFAULT = "en"
VARY = "Accept-Language, Cookie"
FOLDER = Path(__file__).parent / "locale"
_HEADER_MAX, _NAMED_MAX = 500, 20


def choose_language(cookie: str, accepted: str) -> str:
    """Return the language of a page: the cookie's, else the best of `Accept-Language`, else English.

    Source: RFC 9110, 12.5.4. Of the header, the first 500 characters and 20 languages count.
    """
    if cookie in LANGUAGES:
        return cookie
    return negotiate_locale(_preferred(accepted), LANGUAGES, sep="-", aliases={}) or DEFAULT


def _preferred(accepted: str) -> list[str]:
    """Return the languages of a header, the preferred first. Those with weight 0 are left out."""
    weights = read_weights(accepted[:_HEADER_MAX], most=_NAMED_MAX)
    return sorted((name for name, weight in weights.items() if weight), key=lambda name: -weights[name])


@cache
def translations(language: str) -> NullTranslations:
    """Return the texts of one of `LANGUAGES`."""
    if language == DEFAULT:
        return NullTranslations()
    with (FOLDER / f"{language}.po").open("rb") as file:
        catalogue = read_po(file, locale=language, abort_invalid=True)
    compiled = BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return GNUTranslations(compiled)


def bind_language(pages: Environment, language: str) -> None:
    """Make an environment draw its templates in one language. It needs the extension `jinja2.ext.i18n`.

    A text of a template may hold markup and is not escaped; values put into it are.
    """
    texts = translations(language)
    pages.install_gettext_translations(texts, newstyle=True)  # type: ignore[attr-defined]  # added by the extension
    pages.globals.update(language=language, LANGUAGES=LANGUAGES)
