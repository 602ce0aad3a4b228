"""Handlers of a worker, one function for each kind of job; table TASKS. Runs in a worker only.

A handler gets its session, which sends frames and cleans up, and its job. Knows nothing of agreements or policies,
except the recheck that a job asks for.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from connector.datasets.sources import divisible_source, find_position_clash, source
from connector.engine.pool import protocol as wire
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job
from connector.engine.worker.inspect import arrow_files, parquet_footers, untrusted_arrow
from connector.engine.worker.inspect import profile as dataset_profile
from connector.engine.worker.read import batching, duckdb_engine, parquet_scan, row_ranges, wide_tables
from connector.engine.worker.read.scan_scheduler import Resting
from connector.engine.worker.write.arrow_stream import ArrowStreamWriter, Format, FrameWriter
from connector.infra import jemalloc
from policies.errors import PolicyError

if TYPE_CHECKING:
    from connector.engine.worker.session import Session

_VALUE_ROWS_MAX = 10_000
_AHEAD = 2  # batches
_LARGE = 16 * 2**20  # bytes of a batch: while a larger one is sent, no other is made
_BATCHES = 8 * 2**20  # bytes of the batches of all scans in a process together, one each
_BATCH_MIN = 2**19
_ALL = 2**62
_UNFIT = ("query_invalid", "computation_failed")  # codes of a statement that does not fit its columns' types
# Types that the engine returns as they are stored, in addition to whole numbers and decimals.
_PLAIN = (pa.bool_(), pa.float32(), pa.float64(), pa.string(), pa.date32())


def run(session: Session, job: Job) -> None:
    """Run a job. Raises: Coded("job_invalid") for an unknown kind."""
    if job.kind not in TASKS:
        raise Coded("job_invalid")
    TASKS[job.kind](session, job)


def open_engine(session: Session, job: Job, answers: Mapping[str, list[pa.Table]] = MappingProxyType({})) -> Any:
    """Return a fenced engine with the job's relations, `answers` included, after its SQL was rechecked."""
    opening = session.open(job)
    con = (opening.ready_once if job.once else opening.ready)(job.relations, session.worker.keeping.engine)
    for name, relation in job.relations.items():
        if relation.answers:
            opening.take(name, answers[name], relation.taken)
        elif relation.blob is not None:
            opening.bring(name, untrusted_arrow.read_blob(job.blobs[relation.blob], columns=relation.columns))
    _recheck(con, job)
    session.check()
    return con


def _read_answers(session: Session, job: Job) -> dict[str, list[pa.Table]]:
    """Return the job's unread answers by relation, and send what they hold. All must be complete."""
    unread = untrusted_arrow.UnreadAnswers(job, session.check)
    tables = {
        name: unread.tables(relation.answers, relation.columns)
        for name, relation in job.relations.items()
        if relation.answers
    }
    if tables:
        session.send(wire.ANSWERS, json.dumps([one for _, one in sorted(unread.summaries.items())]).encode())
    return tables


def _recheck(con: Any, job: Job, sql: str = "") -> None:
    """Check with the engine's parser that the SQL has only what the gate put there.

    Step 4 of `dataplane.admission`.
    """
    if job.recheck is None:
        return
    from policies.sql import engine_recheck as second

    text = con.execute(second.RECHECK_SQL, [sql or job.sql]).fetchall()[0][0]
    try:
        second.check(text, names=frozenset(job.recheck.names), functions=frozenset(job.recheck.functions))
    except PolicyError as refusal:
        raise Coded(refusal.code, rule=refusal.rule) from None


def query(session: Session, job: Job) -> None:
    """Send the rows of one SELECT: schema, trailer, batches, end."""
    schema, parts = _read_parts(session, job)
    with closing(_Prefetcher(session, parts)) as coming:
        out = FrameWriter(session, job, _make_format(job, schema), idle=coming.idle, sized=coming.set_size)
        for batch, at, block in coming:
            session.check()
            if batch.num_rows:
                out.write(batch, at=at, block=block, last=coming.has_ended)
            del batch  # frees a large one while the next is made
    for found in session.files:
        found.check_unchanged()
    out.end()


