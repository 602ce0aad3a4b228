"""Sign-on of people: sessions of those who logged in at a provider (`identity.openid.login` checks the login).

A session lasts no longer than the ID token, and ends with a back-channel logout of the provider. A login takes from the
person's personal access tokens the scopes that the person's roles do not give any more. Refusals keep their
reason for our log; the browser gets none.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connector.errors import Invalid, Unproven, harmless
from connector.events import RequestRefused, SessionEnded, SessionStarted, TokenRevoked
from connector.identity.openid.issuer_client import FAILED
from connector.identity.openid.login import FinishedLogin, LoginClient, Person
from connector.infra.http.form import parse_form
from connector.management.sign_on.auth import digest_of
from connector.management.sign_on.sign_on_file import ROLES
from connector.management.sign_on.workloads import GRANT
from connector.store import Store, Transaction
from connector.store.tables import SignOnSession

_NO_ROLE = "its owner has none of its scopes any more"
ATTEMPT_COOKIE = "hanse_sign_on"
ID_TYPE = "urn:ietf:params:oauth:token-type:id_token"
_ID_TOKEN_MAX = 16 * 2**10
_SESSIONS_MAX = 50  # of one person


@dataclass(frozen=True, slots=True)
class Login:
    """A person who has logged in: the session's text, until when it holds, and the page to show."""

    session: str
    seconds: int
    to: str
    scopes: Sequence[str]


class SignOn:
    """Sessions of people at the management API."""

    def __init__(self, store: Store, logins: LoginClient) -> None:
        self._store = store
        self._logins = logins
        self.providers = logins.providers

    async def begin(self, name: str, *, to: str) -> tuple[str, str]:
        """Begin a login; return the provider's address for the browser, and the attempt for its cookie.

        Raises: Absent for an unknown provider; Unproven without a reason, which is recorded.
        """
        self._logins.client(name)
        try:
            return await self._logins.begin(name, to=to)
        except FAILED as error:
            raise await self._refuse(name, error) from error

    async def finish(self, name: str, query: Mapping[str, str], cookie: str) -> Login:
        """Check the provider's response and start a session.

        Raises: Absent for an unknown provider; Unproven without a reason, which is recorded.
        """
        self._logins.client(name)
        try:
            finished = await self._logins.finish(name, query, cookie)
        except FAILED as error:
            raise await self._refuse(name, error) from error
        session = await self._start(finished)
        seconds = max(1, int(finished.person.expires_at - time.time()))
        return Login(session, seconds, finished.to, _list_scopes(finished.person))

    async def exchange(self, body: bytes) -> Login:
        """Start a session for the ID token in a form, which `hanse login` got from a provider (RFC 8693).

        Raises: Unproven without a reason, which is recorded.
        """
        try:
            form = parse_form(body)
            if form.get("grant_type") != GRANT or not 0 < len(form.get("subject_token", "")) <= _ID_TOKEN_MAX:
                raise Invalid(f"expected the grant {GRANT} with an ID token of at most {_ID_TOKEN_MAX} characters")
            finished = await self._logins.read_id_token(form["subject_token"])
            seconds = int(finished.person.expires_at - time.time())
            if seconds < 1:
                raise Invalid("expected an ID token that lasts, got one that ends now")
        except FAILED as error:
            raise await self._refuse("", error) from error
        return Login(await self._start(finished), seconds, finished.to, _list_scopes(finished.person))

    async def revoke(self, session: str) -> None:
        """End a session if there is one. Its provider is not told: the caller revokes its own token there."""
        await self._remove(session)

    async def end(self, session: str) -> str:
        """End a session; return the provider's logout address for the browser, or an empty text."""
        row = await self._remove(session)
        return "" if row is None else await self._logins.logout_url(row.provider, row.id_token)

    async def end_by_provider(self, name: str, body: bytes) -> None:
        """End the sessions that the logout token of a form names (OpenID Connect Back-Channel Logout 1.0, 2.5).

        Raises: Absent for an unknown provider; Unproven without a reason, which is recorded.
        """
        self._logins.client(name)
        try:
            named = await self._logins.read_logout_token(name, parse_form(body).get("logout_token", ""))
        except FAILED as error:
            raise await self._refuse(name, error) from error

        def work(tx: Transaction) -> None:
            for row in tx.sessions.list_of(provider=name, subject=named.subject, sid=named.sid):
                _end(tx, row, reason="logged out at the provider")

        await self._store.write(work)

    async def _start(self, finished: FinishedLogin) -> str:
        provider, person, text = finished.provider, finished.person, secrets.token_urlsafe(32)
        scopes = _list_scopes(person)

        def work(tx: Transaction) -> None:
            tx.sessions.remove_over(tx.now)
            for old in tx.sessions.list_newest(person.subject)[_SESSIONS_MAX - 1 :]:
                _end(tx, old, reason=f"more than {_SESSIONS_MAX} sessions of one person")
            tx.sessions.add(
                SignOnSession(
                    digest=digest_of(text), provider=provider.name, subject=person.subject, sid=person.sid,
                    name=person.name, scopes=scopes, id_token=finished.sealed_id_token,
                    created_at=tx.now, expires_at=person.expires_at,
                )
            )  # fmt: skip
            for row in tx.tokens.narrow(person.subject, scopes):
                about = {"token": row.name, "personal": True}
                tx.publish(TokenRevoked(actor=person.name, subject=person.subject, reason=_NO_ROLE, detail=about))
            tx.publish(
                SessionStarted(
                    actor=person.name,
                    subject=person.subject,
                    detail={"provider": provider.name, "roles": list(person.roles)},
                )
            )

        await self._store.write(work)
        return text

    async def _remove(self, session: str) -> SignOnSession | None:
        def work(tx: Transaction) -> SignOnSession | None:
            row = tx.sessions.find(digest_of(session))
            if row is not None:
                _end(tx, row, reason="logged out")
            return row

        return await self._store.write(work)

    async def _refuse(self, name: str, error: BaseException) -> Unproven:
        """Record why a login failed; return the error for the browser, which has no reason."""
        reason = harmless(str(error) or type(error).__name__)[:500]
        await self._store.record_refusal(
            RequestRefused(
                actor="unknown",
                outcome="refused",
                code="sign_on_failed",
                reason=f"{type(error).__name__}: {reason}",
                detail={"provider": name} if name else {},
            )
        )
        return Unproven("sign-on failed; try again, or ask the operator, whose log has the reason")


def _list_scopes(person: Person) -> list[str]:
    return sorted({scope for role in person.roles for scope in ROLES[role]})


def _end(tx: Transaction, row: SignOnSession, *, reason: str) -> None:
    tx.sessions.remove(row)
    tx.publish(SessionEnded(actor=row.name, subject=row.subject, reason=reason, detail={"provider": row.provider}))
