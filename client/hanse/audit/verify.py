"""Verifies an evidence file of a connector's audit log, offline, without trusting its maker.

Shares no code with the writer and needs the standard library and `cryptography` only, so it can be copied alone.

    report = verify("evidence.zip", key="north.example/audit/north+1a2b3c4d+AQ...")
    report.ok, report.first_bad, report.problem

The checks, in this order (the code has the same numbers):
1. the container holds exactly the known members, uncompressed, with nothing before, between or after them;
2. the key: the given one, or else the file's own (the report says so: a forger can include a key of his own);
3. the key's signature under the head (C2SP tlog-checkpoint) and under the manifest;
4. the manifest agrees with the head (origin, size, root), and says whether this is the whole log or an extract;
5. each record: canonical JSON, in order, its salted commitment is the leaf of the tree, and in an extract it meets
   the filter;
6. the leaves give the signed root (RFC 6962); in an extract, each record's inclusion proof does;
7. checksums of the container;
8. with a trust policy (C2SP tlog-policy): its log signed the head, and its quorum of witnesses cosigned that head;
9. with an earlier file (`after`), which is checked in the same way: this log begins with that one.

The report names the first record that fails. If only the leaves were changed, or everything was rewritten consistently,
it says that instead: the holder of the log's key can do that, and no single file shows it, but `after` does.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

if TYPE_CHECKING:
    from hanse.audit.witnesses import TrustPolicy

FORMAT = "hanse-evidence/1"
# The problem where nothing is wrong with either file, and one of another kind is needed.
EXTRACT_LATER = "expected a whole export to compare with the earlier file, got an extract, which cannot show it"
MEMBERS = ("events.jsonl", "leaves", "checkpoint", "log.vkey", "manifest.json", "manifest.sig")
_LINE_MAX = 1 << 20
_COLUMN_MAX = 255  # characters of a term that a filter compares
_IDENTITIES_MAX = 1_000
_SIGNATURES_MAX = 200
_SMALL_MAX = 1 << 20  # the members that are read whole
_EMPTY = sha256(b"").digest()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Bad(Exception):
    """A claim that does not hold; `record` is the index of its record, if it has one."""

    def __init__(self, problem: str, record: int | None = None) -> None:
        super().__init__(problem)
        self.record = record


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked and how it ended. `first_bad` is the index of the first record that does not hold."""

    ok: bool = False
    kind: str = ""  # whole | extract: that these are in the log, not that they are all
    filter: Mapping[str, Any] = field(default_factory=dict)  # what an extract says that it holds all records of
    records: int = 0  # records that were checked and hold
    size: int = 0  # records under the signed head
    root: str = ""
    origin: str = ""
    key: str = ""
    key_given: bool = False  # False: the key came with the file and proves nothing about who signed
    first_bad: int | None = None
    problem: str = ""
    checks: tuple[str, ...] = field(default=())
    # Records of concluded agreements that name what proved the counterparty's identity, the first 1,000 of them.
    identities: tuple[Mapping[str, Any], ...] = field(default=())
    # With a policy, each of its witnesses: name, key_name, cosigned_at (None: it does not vouch), problem.
    witnesses: tuple[Mapping[str, Any], ...] = field(default=())


def verify(
    path: str | PathLike[str],
    key: str | None = None,
    *,
    after: str | PathLike[str] | None = None,
    policy: TrustPolicy | None = None,
) -> Report:
    """Check an evidence file; with an earlier one (`after`), also that its log continues in this one.

    `policy` names the logs and witnesses that are trusted (`hanse.audit.witnesses.read_policy`); it may stand for the
    key.

    Raises:
        OSError: a file cannot be read. Problems of a file's content are in the report.
    """
    report = _verify_file(path, key, policy)
    if after is None or not report.ok:
        return report
    before = _verify_file(after, None)  # the next check compares the keys
    try:
        _check_continues(report, path, before, after)  # 9
    except Bad as error:
        return replace(report, ok=False, first_bad=error.record, problem=str(error))
    return _add_check(report, f"it continues the log of {before.size} records of the earlier file")


