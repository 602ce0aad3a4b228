"""A plan: the blocks that a dataset's rows come in. A value: it can be pickled, sent to workers, compared.

The server remembers none; what holds it to its word is the snapshot, which every read of a block names.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hanse._arrow.message_limits import METADATA_MAX, CheckedBody
from hanse.errors import BadInput, Broken

PER_READ = 256  # blocks in one request of a loader: an answer of many millions of rows
BLOCKS_MAX = 1024  # in any request: so many an owner takes
_COUNT_MAX = 2**63 - 1  # as Arrow and those who show progress count


@dataclass(frozen=True, slots=True)
class Block:
    """Rows and bytes of a block: exact where the plan is, else about as many, before conditions and filters."""

    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows (`columns`, `where`) of which `snapshot`, and the blocks that they come in.

    `shown`: the owner's mark of what the agreement shows of them, which nobody else can read: where it is the same,
    the rows and columns are.
    """

    snapshot: str
    digest: str
    schema: pa.Schema
    blocks: tuple[Block, ...]
    rows: int
    exact: bool
    columns: tuple[str, ...] = ()
    where: str = ""
    shown: str = ""

    def __repr__(self) -> str:
        """What a notebook shows: of thousands of blocks how many there are."""
        about = "" if self.exact else "about "
        return f"<Plan of {about}{self.rows:,} rows in {len(self.blocks):,} blocks, snapshot {self.snapshot[:80]}>"

    @classmethod
    def read(cls, answer: Mapping[str, Any], *, columns: Sequence[str], where: str) -> Plan:
        """The plan in an owner's answer; Broken for another form, and for one that contradicts itself."""
        try:
            found = cls(
                snapshot=_text(answer["snapshot"]),
                digest=_text(answer["plan"]),
                schema=_schema(answer["schema"]),
                blocks=tuple(Block(_count(one["rows"]), _count(one["bytes"])) for one in answer["blocks"]),
                rows=_count(answer["rows"]),
                exact=_truth(answer["exact"]),
                columns=tuple(columns),
                where=where,
                shown=_text(answer["shown"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, OSError, pa.ArrowException) as error:
            raise Broken(f"expected a plan with snapshot, schema and blocks, got another form: {error}") from error
        if found.exact and found.rows != (rows := sum(block.rows for block in found.blocks)):
            raise Broken(f"expected an exact plan of as many rows as its blocks have, {rows}, got one of {found.rows}")
        return found

    def check_rows(self, block: int, rows: int) -> None:
        """BadInput for a state of more rows of a block than it has: what is behind such a place would be left out."""
        has = self.blocks[block].rows
        most = has if self.exact else has + max(10, has // 10)  # owners round to two digits, and to tens
        if rows > most:
            raise BadInput(f"expected a state that state_dict() gave, got one of {rows} rows of a block that has {has}")


def _text(value: Any) -> str:
    """A text that can be sent back. ValueError for halves of letters, which JSON may have; requests and digests not."""
    text = str(value)
    text.encode()
    return text


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _COUNT_MAX:
        raise ValueError(f"a count of {str(value)[:40]}")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"exact: {str(value)[:40]}")
    return value


class Due:
    """What is due of a plan: these blocks in their order, each with all of its rows where the plan is exact. As many
    are asked for at once as an owner takes.

    `before`: rows of the first block that are not asked for; None where that is not known.
    """

    def __init__(self, plan: Plan, blocks: Sequence[int], *, before: int | None) -> None:
        self._plan, self._left = plan, list(blocks)
        self._later = self._left[BLOCKS_MAX:]  # after those that one request asks for
        del self._left[BLOCKS_MAX:]
        self._came = before  # rows of the first of them

    @property
    def asked(self) -> list[int]:
        """The blocks of one request, from the one on that is being read."""
        return self._left

    def more(self) -> bool:
        """What was asked for is over. Whether there are others to be asked for now."""
        self._left, self._later = self._later[:BLOCKS_MAX], self._later[BLOCKS_MAX:]
        return bool(self._left)

    def take(self, place: Mapping[str, Any] | None, rows: int) -> None:
        """Rows came, and the place they end at. Broken where they are not the next ones."""
        if place is None or place["block"] not in self._left:  # it would be passed over, with all after it
            raise Broken("expected rows of the blocks that were asked for, in their order, got others")
        while self._left[0] != place["block"]:
            self._over()
        if self._came is not None:
            self._came += rows
            if self._plan.exact and self._came > self._plan.blocks[self._left[0]].rows:
                raise self._other()

    def end(self) -> None:
        """Nothing more comes of what was asked for. Broken where something is missing."""
        while self._left:
            self._over()

    def _over(self) -> None:
        if self._plan.exact and self._came not in (None, self._plan.blocks[self._left[0]].rows):
            raise self._other()
        self._left.pop(0)
        self._came = 0

    def _other(self) -> Broken:
        block = self._left[0]
        return Broken(
            f"expected {self._plan.blocks[block].rows} rows of block {block}, got {self._came}: they are not those of "
            "the plan; make a new one and begin anew"
        )


def _schema(text: str) -> pa.Schema:
    data = base64.b64decode(text, validate=True)
    if len(data) > METADATA_MAX:
        raise ValueError(f"a schema of {len(data)} bytes")
    return pa.ipc.open_stream(CheckedBody(pa.BufferReader(data))).schema


def parted(blocks: int, parts: int) -> list[tuple[int, ...]]:
    """All blocks in at most `parts` runs of neighbours, as even as can be."""
    parts = max(1, min(parts, blocks))
    return [tuple(range(n * blocks // parts, (n + 1) * blocks // parts)) for n in range(parts)] if blocks else []
