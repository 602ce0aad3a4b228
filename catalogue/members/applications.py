"""Service for applications: a participant asks to join, the operator checks its DID and connector and answers.

Strangers apply, so nothing of theirs is fetched before the operator asks for it, and only so many wait at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from catalogue.members.members import Application, Members, refuse_taken
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import JoinApplication
from connector.errors import AlreadyExists, ConnectorError, Invalid, Limited, WrongState
from connector.infra.net.http_client import HttpClient

KEPT_SECONDS = 90 * 86_400
CONTACT_MAX, MESSAGE_MAX, REASON_MAX = 300, 2_000, 1_000
_VERSIONS = "/.well-known/dspace-version"  # Dataspace Protocol 2025-1, section 4.3
_ANSWER_MAX = 64 * 2**10
_TAKEN = "expected a DID and short name that are new here, got one that is in use or waits; write to the operator"


class ApplicationState(StrEnum):
    """What became of an application."""

    WAITING = "waiting"
    ADMITTED = "admitted"
    DECLINED = "declined"


@dataclass(frozen=True, slots=True)
class ApplicationView:
    """An application and its state. It is admitted once a member has its DID."""

    row: JoinApplication
    state: ApplicationState


@dataclass(frozen=True, slots=True)
class ApplicationCheck:
    """What the operator's check found: problems of the DID document and of the connector; empty: there is none."""

    did_problem: str
    connector_problem: str

    @property
    def passed(self) -> bool:
        return not (self.did_problem or self.connector_problem)


class Applications:
    """Applications of participants. `members` checks facts and admits."""

    def __init__(self, store: CatalogueStore, members: Members, net: HttpClient, settings: CatalogueSettings) -> None:
        self._store, self._members, self._net, self._settings = store, members, net, settings

    @property
    def are_open(self) -> bool:
        """Whether this catalogue takes applications."""
        return self._settings.applications_max > 0

    async def apply(self, application: Application, *, contact: str, message: str) -> JoinApplication:
        """Keep an application. Its `key` is the secret address under which the applicant reads the answer.

        Raises: Invalid for facts that do not fit. AlreadyExists for a DID or name of a member, or of an application
        that waits. Limited if too many wait.
        """
        if not self.are_open:
            raise WrongState("this data space takes no applications here; write to its operator")
        wanted = self._members.check_application(application)
        contact = _check_text("contact", contact, most=CONTACT_MAX, least=3)
        message = _check_text("message", message, most=MESSAGE_MAX)

        def work(tx: CatalogueTransaction) -> JoinApplication:
            tx.applications.forget(tx.now - KEPT_SECONDS)
            if tx.applications.find_waiting(wanted.id, wanted.name) is not None or _is_taken(tx, wanted):
                raise AlreadyExists(_TAKEN)
            if tx.applications.count_waiting() >= self._settings.applications_max:
                raise Limited("too many applications wait for the operator; try again in some days, or write to it")
            row = JoinApplication(
                key=secrets.token_urlsafe(24),
                did=wanted.id,
                name=wanted.name,
                title=wanted.title,
                role=wanted.role,
                country=wanted.country,
                url=wanted.url,
                contact=contact,
                message=message,
                created_at=tx.now,
                declined_at=None,
                reason="",
            )
            tx.applications.add(row)
            return row

        return await self._store.write(work)

    async def list_waiting(self) -> Sequence[JoinApplication]:
        """Return the applications without an answer, the oldest first."""
        return await self._store.read(lambda tx: tx.applications.list_waiting())

    async def find(self, key: str) -> ApplicationView:
        """Return an application by its key. Raises: Absent."""

        def work(tx: CatalogueTransaction) -> ApplicationView:
            row = tx.applications.of(key)
            return ApplicationView(row, _state_of(tx, row))

        return await self._store.read(work)

    async def check(self, key: str) -> ApplicationCheck:
        """Fetch the applicant's DID document and ask its connector for its protocol versions. Raises: Absent."""
        row = (await self.find(key)).row
        return ApplicationCheck(
            did_problem=await self._find_did_problem(row.did),
            connector_problem=await self._find_connector_problem(row.url),
        )

    async def admit(self, key: str) -> None:
        """Admit an applicant. Raises: Absent, WrongState for one with an answer, and what `Members.join` raises."""
        view = await self.find(key)
        _require_waiting(view)
        row = view.row
        await self._members.join(
            Application(id=row.did, name=row.name, title=row.title, role=row.role, country=row.country, url=row.url)
        )

    async def decline(self, key: str, *, reason: str) -> None:
        """Decline an application; the applicant reads the reason. Raises: Absent, Invalid, WrongState."""
        reason = _check_text("reason", reason, most=REASON_MAX, least=3)

        def work(tx: CatalogueTransaction) -> None:
            row = tx.applications.of(key, lock=True)
            _require_waiting(ApplicationView(row, _state_of(tx, row)))
            row.declined_at, row.reason = tx.now, reason

        await self._store.write(work)

    async def _find_did_problem(self, did: str) -> str:
        try:
            await self._members.check_did_document(did)
        except ConnectorError as error:
            return error.message
        return ""

    async def _find_connector_problem(self, url: str) -> str:
        try:
            reply = await self._net.call("GET", url + _VERSIONS, max_bytes=_ANSWER_MAX)
        except ConnectorError as error:
            return error.message
        if reply.status != 200:
            return f"expected the protocol versions at {url}{_VERSIONS}, came status {reply.status}"
        return ""


def _is_taken(tx: CatalogueTransaction, wanted: Application) -> bool:
    """Whether a member has this DID or short name. A stranger does not learn which, as suspended ones are not shown."""
    try:
        refuse_taken(tx, wanted)
    except AlreadyExists:
        return True
    return False


def _state_of(tx: CatalogueTransaction, row: JoinApplication) -> ApplicationState:
    if row.declined_at is not None:
        return ApplicationState.DECLINED
    return ApplicationState.WAITING if tx.members.find(row.did) is None else ApplicationState.ADMITTED


def _require_waiting(view: ApplicationView) -> None:
    if view.state is not ApplicationState.WAITING:
        raise WrongState(f"expected an application that waits, this one is {view.state}")


def _check_text(field: str, text: str, *, most: int, least: int = 0) -> str:
    """Return a text of the form, stripped. Raises: Invalid for one that is too short, too long or not printable."""
    text = text.replace("\r\n", "\n").strip()
    printable = text.replace("\n", " ").isprintable()
    if not least <= len(text) <= most or not printable:
        raise Invalid(f"{field}: expected {least} to {most} printable characters, came {len(text)}")
    return text
