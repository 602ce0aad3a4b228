"""SQL expression for the database's clock. The clocks of processes may be minutes apart."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Float
from sqlalchemy.ext.compiler import compiles


class Now(ColumnElement[float]):
    """UTC seconds since the epoch at the time the statement runs, as a float."""

    inherit_cache = True
    type = Float()


@compiles(Now, "postgresql")
def _compile_postgresql(*_: object, **__: object) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(Now, "sqlite")
def _compile_sqlite(*_: object, **__: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
