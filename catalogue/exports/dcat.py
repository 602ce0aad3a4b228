"""Entries as DCAT-AP 3: catalogue, datasets, distributions, services, records, agents. Pure.

Where DCAT-AP and the protocol differ, licence and policy belong to the
distribution here, at most one policy each, so there is one distribution per way of access and offer.

Readers merge nodes with one id. Each node's id is therefore made by this catalogue or is a DID that a member has
proven. With an id of its choice a member could add statements to another member's dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from catalogue.crawl.languages import iri_of as language_iri
from catalogue.crawl.languages import tag_of
from catalogue.crawl.offer_terms import CatalogueOffer
from catalogue.exports.graph import Iri, Node, RdfLiteral
from catalogue.search.facets import THEME_BASE, THEMES, EntryView, theme_code
from policies.errors import PolicyError
from policies.model import ODRL, Atom, Constraint, Duty, Group, Kind, Rule
from policies.odrl import reader as policy_jsonld

_EU = "http://publications.europa.eu/resource/authority/"
_ARROW = "https://www.iana.org/assignments/media-types/application/vnd.apache.arrow.stream"
_DSP = "https://w3id.org/dspace/2025/1/"
_SENTENCES_MAX = 1_000
_PROFILE = "http://data.europa.eu/r5r/"  # DCAT-AP


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The catalogue's own facts in the exports. `root` is its URL, `operator` a DID."""

    root: str
    title: str
    operator: str  # DID
    operator_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """One page of a harvest: its address, the first and the next one, and how many datasets there are in all."""

    here: str
    first: str
    following: str
    total: int


def catalog(cards: Iterable[EntryView], about: About, paging: Paging) -> list[Node]:
    """One page of the whole catalogue, with hydra's links to the others."""
    home = f"{about.root}/catalog"
    node = Node(("dcat:Catalog",), home)
    node.add("dct:title", RdfLiteral(about.title))
    node.add("dct:description", RdfLiteral(f"Datasets that members of {about.title} offer.", language="en"))
    node.add("dct:publisher", _agent(about.operator, about.operator_name))
    node.add("dct:language", Iri(f"{_EU}language/ENG"))
    node.add("foaf:homepage", Node(("foaf:Document",), f"{about.root}/"))
    node.add("dcat:themeTaxonomy", Iri(f"{_EU}data-theme"))
    page = Node(("hydra:PagedCollection",), paging.here)
    page.add("hydra:totalItems", RdfLiteral(str(paging.total), datatype="xsd:integer"))
    page.add("hydra:first", Iri(paging.first))
    page.add("hydra:next", Iri(paging.following) if paging.following else None)
    found = [(card, dataset(card, about)) for card in cards]
    node.add("dcat:dataset", *(described for _, described in found))
    node.add("dcat:record", *(_record(card, described) for card, described in found))
    return [page, node]


def weight(card: EntryView) -> int:
    """The approximate size of an exported dataset in bytes."""
    entry = card.entry
    texts = [sum(map(len, offer.sentences)) for offer in card.offers] or [0]
    ways = max(1, len(entry.formats)) * sum(1_500 + min(text, _SENTENCES_MAX) for text in texts)
    return 3_000 + len(entry.description) + 150 * len(entry.columns) + 3 * sum(texts) + ways


