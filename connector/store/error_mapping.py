"""What the database fails with: what whoever asked is told of it, and what our own log hears, once for each cause."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from connector.errors import BadInput, Busy, harmless
from connector.infra.concurrency.recent_keys import put_recent
from connector.telemetry import logger

_FULL = {sqlite3.SQLITE_FULL, "53100"}  # what SQLite and PostgreSQL call a full disk
_READ_ONLY = {sqlite3.SQLITE_READONLY, "25006"}  # as of a file that is not ours to write, or of a standby
_QUIET = 60.0  # seconds: what has not come for so long is over, and new when it comes again
_CAUSES_MAX, _CAUSE_MAX = 64, 500  # how many are known, and characters of each
_log = logger("store")


class Failures:
    """Of one database. Where it is away each request fails, and the log would say the same of each of them."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: OrderedDict[str, float] = OrderedDict()  # when each cause came last

    def refusal(self, error: Exception) -> Exception:
        """What whoever asked is told: Busy where it is the database's, BadInput where it was not even asked, as no
        PostgreSQL has such a text, else the error itself."""
        if not isinstance(error, DBAPIError | PoolTimeout):
            return error
        if isinstance(error, DataError) and getattr(error.orig, "sqlstate", None) is None:
            return BadInput("expected text without NUL characters, which no database takes; leave them out")
        self._tell(cause_of(error))
        failed = error.orig if isinstance(error, DBAPIError) else error
        why = type(failed).__name__
        codes = {getattr(failed, "sqlite_errorcode", 0) & 0xFF, getattr(failed, "sqlstate", None)}  # of the first kind
        if _READ_ONLY & codes:
            return Busy(
                "the connector's database takes no changes; the operator must make it one that the connector may write "
                "to (its file, or a server that is no standby)",
                private=why,
            )
        if _FULL & codes:
            return Busy(
                "the connector's database cannot keep this, as there is no room on its disk; the operator must make "
                "room there",
                code="disk_full",
                private=why,
            )
        return Busy("the database does not answer now; try again in a moment", private=why)

    def _tell(self, cause: str) -> None:
        with self._lock:
            now, last = self._clock(), self._last.get(cause)
            put_recent(self._last, cause, now, most=_CAUSES_MAX)
        if last is None or now - last > _QUIET:
            _log.error("database_fails", why=cause)


def cause_of(error: Exception) -> str:
    """For our own log: the driver's name of an error, its SQLSTATE, and the database's words where they are on itself.

    PEP 249 has OperationalError for these: connections, what the server is short of, what it has ended. In the words
    on what was asked, and in the details, there may be data.
    """
    failed = (error.orig or error) if isinstance(error, DBAPIError) else error
    named = " ".join(filter(None, (type(failed).__name__, getattr(failed, "sqlstate", None))))
    if all(kind.__name__ != "OperationalError" for kind in type(failed).__mro__):
        return named
    said = getattr(getattr(failed, "diag", None), "message_primary", None) or str(failed)
    return harmless(f"{named}: {' '.join(said.split())}"[:_CAUSE_MAX])
