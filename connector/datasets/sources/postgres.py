"""A PostgreSQL table or view, copied into Parquet at registration and at each new version.

The connector process lets the server write the rows as CSV into a draft on disk, in one read-only transaction, and
reads none of them. A worker without network or credentials turns the draft into Parquet with the types of the server. A
value without an exact form there refuses the table and names its column.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connector.datasets.sources import Option
from connector.datasets.sources.source_files import FileRef, alike, file_ref, quote_list, quote_name, quote_text
from connector.datasets.sources.to_parquet import disk_full, write_parquet
from connector.errors import Absent, Invalid, SourceUnreadable

if TYPE_CHECKING:
    import psycopg

    from connector.datasets.connections import Database
    from connector.datasets.external import Outside

_DIGITS = 38  # of a decimal
SUFFIXES: tuple[str, ...] = ()
OPTIONS: tuple[Option, ...] = (
    Option(
        "numeric_scale", int, -1,
        "Digits after the point for numeric columns that set none; a value with more is refused. -1 keeps them text.",
        range(-1, _DIGITS + 1),
    ),
)  # fmt: skip
CONVERTED = True

_NULL = "\\N"
_LINE_MAX = 32 * 2**20
_DRAFT_MAX = 2**40
_CONNECT_SECONDS = 10
_STATEMENT_SECONDS = 4 * 3600
_LOCK_SECONDS = 30
_LEAVE_SECONDS = 10.0
_SECURED = "row-level security applies to the connector's role: only the rows that it may see are in the dataset"
_PIECE = 2**20
_WORDS_MAX = 200
_OF_VALUES = ("Conversion Error:", "Invalid Input Error:", "Out of Range Error:")  # of the engine
_OF_TEXT, _TOO_LARGE = "Invalid Input Error: CSV Error on Line", "Maximum line size"
# Classes of SQLSTATE: connections, logins, no such database, conflicts, lack of resources, operator, internal errors;
# and those whose message holds names of tables and functions of a view, but no value of a row.
_OF_THE_SERVER = ("08", "28", "3D", "40", "53", "57", "58", "XX")
_OF_NAMES = ("0A", "25", "3F", "42")
_NOT_FOUND = ("42P01", "42704", "42883")  # a table, a type, a function
_STRANGE = (  # by type: values without an exact form
    ("DECIMAL", "infinity, NaN"),
    ("DATE", "infinity, dates before Christ"),
    ("TIMESTAMP", "infinity, times before Christ or after the year 294246"),
    ("TIME", "the time 24:00"),
)
_PLAIN = {
    "bool": "BOOLEAN", "int2": "SMALLINT", "int4": "INTEGER", "int8": "BIGINT", "oid": "UINTEGER", "float4": "FLOAT",
    "float8": "DOUBLE", "text": "VARCHAR", "varchar": "VARCHAR", "bpchar": "VARCHAR", "char": "VARCHAR",
    "name": "VARCHAR", "citext": "VARCHAR", "uuid": "UUID", "bytea": "BLOB", "date": "DATE", "time": "TIME",
    "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ",
}  # fmt: skip
_RECAST = ("bpchar", "inet")  # the cast drops blanks at the end, and adds a mask to a host
_TYPES = """
    SELECT t.oid, t.typname, t.typtype::text, t.typcategory::text, t.typelem, t.typbasetype, t.typtypmod
    FROM pg_catalog.pg_type t WHERE t.oid = ANY(%s)"""
_COLUMNS = """
    SELECT a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod)
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND c.relkind = ANY('{r,p,v,m,f}') AND a.attnum > 0
      AND NOT a.attisdropped ORDER BY a.attnum"""
_SECURITY = """
    SELECT c.relkind = 'v', row_security_active(c.oid), EXISTS (SELECT FROM pg_catalog.pg_class WHERE relrowsecurity)
    FROM pg_catalog.pg_class c WHERE c.oid = %s::regclass"""


@dataclass(frozen=True, slots=True)
class PostgresColumn:
    """A column of the table: its type on the server (`was`) and its type in Parquet. `element`: the element type of an
    array.

    `base`: the name of the underlying type, or of that of its elements.
    """

    name: str
    was: str
    type: str
    element: str = ""
    note: str = ""
    base: str = ""


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Refuse to look for local files: a table is found over the network."""
    raise SourceUnreadable("a table is found over the network; no directory holds it")


