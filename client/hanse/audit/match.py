"""Two logs beside each other: what one says that left against what the other says that came.

    found = match("ours.zip", "theirs.zip")        # in either order; each may be a reader of the other
    found.reads                                    # one for each read, with a verdict
    found.contradictions

Both files are taken as they are: check them first (`hanse.audit.verify`). What is compared:
- a receipt (`ReadTaken`) with the owner's `ReadEnded` of that read: rows, and where an end record came also bytes,
  outcome and digest: the one that the reader computed over what came, and the one that it was told. Of a read that was
  broken off at least as many rows have left as have come, and of one that the owner's restart has cut off its log has
  the least that left;
- what a question over several owners had of each part (`QueryCoordinated`) with the rows and the digest of the owner's
  record of it.

It contradicts (`CONTRADICT`) where no honest owner could have such a log. Two clocks are a little apart, and an end is
noticed late: so what is missing says nothing unless the file goes on for a while.
What was pushed is left out. Needs the standard library alone.
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
CUT = "cut off"  # by the end of the owner's process: his log has less than came
CONTRADICT = (DIFFER, NO_RECORD)
UNPROVEN = (CUT, NO_RECEIPT)  # contradicts nothing, and a dishonest owner would have it like this
VERDICTS = (DIFFER, NO_RECORD, CUT, NO_RECEIPT, UNTOLD, AGREE)  # worst first
# Question, part (as f0, or of several owners f0.north, f0.north.1, f0.1) and attempt, as coordinators name reads, and
# what an owner adds to a name that is chosen by others: longer than any attempt's number, as it may have digits alone.
_PART = re.compile(r"([0-9a-f]{16})\.([A-Za-z0-9_.-]+)\.([0-9]{1,3})(?:\.[0-9a-f]{4,})?")
_INTERRUPTED = "interrupted"
_ATTEMPTS = 2  # that a coordinator makes at most, for each part
_APART = 300.0  # seconds: two clocks, a receipt that is told again, an end that is noticed after its process (a minute)
_LATE = 3_900.0  # a question's record comes up to an hour after the reads of its parts, a receipt mostly as soon
_TERMS = {"kind", "agreement", "dataset", "named", "actor", "since", "until"}  # of a filter, which are understood here

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """One read, by the logs of both sides. `came` and `left`: rows; None where that side says nothing."""

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
    """What two logs say of each other: reads, those that contradict first."""

    reads: tuple[Read, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # by verdict

    @property
    def contradictions(self) -> int:
        return sum(self.counts.get(verdict, 0) for verdict in CONTRADICT)


@dataclass(slots=True)
class _Log:
    """What of one log is needed. `last`: the time of its newest record."""

    origin: str
    terms: Mapping[str, Any]
    receipts: list[Body] = field(default_factory=list)
    questions: dict[str, list[Body]] = field(default_factory=lambda: defaultdict(list))  # a record for each agreement
    ended: list[Body] = field(default_factory=list)
    started: set[str] = field(default_factory=set)  # ids of reads
    agreements: set[str] = field(default_factory=set)
    parties: dict[str, str] = field(default_factory=dict)  # of our agreements, with whom they are
    last: str = ""

    def take(self, body: Body) -> None:
        """One record."""
        kind = body["kind"]
        self.last = max(self.last, str(body.get("time", "")))
        self.agreements.update(filter(None, str(body.get("agreement", "")).split(",")))
        if kind in ("ReadTaken", "AgreementConcluded") and (party := _detail(body).get("counterparty")):
            self.parties[str(body.get("agreement", ""))] = str(party)
        if kind == "ReadTaken":
            self.receipts.append(body)
        elif kind == "QueryCoordinated":
            self.questions[_name(body)].append(body)
        elif kind == "ReadEnded":
            self.ended.append(body)
        elif kind == "ReadStarted":
            self.started.add(_name(body))

    def lacks(self, kind: str, body: Body, *, actor: str = "") -> str:
        """Why this file may not have the record of a kind that goes with the other side's `body`; empty where it would
        have it. `actor`: that record's; empty where it is not known."""
        if unknown := sorted(set(self.terms) - _TERMS):
            return f"the other file is an extract by {', '.join(unknown)}"
        dataset = "" if kind == "QueryCoordinated" else body.get("dataset")  # which names it in another way
        about = {"kind": kind, "actor": actor, "agreement": body.get("agreement"), "dataset": dataset}
        for name, value in about.items():
            if self.terms.get(name, value) != value:
                return f"the other file is an extract of another {name}"
        at = _seconds(body)
        before, after = (_age(body) + _APART, _APART) if kind == "ReadEnded" else (_APART, _LATE)
        if at - before < self.terms.get("since", -math.inf) or at + after >= self.terms.get("until", math.inf):
            return "the other file is an extract of another time, or of little more"
        ends = datetime.fromisoformat(self.last).timestamp() if self.last else -math.inf
        later = _APART if kind == "ReadEnded" else 0.0  # a receipt that is missing contradicts nothing
        return "" if at + later <= ends else "the other file ends before that, or little later"


