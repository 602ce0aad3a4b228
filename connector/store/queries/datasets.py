"""Queries for datasets, their versions and offers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, exists, func, select
from sqlalchemy.orm import Session

from connector.errors import NotFound
from connector.store.tables import Dataset, DatasetVersion, Offer

_CONVERTED = DatasetVersion.source["report"].as_string().is_not(None)


class Datasets:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: Dataset | DatasetVersion | Offer) -> None:
        self._session.add(row)

    def by_index(self) -> None:
        """Have every query of this transaction go by index: it asks for single pages of large tables.

        PostgreSQL would read whole tables for a page as long as it has no statistics (new or much changed ones), and
        for what it takes the list of a page's keys for.
        """
        if self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(
                select(
                    func.set_config("enable_seqscan", "off", True), func.set_config("enable_bitmapscan", "off", True)
                )
            )

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

    def hold(self, dataset_id: str) -> None:
        """Nobody else who holds the dataset goes on before this transaction ends."""
        self._session.get(Dataset, dataset_id, with_for_update=True)

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

    def at(self, dataset_id: str, moment: float) -> DatasetVersion | None:
        """The newest version that was there at a moment (UTC seconds); the oldest where none was yet."""
        found = self.versions(dataset_id)
        return next((one for one in found if one.created_at <= moment), found[-1] if found else None)

    def has_keyed(self) -> bool:
        """Whether there is a version whose digest was made with our secret."""
        return bool(self._session.scalar(select(exists().where(DatasetVersion.digest.startswith("hmac-")))))

    def converted(self, dataset_id: str) -> list[DatasetVersion]:
        """The versions of a dataset that lie in files of our own."""
        query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id, _CONVERTED)
        return list(self._session.scalars(query))

    def converted_ids(self) -> Sequence[str]:
        """The ids of all datasets, removed ones too, that have such versions."""
        return self._session.scalars(select(DatasetVersion.dataset_id).where(_CONVERTED).distinct()).all()

    def page(self, *, after: str = "", limit: int = 100) -> Sequence[Dataset]:
        """Datasets in order of their id, after the id `after` (keyset paging: no skipped rows are read)."""
        return self._session.scalars(select(Dataset).where(Dataset.id > after).order_by(Dataset.id).limit(limit)).all()

    def offered(self, *, start: str, backwards: bool = False, limit: int) -> Sequence[Dataset]:
        """Datasets with an offer in force, by id from `start` (left out) on, or back from it: at most `limit`."""
        found: dict[str, None] = {}  # keys in order
        reached, more = start, True
        while more and len(found) < limit:
            keys = self._offered_keys(reached, backwards=backwards, limit=limit)
            found.update(dict.fromkeys(keys))
            reached, more = keys[-1] if keys else reached, len(keys) == limit
        wanted = list(found)[:limit]
        rows = {row.id: row for row in self._session.scalars(select(Dataset).where(Dataset.id.in_(wanted)))}
        return [rows[key] for key in wanted if key in rows]

    def _offered_keys(self, start: str, *, backwards: bool, limit: int) -> Sequence[str]:
        """The datasets of the next `limit` offers in force, one entry for each offer.

        No DISTINCT: PostgreSQL may hash the whole table for it.
        """
        keys = select(Offer.dataset_id).where(Offer.withdrawn_at.is_(None)).limit(limit)
        if backwards:
            return self._session.scalars(keys.where(Offer.dataset_id < start).order_by(Offer.dataset_id.desc())).all()
        return self._session.scalars(keys.where(Offer.dataset_id > start).order_by(Offer.dataset_id)).all()

    def current_of(self, rows: Sequence[Dataset]) -> dict[str, DatasetVersion]:
        """The current versions of these datasets, by dataset id."""
        keys = [row.id for row in rows]
        found = self._session.scalars(
            select(DatasetVersion)
            .join(Dataset, and_(Dataset.id == DatasetVersion.dataset_id, Dataset.version == DatasetVersion.digest))
            .where(DatasetVersion.dataset_id.in_(keys), Dataset.id.in_(keys))
        )
        return {version.dataset_id: version for version in found}

    def count(self) -> int:
        return self._session.scalar(select(func.count()).select_from(Dataset)) or 0

    def remove(self, row: Dataset | DatasetVersion) -> None:
        self._session.delete(row)

    def offer(self, offer_id: str) -> Offer | None:
        return self._session.get(Offer, offer_id)

    def hold_offer(self, offer_id: str) -> None:
        """Let nobody else agree under an offer before this transaction ends."""
        self._session.get(Offer, offer_id, with_for_update=True, populate_existing=True)

    def offers_of(self, dataset_ids: Sequence[str]) -> Sequence[Offer]:
        """Offers in force for any of these datasets."""
        return self._session.scalars(
            select(Offer).where(Offer.dataset_id.in_(dataset_ids), Offer.withdrawn_at.is_(None)).order_by(Offer.id)
        ).all()

    def offers(
        self, *, dataset_id: str = "", withdrawn: bool = True, limit: int | None = 100, offset: int = 0
    ) -> Sequence[Offer]:
        """The newest first; `withdrawn`: also those that are."""
        query = select(Offer).order_by(Offer.created_at.desc(), Offer.id).limit(limit).offset(offset)
        if dataset_id:
            query = query.where(Offer.dataset_id == dataset_id)
        if not withdrawn:
            query = query.where(Offer.withdrawn_at.is_(None))
        return self._session.scalars(query).all()

    def withdrawn_since(self, at: float) -> Sequence[str]:
        """Ids of datasets of which an offer was withdrawn then or later."""
        return self._session.scalars(select(Offer.dataset_id).where(Offer.withdrawn_at >= at).distinct()).all()

    def offered_now(self) -> int:
        """How many offers are in force."""
        query = select(func.count()).select_from(Offer).where(Offer.withdrawn_at.is_(None))
        return self._session.scalar(query) or 0
