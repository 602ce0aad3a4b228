"""Compares two audit logs: what one records as sent with what the other records as received.

    found = match("ours.zip", "theirs.zip")        # in either order; each may be a reader of the other
    found.reads                                    # one for each read, with a verdict
    found.contradictions

It does not verify the files: do that first (`hanse.audit.verify`). It compares:

- a receipt (`ReadTaken`) with the owner's `ReadEnded` of that read: rows, and with an end record also bytes, outcome
  and digest: the digest that the reader computed, and the one in the end record. Of a read that was broken off at
  least as many rows were sent as received; after a restart of the owner its log has the least that was sent;
- what a federated query received of each part (`QueryCoordinated`) with the rows and the digest of the owner's record
  of it.

A verdict contradicts (`CONTRADICT`) if no honest owner could have such a log. Clocks differ a little, and an end is
noticed late: a missing record is significant only if the file continues for a while after it. Pushed data is left out.
Needs the standard library alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import ZipFile

AGREE, DIFFER, NO_RECORD, NO_RECEIPT, UNTOLD = "agree", "differ", "no record", "no receipt", "not covered"
CUT = "cut off"  # by the end of the owner's process: its log has fewer rows than were received
CONTRADICT = (DIFFER, NO_RECORD)
UNPROVEN = (CUT, NO_RECEIPT)  # contradicts nothing, but a dishonest owner's log would look the same
VERDICTS = (DIFFER, NO_RECORD, CUT, NO_RECEIPT, UNTOLD, AGREE)  # worst first
# Query, part (f0; with several owners f0.north, f0.north.1, f0.1) and attempt, as coordinators name reads, and the
# owner's suffix for ids that others choose: longer than any attempt's number, because it may be all digits.
_PART_ID = re.compile(r"([0-9a-f]{16})\.([A-Za-z0-9_.-]+)\.([0-9]{1,3})(?:\.[0-9a-f]{4,})?")
_INTERRUPTED = "interrupted"
_ATTEMPTS = 2  # of a coordinator at most, for each part
_APART = 300.0  # seconds: clock difference, a receipt sent again, an end noticed after its process (a minute)
_LATE = 3_900.0  # seconds: a query's record follows the reads of its parts within an hour, most receipts too
_TERMS = {"kind", "agreement", "dataset", "named", "actor", "since", "until"}  # of a filter, which this module supports

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """One read, by the logs of both sides. `came`: rows received, `left`: rows sent; None if that log does not state
    them."""

    verdict: str
    reader: str  # the origins of the two logs
    owner: str
    dataset: str
    agreement: str
    read: str
    time: str
    came: int | None
    left: int | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """The result of comparing two logs: reads, contradictions first."""

    reads: tuple[Read, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # by verdict

    @property
    def contradictions(self) -> int:
        return sum(self.counts.get(verdict, 0) for verdict in CONTRADICT)


@dataclass(slots=True)
class _Log:
    """The needed records of one log. `last`: the time of its newest record."""

    origin: str
    terms: Mapping[str, Any]
    receipts: list[Body] = field(default_factory=list)
    questions: dict[str, list[Body]] = field(default_factory=lambda: defaultdict(list))  # one record for each agreement
    ended: list[Body] = field(default_factory=list)
    started: set[str] = field(default_factory=set)  # ids of reads
    agreements: set[str] = field(default_factory=set)
    parties: dict[str, str] = field(default_factory=dict)  # counterparty by agreement
    last: str = ""

    def take(self, body: Body) -> None:
        """Add one record."""
        kind = body["kind"]
        self.last = max(self.last, str(body.get("time", "")))
        self.agreements.update(filter(None, str(body.get("agreement", "")).split(",")))
        if kind in ("ReadTaken", "AgreementConcluded") and (party := _detail(body).get("counterparty")):
            self.parties[str(body.get("agreement", ""))] = str(party)
        if kind == "ReadTaken":
            self.receipts.append(body)
        elif kind == "QueryCoordinated":
            self.questions[_read_id(body)].append(body)
        elif kind == "ReadEnded":
            self.ended.append(body)
        elif kind == "ReadStarted":
            self.started.add(_read_id(body))

    def lacks(self, kind: str, body: Body, *, actor: str = "") -> str:
        """Return why this file may lack the record of a kind that belongs to the other side's `body`; empty if it would
        have it. `actor`: that record's, if known."""
        if unknown := sorted(set(self.terms) - _TERMS):
            return f"the other file is an extract by {', '.join(unknown)}"
        dataset = "" if kind == "QueryCoordinated" else body.get("dataset")  # it names datasets differently
        about = {"kind": kind, "actor": actor, "agreement": body.get("agreement"), "dataset": dataset}
        for name, value in about.items():
            if self.terms.get(name, value) != value:
                return f"the other file is an extract of another {name}"
        at = _seconds(body)
        before, after = (_age(body) + _APART, _APART) if kind == "ReadEnded" else (_APART, _LATE)
        if at - before < self.terms.get("since", -math.inf) or at + after >= self.terms.get("until", math.inf):
            return "the other file is an extract of another time, or of little more"
        ends = datetime.fromisoformat(self.last).timestamp() if self.last else -math.inf
        later = _APART if kind == "ReadEnded" else 0.0  # a missing receipt contradicts nothing
        return "" if at + later <= ends else "the other file ends before that, or little later"


