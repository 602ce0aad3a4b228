"""The catalogue: per caller, a page at a time, valid, without statistics; and read back as others read it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from connector.dsp import jsonld
from connector.dsp.messages import CatalogRequestMessage
from connector.dsp.participants import Participant, ParticipantDirectory, next_page, read_dataset
from connector.dsp.protocol_client import PeerAnswer, ProtocolClient
from connector.errors import Absent, PeerNonsense, PeerRefused
from connector.infra.net.http_client import Reply
from connector.store import Transaction
from policies.authoring.convert import read_form, to_policy
from policies.evaluation.evaluate import Facts
from policies.odrl import reader
from tests.support.counterparty import Counterparty
from tests.support.minted import minting
from tests.support.pair import USE, Cable, Json, Side, add_dataset, offer_row, pair

DS = "https://w3id.org/hanse/policy/1/"
MEMBERS: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [{"leftOperand": f"{DS}membership", "operator": "eq", "rightOperand": "active"}],
        }
    ]
}
REQUEST = CatalogRequestMessage().to_wire()


def terms(form: str) -> Json:
    """The policy of an offer in the short form, without its id."""
    written = reader.write(to_policy(read_form(f"offer: notes\n{form}")), in_catalog=True)
    return {name: value for name, value in written.items() if name not in ("@id", "@type", "@context")}


async def seeded(north: Side, count: int, *, hidden: int = 0) -> list[str]:
    """Datasets with an offer each; their ids. With `hidden`, all but each `hidden`-th are for members only."""
    ids = [f"urn:hanse:north:d{i:03d}" for i in range(count)]

    def work(tx: Transaction) -> None:
        for i, dataset in enumerate(ids):
            add_dataset(tx, dataset)
            policy = MEMBERS if hidden and i % hidden else USE
            tx.datasets.add(offer_row(f"offer:{i}", dataset, policy, decide="auto", now=tx.now))
        add_dataset(tx, "urn:hanse:north:without_offer")

    await north.store.write(work)
    return ids


async def page(peer: Counterparty, path: str = "/catalog/request", **body: Any) -> tuple[list[str], dict[str, str]]:
    """Dataset ids of a page, and the paths that its Link header leads to."""
    reply = await peer.post(path, {**REQUEST, **body})
    assert reply.status == 200, reply.body
    document = json.loads(reply.body)
    links = re.findall(r'<([^>]+)>; rel="(\w+)"', reply.headers.get("link", ""))
    assert "dataset" not in document or document["dataset"], "an empty list is left out"
    return (
        [entry["@id"] for entry in document.get("dataset", [])],
        {name: url.removeprefix(peer.to.base) for url, name in links},
    )


async def test_pages_lead_through_the_whole_catalogue_and_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        ids = await seeded(two.north, 250)
        peer = Counterparty(two.north)
        forward: list[list[str]] = []
        path, links = "/catalog/request", {"next": ""}
        while path:
            found, links = await page(peer, path)
            forward.append(found)
            path = links.get("next", "")
        assert [len(part) for part in forward] == [100, 100, 50]
        assert [one for part in forward for one in part] == ids
        back, links = await page(peer, links["previous"])
        assert back == forward[1]
        first, links = await page(peer, links["previous"])
        assert first == forward[0]
        assert set(links) == {"next"}
        again, _ = await page(peer, links["next"])
        assert again == forward[1]


@pytest.mark.parametrize("hidden", [2, 30])
async def test_hidden_datasets_are_on_no_page_and_pages_stay_full(tmp_path: Path, hidden: int) -> None:
    async with pair(tmp_path) as two:
        ids = await seeded(two.north, 300, hidden=hidden)
        peer, member = Counterparty(two.north), Counterparty(two.north, participant="did:web:member.example")
        two.north.facts[member.participant] = Facts.of({"ds:membership": "active"}, source="register")
        seen: list[str] = []
        path = "/catalog/request"
        while path:
            found, links = await page(peer, path)
            seen += found
            path = links.get("next", "")
        assert seen == ids[::hidden]
        assert len((await page(member))[0]) == 100


async def test_an_empty_catalogue_is_valid(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        assert await page(Counterparty(two.north)) == ([], {})


NOTES = {"station": {"description": "Where it hangs", "unit": "", "personal": True},
         "value": {"description": "Particles", "unit": "µg/m³", "personal": False}}  # fmt: skip
ALL = "dataset: air\nmay: [query]\n"
HIDDEN = "dataset: air\nmay: [query]\ncolumns: {hide: [station]}\n"
GROUPS = "dataset: air\nmay: [query]\nlimits: {min_group: 5}\ngrid: {group_by: {station: exact}}\n"


@pytest.mark.parametrize(
    ("offers", "described"),
    [
        ([ALL], ["station", "value"]),
        ([HIDDEN], ["value"]),
        ([GROUPS], ["station"]),
        ([HIDDEN, GROUPS], ["station", "value"]),
    ],
)
async def test_a_column_is_described_where_an_offer_shows_it(
    tmp_path: Path, offers: list[str], described: list[str]
) -> None:
    async with pair(tmp_path) as two:
        for number, form in enumerate(offers):
            await two.north.publish(offer=f"offer:{number}", policy=terms(form))
        await two.north.store.write(lambda tx: setattr(tx.datasets.of("air"), "column_notes", NOTES))
        peer = Counterparty(two.north)
        alone = json.loads((await peer.get("/catalog/datasets/urn:hanse:north:air")).body)
        listed = json.loads((await peer.post("/catalog/request", REQUEST)).body)["dataset"][0]
        for node in (alone, listed):
            read = read_dataset(node, jsonld.prefixes_of(node))
            assert [column.name for column in read.columns] == ["station", "value"]
            assert [column.name for column in read.columns if column.has_note] == described
        shown = {column.name: column for column in read.columns}
        if "value" in described:
            assert shown["value"][2:] == ("Particles", "µg/m³", False)


async def test_an_offer_that_does_not_fit_its_version_describes_no_column(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(policy=terms("dataset: air\nmay: [query]\ncolumns: {hide: [gone]}\n"))
        await two.north.store.write(lambda tx: setattr(tx.datasets.of("air"), "column_notes", NOTES))
        body = (await Counterparty(two.north).get("/catalog/datasets/urn:hanse:north:air")).body
        assert b"Particles" not in body


async def test_citation_and_contact_are_published_and_read(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish()

        def describe(tx: Transaction) -> None:
            row = tx.datasets.of("air")
            row.citation, row.contact = "North (2026)", "air@north.example"

        await two.north.store.write(describe)
        node = json.loads((await Counterparty(two.north).get("/catalog/datasets/urn:hanse:north:air")).body)
        read = read_dataset(node, jsonld.prefixes_of(node))
        assert (read.citation, read.contact, read.keywords) == ("North (2026)", "air@north.example", ("air", "noise"))


async def test_withdrawn_offers_are_not_shown(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish()

        def withdraw(tx: Transaction) -> None:
            offer = tx.datasets.get_offer("offer:urn:hanse:north:air")
            assert offer is not None
            offer.withdrawn_at = tx.now

        await two.north.store.write(withdraw)
        peer = Counterparty(two.north)
        assert await page(peer) == ([], {})
        assert (await peer.get("/catalog/datasets/urn:hanse:north:air")).status == 404


async def test_an_offer_that_is_not_understood_any_more_is_shown_to_nobody(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        ids = await seeded(two.north, 3)

        def spoil(tx: Transaction) -> None:
            offer = tx.datasets.get_offer("offer:0")
            assert offer is not None
            offer.policy = {**offer.policy, "permissionn": []}  # the digest is that of the others, as it was then

        await two.north.store.write(spoil)
        peer = Counterparty(two.north)
        assert (await page(peer))[0] == ids[1:]


async def test_a_dataset_shows_its_columns_and_offers_but_no_statistics(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(policy={**USE, "prohibition": [{"action": "odrl:distribute"}]})
        reply = await Counterparty(two.north).get("/catalog/datasets/urn:hanse:north:air")
        assert reply.status == 200
        assert b"SECRET-STATISTIC" not in reply.body
        node = json.loads(reply.body)
        assert all("target" not in offer for offer in node["hasPolicy"])
        assert [one["format"] for one in node["distribution"]] == ["HttpData-PULL", "HttpData-PUSH"]
        assert all(one["accessService"]["endpointURL"] == two.north.base for one in node["distribution"])
        read = read_dataset(node, jsonld.prefixes_of(node))
        assert [column[:2] for column in read.columns] == [("station", "VARCHAR"), ("value", "DOUBLE")]
        assert read.title == "Title of air"
        assert (node["dcat:keyword"], node[f"{TERMS}version"]) == (["air", "noise"], "sha256:air")


async def test_unknown_and_invisible_datasets_answer_alike(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(policy=MEMBERS)
        peer = Counterparty(two.north)
        answers = []
        for dataset in ("urn:hanse:north:air", "urn:hanse:north:nothing"):
            reply = await peer.get(f"/catalog/datasets/{dataset}")
            error = json.loads(reply.body)
            assert (reply.status, error["@type"]) == (404, "CatalogError")
            answers.append(str(error).replace(dataset, "X"))
        assert answers[0] == answers[1]
        assert (await peer.get("/catalog/datasets/air")).status == 404, "a name is not an id"


async def test_nobody_sees_the_catalogue_without_saying_who(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        peer.headers = dict  # type: ignore[method-assign]  # no Authorization
        for reply in (await peer.post("/catalog/request", REQUEST), await peer.get("/catalog/datasets/x")):
            assert (reply.status, json.loads(reply.body)["@type"]) == (401, "CatalogError")
            assert reply.headers["www-authenticate"] == "Bearer"


QUERY_SPECS: list[tuple[Any, int | None]] = [
    ([{"@type": "QuerySpec", "offset": 0, "limit": 5}], 5),
    ({"offset": 20, "limit": 50}, 10),
    ([{"https://w3id.org/edc/v0.0.1/ns/limit": 7, "filterExpression": [], "sortField": None, "sortOrder": "ASC"}], 7),
    ([{"edc:limit": 10_000}], 30),
    ([], 30),
    ([{"limit": "5"}], None),
    ([{"limit": -1}], None),
    ([{"offset": True}], None),
    ([{"filterExpression": [{"operandLeft": "id", "operator": "like", "operandRight": "x"}]}], None),
    ([{"filterExpression": [{"operandLeft": {"@id": "id"}, "operator": ["="], "operandRight": {}}]}], None),
    ([{"filterExpression": [{"operandLeft": "keyword", "operator": "=", "operandRight": "x"}]}], None),
    ([{"filterExpression": [{"operandLeft": "id", "operator": "=", "operandRight": ["x", "y"]}]}], None),
    ([{"filterExpression": ["id = x"]}], None),
    ([{"sortField": "id"}], None),
    ([{"theme": "air"}], None),
    (["theme = air"], None),
    ("theme = air", None),
]


@pytest.mark.parametrize(("given", "expected"), QUERY_SPECS)
async def test_only_a_filter_that_asks_for_a_piece_is_understood(
    tmp_path: Path, given: Any, expected: int | None
) -> None:
    async with pair(tmp_path) as two:
        await seeded(two.north, 30)
        reply = await Counterparty(two.north).post("/catalog/request", {**REQUEST, "filter": given})
        if expected is None:
            assert (reply.status, json.loads(reply.body)["@type"]) == (400, "CatalogError")
        else:
            assert len(json.loads(reply.body)["dataset"]) == expected


EDC = "https://w3id.org/edc/v0.0.1/ns/"


def equals(left: str, right: str) -> Json:
    return {"@type": "Criterion", "operandLeft": left, "operator": "=", "operandRight": right}


def expanded(left: str, right: str) -> Json:
    named = {"operandLeft": left, "operator": "=", "operandRight": right}
    return {EDC + name: [{"@value": value}] for name, value in named.items()}


@pytest.mark.parametrize("form", [equals, expanded])
@pytest.mark.parametrize("left", ["id", "@id", f"{EDC}id"])
async def test_a_filter_for_the_id_of_a_dataset_gives_that_one(tmp_path: Path, left: str, form: Any) -> None:
    async with pair(tmp_path) as two:
        ids = await seeded(two.north, 3)
        await two.north.publish("urn:hanse:north:hidden", policy=MEMBERS)
        peer = Counterparty(two.north)

        async def found(*wanted: str, **more: int) -> list[str]:
            spec = {"filterExpression": [form(left, one) for one in wanted], **more}
            reply = await peer.post("/catalog/request", {**REQUEST, "filter": [spec]})
            if reply.status == 400:
                return ["refused"]
            assert "link" not in reply.headers
            return [one["@id"] for one in json.loads(reply.body).get("dataset", [])]

        assert await found(ids[1]) == await found(ids[1], ids[1]) == [ids[1]]
        assert await found("urn:hanse:north:nothing") == await found("urn:hanse:north:hidden") == []
        assert await found(ids[1], offset=1) == []
        assert await found(ids[0], ids[1]) == ["refused"]


@pytest.mark.parametrize("cursor", ["after=%FF", "after=%C3%A9%C3%A9", "before=!!!"])
async def test_a_broken_page_address_is_refused_or_leads_nowhere(tmp_path: Path, cursor: str) -> None:
    async with pair(tmp_path) as two:
        await seeded(two.north, 3)
        reply = await Counterparty(two.north).post(f"/catalog/request?{cursor}", REQUEST)
        assert reply.status in (200, 400)
        assert json.loads(reply.body)["@type"] in ("Catalog", "CatalogError")


async def test_a_body_beyond_the_limit_and_a_wrong_message_are_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        assert (await peer.post("/catalog/request", b" " * 70_000)).status == 413
        assert (await peer.post("/catalog/request", {"@type": "ContractRequestMessage"})).status == 400
        assert (await peer.post("/catalog/request", b"")).status == 400


async def test_the_version_document_is_open_and_leads_to_the_endpoints(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        assert await two.south.peer.base_of(f"http://{two.north.host}/") == two.north.base


async def test_partners_read_the_whole_catalogue_and_single_datasets(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        ids = await seeded(two.north, 230)
        known: dict[str, dict[str, str] | None] = {
            "north": {"id": two.north.participant, "name": "north", "url": f"http://{two.north.host}"},
            "west": {},
            "south": None,
        }

        async def member(named: str) -> dict[str, str] | None:
            return known[named]

        partners = ParticipantDirectory(peer=two.south.peer, member=member)
        found = await partners.find("north")
        assert found == Participant(two.north.participant, two.north.base, "north")
        assert [one["@id"] for one in (await partners.catalog(found))["dataset"]] == ids
        assert len((await partners.catalog(found, limit=120))["dataset"]) == 120
        alone = await partners.catalog(found, limit=9, dataset="d229")  # however far behind the first nine it is
        assert [one["@id"] for one in alone["dataset"]] == ids[229:]
        assert len((await partners.catalog(found, limit=9, dataset="nothing"))["dataset"]) == 9
        assert (await partners.dataset(found, "d007")).offers[0]["@id"] == "offer:7"
        with pytest.raises(Absent, match=r"no member 'west' .*; list its members with `hanse members`"):
            await partners.find("west")
        with pytest.raises(Absent, match=r"no member 'south': .* set HANSE_TRUST_ANCHOR"):
            await partners.find("south")
        with pytest.raises(PeerRefused, match="no dataset"):
            await partners.dataset(found, "nothing")


async def test_a_catalogue_that_answers_for_another_dataset_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tmp_path) as two:
        asked, other = await seeded(two.north, 2)
        shown = two.north.catalog.read_dataset
        monkeypatch.setattr(two.north.catalog, "read_dataset", lambda _, caller: shown(other, caller))
        partners = ParticipantDirectory(peer=two.south.peer, member=dict)  # type: ignore[arg-type]  # nobody is looked up
        with pytest.raises(PeerNonsense, match=f"expected the dataset {asked} .*, got {other}"):
            await partners.dataset(Participant(two.north.participant, two.north.base), asked)


class Answering:
    """A peer of one answer."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    async def fetch(self, *_: Any, **__: Any) -> PeerAnswer:
        return PeerAnswer(200, self._document)


