"""A plan: the blocks that a dataset's rows come in. A value: it can be pickled, sent to workers, compared.

The server remembers none; what holds it to its word is the snapshot, which every read of a block names.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hanse._messages import METADATA_MAX, Messages
from hanse.errors import Broken

PER_READ = 256  # blocks in one request of a loader: an answer of many millions of rows


@dataclass(frozen=True, slots=True)
class Block:
    """Rows and bytes of a block: exact where the plan is, else about as many, before conditions and filters."""

    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows (`columns`, `where`) of which `snapshot`, and the blocks that they come in."""

    snapshot: str
    digest: str
    schema: pa.Schema
    blocks: tuple[Block, ...]
    rows: int
    exact: bool
    columns: tuple[str, ...] = ()
    where: str = ""

    @classmethod
    def read(cls, answer: Mapping[str, Any], *, columns: Sequence[str], where: str) -> Plan:
        """The plan in an owner's answer; Broken for another form."""
        try:
            return cls(
                snapshot=str(answer["snapshot"]),
                digest=str(answer["plan"]),
                schema=_schema(answer["schema"]),
                blocks=tuple(Block(int(one["rows"]), int(one["bytes"])) for one in answer["blocks"]),
                rows=int(answer["rows"]),
                exact=bool(answer["exact"]),
                columns=tuple(columns),
                where=where,
            )
        except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
            raise Broken(f"expected a plan with snapshot, schema and blocks, came another form: {error}") from error


def _schema(text: str) -> pa.Schema:
    data = base64.b64decode(text, validate=True)
    if len(data) > METADATA_MAX:
        raise ValueError(f"a schema of {len(data)} bytes")
    return pa.ipc.open_stream(Messages(pa.BufferReader(data))).schema


def parted(blocks: int, parts: int) -> list[tuple[int, ...]]:
    """All blocks in at most `parts` runs of neighbours, as even as can be."""
    parts = max(1, min(parts, blocks))
    return [tuple(range(n * blocks // parts, (n + 1) * blocks // parts)) for n in range(parts)] if blocks else []
