"""Spark 4: a Python data source whose partitions are runs of blocks. Every executor reads under the agreement.

    frame = space.agree("north/trips", purpose="...").to_spark(spark, partitions=12)
    frame.where("distance > 500").groupBy("carrier").count()

Give conditions and columns here rather than to Spark if possible: then the owner applies them and sends less.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import PySparkTypeError
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema, from_arrow_type

from hanse.client import Dataset
from hanse.loaders.epoch_order import check_count
from hanse.options import unfit_error
from hanse.plan import Plan, split_blocks
from hanse.retry import SECONDS


@dataclass
class BlockPartition(InputPartition):  # type: ignore[misc]  # pyspark is not there when types are checked
    """The blocks that one partition reads."""

    numbers: tuple[int, ...]


class Reader(DataSourceReader):  # type: ignore[misc]
    """The partitions of a plan and their batches."""

    def __init__(self, of: Dataset, plan: Plan, patience: float, partitions: int) -> None:
        self._of, self._plan, self._patience, self._partitions = of, plan, patience, partitions

    def partitions(self) -> Sequence[InputPartition]:
        """Return the partitions; a plan without blocks has an empty one, because Spark would add one of its own."""
        return [BlockPartition(blocks) for blocks in split_blocks(len(self._plan.blocks), self._partitions) or [()]]

    def read(self, partition: Any) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a partition. Spark repeats a failed task, and gets the same rows."""
        if not partition.numbers:
            return
        with self._of.read(self._plan, partition.numbers, patience=self._patience) as stream:
            for batch in stream:
                yield to_spark_types(batch)


class SparkDataSource(DataSource):  # type: ignore[misc]
    """The data source. Its options hold the dataset, its plan and the patience."""

    @classmethod
    def name(cls) -> str:
        return "hanse"

    def schema(self) -> Any:
        return from_arrow_schema(_spark_schema(self._load_options()[1].schema))

    def reader(self, schema: Any) -> Reader:
        return Reader(*self._load_options(), int(self.options.get("partitions", "8")))

    def _load_options(self) -> tuple[Dataset, Plan, float]:
        # Safe to unpickle: `frame` wrote it in this session.
        return pickle.loads(base64.b64decode(self.options["given"]))  # type: ignore[no-any-return]  # noqa: S301


def to_spark_types(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert a batch to Spark's types, which include the unit: timestamps have microseconds, rounded down, also before
    1970."""
    schema = _spark_schema(batch.schema)
    if schema == batch.schema:
        return batch
    columns = [_cast_column(field.type, column) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast_column(kind: pa.DataType, column: pa.Array) -> pa.Array:
    """Convert a column to the type of `_spark_type`."""
    of = column.type
    if of == kind:
        return column
    if pa.types.is_list(of):
        return _replace_child(kind, column, _cast_column(kind.value_type, column.values))
    if pa.types.is_map(of):
        keys, items = _cast_column(kind.key_type, column.keys), _cast_column(kind.item_type, column.items)
        pairs = pa.StructArray.from_arrays([keys, items], fields=[kind.key_field, kind.item_field])
        return _replace_child(kind, column, pairs)
    if pa.types.is_struct(of):
        fields = [_cast_column(field.type, column.field(number)) for number, field in enumerate(kind)]
        return pa.StructArray.from_arrays(fields, fields=[*kind], mask=column.is_null())
    if pa.types.is_timestamp(of) and of.unit == "ns":
        return _floor_to_microseconds(column).view(kind)
    return column.cast(kind)


def _replace_child(kind: pa.DataType, column: pa.Array, child: pa.Array) -> pa.Array:
    return pa.Array.from_buffers(kind, len(column), column.buffers()[:2], offset=column.offset, children=[child])


def _floor_to_microseconds(column: pa.Array) -> pa.Array:
    """Round down: Arrow would round towards 1970, and move the last nanosecond of 1969 into that year."""
    numbers = column.view(pa.int64())
    cut = pc.divide(numbers, 1000)
    return pc.subtract(cut, pc.less(numbers, pc.multiply(cut, 1000)).cast(pa.int64()))


def _spark_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_spark_type(field.type)) for field in schema])


def _spark_type(of: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(of):
        return pa.timestamp("us", tz="UTC" if of.tz else None)
    if pa.types.is_time(of):
        return pa.time64("ns")
    if pa.types.is_list(of):
        return pa.list_(of.value_field.with_type(_spark_type(of.value_type)))
    if pa.types.is_map(of):
        return pa.map_(_spark_type(of.key_type), of.item_field.with_type(_spark_type(of.item_type)))
    if pa.types.is_struct(of):
        return pa.struct([field.with_type(_spark_type(field.type)) for field in of])
    return of


def _check(schema: pa.Schema) -> None:
    """Raises: BadInput for a column of a type that Spark does not have."""
    for field in schema:
        try:
            from_arrow_type(_spark_type(field.type))
        except PySparkTypeError as error:
            raise unfit_error("Spark", schema, field) from error


def frame(
    session: Any,
    of: Dataset,
    *,
    columns: Sequence[str] = (),
    where: str = "",
    partitions: int = 8,
    patience: float = SECONDS,
) -> Any:
    """Return the rows as a Spark data frame of at most `partitions` partitions.

    `patience`: as in `Loader`, for each partition and for the plan before them.

    Raises:
        BadInput: there are fewer partitions than one, or Spark has no type for a column.
    """
    partitions = check_count("partitions", partitions)
    session.dataSource.register(SparkDataSource)
    plan = of.plan(columns=columns, where=where, patience=patience)
    _check(plan.schema)
    given = base64.b64encode(pickle.dumps((of, plan, patience))).decode()
    return session.read.format("hanse").option("given", given).option("partitions", str(partitions)).load()
