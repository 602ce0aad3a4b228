"""What a space finds: lists that a prompt shows with one line an entry, and a notebook as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hanse.notebook.html_view import ROWS_MAX, clip, facts_table, format_count, list_names, rows_table

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A dataset that the catalogue found. `raw` is the catalogue's whole answer about it."""

    path: str  # participant/dataset: what `agree` takes
    name: str
    participant: str
    title: str
    description: str
    columns: tuple[str, ...]
    sentences: tuple[str, ...]  # the offers in plain words
    raw: Mapping[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        """Show name, title and size, not the terms: `sentences` has them."""
        title = f" {clip(self.title)!r}" if self.title else ""
        size = f"{format_count(self._columns, 'column')}, {format_count(self._offers, 'offer')}"
        return f"<Entry {clip(self.path)}{title}, {size}>"

    def _repr_html_(self) -> str:
        """Show it as a small table; of the terms only how many offers there are."""
        facts = (
            ("title", self.title),
            ("about", self.description),
            ("owner", self.participant),
            ("columns", list_names(self.columns)),
            ("offers", f"{self._offers:,}"),
            ("next", f"space.agree({self.path!r}, purpose=...)"),
        )
        return facts_table(self.path, facts)

    @property
    def _columns(self) -> int:
        """How many there are: a result of a search has the first hundred only."""
        count = self.raw.get("column_count")
        return count if isinstance(count, int) else len(self.columns)

    @property
    def _offers(self) -> int:
        count, offers = self.raw.get("offer_count"), self.raw.get("offers")
        return count if isinstance(count, int) else len(offers) if isinstance(offers, list) else 0


class Found(list[T]):
    """A list that a notebook shows as a table, and a prompt as one line an entry; of a long one the first entries."""

    def __repr__(self) -> str:
        lines = [f" {clip(repr(one), 200)}" for one in self[:ROWS_MAX]]
        more = [f" and {len(self) - ROWS_MAX:,} more"] if len(self) > ROWS_MAX else []
        return "[" + ",\n".join(lines + more).removeprefix(" ") + "]"


class Entries(Found[Entry]):
    """The datasets that a search found."""

    def _repr_html_(self) -> str:
        rows = ((one.path, one.title, list_names(one.columns), one._offers) for one in self)
        return rows_table(
            format_count(len(self), "dataset"), ("dataset", "title", "columns", "offers"), rows, total=len(self)
        )


class Rows(Found[dict[str, Any]]):
    """Rows of the management API, whole; only some `shown` members of each are printed."""

    def __init__(self, rows: Iterable[dict[str, Any]], name: str, shown: Sequence[str]) -> None:
        super().__init__(rows)
        self._name, self._shown = name, tuple(shown)

    def __repr__(self) -> str:
        return repr(Found(_Shown({key: row.get(key) for key in self._shown}) for row in self))

    def _repr_html_(self) -> str:
        rows = ([row.get(key) for key in self._shown] for row in self)
        return rows_table(format_count(len(self), self._name), self._shown, rows, total=len(self))


class _Shown(dict[str, Any]):
    def __repr__(self) -> str:
        return f"<{', '.join(f'{key} {clip(value)}' for key, value in self.items() if value)}>"


def read_entry(hit: Mapping[str, Any]) -> Entry:
    offers = [offer for offer in hit.get("offers", []) if isinstance(offer, dict)]
    sentences = [str(text) for offer in offers for text in offer.get("sentences", [])]
    participant, name = str(hit.get("participant", "")), str(hit.get("name", ""))
    return Entry(
        path=str(hit.get("path") or f"{participant}/{name}"),
        name=name,
        participant=participant,
        title=str(hit.get("title", "")),
        description=str(hit.get("description", "")),
        columns=tuple(map(str, hit.get("columns", []))),
        sentences=tuple(sentences),
        raw=hit,
    )