def _verify_file(path: str | PathLike[str], key: str | None, policy: TrustPolicy | None = None) -> Report:
    """Check one file by itself."""
    report = Report()
    with Path(path).open("rb") as file:
        try:
            try:
                members = _read_container(file)  # 1
            except struct.error:
                raise Bad("the container is cut short or was changed") from None
            report = _add_check(report, "the container holds exactly the known members")
            name, public, vkey = _key(members, key)  # 2
            known = policy is not None and vkey in policy.logs
            if policy is not None and policy.logs and not known:
                raise Bad(f"the policy does not list the key of this log, {vkey}")
            report = replace(report, origin=name, key=vkey, key_given=key is not None or known)
            complaint: Bad | None = None
            root: bytes | None
            try:
                report, root = _statements(report, members, name, public)  # 3, 4
            except Bad as error:  # the records are looked at all the same: which one is bad is worth more
                complaint, root = error, _read_claimed_root(members)
            report = _records(report, members, root)  # 5, 6
            if complaint is not None:
                raise complaint
            for member in members.values():  # 7
                member.check()
            if policy is not None:
                report = _check_witnesses(report, members["checkpoint"].text(), policy)  # 8
        except _Stopped as stopped:
            return replace(stopped.report, ok=False, first_bad=stopped.bad.record, problem=str(stopped.bad))
        except Bad as error:
            return replace(report, ok=False, first_bad=error.record, problem=str(error))
    return replace(_add_check(report, "the container's checksums hold"), ok=True)


def records_in(path: str | PathLike[str]) -> int:
    """Return the number of records that an evidence file states, unchecked. Raises: Bad if it is not an evidence
    file."""
    with Path(path).open("rb") as file:
        try:
            count = _manifest(_read_container(file)).get("records")
        except struct.error:
            count = None
    if not isinstance(count, int):
        raise Bad("expected an evidence file, got something else")
    return count


def verify_proof(proof: str, leaf: bytes, key: str) -> int:
    """Check a `.tlog-proof` for the entry `leaf` (its bytes, not its hash); return its index. Raises: Bad."""
    head, _, note = proof.partition("\n\n")
    first, *lines = head.split("\n")
    if first != "c2sp.org/tlog-proof@v1":
        raise Bad(f"expected a proof that starts with c2sp.org/tlog-proof@v1, got {first[:60]!r}")
    if lines and lines[0].startswith("extra "):
        lines = lines[1:]
    if not lines or not lines[0].startswith("index "):
        raise Bad("expected a line `index <n>` in the proof")
    index = _decimal(lines[0].removeprefix("index "))
    name, public, _ = parse_key(key)
    _, size, root = _head(_check_signature(note, name, public), name)
    path = [_unb64(line, "a hash of the proof") for line in lines[1:]]
    if _climb(index, size, sha256(b"\x00" + leaf).digest(), path) != root:
        raise Bad(f"the proof does not lead from this record to the signed root of {size} records", index)
    return index


def verify_record(answer: Mapping[str, Any], idx: int, key: str) -> None:
    """Check the record `idx` as a connector returns it (`/audit/events/<idx>`). Raises: Bad.

    1. its number; 2. its body, salt, kind and time give the leaf; 3. the leaf's proof for that number.
    """
    try:
        told, body, kind, ts, leaf = (answer[name] for name in ("idx", "body", "kind", "ts", "leaf"))
        salt, proof, second = _unb64(answer["salt"], "the salt"), str(answer["proof"]), math.floor(ts)
        made = _log_entry(canonical(body), salt, kind, second)
        if told != idx or body["kind"] != kind:  # 1
            raise Bad(f"expected record {idx}, got one numbered {told!r} of the kind {kind!r}", idx)
        if made.decode() != leaf:  # 2
            raise Bad(f"the text and salt of record {idx} do not make its leaf: its text was changed", idx)
        _check_time(body, second, idx)
        index = verify_proof(proof, made, key)  # 3
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise Bad(f"expected record {idx} with its leaf and proof, got something else", idx) from None
    if index != idx:
        raise Bad(f"the proof that came with record {idx} is that of record {index}", idx)


def verify_consistency(old_note: str, new_note: str, path: Sequence[bytes], key: str) -> None:
    """Check that the log under `old_note` is a prefix of the one under `new_note` (RFC 6962 §2.1.2). Raises: Bad."""
    name, public, _ = parse_key(key)
    _, old, old_root = _head(_check_signature(old_note, name, public), name)
    _, new, new_root = _head(_check_signature(new_note, name, public), name)
    if not _is_consistent(old, new, old_root, new_root, list(path)):
        raise Bad(f"the log of {new} records does not continue the log of {old} records: history was changed")


# ---- 1. the container


