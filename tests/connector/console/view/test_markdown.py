"""Descriptions of others on our pages: Markdown, and nothing that a browser would run, load or follow unasked."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.console.view.markdown import TEXT_MAX, render_markdown

TAGS = {"p", "h3", "h4", "h5", "h6", "strong", "em", "a", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "br",
        "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))", "[a](&#106;avascript:alert(1))", "[a](data:text/html,<script>)", "[a](vbscript:x)",
    "[a](/logout)", "[a](//evil.example)", "![a](http://evil.example/x.png)", "<javascript:alert(1)>",
    '[a](https://x "t\\" onload=\\"alert(1)")', "[a]: javascript:alert(1)\n\n[a]", "<http://x/'onload=alert(1)>",
    "```html onload=alert(1)\n<b>\n```", "|a|\n|-|\n|<b onload=x>|", "[a](java\nscript:x)", "[a](\x01javascript:x)",
    "<!-- <script> -->", "<![CDATA[<script>]]>", "[<img src=x>](https://x)", "# <b>", "&lt;script&gt;", "[a](file:///x)",
]  # fmt: skip


class Tags(HTMLParser):
    """Every element of a text, with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check(text: str) -> None:
    for tag, attributes in Tags(str(render_markdown(text))).found:
        assert tag in TAGS, (text, tag)
        assert set(attributes) <= {"href", "rel", "title", "class", "start", "align"}, (text, attributes)
        assert re.match(r"(https?://|mailto:)", attributes.get("href") or "https://"), (text, attributes)


@pytest.mark.hostile
@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_hostile_text_runs_or_loads(text: str) -> None:
    check(text)


@pytest.mark.hostile
@given(
    st.lists(st.sampled_from([*HOSTILE, "\n", " ", "`", "*", "[", "](", ")", "<", ">", '"', "|", "    "]), max_size=8)
)
def test_nothing_of_hostile_texts_together_runs_or_loads(parts: list[str]) -> None:
    check("".join(parts))


def test_markdown_is_rendered_below_the_headings_of_the_page() -> None:
    found = render_markdown("# Who\n\n**All** of [them](https://a.example).\n\n- one\n\n|a|b|\n|-|-|\n|1|2|")
    for part in ("<h3>Who</h3>", "<strong>All</strong>", '<a href="https://a.example"', "<li>one</li>", "<td>2</td>"):
        assert part in found
    assert "<h1" not in render_markdown("# a\n\nb\n=")


@pytest.mark.parametrize("part", ["[", "*a ", "`", "> ", "- ", "a](", "[a](<b", "_*", "![[]()", "[x]: y\n", "|a"])
def test_a_long_text_takes_no_long_time_and_no_large_page(part: str) -> None:
    begun = time.process_time()
    assert len(render_markdown(part * TEXT_MAX)) <= 100_000
    assert time.process_time() - begun < 5  # a tenth of a second as a rule


def test_a_table_that_fills_itself_is_shown_as_text() -> None:
    text = "|a" * 1500 + "\n" + "|-" * 1500 + "\n" + "a\n" * 1500
    assert render_markdown(text).startswith("<pre>|a|a")
