"""Build steps of the help site: generated reference, navigation by what is there, German pages, no inline scripts.

MkDocs calls the functions `on_...` (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PATHS = ("owner", "model-builder", "trainer", "auditor", "operator")
_GERMAN = "de/"
_GERMAN_TAB = "Deutsch"
_GROUPS = {"How-to": "how-to", "Reference": "reference", "Explanation": "explain"}
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_ALTERNATE = re.compile(r'<link rel="alternate"[^>]*>')
_OUTSIDE = r"decisions|deploy|client|connector|openapi\.yaml|README\.md|CHANGELOG\.md|CONTRIBUTING\.md|LICENSE"
_LINK = re.compile(rf"\[([^\]]*)\]\(((?:\.\./)*(?:{_OUTSIDE})[^)]*)\)")
_STATIC = {
    "site.css": ROOT / "docs/site/site.css",
    "mark.svg": ROOT / "connector/infra/html/mark.svg",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the site's own files, then write the navigation."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for name, path in _STATIC.items():
        files.append(File.generated(config, name, content=path.read_bytes()))
    config.nav = list(_navigation({file.src_uri for file in files.documentation_pages()}))
    return files


def _navigation(pages: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the tabs: the start page, the paths, one tab for each folder that has pages, and German."""
    yield {"Start": "index.md"}
    yield {"Paths": [path for name in PATHS if (path := f"paths/{name}.md") in pages]}
    loose = sorted(page for page in pages if "/" not in page and page != "index.md")
    if loose:
        yield {"Guides": loose}
    for title, folder in _GROUPS.items():
        if found := sorted(page for page in pages if page.startswith(f"{folder}/")):
            yield {title: found}
    if german := [path for name in PATHS if (path := f"{_GERMAN}paths/{name}.md") in pages]:
        yield {_GERMAN_TAB: [f"{_GERMAN}index.md", *german]}


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files of the repository that are not in the site into their path, and mark what a block prints."""
    if "paths/" in page.file.src_uri:
        word = "gibt aus" if page.file.src_uri.startswith(_GERMAN) else "prints"
        markdown = markdown.replace("```text\n", f'```text title="{word}"\n')
    return _LINK.sub(lambda found: f"{found[1]} (`{_in_repository(found[2])}`)", markdown)


def _in_repository(target: str) -> str:
    path = target.replace("../", "")
    return f"docs/{path}" if path.startswith("decisions") else path


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: Navigation) -> dict[str, Any]:
    """Show a page in its language: texts of the theme, tabs, and the switch to the same page in the other language."""
    german = page.file.src_uri.startswith(_GERMAN)
    config.theme["language"] = "de" if german else "en"
    pages = {one.file.src_uri: one for one in nav.pages}
    other = _counterpart(page, pages)
    here, there = ("de", "en") if german else ("en", "de")
    names = {"en": "English", "de": "Deutsch"}
    links = {here: page.url, there: other}
    config.extra["alternate"] = (
        [{"name": names[code], "link": links[code] or "./", "lang": code} for code in names]
        if f"{_GERMAN}index.md" in pages
        else []
    )
    shown = copy.copy(nav)
    shown.items = [item for item in nav.items if _is_german(item) == german]
    if german:
        shown.items = next((item.children for item in shown.items if isinstance(item, Section)), shown.items)
    context["nav"] = shown
    return context


def _is_german(item: Any) -> bool:
    return isinstance(item, Section) and item.title == _GERMAN_TAB


def _counterpart(page: Page, pages: dict[str, Page]) -> str:
    """Return the address of the page in the other language; of the start page where it is not translated."""
    name = page.file.src_uri
    twin = name.removeprefix(_GERMAN) if name.startswith(_GERMAN) else f"{_GERMAN}{name}"
    start = "index.md" if name.startswith(_GERMAN) else f"{_GERMAN}index.md"
    found = pages.get(twin) or pages.get(start)
    return found.url if found else ""


def on_post_page(output: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Move inline scripts of the theme into files, so that the pages need no exception in their security policy.

    The theme looks for a sitemap at each `<link rel="alternate">`; the switch of languages does not need it.
    """
    return _INLINE.sub(lambda found: _as_file(found[1], page, Path(config.site_dir)), _ALTERNATE.sub("", output))


def _as_file(script: str, page: Page, site: Path) -> str:
    name = f"assets/inline/{hashlib.sha256(script.encode()).hexdigest()[:16]}.js"
    (site / name).parent.mkdir(parents=True, exist_ok=True)
    (site / name).write_text(script, "utf-8")
    up = "../" * page.url.rstrip("/").count("/") + ("../" if page.url.strip("./") else "")
    return f'<script src="{up}{name}"></script>'


def on_post_build(config: MkDocsConfig) -> None:
    """Remove what no page uses: source maps, and the 404 page, whose links would need the site's address."""
    site = Path(config.site_dir)
    for path in (*site.rglob("*.map"), site / "sitemap.xml.gz", site / "404.html"):
        path.unlink(missing_ok=True)
