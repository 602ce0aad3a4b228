"""Pages in the language of a request: which one it gets, the Jinja environment of each, and the switch between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from connector.errors import Invalid
from connector.infra.html.languages import COOKIE, COOKIE_SECONDS, LANGUAGES, bind_language, choose_language


class PageEnvironments:
    """The Jinja environments of a folder of templates. Each language has its own, so no request sees another's texts.

    `prepare(environment, language)` adds filters and names to a new one.
    """

    def __init__(self, templates: Path, prepare: Callable[[Environment, str], None]) -> None:
        self._templates, self._prepare = templates, prepare
        self._made: dict[str, Environment] = {}

    def for_request(self, request: Request) -> Environment:
        """Return the environment of the language that this request gets."""
        cookie, accepted = request.cookies.get(COOKIE, ""), request.headers.get("accept-language", "")
        language = choose_language(cookie, accepted)
        if language not in self._made:
            self._made[language] = self._make(language)
        return self._made[language]

    def _make(self, language: str) -> Environment:
        made = Environment(
            loader=FileSystemLoader(self._templates),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        bind_language(made, language)
        self._prepare(made, language)
        return made


def switch_language(language: str, to: str, *, secure: bool) -> Response:
    """Return the answer that keeps the language of this browser's pages in a cookie and leads back to the page `to`.

    `secure`: browsers reach the pages over https only. Raises: Invalid for a language there is not.
    """
    if language not in LANGUAGES:
        raise Invalid(f"expected one of the languages {', '.join(LANGUAGES)}, got {language[:20]!r}")
    answer = RedirectResponse(local_path(to), status_code=303)
    answer.set_cookie(COOKIE, language, max_age=COOKIE_SECONDS, httponly=True, samesite="lax", secure=secure, path="/")
    return answer


def local_path(path: str) -> str:
    """Return a path if it stays within this site, otherwise `/`.

    A browser drops tabs and line ends of an address, and takes a backslash for a slash (WHATWG URL, 4.4).
    """
    fits = path.startswith("/") and not path.startswith(("//", "/login"))
    return path if fits and path.isprintable() and "\\" not in path else "/"


def asked_path(request: Request) -> str:
    """Return the path and query of a request."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")
