"""DCAT-AP held against the published SHACL shapes, in three spellings; Croissant; paging for harvesters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyshacl
import pytest
import rdflib
from hypothesis import given
from hypothesis import strategies as st
from rdflib.compare import isomorphic

from catalogue.api.export_routes import WAYS
from catalogue.crawl import ingest
from catalogue.crawl.entry import EntryColumn
from catalogue.exports import EXPORTS, croissant
from catalogue.exports.croissant import CONFORMS_TO, data_type
from catalogue.exports.graph import Iri, Node, RdfLiteral, rdfxml
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import MEMBERS_ONLY, Provider, dataset

pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph:DeprecationWarning")  # inside rdflib's own reader

SHAPES = Path(__file__).parents[2] / "cases" / "dcat-ap"
FORMATS = {"jsonld": "json-ld", "ttl": "turtle", "rdf": "xml"}
DCAT = rdflib.Namespace("http://www.w3.org/ns/dcat#")
ODRL = rdflib.Namespace("http://www.w3.org/ns/odrl/2/")
HYDRA = rdflib.Namespace("http://www.w3.org/ns/hydra/core#")
THEME = "http://publications.europa.eu/resource/authority/data-theme/HEAL"

FULL = {
    "dct:title": "Patients",
    "dct:description": 'One row per patient,\n"quoted" & <tagged>.',
    "dcat:keyword": ["cancer", "trial"],
    "dcat:theme": [{"@id": THEME}, "free text that is no theme"],
    "dct:license": "https://creativecommons.org/licenses/by/4.0/",
    "hanse:columns": [{"name": "age", "type": "int32", "description": "in years"}, {"name": "t", "type": "timestamp"}],
}
LOGIC = {
    "permission": [
        {
            "action": "ds:query",
            "constraint": [
                {"leftOperand": "ds:membership", "operator": "eq", "rightOperand": "active"},
                {
                    "or": [
                        {"leftOperand": "ds:row/country", "operator": "isAnyOf", "rightOperand": ["DE", "FR"]},
                        {"leftOperand": "ds:row/consent", "operator": "eq", "rightOperand": "broad"},
                    ]
                },
            ],
            "duty": [{"action": "ds:mask", "constraint": [
                {"leftOperand": "ds:column", "operator": "eq", "rightOperand": "name"}]}],
        }
    ],
    "prohibition": [{"action": "odrl:distribute"}],
}  # fmt: skip


async def graph_of(catalogue: Catalogue, path: str) -> rdflib.Graph:
    answer = await catalogue.http.get(path, headers=catalogue.operator)
    assert answer.status_code == 200, answer.text
    suffix = path.partition("?")[0].rpartition(".")[2]
    assert answer.headers["content-type"].startswith(EXPORTS[suffix].media_type)
    return rdflib.Graph().parse(data=answer.text, format=FORMATS[suffix])


@pytest.fixture
async def filled(catalogue: Catalogue, north: Provider, south: Provider) -> Catalogue:
    north.datasets = [
        dataset("urn:hanse:north:full", policy=LOGIC, **FULL),
        dataset("urn:hanse:north:bare", policy=MEMBERS_ONLY),
        dataset('https://north.test/data/öl?x="1"&y=<2>', **{"dct:license": "in-house", "dct:title": "Ö"}),
    ]
    south.datasets = [dataset("urn:hanse:south:unreadable", policy={"permission": 7})]
    for member, name in ((north, "north"), (south, "south")):
        await catalogue.admit(member, name, title=f"Kontor & {name}")
        await catalogue.crawl(name)
    return catalogue


async def test_the_catalogue_keeps_every_mandatory_rule_of_dcat_ap(filled: Catalogue) -> None:
    graph = await graph_of(filled, "/catalog.ttl")
    assert len(set(graph.subjects(rdflib.RDF.type, DCAT.Dataset))) == 4
    shapes = rdflib.Graph().parse(SHAPES / "shapes.ttl")
    fits, _, report = pyshacl.validate(graph, shacl_graph=shapes)
    assert fits, report


async def test_a_full_description_lacks_little_that_dcat_ap_recommends(filled: Catalogue) -> None:
    graph = await graph_of(filled, "/datasets/urn:hanse:north:full/dcat.ttl")
    shapes = rdflib.Graph().parse(SHAPES / "shapes_recommended.ttl")
    _, report, _ = pyshacl.validate(graph, shacl_graph=shapes, allow_warnings=True)
    shacl = rdflib.Namespace("http://www.w3.org/ns/shacl#")
    focus = rdflib.URIRef("http://catalogue.test/datasets/urn:hanse:north:full")
    lacking = {report.value(one, shacl.resultPath) for one in report.subjects(shacl.focusNode, focus)}
    assert lacking == {rdflib.DCTERMS.spatial, rdflib.DCTERMS.temporal}  # a connector does not tell them


async def test_the_three_spellings_say_the_same(filled: Catalogue) -> None:
    for path in ("/datasets/urn:hanse:north:full/dcat", "/datasets/urn:hanse:south:unreadable/dcat"):
        graphs = [await graph_of(filled, f"{path}.{suffix}") for suffix in FORMATS]
        assert all(isomorphic(graphs[0], other) for other in graphs[1:])


async def test_the_offer_travels_as_odrl_with_its_logic(filled: Catalogue) -> None:
    graph = await graph_of(filled, "/datasets/urn:hanse:north:full/dcat.jsonld")
    offer = graph.value(None, rdflib.DCTERMS.identifier, rdflib.Literal("urn:hanse:north:full:offer"))
    assert (None, ODRL.hasPolicy, offer) in graph
    permission = graph.value(offer, ODRL.permission)
    groups = [node for node in graph.objects(permission, ODRL.constraint) if (node, ODRL["or"], None) in graph]
    assert [len(list(graph.objects(node, ODRL["or"]))) for node in groups] == [2]
    assert {str(value) for value in graph.objects(None, ODRL.rightOperand)} == {"active", "DE", "FR", "broad", "name"}


async def test_no_member_adds_to_what_another_one_describes(filled: Catalogue, south: Provider) -> None:
    """Nodes of one id are one node to a reader: a second permission in an offer, say."""
    before = await graph_of(filled, "/catalog.ttl")
    theirs = {str(one) for one in before.subjects() if isinstance(one, rdflib.URIRef)} | {"urn:hanse:north:full:offer"}
    for number, iri in enumerate(sorted(theirs)):
        made = dataset(f"urn:hanse:south:d{number}", **{"dct:license": iri, "dct:title": "d"})
        made["hasPolicy"][0]["@id"] = iri
        made["distribution"][0]["accessService"]["endpointURL"] = iri.partition("#")[0]
        south.datasets.append(made)
    await filled.crawl("south")
    after = await graph_of(filled, "/catalog.ttl")
    assert len(set(after.subjects(rdflib.RDF.type, DCAT.Dataset))) == 4 + len(theirs)
    changing = {rdflib.URIRef(f"http://catalogue.test/{page}") for page in ("catalog", "catalog.ttl")}
    for node in {rdflib.URIRef(iri) for iri in theirs} - changing:
        assert isomorphic(before.cbd(node), after.cbd(node)), node


async def test_a_harvester_walks_all_pages_and_meets_each_dataset_once(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset(f"urn:hanse:north:d{n:03}") for n in range(230)]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    met: list[str] = []
    path = "/catalog.ttl"
    sizes = []
    while path:
        graph = await graph_of(catalogue, path)
        found = sorted(str(one) for one in graph.subjects(rdflib.RDF.type, DCAT.Dataset))
        met, sizes = met + found, [*sizes, len(found)]
        assert {int(total) for total in graph.objects(None, HYDRA.totalItems)} == {230}
        following = next(graph.objects(None, HYDRA.next), None)
        path = str(following).removeprefix("http://catalogue.test") if following else ""
    assert sizes == [100, 100, 30]
    assert len(set(met)) == 230
    assert (await catalogue.http.get("/catalog.ttl?after=%25%25")).status_code == 400
    assert (await catalogue.http.get("/catalog.csv")).status_code == 404


async def test_an_unchanged_export_is_not_sent_twice_and_never_shared_with_others(filled: Catalogue) -> None:
    path = "/datasets/urn:hanse:north:full/dcat.ttl"
    first = await filled.http.get(path, headers=filled.operator)
    tag = {"if-none-match": first.headers["etag"]}
    assert (await filled.http.get(path, headers={**filled.operator, **tag})).status_code == 304
    assert first.headers["cache-control"].startswith("private")
    assert (await filled.http.get(path, headers=tag)).status_code == 404  # hidden from others, tag or no tag


async def test_croissant_has_all_that_is_required_and_the_policy(filled: Catalogue) -> None:
    answer = await filled.http.get("/datasets/urn:hanse:north:full/croissant", headers=filled.operator)
    assert answer.headers["content-type"] == f'application/ld+json; profile="{CONFORMS_TO}"'
    found: dict[str, Any] = answer.json()
    required = ("@context", "@type", "conformsTo", "name", "description", "url", "license", "creator", "datePublished",
                "distribution")  # fmt: skip
    assert all(found[key] for key in required)
    fields = found["recordSet"][0]["field"]
    assert [(one["name"], one["dataType"]) for one in fields] == [("age", "sc:Integer"), ("t", "sc:DateTime")]
    assert fields[0]["source"] == {"fileObject": {"@id": "data"}, "extract": {"column": "age"}}
    offer = found["usageInfo"][0]
    assert (offer["@type"], offer["odrl:prohibition"]["odrl:action"]) == ("odrl:Offer", {"@id": str(ODRL.distribute)})
    graph = rdflib.Graph().parse(data=json.dumps(found), format="json-ld")
    assert (None, rdflib.URIRef("http://mlcommons.org/croissant/recordSet"), None) in graph


@pytest.mark.parametrize(
    ("written", "kind", "is_list"),
    [
        ("int64", "sc:Integer", False), ("BIGINT", "sc:Integer", False), ("UTINYINT", "sc:Integer", False),
        ("uint8", "sc:Integer", False), ("INTEGER", "sc:Integer", False), ("double", "sc:Float", False),
        ("DECIMAL(18,3)", "sc:Float", False), ("float32", "sc:Float", False), ("bool", "sc:Boolean", False),
        ("BOOLEAN", "sc:Boolean", False), ("date32[day]", "sc:Date", False), ("DATE", "sc:Date", False),
        ("timestamp[us, tz=UTC]", "sc:DateTime", False), ("TIMESTAMP WITH TIME ZONE", "sc:DateTime", False),
        ("string", "sc:Text", False), ("VARCHAR", "sc:Text", False), ("", "sc:Text", False),
        ("list<item: int32>", "sc:Integer", True), ("VARCHAR[]", "sc:Text", True), ("interval", "sc:Text", False),
    ],
)  # fmt: skip
def test_column_types_become_croissants(written: str, kind: str, is_list: bool) -> None:
    assert data_type(written) == (kind, is_list)


def test_columns_of_one_name_are_fields_of_their_own() -> None:
    names = ("a", "a", "a-2", "b", "a", "a-2")
    fields = [one["@id"] for one in croissant._records([EntryColumn(name) for name in names])["field"]]
    assert fields == ["rows/a", "rows/a-3", "rows/a-2", "rows/b", "rows/a-4", "rows/a-2-2"]


async def test_the_report_names_what_a_description_lacks(filled: Catalogue) -> None:
    full = (await filled.http.get("/datasets/urn:hanse:north:full/validation", headers=filled.operator)).json()
    bare = (await filled.http.get("/datasets/urn:hanse:north:bare/validation", headers=filled.operator)).json()
    assert (full["valid"], bare["valid"]) == (True, False)
    assert full["score"] > 90 > 50 > bare["score"]
    assert [finding["check"] for finding in bare["findings"]][:2] == ["description", "schema"]


@pytest.mark.parametrize("word", WAYS)
async def test_an_id_may_end_as_the_address_of_an_export_once_did(
    catalogue: Catalogue, north: Provider, word: str
) -> None:
    """An address is first that of the dataset with this id; the older addresses of other datasets' exports hold."""
    ids = ["urn:hanse:north:a", f"urn:hanse:north:a/{word}", "urn:hanse:north:b"]
    north.datasets = [dataset(one, **{"dct:title": f"Title {place}"}) for place, one in enumerate(ids)]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    http, paths = catalogue.http, [f"/datasets/{quote(one, safe=':')}" for one in ids]
    for place, path in enumerate(paths):
        page = (await http.get(path)).text
        assert f"<h1>Title {place}</h1>" in page
        links = set(re.findall('href="([^"]+[?]as=[^"]+)"', page))
        assert links == {f"{path}?as={way}" for way in WAYS if way != "validation"}
        ttl = (await http.get(f"{path}?as=dcat.ttl")).text
        assert f"<http://catalogue.test{path}>\n    a dcat:Dataset" in ttl
        assert f'dct:title "Title {place}"' in ttl
    older, newer = (await http.get(f"{paths[2]}/{word}")), (await http.get(f"{paths[2]}?as={word}"))
    assert (older.status_code, older.text) == (200, newer.text)
    assert older.headers["content-type"] == newer.headers["content-type"]
    assert newer.headers["content-type"].startswith(WAYS[word][0])
    assert (await http.get(f"{paths[2]}?as=csv")).status_code == 400
    await catalogue.parts.store.write(lambda tx: ingest.withdraw(tx, north.did, ids[1:]))
    assert {(await http.get(f"{paths[1]}{end}")).status_code for end in ("", "?as=croissant")} == {410}
    assert (await http.get(f"{paths[2]}/{word}")).status_code == 410