@dataclass(frozen=True, slots=True)
class _Member:
    file: IO[bytes]
    name: str
    start: int
    size: int
    crc: int

    def whole(self) -> bytes:
        if self.size > _SMALL_MAX:
            raise Bad(f"{self.name} has {self.size} bytes, more than the {_SMALL_MAX} that it may have")
        self.file.seek(self.start)
        return self.file.read(self.size)

    def text(self) -> str:
        try:
            return self.whole().decode()
        except UnicodeDecodeError:
            raise Bad(f"{self.name} is not UTF-8 text") from None

    def blocks(self, size: int = 1 << 18) -> Iterator[bytes]:
        at, end = self.start, self.start + self.size
        while at < end:
            self.file.seek(at)
            if not (block := self.file.read(min(size, end - at))):
                raise Bad(f"{self.name} ends early: the file was cut")
            at += len(block)
            yield block

    def lines(self) -> Iterator[bytes]:
        """Lines with their newline, cut at the longest that a record may have."""
        rest = b""
        for block in self.blocks():
            *whole, rest = (rest + block).split(b"\n")
            yield from (line + b"\n" for line in whole)
            while len(rest) > _LINE_MAX:
                yield rest[:_LINE_MAX]
                rest = rest[_LINE_MAX:]
        if rest:
            yield rest

    def pieces(self, size: int) -> Iterator[bytes]:
        for block in self.blocks(size << 12):
            yield from (block[at : at + size] for at in range(0, len(block), size))

    def check(self) -> None:
        crc = 0
        for block in self.blocks():
            crc = zlib.crc32(block, crc)
        if crc != self.crc:
            raise Bad(f"the checksum of {self.name} does not hold: its bytes or the checksum were changed")


_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_AT64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_DATE = 1 << 5 | 1  # 1 January 1980


def _read_container(file: IO[bytes]) -> dict[str, _Member]:
    """Return the members by name. Raises: Bad unless the file has the exact layout of an evidence file, to the last
    byte."""
    file.seek(0, 2)
    length = file.tell()
    start, size, tail = _directory_at(file, length)
    if start + size + tail != length or size > _SMALL_MAX:
        raise Bad("the container has bytes that belong to no member: it was cut, extended or changed")
    file.seek(start)
    directory, at, offset = file.read(size), 0, 0
    members: dict[str, _Member] = {}
    for name in MEMBERS:
        member, at, offset = _entry(file, directory, at, offset, name)
        members[name] = member
    if at != len(directory) or offset != start:
        raise Bad("the container's directory does not fit its members: it was changed")
    return members


def _directory_at(file: IO[bytes], length: int) -> tuple[int, int, int]:
    """Return the start of the directory, its length, and the number of bytes that follow it."""
    if length < _END.size:
        raise Bad(f"expected an evidence file, got {length} bytes")
    file.seek(length - _END.size)
    end = _END.unpack(file.read(_END.size))
    mark, disk, first, here, all_, size, start, comment = end
    if mark != b"PK\x05\x06" or (disk, first, here, all_, comment) != (0, 0, len(MEMBERS), len(MEMBERS), 0):
        raise Bad("expected an evidence file as `hanse audit export` writes it; its end was cut or changed")
    if start != 0xFFFFFFFF:
        return start, size, _END.size
    tail = _END64.size + _AT64.size + _END.size
    file.seek(max(length - tail, 0))
    end64 = _END64.unpack(file.read(_END64.size))
    at64 = _AT64.unpack(file.read(_AT64.size))
    start, size = end64[9], end64[8]
    fixed = (b"PK\x06\x06", 44, 45, 45, 0, 0, len(MEMBERS), len(MEMBERS))
    if end64[:8] != fixed or at64 != (b"PK\x06\x07", 0, length - tail, 1):
        raise Bad("the container's end was cut or changed")
    return start, size, tail


