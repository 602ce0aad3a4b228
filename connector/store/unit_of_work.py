"""An open transaction, as the aggregates use it: prepared statements, and a session for rows as objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.orm import Session

from connector.infra.database.database import run_by_driver
from connector.store.compiled_statements import Prepared, Row


class Unit:
    """A transaction on a connection; who has begun it ends it.

    The session is made for whoever asks for it: most of what a read does needs no objects. Where the transaction is
    `shared` with other units, what fails in the session does not end it.
    """

    def __init__(self, connection: Connection, *, shared: bool = False) -> None:
        self.connection = connection
        self._mode: Literal["create_savepoint", "rollback_only"] = "create_savepoint" if shared else "rollback_only"
        self._session: Session | None = None
        self._cursor: DBAPICursor | None = None

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = Session(self.connection, expire_on_commit=False, join_transaction_mode=self._mode)
        return self._session

    @property
    def database(self) -> str:
        """The kind of database: sqlite or postgresql."""
        return self.connection.dialect.name

    def rows(self, statement: Prepared, **values: Any) -> Sequence[Row]:
        """What a statement finds, or returns of what it changes."""
        cursor = self._run(statement, (values,))
        return statement.on(self.connection.dialect).fetched(cursor)

    def change(self, statement: Prepared, **values: Any) -> int:
        """How many rows a statement changes."""
        return self._run(statement, (values,)).rowcount

    def add(self, statement: Prepared, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement for each of these rows, one at least."""
        self._run(statement, rows)

    def finish(self) -> None:
        """Write what was changed of objects, for whoever commits."""
        if self._session is not None:
            self._session.commit()

    def close(self) -> None:
        """Let go of the objects: they can be read on, and are changed no more."""
        if self._cursor is not None:
            self._cursor.close()  # here: whoever drops it in another thread would reset a statement that others run
        if self._session is not None:
            self._session.close()

    def _run(self, statement: Prepared, several: Sequence[Mapping[str, Any]]) -> DBAPICursor:
        if self._session is not None:
            self._session.flush()  # what was changed of objects counts
        if self._cursor is None:
            self._cursor = self.connection.connection.cursor()
        written = statement.on(self.connection.dialect)
        sql, parameters = written.with_values(several[0])
        execute: Callable[[str, Any], Any] = self._cursor.execute
        if len(several) > 1:
            execute = self._cursor.executemany
            parameters = [parameters, *(written.with_values(values)[1] for values in several[1:])]
        run_by_driver(self.connection, execute, sql, parameters)
        return self._cursor
