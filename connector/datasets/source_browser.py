"""Lists folders under the roots that an operator allows, so that an owner can choose what to register.

Reads names and sizes only, never a file. Registration checks the chosen path again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from connector.datasets.sources import kinds_of
from connector.datasets.sources.path_errors import path_refusals
from connector.datasets.sources.source_files import resolve
from connector.errors import PathRefused

LISTED_MAX = 1_000
_SCANNED_MAX = 20_000  # names of a folder that are read before they are sorted
_WORD = re.compile(r"[a-z0-9]+")
_NAME_MAX = 63


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A folder or file. `kind` is guessed by its ending, `suggested` is a name for a dataset of it; `size` in bytes."""

    name: str
    path: str
    folder: bool
    size: int
    kind: str

    @property
    def suggested(self) -> str:
        words = "_".join(_WORD.findall(self.name.partition(".")[0].lower()))[:_NAME_MAX]
        return words if words[:1].isalpha() else f"data_{words}".rstrip("_")[:_NAME_MAX]


@dataclass(frozen=True, slots=True)
class SourceFolder:
    """The entries of a folder, folders first. `above` is the folder that holds it, empty at a root; `more`: not all."""

    path: str
    above: str
    entries: tuple[SourceEntry, ...]
    more: bool


def list_roots(roots: Sequence[Path]) -> SourceFolder:
    """Return the roots as the entries of a folder without a path."""
    return SourceFolder("", "", tuple(SourceEntry(str(one), str(one), True, 0, "hive") for one in roots), False)


def list_folder(path: str, *, roots: Sequence[Path], private: Sequence[Path]) -> SourceFolder:
    """Return what lies in a folder under one of `roots`, without hidden names and the connector's own (`private`).

    Raises: PathRefused for a folder outside the roots, or one of the connector's own.
    """
    real = resolve(path, roots=roots)
    own = [Path(os.path.realpath(one)) for one in private]
    if any(real.is_relative_to(one) for one in own):
        raise PathRefused("expected a folder of data, came one of the connector's own; choose another")
    with path_refusals(path):
        scanned = list(islice(_scan(real, roots, own), _SCANNED_MAX + 1))
    ordered = sorted(scanned, key=lambda one: (not one.folder, one.name.casefold()))
    tops = {os.path.realpath(root) for root in roots}
    above = "" if str(real) in tops else str(real.parent)
    return SourceFolder(str(real), above, tuple(ordered[:LISTED_MAX]), len(scanned) > LISTED_MAX)


def _scan(folder: Path, roots: Sequence[Path], own: Sequence[Path]) -> Iterator[SourceEntry]:
    tops = [os.path.realpath(root) for root in roots]
    with os.scandir(folder) as found:
        for one in found:
            if one.name.startswith(".") or not one.name.isprintable():
                continue
            real = Path(os.path.realpath(one.path))
            inside = any(real.is_relative_to(top) for top in tops)
            if not inside or any(real.is_relative_to(place) for place in own):
                continue
            is_folder = real.is_dir()
            kind = "hive" if is_folder else next(iter(kinds_of([one.name])), "")
            if is_folder or (real.is_file() and kind):
                yield SourceEntry(
                    one.name, str(folder / one.name), is_folder, 0 if is_folder else real.stat().st_size, kind
                )
