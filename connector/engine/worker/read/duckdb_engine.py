"""Opens DuckDB without files, network or changeable settings, over named relations only. No other module opens it.

Its settings are the second fence (decision 3); the first is the gate in `policies.enforce`, the
third the process, which can be killed. Knows nothing of agreements, sockets or contract limits. Runs in a worker.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import duckdb
import pyarrow as pa

from connector.datasets.sources import source
from connector.datasets.sources.extension_types import cast_batch, trusted_schema
from connector.datasets.sources.source_files import (
    FileRef,
    check_unchanged,
    engine_name,
    open_pinned,
    quote_list,
    quote_name,
    quote_text,
    sha256,
)
from connector.engine.pool.protocol import Limits, Relation
from connector.engine.worker.read import wide_tables
from connector.engine.worker.read.batching import (
    ROWS_MIN,
    cut,
    evenly,
    fixed_width,
    gather,
    measured,
    of_rows,
    plain_schema,
    rows_for,
    width_of,
)
from connector.engine.worker.read.object_channel import ObjectChannel
from connector.errors import ConnectorError, SourceUnreadable, VersionChanged

if TYPE_CHECKING:  # loads what only readers of object stores need
    from connector.engine.worker.read.object_filesystem import Borrowed

_NOT_IN_ARROW = ("HUGEINT", "UHUGEINT", "UUID")  # it hands these over as DECIMAL(38, 0) and as text
_BINARY = (".parquet", ".pq", ".arrow", ".feather", ".ipc")  # what needs no ending to be read


@dataclass(frozen=True, slots=True)
class Opened:
    """A relation's files, opened and pinned: reads see the registered bytes."""

    refs: tuple[FileRef, ...]
    descriptors: tuple[int, ...]
    paths: tuple[str, ...]

    def check_unchanged(self) -> None:
        for descriptor, ref in zip(self.descriptors, self.refs, strict=True):
            check_unchanged(descriptor, ref)

    def current(self) -> bool:
        """Whether each name still leads to the registered file."""
        try:
            for ref in self.refs:
                os.close(open_pinned(ref))
        except ConnectorError:
            return False
        return True

    def digest(self, number: int) -> str:
        """Return the SHA-256 of a file."""
        return sha256(self.descriptors[number])

    def open(self, number: int) -> Any:
        """Return what Arrow can read the file from."""
        return self.paths[number]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def connect() -> duckdb.DuckDBPyConnection:
    """Return an empty in-memory engine with the common settings. Call `fence` before reading anything."""
    # By default it starts eight threads that wait for objects in stores, each with its stack.
    con = duckdb.connect(":memory:", config={"threads": 1, "async_threads": 0})
    _set(con, _ALWAYS)
    return con


def warm_up() -> None:
    """Load what the engine and Arrow load on first use, before the first job."""
    con = connect()
    with con:
        list(con.sql("SELECT 1 AS one").to_arrow_reader(1))
    _start_threads()