def match(one: str | PathLike[str], other: str | PathLike[str]) -> Match:
    """Compare two evidence files, which must hold (`hanse.audit.verify`)."""
    a, b = _read(Path(one)), _read(Path(other))
    reads = [*_compared(a, b), *_compared(b, a)]
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


def _compared(reader: _Log, owner: _Log) -> Iterator[Read]:
    """What the reader's log says of reads at that owner, and the owner's of that reader's."""
    owners = {party for agreement, party in reader.parties.items() if agreement in owner.agreements}
    receipts = {_detail(one).get("receipt"): one for one in reader.receipts if _party(one) in owners}  # once each
    us = {str(one.get("on_behalf_of", "")) for one in receipts.values()}
    records = [one for one in owner.ended if one.get("actor") in us or one.get("agreement") in reader.agreements]
    told, recorded = _by_read(receipts.values()), {read: _last(ends) for read, ends in _by_read(records).items()}
    asked: dict[tuple[str, str], list[Body]] = defaultdict(list)
    for read, ends in told.items():
        yield _judged(reader, owner, ends, recorded.get(read, []) if read[1] else [])
    for read, ends in recorded.items():
        part = _PART.fullmatch(read[1])
        if part is not None and part[1] in reader.questions:
            asked[part[1], part[2]] += ends
        elif read not in told or not read[1]:
            yield from (_without_receipt(reader, owner, end) for end in ends if _rows(end))
    yield from _parts(reader, owner, asked, owners)


def _by_read(bodies: Iterable[Body]) -> dict[tuple[str, str], list[Body]]:
    """By agreement and id of the read."""
    found: dict[tuple[str, str], list[Body]] = defaultdict(list)
    for body in bodies:
        found[str(body.get("agreement", "")), _name(body)].append(body)
    return found


def _last(ends: list[Body]) -> list[Body]:
    """Without a first end that a later one of the same read takes the place of: that has all that left."""
    again = any(_detail(one).get("after") == _INTERRUPTED for one in ends)
    return [one for one in ends if one.get("code") != _INTERRUPTED] if again else ends


def _judged(reader: _Log, owner: _Log, receipts: Sequence[Body], records: Sequence[Body]) -> Read:
    """The receipts of one read beside the owner's records of it."""
    came, newest = sum(map(_rows, receipts)), max(receipts, key=lambda one: str(one["time"]))
    if records:
        verdict, came, why = _beside(receipts, records)
        return _told(verdict, reader, owner, newest, came, sum(map(_rows, records)), why)
    if why := owner.lacks("ReadEnded", newest, actor=str(newest.get("on_behalf_of", ""))):
        return _told(UNTOLD, reader, owner, newest, came, None, why)
    if (name := _name(newest)) in owner.started:
        return _told(DIFFER, reader, owner, newest, came, None, "their log has its start and no end")
    why = "their log has no such read" if name else "they told no id of it"
    return _told(NO_RECORD, reader, owner, newest, came, None, why)


