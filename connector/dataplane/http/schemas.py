"""JSON request bodies of the data plane: a query with its limits and tables, and a plan."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from connector.dataplane import read_request as ask
from connector.dataplane.read_request import JoinTable, ReadRequest
from connector.dataplane.tickets import Ticket
from connector.errors import Invalid
from connector.json_number import JSON_NUMBER
from policies.odrl import strictjson
from policies.vocabulary import expand

_PARTS_MAX = 200_000  # JSON parts in a body: millions of empty lists take seconds and gigabytes to parse
_COLUMN_MAX = 255


class RequestLimits(BaseModel):
    """Limits that the consumer sets for its own read."""

    model_config = ConfigDict(extra="forbid")

    deadline_ms: Annotated[int, Field(ge=1, le=86_400_000), JSON_NUMBER] | None = None
    rows: Annotated[int, Field(ge=1), JSON_NUMBER] | None = None
    bytes: Annotated[int, Field(ge=1), JSON_NUMBER] | None = None


class EnvelopeTable(BaseModel):
    """A small table to join with: an Arrow stream in base64, and its column names."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    columns: list[Annotated[str, Field(max_length=_COLUMN_MAX)]] = Field(min_length=1, max_length=64)
    arrow: str


class ColumnNames(RootModel[list[str]]):
    """`column_names` of `GET .../rows`."""

    root: list[str] = Field(min_length=1, max_length=4096)


class PlanForm(BaseModel):
    """Body of `POST /data/v1/streams`."""

    model_config = ConfigDict(extra="forbid")

    columns: list[str] = Field(default_factory=list, max_length=4096)
    where: str = Field("", max_length=16_384)
    purpose: str = Field("", max_length=1024)
    application: str = Field("", max_length=1024)


class Envelope(BaseModel):
    """Body of `POST /data/v1/query`. `tickets` are those of further agreements that the SQL reads under."""

    model_config = ConfigDict(extra="forbid")

    fq: Annotated[int, Field(ge=1, le=1), JSON_NUMBER] = 1
    sql: str = Field(min_length=1, max_length=65_536)
    agreement: str = Field("", max_length=255)
    action: str = Field("query", pattern="^(query|stream)$")
    purpose: str = Field("", max_length=1024)
    application: str = Field("", max_length=1024)
    tickets: list[str] = Field(default_factory=list, max_length=16)
    limits: RequestLimits = RequestLimits()
    codec: str = Field("none", pattern="^(none|lz4|zstd)$")
    digest: str = Field("xxh3", pattern="^(xxh3|sha256)$")
    query_id: str = Field("", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    fragment: str = Field("", max_length=64)
    datasets: dict[Annotated[str, Field(max_length=255)], Annotated[str, Field(max_length=128)]] = Field(
        default_factory=dict, max_length=16, description="Versions of datasets (by id) that the answer must be from."
    )
    epsilon: Annotated[float, Field(gt=0, le=1000), JSON_NUMBER] | None = None
    keys: list[EnvelopeTable] = Field(default_factory=list, max_length=8)


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names in a JSON list unchanged.

    Raises: Invalid for anything but such a list.
    """
    try:
        return tuple(ColumnNames.model_validate_json(text).root)
    except ValidationError:
        raise Invalid(f'expected column_names as a JSON list such as ["a,b"], got {text[:40]!r}') from None


def parse_envelope(body: bytes) -> Envelope:
    """Parse a body as an envelope.

    Raises: QueryInvalid or Invalid, which names the wrong field.
    """
    return parse_form(Envelope, body)


_Form = TypeVar("_Form", bound=BaseModel)


def parse_form(form: type[_Form], body: bytes) -> _Form:
    """Parse a body as the given form.

    Raises: Invalid, which names the wrong field.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > _PARTS_MAX:
        raise Invalid(f"expected a body of at most {_PARTS_MAX} JSON parts, got more", code="envelope_invalid")
    try:
        return form.model_validate(strictjson.loads(body))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Invalid(f"{where}: {first['msg']}", code="envelope_invalid") from None
    except strictjson.DuplicateMember as error:
        raise Invalid(str(error), code="envelope_invalid") from None
    except (ValueError, RecursionError) as error:
        raise Invalid("expected a JSON object as the body, got something else", code="envelope_invalid") from error


def envelope_to_request(envelope: Envelope, tickets: tuple[Ticket, ...]) -> ReadRequest:
    """Return the read request of an envelope."""
    bounds = envelope.limits
    return ReadRequest(
        tickets=tickets,
        sql=envelope.sql,
        action=ask.ACTIONS[envelope.action],
        purpose=expand(envelope.purpose),
        application=envelope.application,
        rows=bounds.rows,
        nbytes=bounds.bytes,
        seconds=None if bounds.deadline_ms is None else bounds.deadline_ms / 1000,
        codec=envelope.codec,
        digest=envelope.digest,
        query_id=ask.make_read_id(envelope.query_id),
        fragment=envelope.fragment,
        versions=envelope.datasets,
        epsilon=envelope.epsilon,
        brought=tuple(JoinTable(table.name, tuple(table.columns), _decode_arrow(table)) for table in envelope.keys),
    )


def _decode_arrow(table: EnvelopeTable) -> bytes:
    try:
        return base64.b64decode(table.arrow, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"expected base64 in keys.{table.name}, got other text", code="envelope_invalid") from None
