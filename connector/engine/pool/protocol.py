"""What the main process asks of a worker, and the frames that come back. Standard library only: both ends load it.

A job goes over a socket of its own: its JSON, then its blobs. Back come frames of a fixed header and a payload:
`schema` and `trailer` (a prepared end record), any number of `batch`, and `end` or `error`, after `answers` (JSON: what
the answers that came unread hold) where there are any; or any number of `progress` (JSON: a stage, and how many files
are done in it) and one `value`. A batch whose header names a slot has its payload in shared memory
(`shared_memory`); one that is `scattered` has pieces of it there and pieces in the files of the job's first
relation, and its frame says where (PIECE each). After the job, the connector sends single bytes: GO where the job is
held, then the number of a slot that is free again, or ANYWAY.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA: Final = 1
TRAILER: Final = 2
BATCH: Final = 3
END: Final = 4
ERROR: Final = 5
VALUE: Final = 6
PROGRESS: Final = 7
ANSWERS: Final = 8
SCATTERED: Final = 9

# Kind, digest length, slot, rows, payload length, the block of a batch (negative: none), digest so far.
HEADER: Final = struct.Struct("<BBBxIQi32s")
PIECE: Final = struct.Struct("<iQQ")  # of a message: the file's number, or IN_SLOT; offset; bytes
IN_SLOT: Final = -1
GO: Final = 255
ANYWAY: Final = 0  # send one batch over the socket: every slot is held by somebody who wants more
# What goes to a worker beside a job's socket: (a desk to borrow objects at, the memory of a ring) -> the byte sent.
WITH: Final = {(False, False): b"j", (True, False): b"d", (False, True): b"r", (True, True): b"b"}
BATCH_BYTES: Final = 3 * 2**20
SLOTS: Final = 3  # one being filled, one waiting, one being sent
LENGTH: Final = struct.Struct("<I")
# A worker's request for blocks of an object: what, relation, file, first block, how many.
LOAN: Final = struct.Struct("<cIIII")
ARROW: Final = "arrow"
READ: Final = b"r"
CHECK: Final = b"c"
NO_REPORT: Final = "no report"  # for the class of an error: its session ended as nobody foresaw
PAYLOAD_MAX: Final = 1 << 31
JOB_MAX: Final = 16 * 2**20

# The end record stands in this many bytes of the trailer's metadata, padded with spaces.
TRAILER_ROOM: Final = 2048
TRAILER_KEY: Final = "hanse.end"
AT_KEY: Final = "hanse.at"  # JSON: the block a batch is from, the cursor after its last row

IN_PLACE: Final = ""  # each scan reads the file, and the engine knows nothing
HELD: Final = "held"  # in memory of ours, the fastest where it is little: it knows how many rows there are
LOADED: Final = "loaded"  # in the engine, and on its disk where they are many: it knows how many differ
_PAGE: Final = 2**17  # bytes that a column takes at least while it is read
PARQUET: Final = ("parquet", "hive", "s3")  # kinds of relations whose rows lie in Parquet


@dataclass(frozen=True, slots=True)
class Relation:
    """A name the SQL may use, and where its rows are: files of a source kind, or blob number `blob` of the job.

    `files` are `FileRef.to_json()` values; `row_bytes` holds the average width of columns where it is known. `taken`,
    in a job that reads its files once: where their rows are when it begins, of which the engine knows all the more by
    which it orders joins. `columns`: what a blob must hold, no more and no less, where somebody has said so.
    `answers`: blobs, each what an owner answered, unread, their rows in this order; the job fails unless all are whole.
    """

    kind: str
    files: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    row_bytes: Mapping[str, float] = field(default_factory=dict)
    blob: int | None = None
    taken: str = IN_PLACE  # HELD, LOADED
    columns: tuple[str, ...] = ()
    answers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds` of work without a batch leaving; `total_seconds` of work altogether (waiting readers do not count)."""

    seconds: float = 60.0
    total_seconds: float | None = None
    rows: int | None = None
    bytes: int | None = None
    memory_mb: int = 512
    temp_mb: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Recheck:
    """What the engine's own parser may find in the SQL: these relations, these functions, nothing else."""

    names: tuple[str, ...]
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Rows `first` to `stop` of file number `file`, told to the reader as block `block` where it is not negative."""

    block: int
    file: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Ranges:
    """Read only these rows of the job's first relation, in this order, and say after each batch where it ended.

    The place goes into the batch's metadata (`AT_KEY`) as a cursor sealed with `key` (hexadecimal); without a key there
    is none. `position` names the last column of the answer, which holds each row's number and does not leave; empty
    where no row is left out or no place is told.
    """

    ranges: Sequence[Range]
    key: str
    position: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a worker. `kind`: query (frames), or report, plan, profile, convert, check_arrow,
    read_answers, shapes, unite_keys, verbatim (one value).

    `scan` names a relation whose rows `sql` gives as they are, some columns of them: then there may be a faster way
    than the engine. `even`: rows are hidden, so where a batch ends depends on those that leave and on nothing else.
    `passed`: the only relation is a stream (`once`) whose rows are the answer, under these names;
    no engine is opened where its types are plain. Batches have about `batch_bytes` and at most `batch_rows`.
    `given_on`: columns of the only relation that `sql` gives on as they are stored and looks at nowhere: their values
    may be put in after it. `spans`: what is left in files may be sent from there, by who reads the frames. `shared`
    jobs are plain scans that may run beside others in one process; SQL that somebody wrote never is. `ordered`: rows
    come in the order in which they are stored. `consumer` is whom the work is for: free workers go round between
    consumers. `once`: its files are Arrow streams, found valid, that no other job reads. `held`: a query is made ready,
    and no row of it is read before GO.
    """

    kind: str = "query"
    relations: Mapping[str, Relation] = field(default_factory=dict)
    sql: str = ""
    params: Sequence[Any] | Mapping[str, Any] = ()
    recheck: Recheck | None = None
    scan: str = ""
    given_on: Sequence[str] = ()
    spans: bool = False
    even: bool = False
    passed: Sequence[str] = ()
    only: Ranges | None = None
    limits: Limits = Limits()
    batch_bytes: int = BATCH_BYTES
    slots: int = SLOTS  # of the ring: batches that may wait for the reader
    batch_rows: int | None = None
    noise: Mapping[str, Any] | None = None  # `query.noise.add` changes the answer by it, before anything leaves
    format: str = "arrow"  # or one that `connector.engine.worker.write.file_formats` knows
    codec: str = "none"  # none, lz4 or zstd
    digest: str = "xxh3"  # xxh3, sha256 or none
    trailer_room: int = TRAILER_ROOM  # bytes kept free for the end record
    arguments: Mapping[str, Any] = field(default_factory=dict)
    blobs: tuple[bytes, ...] = ()
    consumer: str = ""
    shared: bool = False
    ordered: bool = False
    once: bool = False
    held: bool = False

    def encode(self) -> bytes:
        """The job as it goes to the worker, blobs after it."""
        plain = fields_of(self) | {"blobs": [len(blob) for blob in self.blobs]}
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), default=_listed).encode()
        if len(text) > JOB_MAX:
            raise ValueError(f"expected a job of at most {JOB_MAX} bytes, came {len(text)}; send keys as a blob")
        return b"".join((LENGTH.pack(len(text)), text, *self.blobs))


