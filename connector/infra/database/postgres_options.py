"""Connection options for PostgreSQL: every wait has a time limit.

A server can vanish without closing its connections (its host loses power, a device on the way drops packets). A commit
would then wait for a quarter of an hour, the kernel's limit, or for ever if a proxy keeps the connection open. So waits
are limited here (`WATCHED`, `ANSWER_SECONDS`) and at the server (`SESSION`), which otherwise keeps the locks of a
process that is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from sqlalchemy import URL, Engine, create_engine, event

if TYPE_CHECKING:
    from psycopg.abc import PQGen

_T = TypeVar("_T")

# libpq's options, https://www.postgresql.org/docs/current/libpq-connect.html; the URL overrides them.
WATCHED = {
    "connect_timeout": "5",  # seconds, for each host that the URL names
    "keepalives_idle": "5",  # seconds of silence before the first probe
    "keepalives_interval": "2",  # seconds between two probes
    "keepalives_count": "3",  # unanswered probes that end the connection
    "tcp_user_timeout": "10000",  # milliseconds that sent data may stay unacknowledged
}
# The server's options, https://www.postgresql.org/docs/current/runtime-config-client.html.
SESSION = {
    "tcp_keepalives_idle": "5",  # these four as above, seen from the server
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "idle_in_transaction_session_timeout": "60000",  # milliseconds between two statements
    "lock_timeout": "10000",  # milliseconds that a statement waits for a lock
    "idle_session_timeout": "60000",  # milliseconds without a statement: other processes may need the connection
}
_SINCE = {"idle_session_timeout": 14_00_00}  # the first version that has the option
ANSWER_SECONDS = 15.0  # for any statement; our longest take a second


class _Connection(psycopg.Connection[Any]):
    """A connection that closes if a statement is not answered in time."""

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        try:
            return super().wait(gen, interval, timeout or ANSWER_SECONDS)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise psycopg.errors.ConnectionTimeout("timed out waiting for the database") from None


def open_server(url: URL, *, pool_size: int, overflow: int, patient: bool) -> Engine:
    """An engine for a PostgreSQL server.

    The pool keeps `pool_size` connections and opens up to `overflow` more. `patient`: a statement may take hours, as in
    a migration, or wait for another process.
    """
    watched = {word: value for word, value in WATCHED.items() if word not in url.query}
    url = url.update_query_dict(watched)
    # LIFO: the connection used last is used next, so that the others become idle and the server ends them.
    engine = create_engine(url, pool_size=pool_size, max_overflow=overflow, pool_pre_ping=True, pool_use_lifo=True)
    if not patient:
        event.listen(engine, "do_connect", _connect)
    return engine


def _connect(_: Any, __: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> _Connection:
    connection = _Connection.connect(*arguments, **options)
    # The server's limit is shorter, so that it does not go on with abandoned work. It does not apply to a commit.
    session = SESSION | {"statement_timeout": str(int(ANSWER_SECONDS * 900))}  # milliseconds
    version = connection.info.server_version
    session = {word: value for word, value in session.items() if version >= _SINCE.get(word, 0)}
    connection.execute("; ".join(f"SET {word} = {value}" for word, value in session.items()).encode())
    connection.commit()
    return connection
