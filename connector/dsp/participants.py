"""Other participants: finding them by name or DID, and reading their catalogues."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from connector.dsp import jsonld
from connector.dsp.catalog import TERMS
from connector.dsp.jsonld import Json
from connector.dsp.messages import CatalogRequestMessage
from connector.dsp.protocol_client import PeerAnswer, ProtocolClient, segment
from connector.errors import Absent, PeerNonsense, PeerRefused
from connector.urls import read_url
from policies.odrl.strictjson import list_of

# From name or DID to a register entry; {} for a party that is no member, None where there is no register.
Member = Callable[[str], Awaitable[Mapping[str, Any] | None]]
_PAGES_MAX = 200
_BYTES_MAX = 32 * 2**20  # of the pages of one catalogue, which take many times as much in memory
_DCT, _DCAT = "http://purl.org/dc/terms/", "http://www.w3.org/ns/dcat#"
_VCARD = "http://www.w3.org/2006/vcard/ns#"
_TEXT_MAX = 1_000  # of a column: characters


@dataclass(frozen=True, slots=True)
class Participant:
    """A participant and the base of its protocol endpoints. `name`: from the member register, or empty."""

    id: str
    base: str
    name: str = ""

    def dataset_id(self, dataset: str) -> str:
        """The id of a dataset, from its id or short name."""
        return dataset if ":" in dataset or not self.name else f"urn:hanse:{self.name}:{dataset}"


class ListedColumn(NamedTuple):
    """A column as its owner describes it to us. `personal`: whether the owner says that it is personal data."""

    name: str
    type: str = ""
    description: str = ""
    unit: str = ""
    personal: bool = False

    @property
    def has_note(self) -> bool:
        """Whether the owner says more of it than name and type."""
        return bool(self.description or self.unit or self.personal)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDataset:
    """A dataset in another participant's catalogue. `offers`: ODRL offers as received."""

    id: str
    title: str = ""
    description: str = ""
    theme: str = ""
    license: str = ""
    citation: str = ""
    contact: str = ""
    version: str = ""
    keywords: tuple[str, ...] = ()
    columns: tuple[ListedColumn, ...] = ()
    offers: tuple[Json, ...] = ()
    formats: tuple[str, ...] = ()


class ParticipantDirectory:
    """Finds participants and reads their catalogues. `member` looks a name or DID up in the member register."""

    def __init__(self, *, peer: ProtocolClient, member: Member) -> None:
        self._peer = peer
        self._member = member

    async def find(self, participant: str) -> Participant:
        """A member by name or DID.

        Raises:
            Absent: there is no such member, or this connector has no register.
            PeerNonsense: it supports no version of the protocol that we support.
        """
        entry = await self._member(participant)
        if entry:
            base = await self._peer.base_of(str(entry.get("url", "")))
            return Participant(str(entry["id"]), base, str(entry.get("name", "")))
        if entry is None:
            raise Absent(
                f"no member {participant!r}: this connector has no register of members; set HANSE_TRUST_ANCHOR to the "
                "DID of the data space's operator, or see the connector's log for why the register cannot be read"
            )
        raise Absent(f"no member {participant!r} in the data space's register; list its members with `hanse members`")

    async def dataset(self, partner: Participant, dataset: str) -> ListedDataset:
        """One dataset of a participant's catalogue, as we may see it.

        Raises:
            PeerNonsense: the answer is for another dataset, on which we do not want an agreement.
            PeerRefused: there is no such dataset for us.
        """
        node = await self._dataset(partner, dataset)
        return read_dataset(node, jsonld.prefixes_of(node))

    async def _dataset(self, partner: Participant, dataset: str) -> Json:
        wanted = partner.dataset_id(dataset)
        answer = await self._peer.fetch(
            "GET", f"{partner.base}/catalog/datasets/{segment(wanted)}", audience=partner.id
        )
        node = _node(answer, partner, wanted)
        if (got := read_dataset(node, jsonld.prefixes_of(node)).id) != wanted:
            raise PeerNonsense(
                f"expected the dataset {wanted} of {partner.name or partner.id}, got {got[:255]}; ask for a dataset "
                "by its full id in the catalogue"
            )
        return node

    async def catalog(self, partner: Participant, *, limit: int = 1_000, dataset: str = "") -> Json:
        """A participant's catalogue as one document with up to `limit` datasets, each as received.

        With `dataset` (an id or a short name), only that dataset. If the participant does not answer with it, the
        catalogue follows instead, as it may list the dataset under an id that ends in this name.
        """
        whole: Json = {"@type": "Catalog", "participantId": partner.id}
        if dataset:
            with suppress(PeerRefused, PeerNonsense):
                return {**whole, "dataset": [await self._dataset(partner, dataset)]}
        datasets: list[Any] = []
        url, room = f"{partner.base}/catalog/request", _BYTES_MAX
        for _ in range(_PAGES_MAX):
            answer = await self._peer.fetch("POST", url, audience=partner.id, message=CatalogRequestMessage().to_wire())
            if (room := room - answer.size) < 0:
                raise PeerNonsense(
                    f"expected a catalogue of at most {_BYTES_MAX} bytes from {partner.name or partner.id}, got more; "
                    "ask for one dataset by its id, or for fewer"
                )
            page = _node(answer, partner, "its catalogue")
            whole = {**page, **whole}
            datasets.extend(_datasets(page, partner.id))
            url = next_page(answer, url)
            if not url or len(datasets) >= limit:
                break
        return {**whole, "dataset": datasets[:limit]}


