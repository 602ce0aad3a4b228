"""Hugging Face: a streaming `datasets.IterableDataset` whose shards are the blocks of the plan.

    dataset = space.agree("north/texts", purpose="...").to_hf(seed=7)
    for example in dataset: ...

Its own `shuffle`, `map`, `batch`, `state_dict` and split over workers (`datasets.distributed`) work as for any other.
So does its `set_epoch`, which mixes the blocks by its own rules: for the order of `Loader` make it anew with `epoch`.
After `load_state_dict` it reads at most the block anew that it was in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Features, IterableDataset

from hanse._values import bounded
from hanse.client import Dataset
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
    """The rows as examples (dicts by column), in the order of `Loader` with the same seed and epoch."""
    loader = Loader(of, columns=columns, where=where, seed=seed, epoch=epoch)
    plan = loader.plans[0]
    return IterableDataset.from_generator(
        _examples,
        features=Features.from_arrow_schema(plan.schema),
        gen_kwargs={"blocks": loader.permutation(), "of": of, "plan": plan, "patience": patience},
    )


def _examples(blocks: list[int], of: Dataset, plan: Plan, patience: float) -> Iterator[dict[str, Any]]:
    """The rows of some blocks: a list, because `datasets` shares out lists between its workers."""
    if not blocks:  # of a dataset without rows; there is no list that could be asked for
        return
    with of.read(plan, blocks, patience=patience) as stream:
        for batch in stream:
            bounded(batch.columns)
            yield from batch.to_pylist()
