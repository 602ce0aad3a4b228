"""The offline verifier on golden evidence files: whatever byte is changed is found, and the record is named."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hanse.audit.verify import MEMBERS, Bad, Report, canonical, verify, verify_record

from connector.audit import signed_note
from connector.audit.log import Filter
from connector.audit.record import Record
from tests.cases.audit.make import make
from tests.connector.audit.support import SIGNER, exported, logged, reads

CASES = Path(__file__).parents[2] / "cases" / "audit"
WHOLE, EXTRACT = CASES / "whole.zip", CASES / "extract.zip"
KEY = (CASES / "log.vkey").read_text().strip()


def report_on(data: bytes, directory: Path, key: str | None = KEY) -> Report:
    path = directory / "changed.zip"
    path.write_bytes(data)
    return verify(path, key=key)


def members(path: Path) -> dict[str, bytes]:
    with ZipFile(path) as container:
        return {name: container.read(name) for name in container.namelist()}


def packed(parts: dict[str, bytes], *, method: int = ZIP_STORED) -> bytes:
    """An evidence file of these members, laid out as the writer lays it out."""
    file = io.BytesIO()
    with ZipFile(file, "w", method) as container:
        for name, data in parts.items():
            info = ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr, info.compress_type = 3, 0o600 << 16, method
            container.writestr(info, data)
    return file.getvalue()


async def test_the_golden_files_are_what_the_writer_writes() -> None:
    made = await make()
    assert made.pop("log.vkey").decode().strip() == KEY
    for name, data in made.items():
        with ZipFile(io.BytesIO(data)) as container:
            assert {part: container.read(part) for part in container.namelist()} == members(CASES / name)


@pytest.mark.parametrize(("path", "kind", "records"), [(WHOLE, "whole", 12), (EXTRACT, "extract", 6)])
def test_the_golden_files_hold(path: Path, kind: str, records: int) -> None:
    report = verify(path, key=KEY)
    assert (report.ok, report.problem, report.first_bad) == (True, "", None)
    assert (report.kind, report.records, report.size, report.origin) == (kind, records, 12, "north.example/audit/north")
    assert len(report.checks) == 6


def test_without_a_key_of_ones_own_the_report_says_so() -> None:
    report = verify(WHOLE)
    assert (report.ok, report.key_given, report.key) == (True, False, KEY)


def record_at(path: Path, position: int) -> int | None:
    """Which record's line the byte at `position` of the file belongs to."""
    with ZipFile(path) as container:
        info = container.getinfo("events.jsonl")
        start = info.header_offset + 30 + len("events.jsonl")
        lines = container.read("events.jsonl").splitlines(keepends=True)
    for line in lines:
        if start <= position < start + len(line):
            return int(json.loads(line)["idx"])
        start += len(line)
    return None


@pytest.mark.parametrize("path", [WHOLE, EXTRACT], ids=["whole", "extract"])
@pytest.mark.parametrize("offset", [0, 3, 5])
def test_a_changed_byte_anywhere_is_found_and_its_record_is_named(path: Path, offset: int, tmp_path: Path) -> None:
    data = path.read_bytes()
    for position in range(offset, len(data), 11):
        flipped = data[position] ^ (1 << (position * 7 + offset) % 8)
        report = report_on(data[:position] + bytes([flipped]) + data[position + 1 :], tmp_path)
        assert not report.ok, f"byte {position} was changed unseen"
        assert report.problem
        record = record_at(path, position)
        if record is not None and path == WHOLE:
            assert report.first_bad == record, (position, report)
        elif record is not None:  # in an extract a changed line may not say its own number any more
            assert report.first_bad == record or "line" in report.problem or b'"idx"' in data[position - 8 : position]


