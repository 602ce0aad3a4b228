"""Arrow IPC files (Feather version 2). The stream format has no index and is refused with advice."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option, RowRange
from connector.datasets.sources.source_files import FileRef, file_ref, files_under, resolve
from connector.errors import SourceUnreadable

SUFFIXES = (".arrow", ".feather", ".ipc")
OPTIONS: tuple[Option, ...] = ()
CONVERTED = False
_MAGIC = b"ARROW1"


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Return the file, or each Arrow file below the directory."""
    if resolve(path, roots=roots).is_dir():
        files = files_under(path, roots=roots, suffixes=SUFFIXES)
    else:
        files = (file_ref(path, roots=roots),)
    for file in files:
        _check_magic(file)
    return files


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Register a pyarrow dataset under the name. The engine passes projections and simple filters to it."""
    from connector.datasets.sources.arrow_dataset import ArrowFiles

    con.register(name, ArrowFiles.at(paths))


def groups(files: Sequence[Any]) -> list[list[tuple[int, int]]]:
    """Return one group per record batch. Rows come from its narrowest column, bytes are its share of the file."""
    import pyarrow as pa

    found = []
    for path in files:
        with pa.OSFile(path) as opened:
            narrowest = pa.ipc.IpcReadOptions(included_fields=[_narrowest(pa.ipc.open_file(opened).schema.types)])
            reader = pa.ipc.open_file(opened, options=narrowest)
            counts = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
            width = opened.size() / max(1, sum(counts))
            found.append([(count, int(count * width)) for count in counts])
    return found


def _narrowest(types: Sequence[Any]) -> int:
    """Return the index of the type with the fewest bits per value. Types of variable width count as the widest."""
    import pyarrow as pa

    bits = [kind.bit_width if pa.types.is_primitive(kind) else sys.maxsize for kind in types]
    return bits.index(min(bits)) if bits else 0


def attach_rows(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: RowRange) -> None:
    """Register a pyarrow dataset of only these rows under the name.

    The file is read and not mapped: a map of the whole file would count against the address space of the worker.
    Columns have the order of the first file, because the engine names a column without a name by its position.
    """
    from connector.datasets.sources.arrow_dataset import ArrowRowRange

    counts = [count for count, _ in groups([paths[rows.file]])[0]]
    con.register(name, ArrowRowRange.at(paths, rows, counts))


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Refuse the conversion: Arrow files are read in place."""
    raise SourceUnreadable("an Arrow IPC source is read in place and is never converted")


def _check_magic(file: FileRef) -> None:
    with Path(file.path).open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise SourceUnreadable(
                f"expected an Arrow IPC file (it begins with ARROW1), came something else: {file.path!r}; "
                "write a stream again with pyarrow.feather.write_feather, or as Parquet"
            )


def size_of(*columns: Any) -> int:
    """Return the bytes of the values of Arrow arrays; for a union, the bytes of its buffers.

    Arrow 26 crashes when it computes the value bytes of a union that was read and is empty, also within lists.
    """
    return sum(one.get_total_buffer_size() if "union<" in str(one.type) else one.nbytes for one in columns)
