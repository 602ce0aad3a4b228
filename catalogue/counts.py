"""How many hits a query has, and how many each value of a facet. Knows nothing of what was asked, nor of whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tantivy

from catalogue.facets import FACETS

# Values of a facet that each segment of the index tells of at first, and where that does not do.
_COUNTED, _ALL = 1_000, 2**31


def tally(searcher: tantivy.Searcher, query: tantivy.Query, names: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
    """How many hits have each of the largest values of these facets. Exact: a segment of the index tells of its own
    largest values only, so that those which may be the largest of all are counted once more."""
    wanted = {name: terms_of(name, FACETS[name].shown * 8, counted=_COUNTED) for name in names}
    answer: dict[str, Any] = searcher.aggregate(query, wanted) if wanted else {}
    unsure = [name for name in names if answer[name]["doc_count_error_upper_bound"]]
    shown = {name: FACETS[name].shown for name in unsure}
    again = {name: terms_of(name, most, among=_candidates(answer[name], most)) for name, most in shown.items()}
    answer |= searcher.aggregate(query, again) if again else {}
    return {name: _values(answer[name]["buckets"], FACETS[name].shown) for name in names}


def _values(buckets: Iterable[Mapping[str, Any]], shown: int) -> list[tuple[str, int]]:
    found = ((str(one["key"]), int(one["doc_count"])) for one in buckets)
    return sorted(found, key=lambda value: (-value[1], value[0]))[:shown]


def _candidates(counted: Mapping[str, Any], shown: int) -> list[str]:
    """The only values that can be the largest, where first counts tell; else nothing: all can.

    Whatever is not among them has at most as many hits as the least of them and all that may have been left out.
    """
    buckets, left_out = counted["buckets"], counted["doc_count_error_upper_bound"]
    if len(buckets) <= shown or buckets[shown - 1]["doc_count"] <= buckets[-1]["doc_count"] + left_out:
        return []
    return [one["key"] for one in buckets]


def number(searcher: tantivy.Searcher, query: tantivy.Query) -> int:
    """How many hits; ordered by a field, nothing is ranked for it."""
    result: Any = searcher.search(query, 1, order_by_field="newest")  # its stub leaves `count` out
    return int(result.count)


def terms_of(name: str, size: int, *, counted: int = _ALL, among: Sequence[str] = ()) -> dict[str, Any]:
    """Count a facet's values, of each segment so many of the largest; or these values only."""
    terms = {"field": f"facet_{name}", "size": size, "segment_size": counted}
    return {"terms": {**terms, "include": list(among)} if among else terms}
