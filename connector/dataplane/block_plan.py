"""What can be read of a dataset block by block, and the ranges behind a choice of blocks. No byte leaves here.

A plan is made under the same ticket as a read and shows no more than the contract does: where a policy hides rows,
counts are rounded, so that nobody learns how many. It holds nothing: the server remembers no plan.
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
from connector.dataplane.gate_queue import Judging
from connector.dataplane.read_request import Asked, Split, new_name
from connector.dataplane.tickets import Ticket
from connector.datasets import block_layout, rounded_counts
from connector.datasets.block_layout import Place, RowBlock
from connector.datasets.file_access import check_files_unchanged
from connector.datasets.sources import divisible_source, find_position_clash
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Range, Ranges, Recheck, Relation
from connector.errors import BadInput, Busy, QueryInvalid, Refused, VersionChanged, check_harmless
from connector.infra.concurrency.recent_keys import put_recent
from connector.store.tables import DatasetVersion
from connector.usage.grants import Grants
from connector.usage.held_agreement import CompiledAgreement
from policies.contracts.contract import DataContract, to_json, visibility_key

if TYPE_CHECKING:  # the SQL parser behind it is loaded with the first read, not at start
    from policies.enforce.gate import PreparedQuery

BLOCKS_MAX = 1024  # in one read: a longer list is asked for in parts
_CACHED_MAX = 64
_VALUE_BYTES = 16.0  # of a value whose column says no more, or may not
_NOTHING = (Range(-1, 0, 0, 0),)
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows: columns (none: all that the contract shows), a condition, and what is declared."""

    columns: tuple[str, ...] = ()
    where: str = ""
    purpose: str = ""
    application: str = ""

    def __post_init__(self) -> None:
        check_harmless(purpose=self.purpose, application=self.application)


