"""Debian's Chromium, driven by Playwright, for what a person sees and does. `make test` installs it where it may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync")  # fmt: skip


def program() -> str:
    """The path of the browser; empty where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), "")


def install() -> bool:
    """Install Chromium with apt-get where it is missing and we may. Whether it is there now."""
    if not program() and os.geteuid() == 0 and shutil.which("apt-get"):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        print("installing Chromium for the browser tests ...", flush=True)
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *command], env=env, timeout=600, capture_output=True, check=False)
    return bool(program())


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A headless browser to the end of the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program(), chromium_sandbox=os.geteuid() != 0, args=_QUIET
        )
        try:
            yield browser
        finally:
            await browser.close()


if __name__ == "__main__":
    install()
