"""Authentication of the management API: bearer tokens with scopes, stored only as SHA-256.

At a start without a valid admin token the connector makes one named `admin` with all scopes and prints it once. A
request is checked in these steps:
1. It has an Authorization header with a bearer token, or the session cookie of the console.
2. The digest is that of a stored token that has not expired.
3. The token has the scope of the route (admin has all).
4. Only a route marked as raw data (`Tokens.require_raw`) may reach the engine (`raw_access`).
A personal access token (`personal_tokens`) has an owner, acts under the owner's name, and ends with the owner's token.
Refusals are recorded as events, so that guessing shows in the log. The token itself is never recorded.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count

from fastapi import Request

from connector import acting, raw_access
from connector.acting import Acting
from connector.errors import Absent, AlreadyExists, Forbidden, Invalid, ScopeMissing, Unavailable, Unproven
from connector.events import Event, RequestRefused, TokenIssued, TokenRevoked
from connector.store import Store, Transaction
from connector.store.tables import ApiToken, SignOnSession

SCOPES = ("read", "owner", "approve", "consume", "audit", "metrics", "admin")
DECIDING = {"provider": ("owner", "approve"), "consumer": ("consume",)}  # scopes that decide negotiations, by our role
COOKIE = "hanse_session"
WORKLOAD_PREFIX = "hanse_wl_"  # of tokens that workloads got in exchange, which are not stored
MAKER_PREFIX = "token:"  # before the name of the token that made a personal access token
_USE_NOTED_SECONDS = 60.0  # the last use is stored at most this often


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a valid token.

    `owner` is who owns the personal access tokens that the holder makes; `token` is the id of the personal access token
    in use, if it is one. `subject` is issuer and subject of a person or workload. The token of a workload
    may be bound to an agreement or a purpose, and then opens only the transfers of these.
    """

    name: str
    scopes: frozenset[str]
    owner: str = ""
    token: str = ""
    subject: str = ""
    workload: bool = False
    job: str = ""
    agreement: str = ""
    purpose: str = ""

    def may_decide(self, role: str) -> bool:
        """Return whether the token may decide a negotiation in which we have this role."""
        return any(map(self.may, DECIDING[role]))

    @property
    def acting(self) -> Acting:
        """The caller as log records name it."""
        return Acting(self.name, subject=self.subject, token=self.token, job=self.job)

    def check_bound(self, agreement: str, purpose: str) -> None:
        """Check what the token is bound to. Raises: Forbidden for another agreement or purpose."""
        for name, bound, asked in (("agreement", self.agreement, agreement), ("purpose", self.purpose, purpose)):
            if bound and bound != asked:
                raise Forbidden(f"this token is bound to the {name} {bound}, got {asked or 'none'}")

    def may(self, scope: str) -> bool:
        """Return whether the token has `scope`. Admin has all scopes; the empty scope needs any token."""
        return not scope or "admin" in self.scopes or scope in self.scopes


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of one connector's management API."""

    def __init__(self, store: Store, read_workload: Callable[[str], Caller] | None = None) -> None:
        """`read_workload` returns the caller of a workload's token; None: there are none."""
        self._store = store
        self._read_workload = read_workload

    async def first(self, hand_over: Callable[[str], None]) -> None:
        """Make an admin token if there is no valid one: the API could not be used otherwise.

        `hand_over` gets the text once, before the token is stored. After a crash between the two, the text is worthless
        and the next start makes another token.
        """
        text = secrets.token_urlsafe(32)

        def work(tx: Transaction) -> None:
            tx.tokens.lock_exclusively()  # several processes may start at once; only one makes a token
            if _admins(tx):
                return
            hand_over(text)
            first = not tx.tokens.count()
            names = chain(["admin"], (f"admin-{number}" for number in count(2)))
            name = next(name for name in names if tx.tokens.find_by_name(name) is None)
            why = "" if first else "no token with the scope admin was good at this start"
            _add(tx, name, ["admin"], text, None, by="first start" if first else "start", reason=why)

        await self._store.write(work)

    async def issue(
        self, name: str, scopes: list[str], *, by: str, days: float | None = None, subject: str = ""
    ) -> str:
        """Make a token and return its text, which is never shown again. `by`: the name of an admin token that is valid
        now; or of a person with an open session as operator, whose `subject` is given.

        Raises: Unproven where `by` has just ended.
        """
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise Invalid(f"expected scopes among {', '.join(SCOPES)}, came {', '.join(unknown) or 'none'}")
        text = secrets.token_urlsafe(32)

        def work(tx: Transaction) -> None:
            tx.tokens.lock_exclusively()
            if not _is_admin(tx, by, subject):
                raise Unproven("this token has just ended; ask an administrator for a new one")
            if tx.tokens.find_by_name(name) is not None:
                raise AlreadyExists(
                    f"a token named {name!r} exists; end it first (`hanse token end`) or take another name"
                )
            _add(tx, name, scopes, text, None if days is None else tx.now + days * 86_400, by=by)

        await self._store.write(work)
        return text

    async def revoke(self, name: str, *, by: str) -> None:
        """End a token at once. The last valid admin token cannot be revoked: the API could not be used until the next
        start."""

        def work(tx: Transaction) -> None:
            tx.tokens.lock_exclusively()  # two concurrent revocations must not end both admin tokens
            row = tx.tokens.find_by_name(name)
            if row is None:
                raise Absent(f"no token is named {name!r}")
            if _admins(tx) == [row]:
                raise Invalid(
                    "this is the last token with the scope admin that is good now; issue another one first "
                    "(`hanse token issue NAME --scope admin`)"
                )
            for owned in tx.tokens.list_owned(MAKER_PREFIX + name):
                tx.tokens.remove(owned)
            tx.tokens.remove(row)
            tx.publish(TokenRevoked(actor=by, detail={"token": name}))

        await self._store.write(work)

    async def list(self) -> list[ApiToken]:
        return list(await self._store.read(lambda tx: tx.tokens.list_all()))

    async def caller(self, token: str) -> Caller:
        """Return the holder of this token. Tokens are read each time, because another process may have ended one.

        Raises: Unproven for an unknown or expired token.
        """
        if self._read_workload is not None and token.startswith(WORKLOAD_PREFIX):
            return self._read_workload(token)
        digest, now = digest_of(token), time.time()

        def find(tx: Transaction) -> tuple[ApiToken | None, ApiToken | None, SignOnSession | None]:
            row = tx.tokens.find_by_digest(digest)
            return (None, None, tx.sessions.find(digest)) if row is None else (row, _find_owner(tx, row), None)

        row, owner, session = await self._store.read(find)
        if session is not None:
            return _read_session(session, now)
        if row is None:
            raise Unproven("this token is not known here; use one that this connector issued")
        if _is_over(row, now) or (owner is not None and _is_over(owner, now)):
            raise Unproven("this token has expired; ask an administrator for a new one")
        await self._note_use(row, now)
        if row.owner:
            subject = "" if row.owner.startswith(MAKER_PREFIX) else row.owner
            name = row.owner_name or row.owner
            return Caller(name, frozenset(row.scopes), owner=row.owner, token=row.name, subject=subject)
        return Caller(row.name, frozenset(row.scopes), owner=MAKER_PREFIX + row.name)

    async def _note_use(self, row: ApiToken, now: float) -> None:
        """Store the last use, unless one within a minute is stored. A database that takes no changes refuses nothing
        here."""
        if row.last_used_at is None or not 0 <= now - row.last_used_at < _USE_NOTED_SECONDS:
            with suppress(Unavailable):
                await self._store.write(lambda tx: tx.tokens.touch(row.name, now))

    def require(self, scope: str, *, bound: bool = False) -> Requirement:
        """Return a dependency that accepts callers with `scope`. Its route does not reach raw data.

        `bound`: the route checks what a token is bound to (`Caller.check_bound`); others refuse bound tokens.
        """
        return Requirement(self, scope, bound=bound)

    def require_raw(self, scope: str, *records: type[Event], bound: bool = False) -> Requirement:
        """Return a dependency for a route that touches raw data and leaves these records, which docs/operations.md
        lists.

        Without records, the route only shows stored figures. `bound`: as in `require`.
        """
        return Requirement(self, scope, records, bound=bound)

    async def let_in(self, request: Request, scope: str) -> Caller:
        """Return the caller of a request if its token has `scope`. A refusal is recorded."""
        caller = None
        try:
            caller = await self.caller(_read_token(request))
            if not caller.may(scope):
                raise ScopeMissing(
                    f"expected a token with the scope {scope!r}, got one with {_format_scopes(caller)}; ask an "
                    f"administrator for another (`hanse token issue NAME --scope {scope}`)"
                )
        except (Unproven, ScopeMissing) as error:
            await self._record(request, error, token=caller.name if caller else "")
            raise
        acting.set_current(caller.acting)
        return caller

    async def _record(self, request: Request, error: Unproven | ScopeMissing, *, token: str) -> None:
        """Record a refusal. All refused callers are one actor in the log (decision 35), known or not."""
        refused = RequestRefused(
            actor="unknown",
            outcome="refused",
            code=error.code,
            reason=error.message,
            detail={
                "method": request.method,
                "route": request.scope.get("path", "")[:200],
                **({"token": token} if token else {}),
            },
        )
        await self._store.record_refusal(refused)


