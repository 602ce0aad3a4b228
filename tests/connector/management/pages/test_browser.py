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


WIDE = """
addEventListener("load", () => {
  document.title = `${document.querySelector(".breaking").getBoundingClientRect().width >= 120}`;
});
"""


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_value_of_a_setting_is_not_broken_into_a_few_letters_a_line(tmp_path: Path) -> None:
    row = f"<th>HANSE_CATALOGUE_URL</th><td><code class=breaking>{'x' * 60}</code></td><td>{'What it does ' * 20}</td>"
    table = f'<div style="width: 390px; overflow-x: auto"><table style="width: 100%"><tr>{row}</tr></table></div>'
    assert title(tmp_path, table, WIDE) == "true"


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize("open_", [NAMES[0], NAMES[5], NAMES[-1]])
def test_the_page_that_is_open_is_seen_in_the_navigation_of_a_phone(tmp_path: Path, open_: str) -> None:
    links = "".join(f'<a href="#"{" aria-current=page" if name == open_ else ""}>{name}</a> ' for name in NAMES)
    row = f'<div class="tabs" style="width: 390px"><nav class="wrap" style="display: flex">{links}</nav></div>'
    assert title(tmp_path, row, MEASURED) == "true"


def title(folder: Path, body: str, script: str) -> str:
    """What a script makes the title of a page with the console's own style and script."""
    page = folder / "page.html"
    page.write_text(
        f'<meta charset="utf-8"><style>{(STATIC / "console.css").read_text()}</style>{body}'
        f"<script>{(STATIC / 'console.js').read_text()}</script><script>{script}</script>"
    )
    run = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    found = subprocess.run([*run, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    (told,) = re.findall("<title>(.*?)</title>", found.stdout)
    return str(told)
