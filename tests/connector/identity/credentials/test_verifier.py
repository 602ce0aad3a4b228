"""Callers that present credentials: what is accepted, and every wrong document, presentation, credential and list."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from connector.errors import (
    AddressPrivate,
    AddressRefused,
    Invalid,
    NameUnknown,
    PeerNonsense,
    PeerUnreachable,
    Unavailable,
    Unproven,
)
from connector.identity.credentials import status_list
from connector.identity.credentials import verifier as verifier_module
from connector.identity.credentials.rules import load_rules
from connector.identity.credentials.scopes import Scope, read_scope
from tests.connector.identity.credentials import world as world_module
from tests.connector.identity.credentials.world import (
    HOLDER,
    ISSUER,
    KEYS,
    LIST,
    OTHER,
    QUERY,
    SCHEMA,
    US,
    V1,
    V2,
    World,
    header,
    identity,
    stamp,
    verifier,
)
from tests.support.own_name import changed

NOW = time.time()  # of the import: tests run minutes later
DAY = 86_400
GOOD = {"type": "object", "required": ["memberOf"], "properties": {"memberOf": {"type": "string"}}}
NAMED = {"type": "JsonSchema", "id": SCHEMA}


def entry(**changes: Any) -> dict[str, Any]:
    """Changes to a credential that give it a status entry of either kind."""
    return {"in": {"credentialStatus": {"entry": changes}}}


def made(profile: str, changes: dict[str, Any]) -> World:
    """A world with changes; a status entry is completed with the profile's own type."""
    world = World(profile, **{key: value for key, value in changes.items() if key not in ("pages", "bits")})
    world.pages.update(changes.get("pages", {}))
    for bit in changes.get("bits", ()):
        world.bits[bit // 8] |= 0x80 >> bit % 8
    status = changes.get("in", {}).get("credentialStatus")
    if isinstance(status, dict) and "entry" in status:
        world.changes = {**changes, "in": {**changes["in"], "credentialStatus": world.entry(**status["entry"])}}
    return world


ACCEPTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "one type as text": {"in": {"type": "MembershipCredential"}},
    "issuer as object": {"in": {"issuer": {"id": ISSUER, "name": "Office"}}},
    "subject as list": {"in": {"credentialSubject": lambda one: [one]}},
    "sub is the credential": {"vc": {"sub": "urn:uuid:1"}},
    "no end": {"in": {"expirationDate": None, "validUntil": None}, "vc": {"exp": None}},
    "no outer claims": {"vc": {"sub": None, "jti": None, "nbf": None, "exp": None}},
    "several audiences": {"vp": {"aud": [US, OTHER]}},
    "no sub in the presentation": {"vp": {"sub": None}},
    "presentation as one text": {"answer": {"presentation": lambda many: many[0]}},
    "more context": {"answer": {"@context": ["https://w3id.org/dspace-dcp/v1.0/dcp.jsonld", "https://x.example"]}},
    "an extra credential of another issuer": {"more": ["nonsense"]},
    "status not set": entry(),
    "another bit set": {**entry(), "bits": [6, 8]},
    "index as number": entry(statusListIndex=7),
    "status as list": {"in": {"credentialStatus": []}},
    "schema fits": {"in": {"credentialSchema": NAMED}, "schema": GOOD},
    "relative kid": {"vc header": {"kid": f"#{KEYS[ISSUER].thumbprint()}"}},
    "key in the header is ignored": {"vc header": {"jwk": KEYS[OTHER].as_dict(private=False)}},
}


@pytest.mark.parametrize("profile", [V1, V2])
@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_a_credential_of_a_trusted_issuer_about_the_caller_is_accepted(
    changes: dict[str, Any], profile: str
) -> None:
    caller = await identity(made(profile, changes)).authenticate(header())
    (credential,) = caller.credentials
    assert (caller.id, credential.issuer, credential.types) == (HOLDER, ISSUER, ("MembershipCredential",))
    assert caller.evidence()["credentials"][0] == {
        "id": "urn:uuid:1",
        "issuer": ISSUER,
        "types": ["MembershipCredential"],
        "expires": credential.expires,
        "status_checked_at": credential.checked_at,
        "key": credential.key,
    }
    assert len(caller.key) == len(credential.key) == 43  # SHA-256 thumbprints
    assert caller.proof() == {"holder": HOLDER, "key": caller.key, **caller.evidence()}