@dataclass(frozen=True, slots=True, eq=False)
class Requirement:
    """A route dependency: the caller, if its token has `scope`.

    `records`: for a route that touches raw data, the events that it leaves; else None.
    """

    tokens: Tokens
    scope: str
    records: tuple[type[Event], ...] | None = None
    bound: bool = False

    async def __call__(self, request: Request) -> Caller:
        caller = await self.tokens.let_in(request, self.scope)
        if not self.bound:
            refuse_bound(caller)
        raw_access.allow(self.records is not None)
        return caller


def refuse_bound(caller: Caller) -> None:
    """Refuse a token that is bound to an agreement or purpose. Raises: Forbidden."""
    if caller.agreement or caller.purpose:
        raise Forbidden(
            "this token is bound to an agreement or purpose and opens only their transfers; exchange the workload's "
            "token without `agreement` and `purpose`"
        )


def _read_session(session: SignOnSession, now: float) -> Caller:
    if session.expires_at <= now:
        raise Unproven("this session has expired; log in again")
    return Caller(session.name, frozenset(session.scopes), owner=session.subject, subject=session.subject)


def _is_admin(tx: Transaction, by: str, subject: str) -> bool:
    if subject:
        return tx.sessions.is_admin(subject, tx.now)
    return by in [row.name for row in _admins(tx)]