def _beside(receipts: Sequence[Body], records: Sequence[Body]) -> tuple[str, int, str]:
    """The verdict of a read that both sides have, the rows that came, and why. Whoever has a token may tell of
    anybody's read: where several have, one of whom may be right, that says nothing of the owner."""
    verdict, came, why = _of_one(receipts, records)
    tellers: dict[str, list[Body]] = defaultdict(list)
    for one in receipts:
        tellers[str(one.get("actor", ""))].append(one)
    if verdict != DIFFER or len(tellers) == 1:
        return verdict, came, why
    found = {actor: _of_one(theirs, records) for actor, theirs in tellers.items()}
    said = f"told by {' and '.join(sorted(found))}"
    for actor, (verdict, came, _) in found.items():
        if verdict != DIFFER:
            return UNTOLD, came, f"{said}: what {actor} told goes with their log"
    _, came, why = next(iter(found.values()))
    return DIFFER, came, f"{said}: {why}"


def _of_one(receipts: Sequence[Body], records: Sequence[Body]) -> tuple[str, int, str]:
    came, left = sum(map(_rows, receipts)), sum(map(_rows, records))
    if why := _difference(receipts, records):
        return DIFFER, came, why
    return (CUT, came, _cut(left, came)) if left < came else (AGREE, came, "")


def _cut(left: int, came: int) -> str:
    return f"their log says that it was interrupted, and of {left:,} rows; {came:,} came"


def _difference(receipts: Sequence[Body], records: Sequence[Body]) -> str:
    """What an owner's records of a read and the receipts of it say that cannot both be; empty where both can."""
    came, left = sum(map(_rows, receipts)), sum(map(_rows, records))
    whole = all("told" in _detail(one) for one in receipts)
    if len(receipts) > len(records):
        return f"{len(receipts)} reads were had by this id, their log has {len(records)}"
    if any(one.get("code") == _INTERRUPTED for one in records):  # the least that left
        return f"at least {left:,} rows left, {came:,} came" if whole and left > came else ""
    if came > left or (whole and came != left):
        return f"{left:,} rows left, {came:,} came"
    if not whole or len(receipts) != 1 or len(records) != 1:
        return ""
    told, detail = _detail(receipts[0])["told"], _detail(records[0])
    if why := _damaged(_detail(receipts[0]), detail):
        return why
    for what in ("bytes", "digest"):
        if what in told and what in detail and told[what] != detail[what]:
            return f"the {what} that they told at the end of the stream is another than in their log"
    if (told.get("status") == "complete") != (records[0].get("outcome", "ok") == "ok"):
        return f"told as {told.get('status') or 'nothing'}, recorded as {records[0].get('outcome', 'ok')}"
    return ""


