"""An engine and what one job may read with it: files pinned, everything else fenced off. Runs in a worker only.

Who asks once often asks again of the same data. So what a job has opened waits a while for the next one of the same
consumer, which finds files, footers and fence ready; its SQL is checked like any other's. Where no other job reads the
same files, as answers that are merged, they go with it, and the engine alone waits.
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

# How rows that only one job reads become readable, and how they are forgotten.
_TAKEN: Mapping[str, tuple[Callable[[Any, str, Any], None], Callable[[Any, str], None]]] = {
    wire.IN_PLACE: (duckdb_engine.attach_once, duckdb_engine.detach),
    wire.HELD: (duckdb_engine.hold, duckdb_engine.detach),
    wire.LOADED: (duckdb_engine.load, duckdb_engine.drop),
}
_PAGES = 2 * 2**20  # bytes of a column that a reader holds: writers make pages of a megabyte, and they come compressed
_BLOB = 4096  # bytes of a value, from which all of a column's may be held: Arrow reads blobs by the row group
_KEPT_FILES = 64  # no more are held open for a job that may never come


class Opening:
    """Opened step by step: `pin` files, `fence` an engine around them; or `ready`, all of it. `close` it."""

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
        """`folder` is private and need not exist yet; over `desk` blocks of objects are borrowed. `key`: for which jobs
        it may be kept, empty for none. `readers`: connections to the engine, each read by a thread of its own.
        `ordered`: where the engine has one thread, no rows wait in it while others pass them."""
        self.limits, self.folder, self.desk, self.key = limits, folder, desk, key
        self.files: list[duckdb_engine.Files] = []
        self.con: Any = None
        self._beside: list[Any] = []  # the other connections
        self._readers, self._ordered = readers, ordered
        self.names: list[str] = []  # under which the engine has the files
        self.brought: list[tuple[str, Callable[[Any, str], object]]] = []  # names of this job only, and what ends them
        self.rested_at = 0.0

    def pin(self, relation: Relation, *, linked: bool = True) -> duckdb_engine.Files:
        """The next relation's files, opened; VersionChanged where they are not those that were registered. The engine
        finds them where they are `linked`."""
        number = len(self.files)
        folder = self.folder / str(number) if linked else None
        found = duckdb_engine.open_files(relation, folder, number=number, desk=self.desk)
        self.files.append(found)
        found.check_unchanged()
        return found

    def fence(self, con: Any, *more: str, followed: bool = False) -> Any:
        """Let the engine read what is pinned, and `more` paths, and nothing else. `followed`: it says how far it is."""
        self.con, self._beside = con, [con.cursor() for _ in range(self._readers - 1)]
        duckdb_engine.lend(con, self.files)
        temp = self.folder / "temp" if self.limits.temp_mb else None
        if temp is not None:
            temp.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = [path for found in self.files for path in found.paths]
        far = any(not isinstance(found, duckdb_engine.Opened) for found in self.files)
        limits = replace(self.limits, threads=1) if self._beside else self.limits
        duckdb_engine.fence(
            con, *self._beside, paths=[*paths, *more], limits=limits, temp=temp, followed=followed, far=far,
            ordered=self._ordered,
        )  # fmt: skip
        return con

    def interrupt(self) -> None:
        """Stop what the engine does now; nobody has it after us."""
        self.key = ""
        duckdb_engine.interrupt(self.cons)

    @property
    def cons(self) -> tuple[Any, ...]:
        """The connections to the engine, where it is open: ours, and those that are read beside it."""
        return () if self.con is None else (self.con, *self._beside)

    def ready(self, relations: Mapping[str, Relation], new: Callable[[], Any]) -> Any:
        """An engine in which all relations that are files are readable under their names: ours, or a `new` one."""
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
        """The same for Arrow streams that no other job reads. We read them for the engine, which is let at no file."""
        con = self.con or self.fence(new())
        for name, relation in _files_in(relations).items():
            found = self.pin(relation, linked=False)
            begin, end = _TAKEN[relation.taken]
            begin(con, name, found)
            self.brought.append((name, end))
        return con

    def bring(self, name: str, table: Any) -> None:
        """A table in memory, readable under its name by this job."""
        duckdb_engine.attach_table(self.con, name, table)
        self.brought.append((name, duckdb_engine.detach))

    def take(self, name: str, tables: Sequence[pa.Table], taken: str) -> None:
        """Answers that came small, readable under a name by this job: held, or loaded. Of several types the engine
        makes one."""
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
        """Let go of what the ended job alone had. Whether another one may have the engine: nothing is on its disk."""
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
        """Whether each file's name still leads to what is pinned."""
        return all(isinstance(found, duckdb_engine.Opened) and found.current() for found in self.files)

    @property
    def aside(self) -> Path:
        """Where this job may keep what does not fit into memory; nothing of it is the engine's."""
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
    """How many ranges of a job are read at once: the engine's own threads work on different row groups, and a range may
    have only one. As many as half of the job's memory holds the pages of; one where nobody knows how large they are."""
    (first, *_) = (*job.relations.values(), Relation(""))
    if job.only is None or first.kind not in wire.PARQUET or not first.row_bytes:
        return 1
    rows = max(one.stop - one.first for one in job.only.ranges)
    pages = sum(rows * width if width > _BLOB else min(rows * width, _PAGES) for width in first.row_bytes.values())
    most = int(job.limits.memory_mb * 2**20 / 2 // max(pages, 1))
    return max(1, min(job.limits.threads, len(job.only.ranges), most))


def mixes(job: Job) -> bool:
    """Whether the engine, left to itself, might not keep an order that the rows of a job have to come in.

    It makes a join of IN with several values, and has no order for what it joins, whatever its setting says (found with
    DuckDB 2.0.1): several threads mix it, and in one thread few rows wait until all others have passed. A cursor of a
    range stands for all rows before it.
    """
    placed = job.only is not None and bool(job.only.position)
    return placed or (job.ordered and " IN (" in job.sql)


def limits_of(job: Job) -> Limits:
    """The limits of a job's engine: with one thread where several would mix the rows."""
    return replace(job.limits, threads=1) if mixes(job) else job.limits


def key_of(job: Job) -> str:
    """For which jobs what this one opens may be kept; empty for none."""
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