def match(one: str | PathLike[str], other: str | PathLike[str]) -> Match:
    """Compare two evidence files that are verified (`hanse.audit.verify`)."""
    a, b = _read(Path(one)), _read(Path(other))
    reads = [*_compare_logs(a, b), *_compare_logs(b, a)]
    reads.sort(key=lambda read: (VERDICTS.index(read.verdict), read.time))
    counts = Counter(read.verdict for read in reads)
    return Match(tuple(reads), {verdict: counts[verdict] for verdict in VERDICTS})


def _read(path: Path) -> _Log:
    with ZipFile(path) as container:
        manifest = json.loads(container.read("manifest.json"))
        found = _Log(str(manifest["origin"]), manifest.get("filter") or {})
        with container.open("events.jsonl") as lines:
            for line in lines:
                found.take(json.loads(line)["body"])
    return found


def _compare_logs(reader: _Log, owner: _Log) -> Iterator[Read]:
    """Yield the reads at that owner by the reader's log, and those of that reader by the owner's."""
    owners = {party for agreement, party in reader.parties.items() if agreement in owner.agreements}
    receipts = {_detail(one).get("receipt"): one for one in reader.receipts if _party(one) in owners}  # once each
    us = {str(one.get("on_behalf_of", "")) for one in receipts.values()}
    records = [one for one in owner.ended if one.get("actor") in us or one.get("agreement") in reader.agreements]
    told, recorded = (
        _group_by_read(receipts.values()),
        {read: _drop_interrupted(ends) for read, ends in _group_by_read(records).items()},
    )
    asked: dict[tuple[str, str], list[Body]] = defaultdict(list)
    for read, ends in told.items():
        yield _judge_read(reader, owner, ends, recorded.get(read, []) if read[1] else [])
    for read, ends in recorded.items():
        part = _PART_ID.fullmatch(read[1])
        if part is not None and part[1] in reader.questions:
            asked[part[1], part[2]] += ends
        elif read not in told or not read[1]:
            yield from (_read_without_receipt(reader, owner, end) for end in ends if _rows(end))
    yield from _compare_parts(reader, owner, asked, owners)


def _group_by_read(bodies: Iterable[Body]) -> dict[tuple[str, str], list[Body]]:
    """Group by agreement and read id."""
    found: dict[tuple[str, str], list[Body]] = defaultdict(list)
    for body in bodies:
        found[str(body.get("agreement", "")), _read_id(body)].append(body)
    return found


def _drop_interrupted(ends: list[Body]) -> list[Body]:
    """Drop a first end that a later record of the same read replaces: that has all rows that were sent."""
    again = any(_detail(one).get("after") == _INTERRUPTED for one in ends)
    return [one for one in ends if one.get("code") != _INTERRUPTED] if again else ends


def _judge_read(reader: _Log, owner: _Log, receipts: Sequence[Body], records: Sequence[Body]) -> Read:
    """Compare the receipts of one read with the owner's records of it."""
    came, newest = sum(map(_rows, receipts)), max(receipts, key=lambda one: str(one["time"]))
    if records:
        verdict, came, why = _compare_read(receipts, records)
        return _make_read(verdict, reader, owner, newest, came, sum(map(_rows, records)), why)
    if why := owner.lacks("ReadEnded", newest, actor=str(newest.get("on_behalf_of", ""))):
        return _make_read(UNTOLD, reader, owner, newest, came, None, why)
    if (name := _read_id(newest)) in owner.started:
        return _make_read(DIFFER, reader, owner, newest, came, None, "their log has its start, but no end")
    why = "their log has no such read" if name else "its receipt has no read id"
    return _make_read(NO_RECORD, reader, owner, newest, came, None, why)