class Plans:
    """The plans of one provider. `relation_of` gives the engine's view of a version; `looking` is a consumer's turn to
    ask a worker, and until when it waits for one."""

    def __init__(
        self,
        grants: Grants,
        pool: Pool,
        *,
        name: str,
        secret: bytes,
        relation_of: Callable[[DatasetVersion], Relation],
        judging: Judging,
        looking: Callable[[str], AbstractAsyncContextManager[float]],
    ) -> None:
        self._grants = grants
        self._pool = pool
        self._name = name
        self._secret = secret
        self._relation_of = relation_of
        self._judging = judging
        self._looking = looking
        self._cached: OrderedDict[tuple[str, str], tuple[RowBlock, ...]] = OrderedDict()
        self._schemas: OrderedDict[Any, str] = OrderedDict()  # by version, contract and what is wanted of it

    async def plan(self, ticket: Ticket, wanted: Wanted) -> dict[str, Any]:
        """Snapshot, schema and blocks of a read, or the reason why there may be none."""
        held, contract = await self._admitted(ticket, wanted)
        blocks, schema = await self._look(held, contract, ticket, wanted)
        exact = contract.row_filter is None and not wanted.where.strip()
        width = _width(contract, self._relation_of(held.version).row_bytes)
        snapshot = block_layout.snapshot_of(held.version.digest)
        return {
            "snapshot": snapshot,
            "plan": _digest(snapshot, held.dataset.id, wanted),
            "shown": block_layout.shown_mark(self._cursor_key(ticket, snapshot, visibility_key(contract))),
            "dataset": held.dataset.id,
            "name": held.dataset.name,
            "schema": schema,
            "exact": exact,
            "rows": _rows(sum(block.rows for block in blocks), contract),
            "expires": int(ticket.expires),
            "blocks": [_told(block, contract, width) for block in blocks],
        }

    async def split(
        self, ticket: Ticket, wanted: Wanted, *, snapshot: str, blocks: str, after: str, as_shown: str, cursors: bool
    ) -> Split | None:
        """The ranges of some blocks (`all`, or their numbers), in the order given, after a cursor.

        Without `cursors` no batch says where it ends, and blocks that follow each other are read as one.
        None where all are asked of a kind that has no places: then it is one stream, which cannot be gone on with.
        VersionChanged where `snapshot` is no longer what the agreement reads, and where it shows something else than
        `as_shown`, which its plan said: never other rows in its place.
        """
        try:
            held, contract = await self._admitted(ticket, wanted)
        except BadInput as error:
            if error.code == "not_divisible" and blocks == ALL and not after:
                return None
            raise
        current = block_layout.snapshot_of(held.version.digest)
        check_snapshot(snapshot or current, held)
        found = self._cached.get(_key(held))
        if found is None:
            found, _ = await self._look(held, contract, ticket, wanted)
        view = visibility_key(contract)
        key = self._cursor_key(ticket, current, view)
        if as_shown and as_shown != block_layout.shown_mark(key):
            raise VersionChanged(
                f"the agreement shows other columns, masks or rows of {held.dataset.name!r} now than the plan is for, "
                "as where one of its permissions is used up and the next applies. Make a new plan and begin anew",
                code="shown_changed",
            )
        ranges = _whole(found) if blocks == ALL else _chosen(found, blocks)
        if after:
            ranges = _after(ranges, block_layout.unseal(after, key))
        if not cursors:
            only = Ranges(_joined(ranges) or _NOTHING, "")
            return Split(snapshot=current, only=only, shown=view if as_shown else "")
        hides = bool(wanted.where.strip()) or any(one.row_filter is not None for one in held.contracts)
        position = new_name() if hides else ""
        only = Ranges(ranges or _NOTHING, key.hex(), position)
        return Split(snapshot=current, only=only, resumed=bool(after), shown=view)

    def _cursor_key(self, ticket: Ticket, snapshot: str, view: str) -> bytes:
        return block_layout.cursor_key(self._secret, consumer=ticket.consumer, snapshot=snapshot, shown=view)

    async def _admitted(self, ticket: Ticket, wanted: Wanted) -> tuple[CompiledAgreement, DataContract]:
        """The contract that lets rows be streamed; nothing of a dataset that is only for aggregates."""
        held, contract = await self._grants.find_contract(
            ticket.agreement,
            consumer=ticket.consumer,
            action=ask.STREAM,
            purpose=ticket.purpose or wanted.purpose,
            application=wanted.application,
            transfer=(ticket.transfer, ticket.generation),
        )
        if contract.grid is not None:
            raise Refused(
                f"{held.dataset.name!r} may only be asked for aggregates of groups, so it has no rows to stream; "
                "send a query",
                code="aggregate_only",
                rule=contract.permission,
            )
        divisible_source(held.version.source["kind"])
        if column := find_position_clash(held.version.source["kind"], held.version.schema):
            raise BadInput(
                f"{held.dataset.name!r} has a column {column}, which is the engine's name for a row's place; "
                "read it as one stream",
                code="not_divisible",
            )
        return held, contract

    async def _look(
        self, held: CompiledAgreement, contract: DataContract, ticket: Ticket, wanted: Wanted
    ) -> tuple[tuple[RowBlock, ...], str]:
        """The blocks of a version, and the schema of what is wanted of it. Where a worker has to look, in the
        consumer's turn: it reads for others at the same time."""
        key = (*_key(held), to_json(contract), wanted, ticket.purpose)
        if (known := await self._known(held, key)) is not None:
            return known
        async with self._looking(ticket.consumer) as until:
            await self._admitted(ticket, wanted)  # it may have ended meanwhile
            if (known := await self._known(held, key)) is not None:  # others have asked the same
                return known
            blocks = self._cached.get(_key(held))
            seconds = until - time.monotonic()
            found = await self._looked(held, contract, ticket, wanted, groups=blocks is None, seconds=seconds)
            put_recent(self._schemas, key, found["schema"], most=_CACHED_MAX)
            return self._cut(held, found["groups"]) if blocks is None else blocks, found["schema"]

    async def _known(self, held: CompiledAgreement, key: tuple[Any, ...]) -> tuple[tuple[RowBlock, ...], str] | None:
        blocks, schema = self._cached.get(_key(held)), self._schemas.get(key)  # they may have gone when we have looked
        if blocks is None or schema is None or not await check_files_unchanged(held.version.source["files"]):
            return None
        return blocks, schema

    async def _looked(
        self,
        held: CompiledAgreement,
        contract: DataContract,
        ticket: Ticket,
        wanted: Wanted,
        *,
        groups: bool,
        seconds: float,
    ) -> dict[str, Any]:
        relation = new_name()
        work = partial(self._gated, held, contract, ticket, wanted, relation)
        prepared = await self._judging.judge(ticket.consumer, work)
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

    def _gated(
        self, held: CompiledAgreement, contract: DataContract, ticket: Ticket, wanted: Wanted, relation: str
    ) -> PreparedQuery:
        """What the gate makes of the rows."""
        from policies.enforce.gate import GatedDataset, prepare

        name = (self._name, held.dataset.name)
        return prepare(
            ask.rows_sql(name, columns=wanted.columns, where=wanted.where),
            [GatedDataset(name, relation, contract, held.dataset.id)],
            action=ask.STREAM,
            purpose=ticket.purpose or wanted.purpose or None,
            token=new_name,
            mask_key=bytes(32),  # of no value that leaves
        )

    def _cut(self, held: CompiledAgreement, groups: Sequence[Sequence[tuple[int, int]]]) -> tuple[RowBlock, ...]:
        found = block_layout.cut(groups)
        put_recent(self._cached, _key(held), found, most=_CACHED_MAX)
        return found


def _rows(count: int, contract: DataContract) -> int:
    return count if contract.row_filter is None else rounded_counts.coarse(count)


def _told(block: RowBlock, contract: DataContract, width: float) -> dict[str, int]:
    """Rows and bytes to plan by. What a block takes on disk tells of columns, too, that are withheld or masked."""
    nbytes = block.nbytes if width < 0 else round(block.rows * width)
    if contract.row_filter is None:
        return {"rows": block.rows, "bytes": nbytes}
    return {"rows": rounded_counts.coarse(block.rows), "bytes": rounded_counts.coarse_bytes(nbytes, block.rows)}


