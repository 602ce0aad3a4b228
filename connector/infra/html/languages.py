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

LANGUAGES: Mapping[str, str] = {"en": "English", "de": "Deutsch"}
"""Languages by code, each by its own name. The first is the language of the templates."""

COOKIE = "hanse_language"
COOKIE_SECONDS = 365 * 86_400
VARY = "Accept-Language, Cookie"
_FOLDER = Path(__file__).parent / "locale"
_DEFAULT = "en"
_HEADER_MAX, _NAMED_MAX = 500, 20


def choose_language(cookie: str, accepted: str) -> str:
    """Return the language of a page: the cookie's, else the best of `Accept-Language`, else English.

    Source: RFC 9110, 12.5.4. Of the header, the first 500 characters and 20 languages count.
    """
    if cookie in LANGUAGES:
        return cookie
    return negotiate_locale(_preferred(accepted), LANGUAGES, sep="-", aliases={}) or _DEFAULT


def _preferred(accepted: str) -> list[str]:
    """Return the languages of a header, the preferred first. Those with weight 0 or an invalid one are left out."""
    weighted = []
    for one in accepted[:_HEADER_MAX].split(",")[:_NAMED_MAX]:
        name, _, parameter = one.partition(";")
        weight = _weight(parameter.strip())
        if name.strip() and 0 < weight <= 1:
            weighted.append((weight, name.strip().lower()))
    return [name for _, name in sorted(weighted, key=lambda pair: -pair[0])]


def _weight(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q=")) if parameter else 1.0
    except ValueError:
        return 0.0


@cache
def translations(language: str) -> NullTranslations:
    """Return the texts of one of `LANGUAGES`."""
    if language == _DEFAULT:
        return NullTranslations()
    with (_FOLDER / f"{language}.po").open("rb") as file:
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
