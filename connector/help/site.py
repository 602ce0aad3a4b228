"""Serves the built help site from files. `make help-site` builds it from `docs/` into `site/` (decision 96).

No page is kept in memory. The pages have no inline script and load nothing from other hosts, so that they fit a strict
Content-Security-Policy on the origin of the console.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "site"
MISSING = (
    "The help pages are not built here. Run `make help-site` in the checkout of Hanse, then reload this page. "
    "A wheel made by a release has them.\n"
)
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "public, max-age=300",
}


def router(folder: Path = FOLDER) -> APIRouter:
    """Return the routes of the site, open to all who reach the listener: the pages hold nothing of the participant."""
    routes = APIRouter(include_in_schema=False)
    files = StaticFiles(directory=folder, html=True, check_dir=False)

    @routes.get("/help")
    async def start() -> Response:
        return RedirectResponse("/help/")

    @routes.get("/help/{path:path}")
    async def page(path: str, request: Request) -> Response:
        """Return a file of the site; its 404 page for an unknown one; 503 if the site is not built."""
        if not (folder / "index.html").is_file():
            return PlainTextResponse(MISSING, status_code=503, headers=HEADERS)
        answer = await _find(files, path, request)
        for name, value in HEADERS.items():
            answer.headers[name] = value
        return answer

    return routes


async def _find(files: StaticFiles, path: str, request: Request) -> Response:
    try:
        return await files.get_response(path or ".", request.scope)
    except HTTPException as error:
        return PlainTextResponse("There is no such page. The start page is /help/.\n", status_code=error.status_code)
