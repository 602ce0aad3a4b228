"""Arrow batches from a governed stream, with the record at its end: how it ended, how much came, what was withheld.

A stream is over when its end record has come, and only then: one that stops at a batch border without it raises
StreamIncomplete. The record names the digest of every byte before it; where other bytes came, DigestMismatch is raised,
and reading does not go on: batches that were given before that may be damaged. What the stream holds was made
elsewhere, so each batch is validated fully before it is given.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from hanse._arrow.message_limits import CheckedBody
from hanse._arrow.validation import Validator
from hanse._arrow.value_limits import name_failing_column, nested_types, refuse_oversized
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
from hanse.options import require_extra
from hanse.plan import DueBlocks
from hanse.retry import Patience

if TYPE_CHECKING:
    import duckdb
    import pandas  # type: ignore[import-untyped]  # it ships no types
    import polars

END = b"hanse.end"
AT = b"hanse.at"
_CURSOR_MAX = 1024  # letters; those of our owners have 80, and readers keep some of each batch that waits
_SHOWN = 10  # columns that are named to people
_WITHHELD = ("nothing", "possibly", "some")
_OF_GROUPS = (
    "groups of at least ",
    "noise of epsilon ",
)  # in the notes of owners that say no more of what they withhold
_LEFT_OUT = "Small groups may be left out at the owners: totals and averages may be too low"
_OUT = re.compile("out of (range|bounds)")  # as Python and Arrow say it of a day or a moment

Reopen: TypeAlias = "Callable[[Mapping[str, Any] | None], HttpReply]"


class Stream:
    """Batches, once: iterate, or hand the whole to a library. Close it (or leave its `with`) to stop early: it gives
    none after that.

    `schema` is there at once; `end` when the last batch has come. Any library that takes the Arrow C stream interface
    takes a Stream as it is: `polars.DataFrame(stream)`, `pa.table(stream)`, `duckdb.sql("from stream")`.

    With `reopen` a lost connection, a restart of the owner or an expired ticket is no end: reading goes on after the
    last batch, as long as `patience` lasts. So it does with what is `due` and more than an owner takes in one request;
    `end` is that of the last one. `place` is what the owner says of the place of the batch given last.

    It is for the process that opened it: BadInput in one that was forked since.
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
        """`schema`, `due` and `snapshot`: what must come, where that is known; `start`: the place that it goes on from.
        `about`: of which dataset, under which agreement. `receipts`: where each answer that it reads is told of."""
        self._validate = validate
        self._reopen = reopen
        self._patience = patience or Patience()
        self._due = due
        self._about = about
        self._table: pa.Table | None = None
        self._started = self._closed = self._complete = False
        self._process = os.getpid()
        self.rows = 0
        self.held = 0  # bytes of memory that the batch given last keeps: whatever came for it, and what that became
        self.place: Mapping[str, Any] | None = None
        self._from = start  # the same in what is being asked for
        self.snapshot = snapshot
        self._versioned = bool(snapshot or start) or due is not None  # it goes on with rows, or blocks, of one version
        self.reopened = 0
        self.end: Mapping[str, Any] = {}
        self.digest = ""  # computed here, of what came before the end record; empty until that has come
        self.error: HanseError | None = None
        self.schema: pa.Schema = schema
        self._memory: Memory | None = None
        self._receipts = receipts
        self._receipt: Receipt | None = None
        self._open(answer)

    def __repr__(self) -> str:
        """What a notebook shows: of which dataset, which columns, how far."""
        of = f" {self._about[0]}" if self._about else ""
        names = self.schema.names if self.schema is not None else []
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        told = "complete" if self._complete else "failed" if self.error else "closed" if self._closed else "open"
        return f"<Stream{of}, columns {', '.join(names[:_SHOWN])}{more}, {told}, {self.rows:,} rows came>"

    def _open(self, answer: HttpReply) -> None:
        """Read from this answer on. Broken where its columns are others: who has been told the schema believes it, and
        reads memory by it."""
        self._body = answer.body
        if self._memory is not None:
            self._body.use_memory(self._memory)
        self.read_id = answer.headers.get("hanse-read", "")
        self._announced = {"withheld": answer.headers.get("hanse-withheld")}  # before the end record says it
        self._begin_receipt()
        self._rows_before = self.rows
        self._after = "" if self._from is None else self._from["cursor"]
        self._messages = CheckedBody(self._body)
        try:
            self._check_snapshot(answer.headers.get("hanse-snapshot", ""))
            self._reader = self._translate_errors(lambda: pa.ipc.open_stream(self._messages))
            if self.schema is None:
                self.schema = self._reader.schema
            elif not self._reader.schema.equals(self.schema):
                raise Broken("expected a stream of the columns and types that were told before, got others")
        except BaseException as error:
            self._body.close()  # nobody has a stream to close: whoever keeps the error would keep the owner reading
            self._end_receipt(error)
            raise
        self._validator = Validator(self._reader.schema)

    def _begin_receipt(self) -> None:
        """Each answer is a read of its own in its owner's log, and so in ours."""
        self.digest = ""
        if self._receipts is not None:
            self._receipt = self._receipts.begin(self.read_id)
            weakref.finalize(self, self._receipt.end, code=LEFT).atexit = False  # of a stream that nobody closes

    def _end_receipt(self, why: BaseException | None = None, record: Mapping[str, Any] | None = None) -> None:
        """What was being read is over: with its end record, or without one for this reason."""
        if self._receipt is not None:
            self._receipt.end(record, code=getattr(why, "code", "") or LEFT, digest=self.digest)

    def _check_snapshot(self, came: str) -> None:
        """Conflict where an answer is of another version than the one asked for, or than the rows before it."""
        if not (self._versioned or self.rows):
            self.snapshot = ""  # of an answer that gave no row
        if came and self.snapshot and came != self.snapshot:
            raise Conflict(
                f"expected rows of the version {self.snapshot[:80]}, got some of {came[:80]}: its owner has another "
                "one by now; begin anew",
                code="snapshot_changed",
            )
        self.snapshot = self.snapshot or came

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches as they come. Raises what ended the stream, where it did not end by itself."""
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
        while not self._closed:  # else what had come already would be given or not, as it happens
            try:
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
        raise BadInput("this stream was closed while it was read; open another one to go on")

    def _request_more(self) -> bool:
        """After a proper end: ask for what is due and was too much for one request. Whether there was any."""
        if self._reopen is None or self._due is None or not self._due.has_more():
            return False
        self._body.close()
        self._from, self.end = None, {}
        self._open(self._reopen(None))
        return True

    def _reopen_or_raise(self, error: HanseError) -> None:
        """Connect anew and read on after the last batch, or raise what does not pass by waiting."""
        if self._reopen is None or (self.place is None and self.rows):
            raise error
        while True:
            self._body.close()
            self._end_receipt(error)
            self._patience.pause_or_raise(error)
            if self._closed:  # meanwhile: another attempt would be a read of its own
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
        """The next batch that holds rows; None after a proper end."""
        while True:
            before = self._messages.digest.text()  # Arrow reads one batch at a time, and nothing ahead of it
            try:
                batch, metadata = self._translate_errors(self._reader.read_next_batch_with_custom_metadata)
            except StopIteration:
                raise StreamIncomplete(
                    f"the stream stopped after {self.rows} rows without saying that it was complete: what came is not "
                    "all there is; read it again",
                    rows=self.rows,
                ) from None
            if metadata is not None and END in metadata:
                self._finish(_read_end_record(metadata[END]), batch, before)
                return None
            if self._validate:
                self._translate_errors(lambda: self._validator.check(batch))  # noqa: B023  # called here and now
            if batch.num_rows:
                self.place = self._from = _read_place(metadata)
                if self._due is not None:
                    self._due.take(self.place, batch.num_rows)
                if self.place is not None and self.place["cursor"] == self._after:
                    raise Broken(
                        "expected rows after the place that was asked for, got some that end there: they would come "
                        "again and again, each time as a read that counts"
                    )
                self.held, self._messages.taken = max(self._messages.taken, batch.get_total_buffer_size()), 0
                return batch

    def _finish(self, end: Mapping[str, Any], batch: pa.RecordBatch, digest: str) -> None:
        self.end, self.digest = end, digest
        self._end_receipt(record=end)
        check_digest(end, digest)  # before all else: whatever the end says, rows that are not the owner's are no rows
        if batch.num_rows:
            raise Broken(f"expected an end record without rows, got one with {batch.num_rows}")
        if (error := error_from_end(end, ours=self._about is None)) is not None:
            raise error
        came = self.rows - self._rows_before
        if type(end.get("rows")) is not int:
            raise Broken(f"expected the number of rows in the stream's end record, got {str(end.get('rows'))[:40]!r}")
        if end["rows"] != came:
            raise StreamIncomplete(
                f"the stream says that it has {end['rows']} rows, {came} came: read it again", rows=self.rows
            )
        if self._due is not None:
            self._due.end()
        if (said := _left_out_sentences(end)) and self._reopen is None:
            warnings.warn(f"{'. '.join(said)} (answer.complete is False)", GroupsLeftOut, stacklevel=2)

    def _translate_errors(self, act: Callable[[], Any]) -> Any:
        """Arrow's own complaints as ours. What the wire raised comes through Arrow unchanged."""
        try:
            return act()
        except (pa.ArrowException, EOFError, OSError) as error:
            raise Broken(f"the stream is not Arrow as expected: {str(error).splitlines()[0][:200]}") from error

    @property
    def owners(self) -> list[dict[str, Any]]:
        """What each owner sent (a federated query's): participant, dataset, rows of data and
        of results, bytes, withheld. Reads to the end."""
        return self._read_list("owners", dict)

    @property
    def missing(self) -> list[dict[str, Any]]:
        """Owners that the answer is without, where a partial one was asked for. Reads to the end."""
        return self._read_list("missing", dict)

    @property
    def complete(self) -> bool:
        """Whether the answer is about all that was asked: no group may be left out, and no owner is missing. Reads to
        the end.

            answer = space.query('SELECT count(*) AS n FROM "all".patients')
            if not answer.complete:
                print(answer.left_out, answer.missing)
        """
        return not self.missing and self.withheld == _WITHHELD[0]

    @property
    def withheld(self) -> str:
        """`nothing`; `possibly`: owners leave out small groups, if there are any; `some`: an owner left out groups, or
        gave none. Reads to the end."""
        if not self.end:
            self.to_arrow()
        return _strongest_withheld(self.end)

    @property
    def left_out(self) -> list[str]:
        """Which groups are left out at which owners, in sentences; empty where nothing is. Reads to the end."""
        self._read_list("left_out", str)
        return _left_out_sentences(self.end)

    @property
    def policy(self) -> list[str]:
        """Which rules shaped the answer, in words. Reads to the end."""
        return self._read_list("policy", str)

    def _read_list(self, name: str, kind: type) -> list[Any]:
        if not self.end:
            self.to_arrow()
        found = self.end.get(name, [])
        if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
            raise Broken(f"expected a list of {name} in the stream's end record, got another form")
        return found

    def into(self, memory: Memory) -> None:
        """Have the batches that come from now on lie in memory that this makes, as `pa.allocate_buffer` does."""
        self._memory = memory
        self._body.use_memory(memory)

    def to_arrow(self) -> pa.Table:
        """Everything as a table, kept: call it as often as you like."""
        if self._table is None:
            self.into(allocate_lasting)  # memory that is made for what stays
            table = pa.Table.from_batches(list(self), schema=self.schema)
            self._table = table.replace_schema_metadata(notes) if (notes := self.notes()) else table
        return self._table

    def notes(self) -> dict[str, str]:
        """What a file of these rows should say of them in its metadata, as far as it is known by now: whether groups
        are left out. Empty where none is."""
        end = self.end or self._announced
        if not (said := _left_out_sentences(end)):
            return {}
        return {"hanse.withheld": _strongest_withheld(end), "hanse.left_out": ". ".join(said)}

    def to_reader(self) -> pa.RecordBatchReader:
        """A reader for libraries that take one; constant memory."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def to_pandas(self, **options: Any) -> pandas.DataFrame:
        """A pandas frame; `options` are those of `pyarrow.Table.to_pandas`."""
        with require_extra("pandas"):  # before anything is read
            import pandas  # noqa: F401  # Arrow makes the frame

        table = self.to_arrow()
        columns = (_pandas_values(column) for batch in table.to_batches() for column in batch.columns)
        refuse_oversized(filter(_is_object, columns), arrays=True, together=True)
        with name_failing_column(
            zip(table.column_names, table.columns, strict=True), lambda one: _raise_overflow(one, options)
        ):
            return table.to_pandas(**options)

    def to_polars(self) -> polars.DataFrame:
        """A polars frame over the same memory where the types allow it."""
        with require_extra("polars"):
            import polars

        frame = polars.from_arrow(self.to_arrow())
        return frame if isinstance(frame, polars.DataFrame) else frame.to_frame()

    def to_duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the same memory."""
        with require_extra("duckdb"):
            import duckdb

        return (connection or duckdb.connect()).from_arrow(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The Arrow PyCapsule interface: whoever takes it reads batch by batch, without copies."""
        source = self.to_reader() if self._table is None else self._table
        return source.__arrow_c_stream__(requested_schema)

    def close(self) -> None:
        """Stop. The owner records that the stream was broken off, unless it was at its end."""
        self._closed = True
        self._body.close()
        self._end_receipt()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_withheld(told: Mapping[str, Any]) -> str:
    """What an end record, or its part about an owner, says of groups that are left out. Earlier versions say true or
    false, and the notes of their policies tell of groups; what is unknown counts as `possibly`."""
    said = told.get("withheld")
    if said is None or isinstance(said, bool):
        notes = told.get("policy")
        grouped = isinstance(notes, list) and any(word in str(one) for one in notes for word in _OF_GROUPS)
        return _WITHHELD[2] if said else _WITHHELD[1 if grouped else 0]
    return said if isinstance(said, str) and said in _WITHHELD else _WITHHELD[1]


def _strongest_withheld(end: Mapping[str, Any]) -> str:
    """The strongest of what an end record says of the answer and of each owner."""
    owners = end.get("owners")
    each = [one for one in owners if isinstance(one, dict)] if isinstance(owners, list) else []
    return max((read_withheld(one) for one in (end, *each)), key=_WITHHELD.index)


def _left_out_sentences(end: Mapping[str, Any]) -> list[str]:
    """What an end record says of groups that are left out; a sentence of ours where it has none."""
    if _strongest_withheld(end) == _WITHHELD[0]:
        return []
    told = end.get("left_out")
    said = [escape_control(one[:1000]) for one in told if isinstance(one, str)] if isinstance(told, list) else []
    return said or [_LEFT_OUT]


def check_file(file: Any) -> None:
    """Read a whole stream that was kept in a file. DigestMismatch where its end record names another digest than that
    of the bytes before it, Broken for what is no Arrow stream, StreamIncomplete where it has no end record."""
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
        raise Broken(f"the stream is not Arrow as expected: {str(error).splitlines()[0][:200]}") from error


def _pandas_values(column: pa.Array) -> pa.Array:
    """The values that pandas makes: of a dictionary each once, named by its place."""
    return column.dictionary if pa.types.is_dictionary(column.type) else column


def _is_object(column: pa.Array) -> bool:
    """Whether pandas has each value as an object: not numbers and moments."""
    return not pa.types.is_primitive(column.type)


def _raise_overflow(column: pa.ChunkedArray, options: Mapping[str, Any]) -> None:
    """Raise what pandas has no form for: days and moments. What else fails is not of the column, but of the options."""
    try:
        column.to_pandas(**{**options, "self_destruct": False})
    except (OverflowError, ValueError) as error:
        late = isinstance(error, OverflowError) or _OUT.search(str(error))
        if late and any(map(pa.types.is_temporal, nested_types(column.type))):
            raise


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
        raise Broken("the place of a batch cannot be read")
    if not 0 < len(place["cursor"]) <= _CURSOR_MAX or not place["cursor"].isascii():
        raise Broken(f"expected a cursor of 1 to {_CURSOR_MAX} letters and digits, got {len(place['cursor'])} signs")
    return place


def _read_end_record(text: bytes) -> Mapping[str, Any]:
    check_record(text)
    try:
        end = json.loads(text)
    except (ValueError, RecursionError):
        end = None
    if not isinstance(end, dict) or "status" not in end:
        raise Broken("the stream's end record cannot be read")
    return end
