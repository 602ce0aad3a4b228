"""Hugging Face: a streaming `datasets.IterableDataset` whose shards are the blocks of the plan.

    dataset = space.agree("north/texts", purpose="...").to_hf(seed=7)
    for example in dataset: ...

Its own `shuffle`, `map`, `batch`, `state_dict` and split over workers and ranks (`datasets.distributed`) work as for
any other. So does its `set_epoch`, which mixes the blocks by its own rules: for the order of `Loader` make it anew with
`epoch`. After `load_state_dict` it reads at most the block anew that it was in. Rows in a buffer of `shuffle` are in no
state: each resume loses them, and nobody says so; the order of a seed, and `shuffle(buffer_size=1)`, have no buffer. A
state of other rows, terms that show others, another seed or epoch, or of other blocks (another worker's, of another
`shuffle`) is refused when the next example is asked for.

Ranks have blocks of their own where their number divides that of the shards, which is why `world` is asked for; else
`datasets` has each of them read all rows, and drops those of the others.
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
from hanse.loaders.epoch_order import count, place
from hanse.loaders.loader import Loader
from hanse.loaders.torch.worker import end_with_the_loop, lose_nothing, told_whole
from hanse.options import unfit
from hanse.plan import Plan, parted
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
    """The rows as examples (dicts by column), in the order of `Loader` with the same seed and epoch. To go on from a
    state, make it with those that the state was taken with: BadInput otherwise, at the first example.

    `world`: over how many ranks `split_dataset_by_node` will split it. Each has every `world`-th block then, however
    many blocks there are.
    """
    world = count("world", world)
    loader = Loader(of, columns=columns, where=where, seed=seed, epoch=epoch, patience=patience)
    plan, state = loader.plans[0], loader.state_dict()
    blocks = _Blocks(
        {"blocks": loader.permutation(), "of": of, "plan": plan, "patience": patience},
        order={name: state[name] for name in ("identity", "seed", "epoch", "shown")},
        world=world,
    )
    info = DatasetInfo(features=_features(plan.schema))
    return IterableDataset(blocks, info=info, split=Split.TRAIN)


def _features(schema: pa.Schema) -> Features:
    """BadInput for a column of a type that `datasets` does not have."""
    for one in schema:
        try:
            Features.from_arrow_schema(pa.schema([one]))
        except ValueError as error:
            raise unfit("datasets", schema, one) from error
    return Features.from_arrow_schema(schema)


class _Shards(int):
    """How many there are. Ranks that do not divide it are told of what follows: nowhere else do we hear of them."""

    def __mod__(self, ranks: int) -> int:
        if rest := int(self) % ranks:
            warnings.warn(
                f"each of {ranks} ranks will read all rows and drop those of the others, as datasets has it where "
                f"there are {int(self)} shards: an agreement's rows are spent {ranks} times over. Make the dataset "
                f"with to_hf(world={ranks}), and each reads its own",
                stacklevel=2,
            )
        return rest


class _Blocks(ExamplesIterable):  # type: ignore[misc]  # datasets is not there when types are checked
    """The rows of some blocks, whose states say of which order and of which blocks they are.

    `datasets` keeps the number of the block (`shard_idx`) and of the example in it, and loads that into whatever it is
    given. Each block is a shard, and there are so many without any that `world` divides their number.
    """

    def __init__(self, kwargs: dict[str, Any], *, order: dict[str, Any], world: int) -> None:
        super().__init__(_batches, kwargs)
        self._order, self._world = order, world

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each example with a key."""
        state = self._state_dict or self._begun()
        end_with_the_loop()
        lose_nothing()
        with told_whole():
            self._check(state)
            yield from self._examples(state)

    def _check(self, state: dict[str, Any]) -> None:
        if (state["type"], state["order"]) != (type(self).__name__, self._said()):
            came = state["order"] if state["type"] == type(self).__name__ else "another kind of dataset"
            raise BadInput(
                f"expected a state of {self._said()}, got one of {came}: make the dataset with the columns, "
                "condition, seed and epoch that the state was taken with, under terms that show the same, and let the "
                "reader be the same (which worker or rank of how many, `shuffle` and `set_epoch` of datasets); or "
                "begin the epoch anew"
            )
        state["shard_idx"], state["shard_example_idx"] = place(state, self.kwargs["plan"], self.kwargs["blocks"])

    def _examples(self, state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """From the state on, which goes along."""
        blocks, row = self.kwargs["blocks"], 0
        for block, batch in _batches(**{**self.kwargs, "blocks": blocks[state["shard_idx"] :]}):
            while blocks[state["shard_idx"]] != block:
                state["shard_idx"], state["shard_example_idx"], row = state["shard_idx"] + 1, 0, 0
            behind = min(batch.num_rows, max(0, state["shard_example_idx"] - row))  # given before the state was taken
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
        return _Shards(-(-max(1, len(self.kwargs["blocks"])) // self._world) * self._world)

    def shuffle_data_sources(self, *args: Any, **options: Any) -> _Blocks:
        return self._of(super().shuffle_data_sources(*args, **options).kwargs["blocks"])

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> _Blocks:
        """Part `index` of so many: a run of neighbours, or every so-many-th block. There may be none in it."""
        blocks = self.kwargs["blocks"]
        if not contiguous:
            return self._of(blocks[index::num_shards])
        runs = parted(len(blocks), num_shards)
        return self._of([blocks[number] for number in runs[index]] if index < len(runs) else [])

    def reshard_data_sources(self) -> _Blocks:
        """A block is not split further."""
        return self

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = self._begun()
        return self._state_dict

    def _begun(self) -> dict[str, Any]:
        return {"shard_idx": 0, "shard_example_idx": 0, "type": type(self).__name__, "order": self._said()}

    def _of(self, blocks: list[int]) -> _Blocks:
        return _Blocks(self.kwargs | {"blocks": blocks}, order=self._order, world=self._world)

    def _said(self) -> dict[str, Any]:
        """As JSON values; a new one each time, since what is loaded is written into it."""
        blocks = ",".join(map(str, self.kwargs["blocks"]))
        return {**self._order, "blocks": hashlib.sha256(blocks.encode()).hexdigest()[:16]}


def _batches(blocks: list[int], of: Dataset, plan: Plan, patience: float) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of some blocks, in as few reads as can be; with each batch the block that it is of."""
    if not blocks:  # of a dataset without rows, or a rank without any; there is no list that could be asked for
        return
    with of.read(plan, blocks, patience=patience) as stream:
        for batch in stream:
            refuse_oversized(batch.columns)
            yield (stream.place or {})["block"], batch
