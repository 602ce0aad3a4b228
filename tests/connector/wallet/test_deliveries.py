"""Issuers that deliver and offer credentials, and our secure token service: who may, and with which messages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from fastapi import FastAPI
from joserfc import jwt

from connector.events import Event
from connector.identity.credentials.access_token import verify_access_token
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity, OwnWallet
from connector.infra.http import problem_json
from connector.store import Store
from connector.wallet import routes, token_service
from tests.connector.identity.credentials.world import HOLDER, ISSUER, KEYS, OTHER, US, V1, V2, World, header

SECRET = "a-secret-of-many-letters"
SCOPE = "org.eclipse.dspace.dcp.vc.type:MembershipCredential:read"


def of(sender: str, *, token: Any = None, **claims: Any) -> dict[str, str]:
    """The header of a message of `sender` to HOLDER."""
    about = {"iss": sender, "sub": sender, "aud": HOLDER, **claims}
    kid = {"kid": f"{sender}#{KEYS[sender].thumbprint()}"}
    return {"authorization": header(token, KEYS[sender], header=kid, **about)}


@pytest.fixture
async def wallet(store: Store, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """The services of HOLDER, which takes credentials of ISSUER alone."""
    resolver = DidResolver(World())  # type: ignore[arg-type]  # a fake
    ours = Identity(did=HOLDER, key=KEYS[HOLDER], resolver=resolver)
    app = FastAPI()
    problem_json.install(app)
    app.include_router(routes.router(store, ours, resolver, issuers=[ISSUER], refuse_ungranted=True))
    (tmp_path / "secret").write_text(SECRET + "\n")
    signer = OwnWallet(did=HOLDER, key=KEYS[HOLDER])
    app.include_router(token_service.router(signer, store, client=HOLDER, secret_file=tmp_path / "secret"))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://holder.example") as client:
        yield client


def delivery(*credentials: Any, **changes: Any) -> dict[str, Any]:
    entries = [{"credentialType": "X", "format": "any", "payload": one} for one in credentials]
    message = {"type": "CredentialMessage", "issuerPid": "i-1", "holderPid": "h-1", "status": "ISSUED"}
    changed = {**message, "credentials": entries, **changes}
    return {name: value for name, value in changed.items() if value is not None}


async def held(store: Store) -> int:
    return await store.read(lambda tx: tx.held_credentials.count())


@pytest.mark.parametrize("profile", [V1, V2])
async def test_a_listed_issuer_delivers_credentials_about_us(
    store: Store, wallet: httpx2.AsyncClient, profile: str
) -> None:
    text = World(profile).credential()
    for _ in range(2):  # a repeated delivery is no error
        answer = await wallet.post("/dcp/credentials", json=delivery(text), headers=of(ISSUER))
        assert answer.status_code == 200
    (row,) = await store.read(lambda tx: list(tx.held_credentials.list_current(time.time())))
    assert (row.types, row.issuer, row.holder_pid) == (["VerifiableCredential", "MembershipCredential"], ISSUER, "h-1")


async def test_a_renewed_credential_replaces_that_of_the_same_request(store: Store, wallet: httpx2.AsyncClient) -> None:
    for pid, count in (("h-1", 1), ("h-1", 1), ("h-2", 2)):
        text = World().credential(jti=f"urn:{time.time_ns()}")
        await wallet.post("/dcp/credentials", json=delivery(text, holderPid=pid), headers=of(ISSUER))
        assert await held(store) == count


async def test_one_delivery_holds_a_credential_in_both_data_models(store: Store, wallet: httpx2.AsyncClient) -> None:
    for _ in range(2):  # the second renews both
        both = [World(profile).credential(jti=f"urn:{time.time_ns()}") for profile in (V1, V2)]
        answer = await wallet.post("/dcp/credentials", json=delivery(*both), headers=of(ISSUER))
        assert answer.status_code == 200
        rows = await store.read(lambda tx: list(tx.held_credentials.list_current(time.time())))
        assert sorted(row.jwt for row in rows) == sorted(both)
    only_new = World(V2).credential(jti=f"urn:{time.time_ns()}")  # the credential of VC 1.1 stays
    await wallet.post("/dcp/credentials", json=delivery(only_new), headers=of(ISSUER))
    rows = await store.read(lambda tx: list(tx.held_credentials.list_current(time.time())))
    assert sorted(row.jwt for row in rows) == sorted([both[0], only_new])


async def test_alike_credentials_of_one_delivery_are_all_held(store: Store, wallet: httpx2.AsyncClient) -> None:
    alike = [World().credential(jti=f"urn:{time.time_ns()}") for _ in range(2)]
    await wallet.post("/dcp/credentials", json=delivery(*alike), headers=of(ISSUER))
    assert await held(store) == 2


WRONG: dict[str, dict[str, Any]] = {
    "another message": {"type": "CredentialRequestMessage"},
    "no type": {"type": None},
    "no request": {"holderPid": None},
    "an empty request": {"holderPid": ""},
    "a request that is a number": {"holderPid": 5},
    "a long request": {"holderPid": "x" * 256},
    "no process of the issuer": {"issuerPid": None},
    "another status": {"status": "RECEIVED"},
    "no status": {"status": None},
    "no credentials": {"credentials": None},
    "an empty list": {"credentials": []},
    "too many": {"credentials": [{}] * 17},
    "a text for a container": {"credentials": ["text"]},
    "a container without payload": {"credentials": [{}]},
    "a payload that is a number": {"credentials": [{"payload": 5}]},
    "a payload that is no credential": {"credentials": [{"payload": "a.b.c"}]},
}


@pytest.mark.hostile
@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG.keys())
async def test_a_delivery_that_is_wrong_is_refused(
    store: Store, wallet: httpx2.AsyncClient, changes: dict[str, Any]
) -> None:
    message = delivery(World().credential(), **changes)
    assert (await wallet.post("/dcp/credentials", json=message, headers=of(ISSUER))).status_code == 400
    assert await held(store) == 0


FORGED: dict[str, dict[str, Any]] = {
    "signed by another": {"vc signer": OTHER},
    "of another issuer": {"vc signer": OTHER, "vc": {"iss": OTHER}, "in": {"issuer": OTHER}},
    "about another": {"in": {"credentialSubject.id": US}},
    "ended": {"vc": {"exp": int(time.time()) - 1}},
    "unsigned": {"vc header": {"alg": "none"}},
}


@pytest.mark.hostile
@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED.keys())
async def test_one_wrong_credential_refuses_the_whole_delivery(
    store: Store, wallet: httpx2.AsyncClient, changes: dict[str, Any]
) -> None:
    message = delivery(World().credential(), World(**changes).credential())
    assert (await wallet.post("/dcp/credentials", json=message, headers=of(ISSUER))).status_code == 400
    assert await held(store) == 0


@pytest.mark.parametrize("path", ["/dcp/credentials", "/dcp/offers"])
@pytest.mark.parametrize(
    ("heads", "status"),
    [
        ({}, 401),
        ({"authorization": "Basic abc"}, 401),
        ({"authorization": "Bearer abc"}, 401),
        (lambda: {"authorization": of(ISSUER)["authorization"].removeprefix("Bearer ")}, 401),
        (lambda: of(ISSUER, aud=US), 401),
        (lambda: of(OTHER), 403),
        (lambda: of(HOLDER), 403),
    ],
)
async def test_only_a_listed_issuer_delivers_and_offers(
    store: Store, wallet: httpx2.AsyncClient, path: str, heads: Any, status: int
) -> None:
    found = heads if isinstance(heads, dict) else heads()
    assert (await wallet.post(path, json=delivery(World().credential()), headers=found)).status_code == status
    assert await held(store) == 0


async def test_a_rejected_request_stores_nothing(store: Store, wallet: httpx2.AsyncClient) -> None:
    message = delivery(status="REJECTED", credentials=None)
    assert (await wallet.post("/dcp/credentials", json=message, headers=of(ISSUER))).status_code == 200
    assert await held(store) == 0


OFFERS: dict[str, tuple[dict[str, Any], int]] = {
    "ids": ({"credentials": ["one", "two"]}, 200),
    "objects": ({"issuer": ISSUER, "credentials": [{"id": "one", "credentialType": "A"}, {"id": "two"}]}, 200),
    "another message": ({"type": "CredentialMessage", "credentials": ["one"]}, 400),
    "of another issuer": ({"issuer": OTHER, "credentials": ["one"]}, 400),
    "nothing": ({"credentials": []}, 400),
    "a number": ({"credentials": [5]}, 400),
    "an object without a name": ({"credentials": [{}]}, 400),
    "a long name": ({"credentials": ["x" * 256]}, 400),
    "too many": ({"credentials": ["x"] * 17}, 400),
}


@pytest.mark.parametrize(("changes", "status"), OFFERS.values(), ids=OFFERS.keys())
async def test_an_offer_is_recorded_for_the_operator(
    store: Store, wallet: httpx2.AsyncClient, changes: dict[str, Any], status: int
) -> None:
    seen: list[Any] = []
    store.bus.subscribe(seen.append)
    message = {"type": "CredentialOfferMessage", **changes}
    assert (await wallet.post("/dcp/offers", json=message, headers=of(ISSUER))).status_code == status
    assert [event.actor for event in seen] == ([ISSUER] if status == 200 else [])


@pytest.mark.hostile
async def test_a_query_beyond_its_token_is_refused_where_peers_expect_it(wallet: httpx2.AsyncClient) -> None:
    signed = await OwnWallet(did=HOLDER, key=KEYS[HOLDER]).sign(US, scopes=[SCOPE])
    token = jwt.decode(signed, KEYS[HOLDER], algorithms=["ES256"]).claims["token"]
    for scope, status in ((SCOPE, 200), (SCOPE.replace("Membership", "Other"), 403)):
        message = {"type": "PresentationQueryMessage", "scope": [scope]}
        heads = of(US, token=token)
        assert (await wallet.post("/dcp/presentations/query", json=message, headers=heads)).status_code == status


FORM = {"grant_type": "client_credentials", "client_id": HOLDER, "client_secret": SECRET, "audience": US}


async def test_our_programs_have_tokens_signed_with_scopes_or_a_token(wallet: httpx2.AsyncClient) -> None:
    for more in ({}, {"bearer_access_scope": f"{SCOPE} {SCOPE}"}, {"token": "theirs"}):
        answer = await wallet.post("/sts/token", content=urlencode({**FORM, **more}))
        claims = jwt.decode(answer.json()["access_token"], KEYS[HOLDER], algorithms=["ES256"]).claims
        assert (claims["iss"], claims["aud"]) == (HOLDER, US)
        if "bearer_access_scope" in more:
            found = verify_access_token(claims["token"], [KEYS[HOLDER]], did=HOLDER, presenter=US, now=time.time())
            assert found == {SCOPE}
        else:
            assert claims.get("token") == more.get("token")


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"client_secret": "another"}, 401),
        ({"client_secret": ""}, 401),
        ({"client_secret": "é"}, 401),
        ({"client_id": US}, 401),
        ({"client_id": ""}, 401),
        ({"grant_type": "password"}, 400),
        ({"audience": "us.example"}, 400),
        ({"audience": ""}, 400),
        ({"bearer_access_scope": "a " * 65}, 400),
    ],
)
async def test_another_program_has_none(wallet: httpx2.AsyncClient, changes: dict[str, str], status: int) -> None:
    form = {name: value for name, value in {**FORM, **changes}.items() if value}
    assert (await wallet.post("/sts/token", content=urlencode(form))).status_code == status


async def test_tokens_and_guesses_of_the_secret_are_recorded(store: Store, wallet: httpx2.AsyncClient) -> None:
    told: list[Event] = []
    store.bus.subscribe(told.append)
    await wallet.post("/sts/token", content=urlencode({**FORM, "client_secret": "a guess of sixteen"}))
    await wallet.post("/sts/token", content=urlencode(FORM))
    assert [(event.kind, event.outcome, event.code) for event in told] == [
        ("RequestRefused", "refused", "token_service_refused"),
        ("TokenIssued", "ok", ""),
    ]
    assert told[1].detail == {"audience": US, "scopes": [], "self_issued": True}
    assert "guess" not in str(told)


@pytest.mark.hostile
@pytest.mark.parametrize("content", ["nonsense", "a=1&a=2", "&".join(f"a{i}=1" for i in range(17)), "%ff\u00e9"])
async def test_what_is_no_form_is_refused(wallet: httpx2.AsyncClient, content: str) -> None:
    assert (await wallet.post("/sts/token", content=content)).status_code == 400


@pytest.mark.parametrize("secret", ["", "short", "é" * 20])
async def test_a_secret_that_protects_nothing_is_no_secret(
    wallet: httpx2.AsyncClient, tmp_path: Path, secret: str
) -> None:
    (tmp_path / "secret").write_text(secret)
    form = {**FORM, "client_secret": secret}
    assert (await wallet.post("/sts/token", content=urlencode(form))).status_code == 401
