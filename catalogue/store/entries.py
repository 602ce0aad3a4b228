"""Queries for entries. Every change takes a new change number, which the index follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from catalogue.store import counters
from catalogue.store.tables import Entry, Member, Source
from connector.errors import NotFound

_SEQ = "entry"
_OWNED = (
    select(Entry, Member, Source)
    .outerjoin(Member, Member.id == Entry.member_id)
    .outerjoin(Source, Source.member_id == Entry.member_id)
)


class Entries:
    def __init__(self, session: Session) -> None:
        self._session = session

    def next_seq(self) -> int:
        """A new change number."""
        return counters.bump(self._session, _SEQ)

    def last_seq(self) -> int:
        return counters.current(self._session, _SEQ)

    def add(self, entry: Entry) -> None:
        self._session.add(entry)

    def find(self, entry_id: str) -> Entry | None:
        return self._session.get(Entry, entry_id)

    def of(self, entry_id: str) -> Entry:
        """By id; NotFound for an unknown one."""
        if (found := self.find(entry_id)) is None:
            raise NotFound(f"no dataset {entry_id[:200]!r} is in this catalogue")
        return found

    def these(self, ids: Iterable[str]) -> dict[str, Entry]:
        """The entries that exist among `ids`."""
        found = self._session.scalars(select(Entry).where(Entry.id.in_(list(ids)))).all()
        return {entry.id: entry for entry in found}

    def texts(self, member_id: str, ids: Iterable[str], *, reader: int) -> dict[str, str]:
        """The raw texts of a member's entries that were listed by its last visit and read by this reader."""
        found = select(Entry.id, Entry.raw).where(
            Entry.id.in_(list(ids)),
            Entry.member_id == member_id,
            Entry.reader == reader,
            Entry.misses == 0,
            Entry.withdrawn_at.is_(None),
        )
        return {row.id: row.raw for row in self._session.execute(found)}

    def seen(self, member_id: str, ids: Sequence[str], now: float) -> int:
        """These entries of a member were listed again, unchanged; how many there are."""
        touched = self._session.execute(
            update(Entry)
            .where(Entry.id.in_(list(ids)), Entry.member_id == member_id, Entry.withdrawn_at.is_(None))
            .values(last_seen=now)
            .returning(Entry.id)
        )
        return len(touched.all()) if ids else 0

    def with_owner(self, ids: Sequence[str]) -> dict[str, tuple[Entry, Member, Source]]:
        """Entries, each with its member and what the crawler knows of it."""
        rows = self._session.execute(
            select(Entry, Member, Source)
            .join(Member, Member.id == Entry.member_id)
            .join(Source, Source.member_id == Entry.member_id)
            .where(Entry.id.in_(list(ids)))
        ).all()
        return {entry.id: (entry, member, source) for entry, member, source in rows}

    def changed_after(
        self, seq: int, entry_id: str, *, limit: int
    ) -> Sequence[tuple[Entry, Member | None, Source | None]]:
        """Entries in order of change after the position (`seq`, `entry_id`), with the owner where there still is one.

        Many entries may share one number; they were committed together, so a position among them is a safe one.
        """
        after = or_(Entry.seq > seq, and_(Entry.seq == seq, Entry.id > entry_id))
        found = _OWNED.where(after).order_by(Entry.seq, Entry.id).limit(limit)
        return [(entry, member, source) for entry, member, source in self._session.execute(found)]

    def page(self, *, after: str, limit: int) -> Sequence[tuple[Entry, Member, Source]]:
        """Entries of active members that are not withdrawn, in order of id, after the id `after`."""
        rows = self._session.execute(
            select(Entry, Member, Source)
            .join(Member, Member.id == Entry.member_id)
            .join(Source, Source.member_id == Entry.member_id)
            .where(Entry.id > after, Entry.withdrawn_at.is_(None), Member.status == "active")
            .order_by(Entry.id)
            .limit(limit)
        ).all()
        return [(entry, member, source) for entry, member, source in rows]

    def count_of(self, member_id: str) -> int:
        live = select(func.count()).select_from(Entry).where(Entry.member_id == member_id, Entry.withdrawn_at.is_(None))
        return self._session.scalar(live) or 0

    def touch_all(self, member_id: str) -> None:
        """Something about the member changed that every entry of it shows: all of them count as changed."""
        self._session.execute(update(Entry).where(Entry.member_id == member_id).values(seq=self.next_seq()))

    def seen_all(self, member_id: str, now: float) -> int:
        """The provider said that nothing changed: every entry that it listed last time is seen again."""
        touched = self._session.execute(
            update(Entry)
            .where(Entry.member_id == member_id, Entry.withdrawn_at.is_(None), Entry.misses == 0)
            .values(last_seen=now)
            .returning(Entry.id)
        )
        return len(touched.all())

    def unseen_since(self, member_id: str, since: float) -> Sequence[Entry]:
        """Live entries of a member that were last seen before `since`."""
        return self._session.scalars(
            select(Entry).where(Entry.member_id == member_id, Entry.withdrawn_at.is_(None), Entry.last_seen < since)
        ).all()

    def withdraw_all(self, member_id: str, *, now: float, why: str) -> None:
        """Make every live entry of a member a tombstone."""
        self._session.execute(
            update(Entry)
            .where(Entry.member_id == member_id, Entry.withdrawn_at.is_(None))
            .values(withdrawn_at=now, withdrawn_why=why, seq=self.next_seq())
        )

    def read_before(self, reader: int, *, limit: int) -> Sequence[Entry]:
        """Entries that an older version of the program read."""
        return self._session.scalars(select(Entry).where(Entry.reader != reader).limit(limit)).all()

    def forget_tombstones(self, before: float) -> None:
        self._session.execute(delete(Entry).where(Entry.withdrawn_at < before))