async def bring(path: str, *, options: Mapping[str, Any], from_: Outside) -> tuple[dict[str, Any], tuple[FileRef, ...]]:
    """Return the options, with the result of `_snapshot`, and the draft with the rows. The caller removes the draft.

    Raises: Absent where there is no such table, SourceUnreadable where the server refuses access.
    """
    name, schema, table = split(path)
    scale = int(options["numeric_scale"])
    database = from_.connections.database(name)
    if schema not in database.schemas:
        raise Invalid(
            f"the schema {schema!r} may not be registered from (allowed: {', '.join(database.schemas)}); let the "
            "operator add it in the file of HANSE_CONNECTIONS",
            code="schema_not_allowed",
        )
    draft, cancellation = await _room_for(from_), _Cancellation()
    work = asyncio.ensure_future(asyncio.to_thread(_snapshot, database, schema, table, draft, scale, cancellation))
    try:
        told = await asyncio.shield(work)
    except BaseException as error:
        await asyncio.to_thread(cancellation.cancel)
        await asyncio.wait([work], timeout=_LEAVE_SECONDS)  # the writer has closed the draft
        if work.done():
            work.exception()  # marks the exception as retrieved
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):  # an error of the draft; network errors are of psycopg
            raise disk_full() from error
        raise
    return {**options, **told}, (file_ref(str(draft), roots=(from_.drafts,)),)


async def _room_for(from_: Outside) -> Path:
    try:
        return await asyncio.to_thread(from_.draft, ".csv")
    except OSError as error:
        raise disk_full() from error


def split(path: str) -> tuple[str, str, str]:
    """Return database, schema and table of `postgres://database/schema/table`. The schema may be left out: public."""
    parts = path.removeprefix("postgres://").split("/", 2)
    if len(parts) == 2:
        parts.insert(1, "public")
    if not path.startswith("postgres://") or len(parts) != 3 or not all(parts) or len(path) > 1000 or "\x00" in path:
        raise Invalid(f"expected postgres://database/schema/table, came {path[:200]!r}")
    return parts[0], parts[1], parts[2]


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse to read in place: a table changes while it is read."""
    raise SourceUnreadable("a table is taken as a snapshot when it is registered; read its Parquet file")


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Write the rows of the draft with their types as Parquet. The report has the type of each column."""
    columns = [PostgresColumn(*column) for column in options["columns"]]
    text = _text_table(paths, len(columns))
    values = ", ".join(
        f"{_value_sql(column, number)} AS {quote_name(column.name)}" for number, column in enumerate(columns)
    )
    try:
        report = write_parquet(con, f"(SELECT {values} FROM {text})", target, bad_lines_max=0)  # noqa: S608  quoted
    except Exception as error:  # noqa: BLE001  raised again, or its better
        raise _explain_error(con, text, columns, error) from None
    if report["rows"] != options["rows"]:  # a row that was split would give more rows than the server sent
        raise SourceUnreadable(
            f"expected the {options['rows']} rows that the database sent, came {report['rows']} in the Parquet file; "
            "nothing of it is kept; report this fault to the operator of the connector"
        )
    told = [{"name": c.name, "was": c.was, "type": c.type, "note": c.note} for c in columns]
    return report | {"columns": told} | ({"note": _SECURED} if options["secured"] else {})


def _text_table(paths: Sequence[str], count: int) -> str:
    names = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(count))
    return (
        f"read_csv({quote_list(paths)}, auto_detect = false, header = false, new_line = '\\n', delim = ',', "
        f"quote = '\"', escape = '\"', nullstr = {quote_text(_NULL)}, allow_quoted_nulls = false, "
        f"columns = {{{names}}}, max_line_size = {_LINE_MAX}, buffer_size = {2 * _LINE_MAX}, "
        "parallel = false)"  # as in csv.py: else it begins anew within texts of several lines
    )


def _value_sql(column: PostgresColumn, number: int) -> str:
    """Return the SQL that turns the text of a column into its value; it fails for a value that would differ."""
    if column.element:
        items = f"from_json(c{number}, '[\"VARCHAR\"]')"
        return f"list_transform({items}, lambda x: {_exact_sql('x', column.element)})"
    return _exact_sql(f"c{number}", column.type)


