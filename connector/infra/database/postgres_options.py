"""How a PostgreSQL of ours is reached: none of the waits for it is without an end.

A database that goes away without a word (its host loses power, something between drops what is sent) ends nothing by
itself: a commit would wait for the kernel's patience, a quarter of an hour, and for ever where something on the way
keeps the connection. So each wait has an end, here (`WATCHED`, `ANSWER_SECONDS`) and at the server (`SESSION`), which
keeps the locks of a process that is gone for as long as it believes in its connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from sqlalchemy import URL, Engine, create_engine, event

if TYPE_CHECKING:
    from psycopg.abc import PQGen

_T = TypeVar("_T")

# In libpq's words, https://www.postgresql.org/docs/current/libpq-connect.html; what the URL says of them holds.
WATCHED = {
    "connect_timeout": "5",  # seconds, for each host that the URL names
    "keepalives_idle": "5",  # seconds without a word, then a question every
    "keepalives_interval": "2",  # seconds, and after
    "keepalives_count": "3",  # of them without an answer the connection is over
    "tcp_user_timeout": "10000",  # milliseconds that what was sent may be under way
}
# In the server's, https://www.postgresql.org/docs/current/runtime-config-client.html.
SESSION = {
    "tcp_keepalives_idle": "5",  # these four as above, from the other end
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "idle_in_transaction_session_timeout": "60000",  # milliseconds between two statements
    "lock_timeout": "10000",  # milliseconds that a statement waits for what another transaction holds
    "idle_session_timeout": "60000",  # milliseconds without a statement: what one process leaves idle others may need
}
_SINCE = {"idle_session_timeout": 14_00_00}  # the versions that know it
ANSWER_SECONDS = 15.0  # for a statement, whatever the connection looks like; the longest of ours takes a second


class _Connection(psycopg.Connection[Any]):
    """A connection that is over where a statement has no answer in time."""

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        try:
            return super().wait(gen, interval, timeout or ANSWER_SECONDS)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise psycopg.errors.ConnectionTimeout("the database has not answered in time") from None


def open_server(url: URL, *, pool_size: int, overflow: int, patient: bool) -> Engine:
    """An engine for a server. `overflow`: how many connections there may be beside those that stay. `patient`: a
    statement may take hours, as in a migration, or wait for another process."""
    watched = {word: value for word, value in WATCHED.items() if word not in url.query}
    url = url.update_query_dict(watched)
    # What was given back last is taken first: the others stay idle, until the server ends them.
    engine = create_engine(url, pool_size=pool_size, max_overflow=overflow, pool_pre_ping=True, pool_use_lifo=True)
    if not patient:
        event.listen(engine, "do_connect", _connect)
    return engine


def _connect(_: Any, __: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> _Connection:
    connection = _Connection.connect(*arguments, **options)
    # The server ends a statement first: it would go on with what nobody waits for any more. A commit has no such end.
    session = SESSION | {"statement_timeout": str(int(ANSWER_SECONDS * 900))}  # milliseconds
    version = connection.info.server_version
    session = {word: value for word, value in session.items() if version >= _SINCE.get(word, 0)}
    connection.execute("; ".join(f"SET {word} = {value}" for word, value in session.items()).encode())
    connection.commit()
    return connection
