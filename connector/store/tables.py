"""All tables of the connector. The rows are its entities; there is no second set of classes.

After its transaction a row is detached: it can be read anywhere and changed only inside a transaction.
Times are UTC seconds since the epoch. JSON columns hold messages as they are on the wire.
"""

from __future__ import annotations

from typing import Any, ClassVar

import sqlalchemy
from sqlalchemy import JSON, BigInteger, Boolean, Float, Index, Integer, LargeBinary, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from connector.infra.database.witnessed_logs import WitnessedLogColumns
from connector.infra.http.media_type import ARROW_STREAM

Json = dict[str, Any]


class ConnectorTable(DeclarativeBase):
    """Base class of all tables."""

    type_annotation_map: ClassVar = {
        Json: JSON,
        list[Any]: JSON,
        str: Text,
        int: BigInteger,
        float: Float,
        bytes: LargeBinary,
    }


def core_table(rows: type[ConnectorTable]) -> sqlalchemy.Table:
    """The SQLAlchemy Core table of a row class, for statements without row objects.

    Each read and each message uses such statements, built once as constants of their module: a row object costs several
    times as much as its values, and building a statement costs as much as running it.
    """
    table = rows.__table__
    assert isinstance(table, sqlalchemy.Table)
    return table


_Key = String(255)
_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates values only for an INTEGER key


HAS_PEER_PID = text("peer_pid <> ''")  # condition of the index; a query must repeat it to use the index


IS_OPEN = text(
    "state NOT IN ('FINALIZED', 'COMPLETED', 'TERMINATED')"
)  # condition of the index; a query must repeat it to use the index


def _open_by_counterparty(table: str) -> Index:
    """Index for counting the open processes of a counterparty, done for each new process."""
    return Index(f"{table}_open", "counterparty", "role", sqlite_where=IS_OPEN, postgresql_where=IS_OPEN)


def _one_per_peer_pid(table: str) -> Index:
    """Unique index on a counterparty's pid, so that two deliveries of a first request create one process."""
    columns = ("role", "counterparty", "peer_pid")
    return Index(f"{table}_peer", *columns, unique=True, sqlite_where=HAS_PEER_PID, postgresql_where=HAS_PEER_PID)


class ApiToken(ConnectorTable):
    """A bearer token of the management API; only its SHA-256 is stored.

    A personal access token has an `owner`: `token:<name>` of the token that made it, or the subject of a person. Its
    name is an id, and `label` is the owner's name for it.
    """

    __tablename__ = "api_token"
    name: Mapped[str] = mapped_column(_Key, primary_key=True)
    digest: Mapped[str] = mapped_column(_Key, unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    owner: Mapped[str | None] = mapped_column(_Key, index=True)
    owner_name: Mapped[str | None]
    label: Mapped[str | None]
    last_used_at: Mapped[float | None]


class SignOnSession(ConnectorTable):
    """A session of a person who logged in at a provider; only the SHA-256 of its text is stored.

    It lasts no longer than the ID token. `subject` is issuer and subject, `sid` the provider's session if it has one.
    `id_token` is sealed (decision 88).
    """

    __tablename__ = "sign_on_session"
    digest: Mapped[str] = mapped_column(_Key, primary_key=True)
    provider: Mapped[str] = mapped_column(_Key)
    subject: Mapped[str]
    sid: Mapped[str]
    name: Mapped[str]
    scopes: Mapped[list[Any]]
    id_token: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float] = mapped_column(index=True)


class RegisteredDataset(ConnectorTable):
    """A registered dataset. Invisible to others until an offer is attached."""

    __tablename__ = "dataset"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)  # urn:hanse:<connector name>:<dataset name>
    name: Mapped[str] = mapped_column(_Key, unique=True)
    title: Mapped[str]
    description: Mapped[str]
    keywords: Mapped[list[Any]]
    theme: Mapped[str]
    license: Mapped[str]
    citation: Mapped[str] = mapped_column(Text, default="", server_default="")
    contact: Mapped[str] = mapped_column(Text, default="", server_default="")
    column_notes: Mapped[Json] = mapped_column(default=dict, server_default="{}")  # name: {description, unit, personal}
    version: Mapped[str] = mapped_column(_Key)  # the current version's digest
    created_at: Mapped[float]


class DatasetVersion(ConnectorTable):
    """One pinned state of a dataset: its files by digest, schema and statistics."""

    __tablename__ = "dataset_version"
    dataset_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    digest: Mapped[str] = mapped_column(_Key, primary_key=True)
    source: Mapped[Json]  # kind, options, files: [{path, size, mtime_ns, inode, device, sha256}]
    schema: Mapped[list[Any]]  # [{name, type}]
    profile: Mapped[Json]  # rows, bytes, columns: {name: statistics}; shown to the owner only
    created_at: Mapped[float]


