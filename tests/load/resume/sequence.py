"""What must come, written down a second time: the data, the order of an epoch, and who has which part of it.

Nothing here is the product's. The formula is that of docs/training.md:
1. the blocks stand in the order of the first draws of a generator seeded with SHA-256(seed/epoch);
2. in a block, each run of `window` of its rows that are read stands in the order of draws seeded with
   SHA-256(seed/epoch/block/run);
3. of the places that are left, reader `part` of `parts` has each `parts`-th. A place is left while no row of a later
   place of the same reader was given; what was given of its own is not given again.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Ids = np.ndarray[Any, np.dtype[np.int64]]
CONDITION = "id % 3 <> 0"
_PIECES = (1, 300, 37, 1500, 2, 211, 90, 1000, 5, 333, 64, 1, 128, 700, 17, 450, 256)
_GROUPS = (70_000, 70_000, 10_000)  # each large enough to be a block by itself, but for the last of its file


@dataclass(frozen=True, slots=True)
class Data:
    """A dataset: where it is, and how many rows each of its blocks has. Ids count the rows as they are stored."""

    name: str
    path: Path
    rows: tuple[int, ...]


def check_of(ids: Ids) -> Ids:
    """What stands beside an id, so that a mixed-up row shows."""
    return ids * 2_654_435_761 % 2**32


def write(folder: Path) -> tuple[Data, ...]:
    """Many small files, of which some make several batches; and one file of large row groups."""
    folder.mkdir(parents=True)
    pieces, long = folder / "pieces", folder / "long.parquet"
    pieces.mkdir()
    first, noise = 0, random.Random(5).randbytes(2**20)
    for number, rows in enumerate(_PIECES):
        pq.write_table(_table(first, rows, 8_192, noise), pieces / f"part-{number:02d}.parquet", compression="none")
        first += rows
    with pq.ParquetWriter(long, _table(0, 1, 1, noise).schema, compression="none") as out:
        for number, rows in enumerate(_GROUPS):
            out.write_table(_table(sum(_GROUPS[:number]), rows, 64, noise), row_group_size=rows)
    return Data("pieces", pieces, _PIECES), Data("long", long, _GROUPS)


def _table(first: int, rows: int, width: int, noise: bytes) -> pa.Table:
    ids = np.arange(first, first + rows, dtype=np.int64)
    pad = [noise[at : at + width] for at in (ids * 7919 % (len(noise) - width)).tolist()]
    return pa.table({"id": ids, "check": check_of(ids), "pad": pa.array(pad, pa.binary())})


def _shuffled(count: int, key: str) -> list[int]:
    chance = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    return [place for _, place in sorted((chance.random(), place) for place in range(count))]


def sequence(data: Data, *, seed: int | None, epoch: int, window: int, filtered: bool) -> list[Ids]:
    """The ids at each place of an epoch."""
    blocks = np.split(np.arange(sum(data.rows), dtype=np.int64), np.cumsum(data.rows)[:-1])
    shown = [ids[ids % 3 != 0] for ids in blocks] if filtered else blocks
    return ordered(shown, seed=seed, epoch=epoch, window=window)


def ordered(blocks: Sequence[Ids], *, seed: int | None, epoch: int, window: int) -> list[Ids]:
    """What stands at each place of an epoch, of blocks as they are stored."""
    order = range(len(blocks)) if seed is None else _shuffled(len(blocks), f"{seed}/{epoch}")
    found = []
    for block in order:
        ids = blocks[block]
        if window and seed is not None:
            runs = [ids[at : at + window] for at in range(0, len(ids), window)]
            runs = [ids[_shuffled(len(ids), f"{seed}/{epoch}/{block}/{run}")] for run, ids in enumerate(runs)]
            ids = np.concatenate(runs) if runs else ids
        found.append(ids)
    return found


@dataclass(slots=True)
class Share:
    """One reader's part: the ids at its places, in order, and what it has given of them."""

    places: list[tuple[int, Ids]]
    given: int = 0

    @property
    def rows(self) -> int:
        return sum(len(ids) for _, ids in self.places)

    @property
    def coming(self) -> Ids:
        """The ids that are not given, in order."""
        return np.concatenate([ids for _, ids in self.places] or [np.empty(0, np.int64)])[self.given :]

    def wrong(self, came: Sequence[int] | Ids, *, whole: bool) -> str:
        """What is wrong with the ids that came after those given, `whole`: which should be all; empty for nothing."""
        wanted = self.coming
        got = np.asarray(came, dtype=np.int64)
        if whole and len(got) != len(wanted):
            return f"expected {len(wanted)} rows, got {len(got)}"
        if len(got) > len(wanted):
            return f"expected at most {len(wanted)} rows, got {len(got)}"
        if differ := np.flatnonzero(got != wanted[: len(got)]).tolist():
            at = differ[0]
            return f"expected id {wanted[at]} at row {self.given + at} of this share, got {got[at]}"
        return ""

    def left(self) -> dict[int, Ids]:
        """By place, what is not given; also the place of the last row, which its reader cannot know to be done."""
        left, given = {}, self.given
        for number, (place, ids) in enumerate(self.places):
            later = sum(len(other) for _, other in self.places[number + 1 :])
            if self.given <= self.rows - later or not later:  # nothing of a later place was given
                left[place] = ids[min(given, len(ids)) :]
            given = max(0, given - len(ids))
        return left


@dataclass(slots=True)
class Epoch:
    """An epoch that is read by changing numbers of readers."""

    places: list[Ids]
    left: Mapping[int, Ids] = field(init=False)

    def __post_init__(self) -> None:
        self.left = dict(enumerate(self.places))

    def dealt(self, parts: int) -> list[Share]:
        """What is left, dealt out."""
        places = sorted(self.left)
        return [Share([(place, self.left[place]) for place in places[part::parts]]) for part in range(parts)]

    def collect(self, shares: Sequence[Share]) -> None:
        """Take back what the readers have not given."""
        self.left = {place: ids for share in shares for place, ids in share.left().items()}
