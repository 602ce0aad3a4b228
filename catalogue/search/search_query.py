"""A search query: words, columns and facet values, parsed from a search box and from parameters. Pure.

The search box takes typed filters among the words: `glucose column:age owner:north theme:HEAL policy:"members-only"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from catalogue.search.facets import POLICIES, STATES, facet_named, purpose_name, theme_code
from connector.errors import Invalid

SIZE, SIZE_MAX, DEPTH_MAX = 20, 100, 10_000
TEXT_MAX, _ID_MAX = 500, 1_024
_FILTERS_MAX, _FILTER_MAX = 20, 2_000
SORTS = {"relevance": "Best match", "title": "Title", "newest": "Newest", "owner": "Owner"}
_LONG_ID = re.compile(r"\s*[^\s:]+:\S+\s*")
_TYPED = re.compile(r'(?<!\S)([a-z]+):(?:"([^"]*)"|(\S+))')
_NORMAL = {
    "theme": theme_code, "purpose": purpose_name, "keyword": str.lower, "country": str.upper,
    "participant": str.lower, "policy": str.lower, "state": str.lower,
}  # fmt: skip
_KNOWN = {"policy": POLICIES, "state": STATES}  # every value that there can be


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery:
    """A search. Values of one facet are alternatives; facets, columns and words must all fit."""

    words: str = ""
    columns: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    page: int = 1
    size: int = SIZE
    sort: str = "relevance"  # one of SORTS

    @property
    def is_browsing(self) -> bool:
        """Whether there are no words to rank by."""
        return not self.words.strip()

    @property
    def order(self) -> str:
        """The order of the hits, one of SORTS. Without words to rank by, the newest stand first."""
        return "newest" if self.sort == "relevance" and self.is_browsing else self.sort

    def without(self, facet: str) -> SearchQuery:
        """The query without one facet's filter, for counting that facet."""
        return replace(self, filters={name: values for name, values in self.filters.items() if name != facet})


def replace_part(question: SearchQuery, *, words: str | None = None, column: str = "") -> SearchQuery:
    """The query with other words, or without one of its columns; on its first page."""
    columns = tuple(name for name in question.columns if name != column)
    return replace(question, words=question.words if words is None else words, columns=columns, page=1)


def parse_query(
    text: str,
    *,
    columns: Iterable[str] = (),
    filters: Mapping[str, Iterable[str]] | None = None,
    page: int = 1,
    size: int = SIZE,
    sort: str = "relevance",
) -> SearchQuery:
    """Parse a query from the search box and parameters.

    Raises:
        Invalid: the text is too long, the page too deep, or an order, state or policy class unknown.
    """
    if sort not in SORTS:
        raise Invalid(f"expected as sort one of {', '.join(SORTS)}, came {sort[:80]!r}")
    if len(text) > TEXT_MAX and (len(text) > _ID_MAX or not _LONG_ID.fullmatch(text)):
        raise Invalid(
            f"expected at most {TEXT_MAX} characters to search for, or one id of a dataset of at most {_ID_MAX}, "
            f"came {len(text)}"
        )
    if page < 1 or not 1 <= size <= SIZE_MAX or page * size > DEPTH_MAX:
        raise Invalid(
            f"expected a page from 1 on, 1 to {SIZE_MAX} results a page and at most {DEPTH_MAX} results in all, came "
            f"page {page} of {size}; narrow the search instead of paging further"
        )
    found: dict[str, list[str]] = {name: list(values) for name, values in (filters or {}).items()}
    wanted = list(columns)
    words = _TYPED.sub(lambda match: _typed(match, found, wanted), text)
    chosen = {name: _normal(name, values) for name, values in found.items() if any(values)}
    if sum(map(len, chosen.values())) + len(wanted) > _FILTERS_MAX:
        raise Invalid(f"expected at most {_FILTERS_MAX} filters")
    if max(sum(map(len, wanted)), *(len(one) for values in chosen.values() for one in values), 0) > _FILTER_MAX:
        raise Invalid(f"expected at most {_FILTER_MAX} characters of columns together, and of each value of a filter")
    unique = tuple(dict.fromkeys(column.strip() for column in wanted if column.strip()))
    return SearchQuery(words=" ".join(words.split()), columns=unique, filters=chosen, page=page, size=size, sort=sort)


def _typed(match: re.Match[str], found: dict[str, list[str]], columns: list[str]) -> str:
    """Move a typed filter from the text to `found` or `columns`. Other text stays a word."""
    name, value = match[1], match[2] if match[2] is not None else match[3]
    if name == "column":
        columns.append(value)
        return " "
    if (facet := facet_named(name)) is None:
        return match[0]
    found.setdefault(facet.name, []).append(value)
    return " "


def _normal(name: str, values: Iterable[str]) -> tuple[str, ...]:
    normal, known = _NORMAL.get(name, str), _KNOWN.get(name)
    found = tuple(dict.fromkeys(normal(value.strip()) for value in values if value.strip()))
    for value in found:
        if known is not None and value not in known:
            raise Invalid(f"expected as {name} one of {', '.join(known)}, came {value[:80]!r}")
    return found
