"""Two logs beside each other: what contradicts, what one side alone has, and what is none of it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hanse.audit.match import AGREE, CUT, DIFFER, NO_RECEIPT, NO_RECORD, UNTOLD, match
from hanse.cli import main

from connector.audit.signed_note import Signer
from tests.support.forged import write

NORTH, SOUTH = "did:web:north.example", "did:web:south.example"
AGREEMENT, DATASET = "urn:agreement:1", "urn:hanse:north:air"
QUESTION = "0123456789abcdef"
DIGEST = "xxh3:00"


def signer(name: str) -> Signer:
    return Signer(f"{name}.example/audit/{name}", Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest()))


def record(kind: str, second: int = 10, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "outcome": "ok", "time": f"2026-11-29T12:00:{second:02d}.000Z", **more}


def about(**more: Any) -> dict[str, Any]:
    return {"agreement": AGREEMENT, "dataset": DATASET, **more}


def left(rows: int, *, read: str = "r1", **more: Any) -> dict[str, Any]:
    """The owner's record."""
    detail = {"rows": rows, "bytes": 8 * rows, "digest": DIGEST, **more.pop("detail", {})}
    return record("ReadEnded", **{**about(actor=SOUTH, process=read), **more}, detail=detail)


def came(rows: int, *, read: str = "r1", receipt: str = "a", second: int = 11, **told: Any) -> dict[str, Any]:
    """A receipt of all rows; with `told=None` of a read that was broken off."""
    end = {"status": "complete", "rows": rows, "bytes": 8 * rows, "digest": DIGEST} | told.pop("end", {})
    detail = {"counterparty": NORTH, "receipt": receipt, "rows": rows, **({"told": end} if told.get("told", 1) else {})}
    detail |= {"seconds": told.get("seconds", 2)} | ({"digest": told["digest"]} if "digest" in told else {})
    return record(
        "ReadTaken", second, **about(actor=told.get("actor", "job"), on_behalf_of=SOUTH, process=read), detail=detail
    )


def asked(
    rows: int | None, *fragments: str, agreement: str = AGREEMENT, of: str = AGREEMENT, **more: str
) -> dict[str, Any]:
    """A question's record under an agreement, with parts `of` one; None: it failed before their rows were counted."""
    counted = {} if rows is None else {"rows": rows}
    parts = [
        {"owner": "north", "fragment": one, "agreements": [of], **counted, "bytes": 9, **more}
        for one in fragments or ("f0",)
    ]
    return record("QueryCoordinated", 12, actor="job", agreement=agreement, process=QUESTION, detail={"owners": parts})


CONCLUDED = record("AgreementConcluded", 1, **about(actor=NORTH, detail={"counterparty": SOUTH}))
OURS = record("AgreementConcluded", 1, **about(actor=SOUTH, detail={"counterparty": NORTH}))
EXPORTED = record("LogRead", actor="auditor") | {"time": "2026-11-29T12:10:00.000Z"}
SOON = record("LogRead", 50, actor="auditor")
STARTED = record("ReadStarted", 9, **about(actor=SOUTH, process="r1"))

OLDER = record("QueryCoordinated", 12, process=QUESTION, detail={"owners": [{"fragment": "f0", "rows": 5}]})
LAPSED: dict[str, Any] = {"outcome": "broken", "code": "interrupted"}
AGAIN: dict[str, Any] = {"outcome": "broken", "code": "busy", "detail": {"after": "interrupted"}}
PAUSED = [left(2, **LAPSED)]

