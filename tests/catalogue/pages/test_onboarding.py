"""Onboarding: a participant applies on a page, the operator checks DID and connector, and admits or declines."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.catalogue.conftest import Catalogue, Clock
from tests.catalogue.pages.test_catalogue_languages import OWN
from tests.catalogue.pages.test_pages import EVIL, HTML, Reader
from tests.catalogue.provider import Provider

DAY = 86_400


def facts(member: Provider, **changes: str) -> dict[str, str]:
    said = {"id": member.did, "name": "north", "title": "North Clinic", "role": "participant", "country": "DE"}
    return {**said, "url": member.url, "contact": "ada@north.example", "message": "We offer patients.", **changes}


async def apply(catalogue: Catalogue, said: dict[str, str], **headers: str) -> httpx2.Response:
    return await catalogue.http.post("/join", data=said, headers={**HTML, **OWN, **headers})


async def applied(catalogue: Catalogue, member: Provider, **changes: str) -> str:
    """Apply, and the key of the application."""
    answer = await apply(catalogue, facts(member, **changes))
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"]).removeprefix("/join/")


async def shown(catalogue: Catalogue, path: str, *, operator: bool = False) -> str:
    answer = await catalogue.http.get(path, headers={**HTML, **(catalogue.operator if operator else {})})
    assert answer.status_code == 200, answer.text
    Reader(answer.text)
    return answer.text


async def answered(catalogue: Catalogue, key: str, act: str, **fields: str) -> httpx2.Response:
    headers = {**HTML, **catalogue.operator}
    return await catalogue.http.post(f"/applications/{key}/{act}", data=fields, headers=headers)


async def test_from_application_to_member(catalogue: Catalogue, north: Provider) -> None:
    assert 'href="/join"' in await shown(catalogue, "/members")
    key = await applied(catalogue, north)
    assert "Waits for the operator" in await shown(catalogue, f"/join/{key}")

    assert f"/applications/{key}" in await shown(catalogue, "/members", operator=True)
    page = await shown(catalogue, f"/applications/{key}", operator=True)
    assert "We offer patients." in page
    assert "ada@north.example" in page

    admitted = await answered(catalogue, key, "admit")
    assert (admitted.status_code, admitted.headers["location"]) == (303, "/members/north")
    assert "North Clinic" in await shown(catalogue, "/members")
    assert "You are a member of Test space" in await shown(catalogue, f"/join/{key}")
    assert f"/applications/{key}" not in await shown(catalogue, "/members", operator=True)


async def test_nothing_of_a_stranger_is_called_before_the_operator_checks(
    catalogue: Catalogue, north: Provider
) -> None:
    key = await applied(catalogue, north)
    await shown(catalogue, f"/join/{key}")
    await shown(catalogue, f"/applications/{key}", operator=True)
    assert north.requests == []
    checked = await answered(catalogue, key, "check")
    assert [one.path for one in north.requests] == ["/.well-known/did.json", "/.well-known/dspace-version"]
    assert "Check again" in checked.text


async def test_the_check_names_what_is_wrong(catalogue: Catalogue, north: Provider) -> None:
    key = await applied(catalogue, north, url=f"{north.url}/elsewhere")
    page = (await answered(catalogue, key, "check")).text
    assert f"expected the protocol versions at {north.url}/elsewhere/.well-known/dspace-version" in page


async def test_a_declined_applicant_reads_why_and_may_apply_again(catalogue: Catalogue, north: Provider) -> None:
    key = await applied(catalogue, north)
    refused = await answered(catalogue, key, "decline", reason="")
    assert (refused.status_code, "Reason: expected" in refused.text) == (400, True)
    assert (await answered(catalogue, key, "decline", reason="Please sign the framework first.")).status_code == 303
    page = await shown(catalogue, f"/join/{key}")
    assert "Please sign the framework first." in page
    assert (await answered(catalogue, key, "admit")).status_code == 409
    assert await applied(catalogue, north) != key


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"id": "did:key:z6Mk"}, "did:web"), ({"name": "North Clinic"}, "a name like north"),
     ({"contact": ""}, "Contact: expected 3 to 300"), ({"message": "x" * 2_001}, "Message: expected 0 to 2000"),
     ({"country": "Germany"}, "two capitals"), ({"title": "a\x00b"}, "control characters"),
     ({"contact": "a\x1b[31mb"}, "printable")],
)  # fmt: skip
async def test_facts_that_do_not_fit_are_refused_and_stay_in_the_form(
    catalogue: Catalogue, north: Provider, changes: dict[str, str], said: str
) -> None:
    answer = await apply(catalogue, facts(north, **changes))
    assert answer.status_code == 400
    assert said in answer.text
    assert "We offer patients." in answer.text or "message" in changes


async def test_one_application_waits_for_a_did_and_a_name(catalogue: Catalogue, north: Provider) -> None:
    await applied(catalogue, north)
    for changes in ({"name": "other"}, {"id": "did:web:other.example", "url": "https://other.example"}):
        assert (await apply(catalogue, facts(north, **changes))).status_code == 409


async def test_a_member_does_not_apply_and_a_stranger_does_not_learn_of_a_suspended_one(
    catalogue: Catalogue, north: Provider
) -> None:
    await catalogue.admit(north, "north", title="Hidden Clinic", status="suspended")
    for changes in (
        {"name": "again"},
        {"id": "did:web:other.example"},
        {"id": north.did.upper().replace("DID:WEB", "did:web")},
    ):
        refused = await apply(catalogue, facts(north, **changes))
        assert refused.status_code == 409
        assert "suspended" not in refused.text
        assert "Hidden Clinic" not in refused.text


@pytest.fixture
def few(catalogue_settings: dict[str, Any]) -> None:
    catalogue_settings["applications_max"] = 2


@pytest.mark.usefixtures("few")
async def test_only_so_many_wait_and_old_ones_are_forgotten(
    catalogue: Catalogue, north: Provider, clock: Clock
) -> None:
    for number in (1, 2):
        await applied(catalogue, north, id=f"did:web:m{number}.example", name=f"m{number}")
    full = await apply(catalogue, facts(north))
    assert (full.status_code, "Too many applications" in full.text) == (429, True)
    clock.advance(91 * DAY)
    await applied(catalogue, north)


@pytest.fixture
def closed(catalogue_settings: dict[str, Any]) -> None:
    catalogue_settings["applications_max"] = 0


@pytest.mark.usefixtures("closed")
async def test_a_catalogue_may_take_none(catalogue: Catalogue, north: Provider) -> None:
    assert "takes no applications" in await shown(catalogue, "/join")
    assert 'href="/join"' not in await shown(catalogue, "/members")
    assert (await apply(catalogue, facts(north))).status_code == 409


async def test_only_the_operator_sees_and_answers(catalogue: Catalogue, north: Provider) -> None:
    key = await applied(catalogue, north)
    for method, path in [("GET", ""), ("POST", "/check"), ("POST", "/admit"), ("POST", "/decline")]:
        answer = await catalogue.http.request(method, f"/applications/{key}{path}", data={}, headers={**HTML, **OWN})
        assert answer.status_code == 401, path
        assert "ada@north.example" not in answer.text
    assert key not in await shown(catalogue, "/members")
    assert "ada@north.example" not in await shown(catalogue, f"/join/{key}")


async def test_a_form_of_another_site_applies_for_nobody(catalogue: Catalogue, north: Provider) -> None:
    answer = await apply(catalogue, facts(north), **{"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403


async def test_what_a_stranger_writes_never_becomes_markup(catalogue: Catalogue, north: Provider) -> None:
    key = await applied(catalogue, north, title=EVIL, role=EVIL, contact=EVIL, message=EVIL)
    for path, operator in [(f"/join/{key}", False), (f"/applications/{key}", True), ("/members", True)]:
        text = await shown(catalogue, path, operator=operator)
        assert "<script>alert" not in text
        assert "<img" not in text


async def test_an_unknown_key_is_not_found(catalogue: Catalogue) -> None:
    assert (await catalogue.http.get("/join/unknown", headers=HTML)).status_code == 404
