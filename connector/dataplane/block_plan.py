"""Plans: the blocks that can be read of a dataset, and the row ranges behind a choice of blocks. Releases no rows.

A plan is made under the same ticket as a read and shows no more than the contract does. Where a policy hides rows,
counts are rounded, so that the number of hidden rows cannot be derived. The server stores no plan.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from connector.dataplane import read_request as ask
from connector.dataplane.gate_queue import GateQueue
from connector.dataplane.read_request import ReadRequest, Split, make_name
from connector.dataplane.tickets import Ticket
from connector.datasets import block_layout, rounded_counts
from connector.datasets.block_layout import Place, RowBlock
from connector.datasets.file_access import check_files_unchanged
from connector.datasets.sources import divisible_source, find_position_clash
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Range, Ranges, Recheck, Relation
from connector.errors import Denied, Invalid, QueryInvalid, Unavailable, VersionChanged, check_harmless
from connector.infra.concurrency.recent_keys import put_recent
from connector.store.tables import DatasetVersion
from connector.usage.grants import Grants
from connector.usage.held_agreement import CompiledAgreement
from policies.contracts.contract import DataContract, to_json, visibility_key

if TYPE_CHECKING:  # the SQL parser behind it is loaded with the first read, not at start
    from policies.enforce.gate import PreparedQuery

BLOCKS_MAX = 1024  # in one read: longer lists are requested in parts
_CACHED_MAX = 64
_VALUE_BYTES = 16.0  # bytes of a value of unknown size
_NOTHING = (Range(-1, 0, 0, 0),)
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSelection:
    """A selection of rows: columns (empty: all that the contract shows), a condition, and the declared purpose."""

    columns: tuple[str, ...] = ()
    where: str = ""
    purpose: str = ""
    application: str = ""

    def __post_init__(self) -> None:
        check_harmless(purpose=self.purpose, application=self.application)


class BlockPlans:
    """Makes the plans of one provider.

    `relation_of` returns the engine's view of a version. `looking` takes a consumer's turn for a worker and yields the
    time until which it waits for one.
    """

    def __init__(
        self,
        grants: Grants,
        pool: Pool,
        *,
        name: str,
        secret: bytes,
        relation_of: Callable[[DatasetVersion], Relation],
        judging: GateQueue,
        looking: Callable[[str], AbstractAsyncContextManager[float]],
    ) -> None:
        self._grants = grants
        self._pool = pool
        self._name = name
        self._secret = secret
        self._relation_of = relation_of
        self._gate_queue = judging
        self._looking = looking
        self._cached: OrderedDict[tuple[str, str], tuple[RowBlock, ...]] = OrderedDict()
        self._schemas: OrderedDict[Any, str] = OrderedDict()  # by version, contract and selection

    async def plan(self, ticket: Ticket, wanted: RowSelection) -> dict[str, Any]:
        """Return snapshot, schema and blocks of a read. Raises the refusal that the read would get."""
        held, contract = await self._admit(ticket, wanted)
        blocks, schema = await self._load_blocks(held, contract, ticket, wanted)
        exact = contract.row_filter is None and not wanted.where.strip()
        width = _estimate_row_bytes(contract, self._relation_of(held.version).row_bytes)
        snapshot = block_layout.snapshot_of(held.version.digest)
        return {
            "snapshot": snapshot,
            "plan": _hash_plan(snapshot, held.dataset.id, wanted),
            "shown": block_layout.shown_mark(self._cursor_key(ticket, snapshot, visibility_key(contract))),
            "dataset": held.dataset.id,
            "name": held.dataset.name,
            "schema": schema,
            "exact": exact,
            "rows": _round_rows(sum(block.rows for block in blocks), contract),
            "expires": int(ticket.expires),
            "blocks": [_describe_block(block, contract, width) for block in blocks],
        }

    async def split(
        self,
        ticket: Ticket,
        wanted: RowSelection,
        *,
        snapshot: str,
        blocks: str,
        after: str,
        as_shown: str,
        cursors: bool,
    ) -> Split | None:
        """Return the ranges of some blocks (`all`, or their numbers) in the given order, after a cursor.

        Without `cursors` no batch says where it ends, and adjacent blocks are read as one. None for `all` blocks of a
        source without places for rows: that is read as one stream, which cannot be resumed.

        Raises: VersionChanged where the agreement no longer reads `snapshot`, or shows something else than the plan
        said (`as_shown`). Other rows are never returned instead.
        """
        try:
            held, contract = await self._admit(ticket, wanted)
        except Invalid as error:
            if error.code == "not_divisible" and blocks == ALL and not after:
                return None
            raise
        current = block_layout.snapshot_of(held.version.digest)
        check_snapshot(snapshot or current, held)
        found = self._cached.get(_version_key(held))
        if found is None:
            found, _ = await self._load_blocks(held, contract, ticket, wanted)
        view = visibility_key(contract)
        key = self._cursor_key(ticket, current, view)
        if as_shown and as_shown != block_layout.shown_mark(key):
            raise VersionChanged(
                f"the agreement shows other columns, masks or rows of {held.dataset.name!r} now than the plan is for, "
                "for example because one permission is used up and the next applies. Make a new plan and start again",
                code="shown_changed",
            )
        ranges = _list_whole_files(found) if blocks == ALL else _select_ranges(found, blocks)
        if after:
            ranges = _skip_past(ranges, block_layout.unseal(after, key))
        if not cursors:
            only = Ranges(_join_ranges(ranges) or _NOTHING, "")
            return Split(snapshot=current, only=only, shown=view if as_shown else "")
        hides = bool(wanted.where.strip()) or any(one.row_filter is not None for one in held.contracts)
        position = make_name() if hides else ""
        only = Ranges(ranges or _NOTHING, key.hex(), position)
        return Split(snapshot=current, only=only, resumed=bool(after), shown=view)

    def _cursor_key(self, ticket: Ticket, snapshot: str, view: str) -> bytes:
        return block_layout.cursor_key(self._secret, consumer=ticket.consumer, snapshot=snapshot, shown=view)

    async def _admit(self, ticket: Ticket, wanted: RowSelection) -> tuple[CompiledAgreement, DataContract]:
        """Return the agreement and the contract that permits streaming rows.

        Raises: Denied for a dataset that permits aggregates only.
        """
        held, contract = await self._grants.find_contract(
            ticket.agreement,
            consumer=ticket.consumer,
            action=ask.STREAM,
            purpose=ticket.purpose or wanted.purpose,
            application=wanted.application,
            transfer=(ticket.transfer, ticket.generation),
        )
        if contract.grid is not None:
            raise Denied(
                f"the agreement permits only aggregates of groups of {held.dataset.name!r}, so it has no rows to "
                "stream; send a query",
                code="aggregate_only",
                rule=contract.permission,
            )
        divisible_source(held.version.source["kind"])
        if column := find_position_clash(held.version.source["kind"], held.version.schema):
            raise Invalid(
                f"{held.dataset.name!r} has a column {column}, which is the engine's name for a row's place; "
                "read it as one stream",
                code="not_divisible",
            )
        return held, contract

    async def _load_blocks(
        self, held: CompiledAgreement, contract: DataContract, ticket: Ticket, wanted: RowSelection
    ) -> tuple[tuple[RowBlock, ...], str]:
        """Return the blocks of a version, and the schema of the selection.

        A worker is asked in the consumer's turn: workers read for others at the same time.
        """
        key = (*_version_key(held), to_json(contract), wanted, ticket.purpose)
        if (known := await self._find_cached(held, key)) is not None:
            return known
        async with self._looking(ticket.consumer) as until:
            await self._admit(ticket, wanted)  # the grant may have ended while waiting
            if (known := await self._find_cached(held, key)) is not None:  # another request has looked meanwhile
                return known
            blocks = self._cached.get(_version_key(held))
            seconds = until - time.monotonic()
            found = await self._ask_worker(held, contract, ticket, wanted, groups=blocks is None, seconds=seconds)
            put_recent(self._schemas, key, found["schema"], most=_CACHED_MAX)
            return self._store_blocks(held, found["groups"]) if blocks is None else blocks, found["schema"]

    async def _find_cached(
        self, held: CompiledAgreement, key: tuple[Any, ...]
    ) -> tuple[tuple[RowBlock, ...], str] | None:
        # Kept here: the cache may drop them during the check.
        blocks, schema = (self._cached.get(_version_key(held)), self._schemas.get(key))
        if blocks is None or schema is None or not await check_files_unchanged(held.version.source["files"]):
            return None
        return blocks, schema

    async def _ask_worker(
        self,
        held: CompiledAgreement,
        contract: DataContract,
        ticket: Ticket,
        wanted: RowSelection,
        *,
        groups: bool,
        seconds: float,
    ) -> dict[str, Any]:
        relation = make_name()
        work = partial(self._pass_gate, held, contract, ticket, wanted, relation)
        prepared = await self._gate_queue.run_in_turn(ticket.consumer, work)
        job = Job(
            kind="plan",
            relations={relation: self._relation_of(held.version)},
            sql=prepared.sql,
            params=prepared.params,
            recheck=Recheck(prepared.names, tuple(sorted(prepared.functions))),
            arguments={"groups": groups},
            consumer=ticket.consumer,
            shared=True,
        )
        found: dict[str, Any] = await self._pool.ask(job, seconds=seconds)
        return found

    def _pass_gate(
        self, held: CompiledAgreement, contract: DataContract, ticket: Ticket, wanted: RowSelection, relation: str
    ) -> PreparedQuery:
        """Return the gate's query for the rows."""
        from policies.enforce.gate import GatedDataset, prepare

        name = (self._name, held.dataset.name)
        return prepare(
            ask.build_rows_sql(name, columns=wanted.columns, where=wanted.where),
            [GatedDataset(name, relation, contract, held.dataset.id)],
            action=ask.STREAM,
            purpose=ticket.purpose or wanted.purpose or None,
            token=make_name,
            mask_key=bytes(32),  # a plan returns no masked value
        )

    def _store_blocks(
        self, held: CompiledAgreement, groups: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[RowBlock, ...]:
        found = block_layout.cut(groups)
        put_recent(self._cached, _version_key(held), found, most=_CACHED_MAX)
        return found


def _round_rows(count: int, contract: DataContract) -> int:
    return count if contract.row_filter is None else rounded_counts.coarse(count)


def _describe_block(block: RowBlock, contract: DataContract, width: float) -> dict[str, int]:
    """Return rows and bytes of a block, for planning. Exact sizes on disk would reveal withheld or masked columns."""
    nbytes = block.nbytes if width < 0 else round(block.rows * width)
    if contract.row_filter is None:
        return {"rows": block.rows, "bytes": nbytes}
    return {"rows": rounded_counts.coarse(block.rows), "bytes": rounded_counts.coarse_bytes(nbytes, block.rows)}


def _estimate_row_bytes(contract: DataContract, known: Mapping[str, float]) -> float:
    """Return the approximate bytes of a visible row, -1 where everything is visible.

    Where rows are hidden, the average of a column would describe hidden rows too, so a constant is used.
    """
    if contract.row_filter is not None:
        return _VALUE_BYTES * len(contract.columns)
    masked = {mask.column for mask in contract.masks}
    shown = [name for name in contract.columns if name not in masked]
    if len(shown) == len(contract.schema.columns):
        return -1.0
    return sum(known.get(name, _VALUE_BYTES) for name in shown) + _VALUE_BYTES * len(masked & set(contract.columns))


def _version_key(held: CompiledAgreement) -> tuple[str, str]:
    return held.dataset.id, held.version.digest


def check_snapshot(snapshot: str, held: CompiledAgreement) -> None:
    """Raises: VersionChanged unless a read of this agreement gives the rows of `snapshot`."""
    if snapshot != block_layout.snapshot_of(held.version.digest):
        raise VersionChanged(
            f"{held.dataset.name!r} has another version than the one that this plan is for, so its positions are not "
            "valid any more. Make a new plan and start again",
            code="snapshot_changed",
        )


def check_shown(split: Split, contract: DataContract) -> None:
    """Raises: Unavailable unless the read's contract shows what its cursors, or its parts, were made for.

    Of several permissions, another one may apply by then.
    """
    if split.shown not in ("", visibility_key(contract)):
        raise Unavailable(
            "another permission of the agreement applies now, and it shows other columns, masks or rows; send the "
            "request again"
        )


def check_versions(versions: Mapping[str, str], held: Sequence[CompiledAgreement]) -> None:
    """Check that each named dataset is read in the stated version. Always reads the current version, or nothing.

    Raises: VersionChanged for another version, QueryInvalid for a dataset without a ticket.
    """
    current = {one.dataset.id: one for one in held}
    for dataset, version in versions.items():
        if dataset not in current:
            raise QueryInvalid(
                f"expected versions of the datasets that the tickets are for, got one of {dataset[:200]!r}",
                code="dataset_unknown",
            )
        if version != current[dataset].version.digest:
            raise VersionChanged(
                f"{current[dataset].dataset.name!r} has another version than the one this query was planned for; "
                "plan it again",
                code="snapshot_changed",
            )


def build_read_request(
    ticket: Ticket, held: CompiledAgreement, wanted: RowSelection, *, owner: str, split: Split | None = None
) -> ReadRequest:
    """Return the request for these rows, with the position column where the split has one."""
    position = split.only.position if split else ""
    return ReadRequest(
        tickets=(ticket,),
        sql=ask.build_rows_sql(
            (owner, held.dataset.name), columns=wanted.columns, where=wanted.where, position=position
        ),
        action=ask.STREAM,
        plain_scan=True,
        unfiltered=not wanted.where.strip(),
        purpose=wanted.purpose,
        application=wanted.application,
        split=split,
    )


def _list_whole_files(blocks: Sequence[RowBlock]) -> tuple[Range, ...]:
    """Return every row in order, one range a file: fewer and longer scans than block by block."""
    files: dict[int, int] = {}
    for block in blocks:
        files[block.file] = block.first + block.rows
    return tuple(Range(-1, file, 0, stop) for file, stop in files.items())


def _select_ranges(blocks: Sequence[RowBlock], text: str) -> tuple[Range, ...]:
    numbers = text.split(",")
    if len(numbers) > BLOCKS_MAX or not all(one.isascii() and one.isdigit() and len(one) < 10 for one in numbers):
        raise Invalid(f"expected blocks as {ALL} or at most {BLOCKS_MAX} numbers such as 3,0,7, got {text[:40]!r}")
    chosen = [int(one) for one in numbers]
    if len(set(chosen)) < len(chosen) or max(chosen) >= len(blocks):
        raise Invalid(f"expected each block once, from 0 to {len(blocks) - 1}, got {text[:40]!r}")
    return tuple(
        Range(number, one.file, one.first, one.first + one.rows) for number, one in ((n, blocks[n]) for n in chosen)
    )


def _join_ranges(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Return the same rows in the same order, in as few ranges as possible."""
    found: list[Range] = []
    for one in ranges:
        if found and (found[-1].file, found[-1].stop) == (one.file, one.first):
            found[-1] = Range(-1, one.file, found[-1].first, one.stop)
        else:
            found.append(Range(-1, one.file, one.first, one.stop))
    return tuple(found)


def _skip_past(ranges: Sequence[Range], place: Place) -> tuple[Range, ...]:
    for number, one in enumerate(ranges):
        if one.file == place.file and one.first <= place.row < one.stop:
            rest = Range(one.block, one.file, place.row + 1, one.stop)
            return (rest, *ranges[number + 1 :])
    raise Invalid(
        "expected a cursor of a block in the list, got another one; send the list that the cursor came from",
        code="cursor_invalid",
    )


def _hash_plan(snapshot: str, dataset: str, wanted: RowSelection) -> str:
    parts = [snapshot, dataset, list(wanted.columns), wanted.where]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
