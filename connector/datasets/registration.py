"""What an owner asks to be registered, and how far it has come: registrations under way, and stopping one.

They live in this process and are gone with it: nothing of a registration is stored before it is whole. Knows nothing
of sources, engines or the database.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from connector.errors import BadInput, Conflict, HanseError, internal_error

FINDING, CONVERTING, CHECKING, DIGESTING, COUNTING = "finding", "converting", "checking", "digesting", "counting"
STORING, REGISTERED, REFUSED, STOPPED = "storing", "registered", "refused", "stopped"
_KEPT = 50
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):/+", re.IGNORECASE)  # of postgres:/x, too
_PASSWORD = re.compile(r"(^|[?&;\s])\w*(password|passwd|pwd)\s*=", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What people read about a dataset."""

    title: str = ""
    description: str = ""
    keywords: tuple[str, ...] = ()
    theme: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What an owner asks to be registered. `kind` empty: guessed from the path's ending."""

    name: str
    path: str
    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    about: Description = Description()


@dataclass(slots=True, eq=False)
class Registering:
    """One registration or new version: `done` of `files` files in what `state` says, or how it ended."""

    asked: Registration
    by: str
    started_at: float
    state: str = FINDING
    files: int = 0
    done: int = 0
    ended_at: float | None = None
    error: HanseError | None = None
    task: asyncio.Task[Any] | None = None
    stopping: bool = False

    def reached(self, state: str, done: int = 0) -> None:
        self.state, self.done = state, done


def check_no_login(path: str) -> None:
    """BadInput for an address with what may be a user's name and password. Its words repeat nothing of the address:
    a refusal stays in the log for good."""
    if _may_hold_login(path):
        raise BadInput(
            "expected a path without a user's name and password, came one with what may be such (: or @ in the place "
            "of a bucket, database or host, an address behind it, a word such as password=, or jdbc:), which is kept "
            "nowhere; write s3://bucket/key, or postgres://database/schema/table with the name that the operator has "
            "given the database in the file of HANSE_CONNECTIONS, or the path of a file from / on",
            code="path_has_login",
        )


def _may_hold_login(path: str) -> bool:
    """Decided by where it stands: files, objects and tables may have such signs in their names."""
    if path.startswith("/"):
        return False  # a file
    address = path.replace("%40", "@")
    found = _SCHEME.match(address)
    if found is None:
        return path.lstrip().lower().startswith("jdbc:") or bool(_PASSWORD.search(address)) or _parted(address)
    scheme, address = found[1].lower(), address[found.end() :]
    host, _, rest = address.partition("/")
    if ":" in host or "@" in host:
        return True
    if scheme == "s3":  # a folder in a bucket may be called like a word of a login; what follows ? may not
        return bool(_PASSWORD.search(f"{host}?{rest.partition('?')[2]}"))
    return bool(_PASSWORD.search(address)) or (scheme.startswith("postgres") and _addressed(rest))


def _parted(path: str) -> bool:
    """Whether a path without a scheme may be `name:password@host/database`; the last @ of a file's name is none."""
    folders, _, file = path.rpartition("/")
    return ":" in path.partition("/")[0] and "@" in (folders or file)


def _addressed(table: str) -> bool:
    """Whether `name:password@` and a host, not just a name, stand where the table is to be."""
    before, _, host = table.rpartition("@")
    return ":" in before and any(sign in host for sign in "./:")


def halted() -> Conflict:
    """What became of a registration that was stopped."""
    return Conflict("the registration was stopped; nothing of it is kept", code="registration_stopped")


class UnderWay:
    """The registrations that run, one of a name at a time, and the last of those that have ended."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, Registering] = {}  # by name, the latest last

    def find(self, name: str) -> Registering | None:
        return self._known.get(name)

    def recent(self) -> list[Registering]:
        """The latest first."""
        return list(reversed(self._known.values()))

    async def stop(self, name: str) -> bool:
        """Stop a registration, and wait until nothing of it is left. False where none runs, or it is stored already."""
        found = self._known.get(name)
        if found is None or found.task is None or found.state == STORING:
            return False
        found.stopping = True
        found.task.cancel()
        await asyncio.wait((found.task,))
        return found.state == STOPPED

    @contextmanager
    def begin(self, asked: Registration, *, by: str) -> Iterator[Registering]:
        """The registration that the block carries out. Whoever cancels the block's task stops it, as `stop` does;
        after that the block's owner gets a Conflict, `halted`."""
        before = self._known.get(asked.name)
        if before is not None and before.task is not None:
            raise Conflict(
                f"{asked.name!r} is being registered; wait until it is, or stop it first", code="registration_runs"
            )
        one = self._add(Registering(asked, by, self._clock(), task=asyncio.current_task()))
        try:
            yield one
            one.reached(REGISTERED, one.files)
        except asyncio.CancelledError:
            one.reached(STOPPED, one.done)
            one.error = halted()
            if one.stopping:
                raise one.error from None
            raise
        except Exception as error:
            one.reached(REFUSED, one.done)
            one.error = error if isinstance(error, HanseError) else internal_error()
            raise
        finally:
            one.task, one.ended_at = None, self._clock()

    def _add(self, one: Registering) -> Registering:
        self._known.pop(one.asked.name, None)
        self._known[one.asked.name] = one
        ended = [name for name, other in self._known.items() if other.task is None]
        for name in ended[: max(0, len(self._known) - _KEPT)]:
            del self._known[name]
        return one
