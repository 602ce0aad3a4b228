"""What is not a member's own good request: refused, without a reason for strangers, and without a call or a row."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from connector.identity.credentials.access_token import mint_access_token
from tests.catalogue.conftest import Catalogue
from tests.catalogue.issuer.holder import MEMBERSHIP, OPERATOR, Holder, deliver
from tests.catalogue.issuer.test_issuing import admitted, shown
from tests.catalogue.provider import Reply

GOOD = f"{MEMBERSHIP}-vc11"
Headers = dict[str, str]


def signed(holder: Holder, *, key: ECKey | None = None, header: dict[str, Any] | None = None, **claims: Any) -> Headers:
    """A good token with changes; None leaves a claim out."""
    now = int(time.time())
    times = {"iat": now, "exp": now + 60}
    body = {"iss": holder.did, "sub": holder.did, "aud": OPERATOR, "jti": f"j{time.time_ns()}", **times, **claims}
    kept = {name: value for name, value in body.items() if value is not None}
    full = {"alg": "ES256", "kid": f"{holder.did}#{holder.provider.key.thumbprint()}", **(header or {})}
    used = key or holder.provider.key
    return {"authorization": f"Bearer {jwt.encode(full, kept, used, algorithms=['ES256'])}"}


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(holder: Holder) -> Headers:
    """A token with alg none."""
    body = signed(holder)["authorization"].split(".")[1]
    header = encoded(json.dumps({"alg": "none", "kid": f"{holder.did}#x"}).encode())
    return {"authorization": f"Bearer {header}.{body}."}


def confused(holder: Holder) -> Headers:
    """A token whose secret is the public key; no library signs it."""
    body = signed(holder)["authorization"].split(".")[1]
    kid = f"{holder.did}#{holder.provider.key.thumbprint()}"
    text = f"{encoded(json.dumps({'alg': 'HS256', 'kid': kid}).encode())}.{body}"
    secret = hmac.digest(holder.provider.key.as_pem(private=False), text.encode(), "sha256")
    return {"authorization": f"Bearer {text}.{encoded(secret)}"}


def access_token(holder: Holder) -> Headers:
    key, now = holder.provider.key, time.time()
    text = mint_access_token(key, did=holder.did, receiver=OPERATOR, scopes=["x"], now=now)
    return {"authorization": f"Bearer {text}"}


TOKENS: dict[str, Callable[[Holder], Headers]] = {
    "none": lambda _: {},
    "no scheme": lambda one: {"authorization": one.header()["authorization"][7:]},
    "another scheme": lambda one: {"authorization": f"Basic {one.header()['authorization'][7:]}"},
    "no JWT": lambda _: {"authorization": "Bearer nonsense"},
    "empty": lambda _: {"authorization": "Bearer "},
    "not of a member": lambda one: signed(one, iss="did:web:stranger.example", sub="did:web:stranger.example"),
    "of no DID": lambda one: signed(one, iss="x", sub="x", header={"kid": "x#y"}),
    "of a DID with a line end": lambda one: signed(one, iss="a\nb", sub="a\nb", header={"kid": "a\nb#y"}),
    "of a member's name": lambda one: signed(one, iss="north", sub="north", header={"kid": "north#y"}),
    "of the operator": lambda one: signed(one, iss=OPERATOR, sub=OPERATOR, header={"kid": f"{OPERATOR}#y"}),
    "for another audience": lambda one: signed(one, aud="did:web:other.example"),
    "for several audiences": lambda one: signed(one, aud=[OPERATOR, "did:web:other.example"]),
    "without audience": lambda one: signed(one, aud=None),
    "subject differs": lambda one: signed(one, sub="did:web:other.example"),
    "without subject": lambda one: signed(one, sub=None),
    "expired": lambda one: signed(one, iat=int(time.time()) - 300, exp=int(time.time()) - 60),
    "from the future": lambda one: signed(one, iat=int(time.time()) + 60, exp=int(time.time()) + 120),
    "not valid yet": lambda one: signed(one, nbf=int(time.time()) + 60),
    "lives too long": lambda one: signed(one, exp=int(time.time()) + 7200),
    "without end": lambda one: signed(one, exp=None),
    "without jti": lambda one: signed(one, jti=None),
    "jti too long": lambda one: signed(one, jti="x" * 256),
    "another key": lambda one: signed(one, key=ECKey.generate_key("P-256")),
    "unknown kid": lambda one: signed(one, header={"kid": f"{one.did}#other"}),
    "kid of another DID": lambda one: signed(one, header={"kid": f"did:web:x.test#{one.provider.key.thumbprint()}"}),
    "alg none": unsigned,
    "key confusion": confused,
    "an access token": access_token,
    "token is no text": lambda one: signed(one, token=["x"]),
    "too large": lambda one: signed(one, more="x" * 10_000),
}  # fmt: skip


@pytest.mark.hostile
@pytest.mark.parametrize("headers", TOKENS.values(), ids=TOKENS.keys())
async def test_a_bad_token_is_refused_without_a_reason(
    catalogue: Catalogue, holder: Holder, headers: Callable[[Holder], Headers]
) -> None:
    await admitted(catalogue, holder)
    refused = await holder.request(catalogue, GOOD, headers=headers(holder) or {"x": "y"})
    status = await catalogue.http.get(f"/issuer/requests/{'0' * 32}", headers=headers(holder))
    assert (refused.status_code, status.status_code) == (401, 401)
    assert refused.json() == status.json()
    assert refused.json()["detail"].startswith("expected `Authorization: Bearer <self-issued token>` of a member")
    assert len((await shown(catalogue))["requests"]) == 1


async def test_a_token_is_used_once(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    headers = holder.header()
    answers = [await holder.request(catalogue, GOOD, headers=headers) for _ in range(2)]
    assert [one.status_code for one in answers] == [201, 401]
    again = await catalogue.http.get(answers[0].headers["location"], headers=headers)
    assert (again.status_code, again.json()) == (401, answers[1].json())


async def test_a_member_whose_document_cannot_be_fetched_now_may_try_again(
    catalogue: Catalogue, holder: Holder
) -> None:
    await catalogue.admit(holder.provider, "north")
    holder.provider.document = lambda: Reply(500)
    refused = await holder.request(catalogue, GOOD)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert len((await shown(catalogue))["requests"]) == 1


def without_purposes(holder: Holder) -> Reply:
    """A document that lists no key for any purpose, as of IdentityHub 0.15."""
    document = json.loads(holder.document().body)
    for purpose in ("capabilityInvocation", "authentication", "assertionMethod"):
        document[purpose] = []
    return Reply.of(document)


@pytest.mark.hostile
async def test_a_key_that_is_listed_for_no_purpose_is_refused(catalogue: Catalogue, holder: Holder) -> None:
    holder.provider.document = lambda: without_purposes(holder)
    await admitted(catalogue, holder)
    assert (await holder.request(catalogue, GOOD)).status_code == 401


class TestWithAnException:
    @pytest.fixture
    def catalogue_settings(self, catalogue_settings: dict[str, Any], holder: Holder) -> dict[str, Any]:
        return {**catalogue_settings, "issuer_keys_for_all_purposes": (holder.did,)}

    async def test_a_key_that_is_listed_for_no_purpose_counts_for_the_named_member_alone(
        self, catalogue: Catalogue, holder: Holder, other: Holder
    ) -> None:
        for one, name, status in ((holder, "north", 201), (other, "south", 401)):
            one.provider.document = lambda one=one: without_purposes(one)
            await admitted(catalogue, one, name)
            assert (await one.request(catalogue, GOOD)).status_code == status


async def test_a_strangers_token_makes_no_call(catalogue: Catalogue, other: Holder) -> None:
    refused = await other.request(catalogue, GOOD)
    assert (refused.status_code, other.provider.requests) == (401, [])


async def test_a_flood_of_refusals_is_none_in_the_log(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(200):
        assert (await catalogue.http.get("/issuer/requests/x")).status_code == 401
    assert 100 < capsys.readouterr().out.count("refused") < 130


async def test_anothers_request_is_answered_like_none(catalogue: Catalogue, holder: Holder, other: Holder) -> None:
    await admitted(catalogue, holder)
    await admitted(catalogue, other, "south")
    address = (await holder.request(catalogue, GOOD)).headers["location"]
    answers = [
        await catalogue.http.get(path, headers=other.header())
        for path in (address, "/issuer/requests/unknown", f"/issuer/requests/{'x' * 500}", "/issuer/requests/%00")
    ]
    assert [one.status_code for one in answers] == [401] * 4
    assert len({one.text for one in answers}) == 1


BODIES: dict[str, tuple[dict[str, Any], int]] = {
    "another type": ({"type": "CredentialOfferMessage"}, 400),
    "no type": ({"type": None}, 400),
    "no holderPid": ({"holderPid": None}, 400),
    "empty holderPid": ({"holderPid": ""}, 400),
    "holderPid is a number": ({"holderPid": 7}, 400),
    "holderPid too long": ({"holderPid": "x" * 256}, 400),
    "holderPid with control characters": ({"holderPid": "a\x00b"}, 400),
    "no credentials": ({"credentials": None}, 400),
    "empty credentials": ({"credentials": []}, 400),
    "credentials as text": ({"credentials": GOOD}, 400),
    "ids as texts": ({"credentials": [GOOD]}, 400),
    "unknown id": ({"credentials": [{"id": "AdminCredential-vc11"}]}, 400),
    "a type for an id": ({"credentials": [{"id": MEMBERSHIP}]}, 400),
    "id is a list": ({"credentials": [{"id": [GOOD]}]}, 400),
    "one of two unknown": ({"credentials": [{"id": GOOD}, {"id": "x"}]}, 400),
    "twice the same": ({"credentials": [{"id": GOOD}, {"id": GOOD}]}, 400),
    "too many": ({"credentials": [{"id": GOOD}] * 17}, 400),
    "oversized": ({"more": "x" * 70_000}, 400),
}


@pytest.mark.hostile
@pytest.mark.parametrize(("changes", "status"), BODIES.values(), ids=BODIES.keys())
async def test_a_bad_message_is_refused_and_leaves_nothing(
    catalogue: Catalogue, holder: Holder, changes: dict[str, Any], status: int
) -> None:
    await admitted(catalogue, holder)
    refused = await holder.request(catalogue, GOOD, **changes)
    assert (refused.status_code, "expected" in refused.json()["detail"]) == (status, True)
    assert len((await shown(catalogue))["requests"]) == 1


HALF = json.dumps(
    {"type": "CredentialRequestMessage", "holderPid": "\ud800", "credentials": [{"id": GOOD}]}
).encode()  # half a character


@pytest.mark.hostile
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 30_000, b"\xff", b'{"type": NaN}', HALF])
async def test_what_is_no_message_is_refused(catalogue: Catalogue, holder: Holder, body: bytes) -> None:
    await admitted(catalogue, holder)
    refused = await catalogue.http.post("/issuer/credentials", content=body, headers=holder.header())
    assert refused.status_code == 400


async def test_a_body_that_names_another_did_gets_a_credential_about_the_sender(
    catalogue: Catalogue, holder: Holder, other: Holder
) -> None:
    await admitted(catalogue, holder)
    await admitted(catalogue, other, "south")
    victim = {"holder": other.did, "credentialSubject": {"id": other.did}, "iss": other.did, "sub": other.did}
    assert (await holder.request(catalogue, GOOD, **victim)).status_code == 201
    await deliver(catalogue)
    assert (len(holder.deliveries), len(other.deliveries)) == (2, 1)
    payload = holder.credentials[0].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert (claims["sub"], claims["vc"]["credentialSubject"]["id"]) == (holder.did, holder.did)


async def test_a_removed_member_is_a_stranger(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    address = (await holder.request(catalogue, GOOD)).headers["location"]
    await catalogue.http.delete("/api/v1/members/north", headers=catalogue.operator)
    await deliver(catalogue)
    assert len(holder.deliveries) == 1
    for answer in (
        await catalogue.http.get(address, headers=holder.header()),
        await holder.request(catalogue, GOOD),
    ):
        assert answer.status_code == 401
    assert {one["state"] for one in (await shown(catalogue, holder.did))["credentials"]} == {"revoked"}


async def test_a_member_has_a_limited_number_of_open_requests(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    answers = [(await holder.request(catalogue, GOOD)).status_code for _ in range(33)]
    assert answers == [201] * 32 + [429]
    await deliver(catalogue)
    assert (await holder.request(catalogue, GOOD)).status_code == 201


async def test_a_member_has_a_limited_number_of_credentials(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    kinds = [f"{MEMBERSHIP}-vc11", f"{MEMBERSHIP}-vc20", "SensitiveDataCredential-vc11", "SensitiveDataCredential-vc20"]
    for _ in range(124):
        assert (await holder.request(catalogue, *kinds)).status_code == 201
        await deliver(catalogue)
    refused = await holder.request(catalogue, *kinds)
    assert (refused.status_code, "500 credentials" in refused.json()["detail"]) == (429, True)