def listed(text: bytes) -> dict[str, Any]:
    """A status list whose `encodedList` is `text`."""
    return {**entry(), "list": {"vc.credentialSubject.encodedList": "u" + base64.urlsafe_b64encode(text).decode()}}


REFUSED: dict[str, dict[str, Any]] = {
    # Presentations.
    "nothing presented": {"answer": {"presentation": []}},
    "no presentation": {"answer": {"presentation": None}},
    "another message": {"answer": {"type": "PresentationQueryMessage"}},
    "too many presentations": {"answer": {"presentation": lambda many: many * 9}},
    "a presentation that is no text": {"answer": {"presentation": [5]}},
    "a presentation that is no JWT": {"answer": {"presentation": ["a.b.c"]}},
    "an unsigned object": {"answer": {"presentation": [{"type": "VerifiablePresentation"}]}},
    "no credentials": {"given": []},
    "too many credentials": {"more": ["x"] * 16},
    "presentation for another verifier": {"vp": {"aud": OTHER}},
    "presentation for many others": {"vp": {"aud": [OTHER, ISSUER]}},
    "presentation for no audience": {"vp": {"aud": None}},
    "presentation of another issuer": {"vp": {"iss": OTHER}},
    "presentation of another subject": {"vp": {"sub": OTHER}},
    "presentation expired": {"vp": {"exp": int(NOW - 60)}},
    "presentation from the future": {"vp": {"iat": int(NOW + DAY)}},
    "presentation not valid yet": {"vp": {"nbf": int(NOW + DAY)}},
    "presentation with a text as exp": {"vp": {"exp": "tomorrow"}},
    "presentation with true as exp": {"vp": {"exp": True}},
    "presentation with infinity as exp": {"vp": {"exp": float("inf")}},
    "presentation signed by another": {"vp signer": OTHER},
    "presentation with another's key": {"vp header": {"key": OTHER}},
    "presentation without a signature": {"vp header": {"alg": "none"}},
    "presentation with key confusion": {"vp header": {"alg": "HS256"}},
    "presentation without a kid": {"vp header": {"kid": None}},
    "presentation with an unknown kid": {"vp header": {"kid": f"{HOLDER}#unknown"}},
    "presentation with the issuer's kid": {"vp header": {"kid": f"{ISSUER}#x"}},
    "presentation with crit": {"vp header": {"crit": ["exp"]}},
    "presentation key not for authentication": {f"document {HOLDER}": {"authentication": ["#x"]}},
    "three envelopes": {"envelopes": 2},
    "an envelope signed by another": {"envelopes": 1, "outer signer": OTHER},
    # Credentials.
    "issuer as a list": {"in": {"issuer": [ISSUER]}},
    "issuer without a text as id": {"in": {"issuer": {"id": [ISSUER]}}},
    "credential of an untrusted issuer": {"vc signer": OTHER, "vc": {"iss": OTHER}, "in": {"issuer": OTHER}},
    "credential of another type": {"in": {"type": ["VerifiableCredential", "Membership"]}},
    "credential of a longer type": {"in": {"type": ["MembershipCredentialX"]}},
    "credential without a type": {"in": {"type": None}},
    "credential signed by the holder": {"vc signer": HOLDER},
    "credential with the holder's key": {"vc header": {"key": HOLDER}},
    "credential without a signature": {"vc header": {"alg": "none"}},
    "credential with key confusion": {"vc header": {"alg": "HS256"}},
    "credential with an unknown kid": {"vc header": {"kid": f"{ISSUER}#unknown"}},
    "credential with a look-alike kid": {"vc header": {"kid": f"{ISSUER.upper()}#{KEYS[ISSUER].thumbprint()}"}},
    "credential whose kid is a number": {"vc header": {"kid": 5}},
    "credential about another": {"in": {"credentialSubject.id": OTHER}},
    "credential about nothing": {"in": {"credentialSubject": []}},
    "credential without a subject's id": {"in": {"credentialSubject.id": None}},
    "credential about two": {"in": {"credentialSubject": [{"id": HOLDER}, {"id": OTHER}]}},
    "credential whose subject is a text": {"in": {"credentialSubject": HOLDER}},
    "credential whose sub is another": {"vc": {"sub": OTHER}},
    "credential with two issuers": {"vc": {"iss": OTHER}},
    "credential with another issuer inside": {"in": {"issuer": OTHER}},
    "credential without an issuer": {"in": {"issuer": None}, "vc": {"iss": None}},
    "credential expired outside": {"vc": {"exp": int(NOW - 1)}},
    "credential expired inside": {"in": {"expirationDate": stamp(NOW - 1), "validUntil": stamp(NOW - 1)}},
    "credential not valid yet outside": {"vc": {"nbf": int(NOW + DAY)}},
    "credential not valid yet inside": {"in": {"issuanceDate": stamp(NOW + DAY), "validFrom": stamp(NOW + 600)}},
    "credential issued in the future": {"vc": {"iat": int(NOW + DAY)}},
    "credential with a date without zone": {"in": {"validUntil": "2099-01-01T00:00:00"}},
    "credential with nonsense as date": {"in": {"validUntil": "never"}},
    "credential with a number as date": {"in": {"validFrom": 5}},
    "credential with a text as exp": {"vc": {"exp": "9999999999"}},
    "credential in both models": {"vc": {"vc": {}, "credentialSubject": {"id": HOLDER}}},
    "issuer's key not for assertion": {f"document {ISSUER}": {"assertionMethod": ["#x"]}},
    "issuer without a document": {"pages": {"https://office.example/.well-known/did.json": 404}},
    "issuer's document of another": {f"document {ISSUER}": {"id": OTHER}},
    # Status.
    "revoked": {**entry(), "bits": [7]},
    "suspended": {**entry(statusPurpose="suspension"), "list": {"vc.credentialSubject.statusPurpose": "suspension"},
                  "bits": [7]},
    "another purpose": entry(statusPurpose="suspension"),
    "no purpose": entry(statusPurpose=None),
    "index beyond the list": entry(statusListIndex="128"),
    "negative index": entry(statusListIndex="-1"),
    "no index": entry(statusListIndex=None),
    "index as true": entry(statusListIndex=True),
    "index with other digits": entry(statusListIndex="\u0667"),
    "index as float": entry(statusListIndex=7.5),
    "entries of many bits": entry(statusSize=2),
    "unknown mechanism": entry(type="RevocationList2020Status"),
    "no address of the list": entry(statusListCredential=None),
    "status as text": {"in": {"credentialStatus": LIST}},
    "too many entries": {"in": {"credentialStatus": [{}] * 17}},
    "no list": {**entry(), "pages": {LIST: 404}},
    "unsigned list": {**entry(), "pages": {LIST: {"credentialSubject": {}}}},
    "list of another issuer": {**entry(), "list signer": OTHER, "list": {"iss": OTHER, "vc.issuer": OTHER}},
    "list signed by another": {**entry(), "list signer": OTHER},
    "list without a signature": {**entry(), "list header": {"alg": "none"}},
    "expired list": {**entry(), "list": {"exp": int(NOW - 1)}},
    "list of tomorrow": {**entry(), "list": {"nbf": int(NOW + DAY)}},
    "list of another kind": {**entry(), "list": {"vc.credentialSubject.type": "RevocationList"}},
    "a list that is no list": {**entry(), "list": {"vc.type": ["VerifiableCredential"]}},
    "list without bits": {**entry(), "list": {"vc.credentialSubject.encodedList": None}},
    "list that is not base64": {**entry(), "list": {"vc.credentialSubject.encodedList": "u!"}},
    "list that is not gzip": listed(b"nonsense"),
    "cut list": listed(gzip.compress(bytes(9_999))[:-9]),
    "empty list": listed(gzip.compress(b"")),
    "list of 100 MB": listed(gzip.compress(bytes(100 * 2**20), compresslevel=9)),
    "list at a private address": {**entry(), "pages": {LIST: AddressPrivate("it is at 10.0.0.1")}},
    "list that redirects": {**entry(), "pages": {LIST: 302}},
    "list that is too long": {**entry(), "pages": {LIST: PeerNonsense("more than 2 MB")}},
    # Schemas.
    "schema violated": {"in": {"credentialSchema": NAMED}, "schema": {**GOOD, "required": ["role"]}},
    "one of two schemas violated": {
        "in": {"credentialSchema": [NAMED, {**NAMED, "id": "https://s.example"}]},
        "schema": GOOD,
        "pages": {"https://s.example": {"required": ["role"]}},
    },
    "no schema there": {"in": {"credentialSchema": {**NAMED, "id": "https://nothing.example"}}},
    "schema of another kind": {"in": {"credentialSchema": {**NAMED, "type": "ShapeExpression"}}, "schema": GOOD},
    "schema without an id": {"in": {"credentialSchema": {"type": "JsonSchema"}}},
    "schema that is none": {"in": {"credentialSchema": NAMED}, "schema": {"type": 5}},
    "schema that is a list": {"in": {"credentialSchema": NAMED}, "schema": [1]},
    "schema that is no JSON": {"in": {"credentialSchema": NAMED}, "pages": {SCHEMA: b"<html>"}},
    "schema that refers elsewhere": {"in": {"credentialSchema": NAMED}, "schema": {"$ref": "https://evil.example/s"}},
    "schema without an end": {"in": {"credentialSchema": NAMED}, "schema": {"$ref": "#"}},
    "schema with an exponential pattern": {
        "in": {"credentialSchema": NAMED},
        "schema": {"properties": {"id": {"pattern": "^(([a-z]|[a-z:])+)+$"}}},
    },
    "deep schema": {"in": {"credentialSchema": NAMED}, "schema": json.loads('{"not":' * 40 + "{}" + "}" * 40)},
    # Services and documents.
    "no credential service": {f"document {HOLDER}": {"service": []}},
    "service that refuses": {"pages": {QUERY: 401}},
    "service that redirects inward": {"pages": {QUERY: 307}},
    "service at a private address": {"pages": {QUERY: AddressPrivate("it is at 127.0.0.1")}},
    "service without TLS": {"pages": {QUERY: AddressRefused("expected https")}},
    "service of no host": {"pages": {QUERY: NameUnknown("no such name")}},
    "service that is endless": {"pages": {QUERY: PeerNonsense("more than 1 MB")}},
    "service that sends no JSON": {"pages": {QUERY: b"<html>"}},
    "service that sends a list": {"pages": {QUERY: [1]}},
    "service that sends depth": {"pages": {QUERY: b"[" * 100_000}},
}  # fmt: skip