CASES: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]] = [
    ("the same rows", [came(5)], [left(5)], {AGREE: 1}),
    ("more rows than came", [came(5)], [left(6)], {DIFFER: 1}),
    ("fewer rows than came", [came(5)], [left(4)], {DIFFER: 1}),
    ("the digest of what came", [came(5, digest=DIGEST)], [left(5)], {AGREE: 1}),
    ("other bytes came than left", [came(5, digest="xxh3:01")], [left(5)], {DIFFER: 1}),
    ("no record", [came(5)], [], {NO_RECORD: 1}),
    ("a start without an end", [came(5)], [STARTED], {DIFFER: 1}),
    ("told by another, too", [came(5), came(9, receipt="b", actor="other")], [left(5)], {UNTOLD: 1}),
    ("told by two, neither as recorded", [came(5), came(9, receipt="b", actor="other")], [left(6)], {DIFFER: 1}),
    ("no receipt", [], [left(5)], {NO_RECEIPT: 1}),
    ("nothing left, no receipt", [], [left(0, outcome="refused")], {}),
    ("told again", [came(5), came(5)], [left(5)], {AGREE: 1}),
    ("two reads by one id", [came(5), came(5, receipt="b")], [left(5)], {DIFFER: 1}),
    ("two reads by one id, rows added up", [came(5), came(5, receipt="b")], [left(10)], {DIFFER: 1}),
    ("no id", [came(5, read="")], [left(5)], {NO_RECORD: 1, NO_RECEIPT: 1}),
    ("another digest", [came(5, end={"digest": "xxh3:01"})], [left(5)], {DIFFER: 1}),
    ("other bytes", [came(5, end={"bytes": 41})], [left(5)], {DIFFER: 1}),
    ("told as complete, recorded as broken", [came(5)], [left(5, outcome="broken")], {DIFFER: 1}),
    ("refused at both", [came(5, end={"status": "revoked"})], [left(5, outcome="refused")], {AGREE: 1}),
    ("broken off, more left", [came(5, told=None)], [left(9, outcome="broken")], {AGREE: 1}),
    ("broken off, fewer left", [came(5, told=None)], [left(4, outcome="broken")], {DIFFER: 1}),
    ("the owner crashed after the end", [came(5)], [left(2, outcome="broken", code="interrupted")], {CUT: 1}),
    ("it crashed after its last row", [came(5)], [left(5, outcome="broken", code="interrupted")], {AGREE: 1}),
    ("it crashed, and more left than came", [came(5)], [left(7, outcome="broken", code="interrupted")], {DIFFER: 1}),
    ("the owner paused, and has the end of it all", [came(7, end={"status": "error"})], [*PAUSED, left(7, **AGAIN)],
     {AGREE: 1}),
    ("paused, and more left than came", [came(5, end={"status": "error"})], [*PAUSED, left(7, **AGAIN)], {DIFFER: 1}),
    ("it paused, and there is no receipt", [], [*PAUSED, left(7, **AGAIN)], {NO_RECEIPT: 1}),
    ("it paused in a part", [asked(7)], [left(2, read=f"{QUESTION}.f0.1", **LAPSED),
     left(7, read=f"{QUESTION}.f0.1", detail={"after": "interrupted"})], {AGREE: 1}),
    ("it paused in a part of which the question says nothing", [asked(5)], [left(5, read=f"{QUESTION}.f0.1"),
     left(2, read=f"{QUESTION}.f1.1", **LAPSED), left(7, read=f"{QUESTION}.f1.1", **AGAIN)], {AGREE: 1, NO_RECEIPT: 1}),
    ("resumed", [came(3, told=None), came(5, read="r2", receipt="b")], [left(4, outcome="broken"), left(5, read="r2")],
     {AGREE: 2}),
    ("a part with the digest that came", [asked(5, digest=DIGEST)], [left(5, read=f"{QUESTION}.f0.1")], {AGREE: 1}),
    ("a part of which other bytes came", [asked(5, digest="xxh3:01")], [left(5, read=f"{QUESTION}.f0.1")],
     {DIFFER: 1}),
    ("a part whose first attempt was damaged", [asked(5, digest=DIGEST)],
     [left(5, read=f"{QUESTION}.f0.1", detail={"digest": "xxh3:01"}), left(5, read=f"{QUESTION}.f0.2")],
     {AGREE: 1, NO_RECEIPT: 1}),
    ("a part of a question", [asked(5)], [left(5, read=f"{QUESTION}.f0.1")], {AGREE: 1}),
    ("a part by an id that is the owner's alone", [asked(5)], [left(5, read=f"{QUESTION}.f0.1.00ff")], {AGREE: 1}),
    ("parts of a question to all", [asked(5, "f0.clinic-a", "f0.clinic-a.1", "f0.2")],
     [left(5, read=f"{QUESTION}.f0.clinic-a.1.00ffe0"), left(5, read=f"{QUESTION}.f0.clinic-a.1.1.0123"),
      left(5, read=f"{QUESTION}.f0.2.2.4567")], {AGREE: 3}),
    ("a part of a question to all with other rows", [asked(5, "f0.north")],
     [left(6, read=f"{QUESTION}.f0.north.1.00ff")], {DIFFER: 1}),
    ("a part of a question to all without a record", [asked(5, "f0.north")], [], {NO_RECORD: 1}),
    ("a part that nobody had counted when its question failed", [asked(None)], [left(5, read=f"{QUESTION}.f0.1")],
     {NO_RECEIPT: 1}),
    ("such a part with an attempt more than are made", [asked(None)], [left(5, read=f"{QUESTION}.f0.3")], {DIFFER: 1}),
    ("such a part without a record", [asked(None)], [], {NO_RECORD: 1}),
    ("a part asked for twice", [asked(5)], [left(2, read=f"{QUESTION}.f0.1"), left(5, read=f"{QUESTION}.f0.2")],
     {AGREE: 1, NO_RECEIPT: 1}),
    ("a part with an attempt more than are made", [asked(5)], [left(5, read=f"{QUESTION}.f0.1"),
     left(9, read=f"{QUESTION}.f0.3")], {AGREE: 1, DIFFER: 1}),
    ("a part whose owner crashed", [asked(5)], [left(2, read=f"{QUESTION}.f0.1", code="interrupted")], {CUT: 1}),
    ("a part whose owner crashed, and more left", [asked(5)],
     [left(7, read=f"{QUESTION}.f0.1", code="interrupted")], {DIFFER: 1}),
    ("a question of two records, each with its own parts", [asked(5), asked(3, "f1")],
     [left(5, read=f"{QUESTION}.f0.1"), left(3, read=f"{QUESTION}.f1.1")], {AGREE: 2}),
    ("a question of an older connector", [OLDER], [left(5, read=f"{QUESTION}.f0.1")], {UNTOLD: 1}),
    ("a part with other rows", [asked(5)], [left(6, read=f"{QUESTION}.f0.1")], {DIFFER: 1}),
    ("a part without a record", [asked(5)], [], {NO_RECORD: 1}),
    ("a part that the question says nothing of", [asked(5)], [left(5, read=f"{QUESTION}.f0.1"),
     left(3, read=f"{QUESTION}.f1.1")], {AGREE: 1, NO_RECEIPT: 1}),
    ("the record under another agreement has it all", [asked(5, agreement="urn:agreement:w"), asked(5)],
     [left(5, read=f"{QUESTION}.f0.1")], {AGREE: 1}),
    ("it does, and the last has its own part", [asked(5), asked(7, "w0", agreement="urn:w", of="urn:w")],
     [left(5, read=f"{QUESTION}.f0.1")], {AGREE: 1}),
    ("the record that has it all was too long", [{**asked(5, agreement="urn:w"), "detail": {"owners": "(cut: ...)"}},
     asked(5)], [left(5, read=f"{QUESTION}.f0.1")], {AGREE: 1}),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_both_logs_say(ours: list[Any], theirs: list[Any], expected: dict[str, int], tmp_path: Path) -> None:
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, *ours, EXPORTED])
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, *theirs, EXPORTED])
    for found in (match(reader, owner), match(owner, reader)):
        assert {verdict: count for verdict, count in found.counts.items() if count} == expected
        assert {(read.reader, read.owner) for read in found.reads} <= {(signer("south").name, signer("north").name)}
    assert found.contradictions == expected.get(DIFFER, 0) + expected.get(NO_RECORD, 0)