class Offer(ConnectorTable):
    """A policy attached to a dataset.

    `policy` is the ODRL offer and `form` the YAML that it was written in. `left_out` is the share of one version that
    its grids leave out, if the owner publishes it.
    """

    __tablename__ = "offer"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    dataset_id: Mapped[str] = mapped_column(_Key, index=True)
    policy: Mapped[Json]
    form: Mapped[str]
    digest: Mapped[str] = mapped_column(_Key)
    decide: Mapped[str] = mapped_column(String(16))  # auto | manual | rules | four_eyes
    created_at: Mapped[float]
    withdrawn_at: Mapped[float | None]
    left_out: Mapped[Json | None]


class Negotiation(ConnectorTable):
    """A contract negotiation in either role.

    `id` is this participant's pid, `peer_pid` the counterparty's once known.
    """

    __tablename__ = "negotiation"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    role: Mapped[str] = mapped_column(String(16))  # this participant's: consumer | provider
    peer_pid: Mapped[str] = mapped_column(_Key, default="")
    counterparty: Mapped[str] = mapped_column(_Key)
    address: Mapped[str]  # base URL where the counterparty receives messages
    state: Mapped[str] = mapped_column(String(16))
    pending: Mapped[str] = mapped_column(String(64), default="")  # our message that is not acknowledged yet
    dataset_id: Mapped[str] = mapped_column(_Key, default="")
    offer_id: Mapped[str] = mapped_column(_Key, default="")
    offer: Mapped[Json] = mapped_column(default=dict)  # the terms last sent or received, in this connector's spelling
    decide: Mapped[str] = mapped_column(String(16), default="auto")
    # Issuer and subject of who asked here; empty for a token without a person; None: the counterparty asked.
    asked_by: Mapped[str | None] = mapped_column(_Key)
    agreement_id: Mapped[str] = mapped_column(_Key, default="")
    # The consumer's purpose, if given. The provider learns it with the first transfer.
    purpose: Mapped[str] = mapped_column(default="", server_default="")
    code: Mapped[str] = mapped_column(_Key, default="")  # machine-readable reason of the state
    reason: Mapped[str] = mapped_column(default="")
    correlation: Mapped[str] = mapped_column(_Key, default="")
    # What proved the counterparty's identity in its last message (`Principal.proof`).
    verified: Mapped[Json] = mapped_column(default=dict, server_default="{}")
    created_at: Mapped[float]
    updated_at: Mapped[float]

    __table_args__ = (
        _one_per_peer_pid("negotiation"),
        _open_by_counterparty("negotiation"),
        Index("negotiation_state", "state"),
    )


class Agreement(ConnectorTable):
    """An agreement that both sides signed. Immutable, except for its end."""

    __tablename__ = "agreement"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    role: Mapped[str] = mapped_column(
        String(16), primary_key=True
    )  # this participant's; a connector may agree with itself
    negotiation_id: Mapped[str] = mapped_column(_Key, index=True)
    dataset_id: Mapped[str] = mapped_column(_Key, index=True)
    offer_id: Mapped[str] = mapped_column(_Key, default="")
    provider: Mapped[str] = mapped_column(_Key)
    consumer: Mapped[str] = mapped_column(_Key)
    address: Mapped[str]  # the counterparty's protocol base
    policy: Mapped[Json]
    digest: Mapped[str] = mapped_column(_Key)
    signed_at: Mapped[float]
    # The provider's dataset version at signing. Empty at the consumer and in agreements older than this column.
    version: Mapped[str] = mapped_column(_Key, default="", server_default="")
    # What proved the counterparty's identity as the agreement became final. Empty in agreements older than this column.
    verified: Mapped[Json] = mapped_column(default=dict, server_default="{}")
    finalized: Mapped[bool] = mapped_column(Boolean, default=False)
    ended_at: Mapped[float | None]
    end_reason: Mapped[str] = mapped_column(default="")

    __table_args__ = (Index("agreement_under", "offer_id", "consumer", "ended_at"),)


class Transfer(ConnectorTable):
    """A transfer process in either role. `data_address` holds the ticket at the consumer, never at the provider."""

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
    generation: Mapped[int] = mapped_column(default=0)  # incremented at each start and stop: older tickets are invalid
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


class PushedData(ConnectorTable):
    """Data that a provider pushed under a transfer: complete, and stored in a file until it is removed.

    Arrow is checked. Of other media types, which other kinds of connectors send, rows and batches are 0.
    """

    __tablename__ = "received"
    transfer_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    rows: Mapped[int]
    batches: Mapped[int]
    bytes: Mapped[int]
    whole: Mapped[bool] = mapped_column(Boolean)  # confirmed by an end record; streams of other products have none
    digest: Mapped[str] = mapped_column(_Key)  # from the end record; of other media types that of the bytes
    media: Mapped[str] = mapped_column(_Key, default=ARROW_STREAM, server_default=ARROW_STREAM)
    received_at: Mapped[float]
    removed_at: Mapped[float | None]