def _start_threads() -> None:
    """Make Arrow start its threads now, while memory is not limited."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({f"c{number}": [number] * 100 for number in range(16)}), sink)
    pq.read_table(pa.BufferReader(sink.getvalue()), use_threads=True)


def fence(
    con: duckdb.DuckDBPyConnection,
    *more: duckdb.DuckDBPyConnection,
    paths: Sequence[str],
    limits: Limits,
    temp: Path | None = None,
    followed: bool = False,
    far: bool = False,
    ordered: bool = False,
) -> None:
    """Close access to everything but `paths`, set the limits, and lock the settings.

    `more`: further connections to the same engine. Settings belong to one connection, even the time zone, so they get
    the same. `followed`: progress can be queried. `far`: some files are objects in a store, which are better read in
    large requests. `ordered`: with one thread, no rows wait in the engine while later rows pass. `temp`: a private,
    empty folder to spill to. Without it nothing spills, because queries can read the engine's temporary directory.
    """
    # One thread does not work ahead of its reader, so a whole row group need not be in memory. Several threads decode
    # a row group each; all but the first wait unless the buffer has room for their rows.
    ahead = _ONE_THREAD if limits.threads == 1 else _THREADS
    progress = {"enable_progress_bar": str(followed).lower(), "enable_progress_bar_print": "false"}
    waits = {"enable_caching_operators": "false"} if ordered else {}
    each = {"streaming_buffer_size": ahead, "disable_parquet_prefetching": "false" if far else "true"}
    each |= progress | waits
    for other in more:
        _set(other, _ALWAYS | each)
    believed = _BELIEVED_LESS if paths else {}
    threads = {} if limits.threads == 1 else {"threads": str(limits.threads)}
    waiting = {"async_threads": _WAITING_THREADS} if far else {}
    spill = {} if temp is None else {"temp_directory": quote_text(str(temp))}
    _set(
        con,
        {
            **each,
            **believed,
            **threads,
            **waiting,
            **spill,
            "memory_limit": quote_text(f"{limits.memory_mb}MB"),
            "max_temp_directory_size": quote_text(f"{limits.temp_mb}MB"),
            "allowed_paths": quote_list(paths),
            "enable_external_access": "false",
            "lock_configuration": "true",
        },
    )


# The engine drops a condition, a mask case or a null test that a footer's statistics call always true: the writer of a
# footer would decide which rows a policy shows. Statistics may only skip row groups. For tables that the engine itself
# made, such as merged answers, the optimizer stays on.
_BELIEVED_LESS = {"disabled_optimizers": "'statistics_propagation'"}
_ONE_THREAD, _THREADS = "'64KB'", "'16MB'"
_WAITING_THREADS = "8"
_ALWAYS = {
    "temp_directory": "''",
    "TimeZone": "'UTC'",
    "python_enable_replacements": "false",
    "python_scan_all_frames": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "enable_external_file_cache": "false",
    "parquet_metadata_cache": "true",
    "enable_geoparquet_conversion": "false",  # it writes geometries anew: in another order of bytes, without their SRID
    "parquet_can_have_nan": "true",  # footers leave NaN out of the greatest value, which it is to conditions
    "arrow_large_buffer_size": "false",
    "preserve_insertion_order": "true",
    "allowed_directories": "[]",
}


def _set(con: duckdb.DuckDBPyConnection, settings: Mapping[str, str]) -> None:
    for setting, value in settings.items():
        con.execute(f"SET {setting} = {value}")


Files: TypeAlias = "Opened | Borrowed"


def open_files(relation: Relation, folder: Path | None, *, number: int = 0, desk: ObjectChannel | None = None) -> Files:
    """Open a relation's files and return them with names for the engine.

    Objects in a store are not opened: their blocks are borrowed over `desk`, under the relation's `number`.
    The names are links in the private `folder` to our descriptors: a file that is replaced later is not read, and the
    engine never sees the owner's path. Partition folders keep their names. Without a folder there are no links, and
    the names are descriptors.
    Raises: VersionChanged where a file is not the registered one.
    """
    refs = tuple(FileRef.from_json(dict(file)) for file in relation.files)
    if any(ref.etag for ref in refs):
        from connector.engine.worker.read.object_filesystem import Borrowed

        if desk is None:
            raise SourceUnreadable("the connector has no object store to read this dataset from")
        return Borrowed(desk, number, refs)
    descriptors: list[int] = []
    try:
        descriptors.extend(open_pinned(ref) for ref in refs)
        paths = (
            [_descriptor_path(one) for one in descriptors] if folder is None else _link_files(folder, refs, descriptors)
        )
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Opened(refs, tuple(descriptors), tuple(paths))


def lend(con: duckdb.DuckDBPyConnection, files: Sequence[Files]) -> None:
    """Let the engine read the objects among these files under their names."""
    if objects := [one for one in files if not isinstance(one, Opened)]:
        from connector.engine.worker.read.object_filesystem import FileSystem

        con.register_filesystem(FileSystem(objects))


def attach(con: duckdb.DuckDBPyConnection, name: str, relation: Relation, opened: Files) -> None:
    """Make a relation's rows readable under its name."""
    source(relation.kind).attach(con, name, opened.paths, relation.options)


def rename(con: duckdb.DuckDBPyConnection, name: str, to: str) -> None:
    """Rename an attached relation."""
    con.execute(f"ALTER VIEW {quote_name(name)} RENAME TO {quote_name(to)}")


