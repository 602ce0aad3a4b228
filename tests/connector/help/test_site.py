"""The built help site: two clicks to each page, nothing from outside, a strict policy, today's commands."""

from __future__ import annotations

import re
import shutil
from collections import deque
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
import yaml
from fastapi import FastAPI
from typer.testing import CliRunner

from catalogue.settings import CatalogueSettings
from connector.console.page import HELP
from connector.help import site
from connector.help.__main__ import commands
from connector.settings import Settings
from tests.support import chromium, help_site
from tests.support.openid_console import served
from tests.support.ports import free_range

PATHS = ("owner", "model-builder", "trainer", "auditor", "operator")
BASE = "http://127.0.0.1/help/"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return help_site.build(tmp_path_factory.mktemp("help"))


class _Loaded(HTMLParser):
    """Collects links of a page, what it loads, inline scripts and inline styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.inline: list[str] = []
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in {"script", "img", "iframe", "source"} and "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in {"stylesheet", "icon", "preload", "preconnect"}:
            self.loads.append(found["href"])
        if (tag == "script" and "src" not in found and found.get("type") != "application/json") or tag == "style":
            self.inline.append(tag)
        self.inline += [name for name in found if name == "style" or name.startswith("on")]


def pages(built: Path) -> Iterator[tuple[str, _Loaded]]:
    for path in sorted(built.rglob("*.html")):
        address = BASE + path.relative_to(built).as_posix().removesuffix("index.html")
        yield address, _Loaded(path.read_text("utf-8"))


@pytest.mark.parametrize("link", ["paths/owner.md#nothing", "nothing.md"])
def test_a_broken_link_or_anchor_fails_the_build(tmp_path: Path, link: str) -> None:
    for name in ("connector", "catalogue", "client", "policies", "openapi.yaml"):
        (tmp_path / name).symlink_to(help_site.ROOT / name)
    shutil.copytree(help_site.ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("decisions"))
    shutil.copy(help_site.ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n[broken]({link})\n")
    with pytest.raises(AssertionError, match="nothing"):
        help_site.build(tmp_path / "site", tmp_path)


def test_each_page_is_two_clicks_from_the_start_page(built: Path) -> None:
    links = {
        address: {urljoin(address, link).partition("#")[0] for link in page.links} for address, page in pages(built)
    }
    clicks = {BASE: 0}
    waiting = deque([BASE])
    while waiting:
        here = waiting.popleft()
        for there in links[here] & links.keys() - clicks.keys():
            clicks[there] = clicks[here] + 1
            waiting.append(there)
    assert {page: clicks.get(page) for page in links if clicks.get(page, 9) > 2} == {}


def test_pages_load_nothing_from_outside_and_have_nothing_inline(built: Path) -> None:
    seen = list(pages(built))
    assert len(seen) >= 10
    for address, page in seen:
        assert {load for load in page.loads if urlsplit(urljoin(address, load)).netloc != "127.0.0.1"} == set(), address
        assert page.inline == [], address


def test_style_sheets_load_nothing_from_outside(built: Path) -> None:
    for path in built.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", path.read_text("utf-8")) == [], path


def test_the_help_links_of_the_console_lead_to_pages(built: Path) -> None:
    pages = [f"{language}{page}" for page in ("", *HELP.values()) for language in ("", "de/")]
    assert [page for page in pages if not (built / page / "index.html").is_file()] == []


def test_each_tab_of_the_console_has_a_page_of_the_help() -> None:
    template = (help_site.ROOT / "connector/console/templates/base.html").read_text("utf-8")
    tabs = set(re.findall(r'\("([a-z-]+)", _\("', template))
    assert len(tabs) >= 10
    assert tabs - HELP.keys() <= {"overview", "personal-tokens"}, "without a page of their own: the start page"
    assert HELP.keys() <= tabs


def test_the_page_of_commands_names_the_commands_of_the_help(built: Path) -> None:
    from hanse.cli import app

    listed = re.findall(r"^│ ([a-z][a-z-]*) ", CliRunner().invoke(app, ["--help"]).stdout, re.M)
    page = (built / "reference" / "commands" / "index.html").read_text("utf-8")
    on_page = {words.split()[0] for words in re.findall(r'<h2 id="[^"]*">hanse ([^<]+)<', page)}
    assert len(listed) >= 20
    assert set(listed) == on_page


def test_the_page_of_error_codes_has_the_sentences_of_the_program(built: Path) -> None:
    page = (built / "reference" / "error-codes" / "index.html").read_text("utf-8")
    codes = set(re.findall(r'<h3 id="(\w+)">', page))
    assert len(codes) >= 150
    assert {"purpose_not_agreed", "rows_not_given", "min_group_size", "evidence_invalid"} <= codes
    assert "negotiate another agreement" in page


def test_the_examples_of_the_sdk_are_code(built: Path) -> None:
    page = (built / "reference" / "sdk" / "index.html").read_text("utf-8")
    examples = re.findall(r"<summary>Example</summary>(.*?)</details>", page, re.S)
    assert len(examples) >= 10
    assert [one for one in examples if "<code>" not in one] == []


def test_each_setting_and_operation_has_an_entry(built: Path) -> None:
    settings = (built / "reference" / "settings" / "index.html").read_text("utf-8")
    assert [name for name in Settings.model_fields if f'id="settings-{name}"' not in settings] == []
    assert [name for name in CatalogueSettings.model_fields if f'id="cataloguesettings-{name}"' not in settings] == []
    rest = (built / "reference" / "rest" / "index.html").read_text("utf-8")
    document = yaml.safe_load((help_site.ROOT / "openapi.yaml").read_text("utf-8"))
    paths = [path for path in document["paths"] if f" {path}</code><" not in rest]
    assert paths == []


def _outline(page: Path) -> list[str]:
    """The levels of headings, the blocks and the targets of pictures and links of a page, in order.

    The title of a block differs where it is a sentence.
    """
    found = re.findall(r"^#+(?= )|^```.*?^```|\]\([^)]*\)", page.read_text("utf-8"), re.M | re.S)
    return [re.sub(' title="[^"]* [^"]*"', " title", one.replace("../", "")) for one in found]


@pytest.mark.parametrize("name", ["index", *(f"paths/{name}" for name in PATHS)])
def test_a_german_page_has_the_headings_blocks_and_links_of_the_english_one(name: str) -> None:
    english, german = (help_site.ROOT / "docs" / folder / f"{name}.md" for folder in ("", "de"))
    assert _outline(german) == _outline(english)


def test_what_a_block_prints_is_marked(built: Path) -> None:
    for page, mark in (("paths/owner", "prints"), ("de/paths/owner", "gibt aus")):
        text = (built / page / "index.html").read_text("utf-8")
        assert text.count(f'<span class="filename">{mark}</span>') >= 6


def test_each_page_leads_to_the_other_language(built: Path) -> None:
    for page, other in (("de/paths/owner", "paths/owner"), ("paths/owner", "de/paths/owner")):
        links = _Loaded((built / page / "index.html").read_text("utf-8")).links
        assert f"{BASE}{other}/" in {urljoin(f"{BASE}{page}/", link) for link in links}


async def test_the_site_is_served_under_a_strict_policy_and_tells_what_to_run_if_it_is_missing(
    built: Path, tmp_path: Path
) -> None:
    for folder, status, text in ((built, 200, "<h1"), (tmp_path, 503, "make help-site")):
        app = FastAPI()
        app.include_router(site.router(folder))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as client:
            answer = await client.get("/help/")
            assert (answer.status_code, text in answer.text) == (status, True)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert (await client.get("/help")).headers["location"] == "/help/"
            if folder == built:
                assert (await client.get("/help/nothing/here")).status_code == 404
                assert (await client.get("/help/..%2f..%2f..%2fpyproject.toml")).status_code == 404


@pytest.mark.skipif(not chromium.program(), reason="needs Chromium")
async def test_the_search_works_offline_and_the_browser_objects_to_nothing(built: Path) -> None:
    app = FastAPI()
    app.include_router(site.router(built))
    port = free_range(1)
    address = f"http://127.0.0.1:{port}"
    async with served(app, port), chromium.launched() as browser:
        page = await browser.new_page()
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{address}/help/")
        await page.get_by_role("textbox", name="Search").click()
        await page.keyboard.type("audit", delay=30)
        await page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
        assert complaints == []
        assert {urlsplit(url).netloc for url in asked} == {urlsplit(address).netloc}


def test_the_command_tells_what_to_run_if_the_site_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr(site, "FOLDER", tmp_path)
    app = typer.Typer()
    app.command()(commands)
    ran = CliRunner().invoke(app, ["--no-browser"])
    assert (ran.exit_code, "make help-site" in ran.output) == (1, True)
