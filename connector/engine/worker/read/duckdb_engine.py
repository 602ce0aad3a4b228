"""The only place that opens DuckDB: a connection without files, network or settings, over named relations only.

Its settings are the second fence (federated-query, section 3.1): the first is the gate in `policies.enforce`, the
third the process it runs in, which can be killed. Knows nothing of agreements, sockets or limits of a contract.
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
from connector.errors import HanseError, SourceUnreadable, VersionChanged

if TYPE_CHECKING:  # loads what only readers of object stores need
    from connector.engine.worker.read.object_filesystem import Borrowed

_NOT_IN_ARROW = ("HUGEINT", "UHUGEINT", "UUID")  # it hands these over as DECIMAL(38, 0) and as text
_BINARY = (".parquet", ".pq", ".arrow", ".feather", ".ipc")  # what needs no ending to be read


@dataclass(frozen=True, slots=True)
class Opened:
    """A relation's files, opened and pinned: what is read is what was registered."""

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
        except HanseError:
            return False
        return True

    def digest(self, number: int) -> str:
        """SHA-256 of a file."""
        return sha256(self.descriptors[number])

    def open(self, number: int) -> Any:
        """What Arrow reads a file from."""
        return self.paths[number]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def connect() -> duckdb.DuckDBPyConnection:
    """An empty engine in memory, with what is the same for every job. `fence` it before anything is read."""
    # Threads are for who needs them: it would start eight that wait for objects in stores, each with its stack.
    con = duckdb.connect(":memory:", config={"threads": 1, "async_threads": 0})
    _set(con, _ALWAYS)
    return con


def warm_up() -> None:
    """Load what the engine and Arrow load on first use, before the first job waits for it."""
    con = connect()
    with con:
        list(con.sql("SELECT 1 AS one").to_arrow_reader(1))
    _start_threads()


def _start_threads() -> None:
    """Arrow starts its threads when they first have work: now, while nothing limits our memory."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({f"c{number}": [number] * 100 for number in range(16)}), sink)
    pq.read_table(pa.BufferReader(sink.getvalue()), use_threads=True)


def fence(
    con: duckdb.DuckDBPyConnection,
    *beside: duckdb.DuckDBPyConnection,
    paths: Sequence[str],
    limits: Limits,
    temp: Path | None = None,
    followed: bool = False,
    far: bool = False,
    ordered: bool = False,
) -> None:
    """Close everything but `paths`, set the limits, and lock the settings. `followed`: it can be asked how far it is.

    `beside`: more connections to the same engine. What is set for one connection another does not have, not even the
    time zone: they are set as ours is.
    `far`: some of the files are objects in a store, of which much is better asked for at once. `ordered`: where there
    is one thread, no rows wait in it while others pass them. Without `temp` nothing spills: the engine lets queries
    read its temporary directory, so there is none unless the caller gives a private, empty one.
    """
    # What a scan holds: one thread cannot work ahead of its reader, and a whole row group need not be there at once.
    # Several work at a row group each, and all but the first wait unless there is room for what they make.
    ahead = _ONE_THREAD if limits.threads == 1 else _THREADS
    told = {"enable_progress_bar": str(followed).lower(), "enable_progress_bar_print": "false"}
    waits = {"enable_caching_operators": "false"} if ordered else {}
    each = {"streaming_buffer_size": ahead, "disable_parquet_prefetching": "false" if far else "true", **told, **waits}
    for other in beside:
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


# The engine drops a condition, a case of a mask, a test for null, that the statistics of a footer say is always true:
# whoever writes a footer would say which rows a policy shows. They only let it pass over row groups. What it works out
# of tables that it has made itself, as answers that are merged, stays of use.
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
    """Open a relation's files and give the engine names for the opened ones, or VersionChanged.

    Objects in a store are not opened: their blocks are borrowed over `desk`, under the relation's `number`.

    The names lead through links in a private folder to our descriptors: a file that is replaced after this line is not
    read, and the engine never sees the owner's path. Partition folders keep their names. Without a folder there are no
    links: the names are for us.
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
        paths = [_ours(one) for one in descriptors] if folder is None else _linked(folder, refs, descriptors)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Opened(refs, tuple(descriptors), tuple(paths))


def lend(con: duckdb.DuckDBPyConnection, files: Sequence[Files]) -> None:
    """Let the engine read the objects among these files, by the names that they have."""
    if objects := [one for one in files if not isinstance(one, Opened)]:
        from connector.engine.worker.read.object_filesystem import FileSystem

        con.register_filesystem(FileSystem(objects))


def attach(con: duckdb.DuckDBPyConnection, name: str, relation: Relation, opened: Files) -> None:
    """Make a relation's rows readable under its name."""
    source(relation.kind).attach(con, name, opened.paths, relation.options)