@pytest.mark.parametrize(
    ("theirs", "last"),
    [([], SOON), ([STARTED], SOON), ([], CONCLUDED), ([STARTED], EXPORTED | {"time": "2026-11-29T12:05:10.000Z"})],
    ids=["no record", "no end yet", "older", "not long enough"],
)
def test_what_is_missing_says_nothing_until_the_file_goes_on_for_a_while(
    theirs: list[Any], last: dict[str, Any], tmp_path: Path
) -> None:
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, came(5), EXPORTED])
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, *theirs, last])
    assert [read.verdict for read in match(reader, owner).reads] == [UNTOLD]


@pytest.mark.parametrize(("seconds", "verdict"), [(2, NO_RECORD), (36_000, UNTOLD)])
def test_a_small_stream_that_was_read_slowly_left_long_before(seconds: int, verdict: str, tmp_path: Path) -> None:
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, came(5, seconds=seconds), EXPORTED])
    terms = {"since": 1_795_953_600.0 - 7_200}  # 10:00:00
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, EXPORTED], terms=terms)
    assert [read.verdict for read in match(reader, owner).reads] == [verdict]


EXTRACTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "ReadEnded"}, NO_RECORD),
    ({"kind": "ReadRefused"}, UNTOLD),
    ({"agreement": AGREEMENT, "actor": SOUTH}, NO_RECORD),
    ({"agreement": "urn:agreement:2"}, UNTOLD),
    ({"actor": "did:web:west.example"}, UNTOLD),
    ({"dataset": DATASET, "named": "air"}, NO_RECORD),
    ({"dataset": "urn:hanse:north:sea"}, UNTOLD),
    ({"outcome": "refused"}, UNTOLD),
    ({"since": 1_700_000_000.0}, NO_RECORD),
    ({"since": 1_795_953_600.0}, UNTOLD),  # 12:00:00: the record may stand before it, its receipt after
    ({"until": 1_795_953_605.0}, UNTOLD),
    ({"until": 1_795_953_700.0}, UNTOLD),  # 12:01:40: by a clock that is ahead it may stand after
]