def _damaged(came: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    """What the digest that was computed over what came says against the owner's record; empty where it says nothing, or
    was not computed."""
    if "digest" not in came or "digest" not in left or came["digest"] == left["digest"]:
        return ""
    return "the digest of what came is another than in their log: bytes were changed on the way, or one log is wrong"


def _parts(
    reader: _Log, owner: _Log, asked: dict[tuple[str, str], list[Body]], owners: Collection[str]
) -> Iterator[Read]:
    """What questions over several owners had of this one. `asked`: its records of them, by question and part."""
    for name, records in reader.questions.items():
        for fragment, (question, part) in _by_part(records).items():
            if "agreements" not in part:
                for end in asked.pop((name, fragment), []):
                    why = "the question's record is of an older connector, and names no agreements"
                    yield _told(UNTOLD, reader, owner, end, None, _rows(end), why)
            elif any(reader.parties.get(one) in owners for one in part["agreements"]):
                said = {**question, "agreement": part["agreements"][0], "dataset": ""}
                yield from _part(reader, owner, said, part, asked.pop((name, fragment), []))
    for ends in asked.values():  # of a question that failed, or went on without it
        if left := sum(map(_rows, ends)):
            why = reader.lacks("QueryCoordinated", ends[0])  # the record under its agreement
            verdict, why = (UNTOLD, why) if why else (NO_RECEIPT, "the question's own record says nothing of this part")
            yield _told(verdict, reader, owner, ends[0], None, left, why)


def _by_part(records: Sequence[Body]) -> dict[str, tuple[Body, Mapping[str, Any]]]:
    """The parts of a question by their fragments, each with the record that tells most of it: the first of them has
    all, the others those under their own agreement, which is what an extract by that has. One that was too long for
    its log tells none."""
    found: dict[str, tuple[Body, Mapping[str, Any]]] = {}
    for one in records:
        told = _detail(one).get("owners", [])
        for part in told if isinstance(told, list) else ():
            _, known = found.get(name := str(part.get("fragment")), (one, {}))
            if name not in found or len(part.get("agreements", ())) > len(known.get("agreements", ())):
                found[name] = one, part
    return found


def _part(
    reader: _Log, owner: _Log, question: Body, part: Mapping[str, Any], records: Sequence[Body]
) -> Iterator[Read]:
    """One part. Of several attempts the last is the one that was merged: the rows of the others were not counted. Nor
    were those of any where the question failed before that: then `part` has no rows."""
    came = int(part["rows"] or 0) if "rows" in part else None
    if not records:
        if came != 0:
            why = owner.lacks("ReadEnded", question)
            verdict, why = (UNTOLD, why) if why else (NO_RECORD, "their log has no such part of a question")
            yield _told(verdict, reader, owner, question, came, None, why)
        return
    had = None if came is None else _had(records, came, part)
    if had is not None and came is not None:
        left = _rows(had)
        differ = f"{left:,} rows left, {came:,} came"
        verdict, why = (AGREE, "") if left == came else (DIFFER, differ)
        if verdict == AGREE and (damaged := _damaged(part, _detail(had))):
            verdict, why = DIFFER, damaged
        if _may_be_more(had, came):
            verdict, why = CUT, _cut(left, came)
        yield _told(verdict, reader, owner, had, came, left, why)
    uncounted = "another attempt, which nobody has counted" if had else "the question failed before anybody counted it"
    for one in records:
        if one is not had and _attempt(one) > _ATTEMPTS:
            why = f"their log has an attempt {_attempt(one)}, of at most {_ATTEMPTS}"
            yield _told(DIFFER, reader, owner, one, None, _rows(one), why)
        elif one is not had and _rows(one):
            yield _told(NO_RECEIPT, reader, owner, one, None, _rows(one), uncounted)


def _had(records: Sequence[Body], came: int, part: Mapping[str, Any]) -> Body:
    """The attempt of which so many rows came, as far as the records tell."""

    def likely(one: Body) -> tuple[bool, bool, bool, bool, int]:
        same = not _damaged(part, _detail(one))  # of two whole attempts
        return _attempt(one) <= _ATTEMPTS, _rows(one) == came, same, _may_be_more(one, came), _rows(one)

    return max(records, key=likely)


def _may_be_more(record: Body, came: int) -> bool:
    """Whether an owner's process ended in mid-read, so that its log has the least that left."""
    return record.get("code") == _INTERRUPTED and _rows(record) < came


def _attempt(record: Body) -> int:
    found = _PART.fullmatch(_name(record))
    return int(found[3]) if found is not None else 1


def _without_receipt(reader: _Log, owner: _Log, record: Body) -> Read:
    """An owner's record of a read that the reader's log does not have: many read without the SDK."""
    why = reader.lacks("QueryCoordinated" if _PART.fullmatch(_name(record)) else "ReadTaken", record)
    verdict, why = (UNTOLD, why) if why else (NO_RECEIPT, "read without the SDK, or its reader ended before it told")
    return _told(verdict, reader, owner, record, None, _rows(record), why)


def _told(verdict: str, reader: _Log, owner: _Log, body: Body, came: int | None, left: int | None, why: str) -> Read:
    about = {key: str(body.get(key, "")) for key in ("dataset", "agreement", "time")}
    return Read(verdict, reader.origin, owner.origin, **about, read=_name(body), came=came, left=left, why=why)


def _name(body: Body) -> str:
    """The id of a read, as its owner has it and tells it; of a question."""
    return str(body.get("process", ""))


def _rows(body: Body) -> int:
    return int(_detail(body).get("rows") or 0)


def _seconds(body: Body) -> float:
    """When it was recorded."""
    return datetime.fromisoformat(body["time"]).timestamp()


def _age(body: Body) -> float:
    """How long before a record of the reader's its owner may have recorded the end: a small stream has left as soon as
    it has begun. Without end where a receipt does not say."""
    return float(_detail(body).get("seconds", math.inf)) if body["kind"] == "ReadTaken" else _LATE


def _party(body: Body) -> str:
    return str(_detail(body).get("counterparty", ""))


def _detail(body: Body) -> Mapping[str, Any]:
    found = body.get("detail")
    return found if isinstance(found, dict) else {}