def _entry(file: IO[bytes], directory: bytes, at: int, offset: int, name: str) -> tuple[_Member, int, int]:
    """Return one member from its directory entry, compared with its local header; and the place of the next ones."""
    bad = Bad(f"the container's entry for {name} was changed")
    if len(directory) < at + _CENTRAL.size:
        raise bad
    entry = _CENTRAL.unpack_from(directory, at)
    mark, made, system, needs, _, flags, method, time, date, crc, packed, size, *rest = entry
    named, extra, comment, disk, internal, external, begins = rest
    at += _CENTRAL.size
    wide = directory[at + named : at + named + extra]
    fixed = (b"PK\x01\x02", 3, 0, 0, 0, 0, _DATE, len(name), 0, 0, 0, 0o600 << 16)
    if (mark, system, entry[4], flags, method, time, date, named, comment, disk, internal, external) != fixed:
        raise bad
    if directory[at : at + named] != name.encode() or made != needs or needs not in (20, 45):
        raise bad
    packed, size, begins = _read_zip64(wide, [packed, size, begins], bad)
    local = _local_header(name, crc, size, wide64=needs == 45)
    file.seek(offset)
    if packed != size or begins != offset or file.read(len(local)) != local:
        raise bad
    member = _Member(file, name, offset + len(local), size, crc)
    return member, at + named + extra, offset + len(local) + size


def _read_zip64(extra: bytes, values: list[int], bad: Bad) -> list[int]:
    """Replace values that did not fit in 32 bits by the 64-bit values of the zip64 extra field."""
    want = sum(value == 0xFFFFFFFF for value in values)
    if len(extra) != (4 + 8 * want if want else 0):
        raise bad
    if not want:
        return values
    kind, length, *wide = struct.unpack(f"<2H{want}Q", extra)
    if (kind, length) != (1, 8 * want):
        raise bad
    return [wide.pop(0) if value == 0xFFFFFFFF else value for value in values]


def _local_header(name: str, crc: int, size: int, *, wide64: bool) -> bytes:
    extra = struct.pack("<2H2Q", 1, 16, size, size) if wide64 else b""
    short = 0xFFFFFFFF if wide64 else size
    needs = 45 if wide64 else 20
    fields = _LOCAL.pack(b"PK\x03\x04", needs, 0, 0, 0, 0, _DATE, crc, short, short, len(name), len(extra))
    return fields + name.encode() + extra


# ---- 2 to 4. the key, and what it signed


def parse_key(vkey: str) -> tuple[str, Ed25519PublicKey, bytes]:
    """Return name, key and key id of a signed-note verifier key `name+id+base64(0x01 || key)`. Raises: Bad."""
    name, _, rest = vkey.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    data = _unb64(encoded, "the verifier key")
    if len(data) != 33 or data[0] != 1 or not name:
        raise Bad("expected a verifier key `name+id+key` for Ed25519, as `hanse audit key` prints it")
    if sha256(name.encode() + b"\n" + data).hexdigest()[:8] != key_id:
        raise Bad("the verifier key does not fit its own id: it was changed or mistyped")
    return name, Ed25519PublicKey.from_public_bytes(data[1:]), bytes.fromhex(key_id)


def _key(members: dict[str, _Member], given: str | None) -> tuple[str, Ed25519PublicKey, str]:
    own = members["log.vkey"].text()
    vkey = own.removesuffix("\n") if given is None else given.strip()
    name, public, _ = parse_key(vkey)
    if own != vkey + "\n":
        raise Bad("the file was made with another key than the one given: it is not this log, or not its operator")
    return name, public, vkey


def _statements(
    report: Report, members: dict[str, _Member], name: str, public: Ed25519PublicKey
) -> tuple[Report, bytes]:
    """Check the signatures, and that manifest and head agree."""
    head_text = _check_signature(_without_cosignatures(members["checkpoint"].text()), name, public)  # 3
    manifest_text = members["manifest.json"].text()
    _check_signature(f"{manifest_text}\n{members['manifest.sig'].text()}", name, public)
    whose = "the key that was given" if report.key_given else "the key that came with the file"
    report = _add_check(report, f"the head and the manifest are signed by {whose}")
    _, size, root = _head(head_text, name)
    manifest = _manifest(members)
    report = replace(report, size=size, root=_b64(root), kind=str(manifest.get("kind")))
    said = {key: manifest.get(key) for key in ("format", "origin", "size", "root")}
    if said != {"format": FORMAT, "origin": name, "size": size, "root": _b64(root)}:  # 4
        raise Bad("the manifest says something else than the signed head")
    if not _is_canonical(manifest_text, manifest):
        raise Bad("the manifest is not in canonical form: it may say a thing twice")
    if report.kind == "whole" and (manifest.get("filter"), manifest.get("records")) != ({}, size):
        raise Bad(f"the manifest calls this the whole log of {size} records, and gives a filter or another number")
    return _add_check(report, f"the manifest describes the head of {size} records"), root


