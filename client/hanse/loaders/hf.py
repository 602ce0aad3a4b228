"""Hugging Face: a streaming `datasets.IterableDataset` whose shards are the blocks of the plan.

    dataset = space.agree("north/texts", purpose="...").to_hf(seed=7)
    for example in dataset: ...

Its `shuffle`, `map`, `batch`, `state_dict` and split over workers and ranks (`datasets.distributed`) work as usual. Its
`set_epoch` shuffles the blocks by its own rules: for the order of `Loader` create the dataset again with `epoch`. After
`load_state_dict` it repeats at most the block that it was in. Rows in a buffer of `shuffle` are in no state: each
resume loses them without a warning; the order of a seed, and `shuffle(buffer_size=1)`, have no buffer. A state of other
rows, of terms that show others, of another seed or epoch, or of other blocks (another worker's, or after another
`shuffle`) is refused at the next example.

Ranks have blocks of their own if their number divides that of the shards; hence the parameter `world`. Otherwise
`datasets` has each rank read all rows and drop those of the others.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from datasets import DatasetInfo, Features, IterableDataset, Split
from datasets.iterable_dataset import ExamplesIterable

from hanse._arrow.value_limits import name_failing_column, refuse_oversized
from hanse.client import Dataset
from hanse.errors import BadInput
from hanse.loaders.epoch_order import check_count, read_place
from hanse.loaders.loader import Loader
from hanse.loaders.torch.worker import end_with_loop, keep_error_facts, raise_unpicklable
from hanse.options import unfit_error
from hanse.plan import Plan, split_blocks
from hanse.retry import SECONDS


def dataset(
    of: Dataset,
    *,
    columns: Sequence[str] = (),
    where: str = "",
    seed: int | None = None,
    epoch: int = 0,
    world: int = 1,
    patience: float = SECONDS,
) -> IterableDataset:
    """Return the rows as examples (dicts by column), in the order of `Loader` with the same seed and epoch. To resume
    from a state, use the arguments that it was taken with.

    `world`: the number of ranks over which `split_dataset_by_node` will split it. Each rank then has every
    `world`-th block.

    Raises:
        BadInput: an argument or a column's type does not fit; at the first example, a state does not.
    """
    world = check_count("world", world)
    loader = Loader(of, columns=columns, where=where, seed=seed, epoch=epoch, patience=patience)
    plan, state = loader.plans[0], loader.state_dict()
    blocks = _BlockExamples(
        {"blocks": loader.permutation(), "of": of, "plan": plan, "patience": patience},
        order={name: state[name] for name in ("identity", "seed", "epoch", "shown")},
        world=world,
    )
    info = DatasetInfo(features=_features(plan.schema))
    return IterableDataset(blocks, info=info, split=Split.TRAIN)


def _features(schema: pa.Schema) -> Features:
    """Return the features of a schema. Raises: BadInput for a column of a type that `datasets` does not have."""
    for field in schema:
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except ValueError as error:
            raise unfit_error("datasets", schema, field) from error
    return Features.from_arrow_schema(schema)


class _ShardCount(int):
    """The number of shards. Warns if the ranks do not divide it: `datasets` computes that remainder, and nothing else
    shows the ranks."""

    def __mod__(self, ranks: int) -> int:
        if rest := int(self) % ranks:
            warnings.warn(
                f"each of {ranks} ranks will read all rows and drop those of the others, because {ranks} does not "
                f"divide {int(self)} shards: the agreement's rows are counted {ranks} times. Create the dataset "
                f"with to_hf(world={ranks}), and each rank reads its own",
                stacklevel=2,
            )
        return rest


class _BlockExamples(ExamplesIterable):  # type: ignore[misc]  # datasets is not there when types are checked
    """The rows of some blocks. Their states name the order and the blocks.

    `datasets` stores the number of the block (`shard_idx`) and of the example in it, and loads that into any dataset.
    Each block is a shard; empty shards pad their number to a multiple of `world`.
    """

    def __init__(self, kwargs: dict[str, Any], *, order: dict[str, Any], world: int) -> None:
        super().__init__(_batches, kwargs)
        self._order, self._world = order, world

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each example with a key."""
        state = self._state_dict or self._start_state()
        end_with_loop()
        raise_unpicklable()
        with keep_error_facts():
            self._check(state)
            yield from self._examples(state)

    def _check(self, state: dict[str, Any]) -> None:
        if (state["type"], state["order"]) != (type(self).__name__, self._order_state()):
            came = state["order"] if state["type"] == type(self).__name__ else "another kind of dataset"
            raise BadInput(
                f"expected a state of {self._order_state()}, got one of {came}: create the dataset with the columns, "
                "condition, seed and epoch of the state, under terms that show the same, for the same worker and rank "
                "of as many, with the same `shuffle` and `set_epoch`; or begin the epoch anew"
            )
        state["shard_idx"], state["shard_example_idx"] = read_place(state, self.kwargs["plan"], self.kwargs["blocks"])

    def _examples(self, state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the examples after the state, and update it."""
        blocks, row = self.kwargs["blocks"], 0
        for block, batch in _batches(**{**self.kwargs, "blocks": blocks[state["shard_idx"] :]}):
            while blocks[state["shard_idx"]] != block:
                state["shard_idx"], state["shard_example_idx"], row = state["shard_idx"] + 1, 0, 0
            behind = min(batch.num_rows, max(0, state["shard_example_idx"] - row))  # yielded before the state was taken
            row += behind
            with name_failing_column(zip(batch.schema.names, batch.columns, strict=True)):
                examples = batch.slice(behind).to_pylist()
            for example in examples:
                row += 1
                state["shard_example_idx"] = row
                yield f"{block}/{row}", example
        state["shard_idx"], state["shard_example_idx"] = len(blocks), 0

    @property
    def num_shards(self) -> int:
        return _ShardCount(-(-max(1, len(self.kwargs["blocks"])) // self._world) * self._world)

    def shuffle_data_sources(self, *args: Any, **options: Any) -> _BlockExamples:
        return self._with_blocks(super().shuffle_data_sources(*args, **options).kwargs["blocks"])

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> _BlockExamples:
        """Return part `index` of `num_shards`: a run of neighbours, or every so-many-th block. It may be empty."""
        blocks = self.kwargs["blocks"]
        if not contiguous:
            return self._with_blocks(blocks[index::num_shards])
        runs = split_blocks(len(blocks), num_shards)
        return self._with_blocks([blocks[number] for number in runs[index]] if index < len(runs) else [])

    def reshard_data_sources(self) -> _BlockExamples:
        """Return this: a block is not split further."""
        return self

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = self._start_state()
        return self._state_dict

    def _start_state(self) -> dict[str, Any]:
        return {"shard_idx": 0, "shard_example_idx": 0, "type": type(self).__name__, "order": self._order_state()}

    def _with_blocks(self, blocks: list[int]) -> _BlockExamples:
        return _BlockExamples(self.kwargs | {"blocks": blocks}, order=self._order, world=self._world)

    def _order_state(self) -> dict[str, Any]:
        """Return JSON values; a new dict each time, because a loaded state is written into it."""
        blocks = ",".join(map(str, self.kwargs["blocks"]))
        return {**self._order, "blocks": hashlib.sha256(blocks.encode()).hexdigest()[:16]}


def _batches(blocks: list[int], of: Dataset, plan: Plan, patience: float) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the rows of some blocks, in as few reads as possible, each batch with its block."""
    if not blocks:  # a dataset without rows, or a rank without blocks: an empty list cannot be requested
        return
    with of.read(plan, blocks, patience=patience) as stream:
        for batch in stream:
            refuse_oversized(batch.columns)
            yield (stream.place or {})["block"], batch
