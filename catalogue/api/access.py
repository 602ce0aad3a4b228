"""Says who is looking. Which rendering a viewer gets is decided in `search/visibility.py`.

A viewer is anonymous, a member (proven by a self-issued token) or the operator (token or browser session). The
operator's tokens and sessions are here too.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import Member, Token
from connector.errors import ScopeMissing, Unproven, WrongState
from connector.identity.identity_service import Identity
from connector.infra import atomic_files

COOKIE = "hanse_catalogue"
PUBLIC, MEMBERS, OPERATOR = "public", "members", "operator"


@dataclass(frozen=True, slots=True)
class Viewer:
    """The sender of a request. `kind` is PUBLIC, MEMBERS or OPERATOR.

    `id` is a member's DID, `role` and `country` its facts in the register.
    """

    kind: str = PUBLIC
    id: str = ""
    role: str = ""
    country: str = ""

    @property
    def is_operator(self) -> bool:
        return self.kind == OPERATOR

    @property
    def audiences(self) -> frozenset[str]:
        """Audiences (public, members, a DID) that this viewer belongs to. The operator may see all."""
        return frozenset((PUBLIC, MEMBERS, self.id) if self.kind == MEMBERS else (PUBLIC,))

    def sees(self, audience: str) -> bool:
        """Whether something for `audience` may be shown."""
        return self.is_operator or audience in self.audiences


class ViewerAuthenticator:
    """Turns a request into a viewer. An invalid token or session is refused, not treated as anonymous."""

    def __init__(self, store: CatalogueStore, identity: Identity, *, session_seconds: float) -> None:
        self._store, self._identity = store, identity
        self._session_seconds = session_seconds

    async def first_token(self, file: Path | None) -> str | None:
        """Make the operator's token on the first start.

        Returns its text, also written to `file`; None if one exists.
        """
        return await self._store.write(lambda tx: None if tx.tokens.count() else make_token(tx, file))

    async def viewer(self, request: Request) -> Viewer:
        """The viewer of a request. Raises Unproven for an invalid token."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme:
            return await self._of_token(scheme, text.strip())
        if (cookie := request.cookies.get(COOKIE)) and await self._operator(cookie):
            return Viewer(OPERATOR)
        return Viewer()

    async def _of_token(self, scheme: str, text: str) -> Viewer:
        if scheme.lower() == "bearer" and await self._operator(text):
            return Viewer(OPERATOR)
        if scheme.lower() == "bearer":  # any other is refused below
            await self._member(
                self._identity.read_claimed_issuer(f"{scheme} {text}")
            )  # or anybody had us call where a DID leads
        principal = await self._identity.authenticate(f"{scheme} {text}")
        member = await self._member(principal.id)
        kind = MEMBERS if member.status == "active" else PUBLIC
        return Viewer(kind, principal.id, member.role, member.country)

    async def _member(self, did: str) -> Member:
        """The member with this DID. Raises Unproven if it does not exist."""
        is_text = did.isascii() and did.isprintable()  # any other is no DID, and nothing to ask a database for
        member = await self._store.read(lambda tx: tx.members.find(did)) if is_text else None
        if member is None or member.id != did:
            raise Unproven(
                f"expected the token of a member of this data space, got one of {did[:200]!a}, which is not a "
                "member; ask the operator to admit it, or send no token"
            )
        return member

    async def _operator(self, text: str) -> bool:
        digest, now = _digest(text), time.time()
        row = await self._store.read(lambda tx: tx.tokens.find_by_digest(digest))
        return row is not None and (row.expires_at is None or row.expires_at > now)

    def operator(self) -> Callable[[Request], Awaitable[Viewer]]:
        """A FastAPI dependency that admits only the operator. It raises Unproven or ScopeMissing."""

        async def check(request: Request) -> Viewer:
            viewer = await self.viewer(request)
            if not viewer.is_operator:
                raise _refusal(viewer)
            require_own_page(request)
            return viewer

        return check

    async def log_in(self, text: str) -> str:
        """Start a browser session with the operator's token. Returns the cookie's value. Raises Unproven."""
        refused = Unproven("this token is not the operator's; the first start of the catalogue printed it, once")
        if not await self._operator(text):
            raise refused
        cookie = secrets.token_urlsafe(32)

        def work(tx: CatalogueTransaction) -> None:
            token = tx.tokens.find_by_digest(_digest(text), lock=True)
            if token is None or token.kind != "token":  # ended meanwhile, with every session; or a session itself
                raise refused
            until = tx.now + self._session_seconds
            tx.tokens.sweep(tx.now)
            tx.tokens.add(
                Token(digest=_digest(cookie), name="session", kind="session", created_at=tx.now, expires_at=until)
            )

        await self._store.write(work)
        return cookie

    async def log_in_person(self, subject: str, *, until: float) -> tuple[str, int]:
        """Start a browser session of a person whom a provider named. Returns the cookie's value and its seconds.

        The session ends at `until` at the latest.
        """
        cookie = secrets.token_urlsafe(32)

        def work(tx: CatalogueTransaction) -> float:
            ends = min(until, tx.now + self._session_seconds)
            tx.tokens.sweep(tx.now)
            tx.tokens.add(
                Token(digest=_digest(cookie), name=subject, kind="person", created_at=tx.now, expires_at=ends)
            )
            return ends - tx.now

        return cookie, max(1, int(await self._store.write(work)))

    async def end_person(self, subject: str) -> None:
        """End the sessions of a person."""
        await self._store.write(lambda tx: tx.tokens.end_person(subject))

    async def log_out(self, cookie: str) -> None:
        await self._store.write(lambda tx: tx.tokens.remove(_digest(cookie)))


def replace_token(tx: CatalogueTransaction, file: Path | None) -> str:
    """Replace the operator's token, as `make_token`.

    Raises WrongState if no token exists: the catalogue never started.
    """
    if not tx.tokens.count():
        raise WrongState(
            "no catalogue has served from this database yet, so that there is no token to be replaced; the first start "
            "makes one (HANSE_ADMIN_TOKEN_FILE says where it is put)"
        )
    return make_token(tx, file)


def make_token(tx: CatalogueTransaction, file: Path | None) -> str:
    """Make the operator's token and end all tokens and sessions. Returns its text, also written to `file` if given."""
    text = secrets.token_urlsafe(32)
    tx.tokens.end_all()
    tx.tokens.add(Token(digest=_digest(text), name="admin", kind="token", created_at=tx.now, expires_at=None))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write(file, text + "\n")  # inside the transaction: no token that nobody can read
    return text


def require_own_page(request: Request) -> None:
    """A cookie travels by itself, so another site's form could send it: only our own pages may change anything."""
    by_cookie = "authorization" not in request.headers
    same = request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
    if by_cookie and request.method not in ("GET", "HEAD") and not same:
        raise ScopeMissing("a change with the session cookie must come from the catalogue's own pages")


def _refusal(viewer: Viewer) -> Unproven | ScopeMissing:
    if viewer.id:
        return ScopeMissing("expected the operator's token, came a participant's; ask the operator")
    return Unproven("expected `Authorization: Bearer <operator's token>`; the first start printed it, once")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
