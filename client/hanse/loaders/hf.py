"""Hugging Face: a streaming `datasets.IterableDataset` whose shards are the blocks of the plan.

    dataset = space.agree("north/texts", purpose="...").to_hf(seed=7)
    for example in dataset: ...

Its own `shuffle`, `map`, `batch`, `state_dict` and split over workers (`datasets.distributed`) work as for any other.
So does its `set_epoch`, which mixes the blocks by its own rules: for the order of `Loader` make it anew with `epoch`.
After `load_state_dict` it reads at most the block anew that it was in. A state of other rows, terms that show others,
another seed or epoch, or of other blocks (another worker's, of another `shuffle`) is refused when the next example is
asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pyarrow as pa
from datasets import DatasetInfo, Features, IterableDataset, Split
from datasets.iterable_dataset import ExamplesIterable

from hanse._values import bounded
from hanse.client import Dataset
from hanse.errors import BadInput
from hanse.loaders.loader import Loader
from hanse.patience import SECONDS
from hanse.plan import Plan


def dataset(
    of: Dataset,
    *,
    columns: Sequence[str] = (),
    where: str = "",
    seed: int | None = None,
    epoch: int = 0,
    patience: float = SECONDS,
) -> IterableDataset:
    """The rows as examples (dicts by column), in the order of `Loader` with the same seed and epoch. To go on from a
    state, make it with those that the state was taken with: BadInput otherwise, at the first example."""
    loader = Loader(of, columns=columns, where=where, seed=seed, epoch=epoch, patience=patience)
    plan, state = loader.plans[0], loader.state_dict()
    blocks = _Blocks(
        {"blocks": loader.permutation(), "of": of, "plan": plan, "patience": patience},
        order={name: state[name] for name in ("identity", "seed", "epoch", "shown")},
    )
    info = DatasetInfo(features=_features(plan.schema))
    return IterableDataset(blocks, info=info, split=Split.TRAIN)


def _features(schema: pa.Schema) -> Features:
    """BadInput for a column of a type that `datasets` does not have."""
    for one in schema:
        try:
            Features.from_arrow_schema(pa.schema([one]))
        except ValueError as error:
            others = [name for name in schema.names if name != one.name]
            raise BadInput(
                f"expected columns of types that datasets has, came {one.name} of {one.type}: leave it out with "
                f"columns={others}"
            ) from error
    return Features.from_arrow_schema(schema)


class _Blocks(ExamplesIterable):  # type: ignore[misc]  # datasets is not there when types are checked
    """The rows of some blocks, whose states say of which order and of which blocks they are.

    `datasets` keeps the number of the block and of the example in it, and loads that into whatever it is given.
    """

    def __init__(self, kwargs: dict[str, Any], *, order: dict[str, Any]) -> None:
        super().__init__(_examples, kwargs)
        self._order = order

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        state = self._state_dict
        if state and (state["type"], state["order"]) != (type(self).__name__, self._said()):
            came = state["order"] if state["type"] == type(self).__name__ else "another kind of dataset"
            raise BadInput(
                f"expected a state of {self._said()}, came one of {came}: make the dataset with the columns, "
                "condition, seed and epoch that the state was taken with, under terms that show the same, and let the "
                "reader be the same (which worker or rank of how many, `shuffle` and `set_epoch` of datasets); or "
                "begin the epoch anew"
            )
        yield from super().__iter__()

    def shuffle_data_sources(self, *args: Any, **options: Any) -> _Blocks:
        return self._of(super().shuffle_data_sources(*args, **options))

    def shard_data_sources(self, *args: Any, **options: Any) -> _Blocks:
        return self._of(super().shard_data_sources(*args, **options))

    def reshard_data_sources(self) -> _Blocks:
        """A block is not split further."""
        return self

    def _init_state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super()._init_state_dict()
        state["order"] = self._said()
        return state

    def _of(self, other: ExamplesIterable) -> _Blocks:
        return _Blocks(other.kwargs, order=self._order)

    def _said(self) -> dict[str, Any]:
        """As JSON values; a new one each time, since what is loaded is written into it."""
        blocks = ",".join(map(str, self.kwargs["blocks"]))
        return {**self._order, "blocks": hashlib.sha256(blocks.encode()).hexdigest()[:16]}


def _examples(blocks: list[int], of: Dataset, plan: Plan, patience: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of some blocks: a list, because `datasets` shares out lists between its workers. Each with a key."""
    if not blocks:  # of a dataset without rows; there is no list that could be asked for
        return
    numbers = count()
    with of.read(plan, blocks, patience=patience) as stream:
        for batch in stream:
            bounded(batch.columns)
            for row in batch.to_pylist():
                yield f"{blocks[0]}/{next(numbers)}", row
