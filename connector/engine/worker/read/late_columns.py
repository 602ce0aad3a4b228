"""Rows by the engine, and large values after it: of columns that a statement only gives on.

Where a condition chooses some of the rows, the engine would read the blobs of all of them, and copy those that leave.
So it gets each row's place instead (`sources.place_of`), the statement runs as it is, and the values of the rows that
it lets through come from there: left in the file until they are sent (`query.stored`), or, where they do not lie there
as they are, read by Arrow with the rest of their row group. Runs in a worker.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connector.datasets.sources import parquet, place_of
from connector.engine.worker.read import batching
from connector.engine.worker.read.file_values import File, Places, Stored, lying, may_lie
from connector.engine.worker.read.parquet_scan import FILES_MAX, GROUP_MAX
from policies.contracts.columns import fold

_MOST = 0.9
_EVEN = 256  # rows that are taken at once where it may tell nothing of those that are hidden
_Values = dict[str, pa.Array]  # by column


class Placed:
    """Columns of some files whose values are put in after the engine; `names` is empty where there are none."""

    def __init__(self, paths: Sequence[str], given_on: Sequence[str], stored: Stored) -> None:
        """`given_on`: columns whose values decide on nothing."""
        self._stored = stored
        self._looked = threading.local()  # at a row group, the last one; several threads may read ranges
        self._files = [_Source(path) for path in paths] if given_on and len(paths) <= FILES_MAX else []
        self.names = tuple(name for name in dict.fromkeys(given_on) if self._lies(name))
        rows = sum(file.metadata.num_rows for file in self._files)
        self._width = sum(file.nbytes(name) for file in self._files for name in self.names) / max(1, rows)

    def batches(
        self, relation: Any, *, rows: int, target: int, even: bool = False
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """As `engine.batches`, of a relation that has places where the values are to be."""
        reader = relation.to_arrow_reader(min(rows, batching.rows_for(self._width, target)))
        there = batching.plain_schema(reader.schema)
        places = [self._name(one.name) for one in there]
        if not all(one.type == pa.int64() for one, name in zip(there, places, strict=True) if name):
            raise TypeError("expected a place in each column whose values are put in later, came something else")
        fields = zip(there, places, strict=True)
        schema = pa.schema([one.with_type(pa.binary()) if name else one for one, name in fields])
        coming = (batching.plain(batch, there) for batch in reader)
        joined = (
            batching.evenly(coming, target, rows=_EVEN)
            if even
            else batching.gather(coming, at_least=target // 4, width=self._width)
        )
        return schema, (piece for batch in joined for piece in self._filled(batch, schema, target))

    def _lies(self, name: str) -> bool:
        """Whether nearly all of a column is, by the footers, of large values that lie in the files as they are."""
        if not all(file.has(name) for file in self._files):
            return False
        whole = sum(file.nbytes(name) for file in self._files)
        return sum(file.lying_bytes(name) for file in self._files) > _MOST * whole

    def _name(self, shown: str) -> str:
        """Which of our columns a column of the answer is; empty for others."""
        return next((name for name in self.names if fold(name) == fold(shown)), "")

    def _filled(self, batch: pa.RecordBatch, schema: pa.Schema, target: int) -> Iterator[pa.RecordBatch]:
        names, start = list(map(self._name, schema.names)), 0
        places = next(column for name, column in zip(names, batch.columns, strict=True) if name)
        for stop, values in self._values(places.to_pylist(), target):
            part = batch.slice(start, stop - start)
            columns = [values.get(name, column) for name, column in zip(names, part.columns, strict=True)]
            yield from batching.cut(pa.RecordBatch.from_arrays(columns, schema=schema), target)
            start = stop

    def _values(self, places: Sequence[int], target: int) -> Iterator[tuple[int, _Values]]:
        """The values at these places in pieces, each with the number of rows up to its end. A piece lies in one file
        and has about `target` bytes, or was read by Arrow."""
        stop, file, found = 0, self._files[0], self._none()
        for (number, group), located in groupby(map(self._located, places), key=lambda one: one[:2]):
            rows = [row for _, _, row in located]
            kept = self._group(number, group).lying
            if len(found[self.names[0]]) and not (kept and file is self._files[number]):
                yield stop, self._stand_ins(file, found)
                found = self._none()
            file = self._files[number]
            if not kept:
                stop += len(rows)
                yield stop, self._group(number, group).taken(rows)
                continue
            for row in rows:
                for name, where in kept.items():
                    found[name].add(where.starts[row], where.size(row))
                stop += 1
                if sum(one.nbytes for one in found.values()) >= target:
                    yield stop, self._stand_ins(file, found)
                    found = self._none()
        if len(found[self.names[0]]):
            yield stop, self._stand_ins(file, found)

    def _located(self, place: int) -> tuple[int, int, int]:
        """File, row group, and row in it."""
        number, row = place_of(place)
        return number, *self._files[number].locate(row)

    def _group(self, number: int, group: int) -> _Group:
        """A row group, looked at once while a thread reads in it; of one that Arrow has read nothing stays behind."""
        last: _Group | None = getattr(self._looked, "last", None)
        if last is None or (last.file, last.number) != (self._files[number], group):
            self._looked.last = None
            self._looked.last = last = _Group(self._files[number], group, self.names)
        return last

    def _none(self) -> dict[str, Places]:
        return {name: Places() for name in self.names}

    def _stand_ins(self, file: _Source, found: Mapping[str, Places]) -> _Values:
        return {name: self._stored.stand_in(file.file, places) for name, places in found.items()}


class _Group:
    """A row group of a file, and some of its columns."""

    def __init__(self, file: _Source, number: int, names: Sequence[str]) -> None:
        self.file, self.number, self._names = file, number, names
        found = lying(file.file, file.metadata, number, names)
        self.lying = found if len(found) == len(names) else {}  # where values lie; nothing where Arrow has to read them

    def taken(self, rows: Sequence[int]) -> _Values:
        """The values of some rows, by Arrow."""
        chosen = self._table.take(pa.array(rows, pa.int64()))
        return {name: pa.concat_arrays(chosen.column(name).chunks) for name in self._names}

    @cached_property
    def _table(self) -> pa.Table:
        return self.file.read(self.number, self._names)


class _Source:
    """One of the files. Any thread may ask."""

    def __init__(self, path: str) -> None:
        self.file = File(path)
        self.metadata = pq.read_metadata(path)
        self._schema = self.metadata.schema.to_arrow_schema()
        self._groups = [self.metadata.row_group(number) for number in range(self.metadata.num_row_groups)]
        self._ends = list(accumulate(group.num_rows for group in self._groups))

    def has(self, name: str) -> bool:
        """Whether there is a column of blobs with that name, in row groups that Arrow may read, and no column that the
        engine would take for a place."""
        small = max((group.total_byte_size for group in self._groups), default=0) <= GROUP_MAX
        free = {fold(one) for one in self._schema.names}.isdisjoint(parquet.PLACES)
        found = small and free and self._number(name) >= 0
        return found and self._schema.field(name).type == pa.binary()

    def lying_bytes(self, name: str) -> int:
        """Bytes of a column that lie, by the footer, in the file as they are."""
        column = self._number(name)
        groups = range(len(self._groups))
        return sum(self._size(group, column) for group in groups if may_lie(self.metadata, group, column))

    def nbytes(self, name: str) -> int:
        """Bytes of a column, by the footer."""
        column = self._number(name)
        return sum(self._size(group, column) for group in range(len(self._groups)))

    def locate(self, row: int) -> tuple[int, int]:
        """The row group that a row is in, and its number there."""
        number = bisect_right(self._ends, row)
        return number, row - (self._ends[number] - self._groups[number].num_rows)

    def read(self, group: int, names: Sequence[str]) -> pa.Table:
        """Columns of a row group, by Arrow: anew each time, as what has read holds as much as it has given."""
        with pq.ParquetFile(self.file.path, metadata=self.metadata) as file:
            return file.read_row_group(group, columns=list(names), use_threads=False)

    def _size(self, group: int, column: int) -> int:
        return int(self._groups[group].column(column).total_uncompressed_size)

    def _number(self, name: str) -> int:
        """Of a flat column with that name and no other like it; -1 where there is none."""
        paths = [self.metadata.schema.column(number).path for number in range(self.metadata.num_columns)]
        alike = [path for path in paths if fold(path).split(".")[0] == fold(name)]
        return paths.index(name) if alike == [name] and "." not in name else -1
