"""The connector's address and token: arguments, the environment, a service's key, a job's token or `hanse login`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hanse._transport.login_file import login_file, read_login, write_login
from hanse._transport.person import PersonToken, Token
from hanse._transport.workload import JOB_MAX, ServiceToken, WorkloadToken, fits_header
from hanse.errors import BadInput

DEFAULT_URL = "http://127.0.0.1:8081"
# Where a pod mounts a projected service account token for Hanse. Never its own token, which is for the cluster's API.
WORKLOAD_FILE = Path("/var/run/secrets/hanse/token")


@dataclass(frozen=True, slots=True)
class Connection:
    """An address and a token; `source` says where the token was found, for people."""

    url: str
    token: Token
    source: str


def find_connection(*, url: str = "", token: str = "") -> Connection:
    """Return the address and token in force. A saved token is used only for the address that it was saved for.

    Raises:
        BadInput: the login file is malformed, or readable by others.
    """
    saved = read_login(login_file())
    where = url or os.environ.get("HANSE_URL", "") or saved.get("url", "") or DEFAULT_URL
    where = where.rstrip("/")
    if token:
        return Connection(where, token, "argument")
    if given := os.environ.get("HANSE_TOKEN", ""):
        return Connection(where, given, "HANSE_TOKEN")
    if service := _find_service():
        return Connection(where, service, str(service.file))
    if workload := _find_workload():
        return Connection(where, workload, str(workload.file))
    if saved.get("token") and saved.get("url", "").rstrip("/") == where:
        file = login_file()
        return Connection(where, PersonToken(file) if saved.get("refresh_token") else saved["token"], str(file))
    return Connection(where, "", "nowhere")


def _find_service() -> ServiceToken | None:
    """Return the service's token of HANSE_CLIENT_ID and HANSE_CLIENT_KEY. Raises: BadInput for half of them."""
    client_id, file = os.environ.get("HANSE_CLIENT_ID", ""), os.environ.get("HANSE_CLIENT_KEY", "")
    if bool(client_id) != bool(file):
        raise BadInput("expected HANSE_CLIENT_ID with HANSE_CLIENT_KEY, got one of them; set both")
    if not client_id:
        return None
    audience = os.environ.get("HANSE_CLIENT_AUDIENCE", "")
    return ServiceToken(client_id, Path(file), audience=audience, job=_read_job())


def _read_job() -> str:
    job = os.environ.get("HANSE_JOB_ID", "")
    if not fits_header(job):
        raise BadInput(f"expected HANSE_JOB_ID of at most {JOB_MAX} printable ASCII characters, got {job[:50]!r}")
    return job


def _find_workload() -> WorkloadToken | None:
    """Return the job's token: HANSE_WORKLOAD_TOKEN_FILE, or the usual file if a site projects one."""
    job = _read_job()
    named = os.environ.get("HANSE_WORKLOAD_TOKEN_FILE", "")
    if not named and not WORKLOAD_FILE.exists():
        return None
    return WorkloadToken(Path(named) if named else WORKLOAD_FILE, job)


def keep(url: str, token: str) -> Path:
    """Save an address and its token, readable by the user only."""
    file = login_file()
    write_login(file, {"url": url.rstrip("/"), "token": token})
    return file


def keep_login(url: str, provider: Mapping[str, str], tokens: Mapping[str, str]) -> Path:
    """Save a login at a provider, readable by the user only."""
    file = login_file()
    write_login(file, {"url": url.rstrip("/"), **provider, **tokens})
    return file


def forget() -> bool:
    """Remove the saved login; return whether there was one."""
    file = login_file()
    there = file.exists()
    file.unlink(missing_ok=True)
    file.with_name(f".{file.name}.lock").unlink(missing_ok=True)
    return there
