"""Who is calling: self-issued tokens in every wrong way, DID documents, the member register."""

from __future__ import annotations

import asyncio
import errno
import hmac
import itertools
import json
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey

from connector.errors import (
    AddressPrivate,
    AddressRefused,
    ConnectorError,
    Invalid,
    NameUnknown,
    PeerUnreachable,
    Unavailable,
    Unproven,
)
from connector.identity import did, keys, self_issued_token
from connector.identity.credentials.access_token import verify_access_token
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity, OwnWallet
from connector.identity.member_register import MemberRegister
from connector.identity.self_issued_token import Replays
from connector.infra.net.http_client import AddressGuard, Reply
from tests.support.own_name import changed

US = "did:web:us.example"
THEM = "did:web:them.example"
KEY = ECKey.generate_key("P-256")
OTHER = ECKey.generate_key("P-256")


class Web:
    """A net that answers from a dict of URL to JSON or bytes."""

    def __init__(self, pages: Mapping[str, Any]) -> None:
        self.pages = dict(pages)
        self.guard = AddressGuard()
        self.calls: list[str] = []

    async def call(self, method: str, url: str, **_: Any) -> Reply:
        self.calls.append(url)
        page = self.pages.get(url)
        if isinstance(page, Exception):
            raise page
        if isinstance(page, int):
            return Reply(page, {}, b"")
        if page is None:
            return Reply(404, {}, b"")
        return Reply(200, {}, page if isinstance(page, bytes) else json.dumps(page).encode())


def document(key: ECKey = KEY, identifier: str = THEM, **changed: str) -> dict[str, Any]:
    return did.document(identifier, jwk={**keys.public_jwk(key), **changed}, root_url="https://them.example")


def resolver(pages: Mapping[str, Any] | None = None) -> DidResolver:
    return DidResolver(Web({"https://them.example/.well-known/did.json": document()} if pages is None else pages))  # type: ignore[arg-type]  # a fake


def token(*, key: ECKey = KEY, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
    now = time.time()
    body = {"iss": THEM, "sub": THEM, "aud": US, "jti": f"j{now}", "iat": int(now), "exp": int(now) + 60, **claims}
    body = {name: value for name, value in body.items() if value is not None}
    full = {"alg": "ES256", "kid": f"{THEM}#{KEY.thumbprint()}", **(header or {})}
    return jwt.encode(full, body, key, algorithms=["ES256"])


async def verify(text: str, replays: Replays | None = None) -> dict[str, Any]:
    found = await self_issued_token.verify(text, audience=US, resolver=resolver(), replays=replays or Replays())
    return found.claims


async def test_a_token_of_a_participant_names_it() -> None:
    assert (await verify(self_issued_token.mint(KEY, did=THEM, audience=US, now=time.time())))["iss"] == THEM


async def had(found: ConnectorError) -> ConnectorError:
    """What a caller is told whose DID document is at a place that is not called, or does not answer."""
    with pytest.raises((Unavailable, Unproven)) as caught:
        await resolver({"https://them.example/.well-known/did.json": found}).key(THEM, "k", purpose="assertionMethod")
    assert caught.value.private == found.message
    return caught.value


async def test_what_is_found_out_on_the_way_to_a_document_is_for_our_own_log() -> None:
    told = await had(PeerUnreachable("port 8080 is closed"))
    assert told.message == f"the DID document of {THEM} cannot be fetched now; try again in a moment"
    there, nowhere = await had(AddressPrivate("it is at 10.20.30.40")), await had(NameUnknown("no such name"))
    assert (type(there), there.message) == (type(nowhere), nowhere.message)


async def test_a_name_of_a_known_participant_that_does_not_resolve_now_may_resolve_later() -> None:
    finder = resolver({"https://them.example/.well-known/did.json": NameUnknown("no such name")})
    finder.expect([THEM])
    with pytest.raises(Unavailable, match="try again in a moment"):
        await finder.key(THEM, "k", purpose="assertionMethod")


@pytest.mark.parametrize(("one", "another"), [(404, 200), (500, 503)])
async def test_which_answer_came_in_place_of_a_document_is_for_our_own_log(one: int, another: int) -> None:
    told = []
    for status in (one, another):
        page = {"id": "did:web:another.example"} if status == 200 else status
        with pytest.raises((Unavailable, Unproven)) as caught:
            await resolver({"https://them.example/.well-known/did.json": page}).key(
                THEM, "k", purpose="assertionMethod"
            )
        assert str(status) in caught.value.private
        told.append((type(caught.value), caught.value.message))
    assert told[0] == told[1]


async def test_who_waits_for_us_to_call_an_address_in_vain_is_told_so() -> None:
    assert isinstance(await had(AddressRefused("https is expected")), Unproven)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (PeerUnreachable("gone"), Unavailable),
        (503, Unavailable),
        (429, Unavailable),
        (404, Unproven),
        (b"nonsense", Unproven),
        (b"[" * 60_000, Unproven),
        ({"id": THEM, "verificationMethod": None, "capabilityInvocation": 5}, Unproven),
        ({**document(), "capabilityInvocation": json.loads("[" * 900 + "]" * 900)}, Unproven),
        (
            {
                **document(),
                "capabilityInvocation": [{"id": str(i), "publicKeyJwk": {"x": "x" * 99}} for i in range(300)],
            },
            Unproven,
        ),
        (document(crv="none"), Unproven),
    ],
    ids=[
        "no answer",
        "trouble at its server",
        "too many requests at its server",
        "no document",
        "nonsense",
        "nested",
        "no lists",
        "nested lists",
        "many keys",
        "no curve",
    ],
)
async def test_a_document_that_cannot_be_had_now_is_no_verdict(page: Any, expected: type[Exception]) -> None:
    away = resolver({"https://them.example/.well-known/did.json": page})
    with pytest.raises(expected):
        await self_issued_token.verify(token(), audience=US, resolver=away, replays=Replays())


