"""Answering a question: the index finds, the database tells, and what is shown is decided per viewer once more.

Knows nothing of HTTP. The second look at the database means that an index that lags behind never shows what was
withdrawn or closed since.
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
from catalogue.search.facets import FACETS, Card
from catalogue.search.highlight import Matches, Segment
from catalogue.search.index import Found, Index
from catalogue.search.search_query import DEPTH_MAX, Question
from catalogue.search.substrings import are_within, is_part, words_of
from catalogue.search.visibility import card_for, saw
from catalogue.store import Store, Transaction
from catalogue.store.tables import Entry as Row
from catalogue.store.tables import Member, Source
from connector.errors import NotFound
from connector.infra.concurrency.thread_pool import BoundedThreadPool

T = TypeVar("T")
Fold = Callable[[str], tuple[str, ...]]  # the words of a text as the index knows them

_LOOKS = 10  # reads of a page's size that one page may take
_PART_MIN = 4  # letters of a searched word that may be found inside a longer one


class Gone(NotFound):
    """A dataset that was here; its tombstone says since when and why."""

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

    card: Card
    title: list[Segment]
    excerpt: list[Segment]
    columns: list[str]


@dataclass(frozen=True, slots=True)
class Results:
    """One page of an answer."""

    question: Question
    hits: list[Hit]
    total: int
    facets: dict[str, list[Value]]
    seconds: float

    @property
    def pages(self) -> int:
        """How many can be asked for; what lies deeper is for exports, and for narrower questions."""
        size = self.question.size
        return max(1, min(-(-self.total // size), DEPTH_MAX // size))


@dataclass(frozen=True, slots=True)
class Shown:
    """One dataset for one viewer, with its rows for whoever needs more than the card."""

    card: Card
    row: Row
    member: Member
    source: Source


class Search:
    """Questions over one index and its database."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store, self._index = store, index
        self._threads = BoundedThreadPool(4, "catalogue-search", resource="the index")  # no visit waits behind searches

    def close(self) -> None:
        """Finish the searches under way."""
        self._threads.close()

    async def ask(self, question: Question, viewer: Viewer) -> Results:
        """One page of results for a viewer. Busy where too many are asked for."""
        started = time.perf_counter()
        found = await self._in_index(partial(self._index.search, question, viewer))
        cards = await self._store.read(partial(_cards, ids=found.ids, viewer=viewer))
        hits = await self._in_index(partial(self._hits, cards, question))
        titles = {card.owner: card.owner_title for card in cards}
        facets = _values(found, question, await self._store.read(partial(_titles, known=titles)))
        return Results(question, hits, found.total, facets, time.perf_counter() - started)

    async def count(self, question: Question, viewer: Viewer) -> int:
        """How many hits a question has for a viewer, and nothing else of them. Busy as for `ask`."""
        return await self._in_index(partial(self._index.count, question, viewer))

    async def _in_index(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._threads.submit(work))

    async def dataset(self, dataset_id: str, viewer: Viewer) -> Shown:
        """One dataset. NotFound where it is not there or not for this viewer: the two look alike."""
        return await self._store.read(partial(_shown, dataset_id=dataset_id, viewer=viewer))

    async def owners(self, viewer: Viewer) -> dict[str, int]:
        """How many datasets of each owner (by short name) the viewer may see."""
        return await self._in_index(partial(self._index.owners, viewer))

    async def page(self, viewer: Viewer, *, after: str, size: int) -> tuple[list[Card], str]:
        """Up to `size` datasets in order of id after the id `after`, and where to go on ("" at the end)."""
        return await self._store.read(partial(_page, viewer=viewer, after=after, size=size))

    def _hits(self, cards: Sequence[Card], question: Question) -> list[Hit]:
        """What is shown of each; beside the loop, as entries are as long as their owners make them."""
        fold = cache(lambda text: tuple(self._index.words_in(text)))
        matches, is_asked = self._matcher(question, fold), _asked(question, fold)
        return [_hit(card, question, matches, is_asked) for card in cards]

    def _matcher(self, question: Question, fold: Fold) -> Matches:
        """Whether a word of an entry is one that was searched for: itself, its stem, or with it inside."""
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


def _asked(question: Question, fold: Fold) -> Matches:
    """Whether a column is one that was asked for, by the letters or the words of its name: as the index finds it."""
    wanted = [_folded(name, fold) for name in question.columns]

    def is_asked(name: str) -> bool:
        words = _folded(name, fold)
        return any(are_within(asked, words) for asked in wanted)

    return is_asked if wanted else lambda _: False


def _folded(name: str, fold: Fold) -> list[str]:
    """The words of a column's name as the index knows them."""
    return [word for piece in words_of(name) for word in fold(piece)]


def _hit(card: Card, question: Question, matches: Matches, is_asked: Matches) -> Hit:
    entry, asked = card.entry, {column.lower() for column in question.columns}
    names = [column.name for column in entry.columns]
    exact = [name for name in names if name.lower() in asked][: highlight.MOST]
    return Hit(
        card,
        highlight.marked(entry.title, matches),
        highlight.excerpt(entry.description, matches),
        exact or highlight.chosen(names, is_asked) or highlight.found(names, matches),
    )


def _cards(tx: Transaction, *, ids: Sequence[str], viewer: Viewer) -> list[Card]:
    rows = tx.entries.with_owner(ids)
    cards = (card_for(viewer, *rows[one]) for one in ids if one in rows)
    return [card for card in cards if card is not None]


def _page(tx: Transaction, *, viewer: Viewer, after: str, size: int) -> tuple[list[Card], str]:
    found: list[Card] = []
    for _ in range(_LOOKS):  # hidden entries must not make one request look at the whole database
        rows = tx.entries.page(after=after, limit=size)
        for row, member, source in rows:
            if len(found) == size:
                return found, after
            after = row.id
            card = card_for(viewer, row, member, source)
            found += [card] if card is not None else []
        if len(rows) < size:
            return found, ""
    return found, after


def _titles(tx: Transaction, *, known: dict[str, str]) -> dict[str, str]:
    return known | {member.name: member.title for member in tx.members.all()}


def _values(found: Found, question: Question, owners: dict[str, str]) -> dict[str, list[Value]]:
    """Facet counts in words; a chosen value is there even where nothing has it."""
    facets: dict[str, list[Value]] = {}
    for name, facet in FACETS.items():
        chosen = question.filters.get(name, ())
        facets[name] = [
            Value(value, owners.get(value, value) if name == "participant" else facet.label(value), n, value in chosen)
            for value, n in found.facets[name]
        ]
    return facets


def _shown(tx: Transaction, *, dataset_id: str, viewer: Viewer) -> Shown:
    rows = tx.entries.with_owner([dataset_id]).get(dataset_id)
    card = card_for(viewer, *rows) if rows is not None else None
    if rows is not None and card is not None:
        return Shown(card, *rows)
    _refuse_gone(tx.entries.find(dataset_id), viewer)
    raise NotFound(
        f"no dataset {dataset_id[:200]!r} is here, or it is for members only; members see it through their connector"
    )


def _refuse_gone(row: Row | None, viewer: Viewer) -> None:
    """Gone for a tombstone, to those who saw the dataset while it was listed."""
    if row is None or row.withdrawn_at is None or not saw(row.content, viewer):
        return
    raise Gone(
        f"the dataset {row.id!r} was withdrawn: {row.withdrawn_why}",
        withdrawn_at=row.withdrawn_at,
        reason=row.withdrawn_why,
    )
