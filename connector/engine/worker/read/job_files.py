"""Pins a job's files and opens a locked-down engine over them. Runs in a worker only.

A consumer often queries the same data again. So opened files and engine are kept for a while for the next job of the
same consumer over the same files; its SQL is checked like any other. Files that no other job reads, such as answers to
merge, are closed with the job, and only the engine is kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from connector.engine.pool import protocol as wire
from connector.engine.pool.protocol import Job, Limits, Relation, fields_of
from connector.engine.worker.read import duckdb_engine
from connector.engine.worker.read.object_channel import ObjectChannel

# How rows that only one job reads are attached, and how they are removed.
_TAKEN: Mapping[str, tuple[Callable[[Any, str, Any], None], Callable[[Any, str], None]]] = {
    wire.IN_PLACE: (duckdb_engine.attach_once, duckdb_engine.detach),
    wire.HELD: (duckdb_engine.hold, duckdb_engine.detach),
    wire.LOADED: (duckdb_engine.load, duckdb_engine.drop),
}
_PAGES = 2 * 2**20  # bytes of a column that a reader holds: writers make pages of a megabyte, and they come compressed
_BLOB = 4096  # bytes of a value: of larger ones a whole column chunk is held, as Arrow reads blobs by the row group
_KEPT_FILES = 64  # the most files that are kept open for a next job


class Opening:
    """A job's files and its engine. Opened by `ready`, or step by step by `pin` and `fence`; ended by `close`."""

    def __init__(
        self,
        limits: Limits,
        folder: Path,
        *,
        desk: ObjectChannel | None = None,
        key: str = "",
        readers: int = 1,
        ordered: bool = False,
    ) -> None:
        """`folder`: private, need not exist yet. `desk`: channel for blocks of objects. `key`: jobs that it may be kept
        for, empty for none. `readers`: connections to the engine, each read by a thread of its own. `ordered`: with
        one thread, no rows wait in the engine while later rows pass."""
        self.limits, self.folder, self.desk, self.key = limits, folder, desk, key
        self.files: list[duckdb_engine.Files] = []
        self.con: Any = None
        self._more: list[Any] = []  # the other connections
        self._readers, self._ordered = readers, ordered
        self.names: list[str] = []  # under which the engine has the files
        # Names of this job only, each with the function that removes it.
        self.brought: list[tuple[str, Callable[[Any, str], object]]] = []
        self.rested_at = 0.0

    def pin(self, relation: Relation, *, linked: bool = True) -> duckdb_engine.Files:
        """Open the next relation's files. `linked`: the engine can find them.

        Raises: VersionChanged where they are not the registered ones.
        """
        number = len(self.files)
        folder = self.folder / str(number) if linked else None
        found = duckdb_engine.open_files(relation, folder, number=number, desk=self.desk)
        self.files.append(found)
        found.check_unchanged()
        return found

    def fence(self, con: Any, *more: str, followed: bool = False) -> Any:
        """Let the engine read the pinned files and `more` paths only. `followed`: progress can be queried."""
        self.con, self._more = con, [con.cursor() for _ in range(self._readers - 1)]
        duckdb_engine.lend(con, self.files)
        temp = self.folder / "temp" if self.limits.temp_mb else None
        if temp is not None:
            temp.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = [path for found in self.files for path in found.paths]
        far = any(not isinstance(found, duckdb_engine.Opened) for found in self.files)
        limits = replace(self.limits, threads=1) if self._more else self.limits
        duckdb_engine.fence(
            con, *self._more, paths=[*paths, *more], limits=limits, temp=temp, followed=followed, far=far,
            ordered=self._ordered,
        )  # fmt: skip
        return con

    def interrupt(self) -> None:
        """Interrupt the engine, which is not kept for another job then."""
        self.key = ""
        duckdb_engine.interrupt(self.cons)

    @property
    def cons(self) -> tuple[Any, ...]:
        """Return all connections to the engine; none while it is closed."""
        return () if self.con is None else (self.con, *self._more)

    def ready(self, relations: Mapping[str, Relation], new: Callable[[], Any]) -> Any:
        """Return an engine in which all relations in files are readable under their names: the kept or a `new` one."""
        named = _files_in(relations)
        if not self.files:
            for relation in named.values():
                self.pin(relation)
        if self.con is not None and self.names != list(named) and {*self.names} & {*named}:
            self.let_go()  # names would have to be exchanged
        if self.con is None:
            con = self.fence(new())
            for (name, relation), found in zip(named.items(), self.files, strict=True):
                duckdb_engine.attach(con, name, relation, found)
        elif self.names != list(named):
            for old, name in zip(self.names, named, strict=True):
                duckdb_engine.rename(self.con, old, name)
        self.names = list(named)
        return self.con

    def ready_once(self, relations: Mapping[str, Relation], new: Callable[[], Any]) -> Any:
        """Return an engine with Arrow streams that no other job reads. Arrow reads them, the engine opens no file."""
        con = self.con or self.fence(new())
        for name, relation in _files_in(relations).items():
            found = self.pin(relation, linked=False)
            begin, end = _TAKEN[relation.taken]
            begin(con, name, found)
            self.brought.append((name, end))
        return con

    def bring(self, name: str, table: Any) -> None:
        """Make a table in memory readable under a name for this job."""
        duckdb_engine.attach_table(self.con, name, table)
        self.brought.append((name, duckdb_engine.detach))

    def take(self, name: str, tables: Sequence[pa.Table], taken: str) -> None:
        """Make small answers readable under a name for this job, held or loaded. The engine unites different types."""
        if len(tables) > 1:
            parts = [f"{name}.{number}" for number in range(len(tables))]
            for part, table in zip(parts, tables, strict=True):
                self.bring(part, table)
            duckdb_engine.unite(self.con, name, parts)
            self.brought.insert(0, (name, duckdb_engine.drop_view))
        elif taken == wire.LOADED:
            duckdb_engine.take_in(self.con, name, tables[0])
            self.brought.append((name, duckdb_engine.drop))
        else:
            self.bring(name, tables[0])

    def rest(self) -> bool:
        """Remove what only the ended job had. Returns whether another job may use the engine: its disk is empty."""
        if not self.key or self.con is None:
            return False
        for name, end in self.brought:
            end(self.con, name)
        self.brought.clear()
        if not self.names:
            self._close_files()
        temp = self.folder / "temp"
        return not temp.exists() or not any(temp.iterdir())

    def current(self) -> bool:
        """Whether each file's name still leads to the pinned file."""
        return all(isinstance(found, duckdb_engine.Opened) and found.current() for found in self.files)

    @property
    def aside(self) -> Path:
        """Folder for what does not fit into this job's memory; the engine does not use it."""
        return self.folder / "aside"

    def let_go(self) -> None:
        """Close the engine, and keep the files."""
        cons, self.con = self.cons, None
        for con in reversed(cons):
            with suppress(Exception):
                con.close()

    def close(self) -> None:
        self.let_go()  # first: it reads by the numbers of the descriptors, which may be others' next
        self._close_files()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close_files(self) -> None:
        for found in self.files:
            with suppress(Exception):
                found.close()
        self.files.clear()


