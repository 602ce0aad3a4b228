"""A browser without a screen or scripts: redirects, forms and cookies over HTTP, for pages of a provider."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape

import httpx2


@dataclass
class FormBrowser:
    """Follows redirects and submits forms as a browser does, with its cookies."""

    http: httpx2.AsyncClient

    async def open(self, address: str) -> httpx2.Response:
        answer = await self.http.get(address)
        while answer.is_redirect:
            answer = await self.http.get(answer.url.join(answer.headers["location"]))
        return answer

    async def submit(self, page: httpx2.Response, **said: str) -> httpx2.Response:
        """Submit the form of a page, with its hidden fields."""
        action = unescape(re.findall(r'<form[^>]*action="([^"]+)"', page.text)[0])
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text))
        answer = await self.http.post(page.url.join(action), data=hidden | said)
        return await self.open(str(answer.url.join(answer.headers["location"]))) if answer.is_redirect else answer

    async def log_in(self, base: str, person: str) -> httpx2.Response:
        """Log in at the provider and consent; return the page that the console shows then."""
        consent = await self.submit(await self.open(f"{base}/login/with/clinic"), login=person, password="any")
        return await self.submit(consent)


@asynccontextmanager
async def browser() -> AsyncIterator[FormBrowser]:
    """A browser without cookies."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        yield FormBrowser(http)