def _node(answer: PeerAnswer, partner: Participant, what: str) -> Json:
    if answer.document is None:
        raise PeerNonsense(
            f"expected {what} from {partner.name or partner.id} as JSON of at most {jsonld.NODES_MAX} values, got "
            "something else; ask its people"
        )
    return jsonld.node_of(answer.document)


def _datasets(catalog: Json, participant: str) -> Iterator[Json]:
    """The dataset nodes of a catalogue as received, then those of catalogues nested in it.

    Nested catalogues of other participants are skipped, as this participant cannot agree on their datasets. The outer
    catalogue belongs to `participant`, whatever its own `participantId`.
    """
    waiting, prefixes = deque([catalog]), jsonld.prefixes_of(catalog)
    while waiting:
        node = waiting.popleft()
        members: dict[str, list[Any]] = {}
        for name, value in node.items():
            members.setdefault(jsonld.term_of(name, prefixes), []).extend(list_of(value))
        owners = (jsonld.single(jsonld.unwrap(each, prefixes)) for each in members.get("participantId", ()))
        if node is catalog or all(owner == participant for owner in owners):
            yield from (entry for entry in members.get("dataset", ()) if isinstance(entry, dict))
            waiting.extend(entry for entry in members.get("catalog", ()) if isinstance(entry, dict))


def read_dataset(node: Json, prefixes: Mapping[str, str]) -> ListedDataset:
    """Read one dataset node. PeerNonsense if it has no id."""
    found = jsonld.members(node, prefixes)
    identifier = found.get("@id")
    if not isinstance(identifier, str) or not identifier:
        raise PeerNonsense("expected every dataset of a catalogue to have an @id, got a dataset without it")
    distributions = [entry for entry in list_of(found.get("distribution")) if isinstance(entry, dict)]
    columns = [
        {f"{TERMS}name": entry} if isinstance(entry, str) else entry  # wide tables list only the names
        for entry in list_of(found.get(f"{TERMS}columns"))
        if isinstance(entry, dict | str)
    ]
    return ListedDataset(
        id=identifier,
        title=_text(found, f"{_DCT}title", "title"),
        description=_text(found, f"{_DCT}description", "description"),
        theme=_text(found, f"{_DCAT}theme", "theme"),
        license=_text(found, f"{_DCT}license", "license"),
        citation=_text(found, f"{_DCT}bibliographicCitation"),
        contact=_contact(found),
        version=_text(found, f"{TERMS}version"),
        keywords=tuple(one for one in list_of(found.get(f"{_DCAT}keyword")) if isinstance(one, str)),
        columns=tuple(map(_read_column, columns)),
        offers=tuple(entry for entry in list_of(found.get("hasPolicy")) if isinstance(entry, dict)),
        formats=tuple(_text(entry, "format") for entry in distributions if _text(entry, "format")),
    )


def _read_column(entry: Json) -> ListedColumn:
    name, kind, description, unit = (
        _text(entry, f"{TERMS}{field}")[:_TEXT_MAX] for field in ("name", "type", "description", "unit")
    )
    return ListedColumn(name, kind, description, unit, personal=jsonld.single(entry.get(f"{TERMS}personal")) is True)


def _contact(found: Json) -> str:
    """The name or address in a contact point, whether it is a text or a vCard."""
    contact = jsonld.single(found.get(f"{_DCAT}contactPoint"))
    if isinstance(contact, dict):
        return _text(contact, f"{_VCARD}fn", f"{_VCARD}hasEmail", "vcard:fn", "vcard:hasEmail")
    return contact if isinstance(contact, str) else ""


def next_page(answer: PeerAnswer, current: str) -> str:
    """The address of the next page from the Link header; empty without one, or where it leads to another server."""
    for part in (answer.headers or {}).get("link", "").split(","):
        target, _, parameters = part.strip().partition(">")
        if target.startswith("<") and 'rel="next"' in parameters.replace("'", '"'):
            url = target[1:]
            try:
                same = read_url(url)[:2] == read_url(current)[:2]  # our token goes to no other server
            except ValueError:
                return ""
            return url if same and url != current else ""
    return ""


def _text(members: Json, *names: str) -> str:
    """The first text among these members."""
    for name in names:
        value = jsonld.single(members.get(name))
        if isinstance(value, str):
            return value
    return ""
