"""All tables. The rows are the connector's entities; there is no second set of classes.

Rows are detached after their transaction: they can be read anywhere, and changed only inside one.
Times are UTC seconds since the epoch. JSON columns hold what came or will go over the wire, unchanged.
"""

from __future__ import annotations

from typing import Any, ClassVar

import sqlalchemy
from sqlalchemy import JSON, BigInteger, Boolean, Float, Index, Integer, LargeBinary, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Table(DeclarativeBase):
    type_annotation_map: ClassVar = {
        Json: JSON,
        list[Any]: JSON,
        str: Text,
        int: BigInteger,
        float: Float,
        bytes: LargeBinary,
    }


def bare(rows: type[Table]) -> sqlalchemy.Table:
    """The table behind a class of rows, for statements without objects.

    What every read and every message needs is such a statement, built once as a constant of its module: an object
    costs several times as much as its values, and building a statement anew as much as running it.
    """
    table = rows.__table__
    assert isinstance(table, sqlalchemy.Table)
    return table


_Key = String(255)
_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts by itself only in an INTEGER key


KNOWN = text("peer_pid <> ''")  # said by the index and by who looks for a pid: without it no database uses the index


OPEN = text("state NOT IN ('FINALIZED', 'COMPLETED', 'TERMINATED')")  # as KNOWN: the index and who asks say the same


def _open_by_counterparty(table: str) -> Index:
    """How many processes a counterparty has open is counted for each new one."""
    return Index(f"{table}_open", "counterparty", "role", sqlite_where=OPEN, postgresql_where=OPEN)


def _one_per_peer_pid(table: str) -> Index:
    """A counterparty's pid names one process at most: two deliveries of a first request cannot both be taken in."""
    names = ("role", "counterparty", "peer_pid")
    return Index(f"{table}_peer", *names, unique=True, sqlite_where=KNOWN, postgresql_where=KNOWN)


class ApiToken(Table):
    """A bearer token of the management API; only its SHA-256 is kept."""

    __tablename__ = "api_token"
    name: Mapped[str] = mapped_column(_Key, primary_key=True)
    digest: Mapped[str] = mapped_column(_Key, unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]


class Dataset(Table):
    """Something that can be offered. Invisible to others until an offer is attached."""

    __tablename__ = "dataset"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)  # urn:hanse:<connector name>:<dataset name>
    name: Mapped[str] = mapped_column(_Key, unique=True)
    title: Mapped[str]
    description: Mapped[str]
    keywords: Mapped[list[Any]]
    theme: Mapped[str]
    license: Mapped[str]
    version: Mapped[str] = mapped_column(_Key)  # the current version's digest
    created_at: Mapped[float]


class DatasetVersion(Table):
    """One pinned state of a dataset: its files by digest, schema and statistics."""

    __tablename__ = "dataset_version"
    dataset_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    digest: Mapped[str] = mapped_column(_Key, primary_key=True)
    source: Mapped[Json]  # kind, options, files: [{path, size, mtime_ns, inode, device, sha256}]
    schema: Mapped[list[Any]]  # [{name, type}]
    profile: Mapped[Json]  # rows, bytes, columns: {name: statistics}; for the owner, not for the catalogue
    created_at: Mapped[float]


class Offer(Table):
    """A policy attached to a dataset. `policy` is the ODRL offer; `form` the YAML it was written in. `left_out`: the
    share of one version that its grids leave out, where its owner publishes that."""

    __tablename__ = "offer"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    dataset_id: Mapped[str] = mapped_column(_Key, index=True)
    policy: Mapped[Json]
    form: Mapped[str]
    digest: Mapped[str] = mapped_column(_Key)
    decide: Mapped[str] = mapped_column(String(16))  # auto | manual | rules
    created_at: Mapped[float]
    withdrawn_at: Mapped[float | None]
    left_out: Mapped[Json | None]


class Negotiation(Table):
    """A contract negotiation, as either side. `id` is our own pid; `peer_pid` the counterparty's, once known."""

    __tablename__ = "negotiation"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    role: Mapped[str] = mapped_column(String(16))  # consumer | provider: ours
    peer_pid: Mapped[str] = mapped_column(_Key, default="")
    counterparty: Mapped[str] = mapped_column(_Key)
    address: Mapped[str]  # base URL where the counterparty receives our messages
    state: Mapped[str] = mapped_column(String(16))
    pending: Mapped[str] = mapped_column(String(64), default="")  # our message that is not acknowledged yet
    dataset_id: Mapped[str] = mapped_column(_Key, default="")
    offer_id: Mapped[str] = mapped_column(_Key, default="")
    offer: Mapped[Json] = mapped_column(default=dict)  # the terms on the table, last sent or received, as we write them
    decide: Mapped[str] = mapped_column(String(16), default="auto")
    agreement_id: Mapped[str] = mapped_column(_Key, default="")
    # What we asked for it for, where that was said; the other side is not told before it transfers.
    purpose: Mapped[str] = mapped_column(default="", server_default="")
    code: Mapped[str] = mapped_column(_Key, default="")  # why it stands or ended as it does, for machines
    reason: Mapped[str] = mapped_column(default="")
    correlation: Mapped[str] = mapped_column(_Key, default="")
    created_at: Mapped[float]
    updated_at: Mapped[float]

    __table_args__ = (
        _one_per_peer_pid("negotiation"),
        _open_by_counterparty("negotiation"),
        Index("negotiation_state", "state"),
    )