@pytest.mark.hostile
@pytest.mark.parametrize("profile", [V1, V2])
@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_wrong_is_refused_without_a_reason_for_the_caller(changes: dict[str, Any], profile: str) -> None:
    world = made(profile, changes)
    with pytest.raises(Unproven) as caught:
        await identity(world).authenticate(header())
    assert caught.value.message == verifier_module._REFUSED
    assert caught.value.private
    assert not any("evil" in url for url in world.calls)


LATER: dict[str, dict[str, Any]] = {
    "service is down": {"pages": {QUERY: 503}},
    "service is busy": {"pages": {QUERY: 429}},
    "service cannot be reached": {"pages": {QUERY: PeerUnreachable("port 443 is closed")}},
    "issuer is down": {"pages": {"https://office.example/.well-known/did.json": 500}},
    "list is down": {**entry(), "pages": {LIST: 500}},
    "schema is down": {"in": {"credentialSchema": NAMED}, "pages": {SCHEMA: PeerUnreachable("gone")}},
}


@pytest.mark.hostile
@pytest.mark.parametrize("changes", LATER.values(), ids=LATER.keys())
async def test_what_cannot_be_checked_now_is_no_verdict(changes: dict[str, Any]) -> None:
    with pytest.raises(Unavailable) as caught:
        await identity(made(V1, changes)).authenticate(header())
    assert caught.value.message == verifier_module._LATER


