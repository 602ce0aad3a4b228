"""A holder, an issuer and their servers in memory; every signed thing can be changed before it is signed."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import time
from collections.abc import Callable
from typing import Any

from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey

from connector.identity import did, keys
from connector.identity.credentials.rules import CredentialRules
from connector.identity.credentials.verifier import Verifier
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity, OwnWallet
from connector.infra.net.http_client import AddressGuard, Reply
from tests.support.issuer import encode_bits, stamp

US, HOLDER, ISSUER, OTHER = (f"did:web:{name}.example" for name in ("us", "holder", "office", "other"))
KEYS = {name: ECKey.generate_key("P-256") for name in (US, HOLDER, ISSUER, OTHER)}
QUERY = "https://holder.example/cs/presentations/query"
LIST, SCHEMA = "https://office.example/status/3", "https://office.example/schema.json"
RULES = {"issuers": {ISSUER: ["MembershipCredential"]}, "scopes": ["MembershipCredential"]}
V1, V2 = "vc11-sl2021/jwt", "vc20-bssl/jwt"


def change(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The value with changes by dotted path; None removes; a function is called with what was there."""
    made = copy.deepcopy(value)
    for path, new in changes.items():
        *parents, last = path.split(".")
        place = made
        for name in parents:
            place = place[name]
        if callable(new):
            new = new(place.get(last))
        if new is None:
            place.pop(last, None)
        else:
            place[last] = new
    return made


def sign(claims: dict[str, Any], signer: str, header: dict[str, Any], key: Any = None) -> str:
    full = {"alg": "ES256", "kid": f"{signer}#{KEYS[signer].thumbprint()}", "typ": "JWT"} | header
    full = {name: value for name, value in full.items() if value is not None}
    if full.get("alg") == "none":
        pieces = (base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode() for one in (full, claims))
        return ".".join((*pieces, ""))
    if full.get("alg") == "HS256":  # the public key as the secret: key confusion
        key = OctKey.import_key(KEYS[signer].as_pem(private=False))
        return jws.serialize_compact(full, json.dumps(claims), key, algorithms=["HS256"])
    if "crit" in full or not isinstance(full.get("kid", ""), str):  # no library signs these
        text = jws.serialize_compact({"alg": "ES256"}, json.dumps(claims), key or KEYS[signer], algorithms=["ES256"])
        return base64.urlsafe_b64encode(json.dumps(full).encode()).rstrip(b"=").decode() + text[text.index(".") :]
    return jws.serialize_compact(full, json.dumps(claims), key or KEYS[signer], algorithms=["ES256"])