class Agreement(Table):
    """What both sides signed. Immutable, except for its end."""

    __tablename__ = "agreement"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)  # ours; a connector may agree with itself
    negotiation_id: Mapped[str] = mapped_column(_Key, index=True)
    dataset_id: Mapped[str] = mapped_column(_Key, index=True)
    offer_id: Mapped[str] = mapped_column(_Key, default="")
    provider: Mapped[str] = mapped_column(_Key)
    consumer: Mapped[str] = mapped_column(_Key)
    address: Mapped[str]  # the counterparty's protocol base
    policy: Mapped[Json]
    digest: Mapped[str] = mapped_column(_Key)
    signed_at: Mapped[float]
    # Of our dataset that we signed for; none where it is the other side's, or signed before this was kept.
    version: Mapped[str] = mapped_column(_Key, default="", server_default="")
    finalized: Mapped[bool] = mapped_column(Boolean, default=False)
    ended_at: Mapped[float | None]
    end_reason: Mapped[str] = mapped_column(default="")

    __table_args__ = (Index("agreement_under", "offer_id", "consumer", "ended_at"),)


class Transfer(Table):
    """A transfer process, as either side. `data_address` holds the ticket at the consumer, never at the provider."""

    __tablename__ = "transfer"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    peer_pid: Mapped[str] = mapped_column(_Key, default="")
    counterparty: Mapped[str] = mapped_column(_Key)
    address: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    pending: Mapped[str] = mapped_column(String(64), default="")  # our message that is not acknowledged yet
    agreement_id: Mapped[str] = mapped_column(_Key, index=True)
    format: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(default="")
    data_address: Mapped[Json] = mapped_column(default=dict)
    suspended_by: Mapped[str] = mapped_column(String(16), default="")
    generation: Mapped[int] = mapped_column(default=0)  # raised at each start and stop: older tickets are void
    code: Mapped[str] = mapped_column(_Key, default="")
    reason: Mapped[str] = mapped_column(default="")
    correlation: Mapped[str] = mapped_column(_Key, default="")
    created_at: Mapped[float]
    updated_at: Mapped[float]

    __table_args__ = (
        _one_per_peer_pid("transfer"),
        _open_by_counterparty("transfer"),
        Index("transfer_state", "state"),
    )


class Received(Table):
    """What a provider pushed to us under a transfer: checked, whole, and kept in a file until somebody removes it."""

    __tablename__ = "received"
    transfer_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    rows: Mapped[int]
    batches: Mapped[int]
    bytes: Mapped[int]
    whole: Mapped[bool] = mapped_column(Boolean)  # its sender says so in an end record; streams of others have none
    digest: Mapped[str] = mapped_column(_Key)  # as the end record has it
    received_at: Mapped[float]
    removed_at: Mapped[float | None]


class Grant(Table):
    """The mutable side of an agreement at its provider: used quantities, and whether it still holds."""

    __tablename__ = "grant_state"
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    revoked_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="")
    generation: Mapped[int] = mapped_column(default=0)
    queries: Mapped[int] = mapped_column(default=0)
    day: Mapped[int] = mapped_column(default=0)  # days since the epoch, UTC, that queries_today counts
    queries_today: Mapped[int] = mapped_column(default=0)
    rows: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(default=0)
    epsilon_micro: Mapped[int] = mapped_column(default=0)  # of the privacy budget, in millionths


class PrivateAnswer(Table):
    """An answer with noise, which the same question gets again: a second draw would cost a second time. Beside it,
    under the question with a `?`, the read that was charged for it last."""

    __tablename__ = "private_answer"
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    question: Mapped[str] = mapped_column(_Key, primary_key=True)  # of version, permission and what is asked
    epsilon_micro: Mapped[int]
    answer: Mapped[bytes]  # Arrow stream of the noised table
    answered_at: Mapped[float]


class OpenRead(Table):
    """A read whose start is in the log and whose end is not; what a crash leaves is closed later."""

    __tablename__ = "open_read"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)  # the read's id
    instance: Mapped[str] = mapped_column(_Key, index=True)  # whose it is: a process's name, and which run of it
    body: Mapped[Json]  # the fields of its start that its end repeats
    rows: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(default=0)


class ProcessLease(Table):
    """A run of a process that is alive, or was until then, by the database's clock; there is none on SQLite."""

    __tablename__ = "process_lease"
    run: Mapped[str] = mapped_column(_Key, primary_key=True)  # as in `OpenRead.instance`
    until: Mapped[float]


class ReadPlace(Table):
    """A read's place among those that an agreement allows at once, over every process; nobody's after `until`, by the
    database's clock."""

    __tablename__ = "read_place"
    read_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True, index=True)
    until: Mapped[float]


