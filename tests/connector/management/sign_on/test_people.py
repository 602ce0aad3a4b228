"""Sign-on of people: what a checked ID token gives, and what each wrong one gets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from joserfc.jwk import ECKey, OctKey

from connector.app import management_app
from connector.audit.log import Filter
from connector.errors import Invalid
from connector.events import Event, LogRead, TokenIssued
from connector.identity.openid.login import LoginClient, Provider
from connector.infra.net.http_client import HttpClient
from connector.management.sign_on.auth import COOKIE
from connector.management.sign_on.people import ATTEMPT_COOKIE, GRANT, ID_TYPE, SignOn
from connector.management.sign_on.sign_on_file import ROLES, read_sign_on_file
from tests.connector.console.support import Console, opened
from tests.support.openid import CLIENT, ISSUER, MemoryProvider

START, BACK = "/login/with/clinic", "/login/with/clinic/callback"
OUT = "/login/with/clinic/back-channel-logout"
GROUPS = {"data-team": "owner", "board": "approver", "revision": "auditor", "it": "operator", "science": "reader"}
CLI = "hanse-cli"
PROVIDER = {"name": "clinic", "title": "The clinic", "issuer": ISSUER, "client_id": CLIENT, "roles": GROUPS}


@dataclass
class Lab:
    """A console whose people log in at a provider in memory."""

    desk: Console
    idp: MemoryProvider
    http: httpx2.AsyncClient

    async def log_in(self, *groups: str, **changes: str) -> httpx2.Response:
        """Log in as a member of these groups; `changes` are of the query that the browser comes back with."""
        if groups:
            self.idp.claims["groups"] = list(groups)
        begun = await self.http.get(START)
        assert begun.status_code == 303, begun.text
        return await self.http.get(BACK, params=self.idp.log_in(begun.headers["location"]) | changes)

    async def me(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get("/api/v1/self")).json()
        return found

    async def reasons(self) -> list[str]:
        await self.desk.parts.sequencer.settle()
        found = await self.desk.parts.log.page(Filter(outcome="refused"), before=None, limit=50)
        return [record.text for record in found]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    idp = MemoryProvider()
    async with opened(tmp_path) as desk:
        store, net = desk.parts.store, cast("HttpClient", idp)
        both = [Provider.model_validate(PROVIDER | more) for more in ({}, {"name": "branch", "cli_client_id": CLI})]
        sign_on = SignOn(store, LoginClient(net, both, base="http://console.test", secret=b"s" * 32))
        app = management_app(replace(desk.parts, sign_on=sign_on))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://console.test") as http:
            yield Lab(desk, idp, http)


async def test_a_person_logs_in_and_the_log_has_name_and_subject(lab: Lab) -> None:
    told: list[Event] = []
    lab.desk.parts.store.bus.subscribe(told.append)
    answer = await lab.log_in("revision")
    assert (answer.status_code, 'content="0;url=/audit"' in answer.text) == (200, True)
    assert (await lab.me())["caller"] == "Ada Byron (clinic)"
    assert (await lab.http.get("/api/v1/audit/events")).status_code == 200
    [read] = [event for event in told if isinstance(event, LogRead)]
    assert (read.actor, read.subject) == ("Ada Byron (clinic)", f"{ISSUER}#ada")
    assert told[0].kind == "SessionStarted"


@pytest.mark.parametrize(("group", "role"), GROUPS.items())
async def test_a_group_gives_the_scopes_of_its_role(lab: Lab, group: str, role: str) -> None:
    await lab.log_in(group, "unknown")
    assert (await lab.me())["scopes"] == sorted(ROLES[role])


async def test_a_login_takes_scopes_from_personal_tokens_that_the_roles_give_no_more(lab: Lab) -> None:
    await lab.log_in("data-team", "board")
    made = {}
    for name, scopes in {"both": ["owner", "read"], "approving": ["approve"]}.items():
        body, own = {"label": name, "scopes": scopes}, {"sec-fetch-site": "same-origin"}
        answer = await lab.http.post("/api/v1/personal-tokens", json=body, headers=own)
        assert answer.status_code == 201, answer.text
        made[name] = {"authorization": f"Bearer {answer.json()['token']}"}
    await lab.log_in("science")
    lab.http.cookies.clear()
    told = (await lab.http.get("/api/v1/self", headers=made["both"])).json()
    assert told["scopes"] == ["read"]
    assert (await lab.http.get("/api/v1/self", headers=made["approving"])).status_code == 401


async def test_the_session_ends_with_the_id_token(lab: Lab) -> None:
    answer = await lab.log_in("data-team")
    cookie = next(one for one in answer.headers.get_list("set-cookie") if one.startswith(COOKIE))
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Max-Age="))
    assert 0 < int(cookie.split("Max-Age=")[1].split(";")[0]) <= 600

    def expire(tx: Any) -> None:
        [row] = tx.sessions.list_of(provider="clinic", subject=f"{ISSUER}#ada", sid="")
        row.expires_at = tx.now - 1

    await lab.desk.parts.store.write(expire)
    assert (await lab.http.get("/api/v1/self")).status_code == 401


async def test_logging_out_ends_the_session_and_leads_to_the_provider(lab: Lab) -> None:
    await lab.log_in("data-team")
    session = {"cookie": f"{COOKIE}={lab.http.cookies[COOKIE]}"}
    answer = await lab.http.post("/logout", headers={"sec-fetch-site": "same-origin"})
    assert (f"{ISSUER}/end?id_token_hint=" in answer.text, "post_logout_redirect_uri" in answer.text) == (True, True)
    assert (await lab.http.get("/api/v1/self", headers=session)).status_code == 401


@pytest.mark.parametrize("claims", [{}, {"sid": None}, {"sub": None}])
async def test_a_logout_at_the_provider_ends_the_session(lab: Lab, claims: dict[str, Any]) -> None:
    await lab.log_in("data-team")
    answer = await lab.http.post(OUT, data={"logout_token": lab.idp.logout_token(**claims)}, headers=FROM_IDP)
    assert answer.status_code == 200
    assert (await lab.http.get("/api/v1/self")).status_code == 401


FROM_IDP = {"cookie": ""}
NO_LOGOUT = [
    {"iss": "https://other.example"},
    {"aud": "another"},
    {"events": None},
    {"events": {"other": {}}},
    {"nonce": "n"},
    {"sub": None, "sid": None},
    {"iat": 1},
    {"jti": None},
    {"exp": 1},
]


@pytest.mark.hostile
@pytest.mark.parametrize("claims", NO_LOGOUT)
async def test_a_wrong_logout_token_ends_nothing(lab: Lab, claims: dict[str, Any]) -> None:
    await lab.log_in("data-team")
    answer = await lab.http.post(OUT, data={"logout_token": lab.idp.logout_token(**claims)}, headers=FROM_IDP)
    assert (answer.status_code, answer.text) == (400, "")
    assert (await lab.http.get("/api/v1/self")).status_code == 200
    assert any("sign_on_failed" in text for text in await lab.reasons())


WRONG = [
    ({"nonce": "other"}, "nonce"),
    ({"nonce": None}, "nonce"),
    ({"aud": "another"}, "aud"),
    ({"aud": "another", "azp": CLIENT}, "aud"),
    ({"aud": None}, "aud"),
    ({"iss": "https://other.example"}, "iss"),
    ({"iss": None}, "iss"),
    ({"exp": 1}, "expired"),
    ({"exp": None}, "exp"),
    ({"sub": None}, "sub"),
    ({"sub": "s" * 300}, "at most 250"),
    ({"groups": []}, "gives a role"),
    ({"groups": None}, "gives a role"),
    ({"groups": {"data-team": True}}, "gives a role"),
    ({"groups": [["it"]]}, "gives a role"),
]


@pytest.mark.hostile
@pytest.mark.parametrize(("claims", "reason"), WRONG)
async def test_a_wrong_id_token_is_refused_with_the_reason_in_our_log_alone(
    lab: Lab, claims: dict[str, Any], reason: str
) -> None:
    lab.idp.claims = claims
    await refused(lab, await lab.log_in(), reason)


async def refused(lab: Lab, answer: httpx2.Response, reason: str) -> None:
    """The browser has no session and no reason; the log has it."""
    assert (answer.status_code, "sign-on failed" in answer.text.lower()) == (401, True)
    assert COOKIE not in lab.http.cookies
    [text] = [text for text in await lab.reasons() if "sign_on_failed" in text]
    assert reason in text
    assert (await lab.http.get("/api/v1/self")).status_code == 401


@pytest.mark.hostile
async def test_a_response_with_another_state_issuer_or_an_error_is_refused(lab: Lab) -> None:
    for changes in ({"state": "other"}, {"iss": "https://other.example"}, {"error": "access_denied"}):
        answer = await lab.log_in(**changes)
        assert (answer.status_code, "denied" in answer.text) == (401, False)
    reasons = " ".join(await lab.reasons())
    assert all(word in reasons for word in ("expected the state", "got another's `iss`", "access_denied"))


@pytest.mark.hostile
async def test_a_login_at_one_provider_does_not_end_at_another(lab: Lab) -> None:
    back = lab.idp.log_in((await lab.http.get(START)).headers["location"])
    answer = await lab.http.get(BACK.replace("clinic", "branch"), params=back)
    await refused(lab, answer, "another provider's")
    assert COOKIE not in answer.cookies


AWAY = ["//evil.example", "https://evil.example", "/\\evil.example", "/\t\\evil.example", "/\t/evil.example",
        "/\r\n/evil.example", "\\\\evil.example", "/datasets\\..", "javascript:alert(1)", "/login"]  # fmt: skip


@pytest.mark.parametrize("to", AWAY)
async def test_a_login_leads_to_no_other_site(lab: Lab, to: str) -> None:
    begun = await lab.http.get(START, params={"to": to})
    page = (await lab.http.get(BACK, params=lab.idp.log_in(begun.headers["location"]))).text
    assert re.findall('content="0;url=([^"]*)"', page) == ["/"]


async def test_a_login_leads_to_the_page_that_was_asked_for(lab: Lab) -> None:
    begun = await lab.http.get(START, params={"to": "/search?q=größe&page=2"})
    page = (await lab.http.get(BACK, params=lab.idp.log_in(begun.headers["location"]))).text
    assert re.findall('content="0;url=([^"]*)"', page) == ["/search?q=größe&amp;page=2"]


async def test_the_id_token_is_stored_sealed(lab: Lab) -> None:
    await lab.log_in("data-team")

    def find(tx: Any) -> str:
        [row] = tx.sessions.list_of(provider="clinic", subject=f"{ISSUER}#ada", sid="")
        return str(row.id_token)

    stored = await lab.desk.parts.store.read(find)
    page = (await lab.http.post("/logout", headers={"sec-fetch-site": "same-origin"})).text
    hint = re.findall("id_token_hint=([^&]+)", page)[0]
    assert (hint.count("."), stored.count("."), hint in stored) == (2, 4, False)  # signed; encrypted


@pytest.mark.hostile
async def test_a_response_without_the_browsers_own_attempt_is_refused(lab: Lab) -> None:
    back = lab.idp.log_in((await lab.http.get(START)).headers["location"])
    lab.http.cookies.clear()
    await refused(lab, await lab.http.get(BACK, params=back), "cookie of a login")


@pytest.mark.hostile
@pytest.mark.parametrize("cookie", ["x", "a.b.c.d.e", ""])
async def test_a_forged_attempt_is_refused(lab: Lab, cookie: str) -> None:
    headers = {"cookie": f"{ATTEMPT_COOKIE}={cookie}"}
    answer = await lab.http.get(BACK, params={"code": "c", "state": "s"}, headers=headers)
    assert answer.status_code == 401


async def test_a_code_is_good_once(lab: Lab) -> None:
    begun = await lab.http.get(START)
    back = lab.idp.log_in(begun.headers["location"])
    attempt = {"cookie": f"{ATTEMPT_COOKIE}={lab.http.cookies[ATTEMPT_COOKIE]}"}
    assert (await lab.http.get(BACK, params=back, headers=attempt)).status_code == 200
    lab.http.cookies.clear()
    await refused(lab, await lab.http.get(BACK, params=back, headers=attempt), "invalid_grant")


@pytest.mark.hostile
@pytest.mark.parametrize("alg", ["none", "HS256"])
async def test_an_algorithm_that_anyone_can_sign_with_is_refused(lab: Lab, alg: str) -> None:
    lab.idp.alg = alg
    lab.idp.signing = OctKey.import_key(str(lab.idp.key.as_pem(private=False)))
    await refused(lab, await lab.log_in(), "lgorithm")


async def test_a_key_of_another_is_refused_and_a_rotated_key_is_read(lab: Lab) -> None:
    await lab.log_in("data-team")
    lab.http.cookies.clear()
    lab.idp.key = ECKey.generate_key("P-256", {"kid": "second"})
    assert (await lab.log_in("data-team")).status_code == 200
    lab.http.cookies.clear()
    lab.idp.signing = ECKey.generate_key("P-256", {"kid": "second"})
    await refused(lab, await lab.log_in("data-team"), "bad_signature")


async def test_a_provider_that_is_down_is_refused_and_tokens_still_work(lab: Lab) -> None:
    lab.idp.down = True
    answer = await lab.http.get(START)
    assert (answer.status_code, answer.headers.get("location", "/login")[:6]) == (303, "/login")
    assert any("cannot be reached" in text for text in await lab.reasons())
    assert (await lab.desk.get("/", "read")).status_code == 200


@pytest.mark.hostile
@pytest.mark.parametrize(
    "metadata", [{"issuer": "https://other.example"}, {"id_token_signing_alg_values_supported": ["none", "HS256"]}]
)
async def test_metadata_of_another_issuer_or_without_an_asymmetric_algorithm_is_refused(
    lab: Lab, metadata: dict[str, Any]
) -> None:
    lab.idp.metadata = metadata
    await lab.http.get(START)
    assert any("sign_on_failed" in text for text in await lab.reasons())


async def test_an_operator_issues_tokens_while_the_session_is_open(lab: Lab) -> None:
    told: list[Event] = []
    lab.desk.parts.store.bus.subscribe(told.append)
    await lab.log_in("it")
    own = {"sec-fetch-site": "same-origin"}
    body = {"name": "monitor", "scopes": ["metrics"]}
    assert (await lab.http.post("/api/v1/tokens", json=body, headers=own)).status_code == 201
    [event] = [event for event in told if isinstance(event, TokenIssued)]
    assert (event.actor, event.subject) == ("Ada Byron (clinic)", f"{ISSUER}#ada")


async def test_a_person_makes_a_personal_token_that_acts_under_the_persons_name(lab: Lab) -> None:
    await lab.log_in("data-team")
    body = {"label": "notebook", "scopes": ["read"]}
    own = {"sec-fetch-site": "same-origin"}
    made = (await lab.http.post("/api/v1/personal-tokens", json=body, headers=own)).json()
    lab.http.cookies.clear()
    me = await lab.http.get("/api/v1/self", headers={"authorization": f"Bearer {made['token']}"})
    assert me.json()["caller"] == "Ada Byron (clinic)"


async def exchange(lab: Lab, token: str, **more: str) -> httpx2.Response:
    form = {"grant_type": GRANT, "subject_token_type": ID_TYPE, "subject_token": token}
    return await lab.http.post("/api/v1/oauth/token", data=form | more)


async def test_an_id_token_of_a_program_becomes_a_token_of_the_person(lab: Lab) -> None:
    answer = await exchange(lab, lab.idp.id_token())
    made = answer.json()
    assert (answer.status_code, made["scope"], 590 <= made["expires_in"] <= 600) == (200, "owner read", True)
    bearer = {"authorization": f"Bearer {made['access_token']}"}
    me = (await lab.http.get("/api/v1/self", headers=bearer)).json()
    assert (me["caller"], me["scopes"]) == ("Ada Byron (branch)", ["owner", "read"])
    assert (await lab.http.post("/api/v1/oauth/revoke", data={"token": made["access_token"]})).status_code == 200
    assert (await lab.http.get("/api/v1/self", headers=bearer)).status_code == 401
    assert (await lab.http.post("/api/v1/oauth/revoke", data={"token": "unknown"})).status_code == 200


async def test_a_logout_at_the_provider_ends_the_token_of_a_program(lab: Lab) -> None:
    bearer = {"authorization": f"Bearer {(await exchange(lab, lab.idp.id_token())).json()['access_token']}"}
    out = OUT.replace("clinic", "branch")
    await lab.http.post(out, data={"logout_token": lab.idp.logout_token()}, headers=FROM_IDP)
    assert (await lab.http.get("/api/v1/self", headers=bearer)).status_code == 401


NO_ID_TOKEN = [
    ({"aud": CLIENT}, "aud"),  # of the console's client
    ({"aud": [CLI, "another"]}, "alone"),
    ({"azp": "another"}, "alone"),
    ({"iss": "https://other.example"}, "cli_client_id"),
    ({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, "another kind"),
    ({"typ": "Bearer"}, "another kind"),  # an access token of Keycloak
    ({"exp": 1}, "expired"),
    ({"exp": None}, "exp"),
    ({"groups": ["strangers"]}, "gives a role"),
]


@pytest.mark.hostile
@pytest.mark.parametrize(("claims", "reason"), NO_ID_TOKEN)
async def test_a_wrong_id_token_of_a_program_is_refused(lab: Lab, claims: dict[str, Any], reason: str) -> None:
    answer = await exchange(lab, lab.idp.id_token(**claims))
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_grant"})
    [text] = [text for text in await lab.reasons() if "sign_on_failed" in text]
    assert reason in text


@pytest.mark.hostile
async def test_what_is_no_id_token_is_refused(lab: Lab) -> None:
    lab.idp.signing = ECKey.generate_key("P-256", {"kid": "first"})
    for token in (lab.idp.id_token(), "a.b.c", "x" * 20_000):
        assert (await exchange(lab, token)).status_code == 400
    assert (await exchange(lab, "a.b.c", grant_type="password")).status_code == 400
    assert (await lab.http.post("/api/v1/oauth/revoke", data={"a": ["1", "2"]})).status_code == 400


async def test_a_person_has_a_bounded_number_of_sessions(lab: Lab) -> None:
    for _ in range(52):
        assert (await exchange(lab, lab.idp.id_token())).status_code == 200
    found = await lab.desk.parts.store.read(lambda tx: tx.sessions.list_newest(f"{ISSUER}#ada"))
    assert len(found) == 50


async def test_providers_with_a_client_for_programs_are_listed(lab: Lab) -> None:
    listed = (await lab.http.get("/api/v1/oauth/providers")).json()
    [one] = listed
    assert (one["name"], one["issuer"], one["client_id"]) == ("branch", ISSUER, CLI)
    assert "secret" not in str(listed)


async def test_an_unknown_provider_is_not_found(lab: Lab) -> None:
    assert (await lab.http.get("/login/with/other")).status_code == 404


async def test_the_login_page_offers_the_providers(lab: Lab) -> None:
    assert "Log in with The clinic" in (await lab.http.get("/login")).text


FILE = "providers:\n- name: clinic\n  issuer: https://idp.example\n  client_id: hanse\n  roles: {it: operator}\n"
BAD_FILES = [
    (FILE.replace("operator", "king"), "expected roles among"),
    (FILE + FILE.removeprefix("providers:\n"), "got the same twice"),
    (FILE + "  scopes: profile\n", "expected the scope openid"),
    (FILE.replace("client_id", "client"), "client_id"),
    ("a: 1", "expected YAML with `providers`"),
    ("[1]", "expected YAML with `providers`"),
    ("[", "expected YAML with `providers`"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_FILES)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        read_sign_on_file(written(tmp_path, text))


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "providers.yaml"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    assert [one.name for one in read_sign_on_file(written(tmp_path, FILE)).providers] == ["clinic"]
    with pytest.raises(Invalid, match="chmod 600"):
        read_sign_on_file(written(tmp_path, FILE, 0o644))
