"""Statements that SQLAlchemy writes once for each kind of database, and the driver itself runs.

To run one through SQLAlchemy costs several times what the database and its driver need for it. So what every read and
every round of the log asks is a `Prepared`. Values and columns are of the types that the tables say, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Insert, ReturnsRows, Table, insert
from sqlalchemy.engine.interfaces import DBAPICursor

Row = tuple[Any, ...]
_Process = Callable[[Any], Any]


class Prepared:
    """A statement, for `Unit`. Its values are its `bindparam`s by name; those of an `expanding` one are a list."""

    def __init__(self, statement: ReturnsRows, *, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns  # of an INSERT, each of them a value
        self._written: dict[str, Written] = {}

    def on(self, dialect: Dialect) -> Written:
        """As it is written for a kind of database."""
        found = self._written.get(dialect.name)
        if found is None:
            found = self._written[dialect.name] = Written(self._statement, self._columns, dialect)
        return found


def adding(table: Table, *columns: str, returning: ColumnElement[Any] | None = None) -> Prepared:
    """A row of these columns, and what it returns; what the others hold is the database's to say."""
    statement: Insert = insert(table).inline()  # nobody asks for the key that it gets
    return Prepared(statement if returning is None else statement.returning(returning), columns=columns)


class Written:
    """A statement in the SQL of one kind of database, and how values and columns pass between it and us."""

    def __init__(self, statement: ReturnsRows, columns: Sequence[str] | None, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        assert not compiled.insert_prefetch, "a column has a default that only SQLAlchemy would put in: give its value"
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

    def with_values(self, values: Mapping[str, Any]) -> tuple[str, Any]:
        """The SQL and its parameters as the driver takes them."""
        sql, order, encoders = self._sql, self._order, self._encoders
        whole = {**self._fixed, **values}
        if self._expands:  # a list has a parameter for each item
            state = self._compiled.construct_expanded_state(whole)
            sql, order, whole = state.statement, state.positiontup, dict(state.parameters)
            encoders = {name: encode for name, encode in {**encoders, **state.processors}.items() if name in whole}
        for name, encode in encoders.items():
            whole[name] = encode(whole[name])
        return sql, whole if order is None else [whole[name] for name in order]

    def fetched(self, cursor: DBAPICursor) -> Sequence[Row]:
        """The rows that it has found, with the values that the types of the columns say."""
        rows = cursor.fetchall()
        if self._decoders is None:
            self._decoders = [
                (place, decode)
                for place, (kind, told) in enumerate(zip(self._types, cursor.description or (), strict=True))
                if (decode := kind.result_processor(self._dialect, told[1])) is not None
            ]
        if not self._decoders:
            return rows
        return [self._decoded(row) for row in rows]

    def _decoded(self, row: Row) -> Row:
        values = list(row)
        for place, decode in self._decoders or ():
            values[place] = decode(values[place])
        return tuple(values)