def unsigned(**header: Any) -> str:
    parts = token().split(".")
    parts[0] = urlsafe_b64encode(json.dumps({"kid": f"{THEM}#x", **header}).encode()).rstrip(b"=").decode()
    return ".".join([*parts[:2], "" if header.get("alg") == "none" else parts[2]])


def hmac_with_public_key() -> str:
    """The classic confusion of algorithms: our public key as the secret of an HMAC."""
    unsigned_part = unsigned(alg="HS256").rpartition(".")[0]
    mac = hmac.digest(KEY.as_pem(private=False), unsigned_part.encode(), "sha256")
    return f"{unsigned_part}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"


WRONG: dict[str, Any] = {
    "empty": lambda: "",
    "not a token": lambda: "abc",
    "two parts": lambda: "a.b",
    "parts that are not JSON": lambda: "a.b.c",
    "a header that is a list": lambda: "W10.W10.x",
    "a header that is nested": lambda: f"{urlsafe_b64encode(b'[' * 6000).decode()}.W10.x",
    "larger than the limit": lambda: token(padding="x" * 9000),
    "alg none": lambda: unsigned(alg="none"),
    "HMAC with the public key": hmac_with_public_key,
    "an algorithm that is not on the list": lambda: unsigned(alg="RS256"),
    "no kid": lambda: token(header={"kid": ""}),
    "a kid of somebody else": lambda: token(header={"kid": f"did:web:evil.example#{KEY.thumbprint()}"}),
    "a key that the document does not list": lambda: token(header={"kid": f"{THEM}#other"}),
    "signed by another key": lambda: token(key=OTHER),
    "an unknown crit": lambda: unsigned(alg="ES256", crit=["x"]),
    "an embedded key": lambda: token(key=OTHER, header={"jwk": keys.public_jwk(OTHER)}),
    "no issuer": lambda: token(iss=None),
    "a subject that is not the issuer": lambda: token(sub="did:web:evil.example"),
    "another audience": lambda: token(aud="did:web:else.example"),
    "a second audience": lambda: token(aud=[US, "did:web:else.example"]),
    "we as second audience": lambda: token(aud=["did:web:else.example", US]),
    "us twice": lambda: token(aud=[US, US]),
    "an empty list of audiences": lambda: token(aud=[]),
    "an audience in a list in a list": lambda: token(aud=[[US]]),
    "an object as audience": lambda: token(aud={US: US}),
    "no audience": lambda: token(aud=None),
    "no jti": lambda: token(jti=None),
    "a jti that is a number": lambda: token(jti=7),
    "a jti without end": lambda: token(jti="x" * 300),
    "expired": lambda: token(iat=int(time.time()) - 200, exp=int(time.time()) - 100),
    "from the future": lambda: token(iat=int(time.time()) + 500, exp=int(time.time()) + 560),
    "a life of a year": lambda: token(exp=int(time.time()) + 31_536_000),
    "a life of more than a quarter of an hour": lambda: token(exp=int(time.time()) + 1_000),
    "no end": lambda: token(exp=None),
    "an end that is text": lambda: token(exp="soon"),
    "an end that no float can be": lambda: token(exp=10**400),
    "a beginning that no float can be": lambda: token(iat=10**400),
    "an end that is no number": lambda: token(exp=float("nan")),
    "not yet valid": lambda: token(nbf=int(time.time()) + 500),
    "valid from when no float can be": lambda: token(nbf=10**400),
    "valid from a text on": lambda: token(nbf="0"),
}


