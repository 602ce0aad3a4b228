"""The tasks of a worker, one function per kind of job; table TASKS. Runs in a worker only.

Each task gets its session (sends frames and cleans up) and its job. Knows nothing of agreements or policies, except the
re-check that a job asks for.
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
from connector.engine.worker.write.arrow_stream import ArrowStreamWriter, Format, Frames
from connector.infra import jemalloc
from policies.errors import PolicyError

if TYPE_CHECKING:
    from connector.engine.worker.session import Session

_VALUE_ROWS_MAX = 10_000
_AHEAD = 2  # batches
_LARGE = 16 * 2**20  # bytes of a batch beside which no other is made
_BATCHES = 8 * 2**20  # bytes that the batches of all scans in a process have together, one each
_BATCH_MIN = 2**19
_ALL = 2**62
_UNFIT = ("query_invalid", "computation_failed")  # a statement and the types of its columns
# With whole numbers and decimals: types that the engine gives as they are stored.
_PLAIN = (pa.bool_(), pa.float32(), pa.float64(), pa.string(), pa.date32())


def run(session: Session, job: Job) -> None:
    """Do a job of a known kind."""
    if job.kind not in TASKS:
        raise Coded("job_invalid")
    TASKS[job.kind](session, job)


def opened(session: Session, job: Job, answers: Mapping[str, list[pa.Table]] = MappingProxyType({})) -> Any:
    """A fenced engine with the job's relations in it, `answers` among them, and its SQL checked once more."""
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


def _answers(session: Session, job: Job) -> dict[str, list[pa.Table]]:
    """The answers that came unread, all of them whole; what is in them is told at once."""
    unread = untrusted_arrow.Unread(job, session.check)
    tables = {
        name: unread.tables(relation.answers, relation.columns)
        for name, relation in job.relations.items()
        if relation.answers
    }
    if tables:
        session.send(wire.ANSWERS, json.dumps([told for _, told in sorted(unread.told.items())]).encode())
    return tables


def _recheck(con: Any, job: Job, sql: str = "") -> None:
    """The engine's own parser reads the SQL and finds only what the gate put there (federated-query 3.4, step 7)."""
    if job.recheck is None:
        return
    from policies.sql import engine_recheck as second

    text = con.execute(second.RECHECK_SQL, [sql or job.sql]).fetchall()[0][0]
    try:
        second.check(text, names=frozenset(job.recheck.names), functions=frozenset(job.recheck.functions))
    except PolicyError as refusal:
        raise Coded(refusal.code, rule=refusal.rule) from None


def query(session: Session, job: Job) -> None:
    """Stream the rows of one SELECT: schema, trailer, batches, end."""
    schema, parts = _parts(session, job)
    with closing(_Ahead(session, parts)) as coming:
        out = Frames(session, job, _format(job, schema), idle=coming.idle, sized=coming.sized)
        for batch, at, block in coming:
            session.check()
            if batch.num_rows:
                out.write(batch, at=at, block=block, last=coming.over)
            del batch  # a large one need not be in memory while the next is made
    for found in session.files:
        found.check_unchanged()
    out.end()


class _Ahead:
    """Parts, made while those before are digested and copied: both work outside the interpreter's lock.

    One is asked for beside the one that is being made: the engine need not wait until we have woken up. Where others
    have work for the processors, that is not worth the memory; and what a large one is made of takes several times as
    much as itself, so the next is made when it has gone.
    """

    def __init__(self, session: Session, parts: Iterator[row_ranges.RangeBatch]) -> None:
        self._session, self._parts = session, parts
        self._most = 1 if session.worker.crowded else _AHEAD
        self._coming = deque(self._next() for _ in range(self._most))

    def __iter__(self) -> Iterator[row_ranges.RangeBatch]:
        while (part := self._coming.popleft().result()) is not None:
            yield part
            del part
            if not self._coming:  # it was large, or empty
                self._coming.append(self._next())

    def sized(self, size: int) -> None:
        """The part that was given last has so many bytes: those that follow may be made beside it, or not yet."""
        while size <= _LARGE and len(self._coming) < self._most:
            self._coming.append(self._next())

    def over(self) -> bool:
        """Whether it is known by now that nothing follows."""
        if not self._coming:
            return False
        following = self._coming[0]
        return following.done() and following.exception() is None and following.result() is None

    def idle(self) -> None:
        """Our reader keeps us waiting: others may have the engine."""
        if isinstance(self._parts, Resting):
            wait(self._coming)
            self._parts.idle()

    def close(self) -> None:
        """End, whatever is under way."""
        if isinstance(self._parts, Resting):
            self._parts.close()
        for unwanted in self._coming:
            unwanted.cancel()
        while wait(self._coming, timeout=0.02).not_done:  # interrupted once can be too early
            self._session.interrupt()
        if isinstance(self._parts, Resting):
            self._parts.rest()
        elif isinstance(self._parts, Generator):
            self._parts.close()  # before the engine that its threads may work in

    def _next(self) -> Future[row_ranges.RangeBatch | None]:
        return self._session.maker.submit(next, self._parts, None)