def attach_once(con: duckdb.DuckDBPyConnection, name: str, opened: Files) -> None:
    """Make the rows of a validated Arrow stream readable under a name. Arrow reads them for the engine."""
    from connector.datasets.sources.arrow_dataset import ArrowStream

    con.register(name, ArrowStream.at(opened.paths[0]))


def hold(con: duckdb.DuckDBPyConnection, name: str, opened: Files) -> None:
    """Read the rows of an Arrow stream into memory, and make them readable under a name."""
    with pa.OSFile(opened.paths[0]) as file:
        attach_table(con, name, _open_foreign(file).read_all())


def load(con: duckdb.DuckDBPyConnection, name: str, opened: Files) -> None:
    """Copy the rows of an Arrow stream into the engine under a name; it spills many rows to disk.

    Batch by batch: what Arrow reads ahead of the engine does not count against the engine's memory.
    """
    with pa.OSFile(opened.paths[0]) as file:
        take_in(con, name, _open_foreign(file))


def _open_foreign(file: pa.NativeFile) -> pa.RecordBatchReader:
    """Return a reader of an Arrow stream from another party, with trusted types only."""
    reader = pa.ipc.open_stream(file)
    schema = trusted_schema(reader.schema)
    return pa.RecordBatchReader.from_batches(schema, (cast_batch(batch, schema) for batch in reader))


def take_in(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table | pa.RecordBatchReader) -> None:
    """Copy rows into the engine, under a name."""
    con.from_arrow(rows).create(quote_name(name))


def unite(con: duckdb.DuckDBPyConnection, name: str, parts: Sequence[str]) -> None:
    """Make the rows of all parts readable under one name, without copying them."""
    rows = " UNION ALL ".join(f"FROM {quote_name(part)}" for part in parts)
    con.execute(f"CREATE VIEW {quote_name(name)} AS {rows}")