def _exact_sql(text: str, kind: str) -> str:
    if kind == "VARCHAR":
        return text
    if kind == "BLOB":
        return f"unhex(substr({text}, 3))"
    if kind.startswith(("DATE", "TIME")):  # PostgreSQL accepts 24:00:00, Arrow does not
        strange = f"{text} LIKE '%infinity' OR {text} LIKE '%BC' OR {text} LIKE '24:%'"
        return f"CAST(CASE WHEN {strange} THEN error('no exact form') ELSE {text} END AS {kind})"
    if kind.startswith("DECIMAL"):
        scale = int(kind[:-1].split(",")[1])
        digits = f"length(rtrim(nullif(split_part({text}, '.', 2), ''), '0'))"
        return f"CAST(CASE WHEN {digits} > {scale} THEN error('no exact form') ELSE {text} END AS {kind})"
    return f"CAST({text} AS {kind})"


def _explain_error(con: Any, text: str, columns: Sequence[PostgresColumn], error: Exception) -> Exception:
    """Return the error for the owner where the engine failed: on a row, on values, or the engine's own error."""
    words = str(error)
    if words.startswith(_OF_TEXT) and _TOO_LARGE in words:
        return SourceUnreadable(
            f"expected rows of at most {_LINE_MAX >> 20} MB, came a larger one; register a view without it"
        )
    if not _is_value_error(words) or not (found := _find_unmappable(con, text, columns)):
        return error
    return SourceUnreadable(
        f"expected values that have an exact form, came others in {', '.join(map(_describe_column, found))}; "
        "register a view that leaves them out",
        code="value_unmappable",
        columns=[column.name for column in found],
    )


def _describe_column(column: PostgresColumn) -> str:
    """Return the name of a column with the kinds of values that may be at fault."""
    kind = column.element or column.type
    may_be = [next((words for begun, words in _STRANGE if kind.startswith(begun)), "")]
    if kind.startswith("DECIMAL") and column.note:
        scale = int(kind[:-1].split(",")[1])
        may_be.append(f"more than {_DIGITS - scale} digits before the point or the {scale} after it of numeric_scale")
    may_be.append("arrays of several dimensions" if column.element else "")
    told = ", ".join(filter(None, may_be))
    return f"{column.name} ({told})" if told else column.name


def _is_value_error(words: str) -> bool:
    return words.startswith(_OF_VALUES) and not words.startswith(_OF_TEXT)


def _find_unmappable(con: Any, text: str, columns: Sequence[PostgresColumn]) -> list[PostgresColumn]:
    """Return the columns with a value that has no exact form."""
    found = []
    for number, column in enumerate(columns):
        try:
            con.sql(f"SELECT count({_value_sql(column, number)}) FROM {text}").fetchall()  # noqa: S608  quoted, ours
        except Exception as error:
            if not _is_value_error(str(error)):
                raise
            found.append(column)
    return found


def _snapshot(
    database: Database, schema: str, table: str, draft: Path, scale: int, cancellation: _Cancellation
) -> dict[str, Any]:
    """Write the table into the draft in one transaction. Returns its columns, the server's row count, and `secured`.

    `secured`: row-level security may have left out rows.
    """
    with _connect(database) as con:
        cancellation.connection = con
        source = f"{quote_name(schema)}.{quote_name(table)}"
        _lock(con, source)
        columns = _columns_of(con, schema, table, scale)
        shown = ", ".join(_select_expression(column) for column in columns)
        select = f"SELECT {shown} FROM {source}"  # noqa: S608  quoted
        con.execute(f"EXPLAIN {select}".encode())  # errors before any row is read may be reported in full
        with _server_errors(in_words=False):
            rows, secured = _copy_table(con, source, select, draft, cancellation)
    told = [[c.name, c.was, c.type, c.element, c.note] for c in columns]
    return {"columns": told, "rows": rows, "secured": secured}


def _lock(con: psycopg.Connection[Any], source: str) -> None:
    """Lock what is read (all partitions, and the tables of a view) against TRUNCATE and rewrites.

    The lock comes before the snapshot of the transaction, which is taken at the first read: a table that is rewritten
    after the snapshot shows no earlier rows. A missing table is reported later, by `_columns_of`. Materialized views
    and foreign tables cannot be locked like this and do not need it.
    """
    from psycopg import errors as e

    with suppress(e.WrongObjectType, e.UndefinedTable, e.InvalidSchemaName), con.transaction():
        con.execute(f"LOCK TABLE {source} IN ACCESS SHARE MODE".encode())


