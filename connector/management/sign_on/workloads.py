"""Tokens of workloads and services: a proof of identity that their site or key signed becomes a short-lived token.

By OAuth 2.0 Token Exchange (RFC 8693), a token of a site's issuer, such as a Kubernetes service account token or a
SPIFFE JWT-SVID, is the proof. By client credentials (RFC 6749, 4.4), it is an assertion of a service
(`service_clients`). A subject token is checked in these steps, cheap ones first:
1. It is a signed token of at most 16 kB whose `iss` is an issuer of the operator's file.
2. An asymmetric algorithm and a key of that issuer signed it.
3. Issuer, audience and times hold.
For both proofs:
4. The file gives the subject scopes; a narrower scope may be requested.
5. An agreement that the token is to be bound to is ours as consumer.
The new token is signed and not stored. It ends with the subject token, or after its lifetime. A bound token opens only
the transfers of its agreement. Refusals keep their reason for our log; the caller gets none.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from authlib.oauth2.claims import JWTClaims
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from connector.errors import Invalid, Unavailable, Unproven, check_harmless, harmless
from connector.events import RequestRefused, TokenIssued
from connector.identity.openid.issuer_client import FAILED, LEEWAY_S, IssuerClient
from connector.infra.http.form import parse_form
from connector.infra.net.http_client import HttpClient
from connector.management.sign_on.auth import WORKLOAD_PREFIX, Caller
from connector.management.sign_on.service_clients import CheckedAssertion, ServiceClients
from connector.management.sign_on.sign_on_file import WorkloadIssuer
from connector.store import Store, Transaction

CLIENT_CREDENTIALS = "client_credentials"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT_TYPE = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TYPE = "urn:ietf:params:oauth:token-type:access_token"
_SUBJECT_TOKEN_MAX = 16 * 2**10
_TEXT_MAX = 250


@dataclass(frozen=True, slots=True)
class _Proof:
    """What a caller proved: name and subject for the log, its scopes, the job that was signed, and when the proof ends.

    `assertion`: to be noted as used.
    """

    name: str
    subject: str
    scopes: frozenset[str]
    job: str = ""
    ends: float = math.inf
    assertion: CheckedAssertion | None = None


@dataclass(frozen=True, slots=True)
class Exchanged:
    """A new token, its scopes, its lifetime in seconds, and the job that it acts for."""

    token: str
    scopes: Sequence[str]
    seconds: int
    job: str


class WorkloadTokens:
    """Issues tokens to workloads of the configured issuers and to services, and reads those that it made."""

    def __init__(
        self,
        store: Store,
        net: HttpClient,
        issuers: Sequence[WorkloadIssuer],
        *,
        services: ServiceClients,
        secret: bytes,
        seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._key = OctKey.import_key(secret)
        self._seconds, self._clock, self._services = seconds, clock, services
        self._issuers = {
            one.issuer: (one, IssuerClient(net, name=one.name, issuer=one.issuer, jwks_url=one.jwks_url))
            for one in issuers
        }

    async def exchange(self, body: bytes) -> Exchanged:
        """Exchange the subject token or the assertion of a form.

        Raises: Unproven with OAuth's code and no reason, which is recorded; Unavailable if keys cannot be had.
        """
        code = "invalid_grant"
        try:
            form = parse_form(body)
            code = "invalid_client" if form.get("grant_type") == CLIENT_CREDENTIALS else code
            return await self._exchange(form)
        except Unavailable as error:
            await self._record(error)
            raise Unavailable(
                "the token cannot be checked now; try again in a moment", private=error.message
            ) from error
        except FAILED as error:
            await self._record(error)
            raise Unproven("token exchange failed; the operator's log has the reason", code=code) from error

    async def _exchange(self, form: Mapping[str, str]) -> Exchanged:
        asked = {name: form.get(name, "") for name in ("agreement", "purpose", "job")}
        _check_asked(asked)
        proof = await (self._prove_service(form) if _is_service(form) else self._prove_workload(form))
        job = proof.job or asked["job"]
        now = self._clock()
        until = min(now + self._seconds, proof.ends)
        if until - now < 1:
            raise Invalid("expected a subject token that lasts, got one that ends now")
        caller = _make_caller(proof, _grant_scopes(proof, form.get("scope", "")), asked | {"job": job})
        await self._store.write(lambda tx: _issue(tx, caller, proof.assertion))
        return Exchanged(self._sign(caller, until), sorted(caller.scopes), int(until - now), job)

    async def _prove_service(self, form: Mapping[str, str]) -> _Proof:
        checked = await self._services.authenticate(form, now=self._clock())
        name = checked.service.name
        scopes = frozenset(checked.service.scopes)
        return _Proof(f"{name} (service key)", f"service#{name}", scopes, assertion=checked)

    async def _prove_workload(self, form: Mapping[str, str]) -> _Proof:
        issuer, claims = await self._verify(_read_subject_token(form))
        subject = str(claims["sub"])
        full = f"{issuer.issuer}#{subject}"
        if len(full) > _TEXT_MAX:
            raise Invalid(f"expected issuer and subject of at most {_TEXT_MAX} characters, got {len(full)}")
        check_harmless(subject=subject)
        found = [scopes for pattern, scopes in issuer.subjects.items() if fnmatchcase(subject, pattern)]
        granted = frozenset(scope for scopes in found for scope in scopes)
        return _Proof(f"{subject} ({issuer.name})", full, granted, _read_job(issuer, claims), float(claims["exp"]))

    async def _verify(self, token: str) -> tuple[WorkloadIssuer, Mapping[str, Any]]:
        named = _peek_issuer(token)
        if named not in self._issuers:
            raise Invalid(f"expected a token of a configured issuer, got one of {harmless(named)[:200]!r}")
        issuer, client = self._issuers[named]
        claims = await client.decode(token)
        expected = {name: {"essential": True} for name in ("sub", "exp")} | {
            "iss": {"essential": True, "values": [issuer.issuer]},
            "aud": {"essential": True, "values": [issuer.audience]},
        }
        JWTClaims(dict(claims), {}, expected).validate(now=int(self._clock()), leeway=LEEWAY_S)
        return issuer, claims

    def _sign(self, caller: Caller, until: float) -> str:
        claims = {
            "name": caller.name, "sub": caller.subject, "scopes": sorted(caller.scopes), "agreement": caller.agreement,
            "purpose": caller.purpose, "job": caller.job, "exp": until,
        }  # fmt: skip
        return WORKLOAD_PREFIX + jwt.encode({"alg": "HS256"}, claims, self._key, algorithms=["HS256"])

    def read(self, token: str) -> Caller:
        """Return the workload of a token that this connector made. Raises: Unproven."""
        try:
            claims = jwt.decode(token.removeprefix(WORKLOAD_PREFIX), self._key, algorithms=["HS256"]).claims
            over = claims["exp"] <= self._clock()
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise Unproven("this token is not known here; exchange the workload's token for one") from error
        if over:
            raise Unproven("this token has expired; exchange the workload's token again")
        about = {name: claims[name] for name in ("agreement", "purpose", "job")}
        scopes, subject = frozenset(claims["scopes"]), claims["sub"]
        return Caller(claims["name"], scopes, owner=subject, subject=subject, workload=True, **about)

    async def _record(self, error: BaseException) -> None:
        reason = f"{type(error).__name__}: {harmless(str(error))[:500]}"
        await self._store.record_refusal(
            RequestRefused(actor="unknown", outcome="refused", code="token_exchange_failed", reason=reason)
        )


def router(workloads: WorkloadTokens, exchange_login: Callable[[bytes], Awaitable[Response | None]]) -> APIRouter:
    """`exchange_login` answers the form of a person's ID token, and None for another."""
    routes = APIRouter(tags=["system"])

    @routes.post(
        "/oauth/token", summary="Exchange a person's or workload's token, or a service's assertion (RFC 8693, RFC 7523)"
    )
    async def exchange(request: Request) -> Response:
        quiet = {"cache-control": "no-store"}
        if answer := await exchange_login(await request.body()):
            return answer
        try:
            made = await workloads.exchange(await request.body())
        except Unproven as error:
            return JSONResponse({"error": error.code}, status_code=400, headers=quiet)
        body = {
            "access_token": made.token, "issued_token_type": ACCESS_TYPE, "token_type": "Bearer",
            "expires_in": made.seconds, "scope": " ".join(made.scopes), "job": made.job,
        }  # fmt: skip
        return JSONResponse(body, headers=quiet)

    return routes