@pytest.mark.hostile
async def test_a_token_for_several_audiences_is_good_at_none_of_them() -> None:
    text = token(aud=[US, "did:web:else.example"])
    for audience in (US, "did:web:else.example"):
        with pytest.raises(Unproven, match=f"expected a token for {audience} alone, got 2 audiences"):
            self_issued_token.claimed_issuer(text, audience=audience)


async def test_a_list_of_one_audience_is_as_that_audience() -> None:
    replays, text = Replays(), token(aud=[US])
    assert (await verify(text, replays))["iss"] == THEM
    with pytest.raises(Unproven, match="used before"):
        await verify(text, replays)


@pytest.mark.hostile
@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_token_is_refused_without_being_repeated_in_the_message(name: str) -> None:
    text = WRONG[name]()
    with pytest.raises(Unproven) as caught:
        await verify(text)
    assert not text or len(text) < 8 or text not in caught.value.message


async def test_a_token_is_good_once() -> None:
    replays, text = Replays(), token()
    await verify(text, replays)
    with pytest.raises(Unproven, match="before"):
        await verify(text, replays)


@pytest.mark.hostile
async def test_what_was_signed_before_we_began_to_look_is_not_taken_and_is_no_verdict() -> None:
    replays = Replays(since=time.time() + 2)
    with pytest.raises(Unavailable, match="sign a new one"):
        await verify(token(), replays)
    await verify(token(iat=int(time.time()) + 3), replays)


def test_one_issuer_leaves_room_for_the_tokens_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so do some of them together, for those of which few are noted; room comes back as tokens end."""
    for name, value in {"_SEEN_MAX": 40, "_OF_ONE_MAX": 15, "_FEW": 2, "_LAST_FOR_FEW": 10}.items():
        monkeypatch.setattr(self_issued_token, name, value)
    replays = Replays()

    def taken(issuer: str, *, now: float, life: float = 60) -> int:
        count = 0
        with suppress(Unavailable):
            while count < 100 and replays.note_first_use(issuer, str(count), issued=now, expires=now + life, now=now):
                count += 1
        return count

    assert [taken(who, now=0, life=900) for who in ("a", "b", "c")] == [15, 15, 2]
    assert [taken("honest", now=0), taken("other", now=0)] == [2, 2]
    assert not replays.note_first_use("honest", "0", issued=0, expires=60, now=89)
    assert taken("honest", now=91) == 2
    assert [len(replays._ends), taken("d", now=931)] == [34, 15]
    assert set(replays._seen) == {"d"}


def test_strangers_take_no_room_for_tokens_from_those_that_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many DIDs they have, and those of one host together leave some to others."""
    for name, value in {"_SEEN_MAX": 40, "_OF_ONE_MAX": 15, "_FEW": 2, "_LAST_FOR_FEW": 10}.items():
        monkeypatch.setattr(self_issued_token, name, value)
    replays = Replays()

    def taken(issuer: str, **how: Any) -> bool:
        with suppress(Unavailable):
            return replays.note_first_use(issuer, "1", issued=0, expires=60, now=0, **how)
        return False

    assert sum(taken(f"did:web:evil.example%3A{i}:{i}") for i in range(50)) == 15
    assert taken("did:web:newcomer.example")
    assert sum(taken(f"did:web:evil{i}.example") for i in range(50)) == 24
    assert not taken("did:web:another.example")
    assert sum(taken(f"did:web:evil.example:member:{i}", expected=True) for i in range(50)) == 40
    replays.note_first_use("a", "2", issued=100, expires=160, now=100)
    assert (replays._totals, len(replays._seen)) == ([1, 0], 1)


