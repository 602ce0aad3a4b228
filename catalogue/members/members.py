"""Service that admits, lists, suspends and removes members. Independent of the crawler."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from catalogue.crawl.freshness import Timing, state_of
from catalogue.crawl.namespaces import are_alike
from catalogue.crawl.sanitize import is_writable
from catalogue.issuer.membership import ask_for_membership, follow_change, follow_removal
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import CrawlState, Issuance, IssuedCredential, Member
from connector.errors import AlreadyExists, Invalid, PeerNonsense, PeerUnreachable, Unproven, WrongState
from connector.identity.did import address_of
from connector.infra.net.http_client import HttpClient
from connector.setting_types import NAME, address, did, port_hint

_STATUS = ("active", "suspended")
_DOCUMENT_MAX = 64 * 2**10
_TEXT_MAX = 300
_TOLD = ("id", "name", "title", "role", "country", "url", "status")
_ASKED_FOR = ("role", "country")  # what offers may ask of a member


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What a participant that wants to join says of itself, and the operator of its `status`. An empty `url` is the
    root of its DID's address."""

    id: str
    name: str
    title: str = ""
    role: str = "participant"
    country: str = ""
    url: str = ""
    status: str = "active"


class Members:
    """The members of the data space. After every commit `on_change` runs to its end, then `wake` is called; before
    these `stop`, with the DID of a member that is suspended or removed."""

    def __init__(
        self,
        store: CatalogueStore,
        net: HttpClient,
        settings: CatalogueSettings,
        *,
        on_change: Callable[[], Awaitable[None]] | None = None,
        wake: Callable[[], None] | None = None,
        stop: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._net, self._settings = store, net, settings
        self._on_change, self._wake, self._stop = on_change, wake, stop

    async def join(self, application: Application) -> Member:
        """Admit a participant whose DID document can be read and is its own.

        Invalid for facts that do not fit, AlreadyExists for a DID or name that is taken, PeerNonsense or
        PeerUnreachable where the DID document is missing or has another id.
        """
        wanted = self.check_application(application)
        await self._store.read(lambda tx: refuse_taken(tx, wanted))  # before a request to another server
        await self.check_did_document(wanted.id)

        def work(tx: CatalogueTransaction) -> Member:
            refuse_taken(tx, wanted)
            member = Member(
                **{field: getattr(wanted, field) for field in _TOLD},
                reason="",
                joined_at=tx.now,
                changed_at=tx.now,
            )
            tx.members.add(member)
            tx.members.add(_fresh_source(member.id, tx.now))
            tx.members.forget_etags()
            tx.entries.touch_selective()
            tx.members.bump_revision()
            if member.status == "active":
                ask_for_membership(tx, member.id, self._settings.issuer_types)
            return member

        member = await self._store.write(work)
        await self._notify()
        return member

    async def list(self) -> list[Member]:
        return list(await self._store.read(lambda tx: tx.members.list_all()))

    async def change(self, key: str, *, changes: dict[str, str]) -> Member:
        """Change facts or status of a member; the search follows. Absent, Invalid."""
        _check(changes)

        def work(tx: CatalogueTransaction) -> Member:
            member = tx.members.of(key, lock=True)
            differs = any(getattr(member, field) != changes.get(field, getattr(member, field)) for field in _ASKED_FOR)
            for field, value in changes.items():
                setattr(member, field, value.rstrip("/") if field == "url" else value)
            member.changed_at = tx.now
            if "url" in changes:
                tx.members.forget_etags()
            elif differs:
                tx.members.lock_sources()
            source = tx.members.get_source(member.id, lock=True)
            if source is not None:
                source.next_at = tx.now
                if changes.get("status") == "active":  # nobody has visited it since: as old as it is
                    failures = max(1, source.failures)
                    source.state = state_of(
                        Timing.of(self._settings), failures=failures, last_ok=source.last_ok, now=tx.now
                    )
            tx.entries.touch_all(member.id)
            if differs:
                tx.entries.touch_selective()
            tx.members.bump_revision()
            follow_change(tx, member, differs=differs, types=self._settings.issuer_types)
            return member

        member = await self._store.write(work)
        await self._notify(ended="" if member.status == "active" else member.id)
        return member

    async def issue(self, key: str) -> Member:
        """Have the issuer deliver a new membership credential to an active member. Absent, Invalid."""
        types = self._settings.issuer_types
        if not types:
            raise Invalid("expected an issuer, this catalogue is none; name types in HANSE_ISSUER_TYPES")

        def work(tx: CatalogueTransaction) -> Member:
            member = tx.members.of(key, lock=True)
            if member.status != "active":
                raise Invalid(f"{member.name} is {member.status}; lift the suspension first")
            if tx.issuances.count_open(member.id):
                raise WrongState(f"{member.name} has a delivery under way; wait for its end")
            ask_for_membership(tx, member.id, types)
            return member

        member = await self._store.write(work)
        await self._notify()
        return member

    async def credentials(self, key: str) -> tuple[Sequence[IssuedCredential], Sequence[Issuance]]:
        """A member's credentials and requests, newest first, also of a DID whose membership ended."""

        def work(tx: CatalogueTransaction) -> tuple[Sequence[IssuedCredential], Sequence[Issuance]]:
            member = tx.members.find(key)
            holder = key if member is None else member.id
            found = tx.issuances.list_credentials(holder), tx.issuances.list_of(holder)
            if member is None and not any(found):
                tx.members.of(key)
            return found

        return await self._store.read(work)

    async def remove(self, key: str) -> None:
        """End a membership: its entries leave the search at once, and their addresses say why."""

        def work(tx: CatalogueTransaction) -> str:
            member = tx.members.of(key, lock=True)
            tx.members.get_source(member.id, lock=True)
            tx.entries.withdraw_all(member.id, now=tx.now, why="the operator ended the membership of its provider")
            tx.members.remove(member)
            tx.members.bump_revision()
            follow_removal(tx, member.id)
            return member.id

        await self._notify(ended=await self._store.write(work))

    def check_application(self, application: Application) -> Application:
        """Return an application with what it leaves out filled in. Raises: Invalid, AlreadyExists for the operator."""
        try:
            document = address_of(did(application.id), insecure_http=self._net.guard.insecure_http)
        except (Unproven, ValueError) as error:
            raise Invalid(str(error)) from error
        url = (application.url or document.removesuffix("/did.json").removesuffix("/.well-known")).rstrip("/")
        made = replace(
            application,
            title=(application.title or application.name)[:_TEXT_MAX],
            role=application.role[:_TEXT_MAX],
            url=url,
        )
        _check({field: getattr(made, field) for field in _TOLD if field != "id"})
        if application.name == self._settings.name or are_alike(application.id, self._settings.did):
            raise AlreadyExists("this is the operator itself, which is a member already")
        return made

    async def check_did_document(self, did: str) -> None:
        """Raise PeerNonsense or PeerUnreachable unless the DID document resolves and has this id."""
        url = address_of(did, insecure_http=self._net.guard.insecure_http)
        try:
            reply = await self._net.call("GET", url, max_bytes=_DOCUMENT_MAX)
        except PeerUnreachable as error:
            raise PeerUnreachable(f"{error}{port_hint(did)}") from error
        try:
            found = json.loads(reply.body) if reply.status == 200 else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("id") != did:
            came = f"status {reply.status}" if reply.status != 200 else "another document"
            raise PeerNonsense(
                f"expected the DID document of {did} at {url}, came {came}; start its connector first{port_hint(did)}"
            )

    async def _notify(self, *, ended: str = "") -> None:
        """Call the hooks after a commit. `ended`: DID of a removed or suspended member."""
        if ended and self._stop is not None:
            self._stop(ended)
        if self._on_change is not None:
            await self._on_change()
        if self._wake is not None:
            self._wake()


def refuse_taken(tx: CatalogueTransaction, wanted: Application) -> None:
    """Raise AlreadyExists if a DID or short name, or a DID almost the same, is that of a member."""
    for key in (wanted.id, wanted.name):
        if (other := tx.members.find(key)) is not None:
            raise AlreadyExists(f"{key} is a member already ({other.name}, {other.status}); change that one instead")
    for other in tx.members.list_all():
        if are_alike(other.id, wanted.id):
            raise AlreadyExists(
                f"{wanted.id} differs from {other.id} ({other.name}, {other.status}) in capitals or a default port "
                "only; change that one instead, or have the new one take another DID"
            )


def _fresh_source(member_id: str, now: float) -> CrawlState:
    return CrawlState(
        member_id=member_id, state="new", next_at=now, failures=0, last_try=None, last_ok=None, problem="", etag=""
    )


def _is_callable(url: str) -> bool:
    """Whether a visit can call what lies under this URL."""
    try:
        return bool(address(url))
    except ValueError:
        return False


_FITS: dict[str, tuple[Callable[[str], object], str]] = {
    "name": (re.compile(NAME).fullmatch, "a name like north or clinic-a"),
    "title": (str.strip, "a title for people"),
    "country": (re.compile("([A-Z]{2})?").fullmatch, "a country as two capitals (ISO 3166) or nothing"),
    "url": (_is_callable, "the http(s) URL of the member's public listener, such as https://host:8080/path in ASCII"),
    "status": (_STATUS.__contains__, f"the status {' or '.join(_STATUS)}"),
}


def _check(facts: Mapping[str, str]) -> None:
    """Invalid for the first that does not fit. Of a change what changes: else who has an unfit fact could not be
    suspended."""
    for field, value in facts.items():
        fits, expected = _FITS.get(field, (lambda _: True, "a text"))
        if not is_writable(value) or not fits(value):
            raise Invalid(f"{field}: expected {expected}, without control characters, came {value[:200]!r}")
