"""Queries for entries. Every change takes a new change number, which the index follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session, defer

from catalogue.store import counters
from catalogue.store.tables import MARKED_STALE, CrawlState, EntryRow, Member
from connector.errors import NotFound

_SEQ = "entry"
_SET_BACK = 3_600.0  # seconds; less may be while a visit lasts, and what that has seen is seen
_CHUNK = 10_000  # ids in one statement: databases take some 32,000 variables
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
        """By id; NotFound for an unknown one."""
        if (found := self.find(entry_id)) is None:
            raise NotFound(f"no dataset {entry_id[:200]!r} is in this catalogue")
        return found

    def get_many(self, ids: Iterable[str]) -> dict[str, EntryRow]:
        """The entries that exist among `ids`."""
        asked = (select(EntryRow).where(EntryRow.id.in_(some)) for some in _chunks(ids))
        return {entry.id: entry for one in asked for entry in self._session.scalars(one)}

    def read_texts(self, member_id: str, ids: Iterable[str], *, reader: int) -> dict[str, str]:
        """The raw texts of a member's entries that were listed by its last visit and read by this reader."""
        found = select(EntryRow.id, EntryRow.raw).where(
            EntryRow.member_id == member_id,
            EntryRow.reader == reader,
            EntryRow.misses == 0,
            EntryRow.withdrawn_at.is_(None),
        )
        asked = (found.where(EntryRow.id.in_(some)) for some in _chunks(ids))
        return {row.id: row.raw for one in asked for row in self._session.execute(one)}

    def mark_seen(self, member_id: str, ids: Sequence[str], now: float) -> int:
        """These entries of a member were listed again, unchanged; how many there are."""
        again = (
            update(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
            .values(last_seen=now)
        )
        asked = (again.where(EntryRow.id.in_(some)).returning(EntryRow.id) for some in _chunks(ids))
        return sum(len(self._session.execute(one).all()) for one in asked)

    def get_with_owner(self, ids: Sequence[str]) -> dict[str, tuple[EntryRow, Member, CrawlState]]:
        """Entries, each with its member and what the crawler knows of it."""
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
        """Something about the member changed that every live entry of it shows: all of them count as changed. A
        tombstone shows nothing, and keeps the number of its withdrawal."""
        live = update(EntryRow).where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
        self._session.execute(live.values(seq=self.next_seq()))

    def touch_selective(self) -> None:
        """Who a member is has changed: entries with offers for some members may be for others now. Who calls this holds
        every source."""
        live = update(EntryRow).where(EntryRow.selective, EntryRow.withdrawn_at.is_(None))
        self._session.execute(live.values(seq=self.next_seq()))

    def mark_all_seen(self, member_id: str, now: float) -> int:
        """The provider said that nothing changed: every entry that it listed last time is seen again."""
        touched = self._session.execute(
            update(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None), EntryRow.misses == 0)
            .values(last_seen=now)
            .returning(EntryRow.id)
        )
        return len(touched.all())

    def list_unseen_since(self, member_id: str, since: float, *, now: float) -> Sequence[EntryRow]:
        """Live entries of a member that were last seen before `since`, or by a clock that has been set back since then;
        their texts are loaded only when asked for."""
        unseen = or_(EntryRow.last_seen < since, EntryRow.last_seen > max(now, since) + _SET_BACK)
        return self._session.scalars(
            select(EntryRow)
            .where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None), unseen)
            .options(defer(EntryRow.raw), defer(EntryRow.content))
        ).all()

    def reset_future_times(self, member_id: str, since: float, *, now: float) -> None:
        """Live entries of a member that were last seen by a clock that has been set back since then, and not by the
        visit that began at `since`: how old they are begins anew, just before that."""
        live = update(EntryRow).where(EntryRow.member_id == member_id, EntryRow.withdrawn_at.is_(None))
        ahead = live.where(EntryRow.last_seen > max(now, since) + _SET_BACK)
        self._session.execute(ahead.values(last_seen=min(now, since) - 1.0))

    def mark_stale(self, member_id: str, *, before: float) -> None:
        """Live entries of a member that were last seen before then are stale."""
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
        """Make tombstones of a member's live entries but for the `most` that were seen last; how many there were."""
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
        """Make every live entry of a member a tombstone."""
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
        """Entries that an older version of the program read; of tombstones there is nothing left to read."""
        older = select(EntryRow).where(EntryRow.reader != reader, EntryRow.withdrawn_at.is_(None))
        return self._session.scalars(older.limit(limit)).all()

    def list_unstripped_tombstones(self, *, limit: int) -> Sequence[EntryRow]:
        """Withdrawn entries that still have all of their description, but for those that others change now."""
        whole = select(EntryRow).where(EntryRow.withdrawn_at.is_not(None), EntryRow.raw != "")
        return self._session.scalars(whole.limit(limit).with_for_update(skip_locked=True)).all()

    def forget_tombstones(self, before: float) -> None:
        """But for those that others change now."""
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