def _copy_table(
    con: psycopg.Connection[Any], source: str, rows: str, draft: Path, cancellation: _Cancellation
) -> tuple[int, bool]:
    """Write the rows that the role may see into the draft. Returns their number and whether row-level security applies.

    On failure the draft is removed here, because the caller may have stopped waiting.
    """
    form = f"FORMAT csv, NULL {quote_text(_NULL)}, FORCE_QUOTE *, ENCODING 'UTF8'"
    with ExitStack() as failed:
        failed.callback(draft.unlink, missing_ok=True)
        taken = (
            _copy_rows(con, f"COPY ({rows}) TO STDOUT ({form})".encode(), draft, cancellation),
            _has_row_security(con, source, rows),
        )
        failed.pop_all()
        return taken


def _has_row_security(con: psycopg.Connection[Any], source: str, rows: str) -> bool:
    """Return whether row-level security applied to what was read.

    It did if the server refuses to read without it. For functions of a view the server reports that only when it runs
    them, so the view runs once more and the result is dropped. A function that catches the refusal returns other rows.
    The first read succeeded, so any error now comes from the policies.
    """
    import psycopg

    view, active, any_table = con.execute(_SECURITY, (source,)).fetchall()[0]
    if not (view and any_table):
        return bool(active)
    try:
        with con.transaction(force_rollback=True):
            con.execute("SET LOCAL row_security = off")
            con.execute(f"EXPLAIN (ANALYZE, TIMING off) {rows}".encode())  # runs it, and sends none of the rows
    except psycopg.OperationalError:  # a lost connection, the end of its time
        raise
    except psycopg.Error:
        return True
    return False


def _copy_rows(con: psycopg.Connection[Any], statement: bytes, draft: Path, cancellation: _Cancellation) -> int:
    """Write what the server sends into the draft. Returns the number of rows that the server reports."""
    with draft.open("xb", buffering=_PIECE) as file, con.cursor() as cursor:
        draft.chmod(0o600)
        with cursor.copy(statement) as copy:
            for row in copy:
                if cancellation.requested:
                    raise SourceUnreadable("the registration was cancelled", code="cancelled")
                file.write(row)
                if file.tell() > _DRAFT_MAX:
                    raise SourceUnreadable(f"expected a table of at most {_DRAFT_MAX} bytes; register a view of a part")
        return cursor.rowcount


class _Cancellation:
    """Stops the thread that copies, also while it waits for the server."""

    def __init__(self) -> None:
        self.requested = False
        self.connection: psycopg.Connection[Any] | None = None

    def cancel(self) -> None:
        import psycopg

        self.requested = True
        if self.connection is not None:
            with suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=5)


