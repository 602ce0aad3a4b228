"""What a consumer asks of the data plane, as values: the read, its limits, and the record at the end of its stream.

Pure. Knows neither HTTP nor the engine; the SQL in here is still the consumer's and has passed no gate.
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
from connector.errors import BadInput, QueryInvalid, check_harmless
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
ENDS = frozenset({REVOKED, EXPIRED, QUOTA})  # statuses that are the code of their end; of the others it says more

_WHERE_MAX = 16_384
_COLUMNS_MAX = 4_096
_REASON_MAX = 400
_ID_MAX = 96


@dataclass(frozen=True, slots=True)
class JoinTable:
    """A small table that the consumer brings along to join with: an Arrow stream of exactly these columns.

    `sha256`: of the stream, for the log.
    """

    name: str
    columns: tuple[str, ...]
    arrow: bytes
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """SQL does not tell names apart by their case, so that two alike would be one column for the gate alone."""
        seen: set[str] = set()
        for column in self.columns:
            if fold(column) in seen:
                raise BadInput(
                    f"expected each column of keys.{self.name} once, whatever its case, came {column[:100]!r} again",
                    code="envelope_invalid",
                )
            seen.add(fold(column))
        object.__setattr__(self, "sha256", hashlib.sha256(self.arrow).hexdigest())


@dataclass(frozen=True, slots=True)
class Split:
    """Some rows of one version, by their place. Made by `plans` under the reader's ticket, never by the reader.

    `resumed`: the first range begins in the middle of its block. `shown`: what the contract shows that its cursors, or
    the parts beside it, are for; empty where it has none.
    """

    snapshot: str
    only: Ranges
    resumed: bool = False
    shown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """One read. `tickets` are those shown, one for each dataset that the SQL may name; all belong to the same consumer.
    Of which agreements the read is, the gate finds out."""

    tickets: tuple[Ticket, ...]
    sql: str
    action: str
    purpose: str = ""
    application: str = ""  # what asks, as it declares itself
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
    versions: Mapping[str, str] = field(default_factory=dict)  # of datasets by id: another one is no answer
    brought: tuple[JoinTable, ...] = ()
    split: Split | None = None
    epsilon: float | None = None  # where answers carry noise: what this one may cost of the budget
    transport: str = ""  # what it leaves by, for people: http, flight or push
    to: str = ""  # where a push goes: scheme, host and port

    def __post_init__(self) -> None:
        consumers = {ticket.consumer for ticket in self.tickets}
        if len(consumers) != 1:
            raise BadInput("expected tickets of one consumer", code="tickets_mixed")
        for name, value, known in (
            ("action", self.action, tuple(ACTIONS.values())),
            ("codec", self.codec, CODECS),
            ("digest", self.digest, DIGESTS),
        ):
            if value not in known:
                raise BadInput(f"expected {name} to be one of {', '.join(known)}, came {value[:50]!r}")
        for name, number in (("rows", self.rows), ("bytes", self.nbytes), ("batch_rows", self.batch_rows)):
            if number is not None and number < 1:
                raise BadInput(f"expected {name} to be at least 1, came {number}")
        check_harmless(purpose=self.purpose, application=self.application, fragment=self.fragment)

    @property
    def consumer(self) -> str:
        return self.tickets[0].consumer

    @property
    def position(self) -> str:
        """The column of positions that is read and does not leave; empty where there is none."""
        return self.split.only.position if self.split else ""


def build_rows_sql(name: tuple[str, str], *, columns: Sequence[str] = (), where: str = "", position: str = "") -> str:
    """SQL for the rows of one dataset. QueryInvalid where `where` is more than a condition on rows.

    The condition is read with the gate's own parser, so that it cannot close a bracket of ours; the gate reads the
    whole again.
    """
    if len(columns) > _COLUMNS_MAX or len(where) > _WHERE_MAX:
        raise QueryInvalid(f"expected at most {_COLUMNS_MAX} columns and {_WHERE_MAX} characters of condition")
    named = [*columns, position] if position and columns else columns  # all of them by * have the position too
    shown = ", ".join(quote_identifier(column) for column in named) or "*"
    sql = f"SELECT {shown} FROM {quote_identifier(name[0])}.{quote_identifier(name[1])}"  # noqa: S608  quoted; the gate reads it anew
    sql = f"{sql} WHERE {_parse_condition(where)}" if where.strip() else sql
    if len(sql) > DEFAULT.characters:
        raise QueryInvalid(
            f"expected columns and a condition of at most {DEFAULT.characters} characters together, as SQL, came "
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
        raise QueryInvalid("expected a condition on columns (age > 50 AND sex = 'f'), came more than that")
    if any(tree.find_all(exp.Subquery, exp.Exists)):
        raise QueryInvalid(
            "expected a condition on the dataset's own columns, came a query inside it; send it as a query"
        )
    return str(held.this.sql(dialect="duckdb", comments=False))


def make_read_id(named: str) -> str:
    """The id of a new read that its reader calls so: it begins with that, and no other read ever has it. Empty where he
    calls it nothing; it gets one when it is opened."""
    return named and f"{named}.{secrets.token_hex(8)}"


def make_name() -> str:
    """A name of ours in SQL that no question can have guessed."""
    return f"r_{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended, for its last record and for the log. `agreement`: the one that ended it, where one did;
    `withdrawn`: its own consumer did."""

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
    left_out: tuple[str, ...] = ()  # what may be withheld, in sentences
    query: str = ""
    agreement: str = ""
    withdrawn: bool = False

    def fill(self, trailer: bytes) -> bytes:
        """The prepared trailer with this record in it, and the end of the stream after it."""
        texts = (json.dumps(told, ensure_ascii=True, separators=(",", ":")) for told in self._shorter())
        text = next(text for text in texts if len(text) <= TRAILER_ROOM - SEAL_BYTES)
        start = trailer.rindex(b" " * TRAILER_ROOM)
        room = sealed(text).ljust(TRAILER_ROOM)
        return trailer[:start] + room + trailer[start + TRAILER_ROOM :] + END_OF_STREAM

    def _shorter(self) -> Iterator[dict[str, Any]]:
        """What is told; then with ever fewer notes, and how many are left out; then without its reason and its rule."""
        told = self.to_json()
        notes = told["policy"]
        yield told
        for count in reversed(range(len(notes))):
            yield told | {"policy": [*notes[:count], f"{len(notes) - count} more, which had no room here"]}
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
