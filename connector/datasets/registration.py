"""What an owner asks to register, the progress of running registrations, and stopping one.

Registrations live in this process and end with it: nothing of one is stored before it is complete. Knows nothing of
sources, engines or the database.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from connector.errors import ConnectorError, Invalid, WrongState, internal_error

FINDING, CONVERTING, CHECKING, DIGESTING, COUNTING = "finding", "converting", "checking", "digesting", "counting"
STORING, REGISTERED, REFUSED, STOPPED = "storing", "registered", "refused", "stopped"
_KEPT = 50
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):/+", re.IGNORECASE)  # of postgres:/x, too
_PASSWORD = re.compile(r"(^|[?&;\s])\w*(password|passwd|pwd)\s*=", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The texts on a dataset for people."""

    title: str = ""
    description: str = ""
    keywords: tuple[str, ...] = ()
    theme: str = ""
    license: str = ""
    citation: str = ""
    contact: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNote:
    """What an owner says about a column: its meaning and unit, and whether it is personal data."""

    description: str = ""
    unit: str = ""
    personal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What an owner asks to register. An empty `kind` is guessed from the path's ending."""

    name: str
    path: str
    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    about: Description = Description()


@dataclass(slots=True, eq=False)
class RegistrationProgress:
    """A registration or new version: `done` of `files` files in the stage `state`, or its end."""

    asked: Registration
    by: str
    started_at: float
    state: str = FINDING
    files: int = 0
    done: int = 0
    ended_at: float | None = None
    error: ConnectorError | None = None
    task: asyncio.Task[Any] | None = None
    stopping: bool = False

    def set_state(self, state: str, done: int = 0) -> None:
        self.state, self.done = state, done


def check_no_login(path: str) -> None:
    """Check an address for what may be a user's name and password.

    The message repeats nothing of the address, because a refusal stays in the log. Raises: Invalid.
    """
    if _may_hold_login(path):
        raise Invalid(
            "expected a path without a user's name and password, came one with what may be such (: or @ in the place "
            "of a bucket, database or host, an address behind it, a word such as password=, or jdbc:), which is kept "
            "nowhere; write s3://bucket/key, or postgres://database/schema/table with the name that the operator has "
            "given the database in the file of HANSE_CONNECTIONS, or the path of a file from / on",
            code="path_has_login",
        )


def _may_hold_login(path: str) -> bool:
    """Return whether the address may hold a login, by position: names of files, objects and tables may have the same
    signs."""
    if path.startswith("/"):
        return False  # a file
    address = path.replace("%40", "@")
    found = _SCHEME.match(address)
    if found is None:
        return (
            path.lstrip().lower().startswith("jdbc:")
            or bool(_PASSWORD.search(address))
            or _has_login_without_scheme(address)
        )
    scheme, address = found[1].lower(), address[found.end() :]
    host, _, rest = address.partition("/")
    if ":" in host or "@" in host:
        return True
    if scheme == "s3":  # a folder may have a name like password=; what follows ? may not
        return bool(_PASSWORD.search(f"{host}?{rest.partition('?')[2]}"))
    return bool(_PASSWORD.search(address)) or (scheme.startswith("postgres") and _has_login_and_host(rest))


def _has_login_without_scheme(path: str) -> bool:
    """Return whether a path without a scheme may be `name:password@host/database`. The last @ of a file's name does not
    count."""
    folders, _, file = path.rpartition("/")
    return ":" in path.partition("/")[0] and "@" in (folders or file)


def _has_login_and_host(table: str) -> bool:
    """Return whether `name:password@` and a host stand in the place of a table name."""
    before, _, host = table.rpartition("@")
    return ":" in before and any(sign in host for sign in "./:")


def registration_stopped() -> WrongState:
    """Return the error of a registration that was stopped."""
    return WrongState("the registration was stopped; nothing of it is kept", code="registration_stopped")


class RunningRegistrations:
    """The running registrations, one per name at a time, and the last that ended."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, RegistrationProgress] = {}  # by name, the latest last

    def find(self, name: str) -> RegistrationProgress | None:
        return self._known.get(name)

    def recent(self) -> list[RegistrationProgress]:
        """Return the registrations, the latest first."""
        return list(reversed(self._known.values()))

    async def stop(self, name: str) -> bool:
        """Stop a registration and wait for its end. Returns False if none runs or it is already being stored."""
        found = self._known.get(name)
        if found is None or found.task is None or found.state == STORING:
            return False
        found.stopping = True
        found.task.cancel()
        await asyncio.wait((found.task,))
        return found.state == STOPPED

    @contextmanager
    def begin(self, asked: Registration, *, by: str) -> Iterator[RegistrationProgress]:
        """Track the registration that the block carries out.

        Cancelling the task of the block stops it, as `stop` does. After `stop` the block ends with the Conflict of
        `registration_stopped`.
        """
        before = self._known.get(asked.name)
        if before is not None and before.task is not None:
            raise WrongState(
                f"{asked.name!r} is being registered; wait until it is, or stop it first", code="registration_runs"
            )
        progress = self._add(RegistrationProgress(asked, by, self._clock(), task=asyncio.current_task()))
        try:
            yield progress
            progress.set_state(REGISTERED, progress.files)
        except asyncio.CancelledError:
            progress.set_state(STOPPED, progress.done)
            progress.error = registration_stopped()
            if progress.stopping:
                raise progress.error from None
            raise
        except Exception as error:
            progress.set_state(REFUSED, progress.done)
            progress.error = error if isinstance(error, ConnectorError) else internal_error()
            raise
        finally:
            progress.task, progress.ended_at = None, self._clock()

    def _add(self, progress: RegistrationProgress) -> RegistrationProgress:
        self._known.pop(progress.asked.name, None)
        self._known[progress.asked.name] = progress
        ended = [name for name, other in self._known.items() if other.task is None]
        for name in ended[: max(0, len(self._known) - _KEPT)]:
            del self._known[name]
        return progress