def _is_canonical(text: str, value: Any) -> bool:
    with suppress(ValueError, OverflowError, RecursionError):
        return text == f"{canonical(value)}\n"
    return False


def _read_claimed_root(members: dict[str, _Member]) -> bytes | None:
    """Return the root that the head states, without trusting it; None if it cannot be read."""
    try:
        lines = members["checkpoint"].text().split("\n")
        return _unb64(lines[2], "the root") if len(lines) > 2 else None
    except Bad:
        return None


def _check_signature(note: str, name: str, public: Ed25519PublicKey) -> str:
    """Return the text of a signed note. Raises: Bad unless it has exactly one signature line, a valid one of this
    key."""
    text, separator, signature = note.rpartition("\n\n")
    text += "\n"
    dash, _, rest = signature.partition(" ")
    signer, _, encoded = rest.partition(" ")
    if not separator or dash != "—" or not encoded.endswith("\n"):
        raise Bad("expected a signed note: a text, an empty line, and a line `— name signature`")
    data = _unb64(encoded[:-1], "the signature")
    key_id = sha256(name.encode() + b"\n\x01" + public.public_bytes_raw()).digest()[:4]
    if signer != name or data[:4] != key_id:
        raise Bad(f"expected a signature of {name}, got one of {signer[:100]}: another log's, or changed")
    try:
        public.verify(data[4:], text.encode())
    except InvalidSignature:
        raise Bad("a signature does not hold: the signed head or manifest was changed") from None
    return text


def _without_cosignatures(note: str) -> str:
    """Return a head with its first signature line, the log's. Raises: Bad if a further line is no signature line."""
    text, _, tail = note.rpartition("\n\n")
    first, *more = tail.split("\n")[:-1] or [""]
    for line in more:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        if dash != "—" or not name or len(more) > _SIGNATURES_MAX:
            raise Bad("expected lines `— name signature` under the head: it was changed")
        _unb64(encoded, f"the cosignature of {name[:100]}")
    return f"{text}\n\n{first}\n"


def _check_witnesses(report: Report, note: str, policy: TrustPolicy) -> Report:
    """Return the report with what each witness says. Raises: _Stopped unless the quorum vouches for this head."""
    found = policy.check(note)
    report = replace(report, witnesses=tuple(asdict(one) for one in found.witnesses))
    vouching = sum(one.cosigned_at is not None for one in found.witnesses)
    if not found.met:
        missing = ", ".join(f"{one.name} ({one.problem})" for one in found.witnesses if one.cosigned_at is None)
        problem = (
            f"the quorum {found.quorum} of the policy does not vouch for this head of {report.size} records: "
            f"{missing}; export again once the witnesses are reached, or ask them which history they know"
        )
        raise _Stopped(report, Bad(problem))
    count = f"{vouching} of {len(found.witnesses)} witnesses"
    return _add_check(report, f"the policy's quorum {found.quorum} vouches for this head: {count}")


def _head(text: str, name: str) -> tuple[str, int, bytes]:
    lines = text.split("\n")
    if len(lines) != 4 or lines[0] != name:
        raise Bad(f"expected a head of {name}: origin, size and root on a line each")
    return lines[0], _decimal(lines[1]), _unb64(lines[2], "the root")


# ---- 5 and 6. the records


class _Stopped(Exception):
    """A bad record, with the report so far."""

    def __init__(self, report: Report, bad: Bad) -> None:
        super().__init__(str(bad))
        self.report, self.bad = report, bad


def _records(report: Report, members: dict[str, _Member], root: bytes | None) -> Report:
    manifest = _manifest(members)
    size, count, terms = manifest.get("size"), manifest.get("records"), manifest.get("filter")
    size, count = (size if isinstance(size, int) else 0), (count if isinstance(count, int) else 0)
    report = replace(report, kind=str(manifest.get("kind")), size=report.size or size)
    if report.kind not in ("whole", "extract") or not isinstance(terms, dict):
        raise Bad(f"expected the whole log, or an extract and its filter, got a file of the kind {report.kind[:60]!r}")
    report = replace(report, filter=terms)
    whole = report.kind == "whole"
    identities: list[Mapping[str, Any]] = []
    if whole:
        held, bad = _check_whole(members, size=size, root=root, identities=identities)
    else:
        held, bad = _check_extract(members, size=size, root=root, terms=terms, identities=identities)
    report = replace(report, records=held, identities=tuple(identities))
    expected = size if whole else count
    if bad is None and held != expected:
        came = "more" if held > expected else held
        bad = Bad(f"expected {expected} records, the file has {came}: records are missing or too many", held)
    if bad is not None:
        raise _Stopped(report, bad)
    how = "the leaves of all records give the signed root" if whole else "each record is under the signed root"
    return _add_check(_add_check(report, f"{held} records match their commitments"), how)


