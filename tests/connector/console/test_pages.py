"""Every page with nothing and with one of everything; who may open it; what forms refuse; what no page shows."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from html import unescape
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from zipfile import ZipFile

import pytest
from sqlalchemy import inspect

from connector.audit.log import Filter
from connector.console.page import Names, PageRenderer
from connector.dsp import agreement_terms
from connector.events import QueryCoordinated, RequestRefused
from connector.federation.planner.model import GridInfo, KnownTables, TableColumn, TableInfo
from connector.infra import html
from connector.management.sign_on.auth import COOKIE
from connector.store import Transaction
from connector.store.tables import AuditEvent
from policies.contracts.contract import Dimension
from tests.connector.console.support import (
    AGREEMENT,
    ALICE,
    FORM,
    NEGOTIATION,
    OFFER,
    READ,
    SECRET,
    TRANSFER,
    Console,
    Reader,
    console,
    fill,
    opened,
)

# Page, the scope that opens it, and whether it is there in an empty connector.
PAGES = [
    ("/", "read", True),
    ("/datasets", "read", True),
    ("/datasets/new", "owner", True),
    ("/datasets/patients", "read", False),
    ("/offers", "read", True),
    ("/offers/new", "owner", True),
    ("/offers/new?template=clean-room&dataset=patients", "owner", True),
    (f"/offers/new?based={OFFER}&dataset=urn:hanse:north:patients", "owner", False),
    (f"/offers/{OFFER}", "read", False),
    (f"/offers/preview?offer={OFFER}", "owner", False),
    ("/negotiations", "read", True),
    (f"/negotiations/{NEGOTIATION}", "read", False),
    ("/agreements", "read", True),
    ("/agreements?role=consumer", "read", True),
    (f"/agreements/{AGREEMENT}?role=provider", "read", False),
    (f"/agreements/{AGREEMENT}?role=consumer", "read", False),
    ("/transfers", "read", True),
    ("/search", "read", True),
    ("/query", "consume", True),
    ("/audit", "audit", True),
    ("/audit?outcome=refused&since=2020-01-01T00:00", "audit", True),
    ("/audit?before=5", "audit", True),
    ("/audit?before=99999999999999999999999999", "audit", True),
    ("/audit/0", "audit", True),
    ("/tokens", "admin", True),
    ("/settings", "admin", True),
    ("/personal-tokens", "", True),
]
SCOPES = ("read", "owner", "approve", "consume", "audit", "metrics", "admin")


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Console]:
    async with opened(tmp_path) as made:
        yield made


@pytest.fixture
async def full(empty: Console) -> Console:
    await fill(empty.parts)
    return empty


async def refusals(of: Console) -> list[str]:
    await of.parts.sequencer.settle()
    return [record.text for record in await of.parts.log.page(Filter(outcome="refused"), before=None, limit=50)]


@pytest.mark.parametrize("state", ["empty", "full"])
async def test_every_page_is_well_formed_and_says_nothing_secret(
    state: str, request: pytest.FixtureRequest, empty: Console
) -> None:
    if state == "full":
        await fill(empty.parts)
    token = await empty.token("admin")
    for path, _, always in PAGES:
        answer = await empty.get(path)
        if state == "empty" and not always:
            assert answer.status_code == 404, path
        elif path == "/search":  # no catalogue is set: said in place
            assert (answer.status_code, "HANSE_CATALOGUE_URL" in answer.text) == (200, True)
        else:
            assert answer.status_code == 200, (path, answer.text[-2000:])
        read = Reader(answer.text)
        assert (read.problems, read.headings) == ([], 1), path
        assert "script-src 'self'" in answer.headers["content-security-policy"], path
        for secret in (token, SECRET, hashlib.sha256(token.encode()).hexdigest(), "<b>rows", "<all>"):
            assert secret not in answer.text, path


async def test_a_refusal_says_what_it_is_about(full: Console) -> None:
    page = (await full.get("/")).text
    assert "alice.example</span> · north/patients · " in page


@pytest.mark.parametrize("path", ["/", f"/agreements/{AGREEMENT}?role=provider"])
async def test_a_running_read_is_shown_with_all_that_its_owner_needs_to_act_and_to_stop_it(
    full: Console, path: str
) -> None:
    def more(tx: Transaction) -> None:
        for number in range(24):
            tx.reads.add(f"more-{number}", instance="i", body=READ | {"since": 1.0})

    page = (await full.get(path, "read")).text
    section = page[page.index('id="running"') : page.index("</section>", page.index('id="running"'))]
    for told in ("alice.example", "for dpv:ScientificResearch", "over Arrow Flight", "just now", "0 rows"):
        assert told in section
    assert (f'href="/agreements/{AGREEMENT}?role=provider"' in section) is (path == "/")
    assert ('class="dense stacks"' in section, "Suspend" in section) == (True, False), "no button without the scope"
    await full.parts.store.write(more)
    page = (await full.get(path)).text
    assert (page.count("Suspend</button>"), "20 of 25, the newest first" in page) == (20, True)
    form = {"command": "suspend", "back": path}
    asked = await full.post(f"/transfers/{TRANSFER}", form | {"ask": "Suspend it?"}, "read", "owner")
    assert "Suspend it?" in asked.text
    done = await full.post(f"/transfers/{TRANSFER}", form, "read", "owner")
    assert (done.status_code, done.headers["location"]) == (303, path)
    row = await full.parts.store.read(lambda tx: tx.transfers.peek(TRANSFER))
    assert row is not None
    assert row.suspended_by == "provider"


async def test_who_revokes_is_told_how_many_reads_stop_with_it(full: Console) -> None:
    path = f"/agreements/{AGREEMENT}?role=provider"
    assert "1 read runs now, and stops with it." in (await full.get(path)).text
    sure = await full.post(f"/agreements/{AGREEMENT}/revoke?role=provider", {"reason": "over"})
    assert "1 running read stops at once" in sure.text


async def test_running_reads_are_listed_on_the_api_in_parts_and_by_agreement(full: Console) -> None:
    other = READ | {"agreement": "urn:uuid:a-2", "transfer": "urn:uuid:t-2", "purpose": ""}
    body = other | {"since": 1.0, "transport": "http", "more": [READ]}
    await full.parts.store.write(lambda tx: tx.reads.add("r-2", instance="i", body=body))

    async def listed(query: str = "") -> list[dict[str, Any]]:
        answer = await full.http.get(f"/api/v1/reads{query}", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        return list(answer.json())

    token = await full.token("read")
    both = await listed()
    assert [one["id"] for one in both] == ["r-1", "r-2"], "the newest first"
    first, second = [
        {"dataset": "urn:hanse:north:patients", "version": ""}
        | {name: str(told[name]) for name in ("agreement", "purpose", "transfer")}
        for told in (other, READ)
    ]
    assert both[1] == {
        "id": "r-2", "consumer": ALICE, "transport": "http", "since": 1.0, "rows": 0, "bytes": 0,
        "under": [first, second],
    }  # fmt: skip
    assert [both[:1], both[1:], both, both[1:], []] == [
        await listed(query)
        for query in (
            "?limit=1",
            "?limit=1&offset=1",
            f"?agreement={AGREEMENT}",
            "?agreement=urn:uuid:a-2",
            "?agreement=x",
        )
    ]
    token = await full.token("metrics")
    answer = await full.http.get("/api/v1/reads", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 403


async def test_a_dataset_says_which_lines_were_left_out_and_what_else_there_is_to_know(full: Console) -> None:
    page = (await full.get("/datasets/patients")).text
    assert "21 unreadable lines: 7 of b.csv (too many columns), ..." in page
    assert "&lt;some&gt; rows only" in page
    for kind, told in (("BIGINT", "was integer"), ("VARCHAR", "text, as &lt;some&gt; of it is")):
        assert f'<code>{kind}</code><br><span class="faint">{told}</span>' in page
    assert "21 lines left out" in page.partition("<h2>Versions</h2>")[2]


async def test_without_login_every_page_leads_to_the_login(full: Console) -> None:
    for path, _, _ in PAGES:
        answer = await full.http.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"] == f"/login?to={quote(path, safe='/')}", path
    assert not any("log in first" in text for text in await refusals(full))  # nobody guessed: nothing to record


async def test_a_token_opens_the_pages_of_its_scope_and_no_other(full: Console) -> None:
    for scope, (path, needed, _) in product(SCOPES, PAGES):
        answer = await full.get(path, scope)
        if path == "/" and scope not in ("read", "admin"):
            assert answer.status_code == 303, path
        elif scope in (needed, "admin") or not needed:
            assert answer.status_code == 200, path
        else:
            assert (answer.status_code, "scope" in answer.text) == (403, True), path


async def test_reads_of_the_log_are_shown_to_those_who_ask(full: Console) -> None:
    first = (await full.get("/audit", "audit")).text
    again = (await full.get("/audit", "audit")).text
    assert ">Log read</a>" not in first + again
    shown = unescape((await full.get("/audit?log_reads=1", "audit")).text)
    assert shown.count(">Log read</a>") >= 2
    assert "log_reads" not in re.findall(r'href="(/api/v1/audit/export[^"]*)"', shown)[0]
    assert 'name="log_reads" value="1"' in shown
    only = (await full.get("/audit?kind=LogRead", "audit")).text
    assert ">Log read</a>" in only


async def test_an_auditor_sees_the_log_and_no_way_elsewhere(full: Console) -> None:
    page = (await full.get("/audit", "audit")).text
    links = set(re.findall(r"<nav.*?</nav>", page, re.S)[0].split('href="')[1:])
    assert {link.split('"')[0] for link in links} == {"/audit", "/personal-tokens"}
    assert (await full.get("/", "audit")).headers["location"] == "/audit"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("2026-11-24T12:00", "2026-11-24T12:00:00"),  # as the form gives it
        ("2026-11-24T12:00:00+02:00", "2026-11-24T10:00:00"),
        ("2026-11-24T12:00:30.25Z", "2026-11-24T12:00:30.250"),
        ("2026-11-24", "2026-11-24T00:00:00"),
    ],
)
async def test_evidence_of_what_a_page_shows_is_of_the_same_time(full: Console, asked: str, meant: str) -> None:
    page = (await full.get(f"/audit?since={quote(asked)}&outcome=refused", "audit")).text
    assert re.search(rf'name="since" [^>]*value="{meant}"', page)
    link = unescape(re.findall(r'href="(/api/v1/audit/export[^"]*)"', page)[0])
    answer = await full.get(link, "audit")
    assert (answer.status_code, answer.headers.get("content-type")) == (200, "application/zip")
    with ZipFile(BytesIO(answer.content)) as file:
        stated = json.loads(file.read("manifest.json"))["filter"]
    assert stated == {"outcome": "refused", "since": datetime.fromisoformat(f"{meant}Z").timestamp()}


@pytest.mark.parametrize("asked", ["yesterday", "0001-01-01T00:00+23:00", "9999-12-31T23:00-23:00"])
async def test_a_time_that_is_none_is_said_to_be_that(full: Console, asked: str) -> None:
    answer = await full.get(f"/audit?until={quote(asked)}", "audit")
    assert (answer.status_code, "until: expected a time such as 2026-11-24T12:00" in answer.text) == (400, True)


async def test_a_question_over_many_owners_is_one_of_the_recent_refusals(empty: Console) -> None:
    def asked(tx: Transaction) -> None:
        tx.publish(RequestRefused(actor="test", outcome="refused", reason="Something else"))
        for index in range(70):
            detail: dict[str, Any] = {"whole": {"agreement": "urn:0", "agreements": 70}} if index else {}
            tx.publish(QueryCoordinated(actor="test", outcome="refused", reason="Too small", detail=detail))

    await empty.parts.store.write(asked)
    await empty.parts.sequencer.settle()
    page = (await empty.get("/", "admin")).text
    assert (page.count("Too small"), page.count("Something else")) == (1, 1)


async def test_a_record_whose_text_was_changed_is_shown_as_that(full: Console) -> None:
    await full.parts.sequencer.settle()
    assert "Does not hold" not in (await full.get("/audit/0", "audit")).text

    def change(tx: Transaction) -> None:
        row = tx.session.get_one(AuditEvent, 0)
        row.body = row.body.replace('"actor":"', '"actor":"not-')

    await full.parts.store.write(change)
    page = (await full.get("/audit/0", "audit")).text
    assert "Does not hold" in page
    steps = re.findall(r'<li class="(held|broken)"><p><b>(.*?)</b>', page)
    assert [(how, what.split(" is ")[0]) for how, what in steps] == [
        ("broken", "The text"), ("held", "The record"), ("held", "The head"),
    ]  # fmt: skip


FOREIGN = [
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "none"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec_fetch_site": "same-origin", "origin": "https://evil.example"},
    {"x_nothing": "says where it came from"},
]


async def test_a_form_from_elsewhere_changes_nothing(full: Console) -> None:
    forms = [
        ("/offers/withdraw", {"offer": OFFER}),
        (f"/agreements/{AGREEMENT}/revoke?role=provider", {"reason": "r", "sure": "yes"}),
        ("/tokens", {"name": "eve", "scope": "admin"}),
        (f"/negotiations/{NEGOTIATION}", {"command": "approve"}),
        (f"/transfers/{TRANSFER}", {"command": "terminate"}),
    ]
    for headers in FOREIGN:
        for path, data in forms:
            assert (await full.post(path, data, "admin", **headers)).status_code == 403, (path, headers)
    assert (await full.parts.offers.get(OFFER)).withdrawn_at is None
    assert (await full.parts.agreements.get(AGREEMENT))[0].ended_at is None
    assert "eve" not in {row.name for row in await full.parts.tokens.list()}


async def test_a_started_transfer_that_its_owner_holds_can_be_resumed_from_its_page(full: Console) -> None:
    button = 'name="command" value="resume"'
    assert button not in (await full.get("/transfers", "admin")).text
    await full.parts.store.write(lambda tx: setattr(tx.transfers.get(TRANSFER), "suspended_by", "provider"))
    assert button in (await full.get("/transfers", "admin")).text
    assert button not in (await full.get("/transfers", "read")).text
    assert (await full.post(f"/transfers/{TRANSFER}", {"command": "resume"}, "admin")).status_code == 303
    assert button not in (await full.get("/transfers", "admin")).text


# Our role, the state, who stopped it: what the page says, and whether we may resume it.
STOPPED = [
    ("provider", "STARTED", "", "Started", False),
    ("provider", "STARTED", "provider", "Held", True),
    ("provider", "SUSPENDED", "provider", "We stopped it; only we resume it.", True),
    ("provider", "SUSPENDED", "consumer", "Its user paused it, and may resume it.", True),
    ("provider", "SUSPENDED", "facts", "it goes on by itself", True),
    ("consumer", "SUSPENDED", "provider", "only the owner resumes it.", False),
    ("consumer", "SUSPENDED", "consumer", "We paused it.", True),
    ("provider", "COMPLETED", "provider", "Completed", False),
    ("consumer", "TERMINATED", "", "Terminated</span></td>", False),
]


@pytest.mark.parametrize(("role", "state", "by", "said", "resumes"), STOPPED)
async def test_a_transfer_says_what_it_is_about_who_stopped_it_and_who_may_resume_it(
    full: Console, role: str, state: str, by: str, said: str, resumes: bool
) -> None:
    def change(tx: Transaction) -> None:
        row = tx.transfers.get(TRANSFER)
        assert row is not None
        row.role, row.state, row.suspended_by = role, state, by
        row.reason = "terminated" if state == "TERMINATED" else ""  # as where nobody gave one

    await full.parts.store.write(change)
    for path in ("/transfers", f"/agreements/{AGREEMENT}?role={role}"):
        page = (await full.get(path)).text
        assert said.partition("<")[0] in page if "agreements" in path else said in page, path
        assert ("We stopped" in page) == (by == "provider" and role == "provider" and state != "COMPLETED"), path
    listed = (await full.get("/transfers")).text
    assert "north/patients" in listed
    assert ('name="command" value="resume"' in listed) == resumes


def _again(row: Any, number: int) -> Any:
    """The same row under other names."""
    about = {one.key: getattr(row, one.key) for one in inspect(type(row)).column_attrs}
    return type(row)(**about | {key: f"urn:again:{number}" for key in ("id", "peer_pid") if key in about})


async def test_a_list_longer_than_a_page_goes_on_and_is_counted_whole(full: Console) -> None:
    def many(tx: Transaction) -> None:
        for number in range(120):
            later = _again(tx.negotiations.peek(NEGOTIATION), number)
            later.created_at += 1 + number
            tx.negotiations.add(later)
            tx.transfers.add(_again(tx.transfers.peek(TRANSFER), number))
            tx.agreements.add(_again(tx.agreements.get(AGREEMENT, role="provider"), number))
            offer = _again(tx.datasets.get_offer(OFFER), number)
            offer.withdrawn_at = 1.0 if number % 2 else None
            tx.datasets.add(offer)

    await full.parts.store.write(many)
    overview = (await full.get("/")).text
    assert "<b>121</b><span>open decisions" in overview
    assert "All 121</a>" in overview
    asked = re.findall(r'action="/negotiations/([^"]+)"', overview)[::2]
    assert asked == [NEGOTIATION, *(f"urn:again:{number}" for number in range(4))]  # who waits longest comes first
    for path in ("/negotiations", "/agreements?role=provider", "/transfers?role=provider"):
        first, second = (await full.get(path)).text, (await full.get(f"{path}{'&' if '?' in path else '?'}page=2")).text
        assert (first.count('<th scope="row">'), second.count('<th scope="row">')) == (100, 21), path
        assert ('rel="next"' in first, 'rel="prev"' in second, 'rel="next"' in second) == (True, True, False), path
        assert Reader(second).problems == []
    assert (await full.get("/transfers?page=0")).status_code == 400
    offers = full.parts.offers
    assert len(await offers.page(dataset="patients", withdrawn=False, offset=60)) == 1
    assert await offers.page(dataset="nobodys") == []
    pages = [(await full.get(f"/offers?page={number}")).text for number in (1, 2, 3)]
    assert [page.count("<h3>") for page in pages] == [50, 50, 21]
    assert ['rel="next"' in page for page in pages] == [True, True, False]
    assert re.search(r"<b>61</b><span>\s*offers", overview)


async def test_a_negotiation_that_came_to_nothing_says_that_its_terms_are_not_kept(full: Console) -> None:
    def ended(tx: Transaction) -> None:
        row = tx.negotiations.get(NEGOTIATION)
        assert row is not None
        row.state, row.offer = "TERMINATED", agreement_terms.shorten_offer(row.offer | {"ds:note": "x" * 5000})

    await full.parts.store.write(ended)
    assert (
        "These terms were too long to keep after the negotiation ended."
        in (await full.get(f"/negotiations/{NEGOTIATION}")).text
    )


async def test_the_terms_of_a_negotiation_stand_in_groups(full: Console) -> None:
    for path in (f"/negotiations/{NEGOTIATION}", "/negotiations", "/"):
        page = (await full.get(path)).text
        assert re.findall(r'<section class="may"><h3>([^<]+)</h3>', page), path
        assert "/permission/" not in page.split("<pre", 1)[0], path


async def test_terms_of_a_negotiation_that_cannot_be_read_are_shown_in_their_machine_form(full: Console) -> None:
    def unread(tx: Transaction) -> None:
        row = tx.negotiations.get(NEGOTIATION)
        assert row is not None
        row.offer = {"@type": "Offer", "permission": [{"action": 7}]}

    await full.parts.store.write(unread)
    page = (await full.get(f"/negotiations/{NEGOTIATION}")).text
    assert "This connector cannot read these terms." in page
    assert '"action": 7' in page


async def test_a_form_of_our_own_goes_by_its_origin_where_the_browser_says_no_more(full: Console) -> None:
    answer = await full.post("/offers/withdraw", {"offer": OFFER}, "owner", origin="http://console.test")
    assert answer.status_code == 303
    assert (await full.parts.offers.get(OFFER)).withdrawn_at is not None


@pytest.mark.parametrize(("url", "secure"), [("https://north.example", True), ("", False)])
async def test_logging_in_sets_a_cookie_that_scripts_and_other_sites_never_have(
    url: str, secure: bool, tmp_path: Path
) -> None:
    made = console(tmp_path, public_url=url)
    token = await made.token("read")
    same = {"sec-fetch-site": "same-origin"}
    answer = await made.http.post("/login", data={"token": token, "to": "/offers"}, headers=same)
    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.headers["location"]) == (303, "/offers")
    assert ("HttpOnly" in cookie, "SameSite=strict" in cookie, "Secure" in cookie) == (True, True, secure)
    out = await made.http.post("/logout", headers={**same, "cookie": f"{COOKIE}={token}"})
    assert 'hanse_session=""' in out.headers["set-cookie"]
    made.parts.store.close()


async def test_a_wrong_token_is_refused_in_place_and_recorded_without_its_text(empty: Console) -> None:
    same = {"sec-fetch-site": "same-origin"}
    answer = await empty.http.post("/login", data={"token": "guess-no-1"}, headers=same)
    assert (answer.status_code, "not known here" in answer.text) == (401, True)
    assert "set-cookie" not in answer.headers
    recorded = await refusals(empty)
    assert len(recorded) == 1
    assert "guess-no-1" not in recorded[0]


async def test_the_login_leads_nowhere_else(empty: Console) -> None:
    same = {"sec-fetch-site": "same-origin"}
    for to in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/login", ""):
        data = {"token": await empty.token("admin"), "to": to}
        answer = await empty.http.post("/login", data=data, headers=same)
        assert answer.headers["location"] == "/", to


async def test_a_token_that_ended_is_forgotten_by_the_browser(empty: Console) -> None:
    await empty.token("admin")
    token = await empty.token("read")
    await empty.parts.tokens.revoke("read", by="test")
    answer = await empty.http.get("/datasets", headers={"cookie": f"{COOKIE}={token}"})
    assert (answer.status_code, 'hanse_session=""' in answer.headers["set-cookie"]) == (303, True)


async def test_an_offer_is_checked_tried_and_published_from_one_form(full: Console) -> None:
    data = {"form": FORM.replace("small-groups", "second"), "dataset": "patients"}
    checked = await full.post("/offers/check", data, "owner")
    assert "It fits <b>Patients" in checked.text
    tried = await full.post("/offers/new", {**data, "do": "try", "partner": ALICE, "purpose": "dpv:Marketing"}, "owner")
    assert "<b>Refused</b>" in tried.text
    limited = FORM.replace("{membership: active}", f"{{participant: ['{ALICE}']}}")
    asked = {"form": limited, "dataset": "patients", "do": "try", "partner": ALICE, "purpose": "dpv:ScientificResearch"}
    first = await full.post("/offers/new", asked, "owner")  # a limit on uses does not stand in the way of the first
    assert "<b>Permitted</b>" in first.text
    assert '<span class="chip column">region</span>' in first.text
    assert len(await full.parts.offers.page()) == 1  # nothing published yet
    published = await full.post("/offers/new", {**data, "do": "publish"}, "owner")
    assert published.headers["location"] == "/offers/urn:hanse:offer:second"


async def test_nothing_to_decide_is_no_badge(empty: Console) -> None:
    assert "badge" not in (await empty.get("/datasets", "read")).text


async def test_a_file_is_chosen_by_browsing(full: Console, tmp_path: Path) -> None:
    roots = (await full.get("/datasets/browse", "owner")).text
    root = re.search(r"/datasets/browse\?path=([^\"]+)", roots)
    assert root is not None
    folder = Path(unquote(root[1]))
    (folder / "Visits 2024.csv").write_text("a\n1\n")
    listed = unescape((await full.get(f"/datasets/browse?path={root[1]}", "owner")).text)
    link = re.search(r'href="(/datasets/new/preview\?path=[^"]+Visits[^"]+)"', listed)
    assert link is not None
    form = (await full.get(link[1], "owner")).text
    assert 'name="name" value="visits_2024"' in form
    refused = await full.get("/datasets/browse?path=/etc", "owner")
    assert (refused.status_code, "outside the directories" in refused.text) == (400, True)


async def test_the_texts_on_a_dataset_are_changed_and_recorded(full: Console) -> None:
    page = (await full.get("/datasets/patients/texts", "owner")).text
    assert 'value="health"' in page
    new = {"title": "All <patients>", "description": "Who came.", "keywords": "health, visits", "license": "CC0"}
    answer = await full.post("/datasets/patients/texts", new, "owner")
    assert answer.headers["location"] == "/datasets/patients"
    assert "All &lt;patients&gt;" in (await full.get("/datasets/patients", "read")).text
    await full.parts.sequencer.settle()
    (record, *_) = await full.parts.log.page(Filter(kind="DatasetDescribed"), before=None, limit=5)
    assert '"changed":["title","keywords","theme"]' in record.text
    long = await full.post("/datasets/patients/texts", new | {"title": "x" * 301}, "owner")
    assert (long.status_code, "x" * 301 in long.text) == (400, True)


CREDENTIAL = {"id": "urn:uuid:c", "issuer": "did:web:office.example", "types": ["Membership"], "status_checked_at": 1.0}
PROOFS = [
    ({"holder": ALICE}, "signature alone"),
    ({"holder": ALICE, "key": "k-1", "credentials": [CREDENTIAL | {"expires": None}]}, "did:web:office.example"),
]


@pytest.mark.parametrize(("proof", "said"), PROOFS)
async def test_an_agreement_shows_what_proved_the_identity(full: Console, proof: dict[str, Any], said: str) -> None:
    def prove(tx: Transaction) -> None:
        tx.agreements.of(AGREEMENT, role="provider").verified = proof

    await full.parts.store.write(prove)
    page = await full.get(f"/agreements/{AGREEMENT}?role=provider", "read")
    assert (page.status_code, said in page.text) == (200, True)


async def test_what_waits_for_a_decision_is_on_the_tab_and_in_the_title(full: Console) -> None:
    page = (await full.get("/datasets", "read")).text
    assert "<title>(1) " in page
    assert '<span class="badge" title="1 request to decide">1</span>' in page


FIELDS = {
    "fields": "1", "shown": "patients", "dataset": "patients", "form": "", "before": "", "name": "by-fields",
    "membership": "active", "may": "query", "purposes": "dpv:ScientificResearch", "until": "2099-12-31",
    "answers": "aggregate", "min_group": "5", "per": "patient", "use:region": "group", "use:age": "measure",
    "how:age": "0..120", "seen": ["patient", "age", "region", "note"], "queries_per_day": "20", "decide": "manual",
}  # fmt: skip


def read_drawn(page: str) -> str:
    """What a page says its fields were drawn of."""
    found = re.search(r'name="drawn" value="(\w+)"', page)
    assert found is not None
    return found[1]


async def test_an_offer_is_written_and_published_by_fields_alone(full: Console) -> None:
    await full.parts.offers.withdraw(OFFER, by="test")
    checked = await full.post("/offers/check", FIELDS, "owner")
    yaml = re.search(r"<textarea[^>]*>([^<]*)</textarea>", checked.text)
    assert yaml is not None
    written = unescape(yaml[1]).strip()
    assert "group_by: {region: exact}, measure: {age: 0..120}" in written
    assert "It fits <b>Patients" in checked.text
    published = await full.post("/offers/new", FIELDS | {"drawn": read_drawn(checked.text), "do": "publish"}, "owner")
    assert published.headers["location"] == "/offers/urn:hanse:offer:by-fields"
    assert (await full.parts.offers.get("urn:hanse:offer:by-fields")).form.strip() == written


ROWS = {**{name: value for name, value in FIELDS.items() if ":" not in name}, "answers": "", "seen": ["age", "region"]}


async def publish_unseen(full: Console, **changes: str | list[str]) -> str:
    """Post changed fields of a page of rows, without looking at the page again; the problem that is shown."""
    await full.parts.offers.withdraw(OFFER, by="test")
    page = (await full.post("/offers/check", ROWS, "owner")).text
    yaml = re.search(r"<textarea[^>]*>([^<]*)</textarea>", page)
    assert yaml is not None
    text = unescape(yaml[1])
    shown = ROWS | {"drawn": read_drawn(page), "form": text, "before": text, "do": "publish"}
    answer = await full.post("/offers/new", shown | changes, "owner")
    assert (answer.status_code in (400, 404), len(await full.parts.offers.page())) == (True, 1)
    return unescape(answer.text)


async def test_another_kind_of_answer_is_shown_before_it_is_published(full: Console) -> None:
    assert "look at the fields as they are now" in await publish_unseen(full, answers="aggregate", min_group="5")


async def test_columns_of_another_dataset_are_shown_before_they_are_published(full: Console) -> None:
    assert "look at the fields as they are now" in await publish_unseen(full, shown="other", drawn="other")


async def test_changes_in_fields_and_yaml_at_once_are_not_published(full: Console) -> None:
    text = "offer: by-fields\ndataset: patients\nmay: [query]\n"
    assert "the YAML counts" in await publish_unseen(full, form=text, seen=["age"])


async def test_a_ticked_column_is_needed_where_later_ones_are_hidden(full: Console) -> None:
    said = await publish_unseen(full, seen=[], later_hidden="yes")
    assert "expected a column to show" in said


async def test_a_dataset_that_was_changed_in_the_yaml_is_the_one_that_counts(full: Console) -> None:
    text = FORM.replace("small-groups", "second").replace("dataset: patients", "dataset: staff")
    said = await publish_unseen(full, form=text, fields="")
    assert "staff" in said
    checked = unescape((await full.post("/offers/check", {"form": text, "before": FORM, "dataset": "patients"})).text)
    assert "It fits" not in checked


async def test_a_text_that_is_too_long_is_not_cut(full: Console) -> None:
    text = FORM.replace("small-groups", "long") + "#" * 65_536 + "\ncolumns: {hide: [note]}\n"
    answer = await full.post("/offers/new", {"form": text, "dataset": "patients", "do": "publish"}, "owner")
    assert (answer.status_code, len(await full.parts.offers.page())) == (400, 1)


async def test_the_first_edit_of_a_dataset_named_by_its_id_counts(full: Console) -> None:
    page = (await full.get(f"/offers/new?based={OFFER}&dataset=urn:hanse:north:patients", "owner")).text
    assert 'name="shown" value="patients"' in page


async def test_an_edited_yaml_counts_more_than_the_fields(full: Console) -> None:
    text = FORM.replace("small-groups", "by-yaml")
    answer = await full.post("/offers/check", FIELDS | {"form": text, "before": "offer: old"}, "owner")
    assert 'name="name" value="by-yaml"' in answer.text


async def test_a_changed_field_keeps_words_without_a_field(full: Console) -> None:
    text = FORM.replace("membership: active", "membership: active, security: high")
    shown = FIELDS | {"form": text, "before": text, "name": "renamed"}
    answer = await full.post("/offers/check", shown, "owner")
    assert "security: high" in unescape(answer.text)
    assert "stay as the YAML has them: security." in answer.text


async def test_another_dataset_brings_its_columns(full: Console) -> None:
    text = FORM.replace("dataset: patients\n", "dataset: other\n").replace("region", "district")
    shown = FIELDS | {"form": text, "before": text, "shown": "other"}
    answer = unescape((await full.post("/offers/check", shown, "owner")).text)
    assert "district" not in answer
    assert "measure: {age: 0..120}" in answer


async def test_fields_that_cannot_show_the_yaml_make_place_for_it(full: Console) -> None:
    for text in ("offer: [", "offer: x\ndataset: patients\nodrl: {permission: [{action: 'ds:query'}]}\n"):
        answer = await full.post("/offers/check", FIELDS | {"form": text}, "owner")
        assert 'name="fields"' not in answer.text
        assert Reader(f"<h1>{answer.text}</h1>").problems == []


async def test_a_new_offer_shows_what_differs_from_the_one_it_replaces(full: Console) -> None:
    text = FORM.replace("small-groups", "newer").replace("queries_per_day: 20", "queries_per_day: 30")
    data = {"form": text, "before": text, "dataset": "patients", "based": OFFER}
    page = (await full.post("/offers/new", data, "owner")).text
    assert re.findall(r"<(?:ins|del)>[^<]*at most (\d+)", page) == ["20", "30"]
    published = await full.post("/offers/new", data | {"do": "publish", "withdraw": "yes"}, "owner")
    assert published.headers["location"] == "/offers/urn:hanse:offer:newer"
    assert (await full.parts.offers.get(OFFER)).withdrawn_at is not None


async def test_a_mistake_in_a_trial_leaves_the_text_where_it_is(full: Console) -> None:
    data = {"form": FORM.replace("small-groups", "second"), "dataset": "patients", "do": "try", "at": "next week"}
    answer = await full.post("/offers/new", data, "owner")
    assert (answer.status_code, "offer: second" in answer.text) == (400, True)
    assert "expected a time such as" in answer.text


async def test_a_member_is_found_by_the_name_that_pages_show(full: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    async def names(_: PageRenderer) -> Names:
        return {ALICE: {"name": "alice"}}

    monkeypatch.setattr(PageRenderer, "names", names)
    listed = (await full.get("/audit?actor=alice&dataset=north/patients")).text
    assert f'name="actor" value="{ALICE}"' in listed
    assert 'name="dataset" value="north/patients"' in listed
    assert (
        f'name="as" list="partners" value="{ALICE}"' in (await full.get(f"/offers/preview?offer={OFFER}&as=alice")).text
    )
    form = FORM.replace("{membership: active}", f"{{participant: ['{ALICE}']}}")
    asked = {"form": form, "dataset": "patients", "do": "try", "partner": "alice", "purpose": "dpv:ScientificResearch"}
    assert "<b>Permitted</b> for alice" in (await full.post("/offers/new", asked, "owner")).text


UNPUBLISHABLE = [
    ("offer: x\nmay: [fly]\n", "fly"),
    ("offer: [\n", "YAML"),
    (FORM.replace("region", "country").replace("small-groups", "other"), "country"),
    ("", "offer is empty"),
    (FORM, "exists"),
]


async def test_an_offer_that_cannot_be_published_says_why_beside_its_text(full: Console) -> None:
    for form, said in UNPUBLISHABLE:
        answer = await full.post("/offers/new", {"form": form, "dataset": "patients", "do": "publish"}, "owner")
        assert answer.status_code in (400, 409), said
        assert said in answer.text
        assert Reader(answer.text).problems == []
    assert len(await full.parts.offers.page()) == 1


async def test_an_agreement_shows_what_is_counted_of_it_and_nothing_else(full: Console) -> None:
    text = (await full.get(f"/agreements/{AGREEMENT}?role=provider", "read")).text
    used = dict(re.findall(r'<p class="faint">([^<]+)</p><p class="big">(\d+)', text))
    assert used == {"Queries": "7", "Queries today": "0"}  # of another day; rows and bytes have no limit here


async def test_an_agreement_ends_in_two_steps_and_with_a_reason(full: Console) -> None:
    path = f"/agreements/{AGREEMENT}/revoke?role=provider"
    assert (await full.post(path, {"reason": ""}, "read", "owner")).status_code == 400
    asked = await full.post(path, {"reason": "the study is over"}, "read", "owner")
    assert (asked.status_code, "End this agreement?" in asked.text) == (200, True)
    assert (await full.parts.agreements.get(AGREEMENT, role="provider"))[0].ended_at is None
    assert (await full.post(path, {"reason": "x", "sure": "yes"}, "read")).status_code == 403
    done = await full.post(path, {"reason": "the study is over", "sure": "yes"}, "read", "owner")
    assert done.status_code == 303
    assert (await full.parts.agreements.get(AGREEMENT, role="provider"))[0].end_reason == "the study is over"


ASKED = [
    ("/offers/withdraw", {"offer": OFFER}, f"/offers/{OFFER}"),
    ("/datasets/patients/remove", {}, "/datasets/patients"),
    (f"/transfers/{TRANSFER}", {"command": "terminate"}, "/transfers"),
    ("/tokens/revoke", {"name": "read"}, "/tokens"),
]


@pytest.mark.parametrize(("path", "fields", "page"), ASKED)
async def test_what_cannot_be_undone_is_asked_again_where_no_script_has(
    full: Console, path: str, fields: dict[str, str], page: str
) -> None:
    await full.token("read")
    asking = re.search(r'name="ask" value="([^"]+)"', (await full.get(page)).text)
    assert asking is not None
    same = {"sec_fetch_site": "same-origin", "referer": f"http://console.test{page}"}
    answer = await full.post(path, {**fields, "ask": asking[1]}, "admin", **same)
    assert (answer.status_code, asking[1] in answer.text) == (200, True)
    assert (Reader(answer.text).problems, f'href="{page}">No' in answer.text) == ([], True)
    again = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', answer.text.partition("<main")[2]))
    assert again == fields
    assert not any("Revoked" in text or "Removed" in text or "Withdrawn" in text for text in await _log(full))
    assert (await full.post(path, {**fields, "ask": "?"}, "metrics")).status_code == 403  # nobody is asked in vain
    assert (await full.post(path, again)).status_code in (303, 409)  # a dataset with an offer stays


@pytest.mark.parametrize(
    ("referer", "back"),
    [
        ("http://console.test/transfers?role=provider&page=3", "/transfers?role=provider&amp;page=3"),
        ("http://elsewhere.test/transfers?page=3", "/"),
        ("http://console.test//elsewhere.test/x", "/"),
        ("http://console.test/a?x=%22%3E<b>", "/a?x=%22%3E&lt;b&gt;"),
        ("", "/"),
    ],
)
async def test_who_is_not_sure_goes_back_to_the_page_as_it_was(full: Console, referer: str, back: str) -> None:
    path, fields, _ = ASKED[0]
    more = {"sec_fetch_site": "same-origin", **({"referer": referer} if referer else {})}
    answer = await full.post(path, {**fields, "ask": "Sure?"}, "admin", **more)
    assert f'href="{back}">No' in answer.text


async def _log(of: Console) -> list[str]:
    await of.parts.sequencer.settle()
    return [record.kind for record in await of.parts.log.page(Filter(), before=None, limit=100)]


async def test_a_request_is_approved_or_rejected_from_the_queue(full: Console) -> None:
    path = f"/negotiations/{NEGOTIATION}"
    assert (await full.post(path, {"command": "approve"}, "read", "consume")).status_code == 403
    assert (await full.post(path, {"command": "terminate"}, "read", "owner")).status_code == 400
    assert (await full.post(path, {"command": "agree please"}, "read", "owner")).status_code == 400
    done = await full.post(path, {"command": "approve", "back": "/negotiations"}, "read", "owner")
    assert (done.status_code, done.headers["location"]) == (303, "/negotiations")
    row = await full.parts.store.read(lambda tx: tx.negotiations.peek(NEGOTIATION))
    assert row is not None
    assert row.pending == "ContractAgreementMessage"


async def test_a_new_token_is_shown_once(empty: Console) -> None:
    made = await empty.post("/tokens", {"name": "ada", "scope": "audit", "days": "30"})
    found = re.search(r"data-token>([^<]+)<", made.text)
    assert found is not None
    assert (await empty.parts.tokens.caller(found[1])).scopes == {"audit"}
    assert found[1] not in (await empty.get("/tokens")).text
    wrong = await empty.post("/tokens", {"name": "no spaces", "scope": "audit", "days": "7"})
    assert wrong.status_code == 400
    for kept in ('value="no spaces"', 'value="audit" checked', 'name="days" value="7"'):
        assert kept in wrong.text
    assert (await empty.post("/tokens", {"name": "bob", "days": "x", "scope": "read"})).status_code == 400


async def test_the_last_administrator_stays(empty: Console) -> None:
    answer = await empty.post("/tokens/revoke", {"name": "admin"})
    assert (answer.status_code, "last token" in answer.text) == (400, True)


async def test_a_dataset_outside_the_roots_is_refused_in_place(empty: Console) -> None:
    data = {"name": "passwords", "path": "/etc/passwd", "kind": "csv", "title": "Kept as typed"}
    answer = await empty.post("/datasets/new", data, "owner")
    assert (answer.status_code, "Kept as typed" in answer.text) == (400, True)
    assert Reader(answer.text).problems == []


async def test_options_of_a_source_are_taken_one_a_line(empty: Console, tmp_path: Path) -> None:
    (file := tmp_path / "beds.csv").write_text("bed\n1\n")
    data = {"name": "beds", "path": str(file), "kind": "csv"}
    for options, said in (
        ("skip_bad_lines", "name=value"),
        ("delimiter=;\r\nskip_badlines=10", "no option skip_badlines"),
    ):
        answer = await empty.post("/datasets/new", data | {"options": options}, "owner")
        assert (answer.status_code, said in answer.text) == (400, True)
        assert "skip_bad" in re.findall(r"<textarea name=\"options\"[^>]*>([^<]*)", answer.text)[0]  # kept as typed


async def test_a_slip_in_a_purpose_is_published_on_a_wish_only(full: Console) -> None:
    form = "offer: slip\ndataset: patients\nmay: [query]\nfor: [dpv:ScientificReserch]\n"
    page = await full.post("/offers/new", {"form": form, "do": "publish"}, "owner")
    assert (page.status_code, "did you mean dpv:ScientificResearch?" in page.text) == (400, True)
    headers = {"authorization": f"Bearer {await full.token('owner', 'read')}"}
    refused = await full.http.post("/api/v1/offers", json={"form": form}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "purpose_unknown")
    assert "--accept" in refused.json()["detail"]
    taken = await full.http.post("/api/v1/offers", json={"form": form, "accept": True}, headers=headers)
    assert (taken.status_code, taken.json()["problems"][0]["code"]) == (201, "purpose_unknown")
    tick = '<input type="checkbox" name="accept" value="yes">'
    assert (tick in page.text, tick in (await full.get("/offers/new?template=open", "owner")).text) == (True, False)
    meant = {"form": form.replace("slip", "meant"), "do": "publish", "accept": "yes"}
    assert (await full.post("/offers/new", meant, "owner")).status_code == 303


async def test_a_question_that_is_none_is_refused_in_place(full: Console) -> None:
    for do in ("explain", "run"):
        answer = await full.post("/query", {"sql": "DROP TABLE patients", "do": do}, "consume")
        assert (answer.status_code, "DROP TABLE patients" in answer.text) == (400, True)
        assert 'role="alert"' in answer.text


async def test_the_tables_of_the_query_page_say_which_columns_are_in_bins(
    full: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GridInfo(("age", "sex"), (), 5, bins=(Dimension("age", 10.0),))
    table = TableInfo(
        "north", "census", (TableColumn("age", "BIGINT"), TableColumn("sex", "VARCHAR")), agreement="a", grid=grid
    )

    async def tables(*_: object) -> KnownTables:
        return KnownTables({("north", "census"): table})

    monkeypatch.setattr(full.parts.holdings, "tables", tables)
    shown = (await full.get("/query", "consume")).text
    assert '· group by, <span title="age in bins of 10, each named by its lower edge: ' in shown
    assert shown.count("in bins of 10</span>") == 1


def test_the_console_loads_neither_engine_nor_arrow() -> None:
    code = "import sys, connector.console; print([m for m in ('duckdb','pyarrow','sqlglot') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_the_catalogue_and_the_console_share_their_look(empty: Console) -> None:
    for name in html.FILES:
        assert (await empty.http.get(f"/static/{name}")).content == (html.FOLDER / name).read_bytes()
