"""Services authenticate with signed assertions (RFC 7523); each wrong one is refused with a reason in our log alone."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from hanse._transport.workload import ServiceToken, make_key
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from connector.app import management_app
from connector.audit.log import Filter
from connector.errors import Invalid
from connector.events import TokenIssued
from connector.infra.net.http_client import HttpClient
from connector.management.sign_on.auth import Tokens
from connector.management.sign_on.service_clients import ASSERTION_TYPE, ServiceClients
from connector.management.sign_on.sign_on_file import ServiceClient, read_sign_on_file
from connector.management.sign_on.workloads import CLIENT_CREDENTIALS, WorkloadTokens
from tests.connector.console.support import AGREEMENT, TRANSFER, Console, fill, opened
from tests.support.openid import ISSUER, MemoryProvider

TOKEN_URL = "https://console.example/api/v1/oauth/token"


def public(*keys: ECKey | RSAKey) -> dict[str, Any]:
    return dict(KeySet(list(keys)).as_dict(private=False))


@dataclass
class Lab:
    """A console with the services `pipeline` and `other` of one key each, and `remote` with its keys at an address."""

    desk: Console
    http: httpx2.AsyncClient
    idp: MemoryProvider
    workloads: WorkloadTokens
    keys: dict[str, ECKey | RSAKey]

    def assertion(self, *, key: Any = None, header: Any = None, name: str = "pipeline", **claims: Any) -> str:
        now = int(time.time())
        about = {
            "iss": name,
            "sub": name,
            "aud": TOKEN_URL,
            "iat": now,
            "exp": now + 60,
            "jti": str(time.monotonic_ns()),
        }
        body = {one: value for one, value in (about | claims).items() if value is not None}
        head = {"alg": "ES256", "kid": self.keys[name].kid} | (header or {})
        return jwt.encode(head, body, key or self.keys[name], algorithms=[head["alg"]])

    async def ask(self, assertion: str, **more: str) -> httpx2.Response:
        form = {
            "grant_type": CLIENT_CREDENTIALS, "client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion,
        }  # fmt: skip
        return await self.http.post("/api/v1/oauth/token", data=form | more)

    async def reasons(self) -> str:
        await self.desk.parts.sequencer.settle()
        found = await self.desk.parts.log.page(Filter(outcome="refused"), before=None, limit=50)
        return " ".join(record.text for record in found)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    idp = MemoryProvider()
    keys = {
        "pipeline": ECKey.generate_key("P-256", {"kid": "p-1"}), "other": ECKey.generate_key("P-256", {"kid": "o-1"}),
        "remote": idp.key, "rsa": RSAKey.generate_key(2048, {"kid": "r-1"}),
    }  # fmt: skip
    services = [
        ServiceClient(name="pipeline", jwks=public(keys["pipeline"]), scopes=("read", "consume")),
        ServiceClient(name="other", jwks=public(keys["other"]), scopes=("read",)),
        ServiceClient(name="rsa", jwks=public(keys["rsa"]), scopes=("metrics",), audience="hanse-north"),
        ServiceClient(name="remote", jwks_url=f"{ISSUER}/jwks", scopes=("read",)),
    ]
    async with opened(tmp_path) as desk:
        net, store = cast("HttpClient", idp), desk.parts.store
        clients = ServiceClients(net, services, token_url=TOKEN_URL)
        workloads = WorkloadTokens(store, net, [], services=clients, secret=b"w" * 32, seconds=600)
        parts = replace(desk.parts, workloads=workloads, tokens=Tokens(store, workloads.read))
        transport = httpx2.ASGITransport(management_app(parts))
        async with httpx2.AsyncClient(transport=transport, base_url="http://console.test") as http:
            yield Lab(desk, http, idp, workloads, keys)


async def test_a_service_gets_a_short_lived_token_with_its_job_in_the_log(lab: Lab) -> None:
    told: list[Any] = []
    lab.desk.parts.store.bus.subscribe(told.append)
    answer = await lab.ask(lab.assertion(), job="run-1", client_id="pipeline")
    said = answer.json()
    assert (answer.status_code, said["expires_in"], said["scope"]) == (200, 600, "consume read")
    assert answer.headers["cache-control"] == "no-store"
    bearer = {"authorization": f"Bearer {said['access_token']}"}
    me = (await lab.http.get("/api/v1/self", headers=bearer)).json()
    assert (me["caller"], me["scopes"]) == ("pipeline (service key)", ["consume", "read"])
    issued = [event for event in told if isinstance(event, TokenIssued)]
    assert [(event.job, event.subject) for event in issued] == [("run-1", "service#pipeline")]
    body = {"label": "x", "scopes": ["read"]}
    assert (await lab.http.post("/api/v1/personal-tokens", json=body, headers=bearer)).status_code == 403


async def test_the_sdk_signs_what_the_connector_takes(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    service = ServiceClient.model_validate({"name": "sdk", "jwks": make_key(file), "scopes": ["read"]})
    clients = ServiceClients(cast("HttpClient", lab.idp), [service], token_url=TOKEN_URL)
    lab.workloads._services = clients
    forms: list[Any] = []

    def exchange(form: Any) -> Any:
        forms.append(form)
        return {"access_token": "t", "expires_in": 60.0}

    assert ServiceToken("sdk", file, job="run-2").current(exchange, TOKEN_URL) == "t"
    answer = await lab.http.post("/api/v1/oauth/token", data=forms[0])
    assert (answer.status_code, answer.json()["scope"], answer.json()["job"]) == (200, "read", "run-2")


async def test_a_scope_may_be_narrowed_and_not_widened(lab: Lab) -> None:
    assert (await lab.ask(lab.assertion(), scope="read")).json()["scope"] == "read"
    assert (await lab.ask(lab.assertion(), scope="read owner")).status_code == 400
    assert (await lab.ask(lab.assertion(), scope="admin")).status_code == 400
    assert "expected scopes among consume, read" in await lab.reasons()


async def test_it_may_be_bound_to_an_agreement_of_ours_alone(lab: Lab) -> None:
    await fill(lab.desk.parts)
    assert (await lab.ask(lab.assertion(), agreement="urn:uuid:of-others")).status_code == 400
    made = await lab.ask(lab.assertion(), agreement=AGREEMENT)
    bearer = {"authorization": f"Bearer {made.json()['access_token']}"}
    assert (await lab.http.get(f"/api/v1/transfers/{TRANSFER}", headers=bearer)).status_code == 200
    assert (await lab.http.get("/api/v1/datasets", headers=bearer)).status_code == 403


@pytest.mark.hostile
async def test_an_assertion_is_used_once_at_all_processes_together(lab: Lab) -> None:
    text = lab.assertion()
    answers = await asyncio.gather(*(lab.ask(text) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]
    clients = ServiceClients(
        cast("HttpClient", lab.idp),
        [ServiceClient(name="pipeline", jwks=public(lab.keys["pipeline"]), scopes=("read",))],
        token_url=TOKEN_URL,
    )
    lab.workloads._services = clients  # another process, or the same after a restart
    assert (await lab.ask(text)).json() == {"error": "invalid_client"}
    assert "was not used before" in await lab.reasons()


async def test_a_used_assertion_is_not_burnt_by_a_refused_request(lab: Lab) -> None:
    text = lab.assertion()
    assert (await lab.ask(text, agreement="urn:uuid:of-others")).status_code == 400
    assert (await lab.ask(text)).status_code == 200


async def test_rsa_and_an_audience_of_the_file_are_good(lab: Lab) -> None:
    rsa: dict[str, Any] = {"name": "rsa", "header": {"alg": "PS256"}}
    assert (await lab.ask(lab.assertion(**rsa, aud=["hanse-north"]))).status_code == 200
    assert (await lab.ask(lab.assertion(**rsa, aud=TOKEN_URL))).status_code == 400


async def test_keys_at_an_address_are_read_again_when_they_rotate(lab: Lab) -> None:
    assert (await lab.ask(lab.assertion(name="remote"))).status_code == 200
    lab.idp.key = lab.keys["remote"] = ECKey.generate_key("P-256", {"kid": "second"})
    assert (await lab.ask(lab.assertion(name="remote"))).status_code == 200
    assert lab.idp.asked == ["/jwks", "/jwks"]


async def test_keys_that_cannot_be_had_are_503_without_a_reason(lab: Lab) -> None:
    lab.idp.down = True
    answer = await lab.ask(lab.assertion(name="remote"))
    assert (answer.status_code, "idp.example" in answer.text) == (503, False)
    assert "idp.example" in await lab.reasons()


BAD_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"aud": "https://other.example/token"}, "aud"),
    ({"aud": None}, "aud"),
    ({"aud": []}, "aud"),
    ({"aud": [TOKEN_URL, "https://other.example"]}, "this connector alone"),
    ({"aud": {"a": TOKEN_URL}}, "aud"),
    ({"iss": "other"}, "Issuer and Subject"),
    ({"iss": None}, "iss"),
    ({"iss": 7}, "iss"),
    ({"sub": "unknown", "iss": "unknown"}, "configured service"),
    ({"sub": None}, "sub"),
    ({"sub": ["pipeline"]}, "sub"),
    ({"exp": None}, "exp"),
    ({"exp": 1_000_000_000}, "expired"),
    ({"exp": 9_000_000_000}, "within 600 s"),
    ({"exp": "soon"}, "exp"),
    ({"exp": True}, "exp"),
    ({"exp": 10**400}, "within 600 s"),
    ({"exp": float("nan")}, "exp"),
    ({"nbf": 9_000_000_000}, "not yet valid"),
    ({"iat": 9_000_000_000}, "future"),
    ({"jti": None}, "jti"),
    ({"jti": ""}, "jti"),
    ({"jti": "x" * 256}, "jti"),
    ({"jti": 7}, "jti"),
]


@pytest.mark.hostile
@pytest.mark.parametrize(("claims", "reason"), BAD_CLAIMS)
async def test_wrong_claims_are_refused(lab: Lab, claims: dict[str, Any], reason: str) -> None:
    answer = await lab.ask(lab.assertion(**claims))
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_client"})
    assert reason in await lab.reasons()


def unsigned(claims: dict[str, Any], alg: str = "none") -> str:
    parts = (json.dumps({"alg": alg, "kid": "p-1"}).encode(), json.dumps(claims).encode())
    return ".".join(map(encode, parts)) + "."


def by_secret(claims: dict[str, Any], secret: bytes) -> str:
    text = unsigned(claims, "HS256")
    return text + encode(hmac.digest(secret, text[:-1].encode(), "sha256"))


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


@pytest.mark.hostile
async def test_wrong_signatures_are_refused(lab: Lab) -> None:
    now, mine = int(time.time()), lab.keys["pipeline"]
    claims = {"iss": "pipeline", "sub": "pipeline", "aud": TOKEN_URL, "exp": now + 60, "jti": "j"}
    forged = ECKey.generate_key("P-256", {"kid": "p-1"})
    jwk_text, pem = json.dumps(mine.as_dict(private=False)).encode(), mine.as_pem(private=False)
    good = lab.assertion()
    bad = {
        "none": unsigned(claims),
        "another key under the same kid": lab.assertion(key=forged),
        "the key of another service": lab.assertion(key=lab.keys["other"]),
        "the kid of another service": lab.assertion(key=lab.keys["other"], header={"kid": "o-1"}),
        "an unknown kid": lab.assertion(header={"kid": "p-2"}),
        "a key in the header": lab.assertion(key=forged, header={"jwk": forged.as_dict(private=False)}),
        "public JWK as secret": by_secret(claims, jwk_text),
        "public PEM as secret": by_secret(claims, pem),
        "cut": good[:-4],
        "other claims": ".".join((good.split(".")[0], lab.assertion().split(".")[1], good.split(".")[2])),
    }
    for what, text in bad.items():
        answer = await lab.ask(text)
        assert (answer.status_code, answer.json()) == (400, {"error": "invalid_client"}), what
    assert (await lab.ask(good)).status_code == 200


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "..", "e30.e30.", "e30.W10.x", "a" * 20_000, "\u00e9.\u00e9.\u00e9", "hanse_wl_a.b.c"]
)
async def test_what_is_no_assertion_is_refused(lab: Lab, text: str) -> None:
    assert (await lab.ask(text)).json() == {"error": "invalid_client"}


@pytest.mark.hostile
@pytest.mark.parametrize(
    "more",
    [
        {"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"},
        {"client_secret": "s"},
        {"client_id": "other"},
        {"scope": "owner"},
        {"job": "a\u202eb"},
        {"job": "x" * 251},
    ],
)
async def test_another_request_is_refused(lab: Lab, more: dict[str, str]) -> None:
    assert (await lab.ask(lab.assertion(), **more)).status_code == 400


KEY = ECKey.generate_key("P-256")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"jwks": {"keys": []}},
        {"jwks": {"keys": [KEY.as_dict(private=True)]}},
        {"jwks": {"keys": [OctKey.generate_key(256).as_dict(private=True)]}},
        {"jwks": {"keys": [KEY.as_dict(private=False)] * 2}},
        {"jwks": {"keys": [{"kty": "EC"}]}},
        {"jwks": {"no": 1}},
        {"jwks": public(KEY), "jwks_url": "https://a.example/jwks"},
        {"jwks": public(KEY), "scopes": ["admin"]},
        {"jwks": public(KEY), "scopes": []},
    ],
)
def test_a_file_with_unfit_services_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    file = tmp_path / "sign-on.yaml"
    file.write_text(json.dumps({"services": [{"name": "a", "scopes": ["read"], **entry}]}))
    file.chmod(0o600)
    with pytest.raises(Invalid):
        read_sign_on_file(file)


def test_two_services_of_one_name_are_refused(tmp_path: Path) -> None:
    file, one = tmp_path / "sign-on.yaml", {"name": "a", "scopes": ["read"], "jwks": public(KEY)}
    file.write_text(json.dumps({"services": [one, one]}))
    file.chmod(0o600)
    with pytest.raises(Invalid, match="same twice"):
        read_sign_on_file(file)
