"""Arrow batches of a governed stream, and the record at its end: how it ended, how many rows, what was withheld.

A stream is complete only once its end record has been read: without it StreamIncomplete is raised, also at a batch
border. The record has the digest of every byte before it; for other bytes DigestMismatch is raised, and batches that
were yielded before may be damaged. Each batch is validated fully before it is yielded, because another party made it,
and types whose values may share bytes are refused.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from hanse._arrow.message_limits import CheckedBody
from hanse._arrow.value_limits import name_failing_column, nested_types, refuse_oversized, refuse_types
from hanse._digests import check_digest, check_record
from hanse._transport.http_stream import HttpReply, Memory, allocate_lasting
from hanse._transport.sockets import check_process
from hanse.audit.read_receipts import LEFT, Receipt, Receipts
from hanse.errors import (
    BadInput,
    Broken,
    Conflict,
    GroupsLeftOut,
    HanseError,
    StreamIncomplete,
    error_from_end,
    escape_control,
)
from hanse.notebook.html_view import CELL_MAX, ROWS_MAX, clip, facts_table, list_names, rows_table
from hanse.options import require_extra
from hanse.plan import DueBlocks
from hanse.retry import Patience

if TYPE_CHECKING:
    import duckdb
    import pandas  # type: ignore[import-untyped]  # it ships no types
    import polars

END = b"hanse.end"
AT = b"hanse.at"
_CURSOR_MAX = 1024  # characters; a cursor of Hanse has 80, and readers keep one for each prefetched batch
_WITHHELD = ("nothing", "possibly", "some")
# In the notes of older owners, which state no `withheld`.
_OF_GROUPS = ("groups of at least ", "noise of epsilon ")
_LEFT_OUT = "Small groups may be left out at the owners: totals and averages may be too low"
_OUT = re.compile("out of (range|bounds)")  # Python's and Arrow's message for dates and times

Reopen: TypeAlias = "Callable[[Mapping[str, Any] | None], HttpReply]"


class Stream:
    """Batches, to be read once: iterate, or hand the stream to a library. Close it (or leave its `with`) to stop early.

    `schema` is known at once, `end` after the last batch. Any library that accepts the Arrow C stream interface accepts
    a Stream: `polars.DataFrame(stream)`, `pa.table(stream)`, `duckdb.sql("from stream")`.

    With `reopen`, a lost connection, a restart of the owner or an expired ticket does not end the stream: it resumes
    after the last batch, as long as `patience` lasts. A running read is renewed before its ticket expires. It also
    requests what is `due` in portions of the owner's limit; `end` is the last one's. `place` is the owner's place of
    the last batch.

    Only the process that opened it can read it.

    Raises:
        HanseError: while it is read: StreamIncomplete, DigestMismatch, Refused, ...; BadInput in a forked process.
    """

    def __init__(
        self,
        answer: HttpReply,
        *,
        validate: bool = True,
        reopen: Reopen | None = None,
        patience: Patience | None = None,
        schema: pa.Schema | None = None,
        due: DueBlocks | None = None,
        snapshot: str = "",
        start: Mapping[str, Any] | None = None,
        about: tuple[str, str] | None = None,
        receipts: Receipts | None = None,
    ) -> None:
        """`schema`, `due` and `snapshot`: what must be received, if known; `start`: the place to resume from. `about`:
        dataset and agreement. `receipts`: where each read is reported."""
        self._validate = validate
        self._reopen = reopen
        self._patience = patience or Patience()
        self._due = due
        self._about = about
        self._table: pa.Table | None = None
        self._started = self._closed = self._complete = False
        self._process = os.getpid()
        self.rows = 0
        self.held = 0  # bytes of memory that the last batch keeps, as received and decompressed
        self.place: Mapping[str, Any] | None = None
        self._from = start  # the place in the current request
        self.snapshot = snapshot
        self._versioned = bool(snapshot or start) or due is not None  # it continues rows, or blocks, of one version
        self.reopened = 0
        self.end: Mapping[str, Any] = {}
        self.digest = ""  # computed over the bytes before the end record; empty until that is read
        self.error: HanseError | None = None
        self.schema: pa.Schema = schema
        self._memory: Memory | None = None
        self._receipts = receipts
        self._receipt: Receipt | None = None
        self._open(answer)

    def __repr__(self) -> str:
        """Show dataset, columns and progress."""
        return f"<Stream{self._of}, columns {list_names(self._columns)}, {self._state}>"

    def _repr_html_(self) -> str:
        """Show the first rows if the stream keeps them (after `to_arrow` and the like), else columns and progress. It
        reads no row."""
        if self._table is None:
            columns = list_names([f"{name} {self.schema.field(at).type}" for at, name in enumerate(self._columns)])
            facts = (("columns", columns), ("state", self._state), ("next", "to_arrow(), to_pandas(), to_polars()"))
            return facts_table(f"Stream{self._of}", facts)
        head = self._table.slice(0, ROWS_MAX)
        rows = zip(*map(_show_values, head.columns), strict=True)
        title = f"Stream{self._of}, {self._state}"
        return rows_table(title, head.column_names, rows, total=self._table.num_rows)

    @property
    def _columns(self) -> list[str]:
        return [] if self.schema is None else list(self.schema.names)

    @property
    def _of(self) -> str:
        return f" {clip(self._about[0])}" if self._about else ""

    @property
    def _state(self) -> str:
        state = "complete" if self._complete else "failed" if self.error else "closed" if self._closed else "open"
        return f"{state}, {self.rows:,} rows read"

    def _open(self, answer: HttpReply) -> None:
        """Read from this answer on. Raises: Broken if its columns differ: consumers read memory by the first schema."""
        self._body, self._renew = answer.body, answer.renew
        if self._memory is not None:
            self._body.use_memory(self._memory)
        self.read_id = answer.headers.get("hanse-read", "")
        self._announced = {"withheld": answer.headers.get("hanse-withheld")}  # until the end record is read
        self._begin_receipt()
        self._rows_before = self.rows
        self._after = "" if self._from is None else self._from["cursor"]
        self._messages = CheckedBody(self._body)
        try:
            self._check_snapshot(answer.headers.get("hanse-snapshot", ""))
            self._reader = self._translate_errors(lambda: pa.ipc.open_stream(self._messages))
            refuse_types(self._reader.schema)
            if self.schema is None:
                self.schema = self._reader.schema
            elif not self._reader.schema.equals(self.schema):
                raise Broken("expected a stream of the same columns and types as before, got others")
        except BaseException as error:
            self._body.close()  # there is no Stream to close; a kept error would keep the connection open
            self._end_receipt(error)
            raise

    def _begin_receipt(self) -> None:
        """Report a read: each answer is a read of its own in the owner's log."""
        self.digest = ""
        if self._receipts is not None:
            self._receipt = self._receipts.begin(self.read_id)
            weakref.finalize(self, self._receipt.end, code=LEFT).atexit = False  # for a stream that is never closed

    def _end_receipt(self, why: BaseException | None = None, record: Mapping[str, Any] | None = None) -> None:
        """Report the end of a read: with its end record, or with the reason for its absence."""
        if self._receipt is not None:
            self._receipt.end(record, code=getattr(why, "code", "") or LEFT, digest=self.digest)

    def _check_snapshot(self, came: str) -> None:
        """Check the answer's version. Raises: Conflict if it is not the requested one, or that of the rows before."""
        if not (self._versioned or self.rows):
            self.snapshot = ""  # it was of an answer without rows
        if came and self.snapshot and came != self.snapshot:
            raise Conflict(
                f"expected rows of the version {self.snapshot[:80]}, got some of {came[:80]}: the owner has published "
                "another version; begin anew",
                code="snapshot_changed",
            )
        self.snapshot = self.snapshot or came

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches as they are received. Raises: HanseError, unless the stream is complete."""
        if self._table is not None:
            yield from self._table.to_batches()
            return
        if self._started:
            raise BadInput("this stream was read already; open another one, or use to_arrow() to keep its rows")
        if self._closed:
            raise BadInput("this stream was closed before it was read; open another one")
        self._started = True
        try:
            while (batch := self._next_with_retry()) is not None:
                self.rows += batch.num_rows
                if self._receipt is not None:
                    self._receipt.rows += batch.num_rows
                yield batch
            self._complete = True
        except HanseError as error:
            self._end_receipt(error)
            self.error = error if self._about is None else error.about(*self._about)
            raise
        finally:
            self.close()

    def _next_with_retry(self) -> pa.RecordBatch | None:
        check_process(self._process)
        while not self._closed:  # checked first: received batches are not yielded after `close`
            try:
                if self._renew is not None:
                    self._renew()
                batch = self._next()
                if batch is None and self._request_more():
                    continue
            except HanseError as error:
                if not self._closed:
                    self._reopen_or_raise(error)
            else:
                if self._patience.reset():
                    self._body.set_silence(self._patience.silence)
                return batch
        raise BadInput("this stream was closed while it was read; open another one to continue")

    def _request_more(self) -> bool:
        """Request the next portion of what is due after a complete answer; return whether there was one."""
        if self._reopen is None or self._due is None or not self._due.has_more():
            return False
        self._body.close()
        self._from, self.end = None, {}
        self._open(self._reopen(None))
        return True

    def _reopen_or_raise(self, error: HanseError) -> None:
        """Connect again and read on after the last batch, or raise a permanent error."""
        if self._reopen is None or (self.place is None and self.rows):
            raise error
        while True:
            self._body.close()
            self._end_receipt(error)
            self._patience.pause_or_raise(error)
            if self._closed:  # closed during the pause: another attempt would be another read
                return
            try:
                answer = self._reopen(self._from)
                self._open(answer)
            except HanseError as again:
                error = again
            else:
                self.reopened += 1
                return

    def _next(self) -> pa.RecordBatch | None:
        """Return the next batch with rows; None after the end record."""
        while True:
            before = self._messages.digest.text()  # Arrow reads one batch at a time, never ahead
            try:
                batch, metadata = self._translate_errors(self._reader.read_next_batch_with_custom_metadata)
            except StopIteration:
                raise StreamIncomplete(
                    f"expected an end record, got none: the stream stopped after {self.rows} rows, so rows are "
                    "missing; read it again",
                    rows=self.rows,
                ) from None
            if metadata is not None and END in metadata:
                self._finish(_read_end_record(metadata[END]), batch, before)
                return None
            if self._validate:
                self._translate_errors(partial(batch.validate, full=True))
            if batch.num_rows:
                self.place = self._from = _read_place(metadata)
                if self._due is not None:
                    self._due.take(self.place, batch.num_rows)
                if self.place is not None and self.place["cursor"] == self._after:
                    raise Broken(
                        "expected rows after the requested place, got rows that end there: they would be read again "
                        "and again, and counted each time"
                    )
                self.held, self._messages.taken = max(self._messages.taken, batch.get_total_buffer_size()), 0
                return batch

    def _finish(self, end: Mapping[str, Any], batch: pa.RecordBatch, digest: str) -> None:
        self.end, self.digest = end, digest
        self._end_receipt(record=end)
        check_digest(end, digest)  # first: if the bytes differ, nothing else in the record matters
        if batch.num_rows:
            raise Broken(f"expected an end record without rows, got one with {batch.num_rows}")
        if (error := error_from_end(end, ours=self._about is None)) is not None:
            raise error
        received = self.rows - self._rows_before
        if type(end.get("rows")) is not int:
            raise Broken(f"expected the number of rows in the stream's end record, got {str(end.get('rows'))[:40]!r}")
        if end["rows"] != received:
            raise StreamIncomplete(
                f"expected {end['rows']} rows by the end record, got {received}; read it again", rows=self.rows
            )
        if self._due is not None:
            self._due.end()
        if (sentences := _left_out_sentences(end)) and self._reopen is None:
            warnings.warn(f"{'. '.join(sentences)} (answer.complete is False)", GroupsLeftOut, stacklevel=2)

    def _translate_errors(self, act: Callable[[], Any]) -> Any:
        """Raise Arrow's errors as the client's. Errors of the connection pass through Arrow unchanged."""
        try:
            return act()
        except (pa.ArrowException, EOFError, OSError) as error:
            raise Broken(f"expected an Arrow stream, got another form: {str(error).splitlines()[0][:200]}") from error

    @property
    def owners(self) -> list[dict[str, Any]]:
        """What each owner of a federated query sent: participant, dataset, rows of data and of results, bytes,
        withheld. Reads to the end."""
        return self._read_list("owners", dict)

    @property
    def missing(self) -> list[dict[str, Any]]:
        """Owners that a partial answer lacks. Reads to the end."""
        return self._read_list("missing", dict)

    @property
    def complete(self) -> bool:
        """Whether the answer covers everything that was asked: no group may be left out, and no owner is missing. Reads
        to the end.

            answer = space.query('SELECT count(*) AS n FROM "all".patients')
            if not answer.complete:
                print(answer.left_out, answer.missing)
        """
        return not self.missing and self.withheld == _WITHHELD[0]

    @property
    def withheld(self) -> str:
        """`nothing`; `possibly`: owners leave out small groups, if there are any; `some`: an owner left out groups, or
        sent none. Reads to the end."""
        if not self.end:
            self.to_arrow()
        return _strongest_withheld(self.end)

    @property
    def left_out(self) -> list[str]:
        """Which groups are left out at which owners, in sentences; empty if nothing is. Reads to the end."""
        self._read_list("left_out", str)
        return _left_out_sentences(self.end)

    @property
    def policy(self) -> list[str]:
        """The rules that shaped the answer, in words. Reads to the end."""
        return self._read_list("policy", str)

    def _read_list(self, name: str, kind: type) -> list[Any]:
        if not self.end:
            self.to_arrow()
        items = self.end.get(name, [])
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise Broken(f"expected a list of {name} in the stream's end record, got another form")
        return items

    def into(self, memory: Memory) -> None:
        """Receive the following batches in memory from this allocator, as `pa.allocate_buffer` returns it."""
        self._memory = memory
        self._body.use_memory(memory)

    def to_arrow(self, *, bytes_max: int | None = None) -> pa.Table:
        """Return all rows as a table. The table is kept: further calls return it again.

        `bytes_max`: the most memory that the rows may take; None for no limit.

        Raises:
            BadInput: the rows take more (`memory_limit`). The stream is closed then.
            HanseError: as while it is read.
        """
        if self._table is None:
            self.into(allocate_lasting)  # memory for a result that lives long
            table = pa.Table.from_batches(list(self._read_within(bytes_max)), schema=self.schema)
            self._table = table.replace_schema_metadata(notes) if (notes := self.notes()) else table
        return self._table

    def _read_within(self, bytes_max: int | None) -> Iterator[pa.RecordBatch]:
        held = 0
        for batch in self:
            held += self.held
            if bytes_max is not None and held > bytes_max:
                self.close()
                error = BadInput(
                    f"expected rows that fit into {bytes_max:,} bytes of memory, got more after {self.rows:,} rows; "
                    "choose columns= and where=, read batch by batch, or give a higher bytes_max=",
                    code="memory_limit",
                )
                raise error if self._about is None else error.about(*self._about)
            yield batch

    def notes(self) -> dict[str, str]:
        """Return the metadata for a file of these rows, as far as known: whether groups are left out. Empty if none
        are."""
        end = self.end or self._announced
        if not (sentences := _left_out_sentences(end)):
            return {}
        return {"hanse.withheld": _strongest_withheld(end), "hanse.left_out": ". ".join(sentences)}

    def to_reader(self) -> pa.RecordBatchReader:
        """Return a reader for libraries that take one; constant memory."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def to_pandas(self, **options: Any) -> pandas.DataFrame:
        """Return a pandas frame; `options` are those of `pyarrow.Table.to_pandas`. Raises: HanseError."""
        with require_extra("pandas"):  # before any row is read
            import pandas  # noqa: F401  # used by Arrow

        table = self.to_arrow()
        columns = (_pandas_values(column) for batch in table.to_batches() for column in batch.columns)
        refuse_oversized(filter(_is_object, columns), frame=True)
        with name_failing_column(
            zip(table.column_names, table.columns, strict=True), lambda column: _raise_overflow(column, options)
        ):
            return table.to_pandas(**options)

    def to_polars(self) -> polars.DataFrame:
        """Return a polars frame over the same memory where the types allow it. Raises: HanseError."""
        with require_extra("polars"):
            import polars

        frame = polars.from_arrow(self.to_arrow())
        return frame if isinstance(frame, polars.DataFrame) else frame.to_frame()

    def to_duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """Return a DuckDB relation over the same memory. Raises: HanseError."""
        with require_extra("duckdb"):
            import duckdb

        return (connection or duckdb.connect()).from_arrow(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export by the Arrow PyCapsule interface: the consumer reads batch by batch, without copies."""
        source = self.to_reader() if self._table is None else self._table
        return source.__arrow_c_stream__(requested_schema)

    def close(self) -> None:
        """Stop reading. The owner records the stream as broken off, unless it was at its end."""
        self._closed = True
        self._body.close()
        self._end_receipt()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_withheld(record: Mapping[str, Any]) -> str:
    """Return what an end record, or its part about an owner, states of groups that are left out.

    Earlier versions send a boolean, and their policy notes mention groups; anything unknown counts as `possibly`.
    """
    withheld = record.get("withheld")
    if withheld is None or isinstance(withheld, bool):
        notes = record.get("policy")
        grouped = isinstance(notes, list) and any(word in str(note) for note in notes for word in _OF_GROUPS)
        return _WITHHELD[2] if withheld else _WITHHELD[1 if grouped else 0]
    return withheld if isinstance(withheld, str) and withheld in _WITHHELD else _WITHHELD[1]


def _strongest_withheld(end: Mapping[str, Any]) -> str:
    """Return the strongest statement of an end record about the answer and each owner."""
    owners = end.get("owners")
    each = [owner for owner in owners if isinstance(owner, dict)] if isinstance(owners, list) else []
    return max((read_withheld(record) for record in (end, *each)), key=_WITHHELD.index)


def _left_out_sentences(end: Mapping[str, Any]) -> list[str]:
    """Return an end record's sentences about groups that are left out; a default sentence if it has none."""
    if _strongest_withheld(end) == _WITHHELD[0]:
        return []
    items = end.get("left_out")
    texts = [escape_control(item[:1000]) for item in items if isinstance(item, str)] if isinstance(items, list) else []
    return texts or [_LEFT_OUT]


def check_file(file: Any) -> None:
    """Read a stream from a file to its end.

    Raises:
        DigestMismatch: the end record has another digest than the bytes before it.
        StreamIncomplete: there is no end record.
        Broken: it is not an Arrow stream.
    """
    messages = CheckedBody(file)
    try:
        with pa.ipc.open_stream(messages) as reader:
            while True:
                before = messages.digest.text()
                _, metadata = reader.read_next_batch_with_custom_metadata()
                if metadata is not None and END in metadata:
                    return check_digest(_read_end_record(metadata[END]), before)
    except StopIteration:
        raise StreamIncomplete("expected a stream with an end record, got one without; fetch it again") from None
    except (pa.ArrowException, EOFError, OSError) as error:
        raise Broken(f"expected an Arrow stream, got another form: {str(error).splitlines()[0][:200]}") from error


def _pandas_values(column: pa.Array) -> pa.Array:
    """Return the values that pandas creates: for a dictionary each one once."""
    return column.dictionary if pa.types.is_dictionary(column.type) else column


def _is_object(column: pa.Array) -> bool:
    """Return whether pandas stores each value as an object: anything but numbers and times."""
    return not pa.types.is_primitive(column.type)


def _raise_overflow(column: pa.ChunkedArray, options: Mapping[str, Any]) -> None:
    """Raise the error of a date or time that pandas cannot represent. Other errors come from the options."""
    try:
        column.to_pandas(**{**options, "self_destruct": False})
    except (OverflowError, ValueError) as error:
        late = isinstance(error, OverflowError) or _OUT.search(str(error))
        if late and any(map(pa.types.is_temporal, nested_types(column.type))):
            raise


def _show_values(column: pa.ChunkedArray) -> list[str | None]:
    """Return a column's values as short texts; of bytes and nested values the type alone."""
    import pyarrow.compute as pc

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_nested(kind):
            raise pa.ArrowNotImplementedError("not shown")
        return list(pc.utf8_slice_codeunits(column.cast(pa.string()), 0, CELL_MAX + 1).to_pylist())
    except (pa.ArrowException, ValueError):  # a type without a text, or a date that Arrow cannot write
        return [f"<{column.type}>" if valid else None for valid in column.is_valid().to_pylist()]


def _read_place(metadata: Any) -> Mapping[str, Any] | None:
    text = None if metadata is None else metadata.get(AT)
    if text is None:
        return None
    try:
        place = json.loads(text)
    except (ValueError, RecursionError):
        place = None
    kinds = {"block": int, "cursor": str}
    if not isinstance(place, dict) or any(type(place.get(name)) is not kind for name, kind in kinds.items()):
        raise Broken("expected a batch's place with block and cursor, got another form")
    if not 0 < len(place["cursor"]) <= _CURSOR_MAX or not place["cursor"].isascii():
        raise Broken(f"expected a cursor of 1 to {_CURSOR_MAX} ASCII characters, got {len(place['cursor'])} characters")
    return place


def _read_end_record(text: bytes) -> Mapping[str, Any]:
    check_record(text)
    try:
        end = json.loads(text)
    except (ValueError, RecursionError):
        end = None
    if not isinstance(end, dict) or "status" not in end:
        raise Broken("expected an end record with a status, got another form")
    return end
