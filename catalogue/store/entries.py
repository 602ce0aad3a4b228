"""Queries for entries. Each change takes a new change number (`seq`), which the index follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session, defer

from catalogue.store import counters
from catalogue.store.tables import MARKED_STALE, CrawlState, EntryRow, Member
from connector.errors import Absent

_SEQ = "entry"
_SET_BACK = 3_600.0  # a `last_seen` this far in the future is from a clock that was set back
_CHUNK = 10_000  # ids in one statement: databases accept about 32,000 variables
_OWNED = (
    select(EntryRow, Member, CrawlState)
    .outerjoin(Member, Member.id == EntryRow.member_id)
    .outerjoin(CrawlState, CrawlState.member_id == EntryRow.member_id)
)


class EntryQueries:
    def __init__(self, session: Session) -> None:
        self._session = session

    def next_seq(self) -> int:
        """A new change number."""
        return counters.bump(self._session, _SEQ)

    def last_seq(self) -> int:
        return counters.current(self._session, _SEQ)

    def add(self, entry: EntryRow) -> None:
        self._session.add(entry)

    def find(self, entry_id: str) -> EntryRow | None:
        return self._session.get(EntryRow, entry_id)

    def of(self, entry_id: str) -> EntryRow:
        """By id. Raises Absent if unknown."""
        if (found := self.find(entry_id)) is None:
            raise Absent(f"no dataset {entry_id[:200]!r} is in this catalogue")
        return found

    def get_many(self, ids: Iterable[str]) -> dict[str, EntryRow]:
        """The entries that exist among `ids`."""
        asked = (select(EntryRow).where(EntryRow.id.in_(some)) for some in _chunks(ids))
        return {entry.id: entry for one in asked for entry in self._session.scalars(one)}

    def read_texts(self, member_id: str, ids: Iterable[str], *, reader: int) -> dict[str, str]:
        """The raw texts of a member's entries, by id, that its last visit listed and this reader version parsed."""
        found = select(EntryRow.id, EntryRow.raw).where(
            EntryRow.member_id == member_id,
            EntryRow.reader == reader,
            EntryRow.misses == 0,
            EntryRow.withdrawn_at.is_(None),
        )
        asked = (found.where(EntryRow.id.in_(some)) for some in _chunks(ids))
        return {row.id: row.raw for one in asked for row in self._session.execute(one)}

    def mark_seen(self, member_id: str, ids: Sequence[str], now: float) -> int:
        """Mark entries of a member as listed again without a change. Returns their number."""
        again = (
            update(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
            .values(last_seen=now)
        )
        asked = (again.where(EntryRow.id.in_(some)).returning(EntryRow.id) for some in _chunks(ids))
        return sum(len(self._session.execute(one).all()) for one in asked)

    def get_with_owner(self, ids: Sequence[str]) -> dict[str, tuple[EntryRow, Member, CrawlState]]:
        """Entries by id, each with its member and the crawl state."""
        rows = self._session.execute(
            select(EntryRow, Member, CrawlState)
            .join(Member, Member.id == EntryRow.member_id)
            .join(CrawlState, CrawlState.member_id == EntryRow.member_id)
            .where(EntryRow.id.in_(list(ids)))
        ).all()
        return {entry.id: (entry, member, source) for entry, member, source in rows}

    def changed_after(
        self, seq: int, entry_id: str, *, limit: int
    ) -> Sequence[tuple[EntryRow, Member | None, CrawlState | None]]:
        """Entries in order of change after the position (`seq`, `entry_id`), with the owner where there still is one.

        Many entries may share one number; they were committed together, so a position among them is a safe one.
        """
        after = or_(EntryRow.seq > seq, and_(EntryRow.seq == seq, EntryRow.id > entry_id))
        found = _OWNED.where(after).order_by(EntryRow.seq, EntryRow.id).limit(limit)
        return [(entry, member, source) for entry, member, source in self._session.execute(found)]

    def page(self, *, after: str, limit: int) -> Sequence[tuple[EntryRow, Member, CrawlState]]:
        """Entries of active members that are not withdrawn, in order of id, after the id `after`."""
        rows = self._session.execute(
            select(EntryRow, Member, CrawlState)
            .join(Member, Member.id == EntryRow.member_id)
            .join(CrawlState, CrawlState.member_id == EntryRow.member_id)
            .where(EntryRow.id > after, EntryRow.withdrawn_at.is_(None), Member.status == "active")
            .order_by(EntryRow.id)
            .limit(limit)
        ).all()
        return [(entry, member, source) for entry, member, source in rows]

    def count_of(self, member_id: str) -> int:
        live = (
            select(func.count())
            .select_from(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
        )
        return self._session.scalar(live) or 0

    def touch_all(self, member_id: str) -> None:
        """Mark all live entries of a member as changed, after a change of the member. Tombstones keep their number."""
        live = update(EntryRow).where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
        self._session.execute(live.values(seq=self.next_seq()))

    def touch_selective(self) -> None:
        """Mark entries with offers for chosen members as changed, after a member's facts changed.

        The caller must hold the locks of `lock_sources`.
        """
        live = update(EntryRow).where(EntryRow.selective, EntryRow.withdrawn_at.is_(None))
        self._session.execute(live.values(seq=self.next_seq()))

    def mark_all_seen(self, member_id: str, now: float) -> int:
        """Mark every entry of the last visit as seen again, after the provider answered "unchanged".

        Returns their number.
        """
        touched = self._session.execute(
            update(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None), EntryRow.misses == 0)
            .values(last_seen=now)
            .returning(EntryRow.id)
        )
        return len(touched.all())

    def list_unseen_since(self, member_id: str, since: float, *, now: float) -> Sequence[EntryRow]:
        """Live entries of a member that were last seen before `since`, or by a clock that was set back later.

        Their texts are loaded on access.
        """
        unseen = or_(EntryRow.last_seen < since, EntryRow.last_seen > max(now, since) + _SET_BACK)
        return self._session.scalars(
            select(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None), unseen)
            .options(defer(EntryRow.raw), defer(EntryRow.content))
        ).all()

    def reset_future_times(self, member_id: str, since: float, *, now: float) -> None:
        """Correct `last_seen` values in the future, left by a clock that was set back, to just before `since`.

        `since` is the start of the current visit; entries that it saw are not changed.
        """
        live = update(EntryRow).where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
        ahead = live.where(EntryRow.last_seen > max(now, since) + _SET_BACK)
        self._session.execute(ahead.values(last_seen=min(now, since) - 1.0))

    def mark_stale(self, member_id: str, *, before: float) -> None:
        """Mark live entries of a member that were last seen before `before` as stale."""
        self._session.execute(
            update(EntryRow)
            .where(
                EntryRow.member_id == member_id,
                EntryRow.withdrawn_at.is_(None),
                EntryRow.misses == 0,
                EntryRow.last_seen < before,
            )
            .values(misses=MARKED_STALE, seq=self.next_seq())
        )

    def withdraw_beyond(self, member_id: str, most: int, *, now: float, why: str) -> int:
        """Withdraw a member's live entries except the `most` seen last. Returns the number of withdrawn entries."""
        if (over := self.count_of(member_id) - most) <= 0:
            return 0
        live = select(EntryRow.id).where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
        beyond = live.order_by(EntryRow.last_seen, EntryRow.id).limit(over)
        self._session.execute(
            update(EntryRow)
            .where(EntryRow.id.in_(beyond))
            .values(withdrawn_at=now, withdrawn_why=why, seq=self.next_seq())
        )
        return over

    def withdraw_all(self, member_id: str, *, now: float, why: str) -> None:
        """Withdraw every live entry of a member."""
        self._session.execute(
            update(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
            .values(withdrawn_at=now, withdrawn_why=why, seq=self.next_seq())
        )

    def withdrawn_after(self, member_id: str, seq: int) -> bool:
        """Whether entries of a member were withdrawn after the change number `seq`."""
        dead = select(EntryRow.id).where(
            EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_not(None), EntryRow.seq > seq
        )  # fmt: skip
        return self._session.scalar(dead.limit(1)) is not None

    def list_outdated(self, reader: int, *, limit: int) -> Sequence[EntryRow]:
        """Live entries that another version of the reader parsed."""
        older = select(EntryRow).where(EntryRow.reader != reader, EntryRow.withdrawn_at.is_(None))
        return self._session.scalars(older.limit(limit)).all()

    def list_unstripped_tombstones(self, *, limit: int) -> Sequence[EntryRow]:
        """Withdrawn entries that still have their description, without those that another transaction has locked."""
        whole = select(EntryRow).where(EntryRow.withdrawn_at.is_not(None), EntryRow.raw != "")
        return self._session.scalars(whole.limit(limit).with_for_update(skip_locked=True)).all()

    def forget_tombstones(self, before: float) -> None:
        """Remove tombstones older than `before`, without those that another transaction has locked."""
        old = select(EntryRow.id).where(EntryRow.withdrawn_at < before).with_for_update(skip_locked=True)
        self._session.execute(delete(EntryRow).where(EntryRow.id.in_(old)))

    def forget_tombstones_beyond(self, member_id: str, most: int, *, before: float) -> None:
        """Of a member's tombstones keep the newest `most`, and those since `before`, which the index may not know."""
        dead = select(EntryRow.id).where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_not(None))
        kept = dead.order_by(EntryRow.withdrawn_at.desc(), EntryRow.id).limit(most)
        self._session.execute(
            delete(EntryRow).where(
                EntryRow.member_id == member_id, EntryRow.withdrawn_at < before, EntryRow.id.not_in(kept)
            )
        )


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    found = list(ids)
    return (found[start : start + _CHUNK] for start in range(0, len(found), _CHUNK))