def _manifest(members: dict[str, _Member]) -> dict[str, Any]:
    try:
        manifest = json.loads(members["manifest.json"].text())
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise Bad("manifest.json is not a JSON object: it was changed")
    return manifest


def _check_whole(
    members: dict[str, _Member], *, size: int, root: bytes | None, identities: list[Mapping[str, Any]]
) -> tuple[int, Bad | None]:
    """Check every record against its leaf, and the leaves against the root; return how many hold, and the first
    problem. `identities`: where verified identities are added."""
    stated, computed, held = _Range(), _Range(), 0
    bad: Bad | None = None
    untimely: Bad | None = None
    leaves = members["leaves"].pieces(32)
    for index, line in enumerate(members["events.jsonl"].lines()):
        leaf = next(leaves, b"")
        try:
            found, record = _leaf(line, index)
        except Bad as error:  # what follows is not looked at: it can be anything, in any quantity
            bad = bad or error
            stated.add(leaf)
            break
        if found != leaf and bad is None:
            bad, computed = Bad(f"record {index} does not match its leaf", index), stated.copy()
        stated.add(leaf)
        if bad is None:
            held += 1
            _add_identity(record, identities)
            untimely = untimely or _time_out_of_order(record)
        else:
            computed.add(found)
        if index >= size:  # one too many is as bad as a million
            break
    missing = next(leaves, None)
    if missing is not None and bad is None:
        bad = Bad(f"record {held} is missing: the tree holds more leaves than the file has records", held)
    for leaf in (missing, *leaves) if missing is not None else ():
        stated.add(leaf)
    return held, _combine(bad, leaves_hold=stated.root() == root, records_hold=computed.root() == root) or untimely


def _combine(bad: Bad | None, *, leaves_hold: bool, records_hold: bool) -> Bad | None:
    """Return the first problem, as the two roots show it."""
    if bad is None and not leaves_hold:
        return Bad(
            "every record matches its leaf, but the leaves do not give the signed root: the head was changed, or "
            "records were added, removed or rewritten together with their leaves"
        )
    if bad is not None and leaves_hold:
        return Bad(f"{bad}; its leaf stands under the signed root, so it is the record that was changed", bad.record)
    if bad is not None and records_hold:
        return Bad(f"{bad}; the records give the signed root, so it is the leaf that was changed", bad.record)
    return bad


def _check_extract(
    members: dict[str, _Member],
    *,
    size: int,
    root: bytes | None,
    terms: dict[str, Any],
    identities: list[Mapping[str, Any]],
) -> tuple[int, Bad | None]:
    """Check every record against the root by its own proof, and against the terms of the filter."""
    if members["leaves"].size:
        return 0, Bad("an extract has no leaves: the file was changed")
    held, last = 0, -1
    for line in members["events.jsonl"].lines():
        try:
            leaf, record = _leaf(line, None)
            index = int(record["idx"])
            if index <= last:
                raise Bad(f"record {index} stands after record {last}: expected them in order", index)
            path = [_unb64(step, "a hash of the proof") for step in record["proof"]]
            if _climb(index, size, leaf, path) != root:
                raise Bad(f"record {index} was changed, or was never under the signed root", index)
            _check_time(record["body"], record["ts"], index)
            if unlike := _mismatched_term(record["body"], record["ts"], terms):
                raise Bad(f"record {index} is not of the filter that the file states: {unlike} is another", index)
        except Bad as error:
            return held, Bad(f"line {held + 1}: {error}", error.record)
        held, last = held + 1, index
        _add_identity(record, identities)
    return held, None


def _add_identity(record: Mapping[str, Any], identities: list[Mapping[str, Any]]) -> None:
    """Add what a record of a concluded agreement says about the counterparty's identity, up to a limit."""
    body, detail = record["body"], record["body"].get("detail")
    verified = detail.get("verified") if isinstance(detail, dict) else None
    if body["kind"] == "AgreementConcluded" and isinstance(verified, dict) and len(identities) < _IDENTITIES_MAX:
        identities.append({"record": record["idx"], "agreement": body.get("agreement"), **verified})