class _Prefetcher:
    """Makes batches in a thread while earlier ones are digested and copied. Both work outside the interpreter's lock.

    Two are requested at a time, so that the engine need not wait for this thread. With many jobs in the process only
    one is: the memory is not worth it. The next batch after a large one is made when that has been sent, because
    making it takes several times its size.
    """

    def __init__(self, session: Session, parts: Iterator[row_ranges.RangeBatch]) -> None:
        self._session, self._parts = session, parts
        self._most = 1 if session.worker.crowded else _AHEAD
        self._coming = deque(self._submit_next() for _ in range(self._most))

    def __iter__(self) -> Iterator[row_ranges.RangeBatch]:
        while (part := self._coming.popleft().result()) is not None:
            yield part
            del part
            if not self._coming:  # it was large, or empty
                self._coming.append(self._submit_next())

    def set_size(self, size: int) -> None:
        """Take the size of the current batch: after a small one the next are requested at once."""
        while size <= _LARGE and len(self._coming) < self._most:
            self._coming.append(self._submit_next())

    def has_ended(self) -> bool:
        """Whether the source has already ended."""
        if not self._coming:
            return False
        following = self._coming[0]
        return following.done() and following.exception() is None and following.result() is None

    def idle(self) -> None:
        """Let others have the engine while the reader is slow."""
        if isinstance(self._parts, Resting):
            wait(self._coming)
            self._parts.idle()

    def close(self) -> None:
        """Stop all work."""
        if isinstance(self._parts, Resting):
            self._parts.close()
        for unwanted in self._coming:
            unwanted.cancel()
        while wait(self._coming, timeout=0.02).not_done:  # one interrupt can come too early
            self._session.interrupt()
        if isinstance(self._parts, Resting):
            self._parts.rest()
        elif isinstance(self._parts, Generator):
            self._parts.close()  # before the engine that its threads may work in

    def _submit_next(self) -> Future[row_ranges.RangeBatch | None]:
        return self._session.maker.submit(next, self._parts, None)


def _make_format(job: Job, schema: pa.Schema) -> Format:
    if notes := job.arguments.get("notes"):  # our own; foreign schema metadata is dropped (decision 51)
        schema = schema.with_metadata(notes)
    if job.format == wire.ARROW:
        return ArrowStreamWriter(schema, codec=job.codec, digest=job.digest, trailer_room=job.trailer_room)
    from connector.engine.worker.write.file_formats import FileFormatWriter

    return FileFormatWriter(job, schema)


def _read_parts(session: Session, job: Job) -> tuple[pa.Schema, Iterator[row_ranges.RangeBatch]]:
    """Return the schema and the batches of a query, with their places if it reads ranges."""
    if (only := _find_turns(session, job)) is not None:
        session.wait_for_go(job)
        resting = _open_resting(session, job, only)
        return resting.schema, resting
    answers = _read_answers(session, job)
    if job.passed and (found := _read_passed(session, job, answers)) is not None:
        return found
    con = open_engine(session, job, answers)
    assert session.opening is not None
    only = _row_group_ranges(con, session, job) if job.only is None else job.only
    if only is not None:
        session.wait_for_go(job)
        cons, paths = session.opening.cons, session.files[0].paths
        return row_ranges.read(cons, job, only, paths, folder=session.opening.aside)
    widths = {name: width for relation in job.relations.values() for name, width in relation.row_bytes.items()}
    relation = duckdb_engine.query(con, job.sql, job.params)
    rows = duckdb_engine.rows_of(relation, widths, target=job.batch_bytes)
    rows = rows if job.batch_rows is None else max(1, min(rows, job.batch_rows))
    session.wait_for_go(job)
    schema, batches = _read_batches(session, job, relation, rows)
    if job.noise:
        schema, batches = _add_noise(session, schema, batches, job.noise)
    return schema, map(row_ranges.RangeBatch, batches)


def _read_passed(
    session: Session, job: Job, answers: Mapping[str, list[pa.Table]]
) -> tuple[pa.Schema, Iterator[row_ranges.RangeBatch]] | None:
    """Return the rows of a stream unchanged; None if it has a type that the engine would change."""
    opening, ((name, relation),) = session.open_new(job), job.relations.items()
    if name in answers:
        reader: Any = pa.concat_tables(answers[name]).to_reader()  # of one fragment
    else:
        reader = pa.ipc.open_stream(pa.OSFile(opening.pin(relation, linked=False).paths[0]))
    if not all(map(_is_plain, reader.schema.types)):
        opening.close()
        return None
    schema = pa.schema(list(zip(job.passed, reader.schema.types, strict=True)))  # only the types of the foreign schema
    batches = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in reader)
    return schema, (row_ranges.RangeBatch(piece) for batch in batches for piece in batching.cut(batch, job.batch_bytes))


def _is_plain(kind: pa.DataType) -> bool:
    return kind in _PLAIN or bool(pa.types.is_integer(kind) or pa.types.is_decimal128(kind))


def _find_turns(session: Session, job: Job) -> wire.Ranges | None:
    """Return the ranges of a Parquet scan that takes turns with other scans; None for a scan that does not.

    A filtered scan does not: its next batch may take any time, while the others wait. Reading everything as ranges
    costs a little, so it is done only among many jobs.
    """
    relation = job.relations.get(job.scan)
    if relation is None or relation.kind not in wire.PARQUET:
        return None
    if job.only is None and session.worker.crowded and not job.limits.temp_mb:
        return wire.Ranges([wire.Range(-1, number, 0, _ALL) for number in range(len(relation.files))], "")
    return job.only