@pytest.mark.parametrize("path", [WHOLE, EXTRACT], ids=["whole", "extract"])
def test_every_cut_is_found(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    assert not any(report_on(data[:length], tmp_path).ok for length in range(0, len(data), 61))
    assert not report_on(data + b"\0", tmp_path).ok


def signed(parts: dict[str, bytes], **said: Any) -> bytes:
    """An evidence file whose manifest says something else, by the key of the log."""
    text = f"{canonical(json.loads(parts['manifest.json']) | said)}\n"
    return resigned(parts, text)


def resigned(parts: dict[str, bytes], manifest: str) -> bytes:
    return packed({**parts, "manifest.json": manifest.encode(), "manifest.sig": SIGNER.sign(manifest).encode()})


@pytest.mark.parametrize(
    ("path", "said", "problem"),
    [
        (
            WHOLE,
            {"kind": "most"},
            "expected the whole log, or an extract and its filter, got a file of the kind 'most'",
        ),
        (WHOLE, {"records": 5}, "the manifest calls this the whole log of 12 records, and gives"),
        (WHOLE, {"filter": {"agreement": "urn:agreement:1"}}, "the manifest calls this the whole log of 12 records"),
        (EXTRACT, {"filter": "all"}, "an extract and its filter"),
        (
            EXTRACT,
            {"filter": {"agreement": "urn:agreement:0"}},
            "record 1 is not of the filter that the file states: agr",
        ),
        (EXTRACT, {"filter": {"kind": "ReadStarted"}}, "record 3 is not of the filter that the file states: kind is"),
        (EXTRACT, {"filter": {"outcome": "refused"}}, "record 1 is not of the filter that the file states: outcome is"),
        (EXTRACT, {"filter": {"actor": "x"}}, "record 1 is not of the filter that the file states: actor is another"),
        (
            EXTRACT,
            {"filter": {"dataset": "x", "named": "y"}},
            "record 1 is not of the filter that the file states: data",
        ),
        (EXTRACT, {"filter": {"since": 1_790_000_001.0}}, "record 1 is not of the filter that the file states: since"),
        (EXTRACT, {"filter": {"until": 1_790_000_001}}, "record 3 is not of the filter that the file states: until"),
    ],
)
def test_a_manifest_that_does_not_fit_its_records_is_found_whoever_signed_it(
    path: Path, said: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    report = report_on(signed(members(path), **said), tmp_path)
    assert not report.ok
    assert problem in report.problem


@pytest.mark.parametrize(
    "terms",
    [
        {},  # what is not known to this reader is not checked
        {"of_a_later_version": "x"},
        {"since": 1_790_000_000.9, "until": 1_790_000_004.0},  # the leaf of 0.75 s has 0
        {"dataset": "flights", "named": "urn:hanse:north:flights"},
    ],
)
def test_an_extract_that_its_filter_fits_holds_and_is_told_with_it(terms: dict[str, Any], tmp_path: Path) -> None:
    report = report_on(signed(members(EXTRACT), filter=terms), tmp_path)
    assert (report.ok, report.problem, report.filter) == (True, "", terms)


def test_a_manifest_that_says_a_thing_twice_is_found(tmp_path: Path) -> None:
    parts = members(WHOLE)
    text = parts["manifest.json"].decode().replace('"kind":', '"kind":"extract","kind":')
    report = report_on(resigned(parts, text), tmp_path)
    assert (report.ok, report.problem) == (False, "the manifest is not in canonical form: it may say a thing twice")


def lines(parts: dict[str, bytes]) -> list[bytes]:
    return parts["events.jsonl"].splitlines(keepends=True)


def edit(index: int, change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], None]:
    """Rewrite a record in proper form, as somebody with an editor and some care would."""

    def apply(parts: dict[str, bytes]) -> None:
        all_ = lines(parts)
        record = json.loads(all_[index])
        change(record["body"])
        text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"
        parts["events.jsonl"] = b"".join([*all_[:index], text.encode(), *all_[index + 1 :]])

    return apply


def rewrite_with_leaf(parts: dict[str, bytes]) -> None:
    """The careful forger: content and leaf of record 5 in step."""
    edit(5, lambda body: body.update(actor="did:web:nobody.example"))(parts)
    record = json.loads(lines(parts)[5])
    text = json.dumps(record["body"], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    commitment = base64.b64encode(sha256(base64.b64decode(record["salt"]) + text.encode()).digest()).decode()
    entry = f'{{"c":"{commitment}","t":"{record["body"]["kind"]}","ts":{record["ts"]},"v":1}}'
    leaf = sha256(b"\0" + entry.encode()).digest()
    parts["leaves"] = parts["leaves"][: 5 * 32] + leaf + parts["leaves"][6 * 32 :]


def put(name: str, data: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    return lambda parts: parts.update({name: data(parts[name])})


def without(name: str) -> Callable[[dict[str, bytes]], object]:
    return lambda parts: parts.pop(name)


def relined(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[dict[str, bytes]], None]:
    return put("events.jsonl", lambda data: b"".join(change(data.splitlines(keepends=True))))


def shortened(parts: dict[str, bytes]) -> None:
    relined(lambda rows: rows[:-1])(parts)
    parts["leaves"] = parts["leaves"][:-32]


HUGE = b"1" * 400
TAMPERED: list[tuple[str, Callable[[dict[str, bytes]], object], int | None, str]] = [
    ("another actor", edit(4, lambda body: body.update(actor="did:web:other")), 4, "record 4"),
    ("fewer rows", edit(7, lambda body: body["detail"].update(rows=1)), 7, "its leaf stands under the signed root"),
    ("another outcome", edit(3, lambda body: body.update(outcome="ok")), 3, "record 3"),
    ("a field more", edit(0, lambda body: body.update(x=1)), 0, "record 0"),
    ("a record gone", relined(lambda rows: rows[:5] + rows[6:]), 5, "missing, doubled or moved"),
    ("the last record gone", relined(lambda rows: rows[:-1]), 11, "missing"),
    ("the last record and leaf gone", shortened, None, "do not give the signed root"),
    ("a record doubled", relined(lambda rows: [*rows, rows[-1]]), 12, "moved"),
    ("two records swapped", relined(lambda rows: [rows[1], rows[0], *rows[2:]]), 0, "moved"),
    ("a leaf changed", put("leaves", lambda data: data[:64] + bytes(32) + data[96:]), 2, "it is the leaf that was"),
    ("record and leaf in step", rewrite_with_leaf, None, "do not give the signed root"),
    ("no records", put("events.jsonl", lambda _: b""), 0, "missing"),
    ("not JSON", put("events.jsonl", lambda data: b"x" + data), 0, "cannot be read"),
    ("deep JSON", put("events.jsonl", lambda _: b"[" * 200_000), 0, "cannot be read"),
    ("half a character", put("events.jsonl", lambda data: data.replace(b'"did', b'"\\ud800', 1)), 0, "canonical"),
    ("a number beyond all", put("events.jsonl", lambda data: data.replace(b'"body":{', b'"body": {"a":%b,' % HUGE, 1)),
     0, "canonical"),
    ("spaces", put("events.jsonl", lambda data: data.replace(b'":', b'": ', 1)), 0, "canonical"),
    ("another filter", put("manifest.json", lambda data: data.replace(b'{}', b'{"a":1}')), None, "sign"),
    ("manifest that is no object", put("manifest.json", lambda _: b"[]\n"), None, "not a JSON object"),
    ("no manifest signature", put("manifest.sig", lambda _: b""), None, "signed note"),
    ("no head", put("checkpoint", lambda _: b""), None, "do not give the signed root"),
    ("binary head", put("checkpoint", lambda _: b"\xff"), None, "do not give the signed root"),
    ("another key", put("log.vkey", lambda data: data.replace(b"north", b"south")), None, "another key"),
    ("a member gone", without("leaves"), None, "its end was cut or changed"),
    ("a member more", lambda parts: parts.update({"extra": b""}), None, "its end was cut or changed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "first_bad", "problem"), [case[1:] for case in TAMPERED], ids=[c[0] for c in TAMPERED]
)
def test_tampering_is_named(
    change: Callable[[dict[str, bytes]], object], first_bad: int | None, problem: str, tmp_path: Path
) -> None:
    parts = members(WHOLE)
    change(parts)
    report = report_on(packed(parts), tmp_path)
    assert not report.ok
    assert report.first_bad == first_bad
    assert problem in report.problem


def test_repacking_without_a_change_still_holds(tmp_path: Path) -> None:
    assert report_on(packed(members(WHOLE)), tmp_path).ok


@pytest.mark.parametrize("name", MEMBERS)
def test_members_are_expected_in_order_and_uncompressed(name: str, tmp_path: Path) -> None:
    parts = members(WHOLE)
    moved = {**{other: data for other, data in parts.items() if other != name}, name: parts[name]}
    if name != MEMBERS[-1]:
        assert not report_on(packed(moved), tmp_path).ok
    assert not report_on(packed(parts, method=ZIP_DEFLATED), tmp_path).ok


def test_a_forger_with_a_key_of_his_own_is_found_by_whoever_holds_the_real_one(tmp_path: Path) -> None:
    parts, key = members(WHOLE), Ed25519PrivateKey.generate()
    name = "north.example/audit/north"
    public = b"\x01" + key.public_key().public_bytes_raw()
    key_id = sha256(name.encode() + b"\n" + public).digest()[:4]
    parts["log.vkey"] = f"{name}+{key_id.hex()}+{base64.b64encode(public).decode()}\n".encode()

    def line(text: bytes) -> bytes:
        return f"— {name} {base64.b64encode(key_id + key.sign(text)).decode()}\n".encode()

    text = parts["checkpoint"].split(b"\n\n")[0] + b"\n"
    parts["checkpoint"] = text + b"\n" + line(text)
    parts["manifest.sig"] = line(parts["manifest.json"])
    forged = packed(parts)
    assert report_on(forged, tmp_path, key=None).ok
    report = report_on(forged, tmp_path)
    assert (report.ok, report.key_given) == (False, False)
    assert "another key" in report.problem


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 22, b"PK\x05\x06" + b"\0" * 18, b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_evidence_file_is_a_clear_logged(data: bytes, tmp_path: Path) -> None:
    report = report_on(data, tmp_path)
    assert not report.ok
    assert report.problem.startswith("expected an evidence file")


def test_a_small_file_of_many_lines_is_not_looked_at_for_longer_than_it_takes_to_see_that_it_is_bad(
    tmp_path: Path,
) -> None:
    parts = members(WHOLE)
    record = parts["events.jsonl"]
    for events, first in ((b"\n" * 3_000_000, 0), (record + b"\n" * 3_000_000, 12)):
        started = time.process_time()
        report = report_on(packed({**parts, "events.jsonl": events}), tmp_path)
        assert (report.ok, report.first_bad) == (False, first)
        assert time.process_time() - started < 5


# ---- against an earlier file

ADAS = Filter(actor="ada")
LATER: list[tuple[str, list[Record], Filter, list[Record], Filter, str, int | None]] = [
    ("more records", reads(10), Filter(), reads(25), Filter(), "", None),
    ("the same", reads(10), Filter(), reads(10), Filter(), "", None),
    ("extract, then whole", reads(10), ADAS, reads(25), Filter(), "", None),
    ("extracts of one head", reads(10), ADAS, reads(10), ADAS, "", None),
    ("rewritten", reads(10), Filter(), reads(25, r4="eve"), Filter(), "history was changed", 4),
    ("rewritten, same size", reads(10), Filter(), reads(10, r4="eve"), Filter(), "history was changed", 4),
    ("rewritten since an extract", reads(10), ADAS, reads(25, r4="eve"), Filter(), "history was changed", None),
    ("rewritten extract", reads(10), ADAS, reads(10, r4="eve"), ADAS, "history was changed", None),
    ("shorter", reads(10), Filter(), reads(9), Filter(), "or the two files are the wrong way round", None),
    ("a later extract", reads(10), Filter(), reads(25), ADAS, "expected a whole export to compare", None),
]


@pytest.mark.parametrize(
    ("old", "of", "new", "in_", "problem", "first_bad"), [c[1:] for c in LATER], ids=[c[0] for c in LATER]
)
def test_a_later_file_continues_an_earlier_one_or_it_is_said(
    old: list[Record], of: Filter, new: list[Record], in_: Filter, problem: str, first_bad: int | None, tmp_path: Path
) -> None:
    before, path = exported(tmp_path / "old.zip", old, of), exported(tmp_path / "new.zip", new, in_)
    assert verify(before, key=KEY).ok
    assert verify(path, key=KEY).ok
    report = verify(path, key=KEY, after=before)
    assert (report.ok, report.first_bad) == (not problem, first_bad)
    assert problem in report.problem
    assert (f"it continues the log of {len(old)} records of the earlier file" in report.checks) is report.ok


def test_an_earlier_file_must_hold_itself_and_be_of_the_same_key(tmp_path: Path) -> None:
    path = exported(tmp_path / "new.zip", reads(25))
    broken = tmp_path / "broken.zip"
    broken.write_bytes(exported(tmp_path / "old.zip", reads(10)).read_bytes().replace(b"ReadEnded", b"ReadBegun", 1))
    assert "the earlier file does not hold: record 0" in verify(path, key=KEY, after=broken).problem
    foreign = signed_note.Signer(SIGNER.name, Ed25519PrivateKey.generate())
    other = exported(tmp_path / "foreign.zip", reads(10), signer=foreign)
    for key in (KEY, None):
        assert "the earlier file is signed with another key" in verify(path, key=key, after=other).problem
    assert "the earlier file does not hold: record 0" in verify(other, key=foreign.vkey, after=broken).problem


def test_a_record_that_says_two_times_is_found(tmp_path: Path) -> None:
    log = reads(5)
    other = Record(2, log[2].ts + 3600, log[2].kind, log[2].text, log[2].salt)
    for which in (Filter(), ADAS):
        report = verify(exported(tmp_path / "e.zip", [*log[:2], other, *log[3:]], which), key=KEY)
        assert (report.ok, report.first_bad) == (False, 2)
        assert "record 2 says two times, '2026-09-21T14:13:22.500Z' in its text and 1790003602" in report.problem


LOG = reads(8)
DISHONEST: list[tuple[str, dict[str, Any], str]] = [
    ("another record", logged(LOG, 2), "expected record 5, got one numbered 2"),
    ("another record, numbered so", logged(LOG, 2, idx=5), "the proof that came with record 5 is that of record 2"),
    ("another body", logged(LOG, 5, body={**logged(LOG, 5)["body"], "actor": "eve"}), "its text was changed"),
    ("another salt", logged(LOG, 5, salt="AAAAAAAAAAAAAAAAAAAAAA=="), "its text was changed"),
    ("another time", logged(LOG, 5, ts=LOG[5].ts + 60), "its text was changed"),
    ("another kind", logged(LOG, 5, kind="LogRead"), "got one numbered 5 of the kind 'LogRead'"),
    ("another's leaf and proof", {**logged(LOG, 5), **{name: logged(LOG, 2)[name] for name in ("leaf", "proof")}},
     "its text was changed"),
    ("a salt that is none", logged(LOG, 5, salt=5), "the salt is not base64"),
    ("never logged", logged(reads(8, r5="eve"), 5, proof=logged(LOG, 5)["proof"]), "does not lead from this record"),
    ("half a character", logged(LOG, 5, proof=logged(LOG, 5)["proof"].replace("\n8", "\ud800")), "something else"),
    ("nothing", {}, "expected record 5 with its leaf and proof, got something else"),
    ("no time", logged(LOG, 5, ts=float("nan")), "expected record 5 with its leaf and proof"),
]  # fmt: skip


def test_a_record_that_a_connector_answers_with_is_checked_against_its_proof() -> None:
    for idx in range(8):
        verify_record(logged(LOG, idx), idx, KEY)


@pytest.mark.parametrize(("came", "problem"), [case[1:] for case in DISHONEST], ids=[case[0] for case in DISHONEST])
def test_a_record_that_is_not_the_one_of_its_proof_is_not_taken(came: dict[str, Any], problem: str) -> None:
    with pytest.raises(Bad, match=problem):
        verify_record(came, 5, KEY)