async def test_all_calls_together_have_one_time_limit() -> None:
    world = World()
    world.on_query = lambda: asyncio.Event().wait()
    asked = verifier(world)
    asked.seconds = 0.01
    with pytest.raises(Unavailable, match="cannot be checked now"):
        await asked.verify(HOLDER, "opaque")


TOKENS: dict[str, Any] = {"none": None, "empty": "", "a number": 5, "a list": ["t"], "too long": "x" * 8193, "é": "é"}


@pytest.mark.hostile
@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
async def test_a_token_that_grants_no_query_causes_none(token: Any) -> None:
    world = World()
    if token == "x" * 8193:
        with pytest.raises(Unproven):
            await verifier(world).verify(HOLDER, token)
    else:
        with pytest.raises(Unproven):
            await identity(world).authenticate(header(token))
    assert QUERY not in world.calls


FORGED: dict[str, dict[str, Any]] = {
    "another's key": {"key": KEYS[OTHER]},
    "another audience": {"aud": OTHER},
    "another subject": {"sub": OTHER},
    "expired": {"iat": int(NOW - 600), "exp": int(NOW - 300)},
    "no id": {"jti": None},
    "no end": {"exp": None},
}


@pytest.mark.hostile
@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED.keys())
async def test_a_stranger_cannot_make_us_query(changes: dict[str, Any]) -> None:
    world = World()
    with pytest.raises(Unproven):
        await identity(world).authenticate(header(**changes))
    assert QUERY not in world.calls