def _row_group_ranges(con: Any, session: Session, job: Job) -> wire.Ranges | None:
    """Return the row groups of a scan of wide tables as ranges, which need less disk; None for other jobs."""
    relation = job.relations.get(job.scan)
    if relation is None or relation.kind not in wire.PARQUET or not job.limits.temp_mb:
        return None
    if find_position_clash(relation.kind, [{"name": name} for name in con.view(job.scan).columns]):
        return None
    found = []
    for number, groups in enumerate(divisible_source(relation.kind).groups(_open_files(session.files[0]))):
        ends = list(accumulate(rows for rows, _ in groups))
        found += [wire.Range(-1, number, first, stop) for first, stop in pairwise([0, *ends])]
    return wire.Ranges(found, "") if found else None


def _open_resting(session: Session, job: Job, only: wire.Ranges) -> Resting:
    opening, worker = session.open(job), session.worker

    def begin(left: list[wire.Range]) -> tuple[pa.Schema, Generator[row_ranges.RangeBatch]]:
        con = opening.ready(job.relations, worker.keeping.engine)
        _recheck(con, job)
        most = max(_BATCH_MIN, _BATCHES // max(1, len(worker.sessions)))
        smaller = replace(job, batch_bytes=min(job.batch_bytes, most))
        paths = opening.files[0].paths
        return row_ranges.read(opening.cons, smaller, only, paths, left, folder=opening.aside, crowded=worker.crowded)

    return Resting(
        worker.floor, only.ranges, begin=begin, end=opening.let_go, check=session.check, consumer=job.consumer
    )


def _add_noise(
    session: Session, schema: pa.Schema, batches: Iterator[pa.RecordBatch], plan: Mapping[str, Any]
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    from connector.engine.worker.write import noise  # here: only answers with noise need its library

    table = noise.add(schema, _check_between(session, batches), plan)
    return table.schema, iter(table.to_batches())


def _check_between(session: Session, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches. Raises: Coded between two of them if the job is cancelled."""
    for batch in batches:
        session.check()
        yield batch


def _read_batches(session: Session, job: Job, relation: Any, rows: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the rows from the engine, or from pyarrow where they are unchanged and that is faster."""
    if job.scan and job.batch_rows is None:
        schema = duckdb_engine.schema_of(relation)
        paths = session.files[list(job.relations).index(job.scan)].paths
        if parquet_scan.is_faster(schema, paths, job.relations[job.scan].kind, crowded=session.worker.crowded):
            threads = job.limits.threads > 1
            return schema, parquet_scan.batches(paths, schema, rows=rows, target=job.batch_bytes, threads=threads)
    assert session.opening is not None
    aside, exact = wide_tables.aside(job, session.opening.aside, relation.columns), job.batch_rows is not None
    return duckdb_engine.batches(relation, rows=rows, target=job.batch_bytes, exact=exact, even=job.even, aside=aside)


def report(session: Session, job: Job) -> None:
    """Send the rows of a small answer as JSON, at most 10,000: for reports and counts."""
    con = open_engine(session, job)
    relation = duckdb_engine.query(con, job.sql, job.params)
    schema, batches = duckdb_engine.batches(relation, rows=_VALUE_ROWS_MAX + 1, target=1 << 30)
    rows: list[list[Any]] = []
    for batch in batches:
        if len(rows) + batch.num_rows > _VALUE_ROWS_MAX:
            raise Coded("rows_limit")
        rows += [
            [_to_json_cell(cell) for cell in row] for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)
        ]
    send_value(session, {"columns": schema.names, "rows": rows})


def describe(session: Session, job: Job) -> None:
    """Send the schema of an answer as its IPC message in base64, without reading a row."""
    con = open_engine(session, job)
    schema = duckdb_engine.schema_of(duckdb_engine.query(con, job.sql, job.params))
    send_value(session, {"schema": base64.b64encode(schema.serialize().to_pybytes()).decode()})


def _to_json_cell(cell: Any) -> Any:
    return cell if cell is None or isinstance(cell, (bool, int, float, str)) else str(cell)


def _open_files(files: duckdb_engine.Files) -> list[Any]:
    return [files.open(number) for number in range(len(files.refs))]


def plan(session: Session, job: Job) -> None:
    """Send the schema (Arrow, base64) of a read and the row groups of each file, without reading rows."""
    con = open_engine(session, job)
    relation = next(iter(job.relations.values()))
    groups = (
        divisible_source(relation.kind).groups(_open_files(session.files[0])) if job.arguments.get("groups") else None
    )
    schema = duckdb_engine.schema_of(duckdb_engine.query(con, job.sql, job.params))
    send_value(session, {"groups": groups, "schema": base64.b64encode(schema.serialize()).decode()})


def send_value(session: Session, found: Any) -> None:
    """Send a JSON answer."""
    session.send(wire.VALUE, json.dumps(found, ensure_ascii=False, allow_nan=False, default=str).encode())


def profile(session: Session, job: Job) -> None:
    """Send the profile of a version for its owner: schema, rows, figures of each column, digests of the files."""
    name, relation = next(iter(job.relations.items()))
    opening = session.open(job)
    files = opening.pin(relation)
    union = bool(relation.options.get("union_by_name", False))
    sizes = dataset_profile.Sizes()
    if relation.kind in wire.PARQUET:
        folders = "guess_types" in relation.options  # of the kinds whose folders carry columns
        sizes = parquet_footers.sizes_of(files, union=union, folders=folders, reached=session.reached)
    if relation.kind == "arrow_ipc":
        arrow_files.check(files, reached=session.reached)
        arrow_files.check_values(files, reached=session.reached)
        sizes = arrow_files.sizes_of(files)
    con = opening.fence(session.worker.keeping.engine(), followed=True)
    duckdb_engine.attach(con, name, relation, files)

    def ask(sql: str, told: Callable[[float], None]) -> Sequence[Any]:
        coming = session.maker.submit(lambda: con.sql(sql).fetchall()[0])
        while not wait((coming,), timeout=0.1).done:
            told(max(0.0, con.query_progress()) / 100)
        row: Sequence[Any] = coming.result()
        jemalloc.purge()  # its free blocks do not fit the next columns
        return row

    room = job.limits.memory_mb * 2**20 // 2
    guessed = bool(relation.options.get("guess_types", False))
    found = dataset_profile.profile(
        con, name, files, sizes=sizes, room=room, reached=session.reached, ask=ask, guessed=guessed
    )
    send_value(session, found)


def convert(session: Session, job: Job) -> None:
    """Convert text to Parquet in `arguments.target`, a new file of the connector; removed after an error."""
    relation = job.relations[next(iter(job.relations))]
    opening = session.open(job)
    files = opening.pin(relation)
    target = str(job.arguments["target"])
    con = opening.fence(session.worker.keeping.engine(), target)
    try:
        found = source(relation.kind).convert(con, files.paths, relation.options, target)
        files.check_unchanged()
        send_value(session, found | {"files": dataset_profile.digests(files, reached=session.reached)})
    except BaseException:
        Path(target).unlink(missing_ok=True)
        raise


def check_arrow(session: Session, job: Job) -> None:
    """Validate a foreign Arrow stream, from `arguments.path` or blob 0, and send what it holds."""
    send_value(session, untrusted_arrow.check(job, check=session.check))


def read_answers(session: Session, job: Job) -> None:
    """Read small answers of several owners and send what they hold."""
    send_value(session, untrusted_arrow.read(job, check=session.check))


def shapes(session: Session, job: Job) -> None:
    """Send for each of `arguments.statements` its answer's schema and the engine's types that Arrow lacks.

    The schema is an IPC message in base64: empty where the engine refuses the statement, None where binding takes too
    much. The types are pairs of a column's number and the engine's type. No statement is run.
    """
    opening, found = session.open(job), []
    for sql in job.arguments["statements"]:
        session.check()
        found.append(_describe_statement(opening.ready_once({}, session.worker.keeping.engine), job, sql))
        if found[-1][0] is None:  # the engine may be unusable after it
            opening.let_go()
    send_value(session, found)


def _describe_statement(con: Any, job: Job, sql: str) -> tuple[str | None, list[tuple[int, str]]]:
    try:
        _recheck(con, job, sql)
        schema, others = duckdb_engine.schema_bound(con, sql)
        return base64.b64encode(schema.serialize().to_pybytes()).decode(), [*others.items()]
    except Coded:
        return "", []
    except Exception as error:  # a foreign type must not end the job for the other statements
        code = duckdb_engine.code_of(error, asked=True)
        if code == "cancelled":
            raise
        return ("" if code in _UNFIT else None), []


def unite_keys(session: Session, job: Job) -> None:
    """Unite the keys of several answers, and send whether that was possible without an engine."""
    send_value(session, untrusted_arrow.unite(job, check=session.check))


def verbatim(session: Session, job: Job) -> None:
    """Where the messages of a scan's stream lie in the files themselves, or the error that they do not."""
    from connector.engine.worker.write import arrow_index as index  # it uses what is here

    index.index(session, job)


TASKS: dict[str, Callable[[Session, Job], None]] = {
    "query": query,
    "report": report,
    "plan": plan,
    "describe": describe,
    "profile": profile,
    "convert": convert,
    "check_arrow": check_arrow,
    "read_answers": read_answers,
    "shapes": shapes,
    "unite_keys": unite_keys,
    "verbatim": verbatim,
}
