"""Arrow IPC files (Feather version 2). The stream form has no index: it is refused with what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option, Rows
from connector.datasets.sources.source_files import FileRef, file_ref, files_under, resolve
from connector.errors import SourceUnreadable

SUFFIXES = (".arrow", ".feather", ".ipc")
OPTIONS: tuple[Option, ...] = ()
CONVERTED = False
_MAGIC = b"ARROW1"


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """The file, or every Arrow file below the directory."""
    if resolve(path, roots=roots).is_dir():
        files = files_under(path, roots=roots, suffixes=SUFFIXES)
    else:
        files = (file_ref(path, roots=roots),)
    for file in files:
        _check_magic(file)
    return files


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """A pyarrow dataset under the name: the engine hands projections and simple filters down to it."""
    from connector.datasets.sources.arrow_dataset import Files

    con.register(name, Files.at(paths))


def groups(files: Sequence[Any]) -> list[list[tuple[int, int]]]:
    """One group a record batch; its rows by its narrowest column, its bytes as a share of the file's."""
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
    """The number of the type whose values take the fewest bits; of those that vary, as blobs do, nobody knows."""
    import pyarrow as pa

    bits = [kind.bit_width if pa.types.is_primitive(kind) else sys.maxsize for kind in types]
    return bits.index(min(bits)) if bits else 0


def attach_rows(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: Rows) -> None:
    """A pyarrow dataset of these rows only, under the name.

    Read, not mapped: a map of the whole file counts against the worker's address space, whatever is read of it. Columns
    stand as in the first file: the engine calls one without a name by its place.
    """
    from connector.datasets.sources.arrow_dataset import Within

    counts = [count for count, _ in groups([paths[rows.file]])[0]]
    con.register(name, Within.at(paths, rows, counts))


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Arrow files stay as they are."""
    raise SourceUnreadable("an Arrow IPC source is read in place and is never converted")


def _check_magic(file: FileRef) -> None:
    with Path(file.path).open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise SourceUnreadable(
                f"expected an Arrow IPC file (it begins with ARROW1), came something else: {file.path!r}; "
                "write a stream again with pyarrow.feather.write_feather, or as Parquet"
            )


def size_of(*columns: Any) -> int:
    """Bytes of Arrow arrays' values; of a union those of its memory: Arrow 26 looks for the values of one that was read
    and is empty, also in lists that all are, where there is nothing, and the process ends."""
    return sum(one.get_total_buffer_size() if "union<" in str(one.type) else one.nbytes for one in columns)