EU = "http://publications.europa.eu/resource/authority/language/"


@pytest.mark.parametrize(
    ("said", "tag", "languages"),
    [
        ({}, None, []),
        ({"dct:language": {"@id": f"{EU}EST"}}, "et", ["EST"]),
        ({"dct:language": "de-AT"}, "de-AT", ["DEU"]),
        ({"dct:language": ["de", "en"]}, None, ["DEU", "ENG"]),
        ({"dct:language": "German"}, None, []),
        ({"dct:language": "en", "dct:title": {"@value": "Hering", "@language": "de"}}, None, ["ENG"]),
        (
            {"dct:language": "en", **{f"dct:{term}": {"@value": "Hering", "@language": "de"}
                                      for term in ("title", "description")}},
            "de",
            ["ENG"],
        ),
    ],
)  # fmt: skip
async def test_texts_have_the_language_that_was_said_and_no_other(
    catalogue: Catalogue, north: Provider, said: dict[str, Any], tag: str | None, languages: list[str]
) -> None:
    """Where texts and dataset say several, none: with a wrong one they would be taken for what they are not."""
    path, about = "/datasets/urn:hanse:north:d", {"dct:title": "Hering", "dct:description": "Salz"}
    north.datasets = [dataset("urn:hanse:north:d", **{**about, **said})]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    graph = await graph_of(catalogue, f"{path}/dcat.ttl")
    here = rdflib.URIRef(f"http://catalogue.test{path}")
    texts = [*graph.objects(here, rdflib.DCTERMS.title), *graph.objects(here, rdflib.DCTERMS.description)]
    assert [text.language for text in texts] == [tag, tag]
    assert sorted(map(str, graph.objects(here, rdflib.DCTERMS.language))) == [EU + code for code in languages]
    made = (await catalogue.http.get(f"{path}/croissant")).json()
    assert made["@context"]["@language"] == tag
    (name,) = rdflib.Graph().parse(data=json.dumps(made), format="json-ld").objects(here, rdflib.SDO.name)
    assert name.language == tag


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn")), max_size=40)


