"""The provider's catalogue as one caller may see it, in pages. Shows names and types of columns, never statistics.

The cost of a page depends on its own size only: datasets are read by key from the end of the last page, and each
distinct policy is read once and judged once per request.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from connector.datasets.registry import published_schema
from connector.dsp import agreement_terms, jsonld
from connector.dsp.jsonld import CONTEXT, Json
from connector.dsp.messages import CatalogRequestMessage
from connector.dsp.transfer import FORMATS
from connector.errors import Absent, Denied, MessageInvalid
from connector.identity.principal import Principal
from connector.infra.concurrency.recent_keys import put_recent
from connector.store import Store, Transaction
from connector.store.tables import DatasetVersion, Offer, RegisteredDataset
from connector.usage.fact_collector import FactsOf
from policies.contracts import compile as compiler
from policies.errors import PolicyError
from policies.evaluation.evaluate import Facts
from policies.model import Policy
from policies.odrl import reader as policy_jsonld
from policies.odrl.strictjson import list_of
from policies.vocabulary import Phase

PAGE = 100
_BATCH = PAGE + 1  # a page, and one more dataset to know whether another page follows
TERMS = "https://w3id.org/hanse/catalog/1/"  # our own members
_VCARD = "http://www.w3.org/2006/vcard/ns#"
_VALUES_MAX = jsonld.NODES_MAX - 100  # values of the datasets in one document, which has a few values around them
_COLUMNS_BYTES = 64 * 2**10  # of one dataset on a page: a catalogue reads 8 MiB of a page, and 256 kB of each dataset
_ALONE_BYTES = 4 * 2**20  # of a dataset in its own answer, which may have 8 MiB
_LOOK_AT_MAX = 1_000  # datasets that one request reads, so that hidden datasets cannot make it slow
_POLICIES_MAX = 2_048
_ID_IS = (("id", "="), ("@id", "="), ("https://w3id.org/edc/v0.0.1/ns/id", "="))
_QUERY_FIELDS = frozenset({"offset", "limit", "filterExpression", "sortField", "sortOrder", "range"})


@dataclass(frozen=True, slots=True)
class CatalogPage:
    """A catalogue document and its Link header."""

    document: Json
    link: str


@dataclass(frozen=True, slots=True)
class VisibleDataset:
    """A dataset with the offers that this caller may see."""

    dataset: RegisteredDataset
    version: DatasetVersion
    offers: tuple[Offer, ...]


class Catalog:
    """The catalogue of this participant. `base`: our protocol address. `formats`: the transfer formats."""

    def __init__(
        self, *, store: Store, participant: str, base: str, facts_of: FactsOf, formats: Iterable[str] = tuple(FORMATS)
    ) -> None:
        self._store = store
        self._us = participant
        self._facts_of = facts_of
        self._service = {"@id": f"{participant}#dsp", "@type": "DataService", "endpointURL": base}
        self._base = base
        self._formats = tuple(formats)
        self._policies: OrderedDict[str, tuple[Policy, Json]] = OrderedDict()
        self._shown: OrderedDict[tuple[str, str], frozenset[str]] = OrderedDict()  # columns by offer and version

    async def read_page(
        self, request: CatalogRequestMessage, caller: Principal, *, after: str, before: str
    ) -> CatalogPage:
        """One page of the catalogue, after or before a cursor.

        Raises:
            MessageInvalid: the filter is not supported, or the cursor cannot be read.
        """
        spec = _read_query_spec(request.filter)
        start, backwards = _decode_cursor(after or before), bool(before) and not after
        skip = 0 if start else spec.offset  # a cursor wins over the offset of the repeated filter
        facts = await self._facts_of(caller.id)

        def work(tx: Transaction) -> tuple[list[VisibleDataset], str]:
            if spec.dataset:
                return self._find_visible(tx, spec.dataset, facts)[skip:], ""
            return self._collect(tx, facts, start=start, backwards=backwards, skip=skip, limit=spec.limit)

        found, reached = await self._store.read(work)
        counted = bool(request.filter)  # the reader counts datasets, and continues after as many as it requested
        entries = self._fit_entries(found[::-1] if backwards else found, whole=counted)
        if len(entries) < len(found):  # the next page has the rest
            found = found[-len(entries) :] if backwards else found[: len(entries)]
            reached = found[0 if backwards else -1].dataset.id
        first, last = (found[0].dataset.id, found[-1].dataset.id) if found else ("", "")
        if backwards:
            return CatalogPage(self._document(entries[::-1]), self._links(next_after=last, previous_before=reached))
        return CatalogPage(
            self._document(entries), self._links(next_after=reached, previous_before=first if start else "")
        )

    async def read_dataset(self, dataset_id: str, caller: Principal) -> Json:
        """One dataset. Absent for an unknown dataset and for a dataset hidden from this caller."""
        facts = await self._facts_of(caller.id)

        def work(tx: Transaction) -> list[VisibleDataset]:
            return self._find_visible(tx, dataset_id, facts)

        found = await self._store.read(work)
        if not found:
            raise Absent(f"no dataset {dataset_id!r} in this catalogue")
        entry = self._entry(found[0], {})
        columns = _describe_columns(
            found[0].version.schema,
            notes=self._find_notes(found[0]),
            values=_VALUES_MAX - jsonld.count_values(entry),
            most_bytes=_ALONE_BYTES,
        )
        return {"@context": [CONTEXT], **entry, **columns}

    def _find_visible(self, tx: Transaction, dataset_id: str, facts: Facts) -> list[VisibleDataset]:
        """The dataset with this id; nothing where there is none, or it is hidden from this party."""
        row = tx.datasets.find(dataset_id)
        return self._select_visible(tx, [row], facts, {}) if row is not None and row.id == dataset_id else []

    def _collect(
        self, tx: Transaction, facts: Facts, *, start: str, backwards: bool, skip: int, limit: int
    ) -> tuple[list[VisibleDataset], str]:
        """Up to `limit` visible datasets in order, and the id after which to continue; empty at the end."""
        tx.datasets.prefer_indexes()
        found: list[VisibleDataset] = []
        judged: dict[str, bool] = {}
        reached, looked, more = start, 0, True
        while more and looked < _LOOK_AT_MAX and len(found) <= limit:
            rows = tx.datasets.list_offered(start=reached, backwards=backwards, limit=_BATCH)
            looked, more = looked + _BATCH, len(rows) == _BATCH
            visible = self._select_visible(tx, rows, facts, judged)
            found.extend(visible[skip:])
            skip = max(0, skip - len(visible))
            reached = rows[-1].id if rows else reached
        if len(found) > limit:
            found = found[:limit]
            reached, more = found[-1].dataset.id, True
        return (found[::-1] if backwards else found), reached if more else ""

    def _select_visible(
        self, tx: Transaction, rows: Sequence[RegisteredDataset], facts: Facts, judged: dict[str, bool]
    ) -> list[VisibleDataset]:
        """The datasets with an offer for this party, in order, each with these offers."""
        by_dataset: dict[str, list[Offer]] = {}
        for offer in tx.datasets.list_offers_in_force([row.id for row in rows]):
            if offer.digest not in judged:
                try:
                    policy, _ = self._read_policy(offer)
                except Denied:  # not understood any more, so hidden from all
                    continue
                verdict = agreement_terms.judge(policy, facts, phase=Phase.CATALOGUE, now=tx.now)
                judged[offer.digest] = verdict.permitted
            if judged[offer.digest]:
                by_dataset.setdefault(offer.dataset_id, []).append(offer)
        visible = [row for row in rows if row.id in by_dataset]
        versions = tx.datasets.get_current_versions(visible)
        return [
            VisibleDataset(row, versions[row.id], tuple(by_dataset[row.id])) for row in visible if row.id in versions
        ]

    def _read_policy(self, offer: Offer) -> tuple[Policy, Json]:
        """An offer's policy, and its JSON-LD without id. Cached for all offers with the same wording.

        The key is not the digest: that is the same for rules in another order or without `profile`, and an agreement
        has the wording of its own offer.
        """
        words = json.dumps({key: value for key, value in offer.policy.items() if key != "@id"})
        if (known := self._policies.get(words)) is None:
            policy = agreement_terms.read_published(offer)
            wire = policy_jsonld.write(policy, in_catalog=True)
            known = (policy, {k: v for k, v in wire.items() if k != "@id"})
            put_recent(self._policies, words, known, most=_POLICIES_MAX)
        return known

    def _find_notes(self, listed: VisibleDataset) -> Json:
        """What the owner says about the columns that one of these offers shows (decision 100).

        An offer that cannot be compiled for the current version shows none.
        """
        notes: Json = listed.dataset.column_notes
        if not notes:
            return {}
        shown: set[str] = set()
        for offer in listed.offers:
            key = (offer.digest, listed.version.digest)
            if (known := self._shown.get(key)) is None:
                known = frozenset(_find_shown_columns(self._read_policy(offer)[0], listed.version))
                put_recent(self._shown, key, known, most=_POLICIES_MAX)
            shown |= known
        return {name: note for name, note in notes.items() if name in shown}

    def _fit_entries(self, found: Sequence[VisibleDataset], *, whole: bool) -> list[Json]:
        """Entries for the first dataset and as many more as fit into one document; for all of them if `whole`."""
        entries: list[Json] = []
        room = _VALUES_MAX
        for listed in found:
            entry = self._entry(listed, _describe_columns(listed.version.schema, notes=self._find_notes(listed)))
            room -= jsonld.count_values(entry)
            if entries and room < 0 and not whole:
                break
            entries.append(entry)
        return entries

    def _document(self, entries: Sequence[Json]) -> Json:
        document: Json = {
            "@context": [CONTEXT],
            "@id": f"{self._us}#catalog",
            "@type": "Catalog",
            "participantId": self._us,
            "service": [self._service],
        }
        if entries:
            document["dataset"] = list(entries)
        return document

    def _entry(self, listed: VisibleDataset, columns: Json) -> Json:
        row = listed.dataset
        about = {
            "dct:title": row.title,
            "dct:description": row.description,
            "dcat:keyword": list(row.keywords),
            "dcat:theme": {"@id": row.theme} if row.theme else "",
            "dct:license": row.license,
            "dct:bibliographicCitation": row.citation,
            "dcat:contactPoint": {"@type": f"{_VCARD}Kind", f"{_VCARD}fn": row.contact} if row.contact else "",
            f"{TERMS}version": row.version,
        }
        return {
            "@id": row.id,
            "@type": "Dataset",
            **{term: value for term, value in about.items() if value},
            **columns,
            "hasPolicy": [{"@id": offer.id, **self._read_policy(offer)[1]} for offer in listed.offers],
            "distribution": [
                {"@type": "Distribution", "format": name, "accessService": self._service} for name in self._formats
            ],
        }

    def _links(self, *, next_after: str, previous_before: str) -> str:
        links = []
        if next_after:
            links.append(f'<{self._base}/catalog/request?after={encode_cursor(next_after)}>; rel="next"')
        if previous_before:
            links.append(f'<{self._base}/catalog/request?before={encode_cursor(previous_before)}>; rel="previous"')
        return ", ".join(links)


def _find_shown_columns(policy: Policy, version: DatasetVersion) -> set[str]:
    """The columns that some permission of the policy shows; none where it cannot be compiled."""
    try:
        contracts = compiler.compile_contracts(policy, published_schema(version), concluded=time.time())
    except PolicyError:
        return set()
    return {name for contract in contracts for name in contract.columns}


def _typed_columns(schema: Sequence[Mapping[str, Any]], notes: Mapping[str, Any]) -> Json:
    return {"@list": [_describe_column(column, notes.get(column["name"], {})) for column in schema]}


def _describe_column(column: Mapping[str, Any], note: Mapping[str, Any]) -> Json:
    said = {f"{TERMS}{name}": value for name, value in note.items() if value}
    return {f"{TERMS}name": column["name"], f"{TERMS}type": column["type"], **said}


def _describe_columns(
    schema: Sequence[Mapping[str, Any]],
    *,
    notes: Mapping[str, Any],
    values: int = _VALUES_MAX,
    most_bytes: int = _COLUMNS_BYTES,
) -> Json:
    """The columns with their types and notes; without notes, or with names only, where `values` or `most_bytes` is
    exceeded.

    A column with its type takes five values, its notes three more. Names that do not fit are left out; then the number
    of columns follows.
    """
    for said in (notes, {}) if notes else ({},):
        if len(schema) * 5 + len(said) * 3 > values:
            continue
        if len(json.dumps(typed := _typed_columns(schema, said))) <= most_bytes:
            return {f"{TERMS}columns": typed}
    room = most_bytes
    names = []
    for column in schema[: max(values, 0)]:
        room -= len(json.dumps(column["name"])) + 2
        if room < 0:
            break
        names.append(column["name"])
    count = {f"{TERMS}columnCount": len(schema)} if len(names) < len(schema) else {}
    return {f"{TERMS}columns": {"@list": names}, **count}


def encode_cursor(key: str) -> str:
    """The cursor for a dataset id in a page address."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _decode_cursor(text: str) -> str:
    """The dataset id of a cursor."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode() if text else ""
    except (binascii.Error, ValueError) as error:
        raise MessageInvalid("expected a page address from a Link header, got another; read the first page") from error


class _QuerySpec(NamedTuple):
    """EDC's QuerySpec. `dataset`: the id that the datasets must have, empty for all."""

    offset: int = 0
    limit: int = PAGE
    dataset: str = ""