def rename(con: duckdb.DuckDBPyConnection, name: str, to: str) -> None:
    """Make what was attached under a name readable under another, and under that only."""
    con.execute(f"ALTER VIEW {quote_name(name)} RENAME TO {quote_name(to)}")


def attach_once(con: duckdb.DuckDBPyConnection, name: str, opened: Files) -> None:
    """Make the rows of an Arrow stream that was found valid readable under a name; we read it for the engine."""
    from connector.datasets.sources.arrow_dataset import ArrowStream

    con.register(name, ArrowStream.at(opened.paths[0]))


def hold(con: duckdb.DuckDBPyConnection, name: str, opened: Files) -> None:
    """Read such rows into memory, and make them readable under a name."""
    with pa.OSFile(opened.paths[0]) as file:
        attach_table(con, name, _foreign(file).read_all())


def load(con: duckdb.DuckDBPyConnection, name: str, opened: Files) -> None:
    """Take such rows into the engine, under a name; to its disk where they are many.

    One batch after the other: what Arrow reads ahead of the engine does not count against the engine's memory.
    """
    with pa.OSFile(opened.paths[0]) as file:
        take_in(con, name, _foreign(file))


def _foreign(file: pa.NativeFile) -> pa.RecordBatchReader:
    """Return a reader of an Arrow stream from another party, of types that the engine may be given."""
    reader = pa.ipc.open_stream(file)
    schema = trusted_schema(reader.schema)
    return pa.RecordBatchReader.from_batches(schema, (cast_batch(batch, schema) for batch in reader))


def take_in(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table | pa.RecordBatchReader) -> None:
    """Copy rows into the engine, under a name."""
    con.from_arrow(rows).create(quote_name(name))


def unite(con: duckdb.DuckDBPyConnection, name: str, parts: Sequence[str]) -> None:
    """The rows of all parts readable under a name, where they are."""
    rows = " UNION ALL ".join(f"FROM {quote_name(part)}" for part in parts)
    con.execute(f"CREATE VIEW {quote_name(name)} AS {rows}")


def drop(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Forget what was loaded under a name."""
    con.execute(f"DROP TABLE {quote_name(name)}")


def drop_view(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Forget what was united under a name."""
    con.execute(f"DROP VIEW {quote_name(name)}")


def detach(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Forget rows in memory, or a stream that we read for the engine."""
    con.unregister(name)


def attach_table(con: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Make rows in memory (keys of a semi-join) readable under a name."""
    con.register(name, table)


def interrupt(cons: Sequence[duckdb.DuckDBPyConnection]) -> None:
    """Stop what these connections do now. One that is closed has nothing to stop."""
    for con in cons:
        with suppress(Exception):
            con.interrupt()


def query(
    con: duckdb.DuckDBPyConnection, sql: str, params: Sequence[Any] | Mapping[str, Any]
) -> duckdb.DuckDBPyRelation:
    """Bind one SELECT with its parameters; nothing is read before its reader is asked."""
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
    """The schema, and batches of `rows` rows, cut near `target` bytes (joined too unless `exact`), as they come.
    `even`: where a batch ends does not depend on `rows`, unless they are `exact`, nor on how many come at once.
    `aside`: where there is a place for rows of too many columns (`query.wide`)."""
    # What it works ahead is counted in bytes of values, and a batch of its takes hundreds more, however few it has.
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
    """The schema of an answer, without its rows."""
    nothing = relation.limit(0).to_arrow_table()  # where two columns have one name, it has another for the second
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
    """Rows of this relation that make about `target` bytes; `row_bytes` is what is known of its columns' widths."""
    columns = zip(relation.columns, relation.types, strict=True)
    return rows_for(sum(measured(width_of(kind), row_bytes.get(name)) for name, kind in columns), target)


def code_of(error: BaseException, *, asked: bool) -> str:
    """The code that stands for an engine's error; its text quotes values and never leaves the process.

    `asked`: the SQL is somebody's question, so a number that grows too large is their mistake and not ours. One code
    for all of these, and only for what visible rows do: to the question hidden ones are NULL.
    """
    text = str(error)
    if asked and text.startswith(_MISTAKES):
        return "computation_failed"
    named = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if named is not None:
        return named
    # What comes up while Arrow reads has the engine's words in it, and Arrow's own in those: an error of the engine, or
    # an OSError where its answer is read as Arrow.
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


def _linked(folder: Path, refs: Sequence[FileRef], descriptors: Sequence[int]) -> list[str]:
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
            link.symlink_to("/proc/self/fd" if binary else _ours(descriptor))
        paths.append(f"{link}/{descriptor}" if binary else str(link))
    return paths


def _ours(descriptor: int) -> str:
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