def dataset(card: EntryView, about: About) -> Node:
    """One dataset with its distributions and columns."""
    entry = card.entry
    language = tag_of(entry.language)
    node = Node(("dcat:Dataset",), iri_of(entry.id, about.root))
    node.add("dct:identifier", RdfLiteral(entry.id))
    node.add("dct:title", RdfLiteral(entry.title, language=language))
    node.add("dct:description", RdfLiteral(entry.description or entry.title, language=language))
    node.add("dct:publisher", _agent(entry.participant, card.owner_title))
    node.add("dcat:contactPoint", _contact(card))
    node.add("dcat:keyword", *(RdfLiteral(word, language=language) for word in entry.keywords))
    node.add("dcat:theme", *(Iri(theme) for theme in map(_theme, entry.themes) if theme))
    node.add("dct:language", *(Iri(one) for one in map(language_iri, entry.languages) if one))
    node.add("dct:issued", _moment(card.first_seen))
    node.add("dct:modified", _moment(card.modified_at))
    node.add("dcat:landingPage", Node(("foaf:Document",), f"{iri_of(entry.id, about.root)}#page"))
    node.add("dct:accessRights", Node(("dct:RightsStatement",), f"{_EU}access-right/{_access_right(card)}"))
    node.add("dcat:distribution", *_distributions(card, about))
    node.add("csvw:tableSchema", _schema(card))
    return node


def iri_of(dataset_id: str, root: str) -> str:
    """The dataset's address in this catalogue, which is its IRI in the exports."""
    return f"{root}/datasets/{quote(dataset_id, safe=':')}"


def _distributions(card: EntryView, about: About) -> Iterable[Node]:
    """One per way of access and offer; one per way where this viewer sees no offer."""
    entry, service, licence = card.entry, _service(card, about), _licence(card.entry.license)
    offers: list[tuple[RdfLiteral, Node | None]] = [
        (_description(offer), terms) for offer, terms in zip(card.offers, policies(card, about), strict=True)
    ] or [(_description(None), None)]
    for way in entry.formats or ("",):
        for index, (description, terms) in enumerate(offers):
            node = Node(("dcat:Distribution",), f"{iri_of(entry.id, about.root)}#{quote(way or 'data')}-{index + 1}")
            node.add("dct:title", RdfLiteral(f"{entry.title} ({way or 'on request'})"))
            node.add("dct:description", description)
            node.add("dcat:accessURL", Iri(entry.endpoint or iri_of(entry.id, about.root)))
            node.add("dct:license", licence)
            node.add("dcat:mediaType", Node(("dct:MediaType",), _ARROW))
            node.add("dcatap:availability", Iri(f"{_EU}planned-availability/AVAILABLE"))
            node.add("dcat:accessService", service)
            node.add("odrl:hasPolicy", terms)
            yield node


def _description(offer: CatalogueOffer | None) -> RdfLiteral:
    text = " ".join(offer.sentences) if offer else ""
    if len(text) > _SENTENCES_MAX:  # it stands at each way of access; the policy has it all
        text = f"{text[:_SENTENCES_MAX].rpartition(' ')[0]} …"
    return RdfLiteral(text or "Access is negotiated over the Dataspace Protocol.", language="en")


def _service(card: EntryView, about: About) -> Node | None:
    entry = card.entry
    if not entry.endpoint:
        return None
    node = Node(("dcat:DataService",), f"{about.root}/members#{card.owner}:{quote(entry.endpoint, safe='')}")
    node.add("dct:title", RdfLiteral(f"Connector of {card.owner_title}", language="en"))
    node.add("dcat:endpointURL", Iri(entry.endpoint))
    node.add("dct:publisher", _agent(entry.participant, card.owner_title))
    node.add("dct:conformsTo", Node(("dct:Standard",), _DSP))
    node.add("dcat:contactPoint", _contact(card))
    node.add("dcat:servesDataset", Iri(iri_of(entry.id, about.root)))
    return node


def _record(card: EntryView, described: Node) -> Node:
    node = Node(("dcat:CatalogRecord",), f"{described.id}#record")
    node.add("dct:modified", _moment(card.last_seen))
    node.add("dct:issued", _moment(card.first_seen))
    node.add("foaf:primaryTopic", Iri(described.id))
    node.add("dct:conformsTo", Node(("dct:Standard",), _PROFILE))
    return node


def _agent(did: str, name: str) -> Node:
    node = Node(("foaf:Agent",), did)
    node.add("foaf:name", RdfLiteral(name))
    return node