def _format(job: Job, schema: pa.Schema) -> Format:
    if notes := job.arguments.get("notes"):  # our own; what others note in a schema goes no further (decision 51)
        schema = schema.with_metadata(notes)
    if job.format == wire.ARROW:
        return ArrowStreamWriter(schema, codec=job.codec, digest=job.digest, trailer_room=job.trailer_room)
    from connector.engine.worker.write.file_formats import FileFormatWriter

    return FileFormatWriter(job, schema)


def _parts(session: Session, job: Job) -> tuple[pa.Schema, Iterator[row_ranges.RangeBatch]]:
    """The schema and the batches of a query, with their places where it is one of ranges."""
    if (only := _turns(session, job)) is not None:
        session.wait_for_go(job)
        resting = _open_resting(session, job, only)
        return resting.schema, resting
    answers = _answers(session, job)
    if job.passed and (found := _passed(session, job, answers)) is not None:
        return found
    con = opened(session, job, answers)
    assert session.opening is not None
    only = _group_by_group(con, session, job) if job.only is None else job.only
    if only is not None:
        session.wait_for_go(job)
        cons, paths = session.opening.cons, session.files[0].paths
        return row_ranges.read(cons, job, only, paths, folder=session.opening.aside)
    widths = {name: width for relation in job.relations.values() for name, width in relation.row_bytes.items()}
    relation = duckdb_engine.query(con, job.sql, job.params)
    rows = duckdb_engine.rows_of(relation, widths, target=job.batch_bytes)
    rows = rows if job.batch_rows is None else max(1, min(rows, job.batch_rows))
    session.wait_for_go(job)
    schema, batches = _batches(session, job, relation, rows)
    if job.noise:
        schema, batches = _noisy(session, schema, batches, job.noise)
    return schema, map(row_ranges.RangeBatch, batches)


def _passed(
    session: Session, job: Job, answers: Mapping[str, list[pa.Table]]
) -> tuple[pa.Schema, Iterator[row_ranges.RangeBatch]] | None:
    """The rows of a stream as they stand; None where a type is not one that the engine would give as it came."""
    opening, ((name, relation),) = session.open_new(job), job.relations.items()
    if name in answers:
        reader: Any = pa.concat_tables(answers[name]).to_reader()  # of one fragment
    else:
        reader = pa.ipc.open_stream(pa.OSFile(opening.pin(relation, linked=False).paths[0]))
    if not all(map(_is_plain, reader.schema.types)):
        opening.close()
        return None
    schema = pa.schema(list(zip(job.passed, reader.schema.types, strict=True)))  # of the foreign one only the types
    batches = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in reader)
    return schema, (row_ranges.RangeBatch(piece) for batch in batches for piece in batching.cut(batch, job.batch_bytes))


def _is_plain(kind: pa.DataType) -> bool:
    return kind in _PLAIN or bool(pa.types.is_integer(kind) or pa.types.is_decimal128(kind))


def _turns(session: Session, job: Job) -> wire.Ranges | None:
    """The ranges of a scan that takes turns with others: of Parquet, whose rows leave as they are.

    Where rows are left out, nobody can say how long the next batch takes, and the others would wait for it. A scan of
    everything is one of ranges only among many: it costs a little.
    """
    relation = job.relations.get(job.scan)
    if relation is None or relation.kind not in wire.PARQUET:
        return None
    if job.only is None and session.worker.crowded and not job.limits.temp_mb:
        return wire.Ranges([wire.Range(-1, number, 0, _ALL) for number in range(len(relation.files))], "")
    return job.only


def _group_by_group(con: Any, session: Session, job: Job) -> wire.Ranges | None:
    """The row groups of a scan of wide rows, which take the less disk; None of other answers."""
    relation = job.relations.get(job.scan)
    if relation is None or relation.kind not in wire.PARQUET or not job.limits.temp_mb:
        return None
    if find_position_clash(relation.kind, [{"name": name} for name in con.view(job.scan).columns]):
        return None
    found = []
    for number, groups in enumerate(divisible_source(relation.kind).groups(_opened(session.files[0]))):
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


