"""What only a browser can say of the console: a page of its own style and script, in a headless Chromium."""

from __future__ import annotations

import re
import subprocess
from html import escape, unescape
from itertools import product
from pathlib import Path

import pytest

from connector import console
from connector.infra import html
from tests.connector.console.support import opened
from tests.support import chromium

STATIC = Path(console.__file__).parent / "static"
LOOK = (html.FOLDER / "hanse.css").read_text()
SCRIPTS = (html.FOLDER / "hanse.js").read_text() + (STATIC / "console.js").read_text()
CHROMIUM = chromium.program()
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


FITS = """
addEventListener("load", () => {
  const frame = document.querySelector("#frame").getBoundingClientRect();
  const all = [...document.querySelectorAll("#frame *")];
  document.title = all.every((one) => one.getBoundingClientRect().right <= frame.right);
});
"""
LONG = "a_name_that_somebody_chose_without_a_thought_of_whoever_reads_it_on_a_phone"
RULE = f"<ul class=rules><li><span>No {LONG}.</span><span class=tier>enforced by the owner</span></li></ul>"
HEAD = f"<div class=title-row><h3><a href=#>{LONG}</a></h3><span class=state>Active</span></div>"
CELLS = (
    "<th>north/patients</th><td>forge</td><td>provider HttpData-PULL</td><td>Started</td><td>a purpose of its own</td>"
)
ENDS = "<td class=nowrap>2 hours ago</td><td><button>End</button></td>"
ROW = f"<table class=stacks><tbody><tr>{CELLS}{ENDS}</tr></table>"
ONE_LINE = """
addEventListener("load", () => {
  document.title = document.querySelector(".num > span").getClientRects().length === 1;
});
"""


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize(
    "body", [RULE, HEAD, f"<p><span>for {LONG}</span></p>", f"<i class=chip><b>{LONG}</b></i>", ROW]
)
def test_nothing_stands_out_of_the_screen_of_a_phone(tmp_path: Path, body: str) -> None:
    frame = (
        f'<iframe width="390" height="800" srcdoc="{escape(_styled(f"<div id=frame>{body}</div>{_script(FITS)}"))}">'
    )
    tell = "addEventListener('load', () => { document.title = frames[0].document.title; });"
    assert title(tmp_path, f"{frame}</iframe>", tell) == "true"


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_number_keeps_its_unit_on_its_line(tmp_path: Path) -> None:
    cells = f"<td>{'What it is ' * 30}</td><td class=num><span>35.9 kB</span></td>"
    row = f"<table style='width: 300px'><tr>{cells}</tr></table>"
    assert title(tmp_path, row, ONE_LINE) == "true"


SENT = """
addEventListener("load", () => {
  const form = document.querySelector("form");
  let sent = 0;
  document.addEventListener("submit", (event) => { sent += !event.defaultPrevented; event.preventDefault(); });
  form.requestSubmit();
  form.requestSubmit();
  document.title = `${sent} ${[...new FormData(form).keys()]}`;
});
"""
FORMS = [
    ("post", "", "1 name"),
    ("get", "", "2 name"),
    ("post", '<input type="hidden" name="ask" value="Sure?">', "1 name,ask"),  # the server asks on a page
]


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize(("method", "ask", "told"), FORMS)
def test_a_form_is_sent_once(tmp_path: Path, method: str, ask: str, told: str) -> None:
    form = f'<form method="{method}"><input name="name">{ask}<button>Go</button></form>'
    assert title(tmp_path, form, SENT) == told


LATE = """
addEventListener("load", () => {
  const now = Date.now;
  let sent = 0;
  document.addEventListener("submit", (event) => { sent += !event.defaultPrevented; event.preventDefault(); });
  for (const late of [0, 500, 2_000, 11_000]) {
    Date.now = () => now() + late;
    document.querySelector("form").requestSubmit();
  }
  document.title = sent;
});
"""


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize(("more", "sent"), [("", "2"), ("data-again", "3")])
def test_what_only_asks_may_soon_be_sent_again(tmp_path: Path, more: str, sent: str) -> None:
    assert title(tmp_path, f'<form method="post" {more}><button>Go</button></form>', LATE) == sent


ASKED_AGAIN = """
addEventListener("load", () => {
  const form = document.querySelector("form"), link = document.querySelector("a.primary").href;
  const given = new FormData(form);
  const valid = [form.checkValidity()];
  for (const name of ["since", "until"]) {
    form.querySelector(`[name=${name}]`).value = "2026-11-26T12:15";
    valid.push(form.checkValidity());
  }
  document.title = [...valid, given.get("since"), given.get("until"), new URL(link, "http://x").search];
});
"""


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
async def test_a_browser_takes_the_times_of_the_audit_page_gives_them_back_and_takes_others(tmp_path: Path) -> None:
    async with opened(tmp_path) as made:
        page = (await made.get("/audit?since=2026-11-24T12:00:30.25%2B02:00&until=2026-11-25T08:00", "audit")).text
    (body,) = re.findall(r"<main.*?</main>", page, re.S)
    told = unescape(title(tmp_path, body, ASKED_AGAIN))
    link = "?since=2026-11-24T10%3A00%3A30.250Z&until=2026-11-25T08%3A00%3A00Z"
    assert told == f"true,true,true,2026-11-24T10:00:30.25,2026-11-25T08:00,{link}"


def _light(colour: str) -> float:
    """Relative luminance (WCAG 2) of `#rrggbb`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_ink_can_be_read_on_every_ground() -> None:
    sets = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part)) for part in LOOK.split("color-scheme:")[1:]]
    sets = [one for one in sets if "paper" in one]
    assert len(sets) == 3  # light; dark where the system asks, and where the switch does
    for colours, ink, ground in product(sets, ("ink", "ink-2", "ink-3", "brand-ink"), ("paper", "surface", "sunken")):
        most, least = sorted((_light(colours[ink]), _light(colours[ground])), reverse=True)
        assert (most + 0.05) / (least + 0.05) >= 4.5, (ink, ground, colours[ink], colours[ground])


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
    page.write_text(_styled(f"{body}{_script(SCRIPTS)}{_script(script)}"))
    run = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    found = subprocess.run([*run, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    (told,) = re.findall("<title>(.*?)</title>", found.stdout)
    return str(told)


def _styled(body: str) -> str:
    return f'<!doctype html><meta charset="utf-8"><style>{LOOK}{(STATIC / "console.css").read_text()}</style>{body}'


def _script(code: str) -> str:
    return f"<script>{code}</script>"