def _width(contract: DataContract, known: Mapping[str, float]) -> float:
    """About the bytes of a row of what is shown as it is; below nought where that is all there is. Where rows are
    hidden it is known of none how large they are, and an average tells of them all."""
    if contract.row_filter is not None:
        return _VALUE_BYTES * len(contract.columns)
    masked = {mask.column for mask in contract.masks}
    shown = [name for name in contract.columns if name not in masked]
    if len(shown) == len(contract.schema.columns):
        return -1.0
    return sum(known.get(name, _VALUE_BYTES) for name in shown) + _VALUE_BYTES * len(masked & set(contract.columns))


def _key(held: CompiledAgreement) -> tuple[str, str]:
    return held.dataset.id, held.version.digest


def check_snapshot(snapshot: str, held: CompiledAgreement) -> None:
    """VersionChanged unless a read of this agreement gives the rows of `snapshot`."""
    if snapshot != block_layout.snapshot_of(held.version.digest):
        raise VersionChanged(
            f"{held.dataset.name!r} has another version than the one that this plan is for; a position in it means "
            "nothing now. Make a new plan and begin anew",
            code="snapshot_changed",
        )


def check_shown(split: Split, contract: DataContract) -> None:
    """Busy unless the contract that a read runs under shows what its cursors, or its parts, are for: of several
    permissions another one may be the first that has something left by then."""
    if split.shown not in ("", visibility_key(contract)):
        raise Busy(
            "another permission of the agreement is used now than a moment ago, and it shows something else; ask again"
        )


def check_versions(versions: Mapping[str, str], held: Sequence[CompiledAgreement]) -> None:
    """VersionChanged unless each dataset that is named is read in the version that is stated for it.

    A statement chooses nothing: what is read is the owner's current version, or nothing is.
    """
    current = {one.dataset.id: one for one in held}
    for dataset, version in versions.items():
        if dataset not in current:
            raise QueryInvalid(
                f"expected versions of the datasets that the tickets are for, came one of {dataset[:200]!r}",
                code="dataset_unknown",
            )
        if version != current[dataset].version.digest:
            raise VersionChanged(
                f"{current[dataset].dataset.name!r} has another version than the one this question was planned for; "
                "ask again",
                code="snapshot_changed",
            )


def asked_of(
    ticket: Ticket, held: CompiledAgreement, wanted: Wanted, *, owner: str, split: Split | None = None
) -> Asked:
    """The read of these rows, with the column of positions where the split has one."""
    position = split.only.position if split else ""
    return Asked(
        tickets=(ticket,),
        sql=ask.rows_sql((owner, held.dataset.name), columns=wanted.columns, where=wanted.where, position=position),
        action=ask.STREAM,
        plain_scan=True,
        unfiltered=not wanted.where.strip(),
        purpose=wanted.purpose,
        application=wanted.application,
        split=split,
    )


def _whole(blocks: Sequence[RowBlock]) -> tuple[Range, ...]:
    """Every row in order, one range a file: fewer and longer scans than block by block."""
    files: dict[int, int] = {}
    for block in blocks:
        files[block.file] = block.first + block.rows
    return tuple(Range(-1, file, 0, stop) for file, stop in files.items())


def _chosen(blocks: Sequence[RowBlock], text: str) -> tuple[Range, ...]:
    numbers = text.split(",")
    if len(numbers) > BLOCKS_MAX or not all(one.isascii() and one.isdigit() and len(one) < 10 for one in numbers):
        raise BadInput(f"expected blocks as {ALL} or at most {BLOCKS_MAX} numbers such as 3,0,7, came {text[:40]!r}")
    chosen = [int(one) for one in numbers]
    if len(set(chosen)) < len(chosen) or max(chosen) >= len(blocks):
        raise BadInput(f"expected each block once, from 0 to {len(blocks) - 1}, came {text[:40]!r}")
    return tuple(
        Range(number, one.file, one.first, one.first + one.rows) for number, one in ((n, blocks[n]) for n in chosen)
    )


def _joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The same rows in the same order, in as few ranges as may be."""
    found: list[Range] = []
    for one in ranges:
        if found and (found[-1].file, found[-1].stop) == (one.file, one.first):
            found[-1] = Range(-1, one.file, found[-1].first, one.stop)
        else:
            found.append(Range(-1, one.file, one.first, one.stop))
    return tuple(found)


def _after(ranges: Sequence[Range], place: Place) -> tuple[Range, ...]:
    for number, one in enumerate(ranges):
        if one.file == place.file and one.first <= place.row < one.stop:
            rest = Range(one.block, one.file, place.row + 1, one.stop)
            return (rest, *ranges[number + 1 :])
    raise BadInput(
        "the cursor is of a block that is not in the list; give the list it came from", code="cursor_invalid"
    )


def _digest(snapshot: str, dataset: str, wanted: Wanted) -> str:
    parts = [snapshot, dataset, list(wanted.columns), wanted.where]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
