"""The file of `hanse login`: address and token, and for a login at a provider what renews the token."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hanse.errors import BadInput

try:
    import fcntl
except ImportError:  # not on Windows: there, two commands may renew at once
    fcntl = None  # type: ignore[assignment]  # a module elsewhere


def login_file() -> Path:
    """Return the file of `hanse login`: HANSE_CONFIG, or hanse/client.json in the user's configuration directory."""
    if own := os.environ.get("HANSE_CONFIG"):
        return Path(own)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hanse" / "client.json"


def read_login(file: Path) -> dict[str, str]:
    """Return what was saved; nothing without a file. Raises: BadInput for another form, or a file open to others."""
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


def write_login(file: Path, saved: Mapping[str, str]) -> None:
    """Replace the file as a whole, readable by the user only. A link in its place is replaced, not followed."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(dict(saved), out)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        error.filename = error.filename or str(file)  # a full disk's error names no file
        raise


@contextmanager
def renewing(file: Path) -> Iterator[None]:
    """Let one process at a time renew a login: a provider takes a refresh token twice for a theft."""
    lock = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
