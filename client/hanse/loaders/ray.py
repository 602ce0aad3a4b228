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
from hanse.loaders.epoch_order import check_count
from hanse.loaders.rebatch import split_evenly
from hanse.plan import Plan, split_blocks
from hanse.retry import SECONDS


class RayDatasource(Datasource):  # type: ignore[misc]  # ray is not there when types are checked
    """The blocks of one plan as read tasks: at most `tasks`, or as many as Ray asks for."""

    def __init__(self, of: Dataset, plan: Plan, *, tasks: int = 0, patience: float = SECONDS) -> None:
        super().__init__()
        self._of, self._plan, self._tasks, self._patience = of, plan, tasks, patience

    def get_name(self) -> str:
        return "Hanse"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(block.nbytes for block in self._plan.blocks)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """Return one task for each part. Ray may repeat a failed task, and gets the same rows. A plan without blocks
        has one empty task, because Ray takes the columns from tasks."""
        return [
            self._task(blocks) for blocks in split_blocks(len(self._plan.blocks), self._tasks or parallelism) or [()]
        ]

    def _task(self, blocks: Sequence[int]) -> ReadTask:
        rows = sum(self._plan.blocks[number].rows for number in blocks)
        nbytes = sum(self._plan.blocks[number].nbytes for number in blocks)
        metadata = BlockMetadata(num_rows=rows if self._plan.exact else None, size_bytes=nbytes, input_files=None,
                                 exec_stats=None)  # fmt: skip
        return ReadTask(_make_reader(self._of, self._plan, blocks, self._patience), metadata, self._plan.schema)


def _make_reader(of: Dataset, plan: Plan, blocks: Sequence[int], patience: float) -> Callable[[], Iterable[pa.Table]]:
    def tables() -> Iterable[pa.Table]:
        """Yield the same tables each time: Ray keeps the pieces of a task that died, and takes the following ones from
        its repetition."""
        if blocks:
            with of.read(plan, blocks, patience=patience) as stream:
                yield from split_evenly(stream)

    return tables


def dataset(
    of: Dataset, *, columns: Sequence[str] = (), where: str = "", tasks: int = 0, patience: float = SECONDS
) -> ray.data.Dataset:
    """Return the rows as a Ray dataset; the owner applies conditions and columns.

    `tasks`: 0 for as many as Ray asks for. `patience`: as in `Loader`, for each task and for the plan before them.

    Raises:
        BadInput: `tasks` is negative, or not a whole number.
    """
    tasks = check_count("tasks", tasks, least=0)
    source = RayDatasource(of, of.plan(columns=columns, where=where, patience=patience), tasks=tasks, patience=patience)
    return ray.data.read_datasource(source)