def _is_over(row: ApiToken, now: float) -> bool:
    return row.expires_at is not None and row.expires_at <= now


def _find_owner(tx: Transaction, row: ApiToken) -> ApiToken | None:
    """Return the token that made a personal access token; None if a person made it, or it is an ordinary token."""
    owner = row.owner or ""
    return tx.tokens.find_by_name(owner.removeprefix(MAKER_PREFIX)) if owner.startswith(MAKER_PREFIX) else None


def _admins(tx: Transaction) -> list[ApiToken]:
    """Return the valid admin tokens."""
    return [
        row
        for row in tx.tokens.list_all()
        if "admin" in row.scopes and (row.expires_at is None or row.expires_at > tx.now)
    ]


def _add(
    tx: Transaction, name: str, scopes: list[str], text: str, expires_at: float | None, *, by: str, reason: str = ""
) -> None:
    row = ApiToken(name=name, digest=digest_of(text), scopes=scopes, created_at=tx.now, expires_at=expires_at)
    tx.tokens.add(row)
    tx.publish(TokenIssued(actor=by, reason=reason, detail={"token": name, "scopes": scopes}))


def _read_token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if cookie := request.cookies.get(COOKIE):
        # Browsers send a cookie with another site's form, too: only our own pages may change anything.
        site = request.headers.get("sec-fetch-site", "")
        origin = request.headers.get("origin", "")
        same = site == "same-origin" or (not site and origin == f"{request.url.scheme}://{request.url.netloc}")
        if request.method in ("GET", "HEAD") or same:
            return cookie
    raise Unproven("expected `Authorization: Bearer <token>`; the first start printed a token, once")


def _format_scopes(caller: Caller) -> str:
    return ", ".join(sorted(caller.scopes)) or "none"