async def test_a_catalogue_that_does_not_end_takes_no_memory_without_end() -> None:
    """Two hundred pages of eight megabytes, each with one dataset, were all kept."""
    text = "x" * 2**22
    asked: list[str] = []

    class Endless(Cable):
        async def call(self, method: str, url: str, **_: Any) -> Reply:
            asked.append(url)
            body = json.dumps({"@type": "Catalog", "dataset": [{"@id": f"urn:{len(asked)}", "dct:title": text}]})
            link = f'<https://north.example/catalog/request?after={len(asked)}>; rel="next"'
            return Reply(200, {"link": link}, body.encode())

    peer = ProtocolClient(wire=Endless(), mint=minting("{}"))
    partners = ParticipantDirectory(peer=peer, member=dict)  # type: ignore[arg-type]  # nobody is looked up
    with pytest.raises(PeerNonsense, match="expected a catalogue of at most 33554432 bytes from north"):
        await partners.catalog(Participant("did:web:north", "https://north.example", "north"))
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("catalog", "expected"),
    [
        ({"@type": "Catalog", "dataset": [{"@id": "urn:d"}]}, ["urn:d"]),
        ({"@type": "dcat:Catalog", "participantId": "north's", "dcat:dataset": {"@id": "urn:d"}}, ["urn:d"]),
        (
            {
                "dataset": [{"@id": "urn:d"}],
                "catalog": [{"catalog": {"dataset": [{"@id": "urn:e"}]}}, {"@id": "urn:elsewhere", "service": []}],
            },
            ["urn:d", "urn:e"],
        ),
        ({"catalog": [{"participantId": "did:web:south", "dataset": [{"@id": "urn:d"}]}]}, []),
        ({"dataset": ["urn:d"], "catalog": ["urn:c"]}, []),
        ({"dspace:participantId": {"@id": "north's"}, "dcat:dataset": {"@id": "urn:d"}}, ["urn:d"]),
        (
            {
                "dspace:participantId": {"@value": "did:web:north"},
                "dcat:catalog": [
                    {"dspace:participantId": {"@id": "did:web:north"}, "dcat:dataset": {"@id": "urn:d"}},
                    {"dspace:participantId": [{"@value": "did:web:north"}], "dcat:dataset": {"@id": "urn:e"}},
                    {"dspace:participantId": {"@id": "did:web:south"}, "dcat:dataset": {"@id": "urn:f"}},
                ],
            },
            ["urn:d", "urn:e"],
        ),
    ],
    ids=["plain", "prefixed", "nested", "nested, another's", "references", "node as owner", "nested, nodes as owners"],
)
async def test_all_of_a_participants_datasets_are_found_in_its_catalogue(
    catalog: dict[str, Any], expected: list[str]
) -> None:
    partners = ParticipantDirectory(peer=Answering(catalog), member=dict)  # type: ignore[arg-type]  # nobody is looked up
    found = await partners.catalog(Participant("did:web:north", "https://north.example"))
    assert [entry["@id"] for entry in found["dataset"]] == expected


