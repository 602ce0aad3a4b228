"""Takes the screenshots of the help from a running demo: `python -m tests.support.screenshots [FOLDER OF THE DEMO]`."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from connector.demo.space import DEFAULT_PORT, DemoSpace
from tests.support import chromium

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "images"


@dataclass(frozen=True, slots=True)
class Screenshot:
    """A page of a member of the demo, with its heading."""

    member: str
    path: str
    heading: str


IMAGES = {
    "offers": Screenshot("north", "/offers", "Offers"),
    "search": Screenshot("forge", "/search?q=breast+cancer", "breast cancer"),
    "transfers": Screenshot("forge", "/transfers", "Transfers"),
    "audit": Screenshot("north", "/audit", "Audit"),
    "members": Screenshot("catalogue", "/members", "Members"),
}


async def take(space: DemoSpace) -> None:
    """Write the image of each page, as a person sees it after logging in."""
    async with chromium.launched() as browser:
        for name, shot in IMAGES.items():
            member = space.members[shot.member]
            context = await browser.new_context(viewport={"width": 1120, "height": 640}, color_scheme="light")
            page = await context.new_page()
            await page.goto(f"{member.management}/login")
            if await page.locator("input[name=token]").count():
                await page.locator("input[name=token]").fill(member.token)
                async with page.expect_navigation():
                    await page.locator("input[name=token]").press("Enter")
            answer = await page.goto(f"{member.management}{shot.path}")
            assert answer is not None
            assert answer.ok, f"{shot.path} of {shot.member} answers {answer.status}"
            await page.screenshot(path=FOLDER / f"{name}.png")
            await context.close()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "var/demo").resolve()
    asyncio.run(take(DemoSpace(directory, int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_PORT)))


if __name__ == "__main__":
    main()
