"""Wire protocol between the main process and a worker: jobs go in, frames come back. Standard library only: both ends
import it.

A job has its own socket. Its JSON goes first, then its blobs.

Frames come back, each a fixed header and a payload. A query sends `schema` and `trailer` (a prepared end record), any
number of `batch`, and `end` or `error`. `answers` comes first where the job has unread answers: JSON that says what
they hold. Other jobs send any number of `progress` (JSON: a stage, and how many files are done in it) and one `value`.

A batch whose header names a slot has its payload in shared memory (`shared_memory`).

After the job, the connector sends single bytes: GO for a held job, then the number of each slot that is free again, or
ANYWAY.
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

# Kind, digest length, slot, rows, payload length, the block of a batch (negative: none), digest so far.
HEADER: Final = struct.Struct("<BBBxIQi32s")
GO: Final = 255
ANYWAY: Final = 0  # send one batch over the socket: the reader wants more and has every slot
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
NO_REPORT: Final = "no report"  # for the class of an error: its session could not report its end
PAYLOAD_MAX: Final = 1 << 31
JOB_MAX: Final = 16 * 2**20

# The end record stands in this many bytes of the trailer's metadata, padded with spaces.
TRAILER_ROOM: Final = 2048
TRAILER_KEY: Final = "hanse.end"
AT_KEY: Final = "hanse.at"  # JSON: the block a batch is from, the cursor after its last row

IN_PLACE: Final = ""  # each scan reads the file, and the engine knows nothing
HELD: Final = "held"  # in our memory, the fastest where it is little: it knows how many rows there are
LOADED: Final = "loaded"  # in the engine, and on its disk where they are many: it knows how many differ
_PAGE: Final = 2**17  # bytes that a column takes at least while it is read
PARQUET: Final = ("parquet", "hive", "s3")  # kinds of relations whose rows lie in Parquet


@dataclass(frozen=True, slots=True)
class Relation:
    """A table name in the SQL and where its rows are: files of a source kind, or blob number `blob` of the job.

    `files` are `FileRef.to_json()` values. `row_bytes` holds the average width of columns where it is known. `taken`
    applies to a job that reads its files once: where the rows are stored when it begins, which decides how much the
    engine knows for ordering joins. `columns` are exactly the columns that a blob must hold; None: any. `answers` are
    blobs with unread answers of owners, their rows in this order; the job fails unless all of them are complete.
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
    """`seconds` of work without a batch sent; `total_seconds` of work altogether (time waiting for the reader
    excluded)."""

    seconds: float = 60.0
    total_seconds: float | None = None
    rows: int | None = None
    bytes: int | None = None
    memory_mb: int = 512
    temp_mb: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Recheck:
    """The only relations and functions that the engine's own parser may find in the SQL."""

    names: tuple[str, ...]
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Rows `first` to `stop` of file number `file`; a `block` that is not negative is reported with its batches."""

    block: int
    file: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Ranges:
    """Read only these rows of the job's first relation, in this order, and report after each batch where it ended.

    The place goes into the batch's metadata (`AT_KEY`) as a cursor sealed with `key` (hexadecimal), or is left out if
    there is no key. `position` names the last column of the answer: it holds each row's number and is removed. It is
    empty where no rows are skipped or no place is reported.
    """

    ranges: Sequence[Range]
    key: str
    position: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a worker.

    `kind` is query (returns frames), or report, plan, profile, convert, check_arrow, read_answers, shapes, unite_keys
    or verbatim (each returns one value).

    `scan` names a relation whose columns `sql` returns unchanged, some or all: then a faster way than the engine may be
    used. `even`: rows are hidden, so batch borders depend only on the rows that are sent. `passed`: the only relation
    is a stream (`once`) whose rows are the answer, under these names; no engine is opened where its types are plain.
    Batches have about `batch_bytes` and at most `batch_rows`. `shared` jobs are plain scans that may run in parallel in
    one process; SQL written by a person never is. `ordered`: rows come in the order in which they are stored.
    `consumer` is the party that the work is for: free workers go round-robin between consumers. `once`: its files are
    valid Arrow streams that no other job reads. `held`: a query is prepared, and reads no row before GO.
    """

    kind: str = "query"
    relations: Mapping[str, Relation] = field(default_factory=dict)
    sql: str = ""
    params: Sequence[Any] | Mapping[str, Any] = ()
    recheck: Recheck | None = None
    scan: str = ""
    even: bool = False
    passed: Sequence[str] = ()
    only: Ranges | None = None
    limits: Limits = Limits()
    batch_bytes: int = BATCH_BYTES
    slots: int = SLOTS  # of the ring: batches that may wait for the reader
    batch_rows: int | None = None
    noise: Mapping[str, Any] | None = None  # `noise.add` changes the answer by it, before anything leaves
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
        """Return the job as it is sent to the worker, followed by its blobs."""
        plain = fields_of(self) | {"blobs": [len(blob) for blob in self.blobs]}
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), default=_listed).encode()
        if len(text) > JOB_MAX:
            raise ValueError(f"expected a job of at most {JOB_MAX} bytes, came {len(text)}; send keys as a blob")
        return b"".join((LENGTH.pack(len(text)), text, *self.blobs))


def is_wide(columns: int, memory_mb: int) -> bool:
    """Whether a scan of so many columns, a page of each, needs more than its memory."""
    return columns * _PAGE > memory_mb * 2**20


def decode(text: bytes) -> tuple[Job, list[int]]:
    """Return the job of this JSON, without its blobs, and the blobs' sizes."""
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
    """Return the fields without copying their values, unlike `asdict`; the JSON encoder converts them one by one."""
    return {name: getattr(value, name) for name in value.__slots__}


def _listed(value: object) -> object:
    if isinstance(value, Relation | Limits | Recheck | Range | Ranges):
        return fields_of(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a job holds JSON values, came {type(value).__name__}")