class World:
    """The servers of holder and issuer. The dicts `vc`, `vp`, `list_vc` and `answer` hold changes to what they send."""

    def __init__(self, profile: str = V1, **changes: Any) -> None:
        self.profile = profile
        self.guard = AddressGuard()
        self.calls: list[str] = []
        self.changes: dict[str, Any] = changes
        self.pages: dict[str, Any] = {}
        self.on_query: Callable[[], Any] | None = None
        self.bits = bytearray(16)

    async def call(self, method: str, url: str, *, body: bytes | None = None, max_bytes: int = 0, **_: Any) -> Reply:
        self.calls.append(url)
        page = self.pages[url] if url in self.pages else self._page(url)
        if asyncio.iscoroutine(page):
            page = await page
        if isinstance(page, Exception):
            raise page
        if isinstance(page, int):
            return Reply(page, {}, b"")
        return Reply(200, {}, page if isinstance(page, bytes) else json.dumps(page).encode())

    def _page(self, url: str) -> Any:
        if url.endswith("/.well-known/did.json"):
            return self.document(f"did:web:{url.split('/')[2]}")
        known = {QUERY: self.answer, LIST: lambda: self.status_list().encode(), SCHEMA: lambda: self.changes["schema"]}
        return known.get(url, lambda: 404)()

    def document(self, participant: str) -> dict[str, Any]:
        host = participant.removeprefix("did:web:")
        made = did.document(
            participant,
            jwk=keys.public_jwk(KEYS[participant]),
            root_url=f"https://{host}",
            credential_service=f"https://{host}/cs",
        )
        return change(made, self.changes.get(f"document {participant}", {}))

    def answer(self) -> Any:
        if self.on_query is not None:
            return self.on_query()
        made = {"@context": ["https://w3id.org/dspace-dcp/v1.0/dcp.jsonld"], "type": "PresentationResponseMessage"}
        return change({**made, "presentation": [self.presentation()]}, self.changes.get("answer", {}))

    def presentation(self) -> Any:
        now = int(time.time())
        given = self.changes.get("given", [self.credential(), *self.changes.get("more", ())])
        parties = {"iss": HOLDER, "sub": HOLDER, "aud": US, "jti": "vp", "iat": now, "nbf": now, "exp": now + 60}
        if self.profile == V1:
            vp = {"type": ["VerifiablePresentation"], "holder": HOLDER, "verifiableCredential": given}
            claims = {**parties, "vp": vp}
        else:
            enveloped = [
                {"type": "EnvelopedVerifiableCredential", "id": f"data:application/vc+jwt,{one}"} for one in given
            ]
            claims = {
                **parties,
                "@context": ["https://www.w3.org/ns/credentials/v2"],
                "type": "VerifiablePresentation",
                "holder": HOLDER,
                "verifiableCredential": enveloped,
            }
        header = dict(self.changes.get("vp header", {}))
        key = header.pop("key", None)
        text = sign(
            change(claims, self.changes.get("vp", {})), self.changes.get("vp signer", HOLDER), header, key and KEYS[key]
        )
        for _ in range(self.changes.get("envelopes", 0)):
            outer = {"type": "EnvelopedVerifiablePresentation", "id": f"data:application/vp+jwt,{text}", "aud": US}
            text = sign(outer, self.changes.get("outer signer", HOLDER), {})
        return text

    def credential(self, **changes: Any) -> str:
        now = time.time()
        subject = {"id": HOLDER, "memberOf": "Rail", "address": {"country": "DE"}}
        about = {"id": "urn:uuid:1", "type": ["VerifiableCredential", "MembershipCredential"], "issuer": ISSUER}
        times = {"iss": ISSUER, "sub": HOLDER, "jti": "urn:uuid:1", "nbf": int(now - 60), "exp": int(now + 3600)}
        if self.profile == V1:
            vc = {**about, "issuanceDate": stamp(now - 60), "expirationDate": stamp(now + 3600)}
            claims: dict[str, Any] = {**times, "vc": {**vc, "credentialSubject": subject}}
        else:
            vc = {**about, "validFrom": stamp(now - 60), "validUntil": stamp(now + 3600)}
            context = ["https://www.w3.org/ns/credentials/v2"]
            claims = {**times, "@context": context, **vc, "credentialSubject": subject}
        inner = {f"vc.{name}" if self.profile == V1 else name: new for name, new in self.changes.get("in", {}).items()}
        header = dict(self.changes.get("vc header", {}))
        key = header.pop("key", None)
        return sign(
            change(change(claims, inner), {**self.changes.get("vc", {}), **changes}),
            self.changes.get("vc signer", ISSUER),
            header,
            key and KEYS[key],
        )

    def status_list(self) -> str:
        now = time.time()
        kind = "BitstringStatusList" if self.profile == V2 else "StatusList2021"
        subject = {
            "id": f"{LIST}#list",
            "type": kind,
            "statusPurpose": "revocation",
            "encodedList": encode_bits(self.bits),
        }
        vc = {
            "type": ["VerifiableCredential", f"{kind}Credential"],
            "issuer": ISSUER,
            "issuanceDate": stamp(now - 60),
            "credentialSubject": subject,
        }
        claims = change({"iss": ISSUER, "vc": vc}, self.changes.get("list", {}))
        return sign(claims, self.changes.get("list signer", ISSUER), self.changes.get("list header", {}))

    def entry(self, index: Any = "7", **changes: Any) -> dict[str, Any]:
        kind = "BitstringStatusListEntry" if self.profile == V2 else "StatusList2021Entry"
        made = {"type": kind, "statusPurpose": "revocation", "statusListIndex": index, "statusListCredential": LIST}
        return {**made, **changes}


def verifier(
    world: World, rules: dict[str, Any] | None = None, resolver: DidResolver | None = None, shared: Any = None
) -> Verifier:
    found = CredentialRules.model_validate({**RULES, **(rules or {})})
    resolver = resolver or DidResolver(world)  # type: ignore[arg-type]  # a fake
    signer = OwnWallet(did=US, key=KEYS[US])
    return Verifier(found, net=world, resolver=resolver, did=US, signer=signer, shared=shared)  # type: ignore[arg-type]  # a fake


def identity(world: World, rules: dict[str, Any] | None = None, shared: Any = None) -> Identity:
    resolver = DidResolver(world)  # type: ignore[arg-type]  # a fake
    found = verifier(world, rules, resolver, shared)
    return Identity(did=US, key=KEYS[US], resolver=resolver, verifier=found, shared_replays=shared)


def header(
    token: Any = "opaque", key: ECKey | None = None, *, header: dict[str, Any] | None = None, **claims: Any
) -> str:
    now = int(time.time()) + 1  # not before this process began
    body = {"iss": HOLDER, "sub": HOLDER, "aud": US, "jti": f"j{time.time_ns()}", "iat": now, "exp": now + 60}
    full = {"alg": "ES256", "kid": f"{HOLDER}#{KEYS[HOLDER].thumbprint()}", **(header or {})}
    body |= {"token": token, **claims}
    kept = {name: value for name, value in body.items() if value is not None}
    return f"Bearer {jwt.encode(full, kept, key or KEYS[HOLDER], algorithms=['ES256'])}"