@pytest.mark.hostile
async def test_a_replayed_token_causes_no_second_query() -> None:
    world, text = World(), header()
    us = identity(world)
    await us.authenticate(text)
    with pytest.raises(Unproven, match="used before"):
        await us.authenticate(text)
    assert world.calls.count(QUERY) == 1


async def test_a_presentation_counts_for_a_minute_of_requests() -> None:
    world = World()
    us = identity(world)
    for _ in range(3):
        await us.authenticate(header())
    assert world.calls.count(QUERY) == 1


async def test_requests_at_the_same_time_share_one_query() -> None:
    world = World()
    us = identity(world)
    await asyncio.gather(*(us.authenticate(header()) for _ in range(5)))
    assert world.calls.count(QUERY) == 1


async def test_what_is_refused_later_takes_back_what_was_presented_before() -> None:
    world = World()
    asked = verifier(world, {"presentation_seconds": 0})
    await asked.verify(HOLDER, "opaque")
    assert await asked.find_current(HOLDER)
    world.changes = {"vc": {"exp": int(NOW - 1)}}
    with pytest.raises(Unproven):
        await asked.verify(HOLDER, "opaque")
    assert await asked.find_current(HOLDER) == ()


async def test_a_credential_that_is_withdrawn_counts_until_its_list_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = made(V2, entry())
    asked = verifier(world)
    await asked.verify(HOLDER, "opaque")
    world.bits[0] = 1
    (kept,) = await asked.find_current(HOLDER)
    assert kept.until - kept.checked_at == status_list._SECONDS
    at = time.time() + 2 * status_list._SECONDS
    later = changed(time, time=lambda: at)
    monkeypatch.setattr(verifier_module, "time", later)
    assert await asked.find_current(HOLDER) == ()
    assert world.calls.count(LIST) == 2