@pytest.mark.parametrize(("terms", "verdict"), EXTRACTS, ids=str)
def test_what_an_extract_leaves_out_contradicts_nothing(terms: dict[str, Any], verdict: str, tmp_path: Path) -> None:
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, came(5), EXPORTED])
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, left(1, read="r0"), EXPORTED], terms=terms)
    assert [read.verdict for read in match(reader, owner).reads if read.read == "r1"] == [verdict]


READER_EXTRACTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"kind": "ReadTaken"}, [NO_RECEIPT, UNTOLD]),
    ({"kind": "QueryCoordinated"}, [UNTOLD, NO_RECEIPT]),
    ({"agreement": AGREEMENT}, [NO_RECEIPT, NO_RECEIPT]),
    ({"dataset": DATASET}, [NO_RECEIPT, UNTOLD]),
    ({"actor": "job"}, [UNTOLD, UNTOLD]),
    ({"until": 1_795_957_000.0}, [UNTOLD, UNTOLD]),
]


@pytest.mark.parametrize(("terms", "verdicts"), READER_EXTRACTS, ids=str)
def test_what_a_readers_extract_leaves_out_is_no_missing_receipt(
    terms: dict[str, Any], verdicts: list[str], tmp_path: Path
) -> None:
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, EXPORTED], terms=terms)
    theirs = [left(5), left(6, read=f"{QUESTION}.f0.1")]
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, *theirs, EXPORTED])
    found = sorted(match(reader, owner).reads, key=lambda read: read.left or 0)
    assert [read.verdict for read in found] == verdicts


def test_an_extract_by_one_agreement_tells_nothing_of_a_questions_parts_under_another(tmp_path: Path) -> None:
    ours = [OURS, came(4), asked(5), EXPORTED]
    reader = write(tmp_path / "south.zip", signer("south"), ours, terms={"agreement": AGREEMENT})
    second = left(6, read=f"{QUESTION}.f1.1", agreement="urn:agreement:2")
    theirs = [CONCLUDED, left(4), left(5, read=f"{QUESTION}.f0.1"), second, EXPORTED]
    owner = write(tmp_path / "north.zip", signer("north"), theirs)
    assert {read.left: read.verdict for read in match(reader, owner).reads} == {4: AGREE, 5: AGREE, 6: UNTOLD}


def test_receipts_of_reads_at_others_are_left_out(tmp_path: Path) -> None:
    west = came(7, receipt="w")
    west |= {"agreement": "urn:agreement:w", "detail": west["detail"] | {"counterparty": "did:web:west.example"}}
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, came(5), west, EXPORTED])
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, left(5), EXPORTED])
    assert [read.verdict for read in match(reader, owner).reads] == [AGREE]


def test_each_may_be_a_reader_of_the_other(tmp_path: Path) -> None:
    back = left(3, read="b1", agreement="urn:agreement:b", actor=NORTH)
    receipt = came(4, read="b1", receipt="b") | {"agreement": "urn:agreement:b", "on_behalf_of": NORTH}
    receipt["detail"] = receipt["detail"] | {"counterparty": SOUTH}
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, came(5), back, EXPORTED])
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, left(5), receipt, EXPORTED])
    found = match(reader, owner)
    assert [(read.verdict, read.owner[:5], read.came, read.left) for read in found.reads] == [
        (DIFFER, "south", 4, 3),
        (AGREE, "north", 5, 5),
    ]


COMMANDS: list[tuple[list[dict[str, Any]], int, str]] = [
    ([left(2, code="interrupted"), EXPORTED], 6, "1 read: cut off"),
    ([left(5), left(3, read="r2"), EXPORTED], 6, "1 read: no receipt"),
    ([left(5), EXPORTED], 7, "their signers are unknown"),
]


@pytest.mark.parametrize(("theirs", "code", "said"), COMMANDS, ids=["cut off", "no receipt", "agree"])
def test_what_is_not_proven_fails_where_it_is_strict(
    theirs: list[Any], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, came(5), EXPORTED])
    owner = write(tmp_path / "north.zip", signer("north"), [CONCLUDED, *theirs])
    assert _strict(capsys, reader, owner, said) == (code, True)


def test_an_owners_log_without_a_trace_of_its_reader_is_said_to_be_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = write(tmp_path / "south.zip", signer("south"), [OURS, came(5), EXPORTED])
    owner = write(tmp_path / "north.zip", signer("north"), [EXPORTED])
    assert _strict(capsys, reader, owner, "leaves out what he read") == (1, True)


def _strict(capsys: pytest.CaptureFixture[str], reader: Path, owner: Path, said: str) -> tuple[int, bool]:
    """How the command ends, and whether it says that."""
    with pytest.raises(SystemExit) as ended:
        main(["audit", "match", str(reader), str(owner), "--strict"])
    return int(ended.value.code or 0), said in " ".join(capsys.readouterr().err.split())