def _compare_read(receipts: Sequence[Body], records: Sequence[Body]) -> tuple[str, int, str]:
    """Return the verdict of a read that both sides have, the rows received, and the reason. Any token holder can report
    any read: if several did, and one of them may be right, the owner's log is not contradicted."""
    verdict, came, why = _compare_records(receipts, records)
    tellers: dict[str, list[Body]] = defaultdict(list)
    for one in receipts:
        tellers[str(one.get("actor", ""))].append(one)
    if verdict != DIFFER or len(tellers) == 1:
        return verdict, came, why
    found = {actor: _compare_records(theirs, records) for actor, theirs in tellers.items()}
    sources = f"reported by {' and '.join(sorted(found))}"
    for actor, (verdict, came, _) in found.items():
        if verdict != DIFFER:
            return UNTOLD, came, f"{sources}: the report of {actor} agrees with their log"
    _, came, why = next(iter(found.values()))
    return DIFFER, came, f"{sources}: {why}"


def _compare_records(receipts: Sequence[Body], records: Sequence[Body]) -> tuple[str, int, str]:
    came, left = sum(map(_rows, receipts)), sum(map(_rows, records))
    if why := _difference(receipts, records):
        return DIFFER, came, why
    return (CUT, came, _cut_reason(left, came)) if left < came else (AGREE, came, "")


def _cut_reason(left: int, came: int) -> str:
    return f"their log has it as interrupted, with {left:,} rows; {came:,} were received"


def _difference(receipts: Sequence[Body], records: Sequence[Body]) -> str:
    """Return how an owner's records of a read and its receipts contradict each other; empty if they do not."""
    came, left = sum(map(_rows, receipts)), sum(map(_rows, records))
    whole = all("told" in _detail(one) for one in receipts)
    if len(receipts) > len(records):
        return f"{len(receipts)} reads have this id, their log has {len(records)}"
    if any(one.get("code") == _INTERRUPTED for one in records):  # at least that many rows were sent
        return f"at least {left:,} rows were sent, {came:,} received" if whole and left > came else ""
    if came > left or (whole and came != left):
        return f"{left:,} rows were sent, {came:,} received"
    if not whole or len(receipts) != 1 or len(records) != 1:
        return ""
    told, detail = _detail(receipts[0])["told"], _detail(records[0])
    if why := _digest_difference(_detail(receipts[0]), detail):
        return why
    for what in ("bytes", "digest"):
        if what in told and what in detail and told[what] != detail[what]:
            return f"the {what} in the stream's end record differs from their log"
    if (told.get("status") == "complete") != (records[0].get("outcome", "ok") == "ok"):
        return f"reported as {told.get('status') or 'nothing'}, recorded as {records[0].get('outcome', 'ok')}"
    return ""