class GrantState(ConnectorTable):
    """The mutable state of an agreement at its provider: usage counters and revocation."""

    __tablename__ = "grant_state"
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    revoked_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="")
    generation: Mapped[int] = mapped_column(default=0)
    queries: Mapped[int] = mapped_column(default=0)
    day: Mapped[int] = mapped_column(default=0)  # day of `queries_today`, in days since the epoch (UTC)
    queries_today: Mapped[int] = mapped_column(default=0)
    rows: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(default=0)
    epsilon_micro: Mapped[int] = mapped_column(default=0)  # spent privacy budget in millionths of epsilon


class NoisedAnswer(ConnectorTable):
    """A noised answer, returned again for the same question: a second draw would cost budget again.

    A row whose question ends in `?` holds the id of the read that was charged last.
    """

    __tablename__ = "private_answer"
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    question: Mapped[str] = mapped_column(_Key, primary_key=True)  # digest of version, permission and query
    epsilon_micro: Mapped[int]
    answer: Mapped[bytes]  # Arrow stream of the noised table
    answered_at: Mapped[float]


class OpenRead(ConnectorTable):
    """A read whose start is in the log and whose end is not. A read left by a crash is closed later."""

    __tablename__ = "open_read"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)  # the read's id
    instance: Mapped[str] = mapped_column(_Key, index=True)  # name of the process and its run
    body: Mapped[Json]  # fields of the start record that the end record repeats
    rows: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(default=0)


class ProcessLease(ConnectorTable):
    """The lease of a running process, by the database's clock. Not used on SQLite."""

    __tablename__ = "process_lease"
    run: Mapped[str] = mapped_column(_Key, primary_key=True)  # as in `OpenRead.instance`
    until: Mapped[float]


class ReadPlace(ConnectorTable):
    """A read's place among the concurrent reads of an agreement in all processes.

    Free after `until` (database's clock).
    """

    __tablename__ = "read_place"
    read_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True, index=True)
    until: Mapped[float]


class Attestation(ConnectorTable):
    """An attestation by the owner: one value of one fact about a participant or a dataset."""

    __tablename__ = "attestation"
    subject: Mapped[str] = mapped_column(_Key, primary_key=True)  # a DID, or a dataset's id
    fact: Mapped[str] = mapped_column(_Key, primary_key=True)  # short key: ds:permit
    value: Mapped[str] = mapped_column(_Key, primary_key=True)
    valid_until: Mapped[float | None]
    evidence: Mapped[str]  # source of the owner's knowledge
    recorded_by: Mapped[str] = mapped_column(_Key)
    recorded_at: Mapped[float]


class HeldCredential(ConnectorTable):
    """A credential that we hold and present to verifiers."""

    __tablename__ = "held_credential"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of the JWT
    name: Mapped[str] = mapped_column(_Key)  # the credential's own id; may be empty
    issuer: Mapped[str] = mapped_column(_Key)
    types: Mapped[list[Any]]
    expires: Mapped[float | None]
    jwt: Mapped[str]
    holder_pid: Mapped[str] = mapped_column(_Key)  # our id of the request that it answers; empty: from a file
    stored_at: Mapped[float]


class CredentialRequest(ConnectorTable):
    """A request of ours to an issuer for a credential about us."""

    __tablename__ = "credential_request"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)  # the `holderPid` of its messages
    issuer: Mapped[str] = mapped_column(_Key)
    type: Mapped[str] = mapped_column(_Key)
    status: Mapped[str] = mapped_column(
        _Key
    )  # REQUESTED, RECEIVED, ISSUED, REJECTED; FAILED: the issuer did not take it
    status_url: Mapped[str]  # of the issuer; empty until it has taken the request
    reason: Mapped[str]
    requested_by: Mapped[str] = mapped_column(_Key)
    created_at: Mapped[float]
    updated_at: Mapped[float]


class UsedToken(ConnectorTable):
    """A self-issued token that was used at one of this connector's processes, until it expires."""

    __tablename__ = "used_token"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of issuer and jti
    until: Mapped[float] = mapped_column(index=True)


class PresentedCredentials(ConnectorTable):
    """The credentials that a participant presented last, for this connector's other processes."""

    __tablename__ = "presented_credentials"
    holder: Mapped[str] = mapped_column(_Key, primary_key=True)
    at: Mapped[float]
    until: Mapped[float] = mapped_column(index=True)
    credentials: Mapped[list[Any]]  # as JWTs


