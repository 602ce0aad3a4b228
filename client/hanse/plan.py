"""A plan: the blocks of a dataset's rows. A value: it can be pickled, sent to workers, compared.

The owner does not store plans; each read of a block names the plan's snapshot.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hanse._arrow.message_limits import METADATA_MAX, CheckedBody
from hanse._arrow.value_limits import refuse_types
from hanse.errors import BadInput, Broken
from hanse.notebook.html_view import clip, facts_table, list_names

PER_READ = 256  # blocks in one request of a loader: many millions of rows
BLOCKS_MAX = 1024  # blocks in any request: the owner's limit
_COUNT_MAX = 2**63 - 1  # the range of Arrow's and progress bars' counters


@dataclass(frozen=True, slots=True)
class PlanBlock:
    """Rows and bytes of a block: exact if the plan is, else an estimate before conditions and filters."""

    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows (`columns`, `where`) of a `snapshot`, and their blocks.

    `shown`: the owner's opaque mark of what the agreement shows: if two plans have the same mark, they show the
    same rows and columns.
    """

    snapshot: str
    digest: str
    schema: pa.Schema
    blocks: tuple[PlanBlock, ...]
    rows: int
    exact: bool
    columns: tuple[str, ...] = ()
    where: str = ""
    shown: str = ""

    def __repr__(self) -> str:
        """Show the number of blocks, not all of them."""
        return f"<Plan of {self._size}, snapshot {clip(self.snapshot)}>"

    def _repr_html_(self) -> str:
        """Show size and columns as a small table."""
        facts = (
            ("bytes", f"about {sum(block.nbytes for block in self.blocks):,}"),
            ("columns", list_names([f"{field.name} {field.type}" for field in self.schema])),
            ("where", self.where),
            ("snapshot", self.snapshot),
        )
        return facts_table(f"Plan of {self._size}", facts)

    @property
    def _size(self) -> str:
        about = "" if self.exact else "about "
        return f"{about}{self.rows:,} rows in {len(self.blocks):,} blocks"

    @classmethod
    def read(cls, answer: Mapping[str, Any], *, columns: Sequence[str], where: str) -> Plan:
        """Read the plan in an owner's answer.

        Raises:
            Broken: the answer has another form, or contradicts itself.
        """
        try:
            plan = cls(
                snapshot=_check_text(answer["snapshot"]),
                digest=_check_text(answer["plan"]),
                schema=_read_schema(answer["schema"]),
                blocks=tuple(
                    PlanBlock(_check_row_count(block["rows"]), _check_row_count(block["bytes"]))
                    for block in answer["blocks"]
                ),
                rows=_check_row_count(answer["rows"]),
                exact=_check_bool(answer["exact"]),
                columns=tuple(columns),
                where=where,
                shown=_check_text(answer["shown"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, OSError, pa.ArrowException) as error:
            raise Broken(f"expected a plan with snapshot, schema and blocks, got another form: {error}") from error
        if plan.exact and plan.rows != (rows := sum(block.rows for block in plan.blocks)):
            raise Broken(f"expected an exact plan of as many rows as its blocks have, {rows}, got one of {plan.rows}")
        return plan

    def check_rows(self, block: int, rows: int) -> None:
        """Check a state's rows of a block: rows behind a place beyond its end would be skipped. Raises: BadInput."""
        has = self.blocks[block].rows
        most = has if self.exact else has + max(10, has // 10)  # owners round to two digits, and to tens
        if rows > most:
            raise BadInput(f"expected a state that state_dict() gave, got one of {rows} rows of a block that has {has}")


def _check_text(value: Any) -> str:
    """Return a text that can be encoded. Raises: ValueError for lone surrogates, which JSON may contain."""
    text = str(value)
    text.encode()
    return text


def _check_row_count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _COUNT_MAX:
        raise ValueError(f"a count of {str(value)[:40]}")
    return value


def _check_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"exact: {str(value)[:40]}")
    return value


class DueBlocks:
    """The blocks of a plan that are still to be received, in their order, each with all of its rows if the plan is
    exact. They are requested in portions of the owner's limit.

    `before`: rows of the first block that are not requested; None if unknown.
    """

    def __init__(self, plan: Plan, blocks: Sequence[int], *, before: int | None) -> None:
        self._plan, self._requested = plan, list(blocks)
        self._later = self._requested[BLOCKS_MAX:]  # for later requests
        del self._requested[BLOCKS_MAX:]
        self._received = before  # rows of the first block

    @property
    def next_request(self) -> list[int]:
        """The blocks of one request, from the current one on."""
        return self._requested

    def has_more(self) -> bool:
        """Finish a request; return whether another one is due."""
        self._requested, self._later = self._later[:BLOCKS_MAX], self._later[BLOCKS_MAX:]
        return bool(self._requested)

    def take(self, place: Mapping[str, Any] | None, rows: int) -> None:
        """Count received rows, and the place that they end at. Raises: Broken if they are not the next ones."""
        if place is None or place["block"] not in self._requested:  # else all following blocks would be skipped
            raise Broken("expected rows of the blocks that were asked for, in their order, got others")
        while self._requested[0] != place["block"]:
            self._finish_block()
        if self._received is not None:
            self._received += rows
            if self._plan.exact and self._received > self._plan.blocks[self._requested[0]].rows:
                raise self._wrong_rows()

    def end(self) -> None:
        """Finish the request's blocks. Raises: Broken if rows are missing."""
        while self._requested:
            self._finish_block()

    def _finish_block(self) -> None:
        if self._plan.exact and self._received not in (None, self._plan.blocks[self._requested[0]].rows):
            raise self._wrong_rows()
        self._requested.pop(0)
        self._received = 0

    def _wrong_rows(self) -> Broken:
        block = self._requested[0]
        return Broken(
            f"expected {self._plan.blocks[block].rows} rows of block {block}, got {self._received}: they differ "
            "from the plan; make a new plan and begin anew"
        )


def _read_schema(text: str) -> pa.Schema:
    data = base64.b64decode(text, validate=True)
    if len(data) > METADATA_MAX:
        raise ValueError(f"a schema of {len(data)} bytes")
    schema = pa.ipc.open_stream(CheckedBody(pa.BufferReader(data))).schema
    refuse_types(schema)
    return schema


def split_blocks(blocks: int, parts: int) -> list[tuple[int, ...]]:
    """Divide all blocks into at most `parts` runs of neighbours, as evenly as possible."""
    parts = max(1, min(parts, blocks))
    return [tuple(range(n * blocks // parts, (n + 1) * blocks // parts)) for n in range(parts)] if blocks else []
