"""Search service: finds ids in the index, reads entries from the database, and filters them for the viewer again.

Does not import HTTP. Visibility is checked again with the database, so that an index that lags never shows a withdrawn
or hidden dataset.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

from catalogue.api.access import Viewer
from catalogue.search import highlight
from catalogue.search.dataset_groups import build_groups, group_key
from catalogue.search.facets import FACETS, EntryView
from catalogue.search.highlight import Matches, Segment
from catalogue.search.index import Index, IndexHits
from catalogue.search.search_query import DEPTH_MAX, SearchQuery
from catalogue.search.substrings import are_within, is_part, words_of
from catalogue.search.suggestions import SHOWN, Suggestion, suggest
from catalogue.search.visibility import has_seen, view_for
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import CrawlState, Member
from catalogue.store.tables import EntryRow as Row
from connector.errors import Absent
from connector.infra.concurrency.thread_pool import BoundedThreadPool

T = TypeVar("T")
Fold = Callable[[str], tuple[str, ...]]  # the words of a text as the index knows them

_LOOKS = 10  # reads of a page's size that one page may take
_PART_MIN = 4  # letters of a searched word that may be found inside a longer one


class Gone(Absent):
    """The error for a withdrawn dataset, with the time and the reason."""

    status = 410
    code = "gone"


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a facet, with words for it, how many hits have it, and whether it is chosen."""

    value: str
    label: str
    count: int
    chosen: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: the rendering for this viewer, and why it fits."""

    card: EntryView
    title: list[Segment]
    excerpt: list[Segment]
    columns: list[str]


@dataclass(frozen=True, slots=True)
class ResultCard:
    """A hit as a page shows it, and the datasets of its group (its own among them) where it has one."""

    hit: Hit
    group: list[EntryView]


@dataclass(frozen=True, slots=True)
class Results:
    """One page of an answer."""

    question: SearchQuery
    hits: list[Hit]
    total: int
    facets: dict[str, list[Value]]
    seconds: float

    @property
    def pages(self) -> int:
        """The number of pages that can be requested. Deeper results need an export or a narrower query."""
        size = self.question.size
        return max(1, min(-(-self.total // size), DEPTH_MAX // size))


@dataclass(frozen=True, slots=True)
class EntryDetail:
    """One dataset for one viewer, with its database rows."""

    card: EntryView
    row: Row
    member: Member
    source: CrawlState


class Search:
    """Search over one index and its database."""

    def __init__(self, store: CatalogueStore, index: Index) -> None:
        self._store, self._index = store, index
        self._threads = BoundedThreadPool(4, "catalogue-search", resource="the index")  # no visit waits behind searches

    def close(self) -> None:
        """Finish the searches under way."""
        self._threads.close()

    async def ask(self, question: SearchQuery, viewer: Viewer) -> Results:
        """One page of results for a viewer. Raises Unavailable if too many searches wait."""
        started = time.perf_counter()
        found = await self._in_index(partial(self._index.search, question, viewer))
        cards = await self._store.read(partial(_read_views, ids=found.ids, viewer=viewer))
        hits = await self._in_index(partial(self._hits, cards, question))
        titles = {card.owner: card.owner_title for card in cards}
        facets = _values(found, question, await self._store.read(partial(_read_titles, known=titles)))
        return Results(question, hits, found.total, facets, time.perf_counter() - started)

    async def group(self, results: Results, viewer: Viewer) -> list[ResultCard]:
        """One page of results with the datasets of several owners that have one name and schema in one card.

        A group stands where its first dataset does; its others are left out there and on later pages.
        """
        keys = await self._in_index(lambda: {hit.card.entry.id: group_key(hit.card) for hit in results.hits})
        wanted = sorted({key for key in keys.values() if key})
        ids = await self._in_index(partial(self._index.grouped, results.question, wanted, viewer)) if wanted else ()
        cards = await self._store.read(partial(_read_views, ids=ids, viewer=viewer))
        groups = await self._in_index(partial(build_groups, cards))
        leads = {key: group[0].entry.id for key, group in groups.items()}
        inside = {card.entry.id for group in groups.values() for card in group[1:]}
        return [
            ResultCard(hit, groups[key] if leads.get(key) == one else [])
            for one, key, hit in zip(keys, keys.values(), results.hits, strict=True)
            if one not in inside
        ]

    async def suggest(self, question: SearchQuery, beginning: str, viewer: Viewer) -> list[Suggestion]:
        """Completions of a search whose last word begins so, from datasets that the viewer may see; at most SHOWN."""
        found = await self._in_index(partial(self._index.begins, question, beginning, viewer, limit=SHOWN))
        cards = await self._store.read(partial(_read_views, ids=found, viewer=viewer))
        return await self._in_index(partial(suggest, cards, question.words, beginning))

    async def count(self, question: SearchQuery, viewer: Viewer) -> int:
        """The number of hits for a viewer. Raises Busy as `ask` does."""
        return await self._in_index(partial(self._index.count, question, viewer))

    async def _in_index(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._threads.submit(work))

    async def dataset(self, dataset_id: str, viewer: Viewer) -> EntryDetail:
        """One dataset.

        Raises Absent if it does not exist or this viewer may not see it, and Gone if it was withdrawn.
        """
        return await self._store.read(partial(_read_detail, dataset_id=dataset_id, viewer=viewer))

    async def owners(self, viewer: Viewer) -> dict[str, int]:
        """How many datasets of each owner (by short name) the viewer may see."""
        return await self._in_index(partial(self._index.owners, viewer))

    async def page(self, viewer: Viewer, *, after: str, size: int) -> tuple[list[EntryView], str]:
        """Up to `size` datasets in order of id after the id `after`, and where to go on ("" at the end)."""
        return await self._store.read(partial(_read_page, viewer=viewer, after=after, size=size))

    def _hits(self, cards: Sequence[EntryView], question: SearchQuery) -> list[Hit]:
        """The hits of these renderings. Runs in a thread, as entries may be long."""
        fold = cache(lambda text: tuple(self._index.words_in(text)))
        matches, is_asked = self._matcher(question, fold), _build_column_matcher(question, fold)
        return [_hit(card, question, matches, is_asked) for card in cards]

    def _matcher(self, question: SearchQuery, fold: Fold) -> Matches:
        """A predicate for words of an entry that match the query: the word, its stem, or a part of it."""
        words = set(self._index.words_in(" ".join((question.words, *question.columns))))
        stems = {self._index.stem(word) for word in words}
        parts = [re.escape(word) for word in words if is_part(word, _PART_MIN)]
        inside = re.compile("|".join(parts) or "(?!)")
        if not words:
            return lambda _: False

        @cache
        def matches(text: str) -> bool:
            folded = next(iter(fold(text)), "")
            if not folded:
                return False
            return folded in words or self._index.stem(folded) in stems or bool(inside.search(folded))

        return matches


def _build_column_matcher(question: SearchQuery, fold: Fold) -> Matches:
    """A predicate for column names that match the query's columns by letters or words, as the index matches them."""
    wanted = [_fold_name(name, fold) for name in question.columns]

    def is_asked(name: str) -> bool:
        words = _fold_name(name, fold)
        return any(are_within(asked, words) for asked in wanted)

    return is_asked if wanted else lambda _: False


