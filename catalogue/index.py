"""Full text and facets over all entries: a tantivy index that is derived from the database and rebuilt at any time.

One document per rendering of an entry (catalogue.cards); every query is ANDed with the viewer's views. The index
remembers the change number it has come to; one with another layout or from the future of its database is built anew.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tantivy

from catalogue.access import MEMBERS, Viewer
from catalogue.cards import cards_of, views_of
from catalogue.facets import FACETS, THEMES, Card
from catalogue.question import Question
from catalogue.store import Store, Transaction

LAYOUT = 5  # raise it when documents are made differently
_HEAP = 15_000_000  # the least that tantivy takes; one thread
_BATCH = 500
# Of one entry, over all its renderings: who names a hundred members is found by the beginning of a long description, or
# everybody else's entries would wait for it.
_TEXTS_MAX, _COLUMNS_MAX = 1_000_000, 50_000
_WAITING_MAX = 8_000_000  # characters of documents that wait for the engine's thread, which it keeps in memory
_OWNERS_MAX = 10_000
_START = (0, "")  # before the first change
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# How much a word found in a field counts.
_BOOSTS = {
    "title": 8.0, "name": 8.0, "keywords": 4.0, "columns": 3.0, "owner": 3.0, "labels": 2.0, "description": 1.0,
}  # fmt: skip
_STEMS = {"title_stems": 6.0, "stems": 0.8}
_FUZZY = ("title", "name", "keywords", "columns")
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
_WORD = re.compile(r"[^\W_]+")
_LONG_CODES = {
    "DAN": "da",
    "DEU": "de",
    "ELL": "el",
    "ENG": "en",
    "SPA": "es",
    "FIN": "fi",
    "FRA": "fr",
    "HUN": "hu",
    "ITA": "it",
    "NLD": "nl",
    "POR": "pt",
    "RON": "ro",
    "SWE": "sv",
}


@dataclass(frozen=True, slots=True)
class Found:
    """Ids of one page of hits in their order, how many hits there are, and facet counts."""

    ids: tuple[str, ...]
    total: int
    facets: dict[str, list[tuple[str, int]]]


class Index:
    """The search index in `directory`. `catch_up` and `search` may run in any thread."""

    def __init__(self, directory: Path, store: Store) -> None:
        self._directory, self._store = directory, store
        self._lock = threading.Lock()
        self._analyzers = dict(_analyzers())
        self._schema = _schema()
        self._index, self._at = self._open()

    def rebuild(self) -> int:
        """Build the index anew from the database; how many entries were read."""
        with self._lock:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._index, self._at = self._create(), _START
        return self.catch_up()

    def catch_up(self) -> int:
        """Apply every change since the last one applied; how many there were."""
        with self._lock:
            if self._at[0] > self._store.read_now(lambda tx: tx.entries.last_seq()):
                self._index, self._at = self._create(), _START  # the database was restored to an earlier day
            applied = 0
            while (batch := self._store.read_now(self._changes))[1]:
                self._apply(*batch)
                applied += len(batch[1])
            return applied

    def _changes(self, tx: Transaction) -> tuple[tuple[int, str], list[tuple[str, list[Card]]]]:
        """The next changed entries with their renderings, and the position after them."""
        rows = tx.entries.changed_after(*self._at, limit=_BATCH)
        position = (rows[-1][0].seq, rows[-1][0].id) if rows else self._at
        return position, [(row.id, cards_of(row, member, source)) for row, member, source in rows]

    def _apply(self, position: tuple[int, str], changes: list[tuple[str, list[Card]]]) -> None:
        writer, waiting = self._index.writer(_HEAP, 1), 0
        for entry_id, cards in changes:
            writer.delete_documents_by_term("id", entry_id)
            if cards:
                texts = self._texts(cards[0], most=_TEXTS_MAX // len(cards))
            for card in cards:
                writer.add_document(self._document(card, texts, most=_COLUMNS_MAX // len(cards)))
                waiting += sum(map(len, texts.values()))
                if waiting > _WAITING_MAX:
                    writer.commit()
                    waiting = 0
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()
        self._at = position
        self._remember()

    def search(self, question: Question, viewer: Viewer) -> Found:
        """One page of what the viewer may see of the answer, with counts for every facet."""
        searcher = self._index.searcher()
        query = self._query(question, viewer)
        order: dict[str, Any] = (
            {"order_by_field": "modified"} if question.is_browsing else {"weight_by_field": "weight"}
        )
        offset = (question.page - 1) * question.size
        result: Any = searcher.search(query, question.size, offset=offset, **order)  # its stub leaves `count` out
        ids = tuple(str(searcher.doc(address).get_first("id")) for _, address in result.hits)
        return Found(ids, result.count, self._counts(searcher, question, viewer, query))

    def owners(self, viewer: Viewer) -> dict[str, int]:
        """How many datasets of each owner the viewer may see."""
        query = self._query(Question(), viewer)
        answer: dict[str, Any] = self._index.searcher().aggregate(query, {"owners": _terms("participant", _OWNERS_MAX)})
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
        self, searcher: tantivy.Searcher, question: Question, viewer: Viewer, query: tantivy.Query
    ) -> dict[str, list[tuple[str, int]]]:
        """Facet counts; a facet that is filtered by is counted as if it were not, so that its alternatives show."""
        wanted = {name: _terms(name, facet.shown) for name, facet in FACETS.items()}
        free = {name: terms for name, terms in wanted.items() if name not in question.filters}
        answer: dict[str, Any] = searcher.aggregate(query, free) if free else {}
        for name in question.filters:
            own = self._query(question.without(name), viewer)
            answer |= searcher.aggregate(own, {name: wanted[name]})
        counts = {
            name: [(str(bucket["key"]), int(bucket["doc_count"])) for bucket in answer[name]["buckets"]]
            for name in FACETS
        }
        for name, values in question.filters.items():
            others = [value for value in values if value not in dict(counts[name])]  # chosen, and not of the largest
            counts[name] += [(value, self._number(searcher, question, viewer, name, value)) for value in others]
        return counts

    def _number(self, searcher: tantivy.Searcher, question: Question, viewer: Viewer, facet: str, value: str) -> int:
        """How many hits have one value of a facet."""
        own = self._query(question.without(facet), viewer)
        both = [(tantivy.Occur.Must, own), (tantivy.Occur.Must, self._any(f"facet_{facet}", [value]))]
        result: Any = searcher.search(tantivy.Query.boolean_query(both), 1)  # its stub leaves `count` out
        return int(result.count)

    # -- queries

    def _query(self, question: Question, viewer: Viewer) -> tantivy.Query:
        parts = [self._audience(viewer)]
        parts += [self._any("facet_" + name, values) for name, values in question.filters.items()]
        parts += [self._column(column) for column in question.columns]
        if question.words:
            parts.append(self._words(question.words))
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, part) for part in parts])

    def _words(self, text: str) -> tantivy.Query:
        """All words of a text, or the dataset with that id. Nothing fits a text of no words, or a word that is longer
        than the index has any: passed over, it would find what it was to leave out."""
        words, own = self.words_in(text), self._term("id", text)
        if not words or any(len(word.encode()) > _WORD_MAX for word in _WORD.findall(text)):
            return own
        found = tantivy.Query.boolean_query([(tantivy.Occur.Must, self._word(word)) for word in words])
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
        """A column by its exact name, or one whose name has all the words asked for."""
        exact = tantivy.Query.boost_query(self._term("column_exact", name.lower()), 4.0)
        words = self.words_in(_spread(name))
        if not words:
            return exact
        return exact.or_should_match(
            tantivy.Query.boolean_query([(tantivy.Occur.Must, self._term("columns", word)) for word in words])
        )

    def _word(self, word: str) -> tantivy.Query:
        """A word anywhere: as it is, by its stem, as a part of a longer word, or with one letter wrong."""
        query = tantivy.Query
        found = [query.boost_query(self._term(field, word), boost) for field, boost in _BOOSTS.items()]
        for stem in sorted({self.stem(word, language) for language in LANGUAGES}):
            found += [query.boost_query(self._term(field, stem), boost) for field, boost in _STEMS.items()]
        if len(word) >= 4:
            grams = [word[start : start + 3] for start in range(len(word) - 2)]
            parts = query.boolean_query([(tantivy.Occur.Must, self._term("grams", gram)) for gram in grams])
            found.append(query.boost_query(parts, 0.1))
        if len(word) >= 5:
            fuzzy = (query.fuzzy_term_query(self._schema, field, word, distance=1) for field in _FUZZY)
            found += [query.boost_query(one, 0.2) for one in fuzzy]
        return query.disjunction_max_query(found, tie_breaker=0.1)

    # -- documents

    def _texts(self, card: Card, *, most: int) -> dict[str, str]:
        """What all renderings of an entry have, of each long text so many characters."""
        entry = card.entry
        columns = " ".join(_spread(column.name) for column in entry.columns)[:most]
        keywords = " ".join(entry.keywords)[:most]
        name = _spread(entry.name)
        return {
            "id": entry.id,
            "title": entry.title,
            "name": name,
            "keywords": keywords,
            "columns": columns,
            "description": entry.description[:most],
            "owner": f"{card.owner} {card.owner_title}",
            "labels": " ".join(THEMES.get(value, value) for value in FACETS["theme"].values(card)),
            "grams": f"{entry.title} {name} {keywords} {columns}"[:20_000],
            "title_stems": self._stems(f"{entry.title} {name}", entry.language),
            "stems": self._stems(f"{keywords} {columns} {entry.description}"[:most], entry.language),
        }

    def _document(self, card: Card, texts: Mapping[str, str], *, most: int) -> tantivy.Document:
        """`most` names of columns can be asked for whole."""
        entry = card.entry
        document = tantivy.Document()
        for field, text in texts.items():
            document.add_text(field, text)
        lists = {"view": card.views, "hidden_from": card.hidden_from}
        lists["column_exact"] = tuple(dict.fromkeys(column.name.lower() for column in entry.columns[:most]))
        lists |= {f"facet_{name}": tuple(dict.fromkeys(facet.values(card))) for name, facet in FACETS.items()}
        for field, values in lists.items():
            for value in filter(None, values):
                document.add_text(field, value)
        document.add_float("weight", _WEIGHT.get(card.state, 0.3))
        document.add_integer("modified", int(card.modified_at))
        return document

    # -- files

    def _open(self) -> tuple[tantivy.Index, tuple[int, str]]:
        """The index on disk where it has our layout, else an empty one."""
        try:
            meta = json.loads((self._directory / "hanse.json").read_text())
            if meta["layout"] == LAYOUT:
                seq, entry_id = meta["at"]
                return self._prepared(tantivy.Index(self._schema, str(self._directory), True)), (seq, entry_id)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, cut short, or of another layout: it is derived, so it is made anew
        return self._create(), _START

    def _create(self) -> tantivy.Index:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        return self._prepared(tantivy.Index(self._schema, str(self._directory), False))

    def _prepared(self, index: tantivy.Index) -> tantivy.Index:
        for name, analyzer in self._analyzers.items():
            index.register_tokenizer(name, analyzer)
        return index

    def _remember(self) -> None:
        draft = self._directory / "hanse.json.new"
        draft.write_text(json.dumps({"layout": LAYOUT, "at": self._at}))
        draft.replace(self._directory / "hanse.json")


def language_of(text: str) -> str:
    """`de`, `de-AT`, `DEU` or the EU's IRI of it → `de`; a language without a stemmer is handled as English."""
    code = text.rpartition("/")[2]
    short = _LONG_CODES.get(code.upper(), code[:2].lower())
    return short if short in LANGUAGES else "en"