def _noisy(
    session: Session, schema: pa.Schema, batches: Iterator[pa.RecordBatch], plan: Mapping[str, Any]
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    from connector.engine.worker.write import noise  # here: only answers with noise need its library

    table = noise.add(schema, _checked(session, batches), plan)
    return table.schema, iter(table.to_batches())


def _checked(session: Session, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same; ends between two of them where the job is cancelled."""
    for batch in batches:
        session.check()
        yield batch


def _batches(session: Session, job: Job, relation: Any, rows: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The rows by the engine, or straight from the pages where nothing is done to them and that is faster."""
    if job.scan and job.batch_rows is None:
        schema = duckdb_engine.schema_of(relation)
        paths = session.files[list(job.relations).index(job.scan)].paths
        if parquet_scan.faster(schema, paths, job.relations[job.scan].kind, crowded=session.worker.crowded):
            threads = job.limits.threads > 1
            return schema, parquet_scan.batches(paths, schema, rows=rows, target=job.batch_bytes, threads=threads)
    assert session.opening is not None
    aside, exact = wide_tables.aside(job, session.opening.aside, relation.columns), job.batch_rows is not None
    return duckdb_engine.batches(relation, rows=rows, target=job.batch_bytes, exact=exact, even=job.even, aside=aside)


def report(session: Session, job: Job) -> None:
    """The rows of a small answer as JSON: for reports and counts, at most 10,000 rows."""
    con = opened(session, job)
    relation = duckdb_engine.query(con, job.sql, job.params)
    schema, batches = duckdb_engine.batches(relation, rows=_VALUE_ROWS_MAX + 1, target=1 << 30)
    rows: list[list[Any]] = []
    for batch in batches:
        if len(rows) + batch.num_rows > _VALUE_ROWS_MAX:
            raise Coded("rows_limit")
        rows += [[_plain(cell) for cell in row] for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)]
    value(session, {"columns": schema.names, "rows": rows})


def describe(session: Session, job: Job) -> None:
    """The schema of an answer, as its IPC message in base64, without reading a row of it."""
    con = opened(session, job)
    schema = duckdb_engine.schema_of(duckdb_engine.query(con, job.sql, job.params))
    value(session, {"schema": base64.b64encode(schema.serialize().to_pybytes()).decode()})


def _plain(cell: Any) -> Any:
    return cell if cell is None or isinstance(cell, (bool, int, float, str)) else str(cell)


def _opened(files: duckdb_engine.Files) -> list[Any]:
    return [files.open(number) for number in range(len(files.refs))]


def plan(session: Session, job: Job) -> None:
    """What a read of these rows would give, without them: the schema (Arrow, base64) and the groups of each file."""
    con = opened(session, job)
    relation = next(iter(job.relations.values()))
    groups = divisible_source(relation.kind).groups(_opened(session.files[0])) if job.arguments.get("groups") else None
    schema = duckdb_engine.schema_of(duckdb_engine.query(con, job.sql, job.params))
    value(session, {"groups": groups, "schema": base64.b64encode(schema.serialize()).decode()})


def value(session: Session, found: Any) -> None:
    """A JSON answer."""
    session.send(wire.VALUE, json.dumps(found, ensure_ascii=False, allow_nan=False, default=str).encode())


def profile(session: Session, job: Job) -> None:
    """What the owner sees of a version: schema, rows, figures per column, digests of the files."""
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
        jemalloc.purge()  # the next columns could not take it: it is of other sizes
        return row

    room = job.limits.memory_mb * 2**20 // 2
    guessed = bool(relation.options.get("guess_types", False))
    found = dataset_profile.profile(
        con, name, files, sizes=sizes, room=room, reached=session.reached, ask=ask, guessed=guessed
    )
    value(session, found)


def convert(session: Session, job: Job) -> None:
    """Text to Parquet, into `arguments.target` (a new file in a folder of the connector's own); gone after an error."""
    relation = job.relations[next(iter(job.relations))]
    opening = session.open(job)
    files = opening.pin(relation)
    target = str(job.arguments["target"])
    con = opening.fence(session.worker.keeping.engine(), target)
    try:
        found = source(relation.kind).convert(con, files.paths, relation.options, target)
        files.check_unchanged()
        value(session, found | {"files": dataset_profile.digests(files, reached=session.reached)})
    except BaseException:
        Path(target).unlink(missing_ok=True)
        raise


def check_arrow(session: Session, job: Job) -> None:
    """Validate a foreign Arrow stream, from `arguments.path` or blob 0, and say what is in it."""
    value(session, untrusted_arrow.check(job, check=session.check))


def read_answers(session: Session, job: Job) -> None:
    """Read small answers of several owners, and say what is in them."""
    value(session, untrusted_arrow.read(job, check=session.check))


def shapes(session: Session, job: Job) -> None:
    """The schema of what each of `arguments.statements` gives, as its IPC message in base64, and pairs of the numbers
    of columns that Arrow has as other types, and these types; while nothing is computed. The schema is empty where the
    engine does not take a statement, None where it takes too much to say."""
    opening, found = session.open(job), []
    for sql in job.arguments["statements"]:
        session.check()
        found.append(_shape(opening.ready_once({}, session.worker.keeping.engine), job, sql))
        if found[-1][0] is None:  # the engine may be of no use after it
            opening.let_go()
    value(session, found)


def _shape(con: Any, job: Job, sql: str) -> tuple[str | None, list[tuple[int, str]]]:
    try:
        _recheck(con, job, sql)
        schema, others = duckdb_engine.schema_bound(con, sql)
        return base64.b64encode(schema.serialize().to_pybytes()).decode(), [*others.items()]
    except Coded:
        return "", []
    except Exception as error:  # types are others' words: what one of them does must not end what is said of the rest
        code = duckdb_engine.code_of(error, asked=True)
        if code == "cancelled":
            raise
        return ("" if code in _UNFIT else None), []


def unite_keys(session: Session, job: Job) -> None:
    """The keys of several answers as one list, where that needs no engine."""
    value(session, untrusted_arrow.unite(job, check=session.check))


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
