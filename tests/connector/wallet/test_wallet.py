"""Our own credentials: what is stored, who sees them, and two connectors that present them to each other."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from connector.errors import Invalid, PeerUnreachable, Unavailable, Unproven
from connector.identity.credentials.access_token import mint_access_token
from connector.identity.credentials.presentation import read_presentation
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity
from connector.identity.signed_jwt import read_jwt
from connector.infra.http import problem_json
from connector.infra.net.http_client import Reply
from connector.store import Store
from connector.wallet import routes
from connector.wallet.held_credentials import store_credential
from connector.wallet.import_credential import _read
from tests.connector.identity.credentials.world import (
    HOLDER,
    ISSUER,
    KEYS,
    OTHER,
    QUERY,
    US,
    V1,
    V2,
    World,
    header,
    identity,
)

TYPE = "org.eclipse.dspace.dcp.vc.type"
SCOPE = f"{TYPE}:MembershipCredential:read"


def us_to_holder(token: Any, **claims: Any) -> str:
    """The header of a query of US to HOLDER."""
    about = {"iss": US, "sub": US, "aud": HOLDER, **claims}
    kid = {"kid": f"{US}#{KEYS[US].thumbprint()}"}
    return header(token, KEYS[US], header=kid, **about)


def granted(*scopes: str, receiver: str = US, key: str = HOLDER, did: str = HOLDER, now: float | None = None) -> str:
    at = time.time() if now is None else now
    return mint_access_token(KEYS[key], did=did, receiver=receiver, scopes=scopes or (SCOPE,), now=at)


@pytest.fixture
async def wallet(store: Store) -> AsyncIterator[httpx2.AsyncClient]:
    """The credential service of HOLDER, without a credential yet."""
    world = World()
    ours = Identity(did=HOLDER, key=KEYS[HOLDER], resolver=DidResolver(world))  # type: ignore[arg-type]  # a fake
    app = FastAPI()
    problem_json.install(app)
    resolver = DidResolver(world)  # type: ignore[arg-type]  # a fake
    app.include_router(routes.router(store, ours, resolver, former=[KEYS[ISSUER]], issuers=[ISSUER]))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://holder.example") as client:
        yield client


async def hold(store: Store, world: World | None = None, **changes: Any) -> None:
    world = world or World()
    resolver = DidResolver(world)  # type: ignore[arg-type]  # a fake
    await store_credential(store, resolver, world.credential(**changes), did=HOLDER, by="test")


async def ask(wallet: httpx2.AsyncClient, *, token: Any = None, head: str | None = None, **changes: Any) -> Any:
    body = {"@context": [], "type": "PresentationQueryMessage", "scope": [SCOPE]} | changes
    body = {name: value for name, value in body.items() if value is not None}
    head = us_to_holder(token or granted()) if head is None else head
    return await wallet.post("/dcp/presentations/query", json=body, headers={"authorization": head})


@pytest.mark.parametrize("profile", [V1, V2])
async def test_a_verifier_accepts_what_a_holder_presents(
    store: Store, wallet: httpx2.AsyncClient, profile: str
) -> None:
    await hold(store, World(profile))
    world = World(profile)
    sent: list[str] = []

    async def call(method: str, url: str, **more: Any) -> Reply:
        if url != QUERY:
            return await World.call(world, method, url, **more)
        sent.append(more["headers"]["authorization"])
        answer = await wallet.post("/dcp/presentations/query", content=more["body"], headers=more["headers"])
        return Reply(answer.status_code, {}, answer.content)

    world.call = call  # type: ignore[method-assign,assignment]  # the holder's service is the one under test
    holder = Identity(did=HOLDER, key=KEYS[HOLDER], resolver=DidResolver(world), scopes=[SCOPE])  # type: ignore[arg-type]  # a fake
    caller = await identity(world).authenticate(await holder.mint(US))
    assert [one.types for one in caller.credentials] == [("MembershipCredential",)]
    assert len(sent) == 1


async def test_a_presentation_holds_credentials_of_one_data_model(store: Store, wallet: httpx2.AsyncClient) -> None:
    for profile in (V1, V2):
        await hold(store, World(profile))
    presented = (await ask(wallet)).json()["presentation"]
    found = [
        await read_presentation(
            one,
            holder=HOLDER,
            audience=US,
            without_audience=False,
            resolver=DidResolver(World()),
            now=time.time(),  # type: ignore[arg-type]  # a fake
        )
        for one in presented
    ]
    assert [[read_jwt(text, what="", longest=99_999).is_vc11 for text in texts] for texts in found] == [[True], [False]]


@pytest.mark.parametrize(
    ("scopes", "asked", "count"),
    [
        ([SCOPE], [SCOPE], 1),
        ([SCOPE], [f"{TYPE}:MembershipCredential"], 1),
        ([SCOPE, f"{TYPE}:Other:read"], [f"{TYPE}:Other:read"], 0),
        ([SCOPE], [SCOPE, f"{TYPE}:Other:read"], 1),
        ([f"{TYPE}:Other:read"], [SCOPE], 0),
        ([f"{TYPE}:Membership:read"], [f"{TYPE}:Membership:read"], 0),
        (["org.eclipse.dspace.dcp.vc.id:urn:uuid:1:read"], ["org.eclipse.dspace.dcp.vc.id:urn:uuid:1:read"], 1),
        (["org.eclipse.dspace.dcp.vc.id:urn:uuid:2:read"], ["org.eclipse.dspace.dcp.vc.id:urn:uuid:2:read"], 0),
    ],
)
async def test_a_verifier_sees_what_its_access_token_grants(
    store: Store, wallet: httpx2.AsyncClient, scopes: list[str], asked: list[str], count: int
) -> None:
    await hold(store)
    answer = await ask(wallet, token=granted(*scopes), scope=asked)
    assert (answer.status_code, answer.json()["type"]) == (200, "PresentationResponseMessage")
    assert len(answer.json()["presentation"]) == count


async def test_a_token_of_a_former_key_grants_until_it_ends(store: Store, wallet: httpx2.AsyncClient) -> None:
    await hold(store)
    assert len((await ask(wallet, token=granted(key=ISSUER))).json()["presentation"]) == 1


REFUSED = {
    "no header": "",
    "another scheme": "Basic abc",
    "no access token": lambda: us_to_holder(None),
    "an access token that is a number": lambda: us_to_holder(5),
    "an access token of another": lambda: us_to_holder(granted(key=OTHER)),
    "an access token for another": lambda: us_to_holder(granted(receiver=OTHER)),
    "an access token of another DID": lambda: us_to_holder(granted(did=US)),
    "an ended access token": lambda: us_to_holder(granted(now=time.time() - 600)),
    "an access token of the future": lambda: us_to_holder(granted(now=time.time() + 600)),
    "an access token alone": lambda: f"Bearer {granted()}",
    "a token for another": lambda: us_to_holder(granted(), aud=OTHER),
    "a token of another": lambda: us_to_holder(granted(), iss=OTHER, sub=OTHER),
    "an ended token": lambda: us_to_holder(granted(), iat=int(time.time()) - 600, exp=int(time.time()) - 300),
}


@pytest.mark.parametrize("head", REFUSED.values(), ids=REFUSED.keys())
async def test_without_an_access_token_of_ours_nothing_is_seen(
    store: Store, wallet: httpx2.AsyncClient, head: Any
) -> None:
    await hold(store)
    assert (await ask(wallet, head=head if isinstance(head, str) else head())).status_code == 401


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"presentationDefinition": {"id": "x"}}, 400),
        ({"scope": None}, 400),
        ({"scope": []}, 400),
        ({"scope": "text"}, 400),
        ({"scope": [5]}, 400),
        ({"scope": ["another:A:read"]}, 400),
        ({"scope": [SCOPE] * 65}, 400),
        ({"scope": None, "presentationDefinition": {}}, 400),
        ({"scope": None, "presentationDefinition": {"id": "x"}}, 501),
        ({"type": "Another"}, 400),
    ],
)
async def test_a_query_that_cannot_be_answered_is_refused(
    wallet: httpx2.AsyncClient, changes: dict[str, Any], status: int
) -> None:
    assert (await ask(wallet, **changes)).status_code == status


@pytest.mark.hostile
@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"[" * 90_000])
async def test_a_query_that_is_no_message_is_refused(wallet: httpx2.AsyncClient, body: bytes) -> None:
    heads = {"authorization": us_to_holder(granted())}
    assert (await wallet.post("/dcp/presentations/query", content=body, headers=heads)).status_code == 400


async def test_an_ended_credential_is_not_presented(store: Store, wallet: httpx2.AsyncClient) -> None:
    await hold(store)
    row = (await store.read(lambda tx: tx.held_credentials.list_current(0)))[0]
    assert await store.read(lambda tx: list(tx.held_credentials.list_current(row.expires or 0))) == []


async def test_the_same_credential_is_held_once_and_its_storing_is_recorded(store: Store) -> None:
    seen: list[Any] = []
    store.bus.subscribe(seen.append)
    world = World()
    text = world.credential()
    for _ in range(2):
        await store_credential(store, DidResolver(world), text, did=HOLDER, by="test")  # type: ignore[arg-type]  # a fake
    assert await store.read(lambda tx: tx.held_credentials.count()) == 1
    assert seen[0].detail["issuer"] == ISSUER


@pytest.mark.parametrize(
    "changes",
    [
        {"vc signer": OTHER},
        {"vc header": {"key": OTHER}},
        {"vc header": {"alg": "none"}},
        {"vc": {"exp": 1}},
        {"in": {"credentialSubject": {"id": US}}},
        {"in": {"issuer": OTHER}},
        {f"document {ISSUER}": {"assertionMethod": []}},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
async def test_what_is_no_valid_credential_about_us_is_not_stored(store: Store, changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await hold(store, World(**changes))
    assert await store.read(lambda tx: tx.held_credentials.count()) == 0


async def test_a_credential_whose_issuer_cannot_be_asked_is_stored_later(store: Store) -> None:
    world = World()
    world.pages["https://office.example/.well-known/did.json"] = PeerUnreachable("gone")
    with pytest.raises(Unavailable):
        await hold(store, world)


def test_a_file_without_a_credential_is_named(tmp_path: Path) -> None:
    for content in ("é" * 3, "x" * 70_000):
        (tmp_path / "vc.jwt").write_text(content)
        with pytest.raises(Invalid, match=r"vc\.jwt"):
            _read(tmp_path / "vc.jwt")
    with pytest.raises(Invalid, match="none"):
        _read(tmp_path / "none")


@pytest.mark.hostile
async def test_a_query_with_a_used_token_is_refused(store: Store, wallet: httpx2.AsyncClient) -> None:
    await hold(store)
    head = us_to_holder(granted())
    assert [(await ask(wallet, head=head)).status_code for _ in range(2)] == [200, 401]


async def test_a_holder_asks_for_no_credentials_of_its_verifier(store: Store) -> None:
    world = World()
    ours = identity(world)
    with pytest.raises(Unproven):
        await ours.authenticate_query(header(None))
    assert await ours.authenticate_query(header("opaque")) == (HOLDER, "opaque")
    assert QUERY not in world.calls
