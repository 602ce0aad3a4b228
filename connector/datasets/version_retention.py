"""Which versions of a dataset may still be read, and which files of ours, made of what was converted, that keeps.

Others read the current version alone. A coming one is held against it and against those before it that somebody may
have asked (`dataplane.versions`): as long as that is so, their files stay. Knows no files, only their names.
"""

from __future__ import annotations

from pathlib import PurePath

from connector.store import Transaction
from connector.store.tables import DatasetVersion, RegisteredDataset

EARLIER_MAX = 20  # versions that a coming one is held against: each costs as much as a question over all of both


def earlier(tx: Transaction, current: DatasetVersion) -> list[DatasetVersion]:
    """The versions beside the current one that somebody may have asked, the newest first; none where nobody could."""
    if not _agreed(tx, current.dataset_id):
        return []
    found = tx.datasets.list_versions(current.dataset_id)
    return [one for one in found if one.digest != current.digest and not one.source.get("unasked")]


def asked_under(tx: Transaction, dataset_id: str) -> frozenset[str]:
    """The digests of what others may ask under, or have: offers in force, agreements that have not ended, and those
    that have and were read under."""
    offered = (one.digest for one in tx.datasets.list_offers_in_force([dataset_id]))
    agreed = (
        one.digest for one, reads in tx.agreements.iterate_by_dataset(dataset_id) if one.ended_at is None or reads
    )
    return frozenset((*offered, *agreed))


def held(tx: Transaction, row: RegisteredDataset) -> list[DatasetVersion]:
    """The versions of a dataset whose files may be read: one more of the earlier than are looked at, as the coming one
    may be one of them again."""
    current = tx.datasets.get_current(row)
    return [current, *earlier(tx, current)[: EARLIER_MAX + 1]]


def pass_over(tx: Transaction, version: DatasetVersion) -> None:
    """Say of a converted version that ceases to be the current one whether nobody could ever ask it: then nothing is
    to be held against it, and its file need not stay for that."""
    if version.source["report"] is not None and not _agreed(tx, version.dataset_id):
        version.source = version.source | {"unasked": True}


def let_go(tx: Transaction, dataset_id: str) -> set[str]:
    """The names of files of ours that versions of this dataset had, and that nobody reads any more."""
    row = tx.datasets.find(dataset_id)
    found = names(tx.datasets.list_converted(dataset_id))
    return found - names(held(tx, row)) if found and row is not None else found


def wanted(tx: Transaction) -> set[str]:
    """The names of all files of ours that may be read."""
    found = set()
    for dataset_id in tx.datasets.list_converted_ids():
        row = tx.datasets.find(dataset_id)
        found |= names(held(tx, row)) if row is not None else set()
    return found


def names(versions: list[DatasetVersion]) -> set[str]:
    """The names of these versions' files: those of ours are no others'."""
    return {PurePath(file["path"]).name for one in versions for file in one.source["files"]}


def _agreed(tx: Transaction, dataset_id: str) -> bool:
    return next(iter(tx.agreements.iterate_by_dataset(dataset_id)), None) is not None
