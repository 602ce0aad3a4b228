"""Sign-on of workloads: a token of a site's issuer becomes a short-lived one, and each wrong one is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from joserfc.jwk import ECKey

from connector.app import management_app
from connector.audit.log import Filter
from connector.errors import Invalid
from connector.events import Event, TokenIssued
from connector.infra.net.http_client import HttpClient
from connector.management.sign_on.auth import Tokens
from connector.management.sign_on.service_clients import ServiceClients
from connector.management.sign_on.sign_on_file import WorkloadIssuer, read_sign_on_file
from connector.management.sign_on.workloads import ACCESS_TYPE, GRANT, JWT_TYPE, WorkloadTokens
from tests.connector.console.support import AGREEMENT, TRANSFER, Console, fill, opened
from tests.support.openid import ISSUER, MemoryProvider

POD = "system:serviceaccount:training:trainer"
CLUSTER = {
    "name": "cluster", "issuer": ISSUER, "audience": "hanse-north", "job_claim": "kubernetes.io/pod/uid",
    "subjects": {"system:serviceaccount:training:*": ["read", "consume"], "*:monitor": ["metrics"]},
}  # fmt: skip
_SECONDS = 600.0


@dataclass
class Lab:
    """A console with one issuer of workloads, and a clock that a test moves."""

    desk: Console
    idp: MemoryProvider
    http: httpx2.AsyncClient
    now: list[float]
    told: list[Event] = field(default_factory=list)

    def subject_token(self, **claims: Any) -> str:
        about = {"sub": POD, "aud": ["hanse-north"], "iat": self.now[0], "exp": self.now[0] + 3_600, **claims}
        none = {"sid": None, "jti": None, "events": None}
        return self.idp.logout_token(**(none | about))

    async def exchange(self, token: str = "", **more: str) -> httpx2.Response:
        form = {"grant_type": GRANT, "subject_token_type": JWT_TYPE, "subject_token": token or self.subject_token()}
        return await self.http.post("/api/v1/oauth/token", data=form | more)

    async def token(self, **more: str) -> dict[str, str]:
        answer = await self.exchange(**more)
        assert answer.status_code == 200, answer.text
        return {"authorization": f"Bearer {answer.json()['access_token']}"}

    async def reasons(self) -> str:
        await self.desk.parts.sequencer.settle()
        found = await self.desk.parts.log.page(Filter(outcome="refused"), before=None, limit=50)
        return " ".join(record.text for record in found)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    idp, now = MemoryProvider(), [1_800_000_000.0]
    async with opened(tmp_path) as desk:
        store, issuer = desk.parts.store, WorkloadIssuer.model_validate(CLUSTER)
        workloads = WorkloadTokens(
            store,
            cast("HttpClient", idp),
            [issuer],
            secret=b"w" * 32,
            seconds=_SECONDS,
            clock=lambda: now[0],
            services=ServiceClients(cast("HttpClient", idp), [], token_url=""),
        )
        parts = replace(desk.parts, workloads=workloads, tokens=Tokens(store, workloads.read))
        transport = httpx2.ASGITransport(management_app(parts))
        async with httpx2.AsyncClient(transport=transport, base_url="http://console.test") as http:
            made = Lab(desk, idp, http, now)
            store.bus.subscribe(made.told.append)
            yield made


async def test_a_service_account_token_becomes_a_short_lived_token(lab: Lab) -> None:
    answer = await lab.exchange()
    said = answer.json()
    assert (said["issued_token_type"], said["token_type"], said["expires_in"]) == (ACCESS_TYPE, "Bearer", 600)
    assert (said["scope"], answer.headers["cache-control"]) == ("consume read", "no-store")
    bearer = {"authorization": f"Bearer {said['access_token']}"}
    me = (await lab.http.get("/api/v1/self", headers=bearer)).json()
    assert (me["caller"], me["scopes"]) == (f"{POD} (cluster)", ["consume", "read"])
    lab.now[0] += _SECONDS
    assert (await lab.http.get("/api/v1/self", headers=bearer)).status_code == 401


async def test_an_issuer_that_is_down_is_called_once_for_many_tokens(lab: Lab) -> None:
    calls = []
    lab.idp.down = True
    call = lab.idp.call

    async def counted(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return await call(*args, **more)

    lab.idp.call = counted  # type: ignore[method-assign]  # counts what reaches the network
    answers = await asyncio.gather(*(lab.exchange() for _ in range(20)))
    assert {answer.status_code for answer in answers} == {503}
    assert all(ISSUER not in answer.text for answer in answers)
    assert len(calls) == 1
    assert ISSUER in await lab.reasons()


async def test_keys_are_read_again_once_for_many_tokens_with_an_unknown_key(lab: Lab) -> None:
    await lab.exchange()
    lab.idp.signing = ECKey.generate_key("P-256", {"kid": "unknown"})
    lab.idp.key, known = ECKey.generate_key("P-256", {"kid": "unknown"}), lab.idp.key
    token, lab.idp.key = lab.subject_token(), known
    before = lab.idp.asked.count("/jwks")
    answers = await asyncio.gather(*(lab.exchange(token) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {400}
    assert lab.idp.asked.count("/jwks") == before + 1


async def test_it_ends_with_the_subject_token(lab: Lab) -> None:
    answer = await lab.exchange(lab.subject_token(exp=lab.now[0] + 30))
    assert answer.json()["expires_in"] == 30


async def test_the_signed_job_counts_more_than_the_requested_one_and_is_in_the_log(lab: Lab) -> None:
    await lab.exchange(job="asked-for")
    signed = {"kubernetes.io": {"pod": {"uid": "pod-7"}}}
    answer = await lab.exchange(lab.subject_token(**signed), job="asked-for")
    assert answer.json()["job"] == "pod-7"
    events = [event for event in lab.told if isinstance(event, TokenIssued)]
    assert [(event.job, event.subject) for event in events] == [
        ("asked-for", f"{ISSUER}#{POD}"),
        ("pod-7", f"{ISSUER}#{POD}"),
    ]


async def test_the_records_of_a_job_have_its_id_and_subject(lab: Lab) -> None:
    bearer = await lab.token(job="job-1")
    body = {"sql": "SELECT 1 AS one", "purpose": "dpv:ScientificResearch"}
    await lab.http.post("/api/v1/queries", json=body, headers=bearer)
    await lab.http.post("/api/v1/receipts", json={"ends": []}, headers=bearer)
    name = f"{POD} (cluster)"
    found = [event for event in lab.told if event.actor == name]
    assert found
    assert {(event.job, event.subject) for event in found} == {("job-1", f"{ISSUER}#{POD}")}


async def test_a_scope_may_be_narrowed_and_not_widened(lab: Lab) -> None:
    assert (await lab.exchange(scope="read")).json()["scope"] == "read"
    assert (await lab.exchange(scope="read owner")).status_code == 400
    assert "expected scopes among consume, read" in await lab.reasons()


async def test_a_workload_makes_no_token(lab: Lab) -> None:
    bearer = await lab.token()
    body = {"label": "x", "scopes": ["read"]}
    assert (await lab.http.post("/api/v1/personal-tokens", json=body, headers=bearer)).status_code == 403


WRONG = [
    ({"aud": "another"}, "aud"),
    ({"aud": None}, "aud"),
    ({"iss": "https://other.example"}, "configured issuer"),
    ({"iss": None}, "iss"),
    ({"sub": None}, "sub"),
    ({"sub": "system:serviceaccount:other:x"}, "expected scopes among none"),
    ({"sub": "system:serviceaccount:training:" + "x" * 300}, "at most 250"),
    ({"exp": 1_000_000_000}, "expired"),
    ({"exp": None}, "exp"),
    ({"exp": 10**400}, "too large"),
    ({"exp": float("nan")}, "exp"),
    ({"exp": float("inf")}, "exp"),
    ({"exp": True}, "exp"),
    ({"nbf": 1_900_000_000}, "not yet valid"),
]


@pytest.mark.hostile
@pytest.mark.parametrize(("claims", "reason"), WRONG)
async def test_a_wrong_token_is_refused_with_the_reason_in_our_log_alone(
    lab: Lab, claims: dict[str, Any], reason: str
) -> None:
    answer = await lab.exchange(lab.subject_token(**claims))
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_grant"})
    assert reason in await lab.reasons()


@pytest.mark.hostile
@pytest.mark.parametrize("token", ["x", "a.b.c", "..", "e30.e30.", "a" * 20_000, "e30.W10.x"])
async def test_what_is_no_token_is_refused_without_a_call(lab: Lab, token: str) -> None:
    assert (await lab.exchange(token)).status_code == 400
    assert lab.idp.asked == []


@pytest.mark.hostile
async def test_a_forged_token_is_refused_and_the_keys_are_read_at_a_pace(lab: Lab) -> None:
    await lab.exchange()
    for number in range(5):
        lab.idp.signing = ECKey.generate_key("P-256", {"kid": f"forged-{number}"})
        assert (await lab.exchange()).status_code == 400
    assert lab.idp.asked.count("/jwks") == 2
    lab.idp.signing, lab.idp.alg = None, "none"
    assert (await lab.exchange()).status_code == 400


@pytest.mark.hostile
@pytest.mark.parametrize(
    "wrong", [{"grant_type": "password"}, {"subject_token_type": ACCESS_TYPE}, {"job": "a\u202eb"}]
)
async def test_another_request_is_refused(lab: Lab, wrong: dict[str, str]) -> None:
    assert (await lab.exchange(**wrong)).status_code == 400


@pytest.mark.hostile
async def test_a_doubled_field_is_refused(lab: Lab) -> None:
    form = {"grant_type": GRANT, "subject_token_type": JWT_TYPE, "subject_token": lab.subject_token()}
    answer = await lab.http.post("/api/v1/oauth/token", data=form | {"job": ["a", "b"]})
    assert answer.status_code == 400
    assert "expected each field of the form once" in await lab.reasons()


@pytest.mark.hostile
async def test_a_changed_token_of_ours_is_refused(lab: Lab) -> None:
    bearer = (await lab.token())["authorization"]
    for text in (bearer[:-2], bearer + "x", "Bearer hanse_wl_", "Bearer hanse_wl_a.b.c"):
        assert (await lab.http.get("/api/v1/self", headers={"authorization": text})).status_code == 401


async def test_a_token_is_bound_to_an_agreement_of_ours_and_opens_nothing_else(lab: Lab) -> None:
    await fill(lab.desk.parts)
    assert (await lab.exchange(agreement="urn:uuid:of-others")).status_code == 400
    bearer = await lab.token(agreement=AGREEMENT)
    seen = await lab.http.get(f"/api/v1/transfers/{TRANSFER}", headers=bearer)
    assert (seen.status_code, seen.json()["agreement_id"]) == (200, AGREEMENT)
    for path in ("/api/v1/transfers", "/api/v1/datasets", "/", "/api/v1/personal-tokens"):
        assert (await lab.http.get(path, headers=bearer)).status_code == 403, path
    body = {"agreement_id": "urn:uuid:another"}
    refused = await lab.http.post("/api/v1/transfers", json=body, headers=bearer)
    assert (refused.status_code, "bound to the agreement" in refused.text) == (403, True)
    purposed = await lab.token(agreement=AGREEMENT, purpose="dpv:Marketing")
    for path in ("", "/data", "/received"):
        answers = [await lab.http.get(f"/api/v1/transfers/{TRANSFER}{path}", headers=one) for one in (purposed, bearer)]
        assert "bound to the purpose" in answers[0].text, path
        assert "bound to" not in answers[1].text, path


def test_an_administrators_scope_is_for_no_workload(tmp_path: Path) -> None:
    file = tmp_path / "sign-on.yaml"
    file.write_text("workloads:\n- {name: a, issuer: i, audience: h, subjects: {x: [admin]}}\n")
    file.chmod(0o600)
    with pytest.raises(Invalid, match="expected scopes among read, consume, metrics"):
        read_sign_on_file(file)