def _mismatched_term(body: dict[str, Any], ts: int, terms: dict[str, Any]) -> str:
    """Return the first term of a filter that a record does not meet; empty if it meets all, as far as its text
    shows."""
    said = {"outcome": "ok"} | body  # the writer compares with as much as its columns hold
    for name in ("kind", "actor", "agreement", "outcome"):
        if name in terms and str(said.get(name, ""))[:_COLUMN_MAX] != terms[name]:
            return name
    datasets = [terms[name] for name in ("dataset", "named") if name in terms]
    about = str(body.get("dataset", ""))[:_COLUMN_MAX]
    # A record that names no dataset is about its agreement's, which only the log's owner can tell.
    if datasets and about not in datasets and (about or not body.get("agreement")):
        return "dataset"
    since, until = terms.get("since"), terms.get("until")  # its leaf has whole seconds
    if isinstance(since, int | float) and ts + 1 <= since:
        return "since"
    return "until" if isinstance(until, int | float) and ts >= until else ""


def _time_out_of_order(record: dict[str, Any]) -> Bad | None:
    try:
        _check_time(record["body"], record["ts"], record["idx"])
    except Bad as error:
        return error
    return None


def _check_time(body: dict[str, Any], ts: int, idx: int) -> None:
    """Raises: Bad if a record's text has another time than its leaf, which has whole seconds."""
    try:
        away = (datetime.fromisoformat(body["time"]) - _EPOCH).total_seconds() - ts
    except (KeyError, TypeError, ValueError, OverflowError):
        away = -1.0
    if not 0 <= away <= 1:  # one: its text is rounded
        raise Bad(f"record {idx} says two times, {body.get('time')!r} in its text and {ts} in its leaf", idx)


def _leaf(line: bytes, index: int | None) -> tuple[bytes, dict[str, Any]]:
    """Return the leaf hash of a line, computed from its content. Raises: Bad if it is not a record in canonical
    form."""
    try:
        record = json.loads(line, parse_constant=_no_constant)
        body, idx, salt, ts = record["body"], record["idx"], record["salt"], record["ts"]
        kind, data = body["kind"], _unb64(salt, "the salt")
        proof = record.get("proof")
        sound = type(idx) is int and type(ts) is int and isinstance(kind, str) and len(data) == 16
        sound = sound and (index is None) == isinstance(proof, list) and len(record) == (5 if index is None else 4)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, Bad):
        sound = False
    if not sound:
        where = "a record" if index is None else f"record {index}"
        raise Bad(f"{where} cannot be read: its line is not a record, so it was changed or cut", index)
    if index is not None and idx != index:
        raise Bad(f"expected record {index}, got one numbered {idx}: a record is missing, doubled or moved", index)
    for write in (_quote_fast, canonical):  # the quick form is the same for all but rare numbers and keys
        rest = "" if proof is None else f'"proof":{_quote_fast(proof)},'
        with suppress(ValueError, OverflowError, RecursionError):  # overflow: of a number that is none of JSON's here
            text = write(body)
            if line == f'{{"body":{text},"idx":{idx},{rest}"salt":"{salt}","ts":{ts}}}\n'.encode():
                return sha256(b"\x00" + _log_entry(text, data, kind, ts)).digest(), record
    raise Bad(f"record {idx} is not in canonical form: its bytes were changed", idx)


def _log_entry(text: str, salt: bytes, kind: str, ts: int) -> bytes:
    """Return the bytes that the tree hashes for a record: its time, its kind, and the commitment to its text."""
    commitment = _b64(sha256(salt + text.encode()).digest())
    return f'{{"c":"{commitment}","t":{_quote_fast(kind)},"ts":{ts},"v":1}}'.encode()


