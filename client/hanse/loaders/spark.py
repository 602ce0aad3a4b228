"""Spark 4: a Python data source whose partitions are runs of blocks. Every executor reads under the agreement.

    frame = space.agree("north/trips", purpose="...").to_spark(spark, partitions=12)
    frame.where("distance > 500").groupBy("carrier").count()

Say conditions and columns here rather than in Spark where you can: then the owner applies them and less travels.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema

from hanse.client import Dataset
from hanse.loaders.order import count
from hanse.patience import SECONDS
from hanse.plan import Plan, parted


@dataclass
class Blocks(InputPartition):  # type: ignore[misc]  # pyspark is not there when types are checked
    """Which blocks one partition reads."""

    numbers: tuple[int, ...]


class Reader(DataSourceReader):  # type: ignore[misc]
    """Partitions and their batches."""

    def __init__(self, of: Dataset, plan: Plan, patience: float, partitions: int) -> None:
        self._of, self._plan, self._patience, self._partitions = of, plan, patience, partitions

    def partitions(self) -> Sequence[InputPartition]:
        return [Blocks(blocks) for blocks in parted(len(self._plan.blocks), self._partitions)]

    def read(self, partition: Any) -> Iterator[pa.RecordBatch]:
        """A task that fails is run again by Spark, and reads the same rows."""
        with self._of.read(self._plan, partition.numbers, patience=self._patience) as stream:
            yield from stream


class Source(DataSource):  # type: ignore[misc]
    """What Spark makes of the options: they hold the dataset, its plan, and the patience with its owner."""

    @classmethod
    def name(cls) -> str:
        return "hanse"

    def schema(self) -> Any:
        return from_arrow_schema(self._given()[1].schema)

    def reader(self, schema: Any) -> Reader:
        return Reader(*self._given(), int(self.options.get("partitions", "8")))

    def _given(self) -> tuple[Dataset, Plan, float]:
        # Written by `frame` in this very session: nobody else's bytes come here.
        return pickle.loads(base64.b64decode(self.options["given"]))  # type: ignore[no-any-return]  # noqa: S301


def frame(
    session: Any,
    of: Dataset,
    *,
    columns: Sequence[str] = (),
    where: str = "",
    partitions: int = 8,
    patience: float = SECONDS,
) -> Any:
    """The rows as a Spark data frame of at most so many partitions. `patience`: as of `Loader`, for each of them and
    for the plan before them. BadInput for fewer partitions than one."""
    partitions = count("partitions", partitions)
    session.dataSource.register(Source)
    plan = of.plan(columns=columns, where=where, patience=patience)
    given = base64.b64encode(pickle.dumps((of, plan, patience))).decode()
    return session.read.format("hanse").option("given", given).option("partitions", str(partitions)).load()
