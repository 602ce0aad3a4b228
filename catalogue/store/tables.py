"""All tables of the catalogue. Rows are its entities. Times are UTC seconds since the epoch.

After its transaction a row is detached: it can be read anywhere and changed only inside a transaction.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Float, Index, Integer, String, Text, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from connector.infra.database.witnessed_logs import WitnessedLogColumns

Json = dict[str, Any]


class CatalogueTable(DeclarativeBase):
    type_annotation_map: ClassVar = {Json: JSON, list[Any]: JSON, str: Text, int: BigInteger, float: Float}


_Id = String(1024)  # bytes too: readers refuse longer ids, so that a B-tree page can hold them
_Key = String(255)
MARKED_STALE = -1  # special value of `misses`: stale, although no complete visit missed it
_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates values only for an INTEGER key


class Token(CatalogueTable):
    """A bearer token of the operator, or a browser session of one; only its SHA-256 is stored."""

    __tablename__ = "token"
    digest: Mapped[str] = mapped_column(_Key, primary_key=True)
    name: Mapped[str] = mapped_column(_Key)
    kind: Mapped[str] = mapped_column(String(16))  # token | session | person, named by issuer and subject
    created_at: Mapped[float]
    expires_at: Mapped[float | None]


class Member(CatalogueTable):
    """A participant that the operator admitted. `id` is its DID, `url` the root of its public listener."""

    __tablename__ = "member"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(_Key, unique=True)
    title: Mapped[str]
    role: Mapped[str]
    country: Mapped[str] = mapped_column(String(8))
    url: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))  # active | suspended
    reason: Mapped[str]
    joined_at: Mapped[float]
    changed_at: Mapped[float]


class JoinApplication(CatalogueTable):
    """A participant's application to join. `key` is the secret part of the address of its answer."""

    __tablename__ = "application"
    key: Mapped[str] = mapped_column(_Key, primary_key=True)
    did: Mapped[str] = mapped_column(_Id, index=True)
    name: Mapped[str] = mapped_column(_Key)
    title: Mapped[str]
    role: Mapped[str]
    country: Mapped[str] = mapped_column(String(8))
    url: Mapped[str]
    contact: Mapped[str]
    message: Mapped[str]
    created_at: Mapped[float]
    declined_at: Mapped[float | None]
    reason: Mapped[str]


class CrawlState(CatalogueTable):
    """The crawl state of one member's connector. Attempts are counted here, so that a restart keeps them."""

    __tablename__ = "source"
    member_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))  # new | active | stale | unreachable | expired
    next_at: Mapped[float] = mapped_column(index=True)
    failures: Mapped[int]
    last_try: Mapped[float | None]
    last_ok: Mapped[float | None]
    problem: Mapped[str]
    etag: Mapped[str]


class VisitRecord(CatalogueTable):
    """One visit of one connector, as the health page shows it."""

    __tablename__ = "run"
    id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    member_id: Mapped[str] = mapped_column(_Id, index=True)
    why: Mapped[str] = mapped_column(String(16))  # schedule | operator | member
    started_at: Mapped[float]
    ended_at: Mapped[float]
    outcome: Mapped[str] = mapped_column(String(16))  # complete | unchanged | partial | failed
    problem: Mapped[str]
    counts: Mapped[Json]  # pages, bytes, datasets, new, changed, missing, withdrawn, skipped
    skipped: Mapped[list[Any]]  # [{dataset, problem}], the first few


class EntryRow(CatalogueTable):
    """The last good copy of one dataset's description. `withdrawn_at` makes it a tombstone that says why."""

    __tablename__ = "entry"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    member_id: Mapped[str] = mapped_column(_Id, index=True)
    raw: Mapped[str]  # as the provider sent it; empty in a tombstone
    content: Mapped[Json]  # as catalogue.crawl.entry reads it; in a tombstone, who saw it (catalogue.search.visibility)
    reader: Mapped[int]  # version of the reading
    digest: Mapped[str] = mapped_column(_Key)
    first_seen: Mapped[float]
    modified_at: Mapped[float]
    last_seen: Mapped[float]
    misses: Mapped[int]  # complete visits in a row that did not list it, or DOUBTED; the entry is stale unless 0
    withdrawn_at: Mapped[float | None]
    withdrawn_why: Mapped[str]
    seq: Mapped[int]  # of its last change; of a tombstone, of its withdrawal
    selective: Mapped[bool] = mapped_column(server_default=false())  # has an offer for some members, by what they are

    __table_args__ = (Index("ix_entry_seq", "seq"),)


class MemberLog(WitnessedLogColumns, CatalogueTable):
    """A member's audit log that the catalogue is a witness for."""


class Counter(CatalogueTable):
    """The change number. Its one row is locked until commit, so numbers become visible in order."""

    __tablename__ = "counter"
    name: Mapped[str] = mapped_column(_Key, primary_key=True)
    value: Mapped[int]


class Issuance(CatalogueTable):
    """A request for credentials, of a member or (at its admission) of ours for it, and the delivery that answers it.

    `id` is the protocol's issuerPid. Attempts are counted here, so that a restart keeps them.
    """

    __tablename__ = "issuance"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    holder: Mapped[str] = mapped_column(_Id, index=True)
    holder_pid: Mapped[str] = mapped_column(_Key)
    wanted: Mapped[list[Any]]  # ids in the issuer's metadata
    status: Mapped[str] = mapped_column(String(16))  # RECEIVED | ISSUED | REJECTED
    token: Mapped[str]  # the holder's access token, which the delivery carries; empty once nothing is left to send
    created_at: Mapped[float]
    attempts: Mapped[int]
    next_at: Mapped[float | None] = mapped_column(index=True)  # of the next attempt; None: nothing is left to send
    problem: Mapped[str]


class IssuedCredential(CatalogueTable):
    """A signed credential about a member, with its place in a status list."""

    __tablename__ = "credential"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    issuance: Mapped[str] = mapped_column(_Key, index=True)
    holder: Mapped[str] = mapped_column(_Id, index=True)
    type: Mapped[str] = mapped_column(_Key)
    profile: Mapped[str] = mapped_column(String(32))
    list_kind: Mapped[str] = mapped_column(String(16))
    list_number: Mapped[int]
    list_index: Mapped[int]
    issued_at: Mapped[float]
    expires_at: Mapped[float]
    state: Mapped[str] = mapped_column(String(16))  # active | suspended | revoked
    jwt: Mapped[str]

    __table_args__ = (UniqueConstraint("list_kind", "list_number", "list_index", name="uq_credential_place"),)


class StatusList(CatalogueTable):
    """One status list. `used` places are taken; `revision` rises with every change of a bit."""

    __tablename__ = "status_list"
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # statuslist2021 | bitstring
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    used: Mapped[int]
    revision: Mapped[int]
