"""Values of a read: the request with its limits, and the record at the end of its stream.

Pure. Must not know HTTP or the engine. The SQL in a request is the consumer's own and has not passed the gate.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connector.dataplane.tickets import Ticket
from connector.engine.pool.protocol import TRAILER_ROOM, Ranges
from connector.errors import Invalid, QueryInvalid, check_harmless
from connector.infra.formats.digests import NAMES as DIGESTS
from connector.infra.formats.digests import SEAL_BYTES, sealed
from connector.usage.held_agreement import EXPIRED, REVOKED
from policies.contracts.columns import fold, quote_identifier
from policies.enforce.withheld import Withheld
from policies.model import HANSE
from policies.sql.limits import DEFAULT

QUERY, STREAM = HANSE + "query", HANSE + "stream"
ACTIONS: Mapping[str, str] = {"query": QUERY, "stream": STREAM}
CODECS = ("none", "lz4", "zstd")
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

COMPLETE = "complete"
REFUSED = "refused"
QUOTA = "quota"
FAILED = "error"
ENDS = frozenset({REVOKED, EXPIRED, QUOTA})  # statuses that equal their code; other ends have a code of their own

_WHERE_MAX = 16_384
_COLUMNS_MAX = 4_096
_REASON_MAX = 400
_ID_MAX = 96


@dataclass(frozen=True, slots=True)
class JoinTable:
    """A small table that the consumer sends along to join with: an Arrow stream of exactly these columns.

    `sha256` is the digest of the stream, for the log.
    """

    name: str
    columns: tuple[str, ...]
    arrow: bytes
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Refuse names that differ only in case: the gate would take them for one column, as SQL does."""
        seen: set[str] = set()
        for column in self.columns:
            if fold(column) in seen:
                raise Invalid(
                    f"expected each column of keys.{self.name} once, whatever its case, got {column[:100]!r} again",
                    code="envelope_invalid",
                )
            seen.add(fold(column))
        object.__setattr__(self, "sha256", hashlib.sha256(self.arrow).hexdigest())


@dataclass(frozen=True, slots=True)
class Split:
    """Row ranges of one version, made by `block_plan` under the reader's ticket, never by the reader.

    `resumed`: the first range begins in the middle of its block. `shown`: the visibility key of the contract that the
    cursors, or the other parts, were made for; empty without one.
    """

    snapshot: str
    only: Ranges
    resumed: bool = False
    shown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """One read. `tickets` has one ticket for each dataset that the SQL may name, all of the same consumer.

    The gate decides which of the agreements the read is under.
    """

    tickets: tuple[Ticket, ...]
    sql: str
    action: str
    purpose: str = ""
    application: str = ""  # the asking application, as it declares itself
    job: str = ""  # the training job, as the consumer declares it
    plain_scan: bool = False  # rows of one dataset with a condition, nothing else
    unfiltered: bool = False  # and without the condition
    rows: int | None = None
    nbytes: int | None = None
    seconds: float | None = None
    batch_rows: int | None = None
    format: str = "arrow"  # or one of `formats.MEDIA`: then the stream has no end record
    codec: str = "none"
    digest: str = "xxh3"
    query_id: str = ""
    fragment: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # required versions of datasets, by id
    brought: tuple[JoinTable, ...] = ()
    split: Split | None = None
    epsilon: float | None = None  # for answers with noise: the budget that this one may spend
    transport: str = ""  # for people: http, flight or push
    to: str = ""  # target of a push: scheme, host and port

    def __post_init__(self) -> None:
        consumers = {ticket.consumer for ticket in self.tickets}
        if len(consumers) != 1:
            raise Invalid("expected tickets of one consumer", code="tickets_mixed")
        for name, value, known in (
            ("action", self.action, tuple(ACTIONS.values())),
            ("codec", self.codec, CODECS),
            ("digest", self.digest, DIGESTS),
        ):
            if value not in known:
                raise Invalid(f"expected {name} to be one of {', '.join(known)}, got {value[:50]!r}")
        for name, number in (("rows", self.rows), ("bytes", self.nbytes), ("batch_rows", self.batch_rows)):
            if number is not None and number < 1:
                raise Invalid(f"expected {name} to be at least 1, got {number}")
        check_harmless(purpose=self.purpose, application=self.application, fragment=self.fragment, job=self.job)

    @property
    def consumer(self) -> str:
        return self.tickets[0].consumer

    @property
    def position(self) -> str:
        """The position column, which is read and does not leave; empty without one."""
        return self.split.only.position if self.split else ""


