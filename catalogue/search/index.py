"""Full-text and facet index over all entries (tantivy), derived from the database.

One document per rendering of an entry (`visibility`); every query is ANDed with the viewer's views. The index stores
the change number that it has applied. It is rebuilt if it is lost, has another layout, or is newer than the database.
The rebuild uses a new folder, while the old index answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import tantivy

from catalogue.api.access import MEMBERS, Viewer
from catalogue.crawl.languages import tag_of
from catalogue.search.dataset_groups import GROUPED_MAX, group_key
from catalogue.search.facets import FACETS, THEMES, EntryView
from catalogue.search.hit_counts import build_terms, count_facets, count_hits
from catalogue.search.search_query import TEXT_MAX, SearchQuery
from catalogue.search.substrings import ends, is_part, seams, spread
from catalogue.search.visibility import list_views, party_of, views_of
from catalogue.store import CatalogueStore, CatalogueTransaction
from connector.telemetry import logger

LAYOUT = 7  # raise it when documents are made differently
_HEAP = 15_000_000  # the least that tantivy takes; one thread
_BATCH = 500
# Of one entry, over all its renderings: who names a hundred members is found by the beginning of a long description, or
# everybody else's entries would wait for it.
_TEXTS_MAX, _COLUMNS_MAX, _ENDS_MAX = 1_000_000, 50_000, 100_000
_WAITING_MAX = 8_000_000  # characters of documents that wait for the engine's thread, which it keeps in memory
_OWNERS_MAX = 10_000
_START = (0, "")  # before the first change
_FAILED_MAX = 3  # changes in a row that the engine did not take, before its files are given up

# How much a word found in a field counts.
_BOOSTS = {
    "title": 8.0, "name": 8.0, "keywords": 4.0, "columns": 3.0, "owner": 3.0, "labels": 2.0, "description": 1.0,
}  # fmt: skip
_STEMS = {"title_stems": 6.0, "stems": 0.8}
# Where parts of words are looked for: of how many letters on, and how much one counts.
_PARTS = {"near_ends": (4, 0.5), "far_ends": (5, 0.1)}
# Where words with one letter wrong are: of how many letters on. In long texts a short word has neighbours by chance.
_TYPOS = {"title": 5, "name": 5, "keywords": 5, "columns": 5, "owner": 8, "description": 8}
_WEIGHT = {"active": 1.0, "new": 1.0, "stale": 0.6, "unreachable": 0.3}

# Stemmers that the engine has; a text without a known language is taken for English.
LANGUAGES = {
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ro": "Romanian",
    "sv": "Swedish",
}
_WORD_MAX = 255  # bytes
_SORT_KEY_MAX = 200  # characters of a title by which hits are sorted
_PREFIX_FIELDS = ("title", "name", "keywords", "columns")  # where the beginning of a word is completed
_TIE_BITS = 29  # beside seconds until the year 2514 in one signed number
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class IndexHits:
    """Ids of one page of hits in their order, how many hits there are, and facet counts."""

    ids: tuple[str, ...]
    total: int
    facets: dict[str, list[tuple[str, int]]]


@dataclass(slots=True)
class _Copy:
    """One index on disk, and the change that it has come to."""

    folder: Path
    engine: tantivy.Index
    at: tuple[int, str]

    @property
    def is_there(self) -> bool:
        return (self.folder / "meta.json").exists()


class Index:
    """The search index in `directory`. `catch_up`, `rebuild` and `search` may run in any thread.

    `problem` says why the index does not contain the last changes; empty if it does.
    """

    def __init__(self, directory: Path, store: CatalogueStore) -> None:
        self._directory, self._store = directory, store
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._analyzers = dict(_analyzers())
        self._schema = _schema()
        self.problem, self._failed = "", 0
        self._live = self._open_existing() or self._create()
        self._go_live(self._live)

    def rebuild(self) -> int:
        """Rebuild the index from the database. Returns the number of entries read. The old index answers meanwhile."""
        with self._building:
            return self._rebuild()

    def catch_up(self) -> int:
        """Apply all new changes. Returns their number.

        A lost index is rebuilt. During a rebuild other callers return 0 at once, the old index takes no changes, and
        `problem` gives the reason.
        """
        with self._lock:
            self.problem = self._find_problem()
            if not self.problem:
                return self._apply_changes()
        if not self._building.acquire(blocking=False):
            return 0
        try:
            logger("index").warning("index_rebuilt", reason=self.problem)
            return self._rebuild()
        finally:
            self._building.release()

    def _find_problem(self) -> str:
        """Why the index must be rebuilt; empty if it need not."""
        if not (self._live.is_there and (self._directory / "hanse.json").exists()):
            return "the files of the search index are gone; it is being rebuilt"
        if self._live.at[0] > self._store.read_now(lambda tx: tx.entries.last_seq()):
            return "the database was restored to an earlier day; the search index is being built anew"
        if self._failed >= _FAILED_MAX:
            return "the search index takes no more changes; it is being built anew"
        return ""

    def _apply_changes(self) -> int:
        try:
            applied = self._follow(self._live)
        except (OSError, ValueError):  # what the engine raises
            self._failed += 1
            self.problem = "the search index did not take the last changes; the log says why"
            raise
        self._failed = 0
        return applied

    def _rebuild(self) -> int:
        draft = self._create()
        try:
            applied = self._follow(draft)
            with self._lock:
                applied += self._follow(draft)  # what changed meanwhile
                self._go_live(draft)
        except BaseException:
            shutil.rmtree(draft.folder, ignore_errors=True)
            raise
        self.problem, self._failed = "", 0
        return applied

    def _follow(self, copy: _Copy) -> int:
        applied = 0
        while (batch := self._store.read_now(partial(_changes, at=copy.at)))[1]:
            self._apply(copy, *batch)
            applied += len(batch[1])
        return applied

    def _apply(self, copy: _Copy, position: tuple[int, str], changes: list[tuple[str, list[EntryView]]]) -> None:
        writer, waiting = copy.engine.writer(_HEAP, 1), 0
        for entry_id, cards in changes:
            writer.delete_documents_by_term("id", entry_id)
            if cards:
                texts, names = self._texts(cards[0], of=len(cards)), self._names(cards[0], of=len(cards))
                size = sum(map(len, chain(texts.values(), *names.values())))
            for card in cards:
                writer.add_document(_document(card, texts, names))
                waiting += size
                if waiting > _WAITING_MAX:
                    writer.commit()
                    waiting = 0
        writer.commit()
        writer.wait_merging_threads()
        copy.engine.reload()
        copy.at = position
        if copy is self._live:
            self._write_position(copy)

    def search(self, question: SearchQuery, viewer: Viewer) -> IndexHits:
        """One page of what the viewer may see of the answer, with counts for every facet."""
        searcher = self._live.engine.searcher()
        query = self._query(question, viewer)
        offset = (question.page - 1) * question.size
        order = _ORDERS[question.order]
        result: Any = searcher.search(query, question.size, offset=offset, **order)  # its stub leaves `count` out
        return IndexHits(_ids(searcher, result), result.count, self._counts(searcher, question, viewer, query))

    def grouped(self, question: SearchQuery, keys: Iterable[str], viewer: Viewer) -> tuple[str, ...]:
        """Ids of the first GROUPED_MAX hits, over all pages, that have one of these keys of groups."""
        query = _all([self._query(question, viewer), self._any("group", keys)])
        searcher = self._live.engine.searcher()
        return _ids(searcher, searcher.search(query, GROUPED_MAX, **_ORDERS[question.order]))

    def begins(self, question: SearchQuery, beginning: str, viewer: Viewer, *, limit: int) -> tuple[str, ...]:
        """Ids of the best hits that also have a word with this beginning. None for a beginning without letters."""
        folded = next(iter(self.words_in(beginning)), "")
        if not folded:
            return ()
        prefix = partial(tantivy.Query.fuzzy_term_query, self._schema, text=folded, distance=0, prefix=True)
        any_field = [(tantivy.Occur.Should, prefix(field_name=field)) for field in _PREFIX_FIELDS]
        query = _all([self._query(question, viewer), tantivy.Query.boolean_query(any_field)])
        searcher = self._live.engine.searcher()
        return _ids(searcher, searcher.search(query, limit, **_ORDERS["relevance"]))

    def count(self, question: SearchQuery, viewer: Viewer) -> int:
        """The number of hits for the viewer, without reading them."""
        return count_hits(self._live.engine.searcher(), self._query(question, viewer))

    def owners(self, viewer: Viewer) -> dict[str, int]:
        """How many datasets of each owner the viewer may see."""
        query = self._query(SearchQuery(), viewer)
        wanted = {"owners": build_terms("participant", _OWNERS_MAX)}
        answer: dict[str, Any] = self._live.engine.searcher().aggregate(query, wanted)
        return {str(bucket["key"]): int(bucket["doc_count"]) for bucket in answer["owners"]["buckets"]}

    def words_in(self, text: str) -> list[str]:
        """The words of a text as the index knows them."""
        return list(self._analyzers["folded"].analyze(text))

    def stem(self, word: str, language: str = "en") -> str:
        """A word's stem, for highlighting."""
        return next(iter(self._analyzers[f"stem_{language}"].analyze(word)), word)

    def _stems(self, text: str, language: str) -> str:
        """The stems of a text, in its own language; one field holds those of all languages."""
        return " ".join(self._analyzers[f"stem_{language_of(language)}"].analyze(text))

    def _counts(
        self, searcher: tantivy.Searcher, question: SearchQuery, viewer: Viewer, query: tantivy.Query
    ) -> dict[str, list[tuple[str, int]]]:
        """Facet counts. A facet with a filter is counted without its filter, so that its other values show."""
        counts = count_facets(searcher, query, [name for name in FACETS if name not in question.filters])
        for name, values in question.filters.items():
            own = self._query(question.without(name), viewer)
            counts |= count_facets(searcher, own, [name])
            for value in values:
                if value not in dict(counts[name]):  # chosen, and not of the largest
                    both = _all([own, self._any(f"facet_{name}", [value])])
                    counts[name].append((value, count_hits(searcher, both)))
        return counts

    # -- queries

    def _query(self, question: SearchQuery, viewer: Viewer) -> tantivy.Query:
        parts = [self._audience(viewer)]
        parts += [self._any("facet_" + name, values) for name, values in question.filters.items()]
        parts += [self._column(column) for column in question.columns]
        if question.words:
            parts.append(self._words(question.words))
        return _all(parts)

    def _words(self, text: str) -> tantivy.Query:
        """All words of a text, or the dataset with that id; a text that is longer than words may be is an id. Nothing
        fits a text of no words, or a word that is longer than the index has any: passed over, it would find what it was
        to leave out."""
        words, own = dict.fromkeys(self.words_in(text)), self._term("id", text)
        if not words or len(text) > TEXT_MAX or any(len(word.encode()) > _WORD_MAX for word in _WORD.findall(text)):
            return own
        found = _all(map(self._word, words))
        return own.or_should_match(found)

    def _audience(self, viewer: Viewer) -> tantivy.Query:
        """The viewer's own rendering where there is one, else the one for its kind. Scores are not touched."""
        views = views_of(viewer)
        shown = self._any("view", views)
        if viewer.kind == MEMBERS:
            own = self._term("view", viewer.id)
            general = tantivy.Query.boolean_query(
                [
                    (tantivy.Occur.Must, self._term("view", MEMBERS)),
                    (tantivy.Occur.MustNot, self._term("hidden_from", viewer.id)),
                ]
            )
            shown = own.or_should_match(general)
        return tantivy.Query.const_score_query(shown, 0.0)

    def _any(self, field: str, values: Iterable[str]) -> tantivy.Query:
        found = tantivy.Query.term_set_query(self._schema, field, list(values))
        return tantivy.Query.const_score_query(found, 0.0)

    def _term(self, field: str, value: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, value, "basic")

    def _column(self, name: str) -> tantivy.Query:
        """A column by its exact name, by its letters (`bloodPressure` is `blood_pressure`), or one whose name has the
        words asked for side by side."""
        query, words = tantivy.Query, self.words_in(seams(name))
        found = [query.boost_query(self._term("column_exact", name.lower()), 4.0)]
        if words:
            found.append(self._term("column_exact", "".join(words)))
            together = query.phrase_query(self._schema, "columns", list(words)) if len(words) > 1 else None
            found.append(together or self._term("columns", words[0]))
        return query.boolean_query([(tantivy.Occur.Should, one) for one in found])

    def _word(self, word: str) -> tantivy.Query:
        """A word anywhere: as it is, by its stem, as a part of one longer word, or with one letter wrong."""
        query, fuzzy = tantivy.Query, tantivy.Query.fuzzy_term_query
        found = [query.boost_query(self._term(field, word), boost) for field, boost in _BOOSTS.items()]
        for stem in sorted({self.stem(word, language) for language in LANGUAGES}):
            found += [query.boost_query(self._term(field, stem), boost) for field, boost in _STEMS.items()]
        for field, (least, boost) in _PARTS.items():
            if is_part(word, least):
                begins = fuzzy(self._schema, field, word, distance=0, prefix=True)
                found.append(query.boost_query(begins, boost))
        for field, least in _TYPOS.items():
            if len(word) >= least and not word.isnumeric():  # a number with another digit is another number
                found.append(query.boost_query(fuzzy(self._schema, field, word, distance=1), 0.2))
        return query.disjunction_max_query(found, tie_breaker=0.1)

    # -- documents

    def _texts(self, card: EntryView, *, of: int) -> dict[str, str]:
        """What all `of` renderings of an entry have; of each long text as much as they may have together."""
        entry, most = card.entry, _TEXTS_MAX // of
        name, owner = spread(entry.name), f"{card.owner} {card.owner_title}"
        columns = " ".join(spread(column.name) for column in entry.columns)[:most]
        keywords, description = " ".join(entry.keywords)[:most], entry.description[:most]
        near = {"title": entry.title, "name": name, "keywords": keywords}
        far = {"owner": owner, "description": description}
        return {
            "id": entry.id,
            "group": group_key(card),
            "by_title": self._sort_key(entry.title, entry.id),
            "by_owner": self._sort_key(card.owner_title, self._sort_key(entry.title, entry.id)),
            **near,
            **far,
            "labels": " ".join(THEMES.get(value, value) for value in FACETS["theme"].values(card)),
            "near_ends": self._ends("near_ends", " ".join((*near.values(), columns)), most=_ENDS_MAX // of),
            "far_ends": self._ends("far_ends", " ".join(far.values()), most=_ENDS_MAX // of),
            "title_stems": self._stems(f"{entry.title} {name}", entry.language),
            "stems": self._stems(f"{keywords} {columns} {description}"[:most], entry.language),
        }

    def _sort_key(self, text: str, then: str) -> str:
        """A text without case, accents and punctuation, and what decides between two that are alike."""
        return f"{' '.join(self.words_in(text[:_SORT_KEY_MAX]))}\t{then}"

    def _ends(self, field: str, text: str, *, most: int) -> str:
        return ends(self.words_in(text), least=_PARTS[field][0], most=most)

    def _names(self, card: EntryView, *, of: int) -> dict[str, Iterable[str]]:
        """The names of columns, one by one, that can be asked for in each of `of` renderings of an entry."""
        names = _within((column.name for column in card.entry.columns[: _COLUMNS_MAX // of]), _TEXTS_MAX // of)
        squeezed = ("".join(self.words_in(seams(name))) for name in names)
        exact = dict.fromkeys((*(name.lower() for name in names), *squeezed))
        return {"columns": [spread(name) for name in names], "column_exact": exact}

    # -- files

    def _open_existing(self) -> _Copy | None:
        """The index on disk; None if it is missing or has another layout."""
        try:
            meta = json.loads((self._directory / "hanse.json").read_text())
            folder, (seq, entry_id) = self._directory / meta["folder"], meta["at"]
            if meta["layout"] == LAYOUT and (folder / "meta.json").exists():
                return _Copy(folder, self._engine(folder, found=True), (seq, entry_id))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, cut short, or of another layout: it is derived, so it is made anew
        return None

    def _create(self) -> _Copy:
        folder = self._directory / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return _Copy(folder, self._engine(folder, found=False), _START)

    def _engine(self, folder: Path, *, found: bool) -> tantivy.Index:
        engine = tantivy.Index(self._schema, str(folder), found)
        for name, analyzer in self._analyzers.items():
            engine.register_tokenizer(name, analyzer)
        return engine

    def _go_live(self, copy: _Copy) -> None:
        """Use this index for queries from now on and delete all others."""
        self._write_position(copy)
        self._live = copy
        for path in self._directory.iterdir():
            if path.is_file() and path.name != "hanse.json":  # of a layout that had no folders
                path.unlink(missing_ok=True)
            elif path.is_dir() and path != copy.folder:
                shutil.rmtree(path, ignore_errors=True)

    def _write_position(self, copy: _Copy) -> None:
        draft = self._directory / "hanse.json.new"
        draft.write_text(json.dumps({"layout": LAYOUT, "at": copy.at, "folder": copy.folder.name}))
        draft.replace(self._directory / "hanse.json")


_ORDERS: dict[str, dict[str, Any]] = {
    "relevance": {"weight_by_field": "weight"},
    "newest": {"order_by_field": "newest"},
    "title": {"order_by_field": "by_title", "order": tantivy.Order.Asc},
    "owner": {"order_by_field": "by_owner", "order": tantivy.Order.Asc},
}


def _all(parts: Iterable[tantivy.Query]) -> tantivy.Query:
    """What all parts find."""
    return tantivy.Query.boolean_query([(tantivy.Occur.Must, part) for part in parts])


def _ids(searcher: tantivy.Searcher, result: Any) -> tuple[str, ...]:
    """The ids of the hits, in their order."""
    return tuple(str(searcher.doc(address).get_first("id")) for _, address in result.hits)


def language_of(text: str) -> str:
    """The stemmer for a language as its provider says it; English for one without a stemmer, and for none."""
    code = tag_of(text).partition("-")[0]
    return code if code in LANGUAGES else "en"


def _changes(
    tx: CatalogueTransaction, *, at: tuple[int, str]
) -> tuple[tuple[int, str], list[tuple[str, list[EntryView]]]]:
    """The next changed entries with their renderings, and the position after them."""
    rows = tx.entries.changed_after(*at, limit=_BATCH)
    position = (rows[-1][0].seq, rows[-1][0].id) if rows else at
    parties = {member.id: party_of(member) for member in tx.members.list_all()} if rows else {}
    return position, [(row.id, list_views(row, member, source, parties)) for row, member, source in rows]


def _document(card: EntryView, texts: Mapping[str, str], names: Mapping[str, Iterable[str]]) -> tantivy.Document:
    """The index document of one rendering."""
    document = tantivy.Document()
    for field, text in texts.items():
        document.add_text(field, text)
    lists: dict[str, Iterable[str]] = {"view": card.views, "hidden_from": card.hidden_from, **names}
    lists |= {f"facet_{name}": tuple(dict.fromkeys(facet.values(card))) for name, facet in FACETS.items()}
    for field, values in lists.items():
        for value in filter(None, values):
            document.add_text(field, value)
    tie = _tie(card.entry.id)
    document.add_float("weight", _WEIGHT.get(card.state, 0.3) + 0.01 * tie / 2**_TIE_BITS)
    document.add_integer("newest", int(card.modified_at) << _TIE_BITS | tie)
    return document


def _tie(entry_id: str) -> int:
    """A number from the id alone, by which hits that are otherwise alike have an order that no change of others turns:
    their places in the index do change, and pages would leave some out."""
    return int.from_bytes(hashlib.sha256(entry_id.encode()).digest()[:4]) >> (32 - _TIE_BITS)


def _within(names: Iterable[str], most: int) -> list[str]:
    """The first names that have `most` characters together."""
    found = []
    for name in names:
        if (most := most - len(name)) < 0:
            break
        found.append(name)
    return found


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    for field in ("view", "hidden_from", "column_exact", "group"):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    for name in FACETS:
        builder.add_text_field(f"facet_{name}", fast=True, tokenizer_name="raw", index_option="basic")
    for field in _BOOSTS:
        option = "position" if field == "columns" else "freq"
        builder.add_text_field(field, tokenizer_name="folded", index_option=option)
    for field in _STEMS:
        builder.add_text_field(field, tokenizer_name="words", index_option="freq")
    for field in _PARTS:
        builder.add_text_field(field, tokenizer_name="words", index_option="basic")
    for field in ("by_title", "by_owner"):
        builder.add_text_field(field, fast=True, tokenizer_name="raw", index_option="basic")
    builder.add_float_field("weight", fast=True)
    builder.add_integer_field("newest", fast=True)
    return builder.build()


def _analyzers() -> Iterator[tuple[str, Any]]:
    filters = tantivy.Filter

    def folded(tokenizer: Any) -> Any:
        analyzer = tantivy.TextAnalyzerBuilder(tokenizer).filter(filters.remove_long(_WORD_MAX))
        return analyzer.filter(filters.lowercase()).filter(filters.ascii_fold())

    yield "folded", folded(tantivy.Tokenizer.simple()).build()
    yield "words", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
    for code, language in LANGUAGES.items():
        yield f"stem_{code}", folded(tantivy.Tokenizer.simple()).filter(filters.stemmer(language)).build()