class Attestation(Table):
    """What the owner knows and vouches for: one value of one fact about a participant, or about a dataset."""

    __tablename__ = "attestation"
    subject: Mapped[str] = mapped_column(_Key, primary_key=True)  # a DID, or a dataset's id
    fact: Mapped[str] = mapped_column(_Key, primary_key=True)  # short key: ds:permit
    value: Mapped[str] = mapped_column(_Key, primary_key=True)
    valid_until: Mapped[float | None]
    evidence: Mapped[str]  # where the owner has it from
    recorded_by: Mapped[str] = mapped_column(_Key)
    recorded_at: Mapped[float]


class DutyEvidence(Table):
    """Somebody says that a duty of an agreement was fulfilled, and what shows it."""

    __tablename__ = "duty_evidence"
    id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    agreement_id: Mapped[str] = mapped_column(_Key, index=True)
    role: Mapped[str] = mapped_column(String(16))  # ours under the agreement
    path: Mapped[str] = mapped_column(_Key)  # /obligation/0 or /permission/0/duty/0
    given_by: Mapped[str] = mapped_column(String(16))  # provider | consumer: whose word it is
    actor: Mapped[str] = mapped_column(_Key)
    fulfilled_at: Mapped[float]
    evidence: Mapped[str]


class DutyWatch(Table):
    """Where a duty stood when it was last looked at: a change is told once."""

    __tablename__ = "duty_watch"
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    path: Mapped[str] = mapped_column(_Key, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    told_at: Mapped[float]


class Outbox(Table):
    """A message to be delivered, at least once, in order of `id` within its process."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    process: Mapped[str] = mapped_column(_Key, index=True)  # our pid, or a webhook's id
    kind: Mapped[str] = mapped_column(String(16))  # negotiation | transfer | webhook
    address: Mapped[str]  # base URL
    path: Mapped[str]
    audience: Mapped[str] = mapped_column(_Key, default="")
    circle: Mapped[str] = mapped_column(String(16), default="known")  # with whom it shares places (`dsp.circles`)
    host: Mapped[str] = mapped_column(_Key, default="")  # of the address
    message: Mapped[Json]
    attempts: Mapped[int] = mapped_column(default=0)
    not_yet: Mapped[int] = mapped_column(default=0)  # attempts that were answered with "not known here", so far
    due_at: Mapped[float] = mapped_column(index=True)
    lease_until: Mapped[float] = mapped_column(default=0.0)
    lease_owner: Mapped[str] = mapped_column(_Key, default="")
    created_at: Mapped[float]

    # An id is never used twice: a delivery that ends late must not settle another message (SQLite would reuse it).
    __table_args__ = ({"sqlite_autoincrement": True},)


class Inbox(Table):
    """A message that was taken in, so that its repeat has no second effect."""

    __tablename__ = "inbox"
    sender: Mapped[str] = mapped_column(_Key, primary_key=True)
    message_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    digest: Mapped[str] = mapped_column(_Key)
    received_at: Mapped[float] = mapped_column(index=True)


class Begun(Table):
    """How fast a counterparty begins processes of a kind: the time ahead is full until then (`store.admissions`)."""

    __tablename__ = "begun"
    counterparty: Mapped[str] = mapped_column(_Key, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    full_until: Mapped[float] = mapped_column(index=True)


class Webhook(Table):
    """Where an operator wants state changes delivered; `secret` signs each delivery."""

    __tablename__ = "webhook"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    url: Mapped[str]
    secret: Mapped[str]
    kinds: Mapped[list[Any]]
    created_at: Mapped[float]


class AuditPending(Table):
    """Events of committed changes that the sequencer has not numbered yet."""

    __tablename__ = "audit_pending"
    id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    ts: Mapped[float]
    body: Mapped[Json]
    origin: Mapped[str] = mapped_column(
        _Key, default="", server_default=""
    )  # the process that committed it, or its transaction


class AuditEvent(Table):
    """One record of the log. The tree holds only a salted commitment to `body` (canonical JSON text)."""

    __tablename__ = "audit_event"
    idx: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    ts: Mapped[float] = mapped_column(index=True)
    kind: Mapped[str] = mapped_column(String(64), index=True)
    actor: Mapped[str] = mapped_column(_Key)
    agreement: Mapped[str] = mapped_column(_Key, default="")
    dataset: Mapped[str] = mapped_column(_Key, default="")
    outcome: Mapped[str] = mapped_column(String(16), default="ok")
    body: Mapped[str]
    salt: Mapped[bytes]
    origin: Mapped[str] = mapped_column(_Key, default="", server_default="")  # as above; in no hash, shown to nobody

    __table_args__ = (
        Index("audit_actor", "actor", "ts"),
        Index("audit_agreement", "agreement", "ts"),
        Index("audit_dataset", "dataset", "ts"),
    )


class AuditTile(Table):
    """256 hashes of the Merkle tree at a level (C2SP tlog-tiles); the last tile of a level may be partial."""

    __tablename__ = "audit_tile"
    level: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    data: Mapped[bytes]


class AuditCheckpoint(Table):
    """A signed tree head (C2SP tlog-checkpoint) for the first `size` records."""

    __tablename__ = "audit_checkpoint"
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    note: Mapped[str]
    created_at: Mapped[float]