def _is_service(form: Mapping[str, str]) -> bool:
    return form.get("grant_type") == CLIENT_CREDENTIALS


def _check_asked(asked: Mapping[str, str]) -> None:
    check_harmless(**asked)
    for name, text in asked.items():
        if len(text) > _TEXT_MAX:
            raise Invalid(f"expected {name} of at most {_TEXT_MAX} characters, got {len(text)}")


def _read_subject_token(form: Mapping[str, str]) -> str:
    if form.get("grant_type") != GRANT or form.get("subject_token_type") != JWT_TYPE:
        raise Invalid(
            f"expected the grant {GRANT} with a subject token of the type {JWT_TYPE}, or the grant "
            f"{CLIENT_CREDENTIALS}; got others"
        )
    if not 0 < len(token := form.get("subject_token", "")) <= _SUBJECT_TOKEN_MAX:
        raise Invalid(f"expected a subject token of at most {_SUBJECT_TOKEN_MAX} characters")
    return token


def _peek_issuer(token: str) -> str:
    """Return the issuer that an unchecked token names. Raises: ValueError, KeyError."""
    body = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return str(claims["iss"])


def _grant_scopes(proof: _Proof, asked: str) -> frozenset[str]:
    """Return the scopes of a subject, or those of them that are asked for (step 4). Raises: Invalid."""
    wanted = frozenset(asked.split()) or proof.scopes
    if not wanted or not wanted <= proof.scopes:
        raise Invalid(
            f"expected scopes among {', '.join(sorted(proof.scopes)) or 'none'} for {harmless(proof.name)[:200]!r}, "
            f"got {harmless(asked)[:100] or 'none'}"
        )
    return wanted


