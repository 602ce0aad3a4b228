"""Queries for members, for what the crawler knows of each, and for its visits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from catalogue.store import counters
from catalogue.store.tables import CrawlState, Member, VisitRecord
from connector.errors import Absent

_RUNS_KEPT = 20
_REVISION = "member"


class MemberQueries:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: Member | CrawlState | VisitRecord) -> None:
        self._session.add(row)
        self._session.flush()

    def find(self, key: str, *, lock: bool = False) -> Member | None:
        """By DID or short name; None if unknown. `lock`: for update."""
        found = select(Member).where(or_(Member.id == key, Member.name == key))
        return self._session.scalars(found.with_for_update() if lock else found).one_or_none()

    def is_current(self, member: Member) -> bool:
        """Whether the member is still active with this URL. Locked against changes until the transaction ends."""
        now = select(Member.status, Member.url, Member.joined_at).where(Member.id == member.id)
        found = self._session.execute(now.with_for_update(read=True)).one_or_none()
        return found is not None and tuple(found) == ("active", member.url, member.joined_at)

    def of(self, key: str, *, lock: bool = False) -> Member:
        """By DID or short name, as `find`. Raises Absent if unknown."""
        if (found := self.find(key, lock=lock)) is None:
            raise Absent(f"no member {key[:200]!r} is registered here; list them with `hanse catalogue member list`")
        return found

    def list_all(self) -> Sequence[Member]:
        return self._session.scalars(select(Member).order_by(Member.name)).all()

    def list_ids(self) -> set[str]:
        """The DIDs of all members."""
        return set(self._session.scalars(select(Member.id)))

    def remove(self, member: Member) -> None:
        for table in (CrawlState, VisitRecord):
            self._session.execute(delete(table).where(table.member_id == member.id))
        self._session.delete(member)

    def bump_revision(self) -> None:
        """Raise the register's revision after a change."""
        counters.bump(self._session, _REVISION)

    def read_revision(self) -> int:
        """The register's revision, which every change of a member raises."""
        return counters.current(self._session, _REVISION)

    def get_source(self, member_id: str, *, lock: bool = False) -> CrawlState | None:
        """The crawl state of a member. `lock`: for update."""
        return self._session.get(CrawlState, member_id, with_for_update=lock)

    def list_sources(self) -> Sequence[CrawlState]:
        return self._session.scalars(select(CrawlState)).all()

    def lock_sources(self) -> None:
        """Lock the crawl state of all members, in one order, before changing entries of several members."""
        self._session.execute(select(CrawlState.member_id).order_by(CrawlState.member_id).with_for_update())

    def forget_etags(self) -> None:
        """Clear all ETags, so that the next visits read everything: the members decide which ids are accepted."""
        self.lock_sources()
        self._session.execute(update(CrawlState).values(etag=""))

    def list_due(self, now: float, *, limit: int) -> Sequence[CrawlState]:
        """Connectors of active members that are due for a visit, longest due first.

        A last visit in the future means that a clock was wrong: such a connector is due too.
        """
        return self._session.scalars(
            select(CrawlState)
            .join(Member, Member.id == CrawlState.member_id)
            .where(or_(CrawlState.next_at <= now, CrawlState.last_try > now), Member.status == "active")
            .order_by(CrawlState.next_at)
            .limit(limit)
        ).all()

    def list_runs(self, member_id: str, *, limit: int = _RUNS_KEPT) -> Sequence[VisitRecord]:
        """Visits of one connector, newest first."""
        return self._session.scalars(
            select(VisitRecord).where(VisitRecord.member_id == member_id).order_by(VisitRecord.id.desc()).limit(limit)
        ).all()

    def forget_old_runs(self, member_id: str) -> None:
        """Keep the newest visits only."""
        kept = (
            select(VisitRecord.id)
            .where(VisitRecord.member_id == member_id)
            .order_by(VisitRecord.id.desc())
            .limit(_RUNS_KEPT)
        )
        self._session.execute(
            delete(VisitRecord).where(VisitRecord.member_id == member_id, VisitRecord.id.not_in(kept))
        )
