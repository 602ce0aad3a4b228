"""Other participants as we reach them: by name or DID, and what their catalogues hold for us."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from connector.dsp import jsonld
from connector.dsp.catalog import TERMS
from connector.dsp.jsonld import Json
from connector.dsp.messages import CatalogRequestMessage
from connector.dsp.protocol_client import Answer, Peer, segment
from connector.errors import NotFound, PeerNonsense, PeerRefused
from connector.urls import read_url

# By name or DID; {} for who is no member, None where nobody knows.
Member = Callable[[str], Awaitable[Mapping[str, Any] | None]]
_PAGES_MAX = 200
_BYTES_MAX = 32 * 2**20  # of the pages of one catalogue, which take many times as much in memory
_DCT, _DCAT = "http://purl.org/dc/terms/", "http://www.w3.org/ns/dcat#"


@dataclass(frozen=True, slots=True)
class Partner:
    """A participant and the base of its protocol endpoints. `name` is empty where the register does not list it."""

    id: str
    base: str
    name: str = ""

    def dataset_id(self, dataset: str) -> str:
        """The id of a dataset that is given by id or by its short name."""
        return dataset if ":" in dataset or not self.name else f"urn:hanse:{self.name}:{dataset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A dataset in somebody's catalogue, read leniently. `offers` are ODRL offers as they came."""

    id: str
    title: str = ""
    description: str = ""
    theme: str = ""
    license: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    offers: tuple[Json, ...] = ()
    formats: tuple[str, ...] = ()


class Partners:
    """Finding and asking others. `member` looks one up in the data space's register (`MemberRegister.called`)."""

    def __init__(self, *, peer: Peer, member: Member) -> None:
        self._peer = peer
        self._member = member

    async def find(self, participant: str) -> Partner:
        """A member by name or DID. NotFound names what to do; PeerNonsense where it speaks no version of ours."""
        entry = await self._member(participant)
        if entry:
            base = await self._peer.base_of(str(entry.get("url", "")))
            return Partner(str(entry["id"]), base, str(entry.get("name", "")))
        if entry is None:
            raise NotFound(
                f"no member {participant!r}, as this connector has no register of members: set HANSE_TRUST_ANCHOR to "
                "the DID of the data space's operator, or see the connector's log why the register cannot be read"
            )
        raise NotFound(
            f"no member {participant!r} in the data space's register; `hanse members` lists those that there are"
        )

    async def dataset(self, partner: Partner, dataset: str) -> Listed:
        """One dataset of a partner's catalogue, as we may see it. PeerNonsense where the partner answers for another:
        an agreement on that would be one that nobody here asked for."""
        node = await self._dataset(partner, dataset)
        return read_dataset(node, jsonld.prefixes_of(node))

    async def _dataset(self, partner: Partner, dataset: str) -> Json:
        wanted = partner.dataset_id(dataset)
        answer = await self._peer.fetch(
            "GET", f"{partner.base}/catalog/datasets/{segment(wanted)}", audience=partner.id
        )
        node = _node(answer, partner, wanted)
        if (came := read_dataset(node, jsonld.prefixes_of(node)).id) != wanted:
            raise PeerNonsense(
                f"expected the dataset {wanted} of {partner.name or partner.id}, came {came[:255]}; ask for a "
                "dataset by its whole id, as its catalogue has it"
            )
        return node

    async def catalog(self, partner: Partner, *, limit: int = 1_000, dataset: str = "") -> Json:
        """A partner's catalogue as one document, page after page, up to `limit` datasets, each as it came.

        With `dataset` (an id or a member's name) that one alone, however many others there are; where the partner does
        not answer with it, what there is instead: it may be listed under an id that ends in this name.
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
                    f"expected a catalogue of at most {_BYTES_MAX} bytes from {partner.name or partner.id}, came more; "
                    "ask for one dataset by its id, or for fewer"
                )
            page = _node(answer, partner, "its catalogue")
            whole = {**page, **whole}
            datasets.extend(_datasets(page, partner.id))
            url = next_page(answer, url)
            if not url or len(datasets) >= limit:
                break
        return {**whole, "dataset": datasets[:limit]}


def _node(answer: Answer, partner: Partner, what: str) -> Json:
    if answer.document is None:
        raise PeerNonsense(
            f"{partner.name or partner.id} describes {what} in no JSON that can be read here, or in more than "
            f"{jsonld.NODES_MAX} values; tell its people"
        )
    return jsonld.node_of(answer.document)


def _datasets(catalog: Json, participant: str) -> Iterator[Json]:
    """The dataset nodes of a catalogue, as they came, those of catalogues within it behind its own. Catalogues of other
    participants within it are passed over: nobody can be asked for what is another's. Whose the outer one is stood fast
    when it was asked for, whatever it says."""
    waiting, prefixes = deque([catalog]), jsonld.prefixes_of(catalog)
    while waiting:
        node = waiting.popleft()
        found: dict[str, list[Any]] = {}
        for name, value in node.items():
            found.setdefault(jsonld.term_of(name, prefixes), []).extend(jsonld.listed(value))
        whose = (jsonld.single(jsonld.unwrapped(one, prefixes)) for one in found.get("participantId", ()))
        if node is catalog or all(one == participant for one in whose):
            yield from (entry for entry in found.get("dataset", ()) if isinstance(entry, dict))
            waiting.extend(entry for entry in found.get("catalog", ()) if isinstance(entry, dict))


def read_dataset(node: Json, prefixes: Mapping[str, str]) -> Listed:
    """One dataset node. PeerNonsense for one without an id."""
    found = jsonld.members(node, prefixes)
    identifier = found.get("@id")
    if not isinstance(identifier, str) or not identifier:
        raise PeerNonsense("expected every dataset of a catalogue to have an @id, came one without")
    distributions = [entry for entry in jsonld.listed(found.get("distribution")) if isinstance(entry, dict)]
    columns = [
        {f"{TERMS}name": entry} if isinstance(entry, str) else entry  # of very many the names alone are told
        for entry in jsonld.listed(found.get(f"{TERMS}columns"))
        if isinstance(entry, dict | str)
    ]
    return Listed(
        id=identifier,
        title=_text(found, f"{_DCT}title", "title"),
        description=_text(found, f"{_DCT}description", "description"),
        theme=_text(found, f"{_DCAT}theme", "theme"),
        license=_text(found, f"{_DCT}license", "license"),
        columns=tuple((_text(entry, f"{TERMS}name"), _text(entry, f"{TERMS}type")) for entry in columns),
        offers=tuple(entry for entry in jsonld.listed(found.get("hasPolicy")) if isinstance(entry, dict)),
        formats=tuple(_text(entry, "format") for entry in distributions if _text(entry, "format")),
    )


def next_page(answer: Answer, asked: str) -> str:
    """The address of the next page, from the Link header; empty where there is none or it leads somewhere else."""
    for part in (answer.headers or {}).get("link", "").split(","):
        target, _, parameters = part.strip().partition(">")
        if target.startswith("<") and 'rel="next"' in parameters.replace("'", '"'):
            url = target[1:]
            try:
                same = read_url(url)[:2] == read_url(asked)[:2]  # our token goes to no other server
            except ValueError:
                return ""
            return url if same and url != asked else ""
    return ""


def _text(found: Json, *names: str) -> str:
    """The first text among these members."""
    for name in names:
        value = jsonld.single(found.get(name))
        if isinstance(value, str):
            return value
    return ""
