"""Parquet files whose footers say what is not so, as a writer's fault or a hostile writer's file does."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NO_NULLS = {b"\x16\x02": b"\x16\x00"}  # in Thrift's compact form: a null in a column chunk, and none


def as_said(value: Any) -> bytes:
    """A value as statistics have it: whole numbers of 64 bits, floats, texts."""
    if isinstance(value, str):
        return value.encode()
    return struct.pack("<d" if isinstance(value, float) else "<q", value)


def write(path: Path, table: pa.Table, said: Mapping[bytes, bytes], *, row_group_size: int = 4) -> Path:
    """A file of the table, with other bytes of the same length in its footer."""
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "store_schema": False}
    pq.write_table(table, path, row_group_size=row_group_size, **plain)
    whole = path.read_bytes()
    (size,) = struct.unpack("<I", whole[-8:-4])
    footer = whole[-8 - size : -8]
    for was, now in said.items():
        assert was in footer
        assert len(was) == len(now)
        footer = footer.replace(was, now)
    path.write_bytes(whole[: -8 - size] + footer + whole[-8:])
    return path
