"""Asks a caller's credential service for credentials, and verifies them (Decentralized Claims 1.0, section 5).

Called after the signature of the caller's token was verified, so that a stranger cannot make us call a service. One
time limit holds for everything. Callers get no reason; our log does. The steps; the code repeats the numbers:
1. the rules demand credentials of this caller, and its token grants us a query;
2. cached: the same caller presented its credentials within the last minute, to any process of this connector, and
   they still hold;
3. a place: queries at once are limited in all and for each host, apart for known parties and strangers;
4. the query, to the credential service that the caller's DID document names;
5. presentations: signed by the caller, for us, within their period;
6. each credential: about the caller, within its period, of an issuer that is trusted for its type, signed by it, not
   withdrawn, fitting its schemas. A credential that fails any of these is left out;
7. the credentials that are left cover every scope that was asked for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from connector.errors import ConnectorError, Unavailable, Unproven
from connector.identity.credentials import fetched
from connector.identity.credentials.credential import Credential, read_credential
from connector.identity.credentials.presentation import CREDENTIALS_MAX, read_presentation
from connector.identity.credentials.rules import CredentialRules
from connector.identity.credentials.schema_check import SchemaChecker
from connector.identity.credentials.scopes import Scope
from connector.identity.credentials.status_list import StatusLists
from connector.identity.did import CONTEXT, DidResolver, host_of
from connector.identity.principal import VerifiedCredential
from connector.identity.signed_jwt import verify_jwt
from connector.infra.concurrency.fair_semaphore import FairSemaphore
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net import resolver as name_resolver
from connector.infra.net.http_client import HttpClient
from connector.telemetry import logger
from policies.odrl.strictjson import list_of

_SECONDS = 8.0  # for one verification, all calls together
_KEPT_MAX = 4_096  # holders
_AT_ONCE, _OF_ONE_HOST, _WAITING_PER_HOST = 12, 4, 16
_TOKEN_MAX = 8 * 2**10
_ANSWER_MAX = 2**20
_PRESENTATIONS_MAX = 8
_REFUSED = "expected credentials that are valid here; ask the operator of the data space which, and present them"
_LATER = "the credentials cannot be checked now; try again in a moment"
_WHAT = "the answer of a credential service"
_log = logger("credentials")


class QuerySigner(Protocol):
    """Signs the token of our query; see `identity_service.Wallet`."""

    async def sign(self, audience: str, *, scopes: Sequence[str] = (), token: str = "") -> str: ...


@dataclass(frozen=True, slots=True)
class Presented:
    """The credentials (JWTs) that a holder presented at `at` (UTC seconds), and that were valid then."""

    at: float
    credentials: tuple[str, ...]


class SharedPresentations(Protocol):
    """What holders presented to any process of this connector. Each method raises Unavailable if it cannot be
    reached."""

    async def find(self, holder: str) -> Presented | None: ...

    async def store_presented(self, holder: str, presented: Presented, *, until: float) -> None: ...

    async def forget(self, holder: str, *, before: float) -> None: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a holder presented at `at` (UTC seconds), with what is needed to check the status again."""

    at: float
    credentials: tuple[tuple[Credential, VerifiedCredential], ...]

    @property
    def verified(self) -> tuple[VerifiedCredential, ...]:
        return tuple(verified for _, verified in self.credentials)


