"""Decides which versions of a dataset may still be read, and which converted files must be kept for them.

Consumers read only the current version. A new version is compared with it, and with earlier versions that a consumer
may have queried (see `offers.version_effects`); their files are kept for that. Knows only names of files.
"""

from __future__ import annotations

from pathlib import PurePath

from connector.store import Transaction
from connector.store.tables import DatasetVersion, RegisteredDataset

EARLIER_MAX = 20  # versions that a new one is compared with: each costs a query over all rows of both


def list_earlier(tx: Transaction, current: DatasetVersion) -> list[DatasetVersion]:
    """Return the earlier versions that a consumer may have queried, the newest first."""
    if not _has_agreements(tx, current.dataset_id):
        return []
    found = tx.datasets.list_versions(current.dataset_id)
    return [one for one in found if one.digest != current.digest and not one.source.get("unasked")]


def list_asked_digests(tx: Transaction, dataset_id: str) -> frozenset[str]:
    """Return the policy digests of offers in force, agreements in force, and ended agreements that were read under."""
    offered = (one.digest for one in tx.datasets.list_offers_in_force([dataset_id]))
    agreed = (
        one.digest for one, reads in tx.agreements.iterate_by_dataset(dataset_id) if one.ended_at is None or reads
    )
    return frozenset((*offered, *agreed))


def list_readable(tx: Transaction, row: RegisteredDataset) -> list[DatasetVersion]:
    """Return the versions of a dataset whose files may be read.

    One earlier version more than are compared, because the new version may equal one of them.
    """
    current = tx.datasets.get_current(row)
    return [current, *list_earlier(tx, current)[: EARLIER_MAX + 1]]


def mark_unasked(tx: Transaction, version: DatasetVersion) -> None:
    """Mark a replaced converted version that no consumer could query: it is not compared, and its file may go."""
    if version.source["report"] is not None and not _has_agreements(tx, version.dataset_id):
        version.source = version.source | {"unasked": True}


def list_unneeded_files(tx: Transaction, dataset_id: str) -> set[str]:
    """Return the names of converted files of this dataset that are no longer read."""
    row = tx.datasets.find(dataset_id)
    found = file_names(tx.datasets.list_converted(dataset_id))
    return found - file_names(list_readable(tx, row)) if found and row is not None else found


def list_wanted_files(tx: Transaction) -> set[str]:
    """Return the names of all converted files that may be read."""
    found = set()
    for dataset_id in tx.datasets.list_converted_ids():
        row = tx.datasets.find(dataset_id)
        found |= file_names(list_readable(tx, row)) if row is not None else set()
    return found


def file_names(versions: list[DatasetVersion]) -> set[str]:
    """Return the names of these versions' files. Converted files have unique names."""
    return {PurePath(file["path"]).name for one in versions for file in one.source["files"]}


def _has_agreements(tx: Transaction, dataset_id: str) -> bool:
    return next(iter(tx.agreements.iterate_by_dataset(dataset_id)), None) is not None