async def test_a_catalogue_of_too_many_values_is_told_as_its_owners() -> None:
    """As of a connector of before: `expected one JSON object as message` said nothing of whose it was."""

    class Large(Cable):
        async def call(self, *_: Any, **__: Any) -> Reply:
            return Reply(200, {}, json.dumps({"dataset": [0] * 50_001}).encode())

    partners = ParticipantDirectory(peer=ProtocolClient(wire=Large(), mint=minting("{}")), member=dict)  # type: ignore[arg-type]  # nobody is looked up
    with pytest.raises(PeerNonsense, match=r"expected its catalogue from north as JSON of at most 50000 values"):
        await partners.catalog(Participant("did:web:north", "https://north.example", "north"))


def test_a_dataset_of_another_is_read_in_prefixed_form() -> None:
    node = {
        "@type": "dcat:Dataset",
        "@id": "urn:d",
        "dct:title": {"@value": "Air", "@language": "en"},
        "odrl:hasPolicy": {"@id": "offer:1", "@type": "odrl:Offer"},
        "dcat:distribution": {"dct:format": {"@id": "HttpData-PULL"}},
    }
    read = read_dataset(node, jsonld.prefixes_of(node))
    assert (read.id, read.title, read.formats) == ("urn:d", "Air", ("HttpData-PULL",))
    assert read.offers == ({"@id": "offer:1", "@type": "odrl:Offer"},)
    with pytest.raises(PeerNonsense):
        read_dataset({"title": "no id"}, {})


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('<https://a.example/p?after=x>; rel="next"', "https://a.example/p?after=x"),
        ("<https://a.example/p?before=x>; rel=\"previous\", <https://a.example/2>; rel='next'", "https://a.example/2"),
        ('<https://evil.example/p>; rel="next"', ""),
        ('<https://a.example/asked>; rel="next"', ""),
        ("garbage", ""),
        ("", ""),
    ],
)
def test_a_next_page_is_followed_only_on_the_same_server(link: str, expected: str) -> None:
    answer = PeerAnswer(200, {}, headers={"link": link} if link else {})
    assert next_page(answer, "https://a.example/asked") == expected