async def test_a_withdrawn_credential_lets_its_holder_in_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presentation is younger than a minute, but its list is due to be read again."""
    now = [time.time()]
    for module in (verifier_module, world_module):
        monkeypatch.setattr(module, "time", changed(time, time=lambda: now[0]))
    world = made(V2, entry())
    asked = verifier(world)
    await asked.verify(HOLDER, "opaque")
    now[0] += status_list._SECONDS - 10
    await asked.verify(HOLDER, "opaque")
    assert (world.calls.count(QUERY), world.calls.count(LIST)) == (2, 1)
    world.bits[0] = 1
    now[0] += 20
    with pytest.raises(Unproven):
        await asked.verify(HOLDER, "opaque")
    assert await asked.find_current(HOLDER) == ()


@pytest.mark.hostile
async def test_an_expired_credential_lets_its_holder_in_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    world = World(vc={"exp": int(now + 20)})
    asked = verifier(world, {"presentation_seconds": 60})
    await asked.verify(HOLDER, "opaque")
    monkeypatch.setattr(verifier_module, "time", changed(time, time=lambda: now + 45))
    with pytest.raises(Unproven):
        await asked.verify(HOLDER, "opaque")


@pytest.mark.parametrize(
    ("rules", "token", "queries"),
    [
        ({}, "opaque", 1),
        ({"credentials": "optional"}, "opaque", 1),
        ({"credentials": "optional"}, None, 0),
        ({"credentials": "never"}, "opaque", 0),
        ({"peers": {HOLDER: {"credentials": "never"}}}, None, 0),
        ({"credentials": "never", "peers": {HOLDER: {"credentials": "required"}}}, "opaque", 1),
    ],
)
async def test_who_must_present_credentials_is_in_the_rules(rules: dict[str, Any], token: Any, queries: int) -> None:
    world = World()
    await identity(world, rules).authenticate(header(token))
    assert world.calls.count(QUERY) == queries


@pytest.mark.hostile
async def test_a_peer_that_must_present_credentials_cannot_leave_them_out() -> None:
    rules = {"credentials": "optional", "peers": {HOLDER: {"credentials": "required"}}}
    with pytest.raises(Unproven):
        await identity(World(), rules).authenticate(header(None))


async def test_compatibility_is_for_the_named_peer_alone() -> None:
    bare = {"capabilityInvocation": [], "authentication": [], "assertionMethod": []}
    changes = {f"document {HOLDER}": bare, "vp": {"aud": None}}
    peer = {"keys_for_all_purposes": True, "presentation_without_audience": True}
    for rules, accepted in (
        ({"peers": {HOLDER: peer}}, True),
        ({"peers": {OTHER: peer}}, False),
        ({"peers": {HOLDER: {**peer, "keys_for_all_purposes": False}}}, False),
        ({"peers": {HOLDER: {**peer, "presentation_without_audience": False}}}, False),
    ):
        try:
            assert (await identity(World(V2, **changes), rules).authenticate(header())).credentials
            assert accepted
        except Unproven:
            assert not accepted


async def test_an_enveloped_presentation_is_opened_once() -> None:
    assert (await identity(World(V2, envelopes=1)).authenticate(header())).credentials


async def test_each_scope_must_be_covered() -> None:
    rules = {"scopes": ["MembershipCredential", "org.eclipse.dspace.dcp.vc.id:urn:uuid:1:read"]}
    assert (await identity(World(), rules).authenticate(header())).credentials
    for more in ("RoleCredential", "org.eclipse.dspace.dcp.vc.id:urn:uuid:2"):
        with pytest.raises(Unproven):
            await identity(World(), {"scopes": ["MembershipCredential", more]}).authenticate(header())


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("org.eclipse.dspace.dcp.vc.type:A:read", Scope("org.eclipse.dspace.dcp.vc.type", "A")),
        ("org.eclipse.dspace.dcp.vc.type:A", Scope("org.eclipse.dspace.dcp.vc.type", "A")),
        ("org.eclipse.dspace.dcp.vc.type:A:*", Scope("org.eclipse.dspace.dcp.vc.type", "A")),
        ("org.eclipse.dspace.dcp.vc.id:urn:x:read", Scope("org.eclipse.dspace.dcp.vc.id", "urn:x")),
        ("org.eclipse.dspace.dcp.vc.type:A:write", None),
        ("org.eclipse.dspace.dcp.vc.type:", None),
        ("org.eclipse.dspace.dcp.vc.type", None),
        ("another:A:read", None),
        ("org.eclipse.dspace.dcp.vc.type:" + "A" * 600, None),
    ],
)
def test_a_scope_names_a_type_or_a_credential(text: str, scope: Scope | None) -> None:
    if scope is None:
        with pytest.raises(ValueError, match="expected a scope"):
            read_scope(text)
    else:
        assert read_scope(text) == scope


RULES_WRONG = {
    "empty": "",
    "no YAML": "{",
    "a list": "[]",
    "no issuers": "scopes: [A]",
    "no scopes": "issuers: {'did:web:a': [A]}",
    "an issuer that is no DID": "{issuers: {a: [A]}, scopes: [A]}",
    "a type with a space": "{issuers: {'did:web:a': ['A B']}, scopes: [A]}",
    "another scope": "{issuers: {'did:web:a': [A]}, scopes: ['x:A:read']}",
    "an unknown name": "{issuers: {'did:web:a': [A]}, scopes: [A], issuer: 1}",
    "another word": "{issuers: {'did:web:a': [A]}, scopes: [A], credentials: sometimes}",
    "a fact of nothing": "{issuers: {'did:web:a': [A]}, scopes: [A], facts: {'ds:role': {credential: A}}}",
    "a fact of both": "{issuers: {'did:web:a': [A]}, scopes: [A], "
    "facts: {'ds:role': {credential: A, path: a, value: b}}}",
    "a peer that is no DID": "{issuers: {'did:web:a': [A]}, scopes: [A], peers: {a: {}}}",
}


@pytest.mark.parametrize("text", RULES_WRONG.values(), ids=RULES_WRONG.keys())
def test_rules_that_cannot_be_read_stop_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(Invalid, match="HANSE_CREDENTIAL_RULES"):
        load_rules(path)


def test_rules_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("{issuers: {'did:web:a': [A]}, scopes: [A]}")
    assert load_rules(path).trusts("did:web:a", "A")
    with pytest.raises(Invalid, match="cannot be read"):
        load_rules(tmp_path / "none.yaml")
