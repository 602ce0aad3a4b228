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
import pyarrow.compute as pc
from pyspark.errors import PySparkTypeError
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema, from_arrow_type

from hanse.client import Dataset
from hanse.loaders.epoch_order import count
from hanse.options import unfit
from hanse.plan import Plan, parted
from hanse.retry import SECONDS


@dataclass
class Blocks(InputPartition):  # type: ignore[misc]  # pyspark is not there when types are checked
    """Which blocks one partition reads."""

    numbers: tuple[int, ...]


class Reader(DataSourceReader):  # type: ignore[misc]
    """Partitions and their batches."""

    def __init__(self, of: Dataset, plan: Plan, patience: float, partitions: int) -> None:
        self._of, self._plan, self._patience, self._partitions = of, plan, patience, partitions

    def partitions(self) -> Sequence[InputPartition]:
        """One of no block where there is none: of no partitions Spark makes one of its own."""
        return [Blocks(blocks) for blocks in parted(len(self._plan.blocks), self._partitions) or [()]]

    def read(self, partition: Any) -> Iterator[pa.RecordBatch]:
        """A task that fails is run again by Spark, and reads the same rows."""
        if not partition.numbers:
            return
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
    """Spark compares types to the unit: moments have microseconds there, and what is below them is cut off,
    as from a clock: before 1970, too."""
    schema = _units(batch.schema)
    if schema == batch.schema:
        return batch
    columns = [_as(one.type, column) for column, one in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as(kind: pa.DataType, column: pa.Array) -> pa.Array:
    """A column as `_in_its_units` has its type."""
    of = column.type
    if of == kind:
        return column
    if pa.types.is_list(of):
        return _with_child(kind, column, _as(kind.value_type, column.values))
    if pa.types.is_map(of):
        keys, items = _as(kind.key_type, column.keys), _as(kind.item_type, column.items)
        pairs = pa.StructArray.from_arrays([keys, items], fields=[kind.key_field, kind.item_field])
        return _with_child(kind, column, pairs)
    if pa.types.is_struct(of):
        fields = [_as(one.type, column.field(number)) for number, one in enumerate(kind)]
        return pa.StructArray.from_arrays(fields, fields=[*kind], mask=column.is_null())
    if pa.types.is_timestamp(of) and of.unit == "ns":
        return _whole_microseconds(column).view(kind)
    return column.cast(kind)


def _with_child(kind: pa.DataType, column: pa.Array, child: pa.Array) -> pa.Array:
    return pa.Array.from_buffers(kind, len(column), column.buffers()[:2], offset=column.offset, children=[child])


def _whole_microseconds(column: pa.Array) -> pa.Array:
    """Arrow would cut towards 1970, and have the last nanosecond of 1969 in that year."""
    numbers = column.view(pa.int64())
    cut = pc.divide(numbers, 1000)
    return pc.subtract(cut, pc.less(numbers, pc.multiply(cut, 1000)).cast(pa.int64()))


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
