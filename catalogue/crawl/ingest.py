"""Stores the result of a visit: one page at a time, then the end of the visit. Runs in transactions.

Each dataset is checked by itself: an invalid dataset is skipped and named, the others are stored. An id in a member's
namespace belongs to that member, even if another member listed it before. Any other id belongs to the member that
listed it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from catalogue.crawl.entry import READER, hash_content, read_dataset, read_id, too_deep
from catalogue.crawl.namespaces import PREFIX, Namespaces
from catalogue.crawl.sanitize import clean
from catalogue.search.visibility import is_selective, reduce_to_audience
from catalogue.store import CatalogueTransaction
from catalogue.store.tables import MARKED_STALE, Member
from catalogue.store.tables import EntryRow as Row
from connector.errors import ConnectorError, Forbidden, Limited, MessageInvalid, WrongState

MISSES_MAX = 3  # complete visits in a row that do not list an entry, after which it counts as withdrawn
_SKIPPED_KEPT = 20
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class SkipReason:
    """Why a dataset is skipped. `foreign`: its id is another member's."""

    text: str
    foreign: bool

    @classmethod
    def of(cls, error: ConnectorError) -> SkipReason:
        return cls(clean(error.message, 500), isinstance(error, WrongState))  # not the error: it would hold the dataset


@dataclass(slots=True)
class Tally:
    """What a visit brought so far."""

    datasets: int = 0
    new: int = 0
    changed: int = 0
    missing: int = 0
    withdrawn: int = 0
    skipped: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    refused: dict[str, SkipReason] = field(default_factory=dict)  # of the page at hand: ids that were skipped, and why
    unfit: dict[str, SkipReason] = field(default_factory=dict)  # of the visit: those of them that are listed here

    def skip(self, dataset: str, error: ConnectorError) -> None:
        problem = SkipReason.of(error)
        self.skipped += 1
        self.refused[dataset] = problem
        if len(self.problems) < _SKIPPED_KEPT:
            self.problems.append({"dataset": clean(dataset, 200), "problem": problem.text})

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("datasets", "new", "changed", "missing", "withdrawn", "skipped")}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A dataset that may be kept, as its provider sent it; `own` where its id lies in the provider's namespace."""

    id: str
    raw: Mapping[str, Any]
    text: str
    own: bool


@dataclass(frozen=True, slots=True)
class ParsedDataset:
    """A candidate whose content had to be read, because it is new or its text has changed."""

    candidate: Candidate
    content: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class PageContent:
    """What is to be stored of one page: entries whose text is the same as before, and those that were read."""

    same: list[str]
    readings: list[ParsedDataset]


def sift(
    datasets: Iterable[object], member: Member, *, spaces: Namespaces, entry_bytes: int, tally: Tally
) -> list[Candidate]:
    """The datasets of a page that may be kept, each id once; the others are tallied. Pure but for the tally."""
    found: dict[str, Candidate] = {}
    for raw in datasets:
        label = str(raw.get("@id", raw.get("id", "?"))) if isinstance(raw, dict) else type(raw).__name__
        try:
            candidate = _candidate(raw, member, spaces, entry_bytes)
            found[candidate.id] = candidate
        except ConnectorError as error:
            tally.skip(label, error)
    return list(found.values())