def is_wide(columns: int, memory_mb: int) -> bool:
    """Whether a scan of so many columns, a page of each, takes more than its memory."""
    return columns * _PAGE > memory_mb * 2**20


def decode(text: bytes) -> tuple[Job, list[int]]:
    """The job in its JSON, without its blobs, and the blobs' sizes."""
    plain = json.loads(text)
    sizes: list[int] = plain.pop("blobs")
    recheck, only = plain.pop("recheck"), plain.pop("only")
    return (
        Job(
            **plain
            | {
                "relations": {name: Relation(**value) for name, value in plain["relations"].items()},
                "limits": Limits(**plain["limits"]),
                "recheck": Recheck(tuple(recheck["names"]), tuple(recheck["functions"])) if recheck else None,
                "only": Ranges(**only | {"ranges": [Range(**one) for one in only["ranges"]]}) if only else None,
            }
        ),
        sizes,
    )


def fields_of(value: Job | Relation | Limits | Recheck | Range | Ranges) -> dict[str, Any]:
    """The fields as they are: what is in them becomes JSON one by one. `asdict` copies every value below them first."""
    return {name: getattr(value, name) for name in value.__slots__}


def _listed(value: object) -> object:
    if isinstance(value, Relation | Limits | Recheck | Range | Ranges):
        return fields_of(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a job holds JSON values, came {type(value).__name__}")
