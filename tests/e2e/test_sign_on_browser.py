"""People with a real browser log in at a real provider, see what their role allows, and are out after a logout."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support import chromium
from tests.support.openid_console import SignOnPlace, sign_on_place
from tests.support.sign_on_person import ProviderPages, SignOnPerson

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not chromium.program(), reason="needs Chromium")]
PEOPLE = [("ada.data-team", "owner"), ("bo.board", "approver"), ("cy.revision", "auditor")]


async def _sign_in(page: Page, name: str) -> None:
    await page.fill("input[name=login]", name)
    await page.fill("input[name=password]", "any")
    await page.click("button[type=submit]")
    await page.get_by_role("button", name="Continue").click()  # consents


async def _confirm_logout(page: Page) -> None:
    await page.locator("button[name=logout]").click()


PAGES = ProviderPages(_sign_in, _confirm_logout, "input[name=password]")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[SignOnPlace]:
    async with sign_on_place(tmp_path) as made:
        yield made


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium.launched() as running:
        yield running


async def test_each_role_sees_what_it_may_and_is_out_after_a_logout(place: SignOnPlace, browser: Browser) -> None:
    for name, role in PEOPLE:
        async with await browser.new_context() as context:
            person = SignOnPerson(await context.new_page(), place.base, PAGES)
            await person.log_in(name)
            await person.look_around(name.split(".")[0], role)
            await person.log_out()
            await person.expect_out()


async def test_a_logout_at_the_provider_ends_the_session_here(place: SignOnPlace, browser: Browser) -> None:
    async with await browser.new_context() as context:
        person = SignOnPerson(await context.new_page(), place.base, PAGES)
        await person.log_in("ada.data-team")
        elsewhere = await context.new_page()
        await elsewhere.goto(f"{place.issuer}/session/end?client_id=hanse")
        await _confirm_logout(elsewhere)
        await expect(elsewhere.locator("body")).to_contain_text("Sign-out Success")  # by then it has told the console
        await person.expect_out()


async def test_while_the_providers_session_lasts_one_click_logs_in_again(place: SignOnPlace, browser: Browser) -> None:
    async with await browser.new_context() as context:
        person = SignOnPerson(await context.new_page(), place.base, PAGES)
        await person.log_in("ada.data-team")
        await context.clear_cookies(name="hanse_session")  # as at the end of the ID token
        await person.page.goto(f"{place.base}/datasets")
        await person.page.get_by_role("link", name="Log in with North Clinic").click()
        await person.page.wait_for_url(f"{place.base}/datasets")
        await expect(person.page.locator(".who b")).to_have_text("ada (clinic)")


async def test_a_person_without_a_role_stays_out(place: SignOnPlace, browser: Browser) -> None:
    async with await browser.new_context() as context:
        page = await context.new_page()
        await page.goto(place.base)
        await page.get_by_role("link", name="Log in with North Clinic").click()
        await _sign_in(page, "eve.strangers")
        await expect(page.get_by_role("alert")).to_contain_text("sign-on failed", ignore_case=True)
        assert not [cookie for cookie in await context.cookies() if cookie.get("name") == "hanse_session"]