def _contact(card: EntryView) -> Node:
    node = Node(("vcard:Kind",))
    node.add("vcard:fn", RdfLiteral(card.owner_title))
    node.add("vcard:hasURL", Iri(card.entry.endpoint) if card.entry.endpoint else None)
    return node


def _schema(card: EntryView) -> Node | None:
    """The columns as CSV on the Web describes them."""
    if not card.entry.columns:
        return None
    table = Node(("csvw:Schema",))
    for column in card.entry.columns:
        node = Node(("csvw:Column",))
        node.add("csvw:name", RdfLiteral(column.name))
        node.add("csvw:datatype", RdfLiteral(column.type) if column.type else None)
        node.add("dct:description", RdfLiteral(column.description) if column.description else None)
        table.add("csvw:column", node)
    return table


def _access_right(card: EntryView) -> str:
    return "PUBLIC" if any("open" in offer.classes for offer in card.offers) else "RESTRICTED"


def _theme(text: str) -> str:
    """A theme's IRI; empty for free text, which DCAT-AP does not allow."""
    code = theme_code(text)
    if code in THEMES:
        return THEME_BASE + code
    return text if text.startswith(("https://", "http://")) else ""


def _licence(text: str) -> Iri | Node | None:
    if not text:
        return None
    if text.startswith(("https://", "http://")):
        return Iri(text)
    node = Node(("dct:LicenseDocument",))
    node.add("dct:title", RdfLiteral(text))
    return node


def _moment(at: float) -> RdfLiteral:
    return RdfLiteral(datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"), datatype="xsd:dateTime")


# -- the offer as ODRL


def policies(card: EntryView, about: About) -> list[Node]:
    """The card's offers as ODRL graphs. Their ids are below their dataset's; offers of one id are blank nodes."""
    count = Counter(offer.id for offer in card.offers)
    space = f"{iri_of(card.entry.id, about.root)}#offer:"
    return [
        _policy(offer, space + quote(offer.id, safe="") if offer.id and count[offer.id] == 1 else "")
        for offer in card.offers
    ]


def _policy(offer: CatalogueOffer, iri: str) -> Node:
    """An offer as an ODRL graph. An unreadable offer gets a description only."""
    node = Node(("odrl:Offer",), iri)
    node.add("dct:identifier", RdfLiteral(offer.id) if offer.id else None)
    try:
        found = policy_jsonld.read(offer.policy, kind=Kind.OFFER)
    except PolicyError:
        node.add("dct:description", RdfLiteral("The offer cannot be read here.", language="en"))
        return node
    node.add("odrl:permission", *(_rule("odrl:Permission", rule) for rule in found.permissions))
    node.add("odrl:prohibition", *(_rule("odrl:Prohibition", rule) for rule in found.prohibitions))
    node.add("odrl:obligation", *(_duty(duty) for duty in found.obligations))
    return node


def _rule(kind: str, rule: Rule) -> Node:
    node = Node((kind,))
    node.add("odrl:action", Iri(rule.action))
    node.add("odrl:constraint", *map(_constraint, rule.constraints))
    node.add("odrl:duty", *map(_duty, rule.duties))
    return node


def _duty(duty: Duty) -> Node:
    node = Node(("odrl:Duty",))
    node.add("odrl:action", Iri(duty.action))
    node.add("odrl:constraint", *map(_constraint, duty.constraints))
    return node


def _constraint(constraint: Constraint) -> Node:
    if isinstance(constraint, Group):
        node = Node(("odrl:LogicalConstraint",))
        node.add(f"odrl:{constraint.connective.value}", *map(_constraint, constraint.members))
        return node
    return _atom(constraint)


def _atom(atom: Atom) -> Node:
    node = Node(("odrl:Constraint",))
    node.add("odrl:leftOperand", Iri(atom.left))
    node.add("odrl:operator", Iri(ODRL + atom.operator))
    for value in atom.right:
        is_iri = value.text.startswith(("http://", "https://", "did:", "urn:"))
        node.add("odrl:rightOperand", Iri(value.text) if is_iri else RdfLiteral(value.text))
    return node
