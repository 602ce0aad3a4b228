"""Tables with blobs, and Parquet files in which their values lie as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RANDOM = Random(3)
POOL = RANDOM.randbytes(2**20)


def blobs(count: int, size: int = 50_000, *, empty: int = 0) -> list[bytes]:
    """Values of about so many bytes, all different; one in `empty` has none."""
    starts = (RANDOM.randrange(2**18) for _ in range(count))
    found = [POOL[start : start + size + start % 977] for start in starts]
    return [b"" if empty and number % empty == 0 else one for number, one in enumerate(found)]


def images(rows: int, *, nullable: bool = True, values: Sequence[bytes | None] | None = None) -> pa.Table:
    schema = pa.schema(
        [("id", pa.int64()), pa.field("image", pa.binary(), nullable), ("note", pa.int32()), ("name", pa.string())]
    )
    columns = {
        "id": range(rows),
        "image": values or blobs(rows),
        "note": [None if number % 3 else number for number in range(rows)],
        "name": [f"image-{number}" for number in range(rows)],
    }
    return pa.table({name: list(column) for name, column in columns.items()}, schema=schema)


def write(path: Path, table: pa.Table, **how: Any) -> str:
    pq.write_table(table, path, **{"compression": "none", "use_dictionary": ["id"], "row_group_size": 60} | how)
    return str(path)
