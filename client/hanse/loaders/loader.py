"""`Loader`: batches of one or several datasets in the order of an epoch, for one of several readers, with a state.

`epoch_order` computes the order and the readers' progress; this module reads the streams.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from array import array
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from hanse._transport.cancellation import Waits
from hanse._transport.sockets import check_process
from hanse.client import Dataset
from hanse.errors import AccessRevoked, BadInput, HanseError
from hanse.loaders import epoch_order as orders
from hanse.loaders import row_slices
from hanse.loaders.epoch_order import EpochProgress, Mark, Order, ReaderShare
from hanse.loaders.prefetch import read_ahead
from hanse.loaders.row_slices import Slice
from hanse.loaders.throughput import Throughput, ThroughputBar, add_batch, count_batches
from hanse.plan import PER_READ, Plan
from hanse.retry import SECONDS
from hanse.stream import Stream

_PREFETCH_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows, and the place after `k` of them: `done` places of the share are complete, `mark(k)` is in the next.

    `held`: bytes of memory that they keep, which may be more than their own.
    """

    batch: pa.RecordBatch
    held: int
    done: int
    mark: Callable[[int], Mark]


class Loader:
    """Arrow record batches of `batch_size` rows (the last may have fewer), for reader `part` (from 0) of `parts`.
    Without both, for a single reader.

    `datasets`: one, or several with the same columns, whose blocks are mixed. `seed`: None keeps the stored order.
    `window`: rows within a block are permuted too, in runs of that many, which are held in memory.
    `epoch`: changes the order. `patience`: seconds without a row before a temporary failure is raised.
    `prefetch_bytes`: bytes to read ahead, about.

    Iterating again without `set_epoch` yields the same rows in the same order: a whole epoch, even if the first
    iteration resumed from a state.

    Raises:
        BadInput: an option does not fit.

    Example:
        loader = Loader(space.agree("north/trips", purpose="..."), batch_size=1024, seed=7)
        for batch in loader: ...
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
        share = orders.check_choice(part, parts)
        batch_size = None if batch_size is None else orders.check_number("batch_size", batch_size)
        seed = None if seed is None else orders.check_key("seed", seed)
        window, epoch = orders.check_number("window", window), orders.check_key("epoch", epoch)
        prefetch_bytes = orders.check_number("prefetch_bytes", prefetch_bytes)
        if batch_size is not None and batch_size < 1:
            raise BadInput(f"expected a batch_size of at least 1, or None for batches as they come, got {batch_size}")
        if window < 0:
            raise BadInput(f"expected a window of at least 0 rows, got {window}")
        if prefetch_bytes < 0:
            raise BadInput(f"expected prefetch_bytes of at least 0, got {prefetch_bytes}")
        if window and seed is None:
            raise BadInput("expected a seed with window: without a seed nothing is permuted")
        self.datasets = _check_datasets(datasets)
        self.plans = tuple(dataset.plan(columns=columns, where=where, patience=patience) for dataset in self.datasets)
        self.schema = _check_schemas(self.plans)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.throughput = Throughput()
        self.error: HanseError | None = (
            None  # the error of the last iteration: libraries that consume rows raise their own
        )
        blocks = sum(len(plan.blocks) for plan in self.plans)
        self._order = Order(_identity_digest(self.plans), blocks, seed, epoch, window, _shown_digest(self.plans))
        self._part, self._parts = share or (0, 1)
        self._share: ReaderShare | None = None  # the place after the last batch that was yielded
        self._base = EpochProgress()
        self._pending: ReaderShare | None = None  # a loaded state from which the next iteration resumes
        self._options: dict[str, Any] = {"patience": patience, "codec": codec}
        self._prefetch_bytes = prefetch_bytes
        self._progress = progress

    def __repr__(self) -> str:
        """Show datasets, size, reader and epoch in a notebook."""
        names, about = ", ".join(dataset.name for dataset in self.datasets), "" if self._exact else "about "
        size = f"{about}{self.rows:,} rows in {self._order.blocks:,} blocks"
        return f"<Loader {names}, {size}, reader {self._part} of {self._parts}, epoch {self.epoch}>"

    @property
    def epoch(self) -> int:
        return self._order.epoch

    @property
    def rows(self) -> int:
        """Rows of an epoch, over all readers: exact only if the plans are."""
        return sum(plan.rows for plan in self.plans)

    def permutation(self) -> list[int]:
        """Return the numbers of the blocks in the order of the epoch."""
        return self._order.permutation()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from its beginning; a state that was loaded for that epoch stays."""
        epoch = orders.check_key("epoch", epoch)
        if epoch != self._order.epoch:
            self._order = replace(self._order, epoch=epoch)
            self._base, self._pending, self._share = EpochProgress(), None, None

    @property
    def pending(self) -> bool:
        """Whether a state was loaded that the next iteration resumes from."""
        return self._pending is not None

    def over(self) -> bool:
        """Return whether the loaded state leaves no batch; for inexact plans, whether it leaves no block."""
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

    def _rows_left(self, share: ReaderShare) -> int:
        """Return the remaining rows of a share, by the plans."""
        permutation, rows = self._order.permutation(), 0
        for place, mark in share.places(self._order.blocks):
            source, block = self._locate(permutation[place])
            rows += self.plans[source].blocks[block].rows - mark.row - mark.emitted
        return rows

    def forget(self) -> None:
        """Start the next iteration with a whole epoch, as after an iteration that ended."""
        self._share, self._pending, self._base = self._pending, None, EpochProgress()

    def begin(self, *, whole: bool) -> None:
        """Use the loaded state as the start of the next iteration. `whole`: start a whole epoch, whatever a merged
        state left."""
        self._share = None
        if whole:
            self._base = EpochProgress()

    def divide(self, part: int, parts: int) -> None:
        """Become reader `part` of `parts` from the next iteration on.

        Raises:
            BadInput: there is no such reader, or the loaded state is another reader's.
        """
        part, parts = orders.check_reader(part, parts)
        if (part, parts) != (self._part, self._parts):
            if self._pending is not None:
                raise BadInput(
                    f"expected a state of reader {part} of {parts}, got one of reader {self._pending.part} of "
                    f"{self._pending.parts}; merge the states of all of them with hanse.loaders.merge first"
                )
            self._part, self._parts, self._share = part, parts, None

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last row that was yielded, as JSON values. Prefetched rows do not count."""
        return orders.to_state(self._order, self._share or self._pending or self._start_share())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of this reader, or from a merged one with any number of readers.

        Raises:
            BadInput: the state is of other rows, another seed or another reader.
        """
        order, where = orders.from_state(state)
        own = replace(self._order, epoch=order.epoch)
        if replace(order, shown=own.shown) != own:
            raise BadInput(
                "expected a state with this loader's snapshot, plan, seed and window, got one with others; open the "
                "loader with the same ones, or begin the epoch anew"
            )
        within = orders.open_marks(where, order.blocks)
        if order.shown != own.shown and within:
            raise BadInput(
                "expected a state that was taken under terms that show the same rows and columns, got one from within "
                "a block under others (or from an older version): its row counts do not fit. Use an agreement with the "
                "same terms, or begin the epoch anew"
            )
        self._check_rows(own, within)
        if isinstance(where, EpochProgress):
            self._base, self._pending = where, None
        elif (where.part, where.parts) != (self._part, self._parts):
            raise BadInput(
                f"expected a state of reader {self._part} of {self._parts}, got one of reader {where.part} of "
                f"{where.parts}; merge the states of all of them with hanse.loaders.merge first"
            )
        else:
            self._base, self._pending = where.base, where
        self._order, self._share = own, None

    def _check_rows(self, order: Order, within: Mapping[int, Mark]) -> None:
        """Raises: BadInput for marks of more rows than their blocks have."""
        permutation = order.permutation()
        for place, mark in within.items():
            source, block = self._locate(permutation[place])
            self.plans[source].check_rows(block, mark.row + mark.emitted)

    def __iter__(self) -> Generator[pa.RecordBatch, None, None]:
        """Yield the batches from the loaded state, or from the beginning of the epoch. Later settings apply to the next
        iteration."""
        return _join_each(self.iter_slices())

    def iter_slices(self) -> Generator[Sequence[Slice], None, None]:
        """Yield the same batches, each as the slices that it consists of: for callers that join them where they are
        used.

        Raises:
            BadInput: the process was forked after the iteration began.
        """
        order, share = self._order, self._pending or self._start_share()
        # A state serves one iteration, whether or not it completes.
        self._share, self._pending, self._base = share, None, EpochProgress()
        return self._read(order, share)

    def in_slices(self) -> Generator[Sequence[Slice], None, None]:
        """Yield what `iter_slices` yields, under its former name."""
        warnings.warn("use Loader.iter_slices(), the new name of in_slices()", DeprecationWarning, stacklevel=2)
        return self.iter_slices()

    def _read(self, order: Order, share: ReaderShare) -> Generator[Sequence[Slice], None, None]:
        """Yield the batches of a share."""
        process = os.getpid()
        seen = self.throughput = Throughput()  # this iteration's own, even if another begins meanwhile
        self.error = None
        revoked: list[AccessRevoked] = []
        waits = Waits()
        source = self._pieces(order, share, revoked, seen, waits)
        pieces = read_ahead(source, nbytes=self._prefetch_bytes, size=lambda piece: piece.held, wake=waits.end)
        bar = ThroughputBar(seen, **self._epoch_size(share)) if self._progress else None
        after = share
        try:
            for slices, after in self._batches(pieces, share):
                if revoked:  # access has ended, also to rows that were prefetched
                    raise revoked[0]
                if order is self._order:  # else another epoch or state was set for the next iteration
                    self._share = after
                add_batch(seen, slices)
                if bar is not None:
                    bar.update(after.done)
                yield slices
                check_process(process)  # before any row, also a prefetched one
            if bar is not None:
                bar.end()
            if order is self._order:
                self._share = replace(after, ended=True)
        except HanseError as error:
            self.error = error
            raise
        finally:
            pieces.close()
            if bar is not None and process == os.getpid():  # else a thread of the parent may hold its lock
                bar.close()

    def to_reader(self) -> pa.RecordBatchReader:
        """Return one iteration as a reader, for libraries that take one; constant memory."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export one iteration by the Arrow PyCapsule interface: polars, DuckDB and pandas take a loader directly."""
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def _start_share(self) -> ReaderShare:
        return ReaderShare(self._base, self._part, self._parts)

    def _epoch_size(self, share: ReaderShare) -> dict[str, int]:
        """Return this reader's size of the epoch, and what precedes `share`: in rows if known, else in blocks."""
        every = replace(share, done=0, mark=None, ended=False)
        if not self._exact:
            return {"rows": 0, "before": 0, "blocks": len(every.places(self._order.blocks))}
        rows, left = self._rows_left(every), 0 if share.ended else self._rows_left(share)
        return {"rows": rows, "before": rows - left, "blocks": 0}

    def _batches(
        self, pieces: Iterator[_Piece], share: ReaderShare
    ) -> Generator[tuple[Sequence[Slice], ReaderShare], None, None]:
        """Yield pieces as batches of the requested size, each with the share after its last row."""
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
        share: ReaderShare,
        revoked: list[AccessRevoked],
        seen: Throughput,
        waits: Waits,
    ) -> Generator[_Piece, None, None]:
        """Yield the rows of a share in their order, in the pieces that are received. `revoked` and `seen` are updated
        at once, before the prefetched rows are consumed; `waits` can end what the streams wait for."""
        permutation = order.permutation()
        left = [] if share.ended else share.places(order.blocks)
        todo = [(self._locate(permutation[place]), mark) for place, mark in left]
        feeds = [
            _Feed(
                dataset,
                plan,
                [(block, mark) for (source, block), mark in todo if source == number],
                self,
                seen,
                waits,
            )
            for number, (dataset, plan) in enumerate(zip(self.datasets, self.plans, strict=True))
        ]
        try:
            for done, ((source, block), mark) in enumerate(todo):
                offset = sum(len(plan.blocks) for plan in self.plans[:source])
                yield from _read_block(order, feeds[source].of(block), offset + block, done, mark)
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


