"""An open transaction for the query classes: compiled statements, and a session for row objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.orm import Session

from connector.infra.database.database import run_by_driver
from connector.store.compiled_statements import CompiledStatement, Row


class UnitOfWork:
    """A transaction on a connection. The caller begins it and ends it.

    The session is created on first use: most reads of data need no row objects. Where the transaction is `shared` with
    other units, a failure in the session does not end it.
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

    def fetch(self, statement: CompiledStatement, **values: Any) -> Sequence[Row]:
        """The rows that a statement selects or returns."""
        cursor = self._run(statement, (values,))
        return statement.for_dialect(self.connection.dialect).fetch_rows(cursor)

    def execute(self, statement: CompiledStatement, **values: Any) -> int:
        """Run a statement. Returns the number of changed rows."""
        return self._run(statement, (values,)).rowcount

    def execute_many(self, statement: CompiledStatement, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each row; at least one row."""
        self._run(statement, rows)

    def finish(self) -> None:
        """Write changed row objects, before the caller commits."""
        if self._session is not None:
            self._session.commit()

    def close(self) -> None:
        """Close the session and the cursor. Row objects stay readable."""
        if self._cursor is not None:
            self._cursor.close()  # garbage collection in another thread would reset a running statement
        if self._session is not None:
            self._session.close()

    def _run(self, statement: CompiledStatement, rows: Sequence[Mapping[str, Any]]) -> DBAPICursor:
        if self._session is not None:
            self._session.flush()  # the statement must see changed row objects
        if self._cursor is None:
            self._cursor = self.connection.connection.cursor()
        compiled = statement.for_dialect(self.connection.dialect)
        sql, parameters = compiled.bind_values(rows[0])
        execute: Callable[[str, Any], Any] = self._cursor.execute
        if len(rows) > 1:
            execute = self._cursor.executemany
            parameters = [parameters, *(compiled.bind_values(values)[1] for values in rows[1:])]
        run_by_driver(self.connection, execute, sql, parameters)
        return self._cursor