TERMS = "https://w3id.org/hanse/catalog/1/"


async def test_a_description_has_no_more_bytes_than_a_reader_takes(tmp_path: Path) -> None:
    """Nested types, or long names, were more than the eight megabytes that a connector reads of an answer."""
    wide = [{"name": f"c{number}", "type": f"STRUCT({'a' * 5_000} BIGINT)"} for number in range(2_000)]
    long = [{"name": f"c{number}".ljust(250, "x"), "type": "DOUBLE"} for number in range(40_000)]
    async with pair(tmp_path) as two:
        (one,) = await seeded(two.north, 1)
        for schema, listed in ((wide, 2_000), (long, 16_500)):

            def widen(tx: Transaction, schema: list[dict[str, str]] = schema) -> None:
                tx.datasets.get_current(tx.datasets.of(one)).schema = schema

            await two.north.store.write(widen)
            alone = await Counterparty(two.north).get(f"/catalog/datasets/{one}")
            columns = read_dataset(jsonld.node_of(jsonld.parse(alone.body)), {}).columns
            assert len(alone.body) < 5 * 2**20
            assert abs(len(columns) - listed) < 500


@pytest.mark.parametrize(
    ("count", "listed", "typed"), [(500, 500, True), (5_000, 5_000, False), (20_000, 7_400, False)]
)
async def test_a_dataset_of_very_many_columns_has_a_description_that_is_bounded(
    tmp_path: Path, count: int, listed: int, typed: bool
) -> None:
    async with pair(tmp_path) as two:
        (wide,) = await seeded(two.north, 1)

        def widen(tx: Transaction) -> None:
            version = tx.datasets.get_current(tx.datasets.of(wide))
            version.schema = [{"name": f"c{number}", "type": "DOUBLE"} for number in range(count)]

        await two.north.store.write(widen)
        reply = await Counterparty(two.north).post("/catalog/request", REQUEST)
        (entry,) = json.loads(reply.body)["dataset"]
        columns = entry[f"{TERMS}columns"]["@list"]
        assert len(json.dumps(entry)) < 80 * 2**10
        assert abs(len(columns) - listed) < 500
        assert isinstance(columns[0], dict) is typed
        assert entry.get(f"{TERMS}columnCount") == (count if len(columns) < count else None)
        shown = read_dataset(entry, {})
        assert (shown.columns[7][0], len(shown.columns)) == ("c7", len(columns))
        alone = await Counterparty(two.north).get(f"/catalog/datasets/{wide}")
        assert len(json.loads(alone.body)[f"{TERMS}columns"]["@list"]) == count
        read = read_dataset(jsonld.node_of(jsonld.parse(alone.body)), {})  # or nobody could agree on it
        assert read.columns[7][:2] == ("c7", "DOUBLE" if count <= 8_000 else "")