def _files_in(relations: Mapping[str, Relation]) -> dict[str, Relation]:
    return {name: one for name, one in relations.items() if one.blob is None and not one.answers}


def readers(job: Job) -> int:
    """Return how many ranges of a job are read at once.

    A range may have only one row group, and the engine's threads work on different row groups. Half of the job's memory
    must hold the pages of all; 1 if their size is unknown.
    """
    (first, *_) = (*job.relations.values(), Relation(""))
    if job.only is None or first.kind not in wire.PARQUET or not first.row_bytes:
        return 1
    rows = max(one.stop - one.first for one in job.only.ranges)
    pages = sum(rows * width if width > _BLOB else min(rows * width, _PAGES) for width in first.row_bytes.values())
    most = int(job.limits.memory_mb * 2**20 / 2 // max(pages, 1))
    return max(1, min(job.limits.threads, len(job.only.ranges), most))


def mixes(job: Job) -> bool:
    """Whether the engine's threads might change the order that a job's rows must have.

    It turns IN with several values into a join, and keeps no order in joins whatever its setting (DuckDB 2.0.1):
    several threads mix the rows, and in one thread a few rows wait until all others have passed. A cursor of a range
    stands for all rows before it.
    """
    has_cursors = job.only is not None and bool(job.only.position)
    return has_cursors or (job.ordered and " IN (" in job.sql)


def limits_of(job: Job) -> Limits:
    """Return the limits of a job's engine: one thread where several would mix the rows."""
    return replace(job.limits, threads=1) if mixes(job) else job.limits


def key_of(job: Job) -> str:
    """Return the key of jobs that may reuse what this one opens; empty for none."""
    limits = (job.limits.memory_mb, job.limits.temp_mb, limits_of(job).threads, mixes(job))
    if job.kind not in ("query", "shapes") or job.only is not None:
        return ""
    if job.once:
        return json.dumps([job.consumer, limits])
    relations = list(_files_in(job.relations).values())
    files: Sequence[Any] = [file for relation in relations for file in relation.files]
    if not 0 < len(files) <= _KEPT_FILES or any(file.get("etag") for file in files):
        return ""
    return json.dumps([job.consumer, limits, [fields_of(relation) for relation in relations]], default=dict)
