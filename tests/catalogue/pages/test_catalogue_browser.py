"""The catalogue's pages in a real browser: completions while typing, copy buttons, and a phone's width."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, expect

from catalogue.app import create_app
from tests.catalogue.conftest import Catalogue, Clock
from tests.catalogue.provider import MEMBERS_ONLY, Provider, dataset
from tests.support import chromium
from tests.support.openid_console import served
from tests.support.ports import free_range

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not chromium.program(), reason="needs Chromium")]
PATHS = ["/", "/?q=patients", "/members", "/members/north", "/datasets/urn:hanse:north:patients"]
COLUMNS = [{"name": "patient_id", "type": "int64"}]


@pytest.fixture
async def base(catalogue: Catalogue, clock: Clock, north: Provider, south: Provider) -> AsyncIterator[str]:
    """The address of a catalogue with one dataset of two owners, and one for members."""
    for member, name in ((north, "north"), (south, "south")):
        about = {"dct:title": f"Patients at {name}", "hanse:columns": COLUMNS}
        member.datasets = [dataset(f"urn:hanse:{name}:patients", **about)]
        await catalogue.admit(member, name, title=f"Clinic {name}")
    secret = {"dct:title": "Patents of a firm"}
    north.datasets.append(dataset("urn:hanse:north:patents", policy=MEMBERS_ONLY, **secret))
    for name in ("north", "south"):
        await catalogue.crawl(name)
    port = free_range(1)
    async with served(create_app(catalogue.parts.settings, parts=catalogue.parts, clock=clock), port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium.launched() as running:
        yield running


def watch(page: Page) -> list[str]:
    """Errors of the page and of its policy, as they come."""
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("console", note)
    return errors


async def test_what_is_typed_is_completed_with_what_its_viewer_may_see(base: str, browser: Browser) -> None:
    page = await browser.new_page()
    errors = watch(page)
    await page.goto(base)
    await page.get_by_label("Search datasets").press_sequentially("pat")
    options = page.locator("#suggestions option")
    await expect(options).to_have_count(3)
    shown = await options.evaluate_all("options => options.map(one => one.value)")
    assert sorted(shown) == ["Patients at north", "Patients at south", "column:patient_id"]
    assert errors == []


async def test_a_did_is_copied_by_a_button(base: str, browser: Browser, north: Provider) -> None:
    context = await browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = await context.new_page()
    await page.goto(f"{base}/members")
    await page.get_by_role("button", name="Copy DID of north").click()
    await expect(page.get_by_text("Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == north.did


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_fits_on_a_phone(base: str, browser: Browser, catalogue: Catalogue, path: str) -> None:
    page = await browser.new_page(viewport={"width": 390, "height": 844}, extra_http_headers=catalogue.operator)
    errors = watch(page)
    await page.goto(base + path)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    assert errors == []
