"""PyTorch: an IterableDataset of batches that supports DataLoader workers and distributed ranks, and keeps its place.

    dataset = space.agree("north/images", purpose="...").to_torch(batch_size=256, seed=7)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=0)      # torchdata; a plain DataLoader works too

Give `batch_size` to the dataset and None to the DataLoader: rows are joined as Arrow data. Leave `num_workers` at 0: a
thread reads ahead, and no batch is copied between processes. Workers help if `form` is slow, for example if it decodes
pictures; their batches go to the loop by PyTorch's own transfer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, NamedTuple, Unpack

import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from hanse.client import Dataset
from hanse.errors import BadInput
from hanse.loaders.epoch_order import check_choice, check_number, check_reader
from hanse.loaders.loader import Loader
from hanse.loaders.row_slices import Slice, join_batches
from hanse.loaders.throughput import Throughput
from hanse.loaders.torch.columns import TensorColumns
from hanse.loaders.torch.tensors import BLOBS, tensors
from hanse.loaders.torch.worker import end_with_loop, keep_error_facts, raise_unpicklable
from hanse.options import BatchOptions

_WORKERS_MAX = 4096  # workers of one DataLoader
_EPOCHS = 2**24  # epochs that marks can distinguish
_ARGUMENTS = ("rank", "world")
_RANK = ("RANK", "WORLD_SIZE")  # as torchrun names them in the environment


class _SharedState(NamedTuple):
    """The state that a process shares with its workers."""

    # For workers that persist between epochs: the epoch of the last loaded state, the epoch of `set_epoch`, and
    # whether that was called, which loading a state later does not undo.
    epoch: torch.Tensor
    # By worker: its last iteration and epoch, see `_iteration_mark`.
    taken: torch.Tensor
    # The first iteration, by its name, resumes from a merged state; and by worker, whether it has begun that. New
    # workers of a later iteration have that state in their loader, too.
    first: torch.Tensor
    begun: torch.Tensor


class Batches(IterableDataset[Any]):  # type: ignore[misc]  # torch is not there when types are checked
    """Batches of a `Loader`, each passed through `form`. Every rank and worker gets its own part of the epoch.

    It has no length: the number of batches depends on the number of workers, and each worker ends with its own last
    batch.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        form: Callable[..., Any],
        ranks: tuple[int, int] | None = None,
    ) -> None:
        """`form` receives the rows of a batch in as many pieces as they were received in. `ranks`: rank and world, if
        `torch.distributed` does not provide them."""
        super().__init__()
        self._loader = loader
        self._form = form
        self._ranks_given = ranks is not None
        self._ranks = ranks or _process_group_rank()
        self._own = _SharedState(
            torch.tensor([loader.epoch, 0, 0], dtype=torch.int64).share_memory_(),
            torch.zeros(_WORKERS_MAX, dtype=torch.int64).share_memory_(),
            torch.zeros(1, dtype=torch.int64).share_memory_(),
            torch.zeros(_WORKERS_MAX, dtype=torch.bool).share_memory_(),
        )
        self._received: tuple[_SharedState, tuple[int, int] | None] = self._own, None
        self._received_in = 0
        self._set_epoch: int | None = None  # the epoch of `set_epoch`: called here, or in the parent before the start
        self._begun = 0  # iterations of this worker

    @keep_error_facts()
    def __iter__(self) -> Iterator[Any]:
        end_with_loop()
        raise_unpicklable()
        first = self._is_first(self._divide())
        epoch, mark = self._next_epoch()
        if self._loader.over():
            # This reader has nothing left. If all readers are at the end, torchdata begins the next epoch by itself.
            self._loader.forget()
            return iter(())
        if not self._loader.pending:
            self._loader.set_epoch(epoch)
            self._loader.begin(whole=not first)
        return self._batches(mark)

    def _is_first(self, worker: int) -> bool:
        """Return whether this iteration is the first one.

        Its workers begin at different times, some never: so all use the same name for it. A persistent worker, or one
        with the same seed, may use that name again.
        """
        name, shared = _iteration_name(), self._shared
        if not shared.first[0]:
            shared.first[0] = name
        first = int(shared.first[0]) == name and not shared.begun[worker]
        shared.begun[worker] = True
        return bool(first)

    def _next_epoch(self) -> tuple[int, int]:
        """Return the epoch of the iteration that begins; and a mark for workers that must have the same, else 0.

        A started process knows what was set before its start: later settings apply to its next iteration, even before
        this one is under way. Persistent workers use the current setting.
        """
        info, (loaded, said, was_said) = get_worker_info(), self._shared.epoch.tolist()
        if info is None or not self._begun:
            epoch = loaded if self._set_epoch is None else self._set_epoch
        else:
            epoch = said if was_said else loaded
        if info is None:
            return epoch, 0
        mark = _iteration_mark(self._begun, epoch)
        self._shared.taken[info.id] = mark
        self._begun += 1
        return epoch, mark if self._begun > 1 else 0

    def _check_epoch(self, mark: int) -> None:
        """Check that no other worker began this iteration with another epoch: rows would come twice, or not at all.
        Each worker writes its mark before it checks, so one of two sees the other's.

        Raises:
            BadInput: the epochs differ.
        """
        taken = self._shared.taken[: get_worker_info().num_workers]
        if ((taken // _EPOCHS == mark // _EPOCHS) & (taken != mark)).any():
            raise BadInput(
                "expected set_epoch before an iteration, or when all its workers have begun, got a call while only "
                "some had begun; call it before iter() of the DataLoader"
            )

    def _batches(self, mark: int) -> Iterator[Any]:
        """Return the batches with the current settings, whatever is set before the first one is requested."""
        form = self._apply_to if get_worker_info() is None else self._apply_to_send
        return self._read(mark, form, self._loader.iter_slices())

    def _read(
        self, mark: int, form: Callable[[Sequence[Slice]], Any], found: Generator[Any, None, None]
    ) -> Iterator[Any]:
        with keep_error_facts(), closing(found):
            if mark:
                self._check_epoch(mark)
            yield from map(form, found)

    def _apply_to_send(self, slices: Sequence[Slice]) -> Any:
        made = self._apply_to(slices)
        return TensorColumns(made) if type(made) is dict else made

    def _apply_to(self, slices: Sequence[Slice]) -> Any:
        return self._form(*(batch.slice(start, stop - start) for batch, start, stop in slices))

    @property
    def rows(self) -> int:
        """Rows of an epoch, over all ranks and workers: exact without a row filter and a condition."""
        return self._loader.rows

    @property
    def schema(self) -> pa.Schema:
        """The columns as received, before they are tensors."""
        return self._loader.schema

    @property
    def throughput(self) -> Throughput:
        """What this process has received in this iteration; nothing if workers read."""
        return self._loader.throughput

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. Call it before each one; otherwise every epoch has the same order."""
        self._loader.set_epoch(epoch)
        self._set_epoch = self._loader.epoch
        if get_worker_info() is None:
            self._shared.epoch[1:] = torch.tensor([self._set_epoch, 1])
        else:
            self._begun = 0  # the next iteration uses this setting

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was yielded in this process."""
        self._divide()
        return self._loader.state_dict()

    @keep_error_facts()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state with the next iteration; see `hanse.loaders.merge` for another number of readers. Raises:
        BadInput."""
        self._divide()
        self._loader.load_state_dict(state)
        if get_worker_info() is None:  # a worker resumes from its own state, and starts whole epochs after that
            self._shared.first[:], self._shared.begun[:] = 0, False
        self._shared.epoch[0] = self._loader.epoch

    def __getstate__(self) -> dict[str, Any]:
        """Include the rank, which a spawned worker cannot find out."""
        rank = None
        with suppress(BadInput):  # the receiving rank's environment may have it
            rank = self._rank()
        return self.__dict__ | {"_own": None, "_received": (self._shared, rank)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; whether this process is a worker, or a rank with workers of its own, shows later."""
        self.__dict__.update(state)
        self._own = _SharedState(*(tensor.clone().share_memory_() for tensor in self._received[0]))
        self._received_in = os.getpid()

    @property
    def _is_spawned(self) -> bool:
        """Whether this process is a worker that received this object."""
        return get_worker_info() is not None and self._received_in == os.getpid()

    @property
    def _shared(self) -> _SharedState:
        return self._received[0] if self._is_spawned else self._own

    def _divide(self) -> int:
        """Choose this process's part: rank and worker are known only here. Return the worker's number."""
        info = get_worker_info()
        workers, worker = (1, 0) if info is None else (info.num_workers, info.id)
        rank, world = self._rank()
        # Ranks before workers: ranks differ by at most one block, whatever their numbers of workers.
        self._loader.divide(worker * world + rank, world * workers)
        return worker

    def _rank(self) -> tuple[int, int]:
        """Return rank and world: from the process group, now or earlier, else from the environment.

        A spawned worker is in no group, and its environment may differ, or count nodes.
        """
        if not self._ranks_given:
            self._ranks = _process_group_rank() or self._ranks
        return self._ranks or (self._received[1] if self._is_spawned else None) or _environment_rank()


def dataset(
    datasets: Dataset | Sequence[Dataset],
    *,
    form: Callable[[pa.RecordBatch], Any] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    blobs: str = "bytes",
    rank: int | None = None,
    world: int | None = None,
    state: dict[str, Any] | None = None,
    **options: Unpack[BatchOptions],
) -> Batches:
    """Return the batches of one or several datasets with the same columns.

    `options` are those of `Loader`: `columns`, `where`, `batch_size` (default 256), `drop_last`, `seed`, `window`,
    `epoch`, `prefetch_bytes`, `codec`, `patience`, `progress`.

    `form`: converts an Arrow batch to what the loop gets; by default `tensors` with `shapes` and `blobs`, a dict by
    column.

    `rank` and `world`, both or neither: by default those of `torch.distributed` or of torchrun's environment when the
    rows are read. Ranks count from 0.

    `state`: a merged state to resume from.

    Raises:
        BadInput: an option does not fit, or there is no such rank.
    """
    if "part" in options or "parts" in options:
        raise BadInput("expected rank and world, got part or parts; the parts follow from rank, world and workers")
    ranks = check_choice(rank, world, names=_ARGUMENTS)
    if blobs not in BLOBS:
        raise BadInput(f"expected blobs to be one of {', '.join(BLOBS)}, got {blobs!r}")
    if form is not None and not callable(form):
        raise BadInput(f"expected form to be a function of an Arrow batch, got {form!r}")
    shapes = {name: _check_shape(name, shape) for name, shape in (shapes or {}).items()}
    if form is not None and (shapes or blobs != BLOBS[0]):
        raise BadInput("expected either form, which converts Arrow batches, or shapes and blobs; got both")
    options.setdefault("batch_size", 256)
    loader = Loader(datasets, **options)
    if unknown := sorted({*shapes} - {*loader.schema.names}):
        raise BadInput(f"expected shapes of columns among {loader.schema.names}, got {unknown}")
    if state is not None:
        loader.load_state_dict(state)
    made = partial(tensors, shapes=shapes, blobs=blobs) if form is None else partial(_apply_form, form)
    return Batches(loader, form=made, ranks=ranks)


def _iteration_name() -> int:
    """Return a name of an iteration that all its workers share: from their common seed and their number."""
    info = get_worker_info()
    return hash((0, 0) if info is None else (info.seed - info.id, info.num_workers))


def _iteration_mark(begun: int, epoch: int) -> int:
    """Return a worker's iteration, and the last bits of its epoch, in one number: readers see both or neither."""
    return hash((_iteration_name(), begun)) % (_EPOCHS << 15) * _EPOCHS + epoch % _EPOCHS


def _check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Return the shape as whole numbers. Raises: BadInput."""
    try:
        sizes = tuple(check_number(f"the shape of {name}", size) for size in shape)
    except (TypeError, BadInput):
        sizes = ()
    if not sizes or min(sizes) < 0:
        raise BadInput(f"expected the shape of column {name} as whole numbers such as (6,) or (2, 3), got {shape!r}")
    return sizes


def _apply_form(form: Callable[[pa.RecordBatch], Any], *batches: pa.RecordBatch) -> Any:
    return form(join_batches(batches))


def _process_group_rank() -> tuple[int, int] | None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None


def _environment_rank() -> tuple[int, int]:
    """Return rank and world of torchrun's environment.

    Raises:
        BadInput: only one is set, or one is not a number; otherwise ranks would read each other's rows, or none.
    """
    rank, world = values = [os.environ.get(name) for name in _RANK]
    if rank is None and world is None:
        return 0, 1
    try:
        return check_reader(int(rank or ""), int(world or ""), names=_RANK)
    except ValueError:
        came = ", ".join(f"{name}={value}" for name, value in zip(_RANK, values, strict=True))
        raise BadInput(
            f"expected whole numbers for both {_RANK[0]} and {_RANK[1]} of the environment, or neither; got {came}. "
            "Set both, as torchrun does, or give rank and world"
        ) from None


__all__ = ["Batches", "dataset"]