def _candidate(raw: object, member: Member, spaces: Namespaces, entry_bytes: int) -> Candidate:
    if not isinstance(raw, dict):
        raise MessageInvalid(f"expected a dataset object, came {type(raw).__name__}")
    try:
        text = json.dumps(raw, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except RecursionError:
        raise too_deep() from None
    except UnicodeEncodeError:
        raise MessageInvalid(
            "expected whole characters, came half of one (a lone surrogate, as where an emoji is cut in two); its "
            "provider must send texts that end with a whole one"
        ) from None
    except ValueError:
        raise MessageInvalid("expected JSON's numbers, came NaN or Infinity; its provider must leave it out") from None
    if size > entry_bytes:
        raise Limited(f"the description has {size} bytes; at most {entry_bytes} are kept")
    dataset_id = read_id(raw)
    owners = spaces.owners(dataset_id)
    if owners is not None and member.id not in owners:
        raise WrongState(
            "the id lies in the namespace of another member or of the operator; "
            f"{member.name} has {PREFIX}{member.name}:, {member.id}: and {member.url}/"
        )
    return Candidate(dataset_id, raw, text, own=owners is not None)


def known_texts(tx: CatalogueTransaction, member: Member, candidates: list[Candidate]) -> dict[str, str]:
    """The texts of those that are listed now, by id, where this program read them."""
    return tx.entries.read_texts(member.id, (candidate.id for candidate in candidates), reader=READER)


def parse_candidates(
    candidates: list[Candidate], known: Mapping[str, str], member: Member, *, tally: Tally
) -> PageContent:
    """Read what is new or changed; what cannot be read is tallied. Pure but for the tally."""
    page = PageContent([], [])
    for candidate in candidates:
        if known.get(candidate.id) == candidate.text:
            page.same.append(candidate.id)
            continue
        try:
            content = read_dataset(candidate.raw, participant=member.id).to_json()
            page.readings.append(ParsedDataset(candidate, content, hash_content(content)))
        except ConnectorError as error:
            tally.skip(candidate.id, error)
    return page


def store_page(
    tx: CatalogueTransaction,
    member: Member,
    page: PageContent,
    *,
    seq: int,
    most: int,
    tally: Tally,
    since: float = 0.0,
) -> None:
    """Store a page of a visit that began at `since`, and the change number `seq`: what was withdrawn after that stays
    so. Limited when the member lists more than `most` datasets, Forbidden where it is one no longer, or has another
    address."""
    seen = max(tx.now, since)  # a clock that is set back meanwhile has seen it before the visit
    if not tx.members.is_current(member):
        raise Forbidden(
            f"{member.name} is suspended, has moved, or is a member no longer; nothing more of its catalogue is taken"
        )
    if tally.datasets + len(page.same) + len(page.readings) > most:
        raise Limited(f"the member lists more than {most} datasets; the rest is not taken")
    tx.members.get_source(member.id, lock=True)
    _mark_refused_stale(tx, member, tally)
    rows = tx.entries.get_many(reading.candidate.id for reading in page.readings)
    others = tx.members.list_ids() - {member.id}
    changed: list[Row] = []
    for reading in page.readings:
        row = rows.get(reading.candidate.id)
        if row is not None and row.member_id in others and not reading.candidate.own:
            taken = WrongState("another member listed this id first; ids of yours start with your own namespace")
            tally.skip(row.id, taken)
            continue
        if row is not None and row.withdrawn_at is not None and row.seq > seq:
            tally.skip(
                row.id, WrongState("it was withdrawn while it was read; the next visit says whether it is listed")
            )
            continue
        tally.datasets += 1
        row = row or Row(id=reading.candidate.id, first_seen=tx.now, digest="", misses=0)
        if _store(row, reading, member, tx.now, seen, tally):
            changed.append(row)
    seq = tx.entries.next_seq() if changed else 0  # one number for the page: it becomes visible as one
    tally.datasets += tx.entries.mark_seen(member.id, page.same, seen)
    for row in changed:
        row.seq = seq
        tx.entries.add(row)


def _mark_refused_stale(tx: CatalogueTransaction, member: Member, tally: Tally) -> None:
    """What is listed here and came in a form that is not taken is stale, and stays: its provider did list it."""
    rows = tx.entries.get_many(filter(_is_id, tally.refused)).values()
    mine = [row for row in rows if row.member_id == member.id and row.withdrawn_at is None]
    tally.unfit |= {row.id: tally.refused[row.id] for row in mine}
    tally.refused.clear()
    doubted = [row for row in mine if row.misses != MARKED_STALE and not tally.unfit[row.id].foreign]
    seq = tx.entries.next_seq() if doubted else 0
    for row in doubted:
        row.misses, row.seq = MARKED_STALE, seq


def _is_id(text: str) -> bool:
    try:
        return bool(read_id({"@id": text}))
    except MessageInvalid:
        return False


def _store(row: Row, reading: ParsedDataset, member: Member, now: float, seen: float, tally: Tally) -> bool:
    """Copy a parsed dataset into its row. Returns whether viewers would see a difference."""
    differs = row.misses != 0 or row.withdrawn_at is not None or row.member_id != member.id
    if row.digest != reading.digest:
        tally.new += not row.digest
        tally.changed += bool(row.digest)
        row.digest, row.modified_at = reading.digest, now
        differs = True
    if row.member_id != member.id:
        row.first_seen = now
    row.content, row.raw, row.reader = reading.content, reading.candidate.text, READER
    row.selective = is_selective(reading.content)
    row.member_id, row.last_seen, row.misses = member.id, seen, 0
    row.withdrawn_at, row.withdrawn_why = None, ""
    return differs


def count_misses(tx: CatalogueTransaction, member_id: str, *, since: float, tally: Tally) -> None:
    """After a complete visit that began at `since`: entries that were not in it are stale, the third time withdrawn.

    So are those whose ids are another's by now. What is unfit for another reason is stale and not missing.
    """
    unseen = ((row, tally.unfit.get(row.id)) for row in tx.entries.list_unseen_since(member_id, since, now=tx.now))
    missed = [(row, unfit) for row, unfit in unseen if unfit is None or unfit.foreign]
    seq = tx.entries.next_seq() if missed else 0
    for row, unfit in missed:
        row.misses = max(row.misses, 0) + 1
        tally.missing += 1
        if row.misses >= MISSES_MAX:
            _withdraw(row, _unfit(unfit) or "its provider no longer lists it", now=tx.now, tally=tally)
        row.seq = seq


def withdraw_expired(tx: CatalogueTransaction, member_id: str, *, since: float, seconds: float, tally: Tally) -> None:
    """After a visit that began at `since`: what neither it nor another one has listed for so long, because they broke
    off or it is unfit, is withdrawn."""
    before = min(since, tx.now - seconds)  # the clock may have been put forward meanwhile
    rows = [row for row in tx.entries.list_unseen_since(member_id, before, now=tx.now) if row.last_seen < tx.now]
    seq = tx.entries.next_seq() if rows else 0
    for row in rows:
        why = _unfit(tally.unfit.get(row.id)) or f"no visit of its provider has listed it for {seconds / _DAY:g} days"
        _withdraw(row, why, now=tx.now, tally=tally)
        row.seq = seq


def withdraw_excess(tx: CatalogueTransaction, member_id: str, *, since: float, most: int, tally: Tally) -> None:
    """After a visit that began at `since`: the `most` entries that were seen last stay, and as many tombstones."""
    why = f"its provider lists others, and at most {most} of its datasets are kept"
    tally.withdrawn += tx.entries.withdraw_beyond(member_id, most, now=tx.now, why=why)
    tx.entries.forget_tombstones_beyond(member_id, most, before=since)


def _withdraw(row: Row, why: str, *, now: float, tally: Tally) -> None:
    tally.withdrawn += 1
    row.withdrawn_at, row.withdrawn_why = now, why


def _unfit(problem: SkipReason | None) -> str:
    return f"its provider lists it in a form that is not taken: {problem.text}" if problem else ""


def strip_tombstones(tx: CatalogueTransaction, *, limit: int = 2_000) -> int:
    """Keep of tombstones what the answer at their address needs. How many had more."""
    rows = tx.entries.list_unstripped_tombstones(limit=limit)
    for row in rows:
        row.raw, row.content = "", reduce_to_audience(row.content)
    return len(rows)


def withdraw(tx: CatalogueTransaction, member_id: str, ids: Iterable[str]) -> int:
    """The member itself takes back datasets: they leave the search at once. How many there were."""
    source = tx.members.get_source(member_id, lock=True)  # a visit that ends now ends before, or sees what is done here
    mine = [
        row for row in tx.entries.get_many(ids).values() if row.member_id == member_id and row.withdrawn_at is None
    ]  # fmt: skip
    seq = tx.entries.next_seq() if mine else 0
    for row in mine:
        row.withdrawn_at, row.withdrawn_why, row.seq = tx.now, "its provider withdrew it", seq
    if mine and source is not None:
        source.etag = ""  # where its catalogue lists one still, "unchanged" would not say so
    return len(mine)


def reread_outdated(tx: CatalogueTransaction, *, limit: int = 500) -> int:
    """Read entries anew that an older version of the program read. How many there were."""
    rows = tx.entries.list_outdated(READER, limit=limit)
    if rows:  # what is taken of a catalogue, and whose it is, may be another since
        tx.members.forget_etags()
    seq = tx.entries.next_seq() if rows else 0
    for row in rows:
        row.reader = READER
        try:
            entry = read_dataset(json.loads(row.raw), participant=row.member_id)
        except (ConnectorError, RecursionError):  # the latter of the text itself
            continue  # fit for the older reading only: kept as it was read then
        row.content = entry.to_json()
        row.selective = is_selective(row.content)
        row.digest, row.seq = hash_content(row.content), seq
    return len(rows)
