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
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connector.datasets.sources import place_of
from connector.datasets.splits import RESERVED
from connector.query import engine
from connector.query.scan import FILES_MAX, GROUP_MAX
from connector.query.stored import File, Places, Stored, lying, may_lie

_MOST = 0.9
_Values = dict[str, pa.Array]  # by column


class Placed:
    """Columns of some files whose values are put in after the engine; `names` is empty where there are none."""

    def __init__(self, paths: Sequence[str], given_on: Sequence[str], stored: Stored) -> None:
        """`given_on`: columns whose values decide on nothing."""
        self._stored = stored
        self._files = [_Source(path) for path in paths] if given_on and len(paths) <= FILES_MAX else []
        self.names = tuple(name for name in dict.fromkeys(given_on) if self._lies(name))
        rows = sum(file.metadata.num_rows for file in self._files)
        self._width = sum(file.nbytes(name) for file in self._files for name in self.names) / max(1, rows)

    def batches(self, relation: Any, *, rows: int, target: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """As `engine.batches`, of a relation that has places where the values are to be."""
        reader = relation.to_arrow_reader(min(rows, engine.rows_for(self._width, target)))
        there = engine.plain_schema(reader.schema)
        if not all(one.type == pa.int64() for one in there if one.name in self.names):
            raise TypeError("expected a place in each column whose values are put in later, came something else")
        schema = pa.schema([one.with_type(pa.binary()) if one.name in self.names else one for one in there])
        coming = (engine.plain(batch, there) for batch in reader)
        joined = engine.gather(coming, at_least=target // 4, width=self._width)
        return schema, (piece for batch in joined for piece in self._filled(batch, schema, target))

    def _lies(self, name: str) -> bool:
        """Whether nearly all of a column is, by the footers, of large values that lie in the files as they are."""
        if not all(file.has(name) for file in self._files):
            return False
        whole = sum(file.nbytes(name) for file in self._files)
        return sum(file.lying_bytes(name) for file in self._files) > _MOST * whole

    def _filled(self, batch: pa.RecordBatch, schema: pa.Schema, target: int) -> Iterator[pa.RecordBatch]:
        start = 0
        for stop, values in self._values(batch.column(self.names[0]).to_pylist(), target):
            part = batch.slice(start, stop - start)
            columns = [values.get(name, column) for name, column in zip(schema.names, part.columns, strict=True)]
            yield from engine.cut(pa.RecordBatch.from_arrays(columns, schema=schema), target)
            start = stop

    def _values(self, places: Sequence[int], target: int) -> Iterator[tuple[int, _Values]]:
        """The values at these places in pieces, each with the number of rows up to its end. A piece lies in one file
        and has about `target` bytes, or was read by Arrow."""
        stop, file, found = 0, self._files[0], self._none()
        for (number, group), located in groupby(map(self._located, places), key=lambda one: one[:2]):
            rows = [row for _, _, row in located]
            kept = self._files[number].lying(group, self.names)
            if len(found[self.names[0]]) and not (kept and file is self._files[number]):
                yield stop, self._stand_ins(file, found)
                found = self._none()
            file = self._files[number]
            if not kept:
                stop += len(rows)
                yield stop, file.taken(group, self.names, rows)
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

    def _none(self) -> dict[str, Places]:
        return {name: Places() for name in self.names}

    def _stand_ins(self, file: _Source, found: Mapping[str, Places]) -> _Values:
        return {name: self._stored.stand_in(file.file, places) for name, places in found.items()}


class _Source:
    """One of the files, and what is known of the row group that was asked for last. Any thread may ask."""

    def __init__(self, path: str) -> None:
        self.file = File(path)
        self._parquet = pq.ParquetFile(path)
        self.metadata = self._parquet.metadata
        self._groups = [self.metadata.row_group(number) for number in range(self.metadata.num_row_groups)]
        self._ends = list(accumulate(group.num_rows for group in self._groups))
        self._last: tuple[int, dict[str, Places]] = (-1, {})
        self._table: tuple[int, pa.Table] | None = None
        self._reading = threading.Lock()

    def has(self, name: str) -> bool:
        """Whether there is a column of blobs with that name, in row groups that Arrow may read, and no column that the
        engine would take for a place."""
        small = max((group.total_byte_size for group in self._groups), default=0) <= GROUP_MAX
        mistaken = any(one.casefold() in RESERVED for one in self._parquet.schema_arrow.names)
        found = small and not mistaken and self._number(name) >= 0
        return found and self._parquet.schema_arrow.field(name).type == pa.binary()

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

    def lying(self, group: int, names: Sequence[str]) -> dict[str, Places]:
        """Where the values of a row group lie; nothing where Arrow has to read one of these columns."""
        last = self._last
        if last[0] != group:
            found = lying(self.file, self.metadata, group, names)
            self._last = last = group, found if len(found) == len(names) else {}
        return last[1]

    def taken(self, group: int, names: Sequence[str], rows: Sequence[int]) -> _Values:
        """The values of some rows of a row group, by Arrow."""
        with self._reading:
            if self._table is None or self._table[0] != group:
                self._table = None  # one at a time
                self._table = group, self._parquet.read_row_group(group, columns=list(names), use_threads=False)
            chosen = self._table[1].take(pa.array(rows, pa.int64()))
        return {name: pa.concat_arrays(chosen.column(name).chunks) for name in names}

    def _size(self, group: int, column: int) -> int:
        return int(self._groups[group].column(column).total_uncompressed_size)

    def _number(self, name: str) -> int:
        """Of a flat column with that name and no other like it; -1 where there is none."""
        paths = [self.metadata.schema.column(number).path for number in range(self.metadata.num_columns)]
        alike = [path for path in paths if path.casefold().split(".")[0] == name.casefold()]
        return paths.index(name) if alike == [name] and "." not in name else -1
