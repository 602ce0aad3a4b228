"""Error codes of jobs: a worker sends a code in place of the engine's message; here is the error for each code."""

from __future__ import annotations

from typing import Any

from connector.errors import (
    ConnectorError,
    EngineFailed,
    Invalid,
    Limited,
    PathRefused,
    QueryInvalid,
    SourceUnreadable,
    Unavailable,
    VersionChanged,
    WrongDigest,
)


class Coded(Exception):
    """A job ended with an error code; `facts` are for the caller."""

    def __init__(self, code: str, **facts: Any) -> None:
        super().__init__(code)
        self.code = code
        self.facts = facts


ROWS_TOO_LARGE = (  # what `memory_limit` is to who asked for rows as they are stored
    "some rows of this dataset, or those of a row group, need more memory than a read may take; ask for columns "
    "without large values, read fewer such datasets at once, or ask the owner to write smaller values or row groups"
)


def error_of(code: str, facts: dict[str, Any], message: str = "") -> ConnectorError:
    """Return the error for a worker's code; `message` replaces the table's sentence where ours is more precise."""
    kind, sentence = _ERRORS.get(code, _FAILED)
    return kind(message or sentence, code=code if code in _ERRORS else "engine_failed", **facts)


def status_of(code: str) -> int:
    """Return the HTTP status of that error; for an unknown code that of an internal failure."""
    kind, _ = _ERRORS.get(code, _FAILED)
    return kind.status


_FAILED = (EngineFailed, "the engine could not finish this query")
_ERRORS: dict[str, tuple[type[ConnectorError], str]] = {
    "query_invalid": (QueryInvalid, "the query does not fit the tables it names; check columns and types"),
    "computation_failed": (
        QueryInvalid,
        "the query cannot be computed: a number grows too large, something is divided by zero, a text, or one that is "
        "bound as a parameter, is taken for a number or a time that it is not, a time is compared that its column "
        "cannot hold (nanoseconds are from 1677 to 2262), or a subquery gives several rows where one value stands; use "
        "smaller numbers, NULLIF, TRY_CAST, a time between, or an aggregate in the subquery",
    ),
    "query_refused": (QueryInvalid, "the query holds something that is not allowed"),
    "recheck_failed": (QueryInvalid, "the query holds something that is not allowed"),
    "memory_limit": (Limited, "the query needs more memory than it may take; ask for less at once"),
    "time_limit": (Limited, "the query takes longer than it may; ask for less at once"),
    "rows_limit": (Limited, "the answer has more rows than it may; narrow the query"),
    "bytes_limit": (Limited, "the answer has more bytes than it may; narrow the query"),
    "cancelled": (EngineFailed, "the query was cancelled"),
    "worker_crashed": (EngineFailed, "the process that ran this query ended; try again"),
    "worker_wanted": (
        Unavailable,
        "others waited for a query worker and your reads had all of them, so the last of these was ended; ask again, "
        "and read faster, or fewer at once",
    ),
    "shutting_down": (Unavailable, "the connector is stopping; try again later"),
    "engine_failed": _FAILED,
    "version_changed": (VersionChanged, "the data is no longer what was registered; its owner must register it again"),
    "source_unreadable": (SourceUnreadable, "a data file cannot be read; its owner must check it"),
    "file_unavailable": (Unavailable, "a data file cannot be opened now; try again"),
    "not_parquet": (SourceUnreadable, "expected a Parquet file, came something else or a damaged one; write it again"),
    "footer_too_large": (SourceUnreadable, "a file says more of itself than a read has memory for; write it otherwise"),
    "codec_refused": (SourceUnreadable, "expected Parquet with zstd, snappy, lz4, gzip or no compression"),
    "lines_unreadable": (SourceUnreadable, "the file has lines that cannot be read; correct them or the options"),
    "option_invalid": (Invalid, "an option of the source does not fit; see what it takes"),
    "value_unmappable": (SourceUnreadable, "a column has values without an exact form; leave them out"),
    "columns_repeated": (SourceUnreadable, "two columns have one name; write the data again"),
    "schemas_differ": (SourceUnreadable, "the files are not of one schema; write them again"),
    "type_unread": (SourceUnreadable, "a column is of a type that cannot be given on as it is; write it as another"),
    "path_refused": (PathRefused, "the file is not one that may be read"),
    "store_refused": (SourceUnreadable, "the object store does not let the connector read there"),
    "store_unreachable": (SourceUnreadable, "the object store does not answer; try again"),
    "blocks_not_kept": (
        Unavailable,
        "what was read from the object store cannot be kept on the connector's disk; its operator must make room there",
    ),
    "disk_full": (
        Unavailable,
        "the answer cannot be written down at the connector that asked; its operator must make room on the disk of its "
        "data directory, or the question must ask for less",
    ),
    "format_unfit": (
        Invalid,
        "a column has no form in this format: Parquet has no intervals, and JSON no two columns of one name; leave it "
        "out, name it with AS, or ask for CSV or Arrow",
    ),
    "arrow_invalid": (Invalid, "expected valid Arrow IPC, came something damaged"),
    "arrow_columns": (Invalid, "expected Arrow with the columns that are named for it, came others; name all, once"),
    "arrow_repeats": (
        Invalid,
        "expected keys whose values stand for themselves, came run-end encoded or view columns, or dictionaries of "
        "nested values; cast them to plain types",
    ),
    "answer_unsound": (Invalid, "expected a whole answer of the columns that were asked for, came another"),
    "digest_mismatch": (
        WrongDigest,
        "expected an end record with the digest that it names, came another: it was changed on the way; send it again",
    ),
    "batch_too_long": (Invalid, "expected Arrow batches of at most 2147483647 rows each, came a longer one; cut it"),
    "arrow_too_large": (Invalid, "the Arrow data is larger than it may be"),
    "groups_max": (Limited, "the question makes more groups than are answered with noise; group by fewer dimensions"),
    "noise_failed": (EngineFailed, "the answer with noise could not be made; ask for less at once, or tell the owner"),
    "noise_unavailable": (
        Unavailable,
        "this connector cannot draw noise; its owner must install hanse-server[privacy]",
    ),
    "not_verbatim": (EngineFailed, "the files do not hold the stream as it is sent"),
    "job_invalid": (Invalid, "expected a job that a worker knows"),
}
