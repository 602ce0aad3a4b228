"""One dataset as we index it: read leniently from what a connector sent, and normalised. Pure.

Knows neither the database nor the network. Everything foreign is cut to size and cleaned of characters that hide or
reorder text; what is missing is left empty, and only what the protocol demands is demanded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from catalogue.crawl import offer_terms
from catalogue.crawl.languages import tag_of
from catalogue.crawl.offer_terms import CatalogueOffer
from catalogue.crawl.sanitize import clean
from connector.errors import MessageInvalid
from connector.urls import read_base

READER = 6  # version of this reading; entries read by another version are read again from their raw text

_TITLE_MAX, _TEXT_MAX, _WORD_MAX = 300, 20_000, 100
_KEYWORDS_MAX, _THEMES_MAX, _OFFERS_MAX, _COLUMNS_MAX = 50, 20, 100, 10_000
_ID_BYTES_MAX = 1024
_LISTS = ("keywords", "themes", "languages", "formats", "audience")

_DCT = "http://purl.org/dc/terms/"
_DCAT = "http://www.w3.org/ns/dcat#"
_HANSE = "https://w3id.org/hanse/"


@dataclass(frozen=True, slots=True)
class EntryColumn:
    """One column as its provider describes it."""

    name: str
    type: str = ""
    description: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One dataset, normalised. `participant` is the provider's DID."""

    id: str
    participant: str
    name: str
    title: str
    description: str
    keywords: tuple[str, ...]
    themes: tuple[str, ...]
    license: str
    language: str  # of title, description and keywords, by its tag if it has one; empty for none or several
    languages: tuple[str, ...] = ()  # of the dataset, as they are said
    columns: tuple[EntryColumn, ...]
    offers: tuple[CatalogueOffer, ...]
    formats: tuple[str, ...]
    endpoint: str  # base of the protocol, where negotiations about it go
    column_count: int = 0  # of all, where its provider lists the first of them only
    audience: tuple[str, ...]  # who may know of it beyond those whom an offer is open to: public, members, or DIDs

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON values, shallow where it can be: asdict's deep copies cost most of a visit."""
        content = {name: getattr(self, name) for name in self.__slots__}
        for name in _LISTS:
            content[name] = list(content[name])
        return {
            **content,
            "columns": [
                {"name": column.name, "type": column.type, "description": column.description, "unit": column.unit}
                for column in self.columns
            ],
            "offers": [offer.to_json() for offer in self.offers],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CatalogueEntry:
        """An entry from what `to_json` made of it."""
        lists = {key: tuple(content.get(key, ())) for key in _LISTS}
        return cls(
            **{
                **content,
                **lists,
                "columns": tuple(EntryColumn(**column) for column in content["columns"]),
                "offers": tuple(CatalogueOffer.from_json(offer) for offer in content["offers"]),
            }
        )


def hash_content(content: Mapping[str, Any]) -> str:
    """One digest per content of an entry, for noticing a change."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_dataset(raw: object, *, participant: str) -> CatalogueEntry:
    """A dataset of a Dataspace Protocol catalogue. MessageInvalid says what is missing (DSP 2025-1, section 6), or that
    it is nested too deep."""
    try:
        return _read(raw, participant=participant)
    except RecursionError:
        raise too_deep() from None


def too_deep() -> MessageInvalid:
    """The error for a dataset that is nested too deep."""
    return MessageInvalid("expected a dataset that is nested less deep; its provider must write it flatter")


def _read(raw: object, *, participant: str) -> CatalogueEntry:
    if not isinstance(raw, dict):
        raise MessageInvalid(f"expected a dataset object, came {type(raw).__name__}")
    dataset_id = read_id(raw)
    policies = [policy for policy in _as_list(raw.get("hasPolicy")) if isinstance(policy, dict)]
    distributions = [one for one in _as_list(raw.get("distribution")) if isinstance(one, dict)]
    if not policies or not distributions:
        raise MessageInvalid("expected a dataset with at least one hasPolicy and one distribution")
    name = (dataset_id.rstrip(":/") or dataset_id).rpartition(":")[2].rpartition("/")[2] or dataset_id
    return CatalogueEntry(
        id=dataset_id,
        participant=participant,
        name=clean(name, _WORD_MAX),
        title=_read_text(raw, "title", _TITLE_MAX) or clean(name, _TITLE_MAX),
        description=_read_text(raw, "description", _TEXT_MAX),
        keywords=_clean_words(_read_values(raw, _DCAT, "keyword"), _KEYWORDS_MAX),
        themes=_clean_words(_read_values(raw, _DCAT, "theme"), _THEMES_MAX, size=500),
        license=_read_text(raw, "license", 500),
        language=_read_language(raw),
        languages=_clean_words(_read_values(raw, _DCT, "language"), 20, size=200),
        columns=(columns := tuple(_read_columns(raw))),
        column_count=count if (count := _read_column_count(raw)) > len(columns) else 0,
        offers=tuple(offer_terms.read_offer(policy) for policy in policies[:_OFFERS_MAX]),
        formats=_clean_words((_to_text(one.get("format") or one.get("dct:format")) for one in distributions), 20),
        endpoint=_find_endpoint(distributions),
        audience=_clean_words(map(_to_text, _as_list(_get_hanse_term(raw, "audience"))), 100, size=1024),
    )


def read_id(raw: Mapping[str, Any]) -> str:
    """The dataset's id. Raises MessageInvalid if it cannot be stored or linked to."""
    found = raw.get("@id", raw.get("id"))
    fits = isinstance(found, str) and 0 < len(found.encode("utf-8", "replace")) <= _ID_BYTES_MAX
    if not isinstance(found, str) or not fits or clean(found, _ID_BYTES_MAX) != found or found.split() != [found]:
        raise MessageInvalid(f"expected an @id without spaces, at most {_ID_BYTES_MAX} bytes, came {str(found)[:80]!r}")
    if found in (".", ".."):  # however written, clients go to the folder instead: to another page, or nowhere
        raise MessageInvalid(
            f"expected an @id that can stand in an address, came {found!r}; its provider must rename it"
        )
    return found


def _read_columns(raw: Mapping[str, Any]) -> Iterable[EntryColumn]:
    found = _get_hanse_term(raw, "columns")
    for column in _as_list(found)[:_COLUMNS_MAX]:
        if isinstance(column, str):
            column = {"name": column}
        if not isinstance(column, dict):
            continue
        fields = {
            field: clean(_to_text(_get_hanse_term(column, field)), limit)
            for field, limit in (("name", 200), ("type", 200), ("description", 1000), ("unit", 60))
        }
        if fields["name"]:
            yield EntryColumn(**fields)


def _read_column_count(raw: Mapping[str, Any]) -> int:
    """The number of columns that the provider states; 0 if it does not."""
    text = _to_text(_get_hanse_term(raw, "columnCount"))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _find_endpoint(distributions: list[dict[str, Any]]) -> str:
    for one in distributions:
        for service in _as_list(one.get("accessService")):
            address = service.get("endpointURL") if isinstance(service, dict) else None
            if isinstance(address, str) and _is_base(address):
                return address
    return ""


def _is_base(address: str) -> bool:
    try:
        return bool(read_base(address))
    except ValueError:
        return False


def _read_text(raw: Mapping[str, Any], term: str, limit: int) -> str:
    values = _read_values(raw, _DCT, term)
    return clean(values[0], limit) if values else ""


def _read_language(raw: Mapping[str, Any]) -> str:
    """What the texts say that they are in, and where none says anything, what their dataset says; one language or
    nothing. A text that says nothing is in that of the others, unless its dataset says only other ones."""
    texts = ((_DCT, "title"), (_DCT, "description"), (_DCAT, "keyword"))
    values = [
        value for space, term in texts for value in _as_list(_get_term(raw, space, term)) if _to_text(value).strip()
    ]
    said = {str(value.get("@language") or "") if isinstance(value, dict) else "" for value in values}
    ours, others = _languages(said), _languages(_read_values(raw, _DCT, "language"))
    if ours and others and "" in said and not _codes(ours) & _codes(others):
        return ""
    found = ours or others
    return clean(found.pop(), 200) if len(found) == 1 else ""


def _languages(said: Iterable[str]) -> set[str]:
    """The distinct language tags. Several regions of one language count as the language without a region."""
    tags = {tag_of(one) or one for one in said if one.strip()}
    return tags if len(tags) == 1 else _codes(tags)


def _codes(tags: Iterable[str]) -> set[str]:
    return {tag.partition("-")[0].lower() for tag in tags}


def _clean_words(values: Iterable[str], most: int, *, size: int = _WORD_MAX) -> tuple[str, ...]:
    """Cleaned values, each once, in their order."""
    cleaned = (clean(value, size) for value in values)
    return tuple(dict.fromkeys(value for value in cleaned if value))[:most]


def _read_values(raw: Mapping[str, Any], namespace: str, term: str) -> list[str]:
    """The values of a DCAT term, however it is spelled."""
    return [text for text in (_to_text(value) for value in _as_list(_get_term(raw, namespace, term))) if text]


def _get_term(raw: Mapping[str, Any], namespace: str, term: str) -> Any:
    prefix = "dct" if namespace == _DCT else "dcat"
    return _get_first(raw, f"{prefix}:{term}", f"{namespace}{term}", f"dcterms:{term}", term)


def _get_first(node: Mapping[str, Any], *keys: str) -> Any:
    return next((node[key] for key in keys if key in node), None)


def _get_hanse_term(node: Mapping[str, Any], term: str) -> Any:
    """A member of our own namespace, in any of its versions, prefixed or bare."""
    spellings = (key for key in node if key.startswith(_HANSE) and key.endswith(f"/{term}"))
    return _get_first(node, *spellings, f"hanse:{term}", term)


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, dict) and ("@list" in value or "@set" in value):
        value = value.get("@list", value.get("@set"))
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _to_text(value: Any) -> str:
    """A JSON-LD value as text."""
    if isinstance(value, dict):
        value = value.get("@value", value.get("@id", ""))
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