class DutyEvidence(ConnectorTable):
    """A statement by provider or consumer that a duty of an agreement was fulfilled, with its evidence."""

    __tablename__ = "duty_evidence"
    id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    agreement_id: Mapped[str] = mapped_column(_Key, index=True)
    role: Mapped[str] = mapped_column(String(16))  # this participant's under the agreement
    path: Mapped[str] = mapped_column(_Key)  # /obligation/0 or /permission/0/duty/0
    given_by: Mapped[str] = mapped_column(String(16))  # provider | consumer
    actor: Mapped[str] = mapped_column(_Key)
    fulfilled_at: Mapped[float]
    evidence: Mapped[str]


class DutyWatch(ConnectorTable):
    """The last state of a duty. A change is reported once."""

    __tablename__ = "duty_watch"
    agreement_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    path: Mapped[str] = mapped_column(_Key, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    told_at: Mapped[float]


class Outbox(ConnectorTable):
    """A message to be delivered, at least once, in order of `id` within its process."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    process: Mapped[str] = mapped_column(_Key, index=True)  # this participant's pid, or a webhook's id
    kind: Mapped[str] = mapped_column(String(16))  # negotiation | transfer | webhook
    address: Mapped[str]  # base URL
    path: Mapped[str]
    audience: Mapped[str] = mapped_column(_Key, default="")
    circle: Mapped[str] = mapped_column(String(16), default="known")  # delivery class (`outbox.delivery_classes`)
    host: Mapped[str] = mapped_column(_Key, default="")  # host of the address
    message: Mapped[Json]
    attempts: Mapped[int] = mapped_column(default=0)
    not_yet: Mapped[int] = mapped_column(default=0)  # attempts that were answered with "not found"
    due_at: Mapped[float] = mapped_column(index=True)
    lease_until: Mapped[float] = mapped_column(default=0.0)
    lease_owner: Mapped[str] = mapped_column(_Key, default="")
    created_at: Mapped[float]

    # An id is never reused (SQLite would): a late delivery must not remove another message.
    __table_args__ = ({"sqlite_autoincrement": True},)


class Inbox(ConnectorTable):
    """The id of a processed message, so that a repeat has no second effect."""

    __tablename__ = "inbox"
    sender: Mapped[str] = mapped_column(_Key, primary_key=True)
    message_id: Mapped[str] = mapped_column(_Key, primary_key=True)
    digest: Mapped[str] = mapped_column(_Key)
    received_at: Mapped[float] = mapped_column(index=True)


class ProcessRate(ConnectorTable):
    """The rate at which a counterparty starts processes of a kind (`store.queries.process_counters`)."""

    __tablename__ = "begun"
    counterparty: Mapped[str] = mapped_column(_Key, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    full_until: Mapped[float] = mapped_column(index=True)


class Webhook(ConnectorTable):
    """An address that receives state changes; `secret` signs each delivery."""

    __tablename__ = "webhook"
    id: Mapped[str] = mapped_column(_Key, primary_key=True)
    url: Mapped[str]
    secret: Mapped[str]
    kinds: Mapped[list[Any]]
    created_at: Mapped[float]


class AuditPending(ConnectorTable):
    """Events of committed changes that wait for a number in the log."""

    __tablename__ = "audit_pending"
    id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    ts: Mapped[float]
    body: Mapped[Json]
    origin: Mapped[str] = mapped_column(
        _Key, default="", server_default=""
    )  # the process that committed it, or its transaction


class AuditEvent(ConnectorTable):
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
    origin: Mapped[str] = mapped_column(_Key, default="", server_default="")  # as above; not hashed and not shown

    __table_args__ = (
        Index("audit_actor", "actor", "ts"),
        Index("audit_agreement", "agreement", "ts"),
        Index("audit_dataset", "dataset", "ts"),
    )


class AuditTile(ConnectorTable):
    """256 hashes of the Merkle tree at a level (C2SP tlog-tiles); the last tile of a level may be partial."""

    __tablename__ = "audit_tile"
    level: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    data: Mapped[bytes]


class AuditCosignature(ConnectorTable):
    """The cosignature lines of a witness for the head of `size` records; the newest few of each witness are kept."""

    __tablename__ = "audit_cosignature"
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    witness: Mapped[str] = mapped_column(String(1024), primary_key=True)
    lines: Mapped[str]
    cosigned_at: Mapped[float]


class WitnessedLog(WitnessedLogColumns, ConnectorTable):
    """A log that we are a witness for."""


class AuditCheckpoint(ConnectorTable):
    """A signed tree head (C2SP tlog-checkpoint) for the first `size` records."""

    __tablename__ = "audit_checkpoint"
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    note: Mapped[str]
    created_at: Mapped[float]
