"""The pages a person sees: they work without JavaScript, escape what is foreign, and keep a strict policy."""

from __future__ import annotations

import ast
import gzip
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from catalogue.crawl.entry import read_dataset
from catalogue.pages import page_text, site
from catalogue.search.facets import EntryView
from catalogue.search.search_query import SearchQuery
from connector.infra import html
from connector.infra.html import wording
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import MEMBERS_ONLY, Provider, Reply, dataset

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "circle", "path", "rect"}
HTML = {"accept": "text/html"}


class Reader(HTMLParser):
    """Tags that are open, attributes, headings and links of a page; an unclosed tag is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.labels: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not any(name.startswith("on") or name == "style" for name in found), (tag, found)
        assert tag != "style"
        assert tag != "script" or found.get("src", "")
        self.links += [value for name, value in attrs if name in ("href", "src", "action") and value]
        self.labels.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


async def page(catalogue: Catalogue, path: str, *, operator: bool = False) -> tuple[str, Reader]:
    headers = {**HTML, **(catalogue.operator if operator else {})}
    answer = await catalogue.http.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    return answer.text, Reader(answer.text)


@pytest.fixture
async def filled(catalogue: Catalogue, north: Provider) -> Catalogue:
    about = {
        "dct:title": EVIL,
        "dct:description": EVIL,
        "dcat:keyword": [EVIL],
        "dcat:theme": EVIL,
        "dct:license": EVIL,
        "hanse:columns": [{"name": EVIL, "type": EVIL, "description": EVIL, "unit": EVIL}],
    }
    north.datasets = [
        dataset("urn:hanse:north:evil", **about),
        dataset("urn:hanse:north:members", policy=MEMBERS_ONLY, **{"dct:license": "javascript:alert(1)"}),
        dataset(f"urn:hanse:north:{EVIL.replace(' ', '')}"),
    ]  # fmt: skip
    await catalogue.admit(north, "north", title=EVIL)
    await catalogue.crawl("north")
    return catalogue


@pytest.mark.parametrize("operator", [False, True])
@pytest.mark.parametrize(
    "path",
    ["/", "/?q=script", "/?q=nothing-like-it", "/?q=script&theme=HEAL&column=x", "/members", "/login",
     "/datasets/urn:hanse:north:evil", "/?keyword=%3Cscript%3E"],
)  # fmt: skip
async def test_foreign_text_never_becomes_markup(filled: Catalogue, path: str, operator: bool) -> None:
    text, read = await page(filled, path, operator=operator)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert not any(link.lower().startswith("javascript:") for link in read.links)


async def test_every_link_of_a_page_leads_somewhere(filled: Catalogue) -> None:
    met: set[str] = set()
    for start in ("/", "/members", "/datasets/urn:hanse:north:evil"):
        _, read = await page(filled, start, operator=True)
        met |= {link for link in read.links if link.startswith("/")}
    statuses = {}
    for link in sorted(met - {"/language", "/logout", "/members/visit", "/members/status"}):
        answer = await filled.http.get(link.partition("#")[0], headers=filled.operator)
        statuses[link] = answer.status_code
    assert {link: status for link, status in statuses.items() if status != 200} == {}


async def test_each_page_is_small(filled: Catalogue) -> None:
    assets = sum(len(gzip.compress((html.FOLDER / name).read_bytes())) for name in ("hanse.css", "hanse.js"))
    for path in ("/", "/datasets/urn:hanse:north:evil", "/members"):
        text, _ = await page(filled, path)
        assert len(gzip.compress(text.encode())) + assets < 60_000


async def test_nothing_is_loaded_from_elsewhere() -> None:
    for name in html.FILES:
        text = (html.FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(", text), name


async def test_pages_name_their_controls_for_screen_readers(filled: Catalogue) -> None:
    for path in ("/", "/datasets/urn:hanse:north:evil", "/members", "/login"):
        text, read = await page(filled, path, operator=path != "/login")
        assert len(re.findall(r"<h1[ >]", text)) == 1
        assert 'lang="en"' in text
        assert '<main id="main">' in text
        for tag, attributes in read.labels:
            named = "aria-label" in attributes or attributes.get("type") == "hidden"
            assert tag != "input" or named or "<label" in text


async def test_a_search_without_hits_says_what_to_leave_out(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a", **{"dct:title": "herring", "dcat:theme": "ENVI"})]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    text, read = await page(catalogue, "/?q=herring&theme=HEAL")
    assert "Nothing fits" in text
    assert "without Theme: HEAL" in text
    assert "/?q=herring" in read.links
    text, _ = await page(catalogue, "/?q=herring&column=salt")
    assert "without the column salt" in text


@pytest.mark.parametrize(("seconds", "most"), [(60.0, 8), (-1.0, 0)])
async def test_what_to_leave_out_is_found_by_a_few_questions_in_a_short_time(
    catalogue: Catalogue, north: Provider, monkeypatch: pytest.MonkeyPatch, seconds: float, most: int
) -> None:
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    asked: dict[str, int] = {"search": 0, "count": 0}

    def counted(name: str) -> None:
        do = getattr(catalogue.parts.index, name)

        def ask(*about: Any) -> Any:
            asked[name] += 1
            return do(*about)

        monkeypatch.setattr(catalogue.parts.index, name, ask)

    for name in asked:
        counted(name)
    monkeypatch.setattr(site, "_SPOILERS_SECONDS", seconds)
    columns = "&".join(f"column=c{number}" for number in range(12))
    text, _ = await page(catalogue, f"/?q=herring&theme=HEAL&license=x&{columns}")
    assert "Nothing fits" in text
    assert asked == {"search": 1, "count": most}


async def test_a_browser_gets_a_problem_as_a_page_and_a_program_as_json(catalogue: Catalogue) -> None:
    for path, status, words_ in (
        ("/datasets/x", 404, "members only"),
        ("/?page=0", 400, "from 1 on"),
        ("/no", 404, "/docs"),
    ):
        shown = await catalogue.http.get(path, headers=HTML)
        assert (shown.status_code, shown.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert words_ in shown.text
        Reader(shown.text)
        told = await catalogue.http.get(path, headers={"accept": "application/json"})
        assert (told.status_code, told.headers["content-type"]) == (status, "application/problem+json")


async def test_who_is_logged_in_stays_so_on_a_page_of_a_problem(catalogue: Catalogue) -> None:
    await catalogue.http.post("/login", content=f"token={catalogue.token}")
    for path in ("/datasets/urn:none", "/nothing", "/?page=0"):
        text = (await catalogue.http.get(path, headers={"accept": "text/html"})).text
        assert "Log out" in text
        assert "Log in" not in text


async def test_the_operator_admits_suspends_and_visits_on_the_page(catalogue: Catalogue, north: Provider) -> None:
    http = catalogue.http
    await http.post("/login", data={"token": catalogue.token})
    wrong = {"id": north.did, "name": "No Name", "url": north.url, "title": "North <1>", "country": "DE"}
    refused = await http.post("/members", data=wrong, headers=HTML)
    assert (refused.status_code, 'role="alert"' in refused.text) == (400, True)
    for kept in ("North &lt;1&gt;", "No Name", 'value="DE"'):
        assert kept in refused.text
    joined = await http.post("/members", data={"id": north.did, "name": "north", "url": north.url, "title": "North"})
    assert joined.status_code == 303
    text, _ = await page(catalogue, "/members")
    assert "Not visited yet" in text
    north.answer = lambda *_: Reply(401)
    await http.post("/members/visit", data={"member": north.did})
    text, _ = await page(catalogue, "/members")
    assert "Not answering" in text
    assert "expected Dataspace Protocol" in text
    fields = {"member": north.did, "status": "suspended"}
    asked = await http.post("/members/status", data=fields | {"ask": "Suspend <it>?"})
    assert ("Suspend &lt;it&gt;?" in asked.text, "Suspended" in (await page(catalogue, "/members"))[0]) == (True, False)
    await http.post("/members/status", data=dict(re.findall(r'hidden" name="([^"]+)" value="([^"]*)"', asked.text)))
    text, _ = await page(catalogue, "/members")
    assert "Suspended" in text
    await http.post("/logout")
    text, _ = await page(catalogue, "/members")
    assert "North" not in text
    refused = await http.post("/members", data={"id": north.did, "name": "north"}, headers=HTML)
    assert refused.status_code == 401


async def test_a_crawl_problem_is_shown_to_the_operator_only(catalogue: Catalogue, north: Provider) -> None:
    north.answer = lambda *_: Reply(401)
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    assert "expected Dataspace Protocol" in (await page(catalogue, "/members", operator=True))[0]
    assert "expected Dataspace Protocol" not in (await page(catalogue, "/members"))[0]


def card(policy: dict[str, Any]) -> EntryView:
    entry = read_dataset(dataset("urn:hanse:north:patients", policy=policy), participant="did:web:n")
    return EntryView(
        entry=entry, offers=entry.offers, state="active", owner="north", owner_title="North", country="DE",
        first_seen=0, modified_at=0, last_seen=0,
    )  # fmt: skip


PURPOSE = {"leftOperand": "odrl:purpose", "operator": "isAnyOf", "rightOperand": ["https://w3id.org/dpv#Marketing"]}


def test_the_snippet_streams_where_rows_may_leave_and_queries_where_not() -> None:
    rows = page_text.snippet(card({"permission": [{"action": "ds:stream", "constraint": [PURPOSE]}]}))
    figures = page_text.snippet(card({"permission": [{"action": "ds:query", "constraint": [PURPOSE]}]}))
    for code in (rows, figures):
        compile(code, "snippet", "exec")
        assert 'purpose="dpv:Marketing"' in code
    assert "data.stream()" in rows
    assert """'SELECT count(*) FROM "north"."patients"'""" in figures


def test_the_snippet_is_for_what_lets_rows_leave_wherever_that_stands() -> None:
    """It had the first purpose of all, for which the owner refuses rows."""
    care = {**PURPOSE, "rightOperand": ["https://w3id.org/dpv#ServiceProvision"]}
    figures, rows = {"action": "ds:query", "constraint": [care]}, {"action": "ds:stream", "constraint": [PURPOSE]}
    apart = replace(card({}), offers=tuple(card({"permission": [one]}).offers[0] for one in (figures, rows)))
    for shown in (card({"permission": [figures, rows]}), apart):
        code = page_text.snippet(shown)
        assert 'purpose="dpv:Marketing"' in code
        assert "data.stream()" in code


@pytest.mark.parametrize("action", ["ds:stream", "ds:query"])
@pytest.mark.parametrize("text", ['x"+print(1)+"', "x'+print(1)+'", "a\\", '"."y"', "é\u202e\u2028\U000e0001", "\t\n"])
def test_whatever_a_member_calls_things_stays_one_text_of_the_snippet(text: str, action: str) -> None:
    purpose = {"leftOperand": "odrl:purpose", "operator": "eq", "rightOperand": text}
    shown = card({"permission": [{"action": action, "constraint": [purpose]}]})
    code = page_text.snippet(replace(shown, entry=replace(shown.entry, name=text, id=f"urn:hanse:north:{text}")))
    assert all(mark.isprintable() or mark == "\n" for mark in code)
    calls = [one for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Call)]
    assert not [one for one in calls if isinstance(one.func, ast.Name) and one.func.id != "print"]
    given = {one.value for call in calls for one in call.args if isinstance(one, ast.Constant)}
    quoted = text.replace('"', '""')
    table = set() if action == "ds:stream" else {f'SELECT count(*) FROM "north"."{quoted}"'}
    assert given == {f"north/{text}"} | table


@pytest.mark.parametrize(
    ("dataset_id", "path"),
    [("urn:hanse:north:a", "north/a"), ("a", "north/a"), ("urn:hanse:north:x:a", "north/urn:hanse:north:x:a"),
     ("https://north.test/x/a", "north/https://north.test/x/a"),
     (f"urn:hanse:north:{'a' * 150}", f"north/urn:hanse:north:{'a' * 150}")],
)  # fmt: skip
def test_a_path_leads_to_its_dataset_and_to_no_other_that_ends_alike(dataset_id: str, path: str) -> None:
    shown = replace(card({}), entry=read_dataset(dataset(dataset_id), participant="did:web:n"))
    assert shown.path == path
    assert f'"{path}"' in page_text.snippet(shown)


def test_rules_with_the_same_conditions_are_said_once() -> None:
    rule = {"constraint": [PURPOSE]}
    policy = {"permission": [{"action": "ds:query", **rule}, {"action": "ds:stream", **rule}, {"action": "ds:train"}]}
    found = page_text.grouped(card(policy).offers[0])
    assert [(one.kind, len(one.terms)) for one in found] == [("may", 2), ("only_if", 1), ("may", 1)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (59, "just now"), (60, "a minute ago"), (300, "5 minutes ago"), (7_200, "2 hours ago"),
     (86_400 * 3, "3 days ago")],
)  # fmt: skip
def test_ages_are_said_in_words(seconds: float, text: str) -> None:
    assert wording.format_age(seconds) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [("https://creativecommons.org/licenses/by/4.0/", "CC BY 4.0"), ("CC0-1.0", "CC0-1.0"),
     ("http://publications.europa.eu/resource/authority/licence/CC_BY", "CC_BY"), ("https://x.test", "https://x.test"),
     ("https://", "https://")],
)  # fmt: skip
def test_licences_are_called_by_their_names(text: str, name: str) -> None:
    assert page_text.licence_name(text) == name


def test_a_search_link_puts_a_filter_in_or_takes_it_out_and_starts_at_page_one() -> None:
    asked = SearchQuery(words="a b", filters={"theme": ("HEAL",)}, columns=("age",), page=3)
    assert page_text.search_url(asked, theme="TRAN") == "/?q=a+b&column=age&theme=HEAL&theme=TRAN"
    assert page_text.search_url(asked, theme="HEAL") == "/?q=a+b&column=age"
    assert page_text.search_url(asked, page=4) == "/?q=a+b&column=age&theme=HEAL&page=4"
    assert page_text.search_url(SearchQuery()) == "/"


async def test_the_page_of_a_member_has_its_health_and_history(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a"), {"@id": "urn:hanse:north:broken", "@type": "Dataset"}]
    await catalogue.admit(north, "north", title=EVIL)
    text, _ = await page(catalogue, "/members/north", operator=True)
    assert "was not visited yet" in text
    assert "issues no credentials" in text
    await catalogue.crawl("north")
    north.answer = lambda *_: Reply(401)
    await catalogue.crawl("north")
    text, read = await page(catalogue, "/members/north", operator=True)
    for shown in ("expected Dataspace Protocol", "Failed", "Complete", "urn:hanse:north:broken", north.did, north.url):
        assert shown in text
    assert "/?participant=north" in read.links
    assert "<script>alert" not in text
    assert "/members/north" in (await page(catalogue, "/members", operator=True))[1].links


async def test_the_page_of_a_member_is_for_the_operator(catalogue: Catalogue, north: Provider) -> None:
    await catalogue.admit(north, "north")
    refused = await catalogue.http.get("/members/north", headers=HTML)
    assert (refused.status_code, north.did in refused.text) == (401, False)
    unknown = await catalogue.http.get("/members/south", headers={**HTML, **catalogue.operator})
    assert unknown.status_code == 404
    assert "/members/north" not in (await page(catalogue, "/members"))[1].links


@pytest.mark.parametrize(("sent", "target"), [("member", "/members/north"), ("list", "/members"), ("x", "/members")])
async def test_a_form_leads_back_to_its_page(catalogue: Catalogue, north: Provider, sent: str, target: str) -> None:
    await catalogue.admit(north, "north")
    for path, more in (("/members/visit", {}), ("/members/status", {"status": "suspended"})):
        fields = {"member": north.did, "from": sent, **more}
        answer = await catalogue.http.post(path, data=fields, headers=catalogue.operator)
        assert (answer.status_code, answer.headers["location"]) == (303, target)