def _read_query_spec(filters: tuple[Any, ...]) -> _QuerySpec:
    """The only supported filter: EDC's QuerySpec with offset, limit, and equality on the dataset's id.

    Raises:
        MessageInvalid: it has another expression or an order; DSP 2025-1, section 6, wants a refusal.
    """
    found = _QuerySpec()
    for entry in filters:
        if not isinstance(entry, Mapping):
            raise MessageInvalid("filters are not supported here; ask without one, and search the catalogue service")
        spec = {_local_name(key): value for key, value in entry.items() if not key.startswith("@")}
        unknown = sorted(key for key, value in spec.items() if key not in _QUERY_FIELDS and value not in (None, [], ""))
        if unknown or spec.get("sortField") not in (None, ""):
            raise MessageInvalid(f"filters are not supported here ({', '.join(unknown) or 'sortField'})")
        found = _QuerySpec(
            _read_count(spec.get("offset"), found.offset),
            _read_count(spec.get("limit"), found.limit),
            _read_expressions(spec.get("filterExpression"), found.dataset),
        )
    return found._replace(offset=min(found.offset, 10_000), limit=max(1, min(found.limit, PAGE)))


def _read_expressions(expressions: Any, earlier: str) -> str:
    """The dataset id that all criteria of a filter name."""
    for each in list_of(expressions):
        if not isinstance(each, Mapping):
            raise _filter_error()
        criterion = {_local_name(key): jsonld.single(jsonld.unwrap(value, {})) for key, value in each.items()}
        wanted = criterion.get("operandRight")
        asked = (criterion.get("operandLeft"), criterion.get("operator"))
        if asked not in _ID_IS or not isinstance(wanted, str) or not wanted or earlier not in ("", wanted):
            raise _filter_error()
        earlier = wanted
    return earlier


def _filter_error() -> MessageInvalid:
    return MessageInvalid(
        "expected a filterExpression with `id = <dataset id>` alone, got another; ask without it, and search the "
        "catalogue service"
    )


def _local_name(key: str) -> str:
    return key.rpartition("/")[2].rpartition(":")[2]


def _read_count(value: Any, default: int) -> int:
    value = jsonld.single(value)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MessageInvalid("expected offset and limit of a filter to be whole numbers from 0")
    return value
