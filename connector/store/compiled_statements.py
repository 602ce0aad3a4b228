"""SQL statements that SQLAlchemy compiles once for each dialect and the database driver runs.

Execution through SQLAlchemy costs several times what the database and its driver need. The statements of each read of
data and of each round of the audit log are therefore a `CompiledStatement`. Values are converted as the tables declare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Insert, ReturnsRows, Table, insert
from sqlalchemy.engine.interfaces import DBAPICursor

Row = tuple[Any, ...]
_Process = Callable[[Any], Any]


class CompiledStatement:
    """A statement for `UnitOfWork`. Its values are its `bindparam`s by name; an `expanding` one takes a list."""

    def __init__(self, statement: ReturnsRows, *, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns  # of an INSERT; each takes a value
        self._by_dialect: dict[str, DialectStatement] = {}

    def for_dialect(self, dialect: Dialect) -> DialectStatement:
        """The statement compiled for a dialect; compiled on first use."""
        compiled = self._by_dialect.get(dialect.name)
        if compiled is None:
            compiled = self._by_dialect[dialect.name] = DialectStatement(self._statement, self._columns, dialect)
        return compiled


def build_insert(table: Table, *columns: str, returning: ColumnElement[Any] | None = None) -> CompiledStatement:
    """An INSERT of one row with these columns and an optional RETURNING. Other columns get their database default."""
    statement: Insert = insert(table).inline()  # without fetching the generated key
    return CompiledStatement(statement if returning is None else statement.returning(returning), columns=columns)


class DialectStatement:
    """A statement in the SQL of one dialect, with the conversion of its values and columns."""

    def __init__(self, statement: ReturnsRows, columns: Sequence[str] | None, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        assert not compiled.insert_prefetch, (
            "expected a value for each column with a SQLAlchemy default, got none; add the column"
        )
        self._compiled, self._dialect = compiled, dialect
        self._sql = compiled.string
        self._order: Sequence[str] | None = compiled.positiontup
        self._expands = bool(compiled.post_compile_params)
        self._types = [column.type.dialect_impl(dialect) for column in statement.exported_columns]
        self._decoders: list[tuple[int, _Process]] | None = None
        self._encoders: dict[str, _Process] = {}
        self._fixed: dict[str, Any] = {}
        for bind, name in compiled.bind_names.items():
            encode = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if not bind.required:
                self._fixed[name] = bind.value if encode is None else encode(bind.value)
            elif encode is not None:
                self._encoders[name] = encode

    def bind_values(self, values: Mapping[str, Any]) -> tuple[str, Any]:
        """The SQL and its parameters in the form that the driver takes."""
        sql, order, encoders = self._sql, self._order, self._encoders
        parameters = {**self._fixed, **values}
        if self._expands:  # a list has a parameter for each item
            state = self._compiled.construct_expanded_state(parameters)
            sql, order, parameters = state.statement, state.positiontup, dict(state.parameters)
            encoders = {name: encode for name, encode in {**encoders, **state.processors}.items() if name in parameters}
        for name, encode in encoders.items():
            parameters[name] = encode(parameters[name])
        return sql, parameters if order is None else [parameters[name] for name in order]

    def fetch_rows(self, cursor: DBAPICursor) -> Sequence[Row]:
        """The rows of a cursor, with values converted to the Python types of the columns."""
        rows = cursor.fetchall()
        if self._decoders is None:
            self._decoders = [
                (place, decode)
                for place, (kind, description) in enumerate(zip(self._types, cursor.description or (), strict=True))
                if (decode := kind.result_processor(self._dialect, description[1])) is not None
            ]
        if not self._decoders:
            return rows
        return [self._decode(row) for row in rows]

    def _decode(self, row: Row) -> Row:
        values = list(row)
        for place, decode in self._decoders or ():
            values[place] = decode(values[place])
        return tuple(values)