class _Range:
    """The root over leaves that are added one by one, in memory that grows with the logarithm of their number."""

    def __init__(self, stack: list[tuple[int, bytes]] | None = None) -> None:
        self._stack = stack or []

    def copy(self) -> _Range:
        return _Range(list(self._stack))

    def add(self, leaf: bytes) -> None:
        height = 0
        while self._stack and self._stack[-1][0] == height:
            leaf = _node(self._stack.pop()[1], leaf)
            height += 1
        self._stack.append((height, leaf))

    def root(self) -> bytes:
        if not self._stack:
            return _EMPTY
        top = self._stack[-1][1]
        for _, left in reversed(self._stack[:-1]):
            top = _node(left, top)
        return top


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _climb(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes | None:
    """Return the root that a proof leads to (RFC 9162 §2.1.3.2); None if the proof has the wrong length."""
    if not 0 <= index < size:
        return None
    at, last, found = index, size - 1, leaf
    for step in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            found = _node(step, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = _node(found, step)
        at, last = at >> 1, last >> 1
    return found if last == 0 else None


def _is_consistent(old: int, new: int, old_root: bytes, new_root: bytes, path: list[bytes]) -> bool:
    """Return whether a proof shows that the old tree is a prefix of the new one (RFC 9162 §2.1.4.2)."""
    if not 0 < old <= new or (old == new and path):
        return False
    if old == new:
        return old_root == new_root
    if old & (old - 1) == 0:
        path = [old_root, *path]
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    left = right = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            left, right = _node(step, left), _node(step, right)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            right = _node(right, step)
        at, last = at >> 1, last >> 1
    return last == 0 and left == old_root and right == new_root


# ---- 9. the earlier file


def _check_continues(report: Report, path: str | PathLike[str], before: Report, after: str | PathLike[str]) -> None:
    """Raises: Bad unless the log of `report` begins with the log under the head of `before`."""
    if not before.ok:
        raise Bad(f"the earlier file does not hold: {before.problem}")
    if before.key != report.key:
        raise Bad("the earlier file is signed with another key: it is another log, or this one before it began anew")
    if before.size > report.size:
        raise Bad(
            f"the earlier file has a head of {before.size} records, this one of {report.size}: records are gone, or "
            "the two files are the wrong way round"
        )
    if report.kind != "whole" and before.size < report.size:
        raise Bad(EXTRACT_LATER)
    began = _first_root(path, before.size) if report.kind == "whole" else report.root
    if began != before.root:
        first = _first_difference(path, after) if (report.kind, before.kind) == ("whole", "whole") else None
        where = "" if first is None else f", record {first} first"
        raise Bad(
            f"history was changed: the first {before.size} records are not those of the earlier file{where}", first
        )


def _first_root(path: str | PathLike[str], size: int) -> str:
    """Return the root of the first `size` records of a whole export."""
    begun = _Range()
    with Path(path).open("rb") as file:
        for leaf in islice(_read_container(file)["leaves"].pieces(32), size):
            begun.add(leaf)
    return _b64(begun.root())


def _first_difference(path: str | PathLike[str], after: str | PathLike[str]) -> int | None:
    """Return the first record in which two whole exports differ."""
    with Path(path).open("rb") as new, Path(after).open("rb") as old:
        pairs = zip(_read_container(old)["leaves"].pieces(32), _read_container(new)["leaves"].pieces(32), strict=False)
        return next((index for index, (one, other) in enumerate(pairs) if one != other), None)


# ---- text forms


def canonical(value: Any) -> str:
    """Return the RFC 8785 text of a JSON value."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_quote_fast(key)}:{canonical(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    if isinstance(value, float) or (type(value) is int and abs(value) > 2**53):
        return _number(float(value))
    return _quote_fast(value)


def _quote_fast(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _number(value: float) -> str:
    """Return ECMA-262 Number::toString: the shortest digits, in its choice of form."""
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("a number that JSON does not have")
    if value < 0:
        return "-" + _number(-value)
    if value == 0:
        return "0"
    shortest = Decimal(repr(value)).as_tuple()
    digits = "".join(str(digit) for digit in shortest.digits)
    n = len(digits) + int(shortest.exponent)
    digits = digits.lstrip("0").rstrip("0")
    k = len(digits)
    if k <= n <= 21:
        return digits.ljust(n, "0")
    if 0 < n <= 21:
        return digits[:n] + "." + digits[n:]
    if -6 < n <= 0:
        return "0." + digits.rjust(k - n, "0")
    mantissa = digits if k == 1 else digits[0] + "." + digits[1:]
    return f"{mantissa}e{n - 1:+d}"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: Any, what: str) -> bytes:
    """Decode strictly: one text for one value, so that no changed character goes unnoticed."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError, binascii.Error):
        data = b""
    if not data or _b64(data) != text:
        raise Bad(f"{what} is not base64 as the writer writes it: it was changed")
    return data


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or (text != "0" and text.startswith("0")):
        raise Bad(f"expected a whole number, got {text[:30]!r}")
    return int(text)


def _add_check(report: Report, check: str) -> Report:
    return replace(report, checks=(*report.checks, check))
