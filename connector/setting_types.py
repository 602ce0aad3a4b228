"""Validated types for the settings of connector and catalogue, each with its own error message.

An undetected mistake would get into agreements and logs: an address without its scheme makes another DID.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator, ValidationError
from pydantic_settings import NoDecode, SettingsError

from connector import urls
from connector.errors import Invalid

NAME = "[a-z][a-z0-9-]{0,62}"  # of a participant: not a DID, and no letter that SQL would fold
# As SQLAlchemy splits it: the rest of a password with an `@` would become host and database.
_SERVER = re.compile(r"(?:[^:/]*(?::[^@]*)?@)?(?:\[[^\]@]*\]|[^/:?@]*)(?::\d*)?(?:/[^?@]*)?(?:\?|$)")
_DATABASES = ("sqlite", "postgresql+psycopg")
_SCOPE = re.compile(r"[!-~]{1,512}")
_DID = re.compile(r"did:[a-z0-9]+:\S+")
# Error types of numbers, booleans and choices, whose input may be shown.
_NO_SECRETS = ("bool_", "int_", "float_", "less_than", "greater_than", "string_pattern")
_PORT_AS_PATH = re.compile(r"did:web:([^:]+):([0-9]{1,5})((?::.*)?)")


def unfit(error: ValidationError | SettingsError) -> Iterator[str]:
    """Yield a message for each invalid setting."""
    if isinstance(error, SettingsError):  # invalid JSON
        yield f"{error}; expected JSON there"
        return
    for problem in error.errors():
        name = "HANSE_" + "_".join(str(part) for part in problem["loc"]).upper() if problem["loc"] else "settings"
        came = f", got {problem['input']!r}" if problem["type"].startswith(_NO_SECRETS) else ""
        yield f"{name}: {problem['msg'].removeprefix('Value error, ')}{came}"


def make_folder(folder: Path, setting: str, *, mode: int = 0o777) -> None:
    """Create a folder. Raises: Invalid if it cannot be created or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        if not os.access(folder, os.W_OK):
            code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))
    except OSError as error:
        raise Invalid(f"{setting}: expected a folder to write to, got {folder} ({error.strerror})") from None


def words(value: object) -> object:
    """Split a comma-separated text; other values stay as they are."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise ValueError(f"expected a small letter, then small letters, digits and hyphens, got {value!r}")
    return value


def address(value: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """A URL to which paths can be added, with a lower-case scheme; empty stays empty. Raises: ValueError."""
    if not value:
        return value
    parts = urls.read_url(value, schemes=schemes, query=False, longest=urls.BASE_MAX)
    return parts.scheme + value[len(parts.scheme) :]


def _location(value: str) -> str:
    return address(value, ("grpc", "grpc+tcp", "grpc+tls"))


def did(value: str) -> str:
    """Check a DID; empty stays empty. Raises: ValueError, also for a port that is written as a path.

    After a host name, a number may be a path; after an IP address or localhost it must be a port.
    """
    if value and not _DID.fullmatch(value):
        raise ValueError(f"expected a DID such as did:web:host.example, got {value!r}")
    if (port := _PORT_AS_PATH.fullmatch(value)) and _is_address_or_localhost(unquote(port[1])):
        raise ValueError(
            f"expected %3A before the port in a did:web, as in did:web:{port[1]}%3A{port[2]}{port[3]}, got {value!r}, "
            f"whose {port[2]} is a path"
        )
    return value


def port_hint(value: str) -> str:
    """A hint for messages about an unreachable did:web whose port may be written as a path; otherwise empty."""
    if port := _PORT_AS_PATH.fullmatch(value):
        return f"; if {port[2]} is its port, write %3A before it: did:web:{port[1]}%3A{port[2]}{port[3]}"
    return ""


def _is_address_or_localhost(host: str) -> bool:
    try:
        return host.lower() == "localhost" or bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if "/" in one:
            try:
                ipaddress.ip_network(one, strict=False)
            except ValueError as error:
                raise ValueError(f"expected networks such as 10.0.0.0/8, addresses or host names: {error}") from None
    return value


def _scopes(value: tuple[str, ...]) -> tuple[str, ...]:
    """Scopes of Decentralized Claims, each from a credential's type or written whole."""
    for one in value:
        if not _SCOPE.fullmatch(one):
            raise ValueError(
                f"expected types of credentials such as MembershipCredential, or scopes, got {one[:100]!r}"
            )
    return tuple(one if ":" in one else f"org.eclipse.dspace.dcp.vc.type:{one}:read" for one in value)


def _database(value: str) -> str:
    """Check a database URL, without repeating what follows the scheme, as it may hold a password."""
    scheme, sign, rest = value.partition("://")
    if value and not (sign and scheme in _DATABASES):
        raise ValueError(
            "expected postgresql+psycopg://user@host/database, or sqlite:///path, or nothing, got "
            + (f"a URL that begins with {scheme + sign!r}" if sign else "a text without ://")
        )
    if scheme == "sqlite" and rest.lstrip("/").startswith("file:"):  # we would take another file
        raise ValueError("expected sqlite:///path, got a file: URI; write the path alone")
    if value and scheme != "sqlite" and not _SERVER.match(rest):
        raise ValueError(
            "expected postgresql+psycopg://user:password@host:port/database, got an unreadable host or port; "
            "write characters of a password other than letters and digits as %40 and the like"
        )
    return value


Place = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(words), AfterValidator(_networks)]
Scopes = Annotated[tuple[str, ...], NoDecode, BeforeValidator(words), AfterValidator(_scopes)]
Name = Annotated[str, AfterValidator(_name)]
Address = Annotated[str, AfterValidator(address)]
Location = Annotated[str, AfterValidator(_location)]
Dids = Annotated[tuple[Annotated[str, AfterValidator(did)], ...], NoDecode, BeforeValidator(words)]
Did = Annotated[str, AfterValidator(did)]
Database = Annotated[str, AfterValidator(_database)]
