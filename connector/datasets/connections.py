"""Connections to object stores and databases that the operator has configured as sources of datasets.

They are in one YAML file with their credentials (HANSE_CONNECTIONS), which only the connector may read. A dataset holds
the name of a connection, never its details. The file is read again at each use, so that a rotated key works at once.
Nothing of it is logged, shown or put into an error.

    stores:
      archive: {endpoint: "https://s3.example.org", region: eu-central-1, access_key_id: ..., secret_access_key: ...,
                buckets: [research]}
    databases:
      registry: {url: "postgresql://reader:...@db.example.org/registry", schemas: [public]}
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from connector.errors import ConnectorError, Invalid, SourceUnreadable, redact_name
from connector.urls import read_base

_FILE_MAX = 2**20
_URL = re.compile(r"postgres(ql)?://\S*$|\w+\s*=")  # or libpq's words: host=... dbname=...


class StoreConnection(BaseModel):
    """An S3-compatible object store and its buckets that may be registered from."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    endpoint: str = Field(pattern=r"^https?://[^/@\s]+/?$")
    region: str = "us-east-1"
    access_key_id: SecretStr = SecretStr("")
    secret_access_key: SecretStr = SecretStr("")
    session_token: SecretStr = SecretStr("")
    buckets: tuple[str, ...] = Field(min_length=1)
    bucket_in_host: bool = False  # https://bucket.endpoint instead of https://endpoint/bucket
    insecure_http: bool = False

    @field_validator("endpoint")
    @classmethod
    def _callable(cls, value: str) -> str:
        read_base(value)
        return value

    @model_validator(mode="after")
    def _secure(self) -> StoreConnection:
        if self.endpoint.startswith("http://") and not self.insecure_http:
            raise ValueError("an endpoint over http:// needs insecure_http: true; it is for loopback and labs")
        return self


class Database(BaseModel):
    """A PostgreSQL database and its schemas that may be registered from."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: SecretStr
    schemas: tuple[str, ...] = Field(("public",), min_length=1)

    @field_validator("url")
    @classmethod
    def _readable(cls, value: SecretStr) -> SecretStr:
        if not _URL.match(value.get_secret_value().strip()):
            raise ValueError(
                "expected postgresql://user:password@host:port/database, with other signs than letters and digits of a "
                "password written as %40 and the like"
            )
        return value


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    stores: dict[str, StoreConnection] = {}
    databases: dict[str, Database] = {}


class Connections:
    """The configured connections by name. Without a `path` the list is empty."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    @property
    def names(self) -> list[str]:
        """Return what a path may begin with, for a form: `s3://bucket` and `postgres://database`."""
        try:
            found = self._read()
        except ConnectorError:
            return []
        buckets = [f"s3://{bucket}" for store in found.stores.values() for bucket in store.buckets]
        return sorted({*buckets, *(f"postgres://{name}" for name in found.databases)})

    def check(self) -> None:
        """Check the file.

        Raises: SourceUnreadable where it is not valid.
        """
        self._read()

    def store(self, name: str, *, bucket: str) -> tuple[str, StoreConnection]:
        """Return the object store `name` with its name. Empty: the only store with the bucket.

        Raises: Invalid for a bucket that may not be registered from.
        """
        stores = self._read().stores
        if name:
            found = {name: _find_connection(stores, name, "store")}
        else:
            found = {key: store for key, store in stores.items() if bucket in store.buckets}
        if len(found) > 1:
            raise Invalid(
                f"{len(found)} stores have a bucket {bucket!r} ({', '.join(sorted(found))}); say which with the option "
                "store",
                code="store_ambiguous",
            )
        if not found or any(bucket not in store.buckets for store in found.values()):
            raise Invalid(
                f"no store that may be registered from has a bucket {bucket!r}; let the operator add it in the file of "
                "HANSE_CONNECTIONS",
                code="bucket_not_allowed",
            )
        return next(iter(found.items()))

    def database(self, name: str) -> Database:
        """Return the database `name`.

        Raises: Invalid with the known names.
        """
        return _find_connection(self._read().databases, name, "database")

    def _read(self) -> _File:
        if self._path is None:
            return _File()
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceUnreadable("the file of HANSE_CONNECTIONS cannot be read; check its path") from error
        with os.fdopen(descriptor, "rb") as opened:
            _check_private(os.fstat(opened.fileno()))
            text = opened.read(_FILE_MAX)
        return _parse_file(text)


def _check_private(found: os.stat_result) -> None:
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SourceUnreadable(
            "the file of HANSE_CONNECTIONS holds credentials and is open to other users; run chmod 600 on it"
        )


def _parse_file(text: bytes) -> _File:
    # An error is reported by its place only: the text around it may be a secret.
    try:
        return _File.model_validate(yaml.safe_load(text) or {})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        said = first["msg"].removeprefix("Value error, ")
        raise SourceUnreadable(f"the file of HANSE_CONNECTIONS at {where}: {said}") from None
    except yaml.YAMLError:
        raise SourceUnreadable("the file of HANSE_CONNECTIONS is not YAML; correct it") from None


_Kind = TypeVar("_Kind", StoreConnection, Database)


def _find_connection(known: dict[str, _Kind], name: str, kind: str) -> _Kind:
    if name not in known:
        raise Invalid(
            f"expected the name of a {kind} ({', '.join(sorted(known)) or 'none is configured'}), came "
            f"{redact_name(name)!r}; the operator adds one in the file of HANSE_CONNECTIONS",
            code=f"{kind}_unknown",
        )
    return known[name]
