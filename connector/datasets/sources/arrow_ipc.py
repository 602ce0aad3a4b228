"""Arrow IPC files (Feather version 2). The stream form has no index: it is refused with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option
from connector.datasets.sources.files import FileRef, file_ref, files_under, resolve
from connector.errors import SourceUnreadable

TITLE = "Arrow IPC (Feather) file"
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
    import pyarrow.dataset as ds

    con.register(name, ds.dataset(list(paths), format="ipc"))


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
