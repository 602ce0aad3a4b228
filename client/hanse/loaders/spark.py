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
from pyarrow.compute import CastOptions
from pyspark.errors import PySparkTypeError
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema, from_arrow_type

from hanse.client import Dataset
from hanse.loaders.order import count
from hanse.options import unfit
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
            for batch in stream:
                yield as_spark_has_it(batch)


class Source(DataSource):  # type: ignore[misc]
    """What Spark makes of the options: they hold the dataset, its plan, and the patience with its owner."""

    @classmethod
    def name(cls) -> str:
        return "hanse"

    def schema(self) -> Any:
        return from_arrow_schema(_units(self._given()[1].schema))

    def reader(self, schema: Any) -> Reader:
        return Reader(*self._given(), int(self.options.get("partitions", "8")))

    def _given(self) -> tuple[Dataset, Plan, float]:
        # Written by `frame` in this very session: nobody else's bytes come here.
        return pickle.loads(base64.b64decode(self.options["given"]))  # type: ignore[no-any-return]  # noqa: S301


def as_spark_has_it(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Spark compares types to the unit: moments have microseconds there, and what is below them is cut off."""
    schema = _units(batch.schema)
    if schema == batch.schema:
        return batch
    columns = [
        column.cast(options=CastOptions(one.type, allow_time_truncate=True))
        for column, one in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _units(schema: pa.Schema) -> pa.Schema:
    return pa.schema([one.with_type(_in_its_units(one.type)) for one in schema])


def _in_its_units(of: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(of):
        return pa.timestamp("us", tz="UTC" if of.tz else None)
    if pa.types.is_time(of):
        return pa.time64("ns")
    if pa.types.is_list(of):
        return pa.list_(of.value_field.with_type(_in_its_units(of.value_type)))
    if pa.types.is_map(of):
        return pa.map_(_in_its_units(of.key_type), of.item_field.with_type(_in_its_units(of.item_type)))
    if pa.types.is_struct(of):
        return pa.struct([one.with_type(_in_its_units(one.type)) for one in of])
    return of


def _check(schema: pa.Schema) -> None:
    """BadInput for a column of a type that Spark does not have."""
    for one in schema:
        try:
            from_arrow_type(_in_its_units(one.type))
        except PySparkTypeError as error:
            raise unfit("Spark", schema, one) from error


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
    for the plan before them. BadInput for fewer partitions than one, and for a column that Spark has no type for."""
    partitions = count("partitions", partitions)
    session.dataSource.register(Source)
    plan = of.plan(columns=columns, where=where, patience=patience)
    _check(plan.schema)
    given = base64.b64encode(pickle.dumps((of, plan, patience))).decode()
    return session.read.format("hanse").option("given", given).option("partitions", str(partitions)).load()
