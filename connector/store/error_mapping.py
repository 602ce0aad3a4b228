"""Maps database errors to the connector's errors and logs each cause once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from connector.errors import Invalid, Unavailable, harmless
from connector.infra.concurrency.recent_keys import put_recent
from connector.telemetry import logger

_FULL = {sqlite3.SQLITE_FULL, "53100"}  # what SQLite and PostgreSQL call a full disk
_READ_ONLY = {sqlite3.SQLITE_READONLY, "25006"}  # a file without write permission, or a standby
_QUIET_SECONDS = 60.0  # a cause is logged again when it comes back after this time
_CAUSES_MAX, _CAUSE_MAX = 64, 500  # causes that are remembered, and characters of each
_log = logger("store")


class ErrorMapper:
    """Maps the errors of one database. A cause that repeats is logged once, not for each request."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: OrderedDict[str, float] = OrderedDict()  # time of the last error of each cause

    def map_error(self, error: Exception) -> Exception:
        """The error to raise to the caller.

        Unavailable for a database failure, Invalid for a value that PostgreSQL cannot store, any other error unchanged.
        """
        if not isinstance(error, DBAPIError | PoolTimeout):
            return error
        if isinstance(error, DataError) and getattr(error.orig, "sqlstate", None) is None:
            return Invalid("expected text without NUL characters, got some; remove them")
        self._log_once(describe_cause(error))
        failed = error.orig if isinstance(error, DBAPIError) else error
        why = type(failed).__name__
        codes = {
            getattr(failed, "sqlite_errorcode", 0) & 0xFF,
            getattr(failed, "sqlstate", None),
        }  # SQLite's primary code
        if _READ_ONLY & codes:
            return Unavailable(
                "expected a writable database, got one that is read only; the operator must let the connector write "
                "to it (its file, or a server that is not a standby)",
                private=why,
            )
        if _FULL & codes:
            return Unavailable(
                "the disk of the connector's database is full; the operator must free space there",
                code="disk_full",
                private=why,
            )
        return Unavailable("the database does not answer; try again in a moment", private=why)

    def _log_once(self, cause: str) -> None:
        with self._lock:
            now, last = self._clock(), self._last.get(cause)
            put_recent(self._last, cause, now, most=_CAUSES_MAX)
        if last is None or now - last > _QUIET_SECONDS:
            _log.error("database_fails", why=cause)


def describe_cause(error: Exception) -> str:
    """The cause of a database error for the log: class name, SQLSTATE, and the message of an OperationalError.

    PEP 249: an OperationalError is about connections and resources of the server. Messages of other errors are left
    out, as they may contain data.
    """
    failed = (error.orig or error) if isinstance(error, DBAPIError) else error
    name = " ".join(filter(None, (type(failed).__name__, getattr(failed, "sqlstate", None))))
    if all(kind.__name__ != "OperationalError" for kind in type(failed).__mro__):
        return name
    message = getattr(getattr(failed, "diag", None), "message_primary", None) or str(failed)
    return harmless(f"{name}: {' '.join(message.split())}"[:_CAUSE_MAX])
