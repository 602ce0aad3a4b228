"""`Loader`: batches of one or several datasets in the order of an epoch, for one of several readers, with a state.

The order and the arithmetic of who is where stand in `order.py`; here are the streams that carry it out.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from hanse._arrow.value_limits import nested_types
from hanse._transport.cancellation import Waits
from hanse._transport.http_stream import Memory
from hanse._transport.sockets import check_process
from hanse.client import Dataset
from hanse.errors import AccessRevoked, BadInput, HanseError
from hanse.loaders import epoch_order as orders
from hanse.loaders import row_slices
from hanse.loaders.epoch_order import Mark, Order, Progress, Share
from hanse.loaders.prefetch import ahead
from hanse.loaders.row_slices import Slice
from hanse.loaders.throughput import Throughput, Told, count, counted
from hanse.plan import PER_READ, Plan
from hanse.retry import SECONDS
from hanse.stream import Stream

_PREFETCH_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows, and the place after `k` of them: `done` places of the share are behind, `mark(k)` is in the next.

    `held`: bytes of memory that they keep, which may be more than they are.
    """

    batch: pa.RecordBatch
    held: int
    done: int
    mark: Callable[[int], Mark]


class Loader:
    """Arrow record batches of `batch_size` rows (the last may have fewer), for reader `part` (from 0) of `parts`, both
    or none: then for one that has them all.

    `datasets`: one, or several with the same columns, which are mixed block by block. `seed`: None keeps the stored
    order; `window`: rows within a block are permuted too, in runs of that many, which are held in memory. `epoch`
    changes the order. `patience`: seconds without a row before a failure that could pass is raised. Prefetching holds
    at most about `prefetch_bytes`. Reading again without `set_epoch` gives the same rows in the same order, and a whole
    epoch also where the first iteration went on from a state.
    """

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        *,
        columns: Sequence[str] = (),
        where: str = "",
        batch_size: int | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        window: int = 0,
        epoch: int = 0,
        part: int | None = None,
        parts: int | None = None,
        prefetch_bytes: int = _PREFETCH_BYTES,
        patience: float = SECONDS,
        codec: str = "",
        progress: bool = False,
    ) -> None:
        share = orders.chosen(part, parts)
        batch_size = None if batch_size is None else orders.number("batch_size", batch_size)
        seed = None if seed is None else orders.key("seed", seed)
        window, epoch = orders.number("window", window), orders.key("epoch", epoch)
        prefetch_bytes = orders.number("prefetch_bytes", prefetch_bytes)
        if batch_size is not None and batch_size < 1:
            raise BadInput(f"expected a batch_size of at least 1, or None for batches as they come, got {batch_size}")
        if window < 0:
            raise BadInput(f"expected a window of at least 0 rows, got {window}")
        if prefetch_bytes < 0:
            raise BadInput(f"expected prefetch_bytes of at least 0, got {prefetch_bytes}")
        if window and seed is None:
            raise BadInput("expected a seed beside window: without one nothing is permuted")
        self.datasets = _datasets(datasets)
        self.plans = tuple(one.plan(columns=columns, where=where, patience=patience) for one in self.datasets)
        self.schema = _one_schema(self.plans)
        if window:
            _check_windowed(self.schema)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.throughput = Throughput()
        self.error: HanseError | None = None  # what ended the last iteration: libraries that take rows raise their own
        blocks = sum(len(plan.blocks) for plan in self.plans)
        self._order = Order(_identity(self.plans), blocks, seed, epoch, window, _shown(self.plans))
        self._part, self._parts = share or (0, 1)
        self._share: Share | None = None  # where the last batch that was given ended
        self._base = Progress()
        self._pending: Share | None = None  # a loaded state that the next iteration begins with
        self._options: dict[str, Any] = {"patience": patience, "codec": codec}
        self._prefetch_bytes = prefetch_bytes
        self._progress = progress

    def __repr__(self) -> str:
        """What a notebook shows: of which datasets, how much, which reader of how many."""
        names, about = ", ".join(one.name for one in self.datasets), "" if self._exact else "about "
        size = f"{about}{self.rows:,} rows in {self._order.blocks:,} blocks"
        return f"<Loader {names}, {size}, reader {self._part} of {self._parts}, epoch {self.epoch}>"

    @property
    def epoch(self) -> int:
        return self._order.epoch

    @property
    def rows(self) -> int:
        """Rows of an epoch, over all readers: exact only where the plans are."""
        return sum(plan.rows for plan in self.plans)

    def permutation(self) -> list[int]:
        """The blocks in the order of the epoch, by number."""
        return self._order.permutation()

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives that epoch from its beginning; a state that was loaded for it stays."""
        epoch = orders.key("epoch", epoch)
        if epoch != self._order.epoch:
            self._order = replace(self._order, epoch=epoch)
            self._base, self._pending, self._share = Progress(), None, None

    @property
    def pending(self) -> bool:
        """Whether a state was loaded that the next iteration goes on from."""
        return self._pending is not None

    def over(self) -> bool:
        """Whether the state that was loaded leaves no batch; of plans that are not exact, whether no block."""
        if self._pending is None:
            return False
        if self._pending.ended:
            return True
        least = self.batch_size or 1 if self.drop_last else 1
        some = self._pending.places(self._order.blocks)
        return not some or (self._exact and self._rows_left(self._pending) < least)

    @property
    def _exact(self) -> bool:
        return all(plan.exact for plan in self.plans)

    def _rows_left(self, share: Share) -> int:
        """As the plans say."""
        permutation, rows = self._order.permutation(), 0
        for place, mark in share.places(self._order.blocks):
            source, block = self._locate(permutation[place])
            rows += self.plans[source].blocks[block].rows - mark.row - mark.emitted
        return rows

    def forget(self) -> None:
        """Begin a whole epoch with the next iteration, as after one that went to its end."""
        self._share, self._pending, self._base = self._pending, None, Progress()

    def begin(self, *, whole: bool) -> None:
        """Let the state be the beginning of the next iteration, no longer where the last one was; `whole`: of a whole
        epoch, whatever a merged state left of one."""
        self._share = None
        if whole:
            self._base = Progress()

    def divide(self, part: int, parts: int) -> None:
        """Be reader `part` of `parts` from the next iteration on. BadInput where there is no such one."""
        part, parts = orders.reader(part, parts)
        if (part, parts) != (self._part, self._parts):
            if self._pending is not None:
                raise BadInput(
                    f"the state that was loaded is of reader {self._pending.part} of {self._pending.parts}, this is "
                    f"reader {part} of {parts}; merge the states of all of them with hanse.loaders.merge first"
                )
            self._part, self._parts, self._share = part, parts, None

    def state_dict(self) -> dict[str, Any]:
        """Where the row that was given last stands, as JSON values. Rows that were only prefetched do not count."""
        return orders.to_state(self._order, self._share or self._pending or self._fresh())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this reader, or from a merged one with any number of readers.

        BadInput where it is of other rows, another seed or another reader: never other data silently.
        """
        order, where = orders.of_state(state)
        own = replace(self._order, epoch=order.epoch)
        if replace(order, shown=own.shown) != own:
            raise BadInput(
                "the state is of another snapshot, plan, seed or window than this loader; open it with the same ones, "
                "or begin the epoch anew"
            )
        within = orders.within(where, order.blocks)
        if order.shown != own.shown and within:
            raise BadInput(
                "expected a state that was taken under terms that show the same rows and columns, got one from within "
                "a block under others (or of before states said which): what it counts are not that block's rows here. "
                "Go on under an agreement with the same terms, or begin the epoch anew"
            )
        self._check_rows(own, within)
        if isinstance(where, Progress):
            self._base, self._pending = where, None
        elif (where.part, where.parts) != (self._part, self._parts):
            raise BadInput(
                f"the state is of reader {where.part} of {where.parts}, this is reader {self._part} of {self._parts}; "
                "merge the states of all of them with hanse.loaders.merge first"
            )
        else:
            self._base, self._pending = where.base, where
        self._order, self._share = own, None

    def _check_rows(self, order: Order, within: Mapping[int, Mark]) -> None:
        """BadInput for marks of more rows than their blocks have."""
        permutation = order.permutation()
        for place, mark in within.items():
            source, block = self._locate(permutation[place])
            self.plans[source].check_rows(block, mark.row + mark.emitted)

    def __iter__(self) -> Generator[pa.RecordBatch, None, None]:
        """The batches from the loaded state, or from the beginning of the epoch, as these are now: what is set before
        the first batch is for the next iteration."""
        return _ones(self.in_slices())

    def in_slices(self, memory: Memory | None = None) -> Generator[Sequence[Slice], None, None]:
        """The same batches, each as the slices that it is made of: for whoever puts them together where they are used.
        `memory` makes what they are received in, as `pa.allocate_buffer` does. BadInput in a process that was forked
        when they had begun."""
        order, share = self._order, self._pending or self._fresh()
        # A state is for one iteration, whether or not that comes to its end.
        self._share, self._pending, self._base = share, None, Progress()
        return self._read(order, share, memory)

    def _read(self, order: Order, share: Share, memory: Memory | None) -> Generator[Sequence[Slice], None, None]:
        """The batches of a share."""
        process = os.getpid()
        seen = self.throughput = Throughput()  # ours, whatever iteration begins meanwhile
        self.error = None
        revoked: list[AccessRevoked] = []
        waits = Waits()
        source = self._pieces(order, share, memory, revoked, seen, waits)
        pieces = ahead(source, nbytes=self._prefetch_bytes, size=lambda piece: piece.held, wake=waits.end)
        told = Told(seen, **self._to_tell(share)) if self._progress else None
        after = share
        try:
            for slices, after in self._joined(pieces, share):
                if revoked:  # the rows may not be used any more, nor those that came before it was said
                    raise revoked[0]
                if order is self._order:  # else another epoch or state was set meanwhile, for the next iteration
                    self._share = after
                count(seen, slices)
                if told is not None:
                    told.tell(after.done)
                yield slices
                check_process(process)  # before any row, also of what had come already
            if told is not None:
                told.end()
            if order is self._order:
                self._share = replace(after, ended=True)
        except HanseError as error:
            self.error = error
            raise
        finally:
            pieces.close()
            if told is not None and process == os.getpid():  # else its lock may be held by a thread that is not there
                told.close()

    def to_reader(self) -> pa.RecordBatchReader:
        """One iteration as a reader, for libraries that take one; constant memory."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """One iteration by the Arrow PyCapsule interface: polars, DuckDB, pandas take a loader as it is."""
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def _fresh(self) -> Share:
        return Share(self._base, self._part, self._parts)

    def _to_tell(self, share: Share) -> dict[str, int]:
        """What this reader has of the epoch, and has had before it begins at `share`: in rows where these are known,
        else in blocks."""
        every = replace(share, done=0, mark=None, ended=False)
        if not self._exact:
            return {"rows": 0, "before": 0, "blocks": len(every.places(self._order.blocks))}
        rows, left = self._rows_left(every), 0 if share.ended else self._rows_left(share)
        return {"rows": rows, "before": rows - left, "blocks": 0}

    def _joined(self, pieces: Iterator[_Piece], share: Share) -> Generator[tuple[Sequence[Slice], Share], None, None]:
        """Pieces as batches of the size asked for, each with the share after its last row."""
        size = self.batch_size
        run = row_slices.Run()
        after = share
        for piece in pieces:
            start = 0
            while start < piece.batch.num_rows:
                end = piece.batch.num_rows if size is None else min(piece.batch.num_rows, start + size - run.rows)
                run.add(piece.batch, start, end, keeps=piece.held)
                start, after = end, share.at(piece.done, piece.mark(end))
                if size is None or run.rows == size:
                    yield run.slices, after
                    run = row_slices.Run()
        if run.rows and not self.drop_last:
            yield run.slices, after

    def _pieces(
        self,
        order: Order,
        share: Share,
        memory: Memory | None,
        revoked: list[AccessRevoked],
        seen: Throughput,
        waits: Waits,
    ) -> Generator[_Piece, None, None]:
        """The rows of a share in their order, in the pieces that they come in. `revoked` and `seen` get to know at once
        what their reader hears after all that waits; `waits` is what they wait for."""
        permutation = order.permutation()
        left = [] if share.ended else share.places(order.blocks)
        todo = [(self._locate(permutation[place]), mark) for place, mark in left]
        feeds = [
            _Feed(dataset, plan, [(one[1], mark) for one, mark in todo if one[0] == number], self, memory, seen, waits)
            for number, (dataset, plan) in enumerate(zip(self.datasets, self.plans, strict=True))
        ]
        try:
            for done, ((source, block), mark) in enumerate(todo):
                offset = sum(len(plan.blocks) for plan in self.plans[:source])
                yield from _block(order, feeds[source].of(block), offset + block, done, mark)
        except AccessRevoked as error:
            revoked.append(error)
            raise
        finally:
            for feed in feeds:
                feed.close()

    def _locate(self, number: int) -> tuple[int, int]:
        for source, plan in enumerate(self.plans):
            if number < len(plan.blocks):
                return source, number
            number -= len(plan.blocks)
        raise AssertionError("unreachable: the permutation is of the blocks of all plans")


def _ones(found: Generator[Sequence[Slice], None, None]) -> Generator[pa.RecordBatch, None, None]:
    with closing(found):
        yield from map(row_slices.one, found)


def _block(
    order: Order, batches: Iterator[tuple[pa.RecordBatch, str, int]], name: int, done: int, mark: Mark
) -> Generator[_Piece, None, None]:
    placed = _from_mark(batches, mark)
    if not order.window:
        for batch, row, cursor, cursor_row, held in placed:
            yield _Piece(batch, held, done, _counting(row, cursor, cursor_row))
        return
    emitted = mark.emitted
    for batch, row, cursor, cursor_row, held in _windows(placed, order.window):
        shown = order.within(name, row // order.window, batch.num_rows)
        if shown is not None:
            batch = batch.take(_numbers(shown))
            held = row_slices.held(batch) + row_slices.beside(batch)
        yield _Piece(batch.slice(emitted), held, done, _emitting(row, emitted, cursor, cursor_row))
        emitted = 0


def _numbers(shown: Sequence[int]) -> pa.Array:
    """As `pa.array` makes them, which would load pandas where that is installed."""
    return pa.Array.from_buffers(pa.int64(), len(shown), [None, pa.py_buffer(array("q", shown))])


# Rows, the row they begin at, the cursor before them and its row, and the memory that they keep.
_Placed = tuple[pa.RecordBatch, int, str, int, int]


def _from_mark(batches: Iterator[tuple[pa.RecordBatch, str, int]], mark: Mark) -> Iterator[_Placed]:
    """What comes from the mark on: the rows between its cursor and itself have been given already."""
    before, row = mark.cursor, mark.cursor_row
    for batch, cursor, held in batches:
        skip = min(batch.num_rows, max(0, mark.row - row))
        if skip < batch.num_rows:
            yield batch.slice(skip), row + skip, before, row, held
        before, row = cursor, row + batch.num_rows


def _counting(row: int, cursor: str, cursor_row: int) -> Callable[[int], Mark]:
    return lambda given: Mark(row + given, 0, cursor, cursor_row)


def _emitting(row: int, emitted: int, cursor: str, cursor_row: int) -> Callable[[int], Mark]:
    return lambda given: Mark(row, emitted + given, cursor, cursor_row)


def _windows(placed: Iterator[_Placed], window: int) -> Iterator[_Placed]:
    """The same rows in runs of `window`, each with a cursor at or before its beginning."""
    run = row_slices.Run()
    first, cursor, cursor_row = 0, "", 0
    for batch, row, before, before_row, held in placed:
        start = 0
        while start < batch.num_rows:
            if not run.rows:
                first, cursor, cursor_row = row + start, before, before_row
            end = min(batch.num_rows, start + window - run.rows)
            run.add(batch, start, end, keeps=held)
            start = end
            if run.rows == window:
                yield row_slices.one(run.slices), first, cursor, cursor_row, held
                run = row_slices.Run()
    if run.rows:
        yield row_slices.one(run.slices), first, cursor, cursor_row, held


class _Feed:
    """The batches of a dataset's own list of blocks, in order, over as few streams as can be."""

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        blocks: Sequence[tuple[int, Mark]],
        loader: Loader,
        memory: Memory | None,
        seen: Throughput,
        waits: Waits,
    ) -> None:
        self._source = self._batches(dataset, plan, blocks, loader, memory, seen, waits)
        self._next: tuple[int, pa.RecordBatch, str, int] | None = None

    def of(self, block: int) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        """The batches of the next block of the list, each with the cursor after it and what it keeps of memory; there
        may be none."""
        while True:
            if self._next is None:
                self._next = next(self._source, None)
            if self._next is None or self._next[0] != block:
                return
            _, batch, cursor, held = self._next
            self._next = None
            yield batch, cursor, held

    def close(self) -> None:
        self._source.close()

    @staticmethod
    def _batches(
        dataset: Dataset,
        plan: Plan,
        blocks: Sequence[tuple[int, Mark]],
        loader: Loader,
        memory: Memory | None,
        seen: Throughput,
        waits: Waits,
    ) -> Generator[tuple[int, pa.RecordBatch, str, int], None, None]:
        for run in _runs(blocks):
            mark = run[0][1]
            asked, after, row = [block for block, _ in run], mark.cursor, mark.cursor_row
            found = dataset.read(plan, asked, after=after, before=row, **loader._options, waits=waits)
            with found as stream, waits.reading(stream):
                if memory is not None:
                    stream.into(memory)
                for batch in counted(stream, seen):
                    place = stream.place or {}
                    yield place["block"], batch, place["cursor"], stream.held + row_slices.beside(batch)


