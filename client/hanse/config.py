"""The connector's address and token: arguments, the environment, a service's key, a job's token or `hanse login`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from hanse._transport.workload import JOB_MAX, RenewedToken, ServiceToken, WorkloadToken, fits_header
from hanse.errors import BadInput

DEFAULT_URL = "http://127.0.0.1:8081"
# Where a pod mounts a projected service account token for Hanse. Never its own token, which is for the cluster's API.
WORKLOAD_FILE = Path("/var/run/secrets/hanse/token")


@dataclass(frozen=True, slots=True)
class Connection:
    """An address and a token; `source` says where the token was found, for people."""

    url: str
    token: str | RenewedToken
    source: str


def login_file() -> Path:
    """Return the file of `hanse login`: HANSE_CONFIG, or hanse/client.json in the user's configuration directory."""
    if own := os.environ.get("HANSE_CONFIG"):
        return Path(own)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hanse" / "client.json"


def find_connection(*, url: str = "", token: str = "") -> Connection:
    """Return the address and token in force. A saved token is used only for the address that it was saved for.

    Raises:
        BadInput: the login file is malformed, or readable by others.
    """
    saved = _read_login()
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
        return Connection(where, saved["token"], str(login_file()))
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
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump({"url": url.rstrip("/"), "token": token}, out)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        error.filename = error.filename or str(file)  # a full disk's error names no file
        raise
    return file


def forget() -> bool:
    """Remove the saved login; return whether there was one."""
    file = login_file()
    there = file.exists()
    file.unlink(missing_ok=True)
    return there


def _read_login() -> dict[str, str]:
    file = login_file()
    try:
        text = file.read_text()
        if file.stat().st_mode & 0o077:
            raise BadInput(f"{file} holds a token and can be read by other users; run `chmod 600 {file}`")
        saved = json.loads(text)
    except FileNotFoundError:
        return {}
    except ValueError:
        saved = None
    if not isinstance(saved, dict):
        raise BadInput(
            f"expected the form that `hanse login` writes in {file}, got another; remove it and log in again"
        )
    return {str(key): str(value) for key, value in saved.items()}