def drop(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Drop a loaded table."""
    con.execute(f"DROP TABLE {quote_name(name)}")


def drop_view(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Drop a view."""
    con.execute(f"DROP VIEW {quote_name(name)}")


def detach(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Unregister rows in memory, or an Arrow stream."""
    con.unregister(name)


def attach_table(con: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Make rows in memory, such as keys of a semi-join, readable under a name."""
    con.register(name, table)


def interrupt(cons: Sequence[duckdb.DuckDBPyConnection]) -> None:
    """Interrupt what these connections run. Closed connections are ignored."""
    for con in cons:
        with suppress(Exception):
            con.interrupt()


def query(
    con: duckdb.DuckDBPyConnection, sql: str, params: Sequence[Any] | Mapping[str, Any]
) -> duckdb.DuckDBPyRelation:
    """Bind one SELECT with its parameters. Rows are read only when its reader is."""
    found = con.sql(sql, params=params) if params else con.sql(sql)
    if found is None:
        raise VersionChanged("expected a SELECT, which gives rows")
    return found


def batches(
    relation: duckdb.DuckDBPyRelation,
    *,
    rows: int,
    target: int,
    exact: bool = False,
    even: bool = False,
    aside: wide_tables.Aside | None = None,
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema, and batches of `rows` rows, cut near `target` bytes and joined unless `exact`.

    `even`: batch ends depend on the rows only, not on how many the engine returns at once. `aside`: place for rows of
    too many columns (`wide_tables`).
    """
    # Its buffer counts bytes of values, and each of its batches takes hundreds more, even with few rows.
    asked = rows * -(-ROWS_MIN // rows) if exact else rows
    reader = relation.to_arrow_reader(asked) if aside is None else wide_tables.reader(relation, asked, aside)
    schema = plain_schema(reader.schema)
    width = fixed_width(schema)
    plainly = iter(reader) if reader.schema == schema else (batch.cast(schema) for batch in reader)
    if even:
        return schema, evenly(plainly, target, rows=rows if exact else 0, width=width)
    parts = (part for batch in plainly for part in (of_rows(batch, rows) if exact else (batch,)))
    pieces = (piece for part in parts for piece in cut(part, target, apart=exact, width=width))
    return schema, pieces if exact else gather(pieces, at_least=target // 4, width=width)


def schema_of(relation: duckdb.DuckDBPyRelation) -> pa.Schema:
    """Return the schema of an answer, without its rows."""
    nothing = relation.limit(0).to_arrow_table()  # it renames the second of two columns with one name
    return plain_schema(nothing.rename_columns(relation.columns).schema)


def schema_bound(con: duckdb.DuckDBPyConnection, sql: str) -> tuple[pa.Schema, dict[int, str]]:
    """The schema of what a SELECT gives, and the engine's own types of those columns, by their numbers, that Arrow has
    as others. It is only bound: no part of it is computed."""
    bound = query(con, sql, ())
    nulls = ", ".join(f"CAST(NULL AS {kind})" for kind in bound.types)
    types = con.sql(f"SELECT {nulls}").to_arrow_reader().schema.types
    return pa.schema(list(zip(bound.columns, types, strict=True))), others_than_arrow(bound.types)


def others_than_arrow(types: Sequence[Any]) -> dict[int, str]:
    """Those of the engine's types of columns, by the columns' numbers, that Arrow has as others."""
    return {number: str(kind) for number, kind in enumerate(types) if str(kind) in _NOT_IN_ARROW}


def rows_of(relation: duckdb.DuckDBPyRelation, row_bytes: Mapping[str, float], *, target: int) -> int:
    """Return how many rows of this relation make about `target` bytes. `row_bytes`: known widths of columns."""
    columns = zip(relation.columns, relation.types, strict=True)
    return rows_for(sum(measured(width_of(kind), row_bytes.get(name)) for name, kind in columns), target)


def code_of(error: BaseException, *, asked: bool) -> str:
    """Return the code of an engine's error. Its text quotes values and never leaves the process.

    `asked`: a person wrote the SQL, so an overflow is an error of the question. All of these have one code, and only
    visible rows cause them: hidden rows are NULL to the question.
    """
    text = str(error)
    if asked and text.startswith(_MISTAKES):
        return "computation_failed"
    named = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if named is not None:
        return named
    # An error while Arrow reads wraps the texts of engine and Arrow in an error of the engine, or in an OSError.
    if _NO_MEMORY.match(text) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "memory_limit"
    return next((code for start, code in _STARTS.items() if text.startswith(start)), "engine_failed")


_MISTAKES = (
    "Out of Range Error:",
    "Conversion Error:",
    "Invalid Input Error: More than one row returned by a subquery",
    "Invalid Input Error: Division by zero",
    "Invalid Input Error: Argument for ntile",
)
_NO_MEMORY = re.compile(r"Invalid Input Error: reading the stream registered as '\w+' failed: Out of memory: ")
_STARTS = {
    "Out of Memory Error:": "memory_limit",
    "INTERRUPT Error:": "cancelled",
    "IO Error:": "source_unreadable",
}
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (duckdb.OutOfMemoryException, "memory_limit"),
    (MemoryError, "memory_limit"),
    (duckdb.InterruptException, "cancelled"),
    (duckdb.PermissionException, "query_invalid"),
    (duckdb.BinderException, "query_invalid"),
    (duckdb.CatalogException, "query_invalid"),
    (duckdb.ParserException, "query_invalid"),
    (duckdb.SyntaxException, "query_invalid"),
    (duckdb.NotImplementedException, "query_invalid"),
    (duckdb.IOException, "source_unreadable"),
    (pa.ArrowInvalid, "engine_failed"),
)


def _link_files(folder: Path, refs: Sequence[FileRef], descriptors: Sequence[int]) -> list[str]:
    """A path for each descriptor, below its partition folders.

    One link a folder, to where the system lists our descriptors: one a file would be thousands of files on the disk.
    Text has one of its own, because the engine tells by a name's ending how it is compressed.
    """
    paths: list[str] = []
    for number, (ref, descriptor) in enumerate(zip(refs, descriptors, strict=True)):
        place = folder / engine_name(ref.name, number)
        binary = place.suffix.lower() in _BINARY
        link = place.parent / "fd" if binary else place
        if not binary or not link.is_symlink():
            link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            link.symlink_to("/proc/self/fd" if binary else _descriptor_path(descriptor))
        paths.append(f"{link}/{descriptor}" if binary else str(link))
    return paths


def _descriptor_path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


__all__ = [
    "Opened",
    "attach",
    "attach_table",
    "batches",
    "code_of",
    "connect",
    "fence",
    "open_files",
    "query",
    "quote_name",
]