def _spread(name: str) -> str:
    """`glucoseMgDl`, `glucose_mg_dl` → words, and the name as it is."""
    split = _CAMEL.sub(" ", name).replace("_", " ")
    return name if split == name else f"{split} {name}"


def _terms(name: str, size: int) -> dict[str, Any]:
    return {"terms": {"field": f"facet_{name}", "size": size}}


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    for field in ("view", "hidden_from", "column_exact"):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    for name in FACETS:
        builder.add_text_field(f"facet_{name}", fast=True, tokenizer_name="raw", index_option="basic")
    for field in _BOOSTS:
        builder.add_text_field(field, tokenizer_name="folded", index_option="freq")
    for field in _STEMS:
        builder.add_text_field(field, tokenizer_name="words", index_option="freq")
    builder.add_text_field("grams", tokenizer_name="grams", index_option="basic")
    builder.add_float_field("weight", fast=True)
    builder.add_integer_field("modified", fast=True)
    return builder.build()


def _analyzers() -> Iterator[tuple[str, Any]]:
    filters = tantivy.Filter

    def folded(tokenizer: Any) -> Any:
        analyzer = tantivy.TextAnalyzerBuilder(tokenizer).filter(filters.remove_long(_WORD_MAX))
        return analyzer.filter(filters.lowercase()).filter(filters.ascii_fold())

    yield "folded", folded(tantivy.Tokenizer.simple()).build()
    yield "words", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
    yield "grams", folded(tantivy.Tokenizer.ngram(3, 3)).build()
    for code, language in LANGUAGES.items():
        yield f"stem_{code}", folded(tantivy.Tokenizer.simple()).filter(filters.stemmer(language)).build()