async def test_a_page_has_as_many_datasets_as_a_reader_takes_and_the_next_one_the_rest(tmp_path: Path) -> None:
    """Of sixty datasets with two hundred columns each, nobody could read the catalogue."""
    async with pair(tmp_path) as two:
        ids = await seeded(two.north, 60)

        def widen(tx: Transaction) -> None:
            for one in ids:
                version = tx.datasets.get_current(tx.datasets.of(one))
                version.schema = [{"name": f"c{number}", "type": "DOUBLE"} for number in range(200)]

        await two.north.store.write(widen)
        counterparty = Counterparty(two.north)
        got: list[str] = []
        path, backwards = "/catalog/request", ""
        while path:
            reply = await counterparty.post(path, REQUEST)
            jsonld.parse(reply.body)  # what it refuses is no document to a connector
            found, links = await page(counterparty, path)
            got += found
            path, backwards = links.get("next", ""), path if "next" not in links else ""
        assert got == ids
        _, links = await page(counterparty, backwards)
        before, more = await page(counterparty, links["previous"])
        assert before == ids[-len(before) - len(found) : -len(found)]
        assert len(before) > 10
        last, _ = await page(counterparty, more["next"])
        assert last == found
        counted = [await page(counterparty, filter={"offset": offset, "limit": 50}) for offset in (0, 50)]
        assert counted[0][0] + counted[1][0] == ids  # who counts itself would not see what a shorter page leaves out