def _fold_name(name: str, fold: Fold) -> list[str]:
    """The words of a column's name as the index knows them."""
    return [word for piece in words_of(name) for word in fold(piece)]


def _hit(card: EntryView, question: SearchQuery, matches: Matches, is_asked: Matches) -> Hit:
    entry, asked = card.entry, {column.lower() for column in question.columns}
    names = [column.name for column in entry.columns]
    exact = [name for name in names if name.lower() in asked][: highlight.MOST]
    return Hit(
        card,
        highlight.mark_words(entry.title, matches),
        highlight.excerpt(entry.description, matches),
        exact or highlight.filter_names(names, is_asked) or highlight.find_names(names, matches),
    )


def _read_views(tx: CatalogueTransaction, *, ids: Sequence[str], viewer: Viewer) -> list[EntryView]:
    rows = tx.entries.get_with_owner(ids)
    cards = (view_for(viewer, *rows[one]) for one in ids if one in rows)
    return [card for card in cards if card is not None]


def _read_page(tx: CatalogueTransaction, *, viewer: Viewer, after: str, size: int) -> tuple[list[EntryView], str]:
    found: list[EntryView] = []
    for _ in range(_LOOKS):  # hidden entries must not make one request look at the whole database
        rows = tx.entries.page(after=after, limit=size)
        for row, member, source in rows:
            if len(found) == size:
                return found, after
            after = row.id
            card = view_for(viewer, row, member, source)
            found += [card] if card is not None else []
        if len(rows) < size:
            return found, ""
    return found, after


def _read_titles(tx: CatalogueTransaction, *, known: dict[str, str]) -> dict[str, str]:
    return known | {member.name: member.title for member in tx.members.list_all()}


def _values(found: IndexHits, question: SearchQuery, owners: dict[str, str]) -> dict[str, list[Value]]:
    """Facet values with labels and counts. A chosen value is included even without hits."""
    facets: dict[str, list[Value]] = {}
    for name, facet in FACETS.items():
        chosen = question.filters.get(name, ())
        facets[name] = [
            Value(value, owners.get(value, value) if name == "participant" else facet.label(value), n, value in chosen)
            for value, n in found.facets[name]
        ]
    return facets


def _read_detail(tx: CatalogueTransaction, *, dataset_id: str, viewer: Viewer) -> EntryDetail:
    rows = tx.entries.get_with_owner([dataset_id]).get(dataset_id)
    card = view_for(viewer, *rows) if rows is not None else None
    if rows is not None and card is not None:
        return EntryDetail(card, *rows)
    _refuse_gone(tx.entries.find(dataset_id), viewer)
    raise Absent(
        f"no dataset {dataset_id[:200]!r} is here, or it is for members only; members see it through their connector"
    )


def _refuse_gone(row: Row | None, viewer: Viewer) -> None:
    """Raise Gone for a tombstone if the viewer could see the dataset while it was listed."""
    if row is None or row.withdrawn_at is None or not has_seen(row.content, viewer):
        return
    raise Gone(
        f"the dataset {row.id!r} was withdrawn: {row.withdrawn_why}",
        withdrawn_at=row.withdrawn_at,
        reason=row.withdrawn_why,
    )