@given(text=TEXT, iri=TEXT, language=st.sampled_from(["", "en", "el"]))
def test_no_text_breaks_out_of_its_place(text: str, iri: str, language: str) -> None:
    node = Node(("dcat:Dataset",), f"http://x.test/{iri}")
    inner = Node(("csvw:Schema",))
    inner.add("csvw:name", RdfLiteral(text))
    node.add("dct:title", RdfLiteral(text, language=language))
    node.add("dcat:landingPage", Iri(f"http://x.test/{iri}#a"))
    node.add("csvw:tableSchema", inner)
    graphs = [rdflib.Graph().parse(data=EXPORTS[name].text([node]), format=kind) for name, kind in FORMATS.items()]
    for graph in graphs:
        assert len(graph) == 6
        assert [str(title) for title in graph.objects(None, rdflib.DCTERMS.title)] == [text]


def test_no_text_makes_the_document_none_at_all() -> None:
    node = Node(("dcat:Dataset",), "http://x.test/\x0b")
    node.add("dct:title", RdfLiteral("a\x01b\ufffe\ud800"))
    (title,) = rdflib.Graph().parse(data=rdfxml([node]), format="xml").objects(None, rdflib.DCTERMS.title)
    assert str(title) == "a\ufffdb\ufffd\ufffd"