class Slow(Web):
    """Those hosts whose names begin with `hangs` never answer; it counts who is asked at once."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked: list[str] = []

    async def call(self, method: str, url: str, **_: Any) -> Reply:
        host = url.split("/")[2]
        self.asked.append(host)
        if host.startswith("hangs"):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        identifier = f"did:web:{host}"
        return Reply(200, {}, json.dumps(document(identifier=identifier)).encode())


def asked(resolver: DidResolver, who: str) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(
        resolver.key(who, f"{who}#{KEY.thumbprint()}", purpose="capabilityInvocation"), name=f"asks for {who}"
    )


async def test_strangers_whose_servers_hang_keep_neither_others_nor_known_ones_waiting() -> None:
    web = Slow()
    resolver = DidResolver(web)  # type: ignore[arg-type]  # a fake
    resolver.expect(["did:web:member.example"])
    await asked(resolver, "did:web:known.example")
    resolver.mark_proven("did:web:known.example")
    hanging = [asked(resolver, f"did:web:hangs.example:{i}") for i in range(30)]
    await asyncio.sleep(0)
    assert (await asked(resolver, "did:web:new.example"))["kty"] == "EC"
    assert web.asked.count("hangs.example") == 4
    assert sum(task.done() for task in hanging) == 30 - 4 - 16  # told that many of this host are waited for
    hanging += [asked(resolver, f"did:web:hangs{i}.example") for i in range(30)]
    async with asyncio.timeout(60):
        while len(web.asked) < 2 + 12:  # then all places of strangers are taken
            await asyncio.sleep(0)
    resolver._proven.kept["did:web:known.example"] = did._CachedDocument(float("-inf"), b"")
    assert (await asked(resolver, "did:web:known.example"))["kty"] == "EC"
    assert (await asked(resolver, "did:web:member.example"))["kty"] == "EC"
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    for coming in tuple(resolver._fetches.values()):
        coming.cancel()


async def test_a_document_is_fetched_once_for_all_who_wait_for_it_whoever_goes_away() -> None:
    web = Slow()
    resolver = DidResolver(web)  # type: ignore[arg-type]  # a fake
    first, second = (asked(resolver, "did:web:new.example") for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)["kty"] == "EC"
    assert web.asked == ["new.example"]


async def test_a_document_that_does_not_come_in_time_is_no_verdict() -> None:
    resolver = DidResolver(Slow())  # type: ignore[arg-type]  # a fake
    resolver._strangers.seconds = 0.01
    with pytest.raises(Unavailable, match="timed out waiting for the DID document"):
        await asked(resolver, "did:web:hangs.example")


async def test_what_is_kept_of_strangers_is_little_and_pushes_out_nothing_of_others() -> None:
    web = Slow()
    resolver = DidResolver(web)  # type: ignore[arg-type]  # a fake
    for who in ("member", "known"):
        resolver.expect(["did:web:member.example"])
        await asked(resolver, f"did:web:{who}.example")
        resolver.mark_proven(f"did:web:{who}.example")
    for i in range(300):
        await asked(resolver, f"did:web:s{i}.example")
    calls = len(web.asked)
    await asked(resolver, "did:web:member.example")
    await asked(resolver, "did:web:known.example")
    assert (len(web.asked), len(resolver._strangers.kept)) == (calls, 256)
    assert b"dspace-version" not in resolver._strangers.kept["did:web:s299.example"].content


@pytest.mark.hostile
async def test_a_document_of_another_participant_is_not_believed() -> None:
    pages = {"https://them.example/.well-known/did.json": document(identifier="did:web:evil.example")}
    with pytest.raises(Unproven):
        await self_issued_token.verify(token(), audience=US, resolver=resolver(pages), replays=Replays())


@pytest.mark.parametrize("page", [None, PeerUnreachable("nobody there")])
async def test_where_nothing_is_found_at_a_number_a_port_may_be_meant(page: Any) -> None:
    away = resolver({"https://them.example/8443/did.json": page})
    with pytest.raises((Unproven, Unavailable), match=r"write %3A before it: did:web:them\.example%3A8443"):
        await asked(away, f"{THEM}:8443")


@pytest.mark.hostile
async def test_an_id_that_no_database_has_room_for_is_refused() -> None:
    longer = f"{THEM}:{'x' * 250}"
    pages = {f"https://them.example/{'x' * 250}/did.json": document(identifier=longer)}
    text = self_issued_token.mint(KEY, did=longer, audience=US, now=time.time())
    with pytest.raises(Unproven, match="at most 255"):
        await self_issued_token.verify(text, audience=US, resolver=resolver(pages), replays=Replays())


async def test_documents_are_kept_for_minutes_and_asked_again_for_an_unknown_key_only_seldom() -> None:
    web = Web({"https://them.example/.well-known/did.json": document()})
    asked = DidResolver(web)  # type: ignore[arg-type]  # a fake
    for _ in range(5):
        await asked.key(THEM, f"{THEM}#{KEY.thumbprint()}", purpose="capabilityInvocation")
    for _ in range(5):
        with pytest.raises(Unproven):
            await asked.key(THEM, f"{THEM}#unknown", purpose="capabilityInvocation")
    assert len(web.calls) == 1


async def test_a_key_serves_only_the_purpose_it_is_listed_for() -> None:
    page = {**document(), "capabilityInvocation": []}
    asked = resolver({"https://them.example/.well-known/did.json": page})
    with pytest.raises(Unproven, match="capabilityInvocation"):
        await asked.key(THEM, f"{THEM}#{KEY.thumbprint()}", purpose="capabilityInvocation")


ADDRESSES = {
    "did:web:acme.example": "https://acme.example/.well-known/did.json",
    "did:web:acme.example%3A8443": "https://acme.example:8443/.well-known/did.json",
    "did:web:acme.example:units:lab": "https://acme.example/units/lab/did.json",
}


@pytest.mark.parametrize(("identifier", "address"), ADDRESSES.items())
def test_a_did_web_says_where_its_document_is(identifier: str, address: str) -> None:
    assert did.address_of(identifier) == address


@pytest.mark.hostile
@pytest.mark.parametrize(
    "identifier",
    ["", "did:web:", "did:key:z6Mk", "did:web:a.example:..", "did:web:a.example:%2e%2e", "did:web:a.example%2Fb",
     "did:web:a.example:x%3Fy", "did:web:a.example:x%23y", "did:web:user%40a.example", "did:web:a.example::b", "https://a",
     "did:web:ä.example", "did:web:%C3%A4.example", "did:web:a%00b"],
)  # fmt: skip
def test_a_did_that_would_leave_its_place_is_refused(identifier: str) -> None:
    with pytest.raises(Unproven):
        did.address_of(identifier)


def test_a_did_of_an_address_leads_back_to_it() -> None:
    assert did.did_of("http://127.0.0.1:8080") == "did:web:127.0.0.1%3A8080"
    assert did.address_of(did.did_of("https://acme.example/units/lab")) == "https://acme.example/units/lab/did.json"


async def test_identity_refuses_nothing_and_other_schemes_and_takes_a_listed_token() -> None:
    identity = Identity(did=US, key=KEY, resolver=resolver(), static={"s3cret": "did:web:lab.example"})
    for wrong in (None, "", "Basic dXNlcjpwdw==", "Bearer", "Bearer wrong"):
        with pytest.raises(Unproven):
            await identity.authenticate(wrong)
    assert (await identity.authenticate("Bearer s3cret")).id == "did:web:lab.example"


def register(
    key: ECKey = KEY, *, life: int = 600, issuer: str = THEM, kid: str | None = None, others: int = 0
) -> bytes:
    now = int(time.time())
    names = ["m", *map(str, range(others))]
    members = [{"id": f"did:web:{one}.example", "name": one, "status": "active", "country": "DE"} for one in names]
    return signed(json.dumps({"iss": issuer, "iat": now, "exp": now + life, "members": members}), key, kid=kid)


def signed(body: str | bytes, key: ECKey = KEY, *, kid: str | None = None) -> bytes:
    header = {"alg": "ES256", "kid": kid or f"{THEM}#{KEY.thumbprint()}"}
    return jws.serialize_compact(header, body, key, algorithms=["ES256"]).encode()


def trusting(page: bytes | None) -> MemberRegister:
    pages: dict[str, Any] = {"https://them.example/.well-known/did.json": document()}
    if page is not None:
        pages["https://them.example/members.jws"] = page
    web = Web(pages)
    return MemberRegister(web, DidResolver(web), anchor=THEM, register_url="", max_age=60)  # type: ignore[arg-type]  # a fake


async def member(page: bytes | None, participant: str = "did:web:m.example") -> Mapping[str, Any] | None:
    return await trusting(page).find_member(participant)


async def test_a_member_is_who_the_operator_lists() -> None:
    assert (await member(register()) or {})["status"] == "active"
    assert await member(register(), "did:web:stranger.example") == {}


async def test_a_name_is_whose_the_operator_says_also_while_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = trusting(register())
    assert await trust.names() == {"m": "did:web:m.example"}
    monkeypatch.setattr(trust, "_current", None)  # not called
    assert await trust.names() == {"m": "did:web:m.example"}
    assert await trusting(None).names() == {}


async def test_who_has_just_joined_is_found_by_name_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.identity.member_register._RETRY_SECONDS", 0.0)
    monkeypatch.setattr("connector.identity.member_register._NEWCOMER_SECONDS", 0.0)
    trust = trusting(register())
    assert (
        await trust.find_member_by_name("m")
        == await trust.find_member_by_name("did:web:m.example")
        == await trust.find_member("did:web:m.example")
    )
    assert await trust.find_member_by_name("0") == {}
    trust._net.pages["https://them.example/members.jws"] = register(others=1)  # type: ignore[attr-defined]  # a fake
    assert (await trust.find_member_by_name("0") or {})["id"] == "did:web:0.example"
    trust._net.pages["https://them.example/members.jws"] = register(others=2)  # type: ignore[attr-defined]  # a fake
    assert len(await trust.members()) == 2
    assert len(await trust.members(newest=True)) == 3
    assert await trusting(None).find_member_by_name("m") is None


async def test_an_operator_that_does_not_answer_is_asked_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    trust, calls = trusting(None), []
    monkeypatch.setattr("connector.identity.member_register._RETRY_SECONDS", 0.0)  # or it would take longer than that

    async def silent(*asked: object, **more: object) -> None:
        calls.append(asked)
        await asyncio.sleep(0.01)
        raise PeerUnreachable("no answer in time")

    monkeypatch.setattr(trust._net, "call", silent)
    assert await asyncio.gather(*(trust.find_member(THEM) for _ in range(5))) == [None] * 5
    assert len(calls) == 1
    await trust.find_member(THEM)
    assert len(calls) == 2


async def test_a_list_does_not_wait_long_for_a_silent_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_RETRY_SECONDS", "_NEWCOMER_SECONDS", "_PATIENCE_SECONDS"):
        monkeypatch.setattr(f"connector.identity.member_register.{name}", 0.0)
    trust, calls, speaks = trusting(register()), [], asyncio.Event()
    held = await trust.members(newest=True)

    async def silent(*asked: object, **more: object) -> None:
        calls.append(asked)
        await speaks.wait()
        raise PeerUnreachable("no answer in time")

    answers = trust._net.call
    monkeypatch.setattr(trust._net, "call", silent)
    for _ in range(2):
        assert await trust.members(newest=True) == held
        await asyncio.sleep(0.1)
    speaks.set()
    await asyncio.sleep(0.01)
    assert await trust.members(newest=True) == held  # it rests as long as it was waited for
    assert len(calls) == 1
    monkeypatch.setattr(trust._net, "call", answers)
    trust._net.pages["https://them.example/members.jws"] = register(others=1)  # type: ignore[attr-defined]  # a fake
    trust._retry_at = 0.0
    await trust.members(newest=True)
    await asyncio.sleep(0.01)
    assert len(await trust.members(newest=True)) == 2


async def test_a_register_may_have_thousands_of_members() -> None:
    assert (await member(register(others=20_000)) or {})["status"] == "active"
    assert (await member(register(others=20_000), "did:web:19999.example") or {})["status"] == "active"


@pytest.mark.hostile
@pytest.mark.parametrize(
    "page",
    [None, b"", b"nonsense", register(OTHER), register(life=-1), register(issuer="did:web:evil.example"),
     register(kid=f"{THEM}#other"), register()[:-4] + b"AAAA", signed(b"[" * 60_000)],
    ids=["none", "empty", "nonsense", "another key", "expired", "another issuer", "unknown key", "changed", "nested"],
)  # fmt: skip
async def test_membership_is_unknown_where_the_register_cannot_be_believed(page: bytes | None) -> None:
    assert await member(page) is None


def test_keys_are_made_once_and_readable_by_us_only(tmp_path: Any) -> None:
    first = keys.load_participant_key(tmp_path / "keys")
    assert keys.load_participant_key(tmp_path / "keys").thumbprint() == first.thumbprint()
    assert (tmp_path / "keys" / "participant.pem").stat().st_mode & 0o077 == 0
    assert keys.load_secret(tmp_path / "keys", "mask") == keys.load_secret(tmp_path / "keys", "mask")
    assert len(keys.load_secret(tmp_path / "keys", "mask")) == 32


def test_a_key_that_found_no_room_is_made_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the next process has the same number, and was held up by the draft of this one for ever."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(keys, "os", changed(os, fsync=full))
        with pytest.raises(Invalid, match=r"mask\.secret cannot be written \(No space"):
            keys.load_secret(tmp_path, "mask")
    assert list(tmp_path.iterdir()) == []
    tmp_path.joinpath(f"mask.{os.getpid()}.new").touch()  # of one that was killed
    assert len(keys.load_secret(tmp_path, "mask")) == 32


class _Denied(type(Path())):  # type: ignore[misc]  # `Path` itself has no subclasses before Python 3.12
    """A path in a folder that the user may not look into."""

    def exists(self, **_: Any) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))


def test_a_folder_of_keys_that_may_not_be_looked_into_is_told(tmp_path: Path) -> None:
    """As one that root made: a start ended with `Permission denied` and no word on what to do."""
    with pytest.raises(Invalid, match=r"mask\.secret cannot be accessed \(Permission denied\)"):
        keys.load_secret(_Denied(tmp_path), "mask")


def test_a_secret_of_more_bytes_than_we_make_is_good(tmp_path: Path) -> None:
    (tmp_path / "mask.secret").write_bytes(b"ab" * 32)
    assert keys.load_secret(tmp_path, "mask", new=False) == b"ab" * 32


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *itertools.product(["participant.pem", "log.key", "mask.secret"], ["lost", "empty", "cut", "a folder"]),
        ("participant.pem", "nonsense"),
        ("log.key", "nonsense"),
    ],
)
def test_a_key_that_is_not_what_it_was_is_named_and_no_other_one_is_made(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = tmp_path / name
    mask = partial(keys.load_secret, name="mask")
    read: Any = {"participant.pem": keys.load_participant_key, "log.key": keys.load_log_key, "mask.secret": mask}[name]
    read(tmp_path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "lost":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "nonsense": b"x" * 500}[damage])
    with pytest.raises(ConnectorError, match=f"{path}.*copy it from another process"):
        read(tmp_path, new=False)
    assert path.exists() == (damage != "lost")


def test_the_logs_key_before_stays_with_its_bytes_where_it_was_a_link(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "keys").mkdir()
    former = keys.load_log_key(tmp_path / "mounted").private_bytes_raw()
    (tmp_path / "mounted" / "log.key").chmod(0o640)
    (tmp_path / "keys" / "log.key").symlink_to(tmp_path / "mounted" / "log.key")
    after = keys.load_next_log_key(tmp_path / "keys").private_bytes_raw()
    keys.change_log_key(tmp_path / "keys", before="1a2b")
    (tmp_path / "mounted" / "log.key").unlink()
    assert keys.load_log_key(tmp_path / "keys").private_bytes_raw() == after
    assert (tmp_path / "keys" / "log.key").stat().st_mode & 0o777 == 0o640
    assert [one.private_bytes_raw() for one in keys.load_former_log_keys(tmp_path / "keys")] == [former]


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["P-384", "public", "encrypted"])
def test_a_key_of_another_kind_is_none_of_ours(tmp_path: Path, kind: str) -> None:
    other = ECKey.generate_key("P-384" if kind == "P-384" else "P-256")
    phrase = "phrase" if kind == "encrypted" else None
    (tmp_path / "participant.pem").write_bytes(other.as_pem(private=kind != "public", password=phrase))
    with pytest.raises(Invalid, match="expected a private key of the curve P-256"):
        keys.load_participant_key(tmp_path)


LISTS = ("capabilityInvocation", "authentication", "assertionMethod")


def plain(**lists: Any) -> dict[str, Any]:
    """A document whose relationship arrays are `lists` alone."""
    return {name: value for name, value in document().items() if name not in LISTS} | lists


async def found(page: dict[str, Any], purpose: str, key_id: str = f"{THEM}#{KEY.thumbprint()}") -> bool:
    asked = resolver({"https://them.example/.well-known/did.json": page})
    asked.allow_every_key([THEM])
    try:
        return bool(await asked.key(THEM, key_id, purpose=purpose))
    except Unproven:
        return False


@pytest.mark.parametrize("purpose", LISTS)
@pytest.mark.parametrize(
    ("lists", "counts"),
    [
        ({}, True),
        ({name: [] for name in LISTS}, True),
        ({"authentication": None}, True),
        ({"keyAgreement": [f"{THEM}#other"]}, False),
        ({"capabilityDelegation": [f"{THEM}#other"]}, False),
        ({"authentication": [f"{THEM}#other"]}, False),
        ({"authentication": "nonsense"}, False),
    ],
)
async def test_every_key_counts_only_where_a_document_lists_none(
    lists: dict[str, Any], counts: bool, purpose: str
) -> None:
    assert await found(plain(**lists), purpose) is counts


async def test_every_key_counts_for_no_peer_by_default() -> None:
    with pytest.raises(Unproven):
        await resolver({"https://them.example/.well-known/did.json": plain()}).key(
            THEM, f"{THEM}#{KEY.thumbprint()}", purpose="capabilityInvocation"
        )


METHOD = document()["verificationMethod"][0]
RELATIVE = {**METHOD, "id": "#one"}


@pytest.mark.parametrize("key_id", ["#one", f"{THEM}#one"])
@pytest.mark.parametrize(
    "page",
    [
        plain(authentication=["#one"], verificationMethod=[RELATIVE]),
        plain(authentication=[f"{THEM}#one"], verificationMethod=[RELATIVE]),
        plain(authentication=["#one"], verificationMethod=[{**METHOD, "id": f"{THEM}#one"}]),
        plain(authentication=[RELATIVE], verificationMethod=[]),
        plain(authentication=[{**METHOD, "id": f"{THEM}#one"}], verificationMethod=[]),
    ],
)
async def test_methods_are_referred_to_or_embedded_by_whole_or_relative_ids(page: dict[str, Any], key_id: str) -> None:
    assert await found(page, "authentication", key_id)
    assert not await found(page, "assertionMethod", key_id)


@pytest.mark.parametrize(
    ("services", "endpoint"),
    [
        ([{"type": "CredentialService", "serviceEndpoint": "https://cs"}], "https://cs"),
        ([{"type": ["Other", "CredentialService"], "serviceEndpoint": "https://cs"}], "https://cs"),
        ([{"type": "Other", "serviceEndpoint": "https://cs"}], None),
        ([{"type": "CredentialService", "serviceEndpoint": {"uri": "https://cs"}}], None),
        ([{"type": "CredentialService", "serviceEndpoint": "https://cs/" + "x" * 2048}], None),
        ([{"type": "CredentialService"}], None),
        (["nonsense", None, {"type": {}, "serviceEndpoint": "https://cs"}], None),
        ({"type": "CredentialService", "serviceEndpoint": "https://cs"}, None),
    ],
)
async def test_a_service_is_found_in_the_document_that_the_key_came_from(services: Any, endpoint: str | None) -> None:
    web = Web({"https://them.example/.well-known/did.json": {**document(), "service": services}})
    asked = DidResolver(web)  # type: ignore[arg-type]  # a fake
    await asked.key(THEM, f"{THEM}#{KEY.thumbprint()}", purpose="authentication")
    if endpoint is None:
        with pytest.raises(Unproven, match="no service"):
            await asked.service(THEM, "CredentialService")
    else:
        assert await asked.service(THEM, "CredentialService") == endpoint
    assert len(web.calls) == 1


def test_our_document_lists_the_new_key_first_the_former_ones_and_the_credential_service(tmp_path: Path) -> None:
    first = keys.load_participant_key(tmp_path)
    second = keys.change_participant_key(tmp_path)
    assert keys.load_participant_key(tmp_path, new=False).thumbprint() == second.thumbprint() != first.thumbprint()
    (former,) = keys.load_former_participant_keys(tmp_path)
    assert (former.thumbprint(), former.is_private) == (first.thumbprint(), False)
    made = did.document(
        US,
        jwk=keys.public_jwk(second),
        root_url="https://us.example",
        former=[keys.public_jwk(former)],
        credential_service="https://us.example/credentials",
    )
    both = [f"{US}#{key.thumbprint()}" for key in (second, first)]
    assert [made[name] for name in LISTS] == [both] * 3
    assert [one["type"] for one in made["service"]] == ["CatalogService", "CredentialService"]


def test_a_former_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "participant-old.pem").write_text("nonsense")
    with pytest.raises(Invalid, match=r"participant-old\.pem"):
        keys.load_former_participant_keys(tmp_path)


SCOPE = "org.eclipse.dspace.dcp.vc.type:MembershipCredential:read"


async def granted(receiver: str = US, **changes: Any) -> str:
    """The access token in a token of THEM for `receiver`; `changes` to its claims, signed by `key`."""
    identity = Identity(did=THEM, key=KEY, resolver=resolver(), scopes=[SCOPE])
    header = await identity.mint(receiver)
    text: str = jwt.decode(header.removeprefix("Bearer "), KEY, algorithms=["ES256"]).claims["token"]
    return text


async def test_a_token_grants_its_receiver_alone_the_scopes_of_the_settings() -> None:
    text, now = await granted(), time.time()
    assert verify_access_token(text, [OTHER, KEY], did=THEM, presenter=US, now=now) == {SCOPE}
    for keys_, who, did_, at in (
        ([OTHER], US, THEM, now),
        ([], US, THEM, now),
        ([KEY], "did:web:other.example", THEM, now),
        ([KEY], THEM, THEM, now),
        ([KEY], US, US, now),
        ([KEY], US, THEM, now + 400),
        ([KEY], US, THEM, now - 400),
    ):
        with pytest.raises(Unproven):
            verify_access_token(text, keys_, did=did_, presenter=who, now=at)


@pytest.mark.parametrize("text", ["", "a.b.c", "x" * 9_000, "opaque"])
def test_a_text_that_we_did_not_sign_is_no_access_token(text: str) -> None:
    with pytest.raises(Unproven):
        verify_access_token(text, [KEY], did=THEM, presenter=US, now=time.time())


def test_a_self_issued_token_is_no_access_token() -> None:
    text = self_issued_token.mint(KEY, did=THEM, audience=THEM, now=time.time())
    with pytest.raises(Unproven, match="access token"):
        verify_access_token(text, [KEY], did=THEM, presenter=THEM, now=time.time())


async def test_an_access_token_is_no_self_issued_token_whoever_gets_it() -> None:
    asked = resolver()
    for audience in (US, THEM):
        with pytest.raises(Unproven, match="access token"):
            await self_issued_token.verify(await granted(), audience=audience, resolver=asked, replays=Replays())
    with pytest.raises(Unproven, match="access token"):
        await verify(token(header={"typ": "Hanse-Access+JWT"}))


async def test_tokens_grant_nothing_by_default_and_carry_the_access_token_of_a_query() -> None:
    identity = Identity(did=THEM, key=KEY, resolver=resolver())
    header = await identity.mint(US)
    assert "token" not in jwt.decode(header.removeprefix("Bearer "), KEY, algorithms=["ES256"]).claims
    text = await OwnWallet(did=THEM, key=KEY).sign(US, token="theirs")
    assert jwt.decode(text, KEY, algorithms=["ES256"]).claims["token"] == "theirs"