@contextmanager
def _connect(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """Open a read-only transaction with one snapshot."""
    import psycopg

    options = (
        "-c default_transaction_isolation=repeatable\\ read -c default_transaction_read_only=on "
        f"-c statement_timeout={_STATEMENT_SECONDS}s -c lock_timeout={_LOCK_SECONDS}s -c timezone=UTC "
        "-c datestyle=ISO,YMD -c intervalstyle=iso_8601 -c bytea_output=hex -c extra_float_digits=3 "
        "-c client_encoding=UTF8 -c array_nulls=on -c search_path=pg_catalog"
    )
    with _server_errors(in_words=True), psycopg.connect(
        database.url.get_secret_value(), connect_timeout=_CONNECT_SECONDS, options=options,
        application_name="hanse",
    ) as con, con.transaction():  # fmt: skip
        yield con  # what is locked first stays locked: `_lock` would end a transaction of its own


@contextmanager
def _server_errors(*, in_words: bool) -> Iterator[None]:
    """Turn errors of the server into errors for the owner, without its words, which may hold hosts and values.

    `in_words`: keep messages about names. Set only while no row has been read.
    """
    import psycopg

    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        words = _server_message(error) if in_words else ""
        raise SourceUnreadable(
            f"the database does not let the connector read this table{words}; grant its role what is lacking "
            "(SELECT, USAGE of the schema, EXECUTE of a view's functions; BYPASSRLS where its row_security is off)",
            code="database_refused",
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise SourceUnreadable(
            f"the table was locked by others for the {_LOCK_SECONDS} seconds that the connector waits; try again when "
            "they are done",
            code="table_locked",
        ) from None
    except psycopg.Error as error:
        raise _refusal(error, in_words=in_words) from None


def _refusal(error: psycopg.Error, *, in_words: bool) -> SourceUnreadable:
    """Return the error for the owner: a fault of the view, or of the server."""
    state = error.sqlstate or ""
    if not state or state.startswith(_OF_THE_SERVER):
        return SourceUnreadable(
            "the database does not answer as expected; try again, or let the operator check its address",
            code="database_unreachable",
            private=f"{type(error).__name__} {state}".strip(),
        )
    words, correct = _server_message(error) if in_words and state.startswith(_OF_NAMES) else "", "correct it"
    if state in _NOT_FOUND:
        correct = "write the schema before what its functions name (the connector's search_path is pg_catalog)"
    return SourceUnreadable(
        f"the database cannot compute the rows of this view (SQLSTATE {state}: {type(error).__name__}{words}); "
        f"{correct}, or register another",
        code="view_failed",
    )


def _server_message(error: psycopg.Error) -> str:
    """Return the server's message of an error before any row is read; empty for errors from within a function."""
    diagnosed = error.diag
    if not diagnosed.message_primary or diagnosed.context:
        return ""
    return f": {diagnosed.message_primary[:_WORDS_MAX]}"


def _columns_of(con: psycopg.Connection[Any], schema: str, table: str, scale: int) -> list[PostgresColumn]:
    rows = con.execute(_COLUMNS, (schema, table)).fetchall()
    if not rows:
        raise Absent(f"no table or view {schema}.{table} that the connector can see, or none of its columns")
    types = _types_of(con, {row[1] for row in rows})
    found = [_column(name, was, oid, modifier, types, scale) for name, oid, modifier, was in rows]
    folded = [alike(column.name) for column in found]
    if twice := sorted({column.name for column in found if folded.count(alike(column.name)) > 1}):
        raise SourceUnreadable(
            f"expected column names that differ in more than case, came {', '.join(twice)}; register a view",
            code="columns_repeated",
        )
    return found


def _types_of(con: psycopg.Connection[Any], oids: set[int]) -> dict[int, tuple[Any, ...]]:
    """Return the types and the types that they are made of."""
    known: dict[int, tuple[Any, ...]] = {}
    while oids := oids - known.keys() - {0}:
        rows = con.execute(_TYPES, (list(oids),)).fetchall()
        known |= {row[0]: row for row in rows}
        oids = {oid for row in rows for oid in (row[4], row[5])}
    return known


def _column(
    name: str, was: str, oid: int, modifier: int, types: Mapping[int, tuple[Any, ...]], scale: int
) -> PostgresColumn:
    _, _, kind, category, element, base, base_modifier = types[oid]
    if kind == "d":  # a domain
        found = _column(name, was, base, base_modifier if modifier < 0 else modifier, types, scale)
        return replace(found, was=was)
    if category == "A" and element:
        of = _column(name, was, element, modifier, types, scale)
        if not of.element:
            return replace(of, type=f"{of.type}[]", element=of.type)
    return PostgresColumn(name, was, *_scalar(types[oid], modifier, scale), base=types[oid][1])


def _scalar(kind: tuple[Any, ...], modifier: int, scale: int) -> tuple[str, str, str]:
    """Return type, element (empty) and note of a type that is not an array."""
    name = str(kind[1])
    if name == "numeric":
        return _numeric(modifier, scale)
    if name in ("json", "jsonb"):
        return "VARCHAR", "", "JSON as its text"
    if kind[2] == "e":
        return "VARCHAR", "", "an enum as its labels"
    if name in _PLAIN and (kind[2] == "b"):
        return _PLAIN[name], "", ""
    return "VARCHAR", "", "kept as its text"


def _numeric(modifier: int, scale: int) -> tuple[str, str, str]:
    if modifier >= 4:
        precision, digits = (modifier - 4) >> 16, ((modifier - 4) & 0x7FF ^ 1024) - 1024
        if precision <= _DIGITS and 0 <= digits <= precision:
            return f"DECIMAL({precision},{digits})", "", ""
    if 0 <= scale <= _DIGITS:  # other values keep it text: older datasets were registered without this check
        return f"DECIMAL({_DIGITS},{scale})", "", "a numeric without a fixed scale, by the option numeric_scale"
    return "VARCHAR", "", "a numeric without a fixed scale, kept as its text; see the option numeric_scale"


def _select_expression(column: PostgresColumn) -> str:
    name = quote_name(column.name)
    if not column.element:
        return f"{name}::text" if column.base == "xml" else name  # as the server shows it: xml without its declaration
    texts = f"{name}::text::text[]" if column.base in _RECAST else f"{name}::text[]"
    # More dimensions than one are no list: the mark makes the conversion refuse them.
    return f"CASE WHEN array_ndims({name}) > 1 THEN '!' ELSE array_to_json({texts})::text END"