def _read_job(issuer: WorkloadIssuer, claims: Mapping[str, Any]) -> str:
    """Return the job that the subject token names: a claim that its issuer signed counts more than the request."""
    found: Any = claims
    for part in issuer.job_claim.split("/") if issuer.job_claim else ("",):
        found = found.get(part) if isinstance(found, Mapping) else None
    return harmless(found)[:_TEXT_MAX] if isinstance(found, str) else ""


def _make_caller(proof: _Proof, scopes: frozenset[str], about: Mapping[str, str]) -> Caller:
    return Caller(
        proof.name, scopes, owner=proof.subject, subject=proof.subject, workload=True, job=about["job"],
        agreement=about["agreement"], purpose=about["purpose"],
    )  # fmt: skip


def _issue(tx: Transaction, caller: Caller, assertion: CheckedAssertion | None) -> None:
    """Record the exchange. Raises: Invalid for a used assertion, or an agreement in which we are not the consumer."""
    if assertion is not None and not tx.callers.note_token(assertion.digest, assertion.until):
        raise Invalid("expected an assertion that was not used before; sign a new one for each token")
    if caller.agreement and tx.agreements.get(caller.agreement, role="consumer") is None:  # 5
        raise Invalid(f"expected an agreement in which we are the consumer, got {caller.agreement!r}")
    tx.publish(
        TokenIssued(
            actor=caller.name, subject=caller.subject, job=caller.job, agreement=caller.agreement,
            purpose=caller.purpose, detail={"scopes": sorted(caller.scopes), "workload": True},
        )
    )  # fmt: skip
