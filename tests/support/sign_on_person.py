"""A person with a browser at a console whose sign-on is at a provider: logs in, looks around, logs out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from playwright.async_api import Page, expect

COMMON = (
    "Overview",
    "Datasets",
    "Offers",
    "Negotiations",
    "Agreements",
    "Transfers",
    "Search",
    "Credentials",
    "My tokens",
)


@dataclass(frozen=True)
class Sight:
    """What a role sees: the navigation, pages that open, and pages that are refused."""

    navigation: Sequence[str]
    opens: Sequence[str]
    refused: Sequence[str]


SIGHTS: Mapping[str, Sight] = {
    "owner": Sight(COMMON, ("/datasets/new", "/offers/new"), ("/audit", "/query", "/tokens", "/settings")),
    "approver": Sight(COMMON, ("/datasets", "/negotiations"), ("/datasets/new", "/offers/new", "/audit", "/tokens")),
    "auditor": Sight(("Audit", "My tokens"), ("/audit",), ("/datasets", "/negotiations", "/query", "/settings")),
}  # fmt: skip


@dataclass(frozen=True)
class ProviderPages:
    """How a person acts on a provider's own pages: gives name and password, and confirms a logout.

    `password` is the selector of the password's field, by which its login page is known.
    """

    sign_in: Callable[[Page, str], Awaitable[None]]
    confirm_logout: Callable[[Page], Awaitable[None]]
    password: str


@dataclass
class SignOnPerson:
    """`page` is a tab of a browser that has no cookies yet; `base` is the console's address."""

    page: Page
    base: str
    provider: ProviderPages

    async def log_in(self, name: str) -> None:
        """Log in from the console's first page, with the provider's button."""
        await self.page.goto(self.base)
        await self._follow_button()
        await self.provider.sign_in(self.page, name)
        await expect(self.page.locator('.who form[action="/logout"] button')).to_have_text("Log out")

    async def look_around(self, name: str, role: str) -> None:
        """Check what the role sees, and what it does not."""
        sight = SIGHTS[role]
        await expect(self.page.locator(".who b")).to_have_text(re.compile(f"^{name} "))
        await expect(self.page.locator("nav a")).to_have_text([*sight.navigation])
        for path in sight.opens:
            assert await self._status(path) == 200, path
        for path in sight.refused:
            assert await self._status(path) == 403, path
            await expect(self.page.locator("main")).to_contain_text("scope")

    async def log_out(self) -> None:
        """Log out with the console's button, which leads to the provider's logout and back."""
        await self.page.locator('.who form[action="/logout"] button').click()
        await self.provider.confirm_logout(self.page)
        await self.page.wait_for_url(re.compile(f"{re.escape(self.base)}/login"))

    async def expect_out(self) -> None:
        """Check that the console asks for a login, and the provider for the password."""
        await self.expect_ended()
        await self._follow_button()
        await expect(self.page.locator(self.provider.password)).to_be_visible()

    async def expect_ended(self) -> None:
        """Check that the console asks for a login, also of a program with the browser's cookies."""
        await self.page.goto(f"{self.base}/personal-tokens")
        assert self.page.url.startswith(f"{self.base}/login?to="), self.page.url
        assert (await self.page.request.get(f"{self.base}/api/v1/self")).status == 401

    async def _follow_button(self) -> None:
        await self.page.get_by_role("link", name="Log in with North Clinic").click()

    async def _status(self, path: str) -> int:
        answer = await self.page.goto(self.base + path)
        assert answer is not None
        return answer.status
