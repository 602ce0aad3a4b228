"""The three tables of the stream benchmark, written once to a folder: TPC-H lineitem, wide floats, images as bytes.

Each as Parquet (what an owner has) and as an uncompressed Arrow file of batches of about 3 MB (batches in memory: the
machine's page cache holds it, in huge pages for every server and reader alike). `Table.filtered` is the question of the
filtered reads.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_BYTES = 3 * 2**20


@dataclass(frozen=True, slots=True)
class Filter:
    """A row filter as a policy says it (column, operator, value), and the columns that are asked for."""

    column: str
    operator: str
    value: str
    columns: tuple[str, ...]

    def sql(self, source: str) -> str:
        value = self.value if self.value.replace(".", "").isdigit() else f"'{self.value}'"
        sign = {"lt": "<", "gteq": ">="}[self.operator]
        return f"SELECT {', '.join(self.columns)} FROM {source} WHERE {self.column} {sign} {value}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its files, its rows and the bytes that its Arrow batches have."""

    name: str
    parquet: Path
    arrow: Path
    filtered: Filter
    masked: tuple[str, str, str]  # column, method, argument

    @property
    def one(self) -> Path:
        """The first batch by itself."""
        return self.arrow.with_suffix(".one.arrow")

    @property
    def nbytes(self) -> int:
        return self.arrow.stat().st_size


FILTERS = {
    "lineitem": Filter(
        "l_shipdate", "lt", "1994-01-01", ("l_orderkey", "l_quantity", "l_extendedprice", "l_discount", "l_shipmode")
    ),
    "floats": Filter("label", "gteq", "7", tuple(["id", "label"] + [f"f{number}" for number in range(8)])),
    "images": Filter("label", "gteq", "7", ("id", "label", "image")),
}
MASKED = {
    "lineitem": ("l_comment", "truncate", "4"),
    "floats": ("f0", "round", "1"),
    "images": ("name", "null", ""),
}


def tables(folder: Path, *, scale: float, only: Sequence[str] = tuple(FILTERS)) -> list[Table]:
    """The tables at a scale (1.0: a gigabyte of lineitem, about 0.55 of each other), made where they are missing."""
    place = folder / f"scale-{scale:g}"
    place.mkdir(parents=True, exist_ok=True)
    made = []
    for name, write in (("lineitem", _lineitem), ("floats", _floats), ("images", _images)):
        if name not in only:
            continue
        table = Table(name, place / f"{name}.parquet", place / f"{name}.arrow", FILTERS[name], MASKED[name])
        if not table.arrow.exists():
            write(table.parquet, scale)
            _to_arrow(table.parquet, table.arrow)
        with pa.ipc.open_file(table.arrow) as whole, pa.ipc.new_file(table.one, whole.schema) as out:
            out.write_batch(whole.get_batch(0))
        into_memory(table.arrow)
        into_memory(table.parquet)
        made.append(table)
    return made


def into_memory(path: Path) -> None:
    """Have the page cache hold a file in huge pages, however it came there: what it was written or read by decides on
    the size of its pages, and that on a fifth of the speed of whoever sends them from a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as held:
            held.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, len(held), mmap.PAGESIZE):
                held[at]


def _lineitem(path: Path, scale: float) -> None:
    tool = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
    command = [tool, "parquet", "-s", str(scale), "-T", "lineitem", "-o", str(path.parent)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    raw = path.with_suffix(".raw")
    path.rename(raw)
    with pq.ParquetFile(raw) as file:
        schema = pa.schema([field.with_type(_plain(field.type)) for field in file.schema_arrow])
        with pq.ParquetWriter(path, schema, compression="snappy") as out:
            for batch in file.iter_batches(122_880):
                out.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=122_880)
    raw.unlink()


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if kind == pa.string_view() else kind


def _floats(path: Path, scale: float) -> None:
    random, rows = np.random.default_rng(7), int(2_000_000 * scale)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            columns = {"id": np.arange(start, start + count), "label": random.integers(0, 10, count)}
            columns |= {f"f{number}": random.standard_normal(count, dtype=np.float32) for number in range(64)}
            yield pa.RecordBatch.from_pydict(columns)

    _write(path, batches(), "zstd", 100_000)


def _images(path: Path, scale: float) -> None:
    random, rows = np.random.default_rng(8), int(6_000 * scale)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, 200):
            count = min(200, rows - start)
            columns = {
                "id": pa.array(range(start, start + count)),
                "label": pa.array(random.integers(0, 10, count)),
                "name": pa.array([f"image-{number}.jpg" for number in range(start, start + count)]),
                "image": pa.array([random.bytes(int(size)) for size in random.integers(40_000, 160_000, count)]),
            }
            yield pa.RecordBatch.from_pydict(columns)

    _write(path, batches(), "none", 200)


def _write(path: Path, batches: Iterator[pa.RecordBatch], compression: str, rows: int) -> None:
    first = next(batches)
    with pq.ParquetWriter(path, first.schema, compression=compression, use_dictionary=["label"]) as out:
        out.write_batch(first, row_group_size=rows)
        for batch in batches:
            out.write_batch(batch, row_group_size=rows)


def _to_arrow(source: Path, target: Path) -> None:
    part = target.with_suffix(".part")
    with pq.ParquetFile(source) as file:
        width = (
            sum(batch.nbytes for batch in file.iter_batches(2_000, row_groups=[0]))
            / file.metadata.row_group(0).num_rows
        )
        rows = max(1, int(BATCH_BYTES / width))
        with pa.ipc.new_file(part, file.schema_arrow) as out:
            for batch in file.iter_batches(rows):
                out.write_batch(pa.concat_batches([batch]))
    part.rename(target)