class Verifier:
    """Verifies the credentials of callers by the operator's rules, and keeps them for policies."""

    def __init__(
        self,
        rules: CredentialRules,
        *,
        net: HttpClient,
        resolver: DidResolver,
        did: str,
        signer: QuerySigner,
        shared: SharedPresentations | None = None,
    ) -> None:
        self.rules = rules
        self._shared = shared
        self._net, self._resolver, self._did, self._signer = net, resolver, did, signer
        self._lists = StatusLists(net, resolver)
        self._schemas = SchemaChecker(net)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._running: dict[str, asyncio.Task[_Kept]] = {}
        self._known = FairSemaphore(_AT_ONCE, each=_OF_ONE_HOST)
        self._strangers = FairSemaphore(_AT_ONCE, each=_OF_ONE_HOST)
        self._wanted = frozenset(rule.credential for rule in rules.facts.values())
        self.seconds = _SECONDS
        resolver.allow_every_key(did for did, peer in rules.peers.items() if peer.keys_for_all_purposes)

    async def verify(self, holder: str, access_token: object) -> tuple[VerifiedCredential, ...]:
        """The credentials of `holder`, whose token with the claim `access_token` is verified already.

        None where the rules demand none. Raises: Unproven, Unavailable.
        """
        required = self.rules.required_of(holder)  # 1
        if required == "never" or (required == "optional" and access_token is None):
            return ()
        if not isinstance(access_token, str) or not 0 < len(access_token) <= _TOKEN_MAX or not access_token.isascii():
            raise Unproven(_REFUSED, private=f"{holder} sent no access token in the claim `token`")
        if (fresh := await self._find_fresh(holder)) is not None:  # 2
            return fresh
        task = self._running.get(holder)
        if task is None:  # later requests of this holder wait for the same query
            task = self._running[holder] = asyncio.create_task(self._verify_in_time(holder, access_token))
            task.add_done_callback(lambda done: self._on_done(holder, done))
        return (await asyncio.shield(task)).verified

    async def find_current(self, holder: str) -> tuple[VerifiedCredential, ...]:
        """What `holder` presented lately and is valid now. The status of each is checked again when it is due."""
        kept = await self._find_kept(holder)
        return () if kept is None else await self._check_kept(holder, kept)

    async def _find_fresh(self, holder: str) -> tuple[VerifiedCredential, ...] | None:
        """What `holder` presented within the last minute; None if that does not cover the scopes now."""
        kept = await self._find_kept(holder)
        if kept is None or time.time() - kept.at >= self.rules.presentation_seconds:
            return None
        found = await self._check_kept(holder, kept)
        return found if self._missing(found) is None else None

    async def _check_kept(self, holder: str, kept: _Kept) -> tuple[VerifiedCredential, ...]:
        """The credentials of a presentation that are valid now; those that were withdrawn are forgotten."""
        now = time.time()
        checked = [await self._check_again(*entry, now) for entry in kept.credentials]
        left = tuple(entry for entry in checked if entry is not None)
        if holder in self._kept and self._kept[holder] is kept:
            self._kept[holder] = replace(kept, credentials=left)
        end = kept.at + self.rules.facts_seconds
        return tuple(replace(one, until=min(one.until, end)) for _, one in left if one.until > now)

    async def _find_kept(self, holder: str) -> _Kept | None:
        """What `holder` presented last and lately. What cannot be checked now does not count."""
        kept = self._kept.get(holder) if self._shared is None else await self._find_shared(holder)
        return None if kept is None or time.time() - kept.at >= self.rules.facts_seconds else kept

    async def _find_shared(self, holder: str) -> _Kept | None:
        """What `holder` presented last, to this process or another one."""
        assert self._shared is not None
        kept = self._kept.get(holder)
        try:
            async with asyncio.timeout(self.seconds):
                last = await self._shared.find(holder)
                if last is None:
                    self._kept.pop(holder, None)
                    return None
                if kept is not None and kept.at >= last.at:
                    return kept
                kept = self._cover(_Kept(last.at, await self._verify_all(last.credentials, holder, time.time())))
        except (Unproven, Unavailable) as error:
            _log.info("presented_before_not_counted", holder=holder, why=_whole(error))
            return None
        except TimeoutError:
            _log.info("presented_before_not_counted", holder=holder, why=f"longer than {self.seconds:g} s")
            return None
        put_recent(self._kept, holder, kept, most=_KEPT_MAX)
        return kept

    def _on_done(self, holder: str, done: asyncio.Task[_Kept]) -> None:
        del self._running[holder]
        if not done.cancelled():
            done.exception()  # mark it as retrieved: perhaps no request waits any more

    async def _verify_in_time(self, holder: str, access_token: str) -> _Kept:
        """Query and verify within the time limit, and tell the reason of a failure to our log alone."""
        started = time.time()
        try:
            async with asyncio.timeout(self.seconds):
                presented = await self._query_in_turn(holder, access_token)
        except Unproven as error:
            await self._forget(holder, before=started)  # what it presented before counts no more
            raise Unproven(_REFUSED, private=_whole(error)) from error
        except Unavailable as error:
            raise Unavailable(_LATER, private=_whole(error)) from error
        except TimeoutError as error:
            raise Unavailable(
                _LATER, private=f"{holder} and its issuers took longer than {self.seconds:g} s"
            ) from error
        if self._shared is not None:
            jwts = tuple(credential.jwt.text for credential, _ in presented.credentials)
            until = presented.at + self.rules.facts_seconds
            await self._shared.store_presented(holder, Presented(presented.at, jwts), until=until)
        put_recent(self._kept, holder, presented, most=_KEPT_MAX)
        return presented

    async def _forget(self, holder: str, *, before: float) -> None:
        self._kept.pop(holder, None)
        if self._shared is not None:
            await self._shared.forget(holder, before=before)

    async def _query_in_turn(self, holder: str, access_token: str) -> _Kept:
        known = self._resolver.is_expected(holder) or holder in self._kept  # 3
        places, host = self._known if known else self._strangers, host_of(holder)
        if places.waiting(host) >= _WAITING_PER_HOST:
            raise Unavailable(f"too many participants of {host} present credentials now")
        async with places.hold(host):
            with name_resolver.use_group(f"credentials of {'known' if known else 'strangers'}", host):
                given = await self._query(holder, access_token)
                return await self._verify_answer(holder, given)

    async def _query(self, holder: str, access_token: str) -> list[Any]:
        """The presentations of an answer, unread."""
        service = await self._resolver.service(holder, "CredentialService")  # 4
        message = {
            "@context": [CONTEXT],
            "type": "PresentationQueryMessage",
            "scope": [str(scope) for scope in self.rules.scopes],
        }
        token = await self._signer.sign(holder, token=access_token)
        body = await fetched.call(
            self._net,
            "POST",
            f"{service.rstrip('/')}/presentations/query",
            what=_WHAT,
            max_bytes=_ANSWER_MAX,
            headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
            body=json.dumps(message).encode(),
        )
        return _read_answer(body)

    async def _verify_answer(self, holder: str, given: list[Any]) -> _Kept:
        now = time.time()
        texts: list[object] = []
        for presentation in given:  # 5
            texts += await read_presentation(
                presentation,
                holder=holder,
                audience=self._did,
                without_audience=self.rules.peer(holder).presentation_without_audience,
                resolver=self._resolver,
                now=now,
            )
        if len(texts) > CREDENTIALS_MAX:
            raise Unproven(f"expected at most {CREDENTIALS_MAX} credentials in an answer, got {len(texts)}")
        return self._cover(_Kept(now, await self._verify_all(texts, holder, now)))

    async def _verify_all(
        self, texts: Sequence[object], holder: str, now: float
    ) -> tuple[tuple[Credential, VerifiedCredential], ...]:
        """The credentials that hold; the reasons for the others are logged."""
        found = []
        for text in texts:
            try:
                credential = read_credential(text, holder=holder, now=now)
                found.append((credential, await self._verify_one(credential, now)))
            except Unproven as error:
                _log.info("credential_left_out", holder=holder, why=_whole(error))
        return tuple(found)

    async def _verify_one(self, credential: Credential, now: float) -> VerifiedCredential:
        trusted = tuple(kind for kind in credential.types if self.rules.trusts(credential.issuer, kind))  # 6
        if not trusted or not self._is_wanted(credential, trusted):
            raise Unproven(
                f"expected a credential of a listed issuer and type, got {', '.join(credential.types)[:200]!a} of "
                f"{credential.issuer[:200]!a}"
            )
        key = await verify_jwt(
            credential.jwt, credential.issuer, purpose="assertionMethod", what="a credential", resolver=self._resolver
        )
        until = await self._check_status(credential, now)
        await self._schemas.check(credential.schemas, credential.subjects, now=now)
        return VerifiedCredential(
            id=credential.id,
            issuer=credential.issuer,
            types=trusted,
            subjects=credential.subjects,
            expires=credential.expires,
            checked_at=now,
            until=until,
            key=key,
        )

    def _is_wanted(self, credential: Credential, trusted: Sequence[str]) -> bool:
        asked = any(scope.covers(credential.id, trusted) for scope in self.rules.scopes)
        return asked or not self._wanted.isdisjoint(trusted)

    async def _check_status(self, credential: Credential, now: float) -> float:
        """Until when a credential counts by its status lists and its own end (UTC seconds)."""
        ends = [now + self.rules.facts_seconds]
        for entry in credential.statuses:
            ends.append(await self._lists.check(entry, issuer=credential.issuer, now=now))
        return min(ends if credential.expires is None else [*ends, credential.expires])

    async def _check_again(
        self, credential: Credential, verified: VerifiedCredential, now: float
    ) -> tuple[Credential, VerifiedCredential] | None:
        """The credential with its status checked now, if that is due; None if it is not valid any more."""
        if verified.until > now:
            return credential, verified
        if credential.expires is not None and credential.expires <= now:
            return None
        try:
            async with asyncio.timeout(self.seconds):
                return credential, replace(verified, until=await self._check_status(credential, now), checked_at=now)
        except Unproven as error:
            _log.info("credential_withdrawn", holder=credential.holder, credential=credential.id, why=_whole(error))
            return None
        except (
            Unavailable,
            TimeoutError,
        ):  # unknown for now: it does not count, and is checked again at the next request
            return credential, verified

    def _cover(self, presented: _Kept) -> _Kept:
        if (missing := self._missing(presented.verified)) is not None:  # 7
            raise Unproven(f"expected a valid credential for the scope {missing}, got none that holds")
        return presented

    def _missing(self, credentials: Sequence[VerifiedCredential]) -> Scope | None:
        """The first scope that no credential covers."""
        uncovered = (
            scope for scope in self.rules.scopes if not any(scope.covers(one.id, one.types) for one in credentials)
        )
        return next(uncovered, None)


def _read_answer(body: bytes) -> list[Any]:
    """The presentations of a PresentationResponseMessage. Raises: Unproven."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unproven(f"expected {_WHAT} as JSON, got something else") from error
    given = list_of(answer.get("presentation")) if isinstance(answer, dict) else []
    if not isinstance(answer, dict) or answer.get("type") != "PresentationResponseMessage":
        raise Unproven("expected a PresentationResponseMessage, got another message")
    if not 1 <= len(given) <= _PRESENTATIONS_MAX:
        raise Unproven(f"expected 1 to {_PRESENTATIONS_MAX} presentations, got {len(given)}")
    return given


def _whole(error: ConnectorError) -> str:
    return f"{error.message} ({error.private})" if error.private else error.message
