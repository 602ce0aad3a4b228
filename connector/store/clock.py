"""What the database's clock says: those of processes may be minutes apart."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Float
from sqlalchemy.ext.compiler import compiles


class Now(ColumnElement[float]):
    """UTC seconds since the epoch, at the moment when the statement runs."""

    inherit_cache = True
    type = Float()


@compiles(Now, "postgresql")
def _of_the_server(*_: object, **__: object) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(Now, "sqlite")
def _of_this_machine(*_: object, **__: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