def build_rows_sql(name: tuple[str, str], *, columns: Sequence[str] = (), where: str = "", position: str = "") -> str:
    """Return SQL for the rows of one dataset.

    The condition is parsed with the gate's own parser, so that it cannot close our bracket. The gate parses the whole
    again.

    Raises: QueryInvalid where `where` is more than a condition on rows.
    """
    if len(columns) > _COLUMNS_MAX or len(where) > _WHERE_MAX:
        raise QueryInvalid(f"expected at most {_COLUMNS_MAX} columns and {_WHERE_MAX} characters of condition")
    named = [*columns, position] if position and columns else columns  # a * has the position too
    shown = ", ".join(quote_identifier(column) for column in named) or "*"
    sql = f"SELECT {shown} FROM {quote_identifier(name[0])}.{quote_identifier(name[1])}"  # noqa: S608  quoted; the gate reads it anew
    sql = f"{sql} WHERE {_parse_condition(where)}" if where.strip() else sql
    if len(sql) > DEFAULT.characters:
        raise QueryInvalid(
            f"expected columns and a condition of at most {DEFAULT.characters} characters together, as SQL, got "
            f"{len(sql)}; name fewer columns (none: all that may be read), or send a shorter condition",
            code="query_too_long",
        )
    return sql


def _parse_condition(where: str) -> str:
    from sqlglot import exp

    from policies.sql import parse

    tree = parse.parse(f"SELECT 1 FROM t WHERE ({where})")  # noqa: S608  parsed, never run
    filled = {name for name, value in tree.args.items() if value}
    held = tree.args.get("where")
    if not isinstance(tree, exp.Select) or filled - {"expressions", "from", "from_", "where", "kind"} or held is None:
        raise QueryInvalid("expected a condition on columns (age > 50 AND sex = 'f'), got more than that")
    if any(tree.find_all(exp.Subquery, exp.Exists)):
        raise QueryInvalid(
            "expected a condition on the dataset's own columns, got a query inside it; send it as a query"
        )
    return str(held.this.sql(dialect="duckdb", comments=False))


def make_read_id(named: str) -> str:
    """Return a unique id that begins with the reader's own name for the read. Empty for an empty name: such a read gets
    its id when it is opened."""
    return named and f"{named}.{secrets.token_hex(8)}"


def make_name() -> str:
    """Return a random name for use in SQL, which no query can guess."""
    return f"r_{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended, for its last record and for the log.

    `agreement`: the agreement that ended it, if any. `withdrawn`: its own consumer ended it.
    """

    status: str
    rows: int
    batches: int
    nbytes: int
    digest: str
    code: str = ""
    reason: str = ""
    rule: str = ""
    policy: tuple[str, ...] = ()
    withheld: Withheld = Withheld.NOTHING
    left_out: tuple[str, ...] = ()  # sentences that say what may be withheld
    query: str = ""
    agreement: str = ""
    withdrawn: bool = False

    def fill(self, trailer: bytes) -> bytes:
        """Return the prepared trailer with this record in it, followed by the end of the stream."""
        texts = (json.dumps(told, ensure_ascii=True, separators=(",", ":")) for told in self._shorter())
        text = next(text for text in texts if len(text) <= TRAILER_ROOM - SEAL_BYTES)
        start = trailer.rindex(b" " * TRAILER_ROOM)
        room = sealed(text).ljust(TRAILER_ROOM)
        return trailer[:start] + room + trailer[start + TRAILER_ROOM :] + END_OF_STREAM

    def _shorter(self) -> Iterator[dict[str, Any]]:
        """Yield the record, then with ever fewer policy notes, then without reason and rule, until it fits."""
        told = self.to_json()
        notes = told["policy"]
        yield told
        for count in reversed(range(len(notes))):
            yield told | {"policy": [*notes[:count], f"{len(notes) - count} more, which did not fit here"]}
        yield (told := told | {"policy": [], "reason": ""})
        yield told | {"rule": ""}
        yield told | {"rule": "", "left_out": []}

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "status": self.status,
            "rows": self.rows,
            "batches": self.batches,
            "bytes": self.nbytes,
            "digest": self.digest,
            "policy": list(self.policy)[:20],
            "withheld": self.withheld.value,
            **({"left_out": list(self.left_out)} if self.left_out else {}),
            "query": self.query[:_ID_MAX],
        }
        extra = {"code": self.code, "reason": self.reason[:_REASON_MAX], "rule": self.rule[:200]}
        return told | {name: value for name, value in extra.items() if value}
