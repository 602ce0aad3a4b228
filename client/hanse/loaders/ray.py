"""Ray Data: a datasource whose read tasks are runs of blocks. Every task reads under the agreement, by itself.

space.agree("north/trips", purpose="...").to_ray(tasks=12).map_batches(...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from hanse.client import Dataset
from hanse.loaders.epoch_order import count
from hanse.loaders.rebatch import even
from hanse.plan import Plan, parted
from hanse.retry import SECONDS


class Source(Datasource):  # type: ignore[misc]  # ray is not there when types are checked
    """Blocks of one plan as read tasks, at most `tasks` or as many as Ray asks for."""

    def __init__(self, of: Dataset, plan: Plan, *, tasks: int = 0, patience: float = SECONDS) -> None:
        super().__init__()
        self._of, self._plan, self._tasks, self._patience = of, plan, tasks, patience

    def get_name(self) -> str:
        return "Hanse"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(block.nbytes for block in self._plan.blocks)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task a part; Ray may run it again after a failure, and gets the same rows. One for no block where there
        is none, since Ray knows the columns by its tasks."""
        return [self._task(blocks) for blocks in parted(len(self._plan.blocks), self._tasks or parallelism) or [()]]

    def _task(self, blocks: Sequence[int]) -> ReadTask:
        rows = sum(self._plan.blocks[number].rows for number in blocks)
        nbytes = sum(self._plan.blocks[number].nbytes for number in blocks)
        metadata = BlockMetadata(num_rows=rows if self._plan.exact else None, size_bytes=nbytes, input_files=None,
                                 exec_stats=None)  # fmt: skip
        return ReadTask(_reading(self._of, self._plan, blocks, self._patience), metadata, self._plan.schema)


def _reading(of: Dataset, plan: Plan, blocks: Sequence[int], patience: float) -> Callable[[], Iterable[pa.Table]]:
    def tables() -> Iterable[pa.Table]:
        """The same ones each time: of a task that died Ray keeps the pieces that it has, and takes those after them
        from the next."""
        if blocks:
            with of.read(plan, blocks, patience=patience) as stream:
                yield from even(stream)

    return tables


def dataset(
    of: Dataset, *, columns: Sequence[str] = (), where: str = "", tasks: int = 0, patience: float = SECONDS
) -> ray.data.Dataset:
    """The rows as a Ray dataset; conditions and columns are the owner's work and do not travel. `patience`: as of
    `Loader`, for each task and for the plan before them. `tasks`: 0 for as many as Ray asks for. BadInput for fewer."""
    tasks = count("tasks", tasks, least=0)
    source = Source(of, of.plan(columns=columns, where=where, patience=patience), tasks=tasks, patience=patience)
    return ray.data.read_datasource(source)
