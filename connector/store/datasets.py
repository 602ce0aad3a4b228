"""Queries for datasets, their versions and offers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from connector.errors import NotFound
from connector.store.tables import Dataset, DatasetVersion, Offer


class Datasets:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: Dataset | DatasetVersion | Offer) -> None:
        self._session.add(row)

    def find(self, key: str) -> Dataset | None:
        """By id or by name."""
        return (
            self._session.get(Dataset, key)
            or self._session.scalars(select(Dataset).where(Dataset.name == key)).one_or_none()
        )

    def of(self, key: str) -> Dataset:
        """By id or by name; NotFound names what was asked."""
        if (found := self.find(key)) is None:
            raise NotFound(f"no dataset {key!r} is registered here; list them with `hanse dataset list`")
        return found

    def version(self, dataset_id: str, digest: str) -> DatasetVersion | None:
        return self._session.get(DatasetVersion, (dataset_id, digest))

    def current(self, dataset: Dataset) -> DatasetVersion:
        found = self.version(dataset.id, dataset.version)
        if found is None:
            raise NotFound(f"dataset {dataset.name!r} has no version {dataset.version!r}")
        return found

    def versions(self, dataset_id: str) -> Sequence[DatasetVersion]:
        """Every version of a dataset, the newest first."""
        return self._session.scalars(
            select(DatasetVersion)
            .where(DatasetVersion.dataset_id == dataset_id)
            .order_by(DatasetVersion.created_at.desc(), DatasetVersion.digest)
        ).all()

    def page(self, *, after: str = "", limit: int = 100) -> Sequence[Dataset]:
        """Datasets in order of their id, after the id `after` (keyset paging: no skipped rows are read)."""
        return self._session.scalars(select(Dataset).where(Dataset.id > after).order_by(Dataset.id).limit(limit)).all()

    def offered(self, *, start: str, backwards: bool = False, limit: int) -> Sequence[Dataset]:
        """Datasets with an offer in force, by id from `start` (left out) on, or back from it. Reads `limit` keys."""
        keys = select(Offer.dataset_id).where(Offer.withdrawn_at.is_(None)).distinct().limit(limit)
        if backwards:
            keys = keys.where(Offer.dataset_id < start).order_by(Offer.dataset_id.desc())
        else:
            keys = keys.where(Offer.dataset_id > start).order_by(Offer.dataset_id)
        found = self._session.scalars(keys).all()
        rows = {row.id: row for row in self._session.scalars(select(Dataset).where(Dataset.id.in_(found)))}
        return [rows[key] for key in found if key in rows]

    def current_of(self, rows: Sequence[Dataset]) -> dict[str, DatasetVersion]:
        """The current versions of these datasets, by dataset id."""
        digests = {row.id: row.version for row in rows}
        found = self._session.scalars(
            select(DatasetVersion).where(
                DatasetVersion.dataset_id.in_(digests), DatasetVersion.digest.in_(set(digests.values()))
            )
        )
        return {version.dataset_id: version for version in found if version.digest == digests[version.dataset_id]}

    def count(self) -> int:
        return self._session.scalar(select(func.count()).select_from(Dataset)) or 0

    def remove(self, row: Dataset | DatasetVersion) -> None:
        self._session.delete(row)

    def offer(self, offer_id: str) -> Offer | None:
        return self._session.get(Offer, offer_id)

    def offers_of(self, dataset_ids: Sequence[str]) -> Sequence[Offer]:
        """Offers in force for any of these datasets."""
        return self._session.scalars(
            select(Offer).where(Offer.dataset_id.in_(dataset_ids), Offer.withdrawn_at.is_(None)).order_by(Offer.id)
        ).all()

    def offers(self) -> Sequence[Offer]:
        return self._session.scalars(select(Offer).order_by(Offer.created_at, Offer.id)).all()