def _join_each(found: Generator[Sequence[Slice], None, None]) -> Generator[pa.RecordBatch, None, None]:
    with closing(found):
        yield from map(row_slices.join_slices, found)


def _read_block(
    order: Order, batches: Iterator[tuple[pa.RecordBatch, str, int]], name: int, done: int, mark: Mark
) -> Generator[_Piece, None, None]:
    placed = _skip_to_mark(batches, mark)
    if not order.window:
        for batch, row, cursor, cursor_row, held in placed:
            yield _Piece(batch, held, done, _mark_in_order(row, cursor, cursor_row))
        return
    emitted = mark.emitted
    for batch, row, cursor, cursor_row, held in _windows(placed, order.window):
        shown = order.within(name, row // order.window, batch.num_rows)
        if shown is not None:
            batch = batch.take(_to_int64(shown))
            held = row_slices.kept_bytes(batch) + row_slices.overhead_bytes(batch)
        yield _Piece(batch.slice(emitted), held, done, _mark_in_run(row, emitted, cursor, cursor_row))
        emitted = 0


def _to_int64(shown: Sequence[int]) -> pa.Array:
    """Convert as `pa.array` does, without loading pandas."""
    return pa.Array.from_buffers(pa.int64(), len(shown), [None, pa.py_buffer(array("q", shown))])


# Rows, their first row, the cursor before them and its row, and the memory that they keep.
_Placed = tuple[pa.RecordBatch, int, str, int, int]


def _skip_to_mark(batches: Iterator[tuple[pa.RecordBatch, str, int]], mark: Mark) -> Iterator[_Placed]:
    """Yield what follows the mark: the rows between its cursor and itself were already yielded."""
    before, row = mark.cursor, mark.cursor_row
    for batch, cursor, held in batches:
        skip = min(batch.num_rows, max(0, mark.row - row))
        if skip < batch.num_rows:
            yield batch.slice(skip), row + skip, before, row, held
        before, row = cursor, row + batch.num_rows


def _mark_in_order(row: int, cursor: str, cursor_row: int) -> Callable[[int], Mark]:
    return lambda given: Mark(row + given, 0, cursor, cursor_row)


def _mark_in_run(row: int, emitted: int, cursor: str, cursor_row: int) -> Callable[[int], Mark]:
    return lambda given: Mark(row, emitted + given, cursor, cursor_row)


def _windows(placed: Iterator[_Placed], window: int) -> Iterator[_Placed]:
    """Yield the same rows in runs of `window`, each with a cursor at or before its beginning."""
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
                yield row_slices.join_slices(run.slices), first, cursor, cursor_row, held
                run = row_slices.Run()
    if run.rows:
        yield row_slices.join_slices(run.slices), first, cursor, cursor_row, held


class _Feed:
    """The batches of a list of blocks of one dataset, in order, over as few streams as possible."""

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        blocks: Sequence[tuple[int, Mark]],
        loader: Loader,
        seen: Throughput,
        waits: Waits,
    ) -> None:
        self._source = self._batches(dataset, plan, blocks, loader, seen, waits)
        self._next: tuple[int, pa.RecordBatch, str, int] | None = None

    def of(self, block: int) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        """Yield the batches of the next block of the list, each with the cursor after it and the memory that it keeps.
        A block may have no batch."""
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
        seen: Throughput,
        waits: Waits,
    ) -> Generator[tuple[int, pa.RecordBatch, str, int], None, None]:
        for run in _runs(blocks):
            mark = run[0][1]
            numbers, after, row = [block for block, _ in run], mark.cursor, mark.cursor_row
            opened = dataset.read(plan, numbers, after=after, before=row, **loader._options, waits=waits)
            with opened as stream, waits.reading(stream):
                for batch in count_batches(stream, seen):
                    place = stream.place or {}
                    yield place["block"], batch, place["cursor"], stream.held + row_slices.overhead_bytes(batch)