def _digest_difference(came: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    """Return how the computed digest differs from the owner's record; empty if equal or not computed."""
    if "digest" not in came or "digest" not in left or came["digest"] == left["digest"]:
        return ""
    return "the digest of the received bytes differs from their log: bytes were changed on the way, or one log is wrong"


def _compare_parts(
    reader: _Log, owner: _Log, asked: dict[tuple[str, str], list[Body]], owners: Collection[str]
) -> Iterator[Read]:
    """Yield what federated queries received of this owner. `asked`: its records of them, by query and part."""
    for name, records in reader.questions.items():
        for fragment, (question, part) in _group_by_part(records).items():
            if "agreements" not in part:
                for end in asked.pop((name, fragment), []):
                    why = "the query's record is of an older connector, and names no agreements"
                    yield _make_read(UNTOLD, reader, owner, end, None, _rows(end), why)
            elif any(reader.parties.get(one) in owners for one in part["agreements"]):
                said = {**question, "agreement": part["agreements"][0], "dataset": ""}
                yield from _compare_part(reader, owner, said, part, asked.pop((name, fragment), []))
    for ends in asked.values():  # of a query that failed, or continued without it
        if left := sum(map(_rows, ends)):
            why = reader.lacks("QueryCoordinated", ends[0])  # the record under its agreement
            verdict, why = (UNTOLD, why) if why else (NO_RECEIPT, "the query's own record does not mention this part")
            yield _make_read(verdict, reader, owner, ends[0], None, left, why)


def _group_by_part(records: Sequence[Body]) -> dict[str, tuple[Body, Mapping[str, Any]]]:
    """Return the parts of a query by their fragments, each with the record that has most of it. The first record has
    all parts; the others have those under their own agreement, which is what an extract contains. A record that was too
    long for its log has none."""
    found: dict[str, tuple[Body, Mapping[str, Any]]] = {}
    for one in records:
        told = _detail(one).get("owners", [])
        for part in told if isinstance(told, list) else ():
            _, known = found.get(name := str(part.get("fragment")), (one, {}))
            if name not in found or len(part.get("agreements", ())) > len(known.get("agreements", ())):
                found[name] = one, part
    return found


def _compare_part(
    reader: _Log, owner: _Log, question: Body, part: Mapping[str, Any], records: Sequence[Body]
) -> Iterator[Read]:
    """Compare one part. Only the last of several attempts was merged, and its rows counted; none if the query failed
    before: then `part` has no rows."""
    came = int(part["rows"] or 0) if "rows" in part else None
    if not records:
        if came != 0:
            why = owner.lacks("ReadEnded", question)
            verdict, why = (UNTOLD, why) if why else (NO_RECORD, "their log has no such part of a query")
            yield _make_read(verdict, reader, owner, question, came, None, why)
        return
    had = None if came is None else _counted_attempt(records, came, part)
    if had is not None and came is not None:
        left = _rows(had)
        differ = f"{left:,} rows were sent, {came:,} received"
        verdict, why = (AGREE, "") if left == came else (DIFFER, differ)
        if verdict == AGREE and (damaged := _digest_difference(part, _detail(had))):
            verdict, why = DIFFER, damaged
        if _is_interrupted(had, came):
            verdict, why = CUT, _cut_reason(left, came)
        yield _make_read(verdict, reader, owner, had, came, left, why)
    uncounted = "another attempt, which was not counted" if had else "the query failed before it was counted"
    for one in records:
        if one is not had and _attempt(one) > _ATTEMPTS:
            why = f"their log has an attempt {_attempt(one)}, of at most {_ATTEMPTS}"
            yield _make_read(DIFFER, reader, owner, one, None, _rows(one), why)
        elif one is not had and _rows(one):
            yield _make_read(NO_RECEIPT, reader, owner, one, None, _rows(one), uncounted)


def _counted_attempt(records: Sequence[Body], came: int, part: Mapping[str, Any]) -> Body:
    """Return the attempt that the reader most likely counted."""

    def likely(one: Body) -> tuple[bool, bool, bool, bool, int]:
        same = not _digest_difference(part, _detail(one))  # of two complete attempts
        return _attempt(one) <= _ATTEMPTS, _rows(one) == came, same, _is_interrupted(one, came), _rows(one)

    return max(records, key=likely)


def _is_interrupted(record: Body, came: int) -> bool:
    """Return whether an owner's process ended during the read, so that its log has the least that was sent."""
    return record.get("code") == _INTERRUPTED and _rows(record) < came


def _attempt(record: Body) -> int:
    found = _PART_ID.fullmatch(_read_id(record))
    return int(found[3]) if found is not None else 1


def _read_without_receipt(reader: _Log, owner: _Log, record: Body) -> Read:
    """Return an owner's record of a read that the reader's log lacks: many read without the SDK."""
    why = reader.lacks("QueryCoordinated" if _PART_ID.fullmatch(_read_id(record)) else "ReadTaken", record)
    verdict, why = (
        (UNTOLD, why) if why else (NO_RECEIPT, "read without the SDK, or the reader ended before it reported")
    )
    return _make_read(verdict, reader, owner, record, None, _rows(record), why)


def _make_read(
    verdict: str, reader: _Log, owner: _Log, body: Body, came: int | None, left: int | None, why: str
) -> Read:
    about = {key: str(body.get(key, "")) for key in ("dataset", "agreement", "time")}
    return Read(verdict, reader.origin, owner.origin, **about, read=_read_id(body), came=came, left=left, why=why)


def _read_id(body: Body) -> str:
    """Return the id of a read or of a query."""
    return str(body.get("process", ""))


def _rows(body: Body) -> int:
    return int(_detail(body).get("rows") or 0)


def _seconds(body: Body) -> float:
    """Return the time of a record, in seconds."""
    return datetime.fromisoformat(body["time"]).timestamp()


def _age(body: Body) -> float:
    """Return how long before a reader's record the owner may have recorded the end: a small stream is sent at once.
    Infinite if a receipt does not state it."""
    return float(_detail(body).get("seconds", math.inf)) if body["kind"] == "ReadTaken" else _LATE


def _party(body: Body) -> str:
    return str(_detail(body).get("counterparty", ""))


def _detail(body: Body) -> Mapping[str, Any]:
    found = body.get("detail")
    return found if isinstance(found, dict) else {}
