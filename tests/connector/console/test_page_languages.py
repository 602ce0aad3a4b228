"""The pages in each language: who chooses it, what the switch does, and that no request sees another one's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from connector.infra.html.languages import LANGUAGES
from connector.management.sign_on.auth import COOKIE
from tests.connector.console.support import Console, Reader, fill, opened
from tests.connector.console.test_pages import PAGES

OURS = {"sec-fetch-site": "same-origin"}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Console]:
    async with opened(tmp_path) as made:
        yield made


async def asked(desk: Console, path: str, **headers: str) -> str:
    cookie = f"{COOKIE}={await desk.token('admin')}"
    cookie += f"; {headers.pop('cookie')}" if "cookie" in headers else ""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await desk.http.get(path, headers={"cookie": cookie, **named})
    assert answer.headers["vary"] == "Accept-Language, Cookie"
    return answer.text


async def test_the_browser_chooses_and_the_switch_goes_before_it(desk: Console) -> None:
    english, german = await asked(desk, "/"), await asked(desk, "/", accept_language="de-DE,de;q=0.9,en;q=0.8")
    assert '<html lang="en">' in english
    assert "Log out" in english
    assert '<html lang="de">' in german
    assert "Abmelden" in german
    assert '<html lang="en">' in await asked(desk, "/", accept_language="de", cookie="hanse_language=en")
    assert '<html lang="de">' in await asked(desk, "/", cookie="hanse_language=de")
    assert '<html lang="en">' in await asked(desk, "/", cookie="hanse_language=../../de")


async def test_the_switch_keeps_the_language_and_returns_to_the_page(desk: Console) -> None:
    shown = await asked(desk, "/agreements?role=consumer")
    assert 'name="to" value="/agreements?role=consumer"' in shown
    answer = await desk.http.post("/language", data={"language": "de", "to": "/agreements?role=consumer"}, headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/agreements?role=consumer")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("hanse_language=de;")
    assert "SameSite=lax" in cookie


@pytest.mark.parametrize("to", ["https://evil.example/", "//evil.example", "/\\evil.example", "/\t/evil.example", ""])
async def test_the_switch_leads_nowhere_else(desk: Console, to: str) -> None:
    answer = await desk.http.post("/language", data={"language": "de", "to": to}, headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


async def test_the_switch_takes_only_languages_there_are_and_only_from_the_console(desk: Console) -> None:
    wrong = await desk.http.post("/language", data={"language": "xx"}, headers=OURS)
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (400, False)
    foreign = await desk.http.post("/language", data={"language": "de"}, headers={"sec-fetch-site": "cross-site"})
    assert (foreign.status_code, "set-cookie" in foreign.headers) == (403, False)


@pytest.mark.parametrize("path", sorted({path for path, _, _ in PAGES if path != "/search"}))
async def test_every_page_is_drawn_in_german(desk: Console, path: str) -> None:
    await fill(desk.parts)
    page = await asked(desk, path, accept_language="de")
    assert Reader(page).problems == []
    assert '<html lang="de">' in page
    for english in (">Log out<", ">Datasets<", ">Settings<", ">State<", " ago<", ">just now<"):
        assert english not in page


@pytest.mark.parametrize("path", sorted({path for path, _, _ in PAGES if not path.startswith(("/search", "/audit"))}))
async def test_links_and_values_of_forms_are_the_same_in_each_language(desk: Console, path: str) -> None:
    await fill(desk.parts)
    english, german = [sent(await asked(desk, path, accept_language=one)) for one in ("en", "de")]
    assert english == german
    assert len(english) > len(LANGUAGES)


def sent(page: str) -> list[str]:
    """What a browser sends from a page, but for the switch of languages, the questions that a person is asked, and the
    help, which has pages in each language."""
    rest = re.sub(
        '<form method="post" action="/language">.*?</form>|name="ask" value="[^"]*"|href="/help/[^"]*"', "", page
    )
    return re.findall(r'\b(?:href|action|formaction|name|value)="[^"]*"', rest)


async def test_requests_at_the_same_time_each_keep_their_language(desk: Console) -> None:
    languages = ["de", "en"] * 10
    pages = await asyncio.gather(*(asked(desk, "/login", accept_language=one) for one in languages))
    assert [page.split('<html lang="')[1][:2] for page in pages] == languages