def _runs(blocks: Sequence[tuple[int, Mark]]) -> list[list[tuple[int, Mark]]]:
    """Return lists that one request can name: only the first block of each has a cursor."""
    runs: list[list[tuple[int, Mark]]] = []
    for block, mark in blocks:
        if not runs or mark.cursor or len(runs[-1]) == PER_READ:
            runs.append([])
        runs[-1].append((block, mark))
    return runs


def _check_datasets(given: Any) -> tuple[Dataset, ...]:
    """Raises: BadInput for anything but datasets, such as a name, a stream or a loader. No row of those is read."""
    several = isinstance(given, Collection | Iterator) and not isinstance(given, str)
    datasets: list[Dataset] = []
    for item in given if several else (given,):
        if not isinstance(item, Dataset):
            is_short = item is None or isinstance(item, str | Stream | Loader)  # the repr of others could be rows
            came = repr(item) if is_short else f"a {type(item).__name__}"
            raise BadInput(f"expected a dataset as `agree` of a space returns it, or a list of them, got {came}")
        datasets.append(item)
    return tuple(datasets)


def _check_schemas(plans: Sequence[Plan]) -> pa.Schema:
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


def _identity_digest(plans: Sequence[Plan]) -> str:
    return hashlib.sha256("\n".join(f"{plan.snapshot} {plan.digest}" for plan in plans).encode()).hexdigest()[:32]


def _shown_digest(plans: Sequence[Plan]) -> str:
    return hashlib.sha256("\n".join(plan.shown for plan in plans).encode()).hexdigest()[:32]
