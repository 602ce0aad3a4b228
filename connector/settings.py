"""All settings of a connector, each with a type, a default and a help text.

Read once by `Settings()` from arguments, environment (`HANSE_...`) and an optional env file; nothing else in the
connector reads the environment, and nothing is read at import.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from connector.setting_types import Address, Database, Did, Dids, Location, Name, Networks, Place, Scopes, words


def find_misspelt(environment: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Environment names that look like a misspelt setting, each with that setting."""
    known = [f"HANSE_{name.upper()}" for name in Settings.model_fields]
    for name in sorted(environment):
        if name.startswith("HANSE_") and name not in known:
            yield from ((name, near) for near in difflib.get_close_matches(name, known, n=1, cutoff=0.9))


class Settings(BaseSettings):
    """The settings of a connector. The variable `HANSE_<FIELD>` sets a field."""

    model_config = SettingsConfigDict(env_prefix="HANSE_", extra="ignore", frozen=True)

    name: Name = Field("connector", description="Short name of the participant, as used in SQL before a dataset.")
    title: str = Field("", description="Name of the participant for people.")
    data_dir: Path = Field(
        Path("var/connector"),
        validate_default=True,
        description="Directory for the embedded database, keys and prepared files.",
    )
    database_url: Database = Field(
        "",
        description="SQLAlchemy URL, e.g. postgresql+psycopg://user@host/db, where each process needs 19 connections; "
        "empty is SQLite in data_dir.",
    )
    source_roots: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(words)] = Field(
        (), description="Directories that datasets may be registered from, comma separated."
    )
    converted_dir: Place = Field(
        None,
        description="Directory for files converted to Parquet at registration; processes on the same database need "
        "the same one. Empty: data_dir.",
    )
    upload_dir: Place = Field(
        None,
        description="Directory for files that owners upload in the console; processes on the same database need the "
        "same one. Empty: data_dir/uploads.",
    )
    upload_each_mb: int = Field(1024, ge=1, description="Largest file that an owner can upload, in MB.")
    upload_mb: int = Field(
        10_240, ge=0, description="Disk space for uploaded files together, in MB; 0: uploads are refused."
    )
    connections: Place = Field(
        None,
        description="YAML file (mode 0600) with the object stores and databases that datasets may be registered from.",
    )
    object_cache_mb: int = Field(
        2048, ge=64, description="Disk space in data_dir for cached blocks of object stores, in MB."
    )

    public_host: str = Field(
        "127.0.0.1", description="Address that the public listener (protocol, data plane, did.json) binds to."
    )
    public_port: int = Field(8080, ge=0, le=65535, description="Port of the public listener.")
    public_url: Address = Field(
        "",
        description="URL of the public listener for other participants; empty: http(s)://public_host:public_port.",
    )
    tls_certificate: Place = Field(
        None, description="PEM file with the public listener's certificate chain; empty: a proxy in front does TLS."
    )
    tls_key: Place = Field(
        None, description="PEM file with the certificate's private key; empty: it is in the certificate's file."
    )
    flight_host: str = Field("127.0.0.1", description="Address that Arrow Flight binds to.")
    flight_port: int | None = Field(
        None, ge=1, le=65535, description="Port of Arrow Flight and Flight SQL; empty: both are off."
    )
    flight_url: Location = Field(
        "",
        description="Location of Flight for other participants; empty: grpc+tls or grpc+tcp://flight_host:flight_port.",
    )
    flight_plaintext: bool = Field(
        False, description="Allow Flight without TLS beyond loopback, if something else protects the connection."
    )
    management_host: str = Field(
        "127.0.0.1", description="Address that the management listener (API, console) binds to."
    )
    management_port: int = Field(8081, ge=0, le=65535, description="Port of the management listener.")
    admin_token_file: Place = Field(
        None,
        description="File for the admin token (mode 0600) that a start creates if there is no valid one, as at "
        "the first "
        "start; empty: the token is printed.",
    )
    management_url: Address = Field(
        "",
        description="URL of the management listener as browsers reach it, for sign-on; empty: http://management_host:management_port.",
    )
    sign_on: Place = Field(
        None,
        description="YAML file (mode 0600) with OpenID providers, issuers of workloads, and services; empty: none.",
    )
    workload_token_seconds: float = Field(
        600.0, ge=5, le=86_400, description="Lifetime of a token that a workload gets in exchange, in seconds."
    )
    catalogue_url: Address = Field(
        "",
        description="URL of the data space's catalogue, for `hanse search` and to notify it of changed offers; empty: "
        "neither.",
    )

    participant_id: Did = Field("", description="The participant's DID; empty is did:web of public_url.")
    trust_anchor: Did = Field(
        "",
        description="DID of the data space's operator, who signs the member register; empty: no participant is "
        "a member.",
    )
    trust_register: Address = Field(
        "", description="URL of the signed member register; empty is <trust anchor's address>/members.jws."
    )
    witness: bool = Field(
        True, description="Be a witness of other members' audit logs (C2SP tlog-witness at /witness/v1)."
    )
    witnesses: int = Field(
        8,
        ge=0,
        le=64,
        description="Members that our audit log's heads are sent to, besides the catalogue; 0: nothing is sent to any "
        "witness.",
    )
    witness_policy: Place = Field(
        None,
        description="File (C2SP tlog-policy) with further logs to be a witness for, and further witnesses, each with "
        "its address, of our log.",
    )
    register_max_age: int = Field(
        300, ge=1, description="Seconds that a member register may be old before membership is unknown."
    )
    credential_rules: Place = Field(
        None,
        description="YAML file with the issuers, scopes and facts of credentials that callers must present "
        "(Decentralized Claims); empty: none are asked for.",
    )
    credential_service: Address = Field(
        "",
        description="URL of the participant's credential service, for the DID document (Decentralized Claims); "
        "empty: none is published.",
    )
    credential_scopes: Scopes = Field(
        (),
        description="Types of our credentials that each receiver of our tokens may query, comma separated; empty: "
        "our tokens grant nothing.",
    )
    sts_url: Address = Field(
        "",
        description="Token endpoint of a secure token service that signs for us, as our wallet is elsewhere; empty: "
        "our own key signs.",
    )
    sts_client_id: str = Field("", description="Our client id at the secure token service; empty: our DID.")
    sts_secret_file: Place = Field(
        None, description="File with our client secret at the secure token service (mode 0600)."
    )
    sts_serve_secret_file: Place = Field(
        None,
        description="File with the secret (16 characters or more, mode 0600) by which other programs of ours have "
        "tokens signed at /sts/token of the management listener; empty: that is off.",
    )
    credential_refuse_ungranted: bool = Field(
        False,
        description="Refuse a query for credentials beyond its access token, instead of answering within the token; "
        "for peers that expect it.",
    )
    credential_issuers: Dids = Field(
        (), description="DIDs of the issuers that may deliver and offer credentials to us, comma separated."
    )
    static_tokens: dict[str, str] = Field(
        default_factory=dict,
        description="Bearer tokens of participants that cannot sign (JSON: token to participant id), for labs.",
    )
    anonymous_participant: str = Field(
        "", description="Participant id for protocol calls without Authorization; for labs on loopback only."
    )

    allow_private: Networks = Field(
        (),
        description="Private networks (CIDR), addresses or host names that may be called, comma separated.",
    )
    insecure_http: bool = Field(
        False, description="Allow http:// to allowed private addresses; for loopback and labs only."
    )
    call_timeout: float = Field(
        10.0, gt=0, description="Time limit of a call to another organisation's server, in seconds."
    )
    call_max_bytes: int = Field(
        8 * 2**20,
        ge=2**10,
        description="Largest response of another organisation's server, in bytes.",
    )

    body_max_bytes: int = Field(
        2**20,
        ge=2**10,
        description="Largest request body that the public and management APIs accept, in bytes.",
    )
    dsp_send_delay: float = Field(
        0.0,
        ge=0,
        description="Seconds to wait before a protocol message is sent, for peers that cannot take it at once.",
    )
    dsp_retry_first: float = Field(
        0.5, gt=0, description="Seconds before the first retry of a protocol message; doubles, with jitter."
    )
    dsp_retry_cap: float = Field(
        300.0, gt=0, description="Longest pause between two retries of a protocol message, in seconds."
    )
    dsp_retry_deadline: float = Field(
        72 * 3600.0,
        gt=0,
        description="Seconds after which an undeliverable protocol message ends its process.",
    )
    dsp_negotiations_open: int = Field(
        2_000, ge=1, description="Open negotiations that one counterparty may have with us, in each of our roles."
    )
    dsp_transfers_open: int = Field(10_000, ge=1, description="Open transfers that one counterparty may have with us.")
    dsp_new_per_minute: int = Field(
        3_000,
        ge=1,
        description="New negotiations, and as many new transfers, that one counterparty may begin in a minute.",
    )
    dsp_negotiations_open_all: int = Field(
        5_000,
        ge=1,
        description="Open negotiations in each of our roles, over all counterparties; at this number, only "
        "members of the "
        "data space and parties with an agreement can begin more.",
    )
    dsp_new_per_minute_strangers: int = Field(
        1_000,
        ge=1,
        description="New negotiations in a minute over all parties that are neither members of the data space "
        "nor have an "
        "agreement with us.",
    )
    dsp_negotiation_idle: float = Field(
        30 * 86_400.0,
        gt=0,
        description="Seconds that a negotiation waits for the other side's next message; then it is ended.",
    )
    dsp_negotiation_idle_stranger: float = Field(
        7 * 86_400.0,
        gt=0,
        description="The same for parties that are neither members of the data space nor have an agreement with us.",
    )

    workers_max: int = Field(2, ge=1, le=64, description="Query worker processes at once.")
    workers_warm: int = Field(1, ge=0, le=64, description="Query worker processes kept ready.")
    worker_memory_mb: int = Field(
        320,
        ge=64,
        description="Memory limit of the engine in a worker, in MB; beyond it, a query uses disk. Two workers "
        "of this size "
        "and the connector stay within 1 GB.",
    )
    worker_temp_mb: int = Field(
        4096,
        ge=0,
        description="Disk space for a query whose memory does not suffice, in MB, in a private directory that "
        "is deleted "
        "with the query. 0: none.",
    )
    query_seconds: float = Field(
        60.0,
        gt=0,
        description="Longest time that a query or stream may run without sending a batch, in seconds.",
    )
    ticket_seconds: int = Field(900, ge=10, description="Lifetime of a data-plane ticket, in seconds.")
    prepared_mb: int = Field(
        1024,
        ge=0,
        description="Disk space for prepared streams, which later passes send without decoding, in MB; 0: none.",
    )
    prepared_sensitive: bool = Field(
        False, description="Also prepare streams of contracts with masks or duties, which mark personal data."
    )
    received_mb: int = Field(
        10_240,
        ge=0,
        description="Disk space in data_dir for data pushed to us, over all transfers, in MB; 0: pushes are refused.",
    )
    received_each_mb: int = Field(10_240, ge=1, description="Largest push to us, in MB; the refusal names this limit.")
    fetch_mb: int = Field(
        10_240, ge=1, description="Largest fetch from an owner with another kind of connector (`hanse fetch`), in MB."
    )
    streams_max: int = Field(16, ge=1, description="Reads at once over all consumers.")
    queue_seconds: float = Field(
        5.0,
        ge=0,
        le=60,
        description="Seconds that a read or query waits at the limit of running ones before it is refused with 429 and "
        "Retry-After. 0: refused at once.",
    )

    upkeep_seconds: float = Field(
        30.0,
        gt=0,
        description="Seconds between two checks of agreements for due duties, ends and expired facts.",
    )
    audit_round_ms: int | None = Field(
        None,
        ge=1,
        description="Longest wait before pending audit records, which are already durable, are numbered and signed, in "
        "milliseconds; a quarter of it without a new record suffices. Default: 200 on PostgreSQL, where "
        "processes learn "
        "of each other's events by these rounds; 1000 on SQLite. Reading the log does not wait for it.",
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Lowest level that is logged.")
    log_json: bool = Field(False, description="Log as JSON lines instead of text for people.")

    @field_validator("data_dir", "converted_dir", "upload_dir", "source_roots")
    @classmethod
    def _whole(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        """Make paths absolute, as workers run in directories of their own."""
        return tuple(path.absolute() for path in value) if isinstance(value, tuple) else value and value.absolute()

    @model_validator(mode="after")
    def _safe(self) -> Settings:
        if self.anonymous_participant and self.public_host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                "HANSE_ANONYMOUS_PARTICIPANT is for labs on loopback: expected HANSE_PUBLIC_HOST=127.0.0.1, "
                f"got {self.public_host}; unset one of the two"
            )
        if self.tls_key and not self.tls_certificate:
            raise ValueError("expected HANSE_TLS_CERTIFICATE with HANSE_TLS_KEY, got the key alone; set both")
        if self.tls_certificate and self.public_url.startswith("http://"):
            raise ValueError(
                f"expected HANSE_PUBLIC_URL to begin with https:// with HANSE_TLS_CERTIFICATE, got {self.public_url}"
            )
        if self.sts_url and self.sts_secret_file is None:
            raise ValueError("expected HANSE_STS_SECRET_FILE with HANSE_STS_URL, got the URL alone; set both")
        if self.workers_warm > self.workers_max:
            raise ValueError(
                f"expected HANSE_WORKERS_WARM to be at most HANSE_WORKERS_MAX, got {self.workers_warm} and "
                f"{self.workers_max}"
            )
        if self.flight_port is not None and not (self.flight_safe or self.flight_plaintext):
            raise ValueError(
                f"Flight on {self.flight_host} would run without TLS: set HANSE_TLS_CERTIFICATE, or "
                "HANSE_FLIGHT_PLAINTEXT=true if something else protects the connection, or unset HANSE_FLIGHT_PORT"
            )
        return self

    @property
    def root_url(self) -> str:
        """The public URL without a trailing slash."""
        scheme = "https" if self.tls_certificate else "http"
        return (self.public_url or f"{scheme}://{self.public_host}:{self.public_port}").rstrip("/")

    @property
    def console_url(self) -> str:
        host = f"[{self.management_host}]" if ":" in self.management_host else self.management_host
        return f"http://{host}:{self.management_port}/"

    @property
    def flight_safe(self) -> bool:
        """Whether Flight uses TLS or only loopback."""
        return self.tls_certificate is not None or self.flight_host in ("127.0.0.1", "::1", "localhost")

    @property
    def dsp_base(self) -> str:
        return f"{self.root_url}/dsp/2025-1"

    @property
    def upload_folder(self) -> Path:
        return self.upload_dir or self.data_dir / "uploads"

    @property
    def registrable(self) -> tuple[Path, ...]:
        """The directories that datasets may be registered from: the operator's, and that of uploads."""
        return (*self.source_roots, *((self.upload_folder,) if self.upload_mb else ()))

    @property
    def own_places(self) -> tuple[Path, ...]:
        """The connector's private files and folders, which no dataset may use: keys, logs, received data."""
        records = ("log.head", "connector.db", "connector.db-wal", "connector.db-shm")
        names = ("keys", *records, "received", "outside", "queries", "streams", "work")
        sts_files = (self.sts_secret_file, self.sts_serve_secret_file)
        secret_files = (self.admin_token_file, self.connections, self.sign_on, *sts_files)
        files = (*secret_files, self.tls_key or self.tls_certificate)  # the key's file
        return (*(self.data_dir / name for name in names), *(path.absolute() for path in files if path is not None))

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in use."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'connector.db'}"
