"""What the pages say of members: a line of the list, and for the operator health and history of one. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catalogue.api.access import Viewer
from catalogue.store import CatalogueTransaction
from catalogue.store.tables import CrawlState, Issuance, IssuedCredential, Member, VisitRecord

WHY = {"schedule": "on schedule", "operator": "by the operator", "member": "asked for by the member"}
OUTCOMES = {"complete": "Complete", "unchanged": "Unchanged", "partial": "In part", "failed": "Failed"}
_CREDENTIALS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class MemberLine:
    """One member on the members page; `datasets` counts what this viewer may see.

    For the operator: `credentials` counts its credentials by state, `undelivered` says why one is not delivered yet.
    """

    member: Member
    source: CrawlState | None
    datasets: int
    run: VisitRecord | None
    credentials: Mapping[str, int]
    undelivered: str

    @property
    def state(self) -> str:
        if self.member.status != "active":
            return self.member.status
        if self.source is None or (self.source.state == "new" and not self.source.failures):
            return "new"
        return "stale" if self.source.state == "new" else self.source.state


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHealth:
    """One member for the operator, with its last visits, credentials and their deliveries, each newest first."""

    line: MemberLine
    runs: Sequence[VisitRecord]
    credentials: Sequence[IssuedCredential]
    deliveries: Sequence[Issuance]

    @property
    def last_failure(self) -> VisitRecord | None:
        """The last visit that had a problem, among those that are kept."""
        return next((run for run in self.runs if run.problem), None)


def list_member_lines(tx: CatalogueTransaction, *, viewer: Viewer, counts: dict[str, int]) -> list[MemberLine]:
    """Every member, with what the viewer may see of it; suspended ones are shown to the operator only."""
    sources = {source.member_id: source for source in tx.members.list_sources()}
    issued = tx.issuances.count_by_state(tx.now) if viewer.is_operator else {}
    problems = tx.issuances.list_problems() if viewer.is_operator else {}
    return [
        MemberLine(
            member,
            sources.get(member.id),
            counts.get(member.name, 0),
            next(iter(tx.members.list_runs(member.id, limit=1)), None) if viewer.is_operator else None,
            issued.get(member.id, {}),
            problems.get(member.id, ""),
        )
        for member in tx.members.list_all()
        if viewer.is_operator or member.status == "active"
    ]


def read_member_health(tx: CatalogueTransaction, *, key: str) -> MemberHealth:
    """Health and history of one member, by short name or DID. Raises Absent if it is unknown."""
    member = tx.members.of(key)
    runs = tx.members.list_runs(member.id)
    return MemberHealth(
        line=MemberLine(
            member,
            tx.members.get_source(member.id),
            tx.entries.count_of(member.id),
            runs[0] if runs else None,
            tx.issuances.count_by_state(tx.now).get(member.id, {}),
            tx.issuances.list_problems().get(member.id, ""),
        ),
        runs=runs,
        credentials=tx.issuances.list_credentials(member.id)[:_CREDENTIALS_SHOWN],
        deliveries=tx.issuances.list_of(member.id)[:_CREDENTIALS_SHOWN],
    )
