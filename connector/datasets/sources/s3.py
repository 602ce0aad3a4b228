"""Parquet objects in an S3-compatible store: one object, or all below a prefix, whose folders may be partition columns.

Nothing is copied at registration. A worker borrows the blocks that it reads (see `object_lender`). Each request to the
store requires that the object is still the registered one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option, hive
from connector.datasets.sources.source_files import FileRef
from connector.errors import Invalid, SourceUnreadable

SUFFIXES = (".parquet", ".pq")
OPTIONS: tuple[Option, ...] = (
    Option("store", str, "", "The store's name in the file of HANSE_CONNECTIONS; empty: the one with the bucket."),
    *hive.OPTIONS,
)
CONVERTED = False


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Refuse to look for local files: an object is found over the network."""
    raise SourceUnreadable("an object is found over the network; no directory holds it")


async def bring(path: str, *, options: Mapping[str, Any], from_: Any) -> tuple[dict[str, Any], tuple[FileRef, ...]]:
    """Return the options with the name of the store, and the objects, pinned by ETag and size."""
    if {"", ".", ".."} & set(path.removesuffix("/").split("/")[3:]):  # the library asks for another, or for none
        raise Invalid(f"expected an object's key or prefix without `.`, `..` and empty parts, came {path[:200]!r}")
    name, refs = await from_.objects.find(path, store=str(options["store"]), suffixes=SUFFIXES)
    hive.check_partitions(refs, path)
    return {**options, "store": name}, refs


attach = hive.attach
attach_rows = hive.attach_rows
groups = hive.groups
NUMBER = hive.NUMBER


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Refuse the conversion: Parquet is read in place."""
    raise SourceUnreadable("a Parquet object is read in place and is never converted")
