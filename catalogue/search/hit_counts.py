"""How many hits a query has, and how many each value of a facet. Knows nothing of what was asked, nor of whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tantivy

from catalogue.search.facets import FACETS

# Values of a facet that each segment of the index tells of: at first, and where that does not decide. Without a bound
# one member's half a million keywords would be read for everybody's search.
_FEW, _MOST = 1_000, 5_000
_SPARE = 8  # times as many values as are shown, of which some may turn out to be larger than they looked


def count_facets(
    searcher: tantivy.Searcher, query: tantivy.Query, names: Sequence[str]
) -> dict[str, list[tuple[str, int]]]:
    """How many hits have each of the largest values of these facets.

    A segment of the index tells of its own largest values only, so that those which may be the largest of all are
    counted once more: every count is exact. The choice of values is exact too unless a segment has more than _MOST
    values among the hits.
    """
    answer = _largest(searcher, query, names, of=_FEW)
    answer |= _largest(searcher, query, [name for name in names if not _is_decided(answer[name], name)], of=_MOST)
    unsure = {name: [one["key"] for one in answer[name]["buckets"]] for name in names if _count_error(answer[name])}
    again = {name: build_terms(name, FACETS[name].shown, among=values) for name, values in unsure.items()}
    answer |= searcher.aggregate(query, again) if again else {}
    return {name: _values(answer[name]["buckets"], FACETS[name].shown) for name in names}


def _largest(searcher: tantivy.Searcher, query: tantivy.Query, names: Sequence[str], *, of: int) -> dict[str, Any]:
    """What the engine says of the largest values, where each segment tells of so many."""
    wanted = {name: build_terms(name, FACETS[name].shown * _SPARE, counted=of) for name in names}
    found: dict[str, Any] = searcher.aggregate(query, wanted) if wanted else {}
    return found


def _values(buckets: Iterable[Mapping[str, Any]], shown: int) -> list[tuple[str, int]]:
    found = ((str(one["key"]), int(one["doc_count"])) for one in buckets)
    return sorted(found, key=lambda value: (-value[1], value[0]))[:shown]


def _count_error(counted: Mapping[str, Any]) -> int:
    """How many hits a value may have beyond those that were counted."""
    return int(counted["doc_count_error_upper_bound"])


def _is_decided(counted: Mapping[str, Any], name: str) -> bool:
    """Whether the largest values are among those that were counted: any other has at most as many hits as the least of
    them and all that may have been left out."""
    buckets, shown = counted["buckets"], FACETS[name].shown
    if not (left_out := _count_error(counted)):
        return True
    return len(buckets) > shown and buckets[shown - 1]["doc_count"] > buckets[-1]["doc_count"] + left_out


def count_hits(searcher: tantivy.Searcher, query: tantivy.Query) -> int:
    """How many hits; ordered by a field, nothing is ranked for it."""
    result: Any = searcher.search(query, 1, order_by_field="newest")  # its stub leaves `count` out
    return int(result.count)


def build_terms(name: str, size: int, *, counted: int = _MOST, among: Sequence[str] = ()) -> dict[str, Any]:
    """Count a facet's values, of each segment so many of the largest; or these values only."""
    terms = {"field": f"facet_{name}", "size": size, "segment_size": counted}
    return {"terms": {**terms, "include": list(among)} if among else terms}