def _runs(blocks: Sequence[tuple[int, Mark]]) -> list[list[tuple[int, Mark]]]:
    """Lists that one request can ask for: a cursor only before the first of each."""
    found: list[list[tuple[int, Mark]]] = []
    for one in blocks:
        if not found or one[1].cursor or len(found[-1]) == PER_READ:
            found.append([])
        found[-1].append(one)
    return found


def _datasets(given: Any) -> tuple[Dataset, ...]:
    """BadInput for what is no dataset, as its name, or a stream or a loader of it: no row of these is read for that."""
    several = isinstance(given, Collection | Iterator) and not isinstance(given, str)
    found: list[Dataset] = []
    for one in given if several else (given,):
        if not isinstance(one, Dataset):
            named = one is None or isinstance(one, str | Stream | Loader)  # of others it could be rows
            came = repr(one) if named else f"a {type(one).__name__}"
            raise BadInput(f"expected a dataset as `agree` of a space gives it, or a list of them, got {came}")
        found.append(one)
    return tuple(found)


def _one_schema(plans: Sequence[Plan]) -> pa.Schema:
    if not plans:
        raise BadInput("expected at least one dataset")
    first = plans[0].schema
    for plan in plans[1:]:
        if not plan.schema.equals(first):
            raise BadInput(
                f"expected datasets with the same columns, got {first.names} and {plan.schema.names}, or other types; "
                "name the columns that they share"
            )
    return first


def _check_windowed(schema: pa.Schema) -> None:
    """BadInput for columns whose rows Arrow 26 cannot put into another order."""
    strange = [one.name for one in schema if any(map(_stays_in_order, nested_types(one.type)))]
    if strange:
        raise BadInput(
            f"expected columns whose rows can be permuted beside window, got views or run ends in {strange}: leave "
            "them out (columns=), or window (the blocks are permuted without)"
        )


def _stays_in_order(kind: pa.DataType) -> bool:
    return kind in _VIEWS or bool(pa.types.is_run_end_encoded(kind))


_VIEWS = (pa.string_view(), pa.binary_view())


def _identity(plans: Sequence[Plan]) -> str:
    return hashlib.sha256("\n".join(f"{plan.snapshot} {plan.digest}" for plan in plans).encode()).hexdigest()[:32]


def _shown(plans: Sequence[Plan]) -> str:
    return hashlib.sha256("\n".join(plan.shown for plan in plans).encode()).hexdigest()[:32]
