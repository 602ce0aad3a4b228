"""Renders the Markdown of descriptions, which owners write and other participants send, as safe HTML.

No HTML of the text gets through, no picture, and no link but to http, https and mailto. Headings are below those of the
page. Its library is loaded with the first text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

TEXT_MAX = 10_000
_HTML_MAX = 100_000
_NESTED_MAX = 12
_DEEPER = 2  # levels of headings: the page has h1, its sections h2
_LINKS = ("https://", "http://", "mailto:")


def render_markdown(text: str) -> Markup:
    """Return the HTML of a text, which may be hostile. A longer one is cut; one that grows too much stays text."""
    html = _parser().render(text[:TEXT_MAX])
    if len(html) > _HTML_MAX:  # a table fills up its rows
        return Markup("<pre>{}</pre>").format(text[:TEXT_MAX])
    return Markup(html)  # noqa: S704  the parser escapes, see above


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False, "maxNesting": _NESTED_MAX}).enable("table").disable("image")
    made.validateLink = _is_allowed  # type: ignore[method-assign]  # the library's own way to set it
    made.add_render_rule("link_open", _open_link)
    made.add_render_rule("heading_open", _open_heading)
    made.add_render_rule("heading_close", _open_heading)
    return made


def _is_allowed(url: str) -> bool:
    return url.strip().lower().startswith(_LINKS)


def _open_link(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("rel", "noreferrer nofollow")
    return str(self.renderToken(tokens, index, options, env))


def _open_heading(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    tokens[index].tag = f"h{min(6, int(tokens[index].tag[1:]) + _DEEPER)}"
    return str(self.renderToken(tokens, index, options, env))
