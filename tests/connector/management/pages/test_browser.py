"""What only a browser can say of the console: a page of its own style and script, in a headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from connector.management import pages

STATIC = Path(pages.__file__).parent / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
NAMES = ["Overview", "Datasets", "Offers", "Negotiations", "Agreements", "Transfers", "Search", "Query", "Audit"]
MEASURED = """
addEventListener("load", () => {
  const open = document.querySelector("[aria-current]").getBoundingClientRect();
  const row = document.querySelector("nav").getBoundingClientRect();
  document.title = `${row.left <= open.left && open.right <= row.right}`;
});
"""


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize("open_", [NAMES[0], NAMES[5], NAMES[-1]])
def test_the_page_that_is_open_is_seen_in_the_navigation_of_a_phone(tmp_path: Path, open_: str) -> None:
    links = "".join(f'<a href="#"{" aria-current=page" if name == open_ else ""}>{name}</a> ' for name in NAMES)
    page = tmp_path / "page.html"
    page.write_text(
        f'<meta charset="utf-8"><style>{(STATIC / "console.css").read_text()}</style>'
        f'<div class="tabs" style="width: 390px"><nav class="wrap" style="display: flex">{links}</nav></div>'
        f"<script>{(STATIC / 'console.js').read_text()}</script><script>{MEASURED}</script>"
    )
    run = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    found = subprocess.run([*run, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    assert re.findall("<title>(.*?)</title>", found.stdout) == ["true"]
