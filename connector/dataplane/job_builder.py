"""Builds a worker's job for a read: the SQL after the gate, the pinned files behind its names, and its limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from connector.dataplane.read_request import ReadRequest, make_name
from connector.datasets.sources import find_position_clash
from connector.datasets.sources.parquet import check_types
from connector.engine.pool.protocol import SLOTS, Job, Limits, Recheck, Relation, is_wide
from connector.errors import Invalid
from connector.store.tables import DatasetVersion
from connector.usage.held_agreement import ReadGrant
from policies.contracts import batch_gate
from policies.contracts.columns import fold

if TYPE_CHECKING:  # the SQL parser behind it is loaded with the first read, not at start
    from policies.enforce.gate import CallerTable, PreparedQuery

BATCH_BYTES = 3 * 2**20
_IN_FLIGHT = 16 * 2**20
_FEW = 4  # up to so many reads, each may have one more batch waiting for its reader
_THREADS_MAX = 4
_ROW_LARGE = 4 * 2**20  # bytes


def prepare_query(
    asked: ReadRequest, grants: Sequence[ReadGrant], *, name: str, mask_key: bytes
) -> tuple[PreparedQuery, list[CallerTable]]:
    """Run the gate over the grants' datasets and the caller's tables. Call in a thread: hostile text takes long.

    Raises: Invalid for two tickets of the same dataset.
    """
    from policies.enforce.gate import CallerTable, GatedDataset, prepare

    datasets = [
        GatedDataset(
            (name, grant.held.dataset.name),
            make_name(),
            grant.contract,
            id=grant.held.dataset.id,
            position=asked.position,
            purpose=grant.purpose,
        )
        for grant in grants
    ]
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise Invalid("expected one ticket for each dataset, got two for the same", code="tickets_mixed")
    keys = [CallerTable(brought.name, make_name(), brought.columns) for brought in asked.brought]
    prepared = prepare(
        asked.sql, datasets, action=asked.action, purpose=None, token=make_name, mask_key=mask_key, keys=keys
    )
    return prepared, keys


def select_grants(grants: Sequence[ReadGrant], prepared: PreparedQuery) -> list[ReadGrant]:
    """Return the grants of the datasets that the SQL reads, in the order of `prepared.datasets`.

    A read is charged to the agreements that it reads under, in whatever order its reader sends the tickets.
    """
    of = {grant.held.dataset.name: grant for grant in grants}
    return [of[dataset.name[1]] for dataset in prepared.datasets]


def find_unchanged_relation(asked: ReadRequest, prepared: PreparedQuery) -> str:
    """Return the relation whose rows leave unchanged, all or some columns; empty where anything changes them."""
    if not asked.unfiltered or not asked.plain_scan or len(prepared.datasets) != 1:
        return ""
    contract = prepared.datasets[0].contract
    touched = contract.row_filter is not None or contract.grid is not None
    masked = {fold(mask.column) for mask in contract.masks}
    shown = {name for name in contract.columns if fold(name) not in masked}
    return prepared.datasets[0].relation if not touched and shown.issuperset(prepared.columns) else ""


def version_to_relation(version: DatasetVersion) -> Relation:
    """Return the pinned files of a version as the engine takes them.

    Raises: SourceUnreadable where the engine would change some values.
    """
    source = version.source
    check_types({column["name"]: column["type"] for column in version.schema})
    return Relation(
        source["kind"], tuple(source["files"]), source["options"], row_bytes=_read_row_bytes(version.profile)
    )


def _read_row_bytes(profile: Mapping[str, Any]) -> dict[str, float]:
    """Return the average bytes of a value per column, where the profile has them."""
    rows, columns = profile.get("rows") or 0, profile.get("columns") or ()
    found = columns if not isinstance(columns, Mapping) else [dict(value, name=name) for name, value in columns.items()]
    return {column["name"]: column["bytes"] / rows for column in found if rows and column.get("bytes")}


def build_job(
    asked: ReadRequest,
    grants: Sequence[ReadGrant],
    prepared: PreparedQuery,
    keys: Sequence[CallerTable],
    *,
    most: Limits,
    running: int,
) -> Job:
    """Return the job of one read.

    `most`: the limits of any read. `running`: the reads that share the machine, including this one unless it is only
    described.
    """
    relations = {
        dataset.relation: version_to_relation(grant.held.version)
        for dataset in prepared.datasets
        for grant in grants
        if grant.held.dataset.name == dataset.name[1]
    }
    brought = {one.relation: Relation("", blob=number, columns=one.columns) for number, one in enumerate(keys)}
    rows = min(grant.lease.rows for grant in grants)
    spare = min(grant.lease.bytes for grant in grants)
    threads = max(1, min(_THREADS_MAX, (os.cpu_count() or 1) // max(1, running)))
    if asked.plain_scan and any(map(_is_large, relations.values())):
        threads = 1  # independent of other readers: several threads would have less memory each
    scan = find_unchanged_relation(asked, prepared)
    memory_mb = _choose_scan_mb(most.memory_mb, threads) if asked.plain_scan else most.memory_mb
    to_disk = not asked.plain_scan or is_wide(len(prepared.columns), memory_mb)
    return Job(
        relations=relations | brought,
        sql=prepared.sql,
        params=prepared.params,
        scan=scan,
        even=any(dataset.contract.row_filter is not None for dataset in prepared.datasets),
        only=asked.split.only if asked.split else None,
        recheck=Recheck(prepared.names, tuple(sorted(prepared.functions))),
        limits=Limits(
            seconds=most.seconds, total_seconds=asked.seconds, rows=asked.rows, bytes=asked.nbytes,
            memory_mb=memory_mb,
            temp_mb=most.temp_mb if to_disk else 0,
            threads=threads,
        ),
        batch_bytes=max(2**16, min(_choose_batch_bytes(asked.format, running), spare // 2)),
        slots=SLOTS if running <= _FEW else SLOTS - 1,
        batch_rows=min(asked.batch_rows or rows, rows) if asked.batch_rows or rows < batch_gate.UNLIMITED else None,
        format=asked.format,
        codec=asked.codec,
        digest=asked.digest,
        blobs=tuple(brought.arrow for brought in asked.brought),
        consumer=asked.consumer,
        shared=asked.plain_scan and not prepared.aggregate and not _has_misleading_column(grants),
        ordered=asked.plain_scan,
    )  # fmt: skip


def _is_large(relation: Relation) -> bool:
    """Return whether rows are so large on average that the few that a thread holds take much memory."""
    return sum(relation.row_bytes.values()) > _ROW_LARGE


def _has_misleading_column(grants: Sequence[ReadGrant]) -> bool:
    """Return whether a column has the engine's name for a row's place: such rows cannot be read in turns."""
    versions = [grant.held.version for grant in grants]
    return any(find_position_clash(one.source["kind"], one.schema) for one in versions)


def _choose_scan_mb(most: int, threads: int) -> int:
    """Return the memory for a scan: each thread may hold the pages of a row group."""
    return max(128, min(most, threads * (most // 4)))


def _choose_batch_bytes(form: str, running: int) -> int:
    """Return the batch size: smaller with many readers, to bound what is in flight for all of them."""
    if form == "parquet":  # a batch becomes a row group, and few row groups make a better file
        return max(2**20, _IN_FLIGHT // (2 * max(1, running)))
    return max(2**19, min(BATCH_BYTES, _IN_FLIGHT // max(1, running)))
