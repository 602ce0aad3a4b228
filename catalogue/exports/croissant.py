"""One entry as Croissant 1.1, the description that machine-learning tools read. Pure.

Data is under contract, so a reader cannot fetch it from the address given here: it is the protocol's, and a reader maps
the file to what it streamed under its agreement. The policy travels in `usageInfo`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

from catalogue.crawl.entry import EntryColumn
from catalogue.crawl.languages import tag_of
from catalogue.exports import dcat, graph
from catalogue.exports.dcat import About, iri_of
from catalogue.search.facets import EntryView

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
MEDIA_TYPE = f'application/ld+json; profile="{CONFORMS_TO}"'
CONTEXT: dict[str, Any] = {
    "@vocab": "https://schema.org/",
    **{
        term: f"cr:{term}"
        for term in (
            "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileProperty",
            "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
            "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
            "separator", "source", "subField", "transform",
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}  # fmt: skip

# A column's type, as engines write it, to Croissant's; the first that fits.
_TYPES = (
    (r"u?(tiny|small|big|huge)?int(eger)?\d*|u?int\d+|long|short|byte", "sc:Integer"),
    (r"(half|bfloat16|float\d*|double|real|numeric|decimal\d*).*", "sc:Float"),
    (r"bool(ean)?", "sc:Boolean"),
    (r"date(32|64)?(\[.*\])?", "sc:Date"),
    (r"(timestamp|datetime).*", "sc:DateTime"),
)


def croissant(card: EntryView, about: About) -> dict[str, Any]:
    """The description, with the file object that a reader maps to what it streamed."""
    entry, here = card.entry, iri_of(card.entry.id, about.root)
    made: dict[str, Any] = {
        "@context": {"@language": tag_of(entry.language) or None, **CONTEXT},  # mlcroissant wants it said, if of none
        "@type": "sc:Dataset",
        "@id": here,
        "conformsTo": CONFORMS_TO,
        "name": entry.title,
        "description": entry.description or entry.title,
        "url": here,
        "identifier": entry.id,
        "license": entry.license or f"{here}#terms",
        "creator": _organisation(entry.participant, card.owner_title),
        "publisher": _organisation(entry.participant, card.owner_title),
        "datePublished": _day(card.first_seen),
        "dateModified": _day(card.modified_at),
        "keywords": list(entry.keywords),
        "isLiveDataset": True,
        "distribution": [_file(card, here)],
        "usageInfo": [graph.jsonld_node(offer) for offer in dcat.policies(card, about)],
        "recordSet": [_records(entry.columns)] if entry.columns else [],
    }
    return {key: value for key, value in made.items() if value not in ([], "")}


def data_type(text: str) -> tuple[str, bool]:
    """Croissant's type for a column's, and whether it is a list of them."""
    plain = text.strip().lower()
    listed = re.fullmatch(r"(?:large_)?list<(?:\w+: )?(.*)>|(.*)\[\]", plain)
    if listed:
        return data_type(listed[1] or listed[2] or "")[0], True
    return next((kind for pattern, kind in _TYPES if re.fullmatch(pattern, plain)), "sc:Text"), False


def _organisation(did: str, name: str) -> dict[str, str]:
    return {"@type": "sc:Organization", "@id": did, "name": name}


def _file(card: EntryView, here: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": "data",
        "name": card.entry.name,
        "description": f"{card.owner}/{card.entry.name} (Dataspace Protocol)",  # no words: the context says a language
        "contentUrl": card.entry.endpoint or here,
        "encodingFormat": "application/x-parquet",
    }


def _records(columns: Sequence[EntryColumn]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "field": [_field(column, key) for column, key in zip(columns, _keys(columns), strict=True)],
    }


def _keys(columns: Sequence[EntryColumn]) -> list[str]:
    """A key for each column: its name, with a number where a column before it has that."""
    keys: dict[str, None] = {}
    names = {column.name for column in columns}
    others = {name: _numbered(name, names) for name in names}
    for column in columns:
        keys[next(others[column.name]) if column.name in keys else column.name] = None
    return list(keys)


def _numbered(name: str, taken: Container[str]) -> Iterator[str]:
    return (key for number in count(2) if (key := f"{name}-{number}") not in taken)


def _field(column: EntryColumn, key: str) -> dict[str, Any]:
    kind, is_list = data_type(column.type)
    made: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"rows/{key}",
        "name": column.name,
        "description": column.description or column.name,
        "dataType": kind,
        "source": {"fileObject": {"@id": "data"}, "extract": {"column": column.name}},
    }
    return {**made, "isArray": True, "arrayShape": "-1"} if is_list else made


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
