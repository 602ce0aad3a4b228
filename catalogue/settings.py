"""Everything that an operator of the catalogue can set, each with a type, a default and a line of help.

Read once by `Settings()` from arguments, environment (`HANSE_...`) and an optional env file; nothing else in the
catalogue reads the environment, and nothing is read at import.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from connector.identity.did import did_of
from connector.setting_types import Address, Database, Did, Dids, Name, Networks, Place, Scopes, words

_CREDENTIAL_TYPE = re.compile("[A-Za-z][A-Za-z0-9_.]{0,99}")
_TYPES_MAX = 16


def _credential_types(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if not _CREDENTIAL_TYPE.fullmatch(one):
            raise ValueError(f"expected types of credentials such as MembershipCredential, got {one[:100]!r}")
    if len(set(value)) != len(value) or len(value) > _TYPES_MAX:
        raise ValueError(f"expected at most {_TYPES_MAX} types, each once, got {len(value)}")
    return value


CredentialTypes = Annotated[tuple[str, ...], NoDecode, BeforeValidator(words), AfterValidator(_credential_types)]


class CatalogueSettings(BaseSettings):
    """One catalogue, which is also the data space's operator. `HANSE_` + a field's name in capitals sets the field."""

    model_config = SettingsConfigDict(env_prefix="HANSE_", extra="ignore", frozen=True)

    name: Name = Field("catalogue", description="Short name of the operator.")
    title: str = Field("Hanse data space", description="Name of the data space for people.")
    data_dir: Path = Field(
        Path("var/catalogue"), description="Directory for the embedded database, the operator's key and the index."
    )
    database_url: Database = Field(
        "", description="SQLAlchemy URL, e.g. postgresql+psycopg://user@host/db; empty is SQLite in data_dir."
    )
    public_host: str = Field("127.0.0.1", description="Address that the catalogue listens on.")
    public_port: int = Field(8090, ge=0, le=65535, description="Port that the catalogue listens on.")
    public_url: Address = Field(
        "", description="URL under which others reach the catalogue; empty is http://public_host:public_port."
    )
    participant_id: Did = Field("", description="The operator's DID; empty is did:web of public_url.")
    country: str = Field(
        "",
        pattern="^([A-Z]{2})?$",
        description="The operator's seat (ISO 3166, two capitals): it is shown offers for where that lies.",
    )
    admin_token_file: Place = Field(
        None,
        description="File that the first start writes the admin token to (mode 0600) instead of printing it.",
    )
    sign_on: Place = Field(
        None, description="YAML file (mode 0600) with the OpenID Connect providers of the operator's people."
    )
    session_seconds: int = Field(12 * 3600, ge=60, description="Seconds until an operator must log in again.")

    allow_private: Networks = Field(
        (), description="Private networks (CIDR), addresses or host names that may be called, comma separated."
    )
    insecure_http: bool = Field(
        False, description="Allow http:// to allowed private addresses; for loopback and labs only."
    )
    call_timeout: float = Field(10.0, gt=0, description="Seconds for one call to a member's connector.")
    body_max_bytes: int = Field(64 * 2**10, ge=2**10, description="Largest request body that the API accepts.")

    crawl_seconds: float = Field(300.0, gt=0, description="Seconds between two visits of one connector, with jitter.")
    crawl_concurrency: int = Field(
        4,
        ge=1,
        le=64,
        description="Connectors that are visited at once on schedule; besides these half as many that the operator "
        "asked for, and half as many that members asked for.",
    )
    crawl_wall_seconds: float = Field(600.0, gt=0, description="Longest time that one visit may take, in seconds.")
    crawl_pages_max: int = Field(10_000, ge=1, description="Most pages that one visit reads.")
    crawl_page_bytes: int = Field(8 * 2**20, ge=2**10, description="Largest page, inflated, in bytes.")
    crawl_entry_bytes: int = Field(256 * 2**10, ge=2**10, description="Largest description of one dataset, in bytes.")
    crawl_entries_max: int = Field(
        100_000, ge=1, description="Most datasets that one member may list, and that are kept of it."
    )
    crawl_depth_max: int = Field(3, ge=0, description="How deep catalogues within catalogues are followed.")
    crawl_inner_max: int = Field(
        500, ge=0, description="Most addresses of catalogues within the catalogue that one visit looks at."
    )
    backoff_first: float = Field(60.0, gt=0, description="Seconds before the first retry of a failed visit; doubles.")
    backoff_cap: float = Field(6 * 3600.0, gt=0, description="Longest pause before a failed visit is tried again.")
    stale_misses: int = Field(3, ge=1, description="Failed visits in a row after which entries are marked stale.")
    unreachable_seconds: float = Field(
        86_400.0, gt=0, description="Seconds without a good visit after which entries are marked unreachable."
    )
    expired_seconds: float = Field(
        30 * 86_400.0,
        gt=0,
        description="Seconds without a good visit, or one that lists them, after which entries leave the search.",
    )
    tombstone_seconds: float = Field(
        90 * 86_400.0, gt=0, description="Seconds that a withdrawn entry is remembered, so that its address says why."
    )

    applications_max: int = Field(
        100,
        ge=0,
        le=10_000,
        description="Most applications of participants that wait for the operator; 0: the catalogue takes none.",
    )

    issuer_types: CredentialTypes = Field(
        (),
        description="Types of credentials that the catalogue issues to members (Decentralized Claims), comma "
        "separated; an admission delivers the first one; empty: it issues none.",
    )
    issuer_days: int = Field(365, ge=1, le=3650, description="Days that an issued credential is valid.")
    issuer_status_seconds: int = Field(
        300, ge=5, le=86_400, description="Seconds that a copy of a signed status list counts at verifiers."
    )
    issuer_hub_formats: Dids = Field(
        (),
        description="DIDs of members whose wallet takes credentials by IdentityHub's names of formats (VC1_0_JWT), as "
        "IdentityHub up to 0.15 does, comma separated.",
    )
    issuer_keys_for_all_purposes: Dids = Field(
        (),
        description="DIDs of members whose DID document lists no key for any purpose, as of IdentityHub up to 0.15: "
        "each of its keys counts for all, comma separated.",
    )
    credential_folder: Place = Field(
        None,
        description="Folder with the operator's own credentials (JWTs, *.jwt), which connectors that demand "
        "credentials query when they are crawled; empty: the catalogue presents none.",
    )
    credential_scopes: Scopes = Field(
        (), description="Types of these credentials that a crawled connector may query, comma separated."
    )

    register_seconds: int = Field(600, ge=30, description="Lifetime of the signed member register, in seconds.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level that is logged.")
    log_json: bool = Field(False, description="Log as JSON lines instead of text for people.")

    @model_validator(mode="after")
    def _ordered(self) -> CatalogueSettings:
        if not self.unreachable_seconds < self.expired_seconds:
            raise ValueError(
                "expected HANSE_UNREACHABLE_SECONDS below HANSE_EXPIRED_SECONDS, came "
                f"{self.unreachable_seconds:g} and {self.expired_seconds:g}"
            )
        if (self.credential_folder is None) == bool(self.credential_scopes):
            raise ValueError(
                "expected HANSE_CREDENTIAL_FOLDER and HANSE_CREDENTIAL_SCOPES, or neither; got one of them"
            )
        return self

    @property
    def root_url(self) -> str:
        """The public URL without a trailing slash."""
        return (self.public_url or f"http://{self.public_host}:{self.public_port}").rstrip("/")

    @property
    def did(self) -> str:
        """The operator's DID."""
        return self.participant_id or did_of(self.root_url)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in use."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'catalogue.db'}"
