"""Queries for datasets, their versions and offers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, exists, func, select
from sqlalchemy.orm import Session

from connector.errors import Absent
from connector.store.tables import DatasetVersion, Offer, RegisteredDataset

_CONVERTED = DatasetVersion.source["report"].as_string().is_not(None)


class DatasetQueries:
    """Queries for datasets, versions and offers."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: RegisteredDataset | DatasetVersion | Offer) -> None:
        self._session.add(row)

    def prefer_indexes(self) -> None:
        """Make PostgreSQL use indexes in this transaction, which reads single pages of large tables.

        Without statistics (new or much changed tables), or for a page's list of keys, PostgreSQL reads whole tables.
        """
        if self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(
                select(
                    func.set_config("enable_seqscan", "off", True), func.set_config("enable_bitmapscan", "off", True)
                )
            )

    def find(self, key: str) -> RegisteredDataset | None:
        """By id or name; None if it does not exist."""
        return (
            self._session.get(RegisteredDataset, key)
            or self._session.scalars(select(RegisteredDataset).where(RegisteredDataset.name == key)).one_or_none()
        )

    def of(self, key: str) -> RegisteredDataset:
        """By id or name. Raises Absent if it does not exist."""
        if (row := self.find(key)) is None:
            raise Absent(f"no dataset {key!r} is registered here; list them with `hanse dataset list`")
        return row

    def lock(self, dataset_id: str) -> None:
        """Lock the dataset until the transaction ends."""
        self._session.get(RegisteredDataset, dataset_id, with_for_update=True)

    def get_version(self, dataset_id: str, digest: str) -> DatasetVersion | None:
        return self._session.get(DatasetVersion, (dataset_id, digest))

    def get_current(self, dataset: RegisteredDataset) -> DatasetVersion:
        """The current version of a dataset. Raises Absent if it does not exist."""
        version = self.get_version(dataset.id, dataset.version)
        if version is None:
            raise Absent(f"dataset {dataset.name!r} has no version {dataset.version!r}")
        return version

    def list_versions(self, dataset_id: str) -> Sequence[DatasetVersion]:
        """Every version of a dataset, the newest first."""
        return self._session.scalars(
            select(DatasetVersion)
            .where(DatasetVersion.dataset_id == dataset_id)
            .order_by(DatasetVersion.created_at.desc(), DatasetVersion.digest)
        ).all()

    def get_version_at(self, dataset_id: str, moment: float) -> DatasetVersion | None:
        """The version that was current at `moment` (UTC seconds), or the oldest if all are newer; None without
        versions."""
        versions = self.list_versions(dataset_id)
        return next((row for row in versions if row.created_at <= moment), versions[-1] if versions else None)

    def has_keyed(self) -> bool:
        """Whether a version has a keyed digest (HMAC with the connector's secret)."""
        return bool(self._session.scalar(select(exists().where(DatasetVersion.digest.startswith("hmac-")))))

    def list_converted(self, dataset_id: str) -> list[DatasetVersion]:
        """The versions of a dataset whose files the connector converted and owns."""
        query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id, _CONVERTED)
        return list(self._session.scalars(query))

    def list_converted_ids(self) -> Sequence[str]:
        """Ids of datasets with converted versions, removed datasets included."""
        return self._session.scalars(select(DatasetVersion.dataset_id).where(_CONVERTED).distinct()).all()

    def page(self, *, after: str = "", limit: int = 100) -> Sequence[RegisteredDataset]:
        """Datasets in order of their id, after the id `after` (keyset paging: no skipped rows are read)."""
        return self._session.scalars(
            select(RegisteredDataset).where(RegisteredDataset.id > after).order_by(RegisteredDataset.id).limit(limit)
        ).all()

    def list_offered(self, *, start: str, backwards: bool = False, limit: int) -> Sequence[RegisteredDataset]:
        """At most `limit` datasets with an offer in force, in order of id after `start`, or before it if
        `backwards`."""
        found: dict[str, None] = {}  # keys in order
        reached, more = start, True
        while more and len(found) < limit:
            keys = self._list_offered_keys(reached, backwards=backwards, limit=limit)
            found.update(dict.fromkeys(keys))
            reached, more = keys[-1] if keys else reached, len(keys) == limit
        wanted = list(found)[:limit]
        rows = {
            row.id: row
            for row in self._session.scalars(select(RegisteredDataset).where(RegisteredDataset.id.in_(wanted)))
        }
        return [rows[key] for key in wanted if key in rows]

    def _list_offered_keys(self, start: str, *, backwards: bool, limit: int) -> Sequence[str]:
        """Dataset ids of the next `limit` offers in force, one for each offer.

        No DISTINCT: PostgreSQL may hash the whole table for it.
        """
        keys = select(Offer.dataset_id).where(Offer.withdrawn_at.is_(None)).limit(limit)
        if backwards:
            return self._session.scalars(keys.where(Offer.dataset_id < start).order_by(Offer.dataset_id.desc())).all()
        return self._session.scalars(keys.where(Offer.dataset_id > start).order_by(Offer.dataset_id)).all()

    def get_current_versions(self, rows: Sequence[RegisteredDataset]) -> dict[str, DatasetVersion]:
        """The current version of each of these datasets, by dataset id."""
        keys = [row.id for row in rows]
        found = self._session.scalars(
            select(DatasetVersion)
            .join(
                RegisteredDataset,
                and_(
                    RegisteredDataset.id == DatasetVersion.dataset_id,
                    RegisteredDataset.version == DatasetVersion.digest,
                ),
            )
            .where(DatasetVersion.dataset_id.in_(keys), RegisteredDataset.id.in_(keys))
        )
        return {version.dataset_id: version for version in found}

    def count(self) -> int:
        return self._session.scalar(select(func.count()).select_from(RegisteredDataset)) or 0

    def remove(self, row: RegisteredDataset | DatasetVersion) -> None:
        self._session.delete(row)

    def get_offer(self, offer_id: str) -> Offer | None:
        return self._session.get(Offer, offer_id)

    def lock_offer(self, offer_id: str) -> None:
        """Lock an offer until the transaction ends, so that no other transaction agrees under it."""
        self._session.get(Offer, offer_id, with_for_update=True, populate_existing=True)

    def list_offers_in_force(self, dataset_ids: Sequence[str]) -> Sequence[Offer]:
        """Offers in force for any of these datasets."""
        return self._session.scalars(
            select(Offer).where(Offer.dataset_id.in_(dataset_ids), Offer.withdrawn_at.is_(None)).order_by(Offer.id)
        ).all()

    def list_offers(
        self, *, dataset_id: str = "", withdrawn: bool = True, limit: int | None = 100, offset: int = 0
    ) -> Sequence[Offer]:
        """Offers, newest first. `withdrawn`: include withdrawn ones."""
        query = select(Offer).order_by(Offer.created_at.desc(), Offer.id).limit(limit).offset(offset)
        if dataset_id:
            query = query.where(Offer.dataset_id == dataset_id)
        if not withdrawn:
            query = query.where(Offer.withdrawn_at.is_(None))
        return self._session.scalars(query).all()

    def list_withdrawn_since(self, at: float) -> Sequence[str]:
        """Ids of datasets with an offer that was withdrawn at or after `at` (UTC seconds)."""
        return self._session.scalars(select(Offer.dataset_id).where(Offer.withdrawn_at >= at).distinct()).all()

    def count_offers_in_force(self) -> int:
        """The number of offers in force."""
        query = select(func.count()).select_from(Offer).where(Offer.withdrawn_at.is_(None))
        return self._session.scalar(query) or 0
