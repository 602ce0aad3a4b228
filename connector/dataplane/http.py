"""Arrow over HTTP: requests in, what `stream.py` yields out as chunks. It frames; it decides nothing.

    POST /data/v1/query                        a JSON envelope (`Envelope`), one SELECT
    GET  /data/v1/datasets/{dataset}/rows      ?columns=a,b&where=a > 3&purpose=...&batch_rows=...&codec=zstd
    GET  /data/v1                              the same for the ticket's own dataset (HttpData-PULL)
    POST /data/v1/streams                      a plan: the blocks of those rows, to be read with &blocks=3,0,7
    POST /data/v1/reads/{id}/renew             a fresh ticket for a running read

All with `Authorization: Bearer <ticket>`. Before the first byte an error is a problem object with `code` and `rule`;
after it, the stream's end record says how it ended. docs/data-plane.md is the contract for clients.

Bodies are sent as pure ASGI: no middleware may wrap or copy them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from connector.dataplane import asked as ask
from connector.dataplane import formats, plans
from connector.dataplane.addresses import PATH, Addresses
from connector.dataplane.asked import Asked, Brought
from connector.dataplane.gather import (
    ABORT,
    BEFORE,
    BUFFERS,
    DEVICE,
    EXTENSION,
    FILE,
    FILES,
    MORE,
    MOVED,
    SEEN,
    TRAILERS,
)
from connector.dataplane.governed import GovernedStream
from connector.dataplane.plans import Wanted
from connector.dataplane.sending import Parts
from connector.dataplane.stream import Reads
from connector.dataplane.taking import Moved, in_time
from connector.dataplane.tickets import Ticket
from connector.errors import (
    BadInput,
    Busy,
    HanseError,
    Limited,
    NotFound,
    QueryInvalid,
    Refused,
    VersionChanged,
    unforeseen,
)
from connector.query.spans import InFiles, Span
from connector.telemetry import logger
from connector.usage.grants import Grants
from policies import strictjson
from policies.errors import PolicyError
from policies.vocabulary import expand

MEDIA = "application/vnd.apache.arrow.stream"
BODY_MAX = 32 * 2**20
_PARTS_MAX = (
    200_000  # of JSON in a body: what fits takes a tenth, and millions of empty lists take seconds and gigabytes
)
_SMALL = 64 * 2**10  # bodies up to here are read at once
_BODIES = 2  # larger ones of one consumer on their way at the same time
_BODY_SECONDS = 120.0
_COLUMN_MAX = 255
_ROWS_PARAMETERS = (
    "columns", "where", "purpose", "application", "batch_rows", "codec", "digest", "limit_rows", "id", "blocks",
    "snapshot", "after", "format", "guard",
)  # fmt: skip

_log = logger("dataplane")


class Bounds(BaseModel):
    """What the consumer wants at most."""

    model_config = ConfigDict(extra="forbid")

    deadline_ms: int | None = Field(None, ge=1, le=86_400_000)
    rows: int | None = Field(None, ge=1)
    bytes: int | None = Field(None, ge=1)


class Table(BaseModel):
    """A small table to join with: an Arrow stream in base64, its columns by name."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    columns: list[Annotated[str, Field(max_length=_COLUMN_MAX)]] = Field(min_length=1, max_length=64)
    arrow: str


class PlanForm(BaseModel):
    """`POST /data/v1/streams`."""

    model_config = ConfigDict(extra="forbid")

    columns: list[str] = Field(default_factory=list, max_length=4096)
    where: str = Field("", max_length=16_384)
    purpose: str = Field("", max_length=1024)
    application: str = Field("", max_length=1024)


class Envelope(BaseModel):
    """`POST /data/v1/query`. `tickets` are those of further agreements that the SQL draws on."""

    model_config = ConfigDict(extra="forbid")

    fq: int = Field(1, ge=1, le=1)
    sql: str = Field(min_length=1, max_length=65_536)
    agreement: str = Field("", max_length=255)
    action: str = Field("query", pattern="^(query|stream)$")
    purpose: str = Field("", max_length=1024)
    application: str = Field("", max_length=1024)
    tickets: list[str] = Field(default_factory=list, max_length=16)
    limits: Bounds = Bounds()
    codec: str = Field("none", pattern="^(none|lz4|zstd)$")
    digest: str = Field("xxh3", pattern="^(xxh3|sha256)$")
    query_id: str = Field("", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    fragment: str = Field("", max_length=64)
    datasets: dict[Annotated[str, Field(max_length=255)], Annotated[str, Field(max_length=128)]] = Field(
        default_factory=dict, max_length=16, description="Versions of datasets (by id) that the answer must be from."
    )
    epsilon: float | None = Field(None, gt=0, le=1000)
    keys: list[Table] = Field(default_factory=list, max_length=8)


def routes(reads: Reads, addresses: Addresses, *, owner: str, stall_seconds: float = 60.0) -> list[BaseRoute]:
    """The data plane's routes, for the public application. `owner` is the name that SQL writes before a dataset."""
    part = _Transport(reads, addresses, owner=owner, stall_seconds=stall_seconds)
    return [
        Route(f"{PATH}/query", _Endpoint(part.query, "POST")),
        Route(f"{PATH}/datasets/{{dataset:path}}/rows", _Endpoint(part.rows, "GET")),
        Route(f"{PATH}/streams", _Endpoint(part.plan, "POST")),
        Route(f"{PATH}/reads/{{read}}/renew", _Endpoint(part.renew, "POST")),
        Route(PATH, _Endpoint(part.rows, "GET")),
    ]


class Exchange:
    """One request as its handler sees it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.started = False
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

    def path(self, name: str) -> str:
        return str(self.scope.get("path_params", {}).get(name, ""))

    def query(self, known: Sequence[str]) -> dict[str, str]:
        """The query string; BadInput for a parameter nobody knows or one given twice."""
        try:
            pairs = parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=32)
        except ValueError:
            raise BadInput("expected at most 32 parameters in the query string, came more") from None
        if unknown := [name for name, _ in pairs if name not in known]:
            raise BadInput(
                f"expected parameters {', '.join(known)}, came {unknown[0][:50]!r}", code="parameter_unknown"
            )
        if len({name for name, _ in pairs}) < len(pairs):
            raise BadInput("expected each parameter once", code="parameter_repeated")
        return dict(pairs)

    @property
    def length(self) -> int | None:
        """Bytes that the body is said to have; a server sees to it that it has them."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    @property
    def small(self) -> bool:
        """Whether the body is said to be small."""
        return self.length is not None and self.length <= _SMALL

    async def body(self) -> bytes:
        """The whole body, at most BODY_MAX; of one that is said to have more nothing is read."""
        if (self.length or 0) > BODY_MAX:
            raise BadInput(f"expected a body of at most {BODY_MAX} bytes, came {self.length}", code="body_too_large")
        parts, size, more = [], 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise BadInput("the client left before its request was complete")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > BODY_MAX:
                raise BadInput(f"expected a body of at most {BODY_MAX} bytes", code="body_too_large")
            more = message.get("more_body", False)
        return b"".join(parts)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        self.started = True

    async def answer(self, status: int, body: bytes, media: str, **extra: str) -> None:
        """A whole small answer."""
        headers = {"content-type": media, "content-length": str(len(body)), "cache-control": "no-store"} | extra
        await self.begin(status, headers)
        await self.send({"type": "http.response.body", "body": body})

    @property
    def sends_files(self) -> bool:
        """Whether `part` takes spans of files."""
        return FILES in self.scope.get("extensions", {})

    async def part(self, body: bytes | memoryview, moved: Callable[[], object] = lambda: None) -> None:
        """A piece of a long answer: handed to the socket as it is where the server can, in one chunk.

        `moved` is called while it goes.
        """
        message: dict[str, object] = {"type": "http.response.body", "more_body": True}
        await self.send(message | ({BUFFERS: [body], MOVED: moved} if self._gathers else {"body": body}))

    async def file(
        self, span: InFiles, following: Callable[[], InFiles | None], moved: Callable[[], object] = lambda: None
    ) -> None:
        """What lies in files in one chunk, and what follows it there, which are asked for in the thread that sends.

        `moved` is called while they go.
        """

        def more() -> Parts | None:
            after = following()
            return None if after is None else after.parts()

        message: dict[str, object] = {"type": "http.response.body", "more_body": True, FILE: span.parts()}
        if isinstance(span, Span):  # and so is all that follows it
            message[SEEN] = span.seen
        await self.send(message | {DEVICE: span.device, BEFORE: span.check, MORE: more, MOVED: moved})

    async def end(self, trailers: Mapping[str, str]) -> None:
        """The end of a long answer, with trailers where the server can send them."""
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in trailers.items()]
        message: dict[str, object] = {"type": "http.response.body", "body": b""}
        await self.send(message | ({TRAILERS: pairs} if self._gathers else {}))

    async def abort(self) -> None:
        """Close the connection now, where the server can; elsewhere it closes when the handler returns."""
        if self._gathers:
            await self.send({"type": "http.response.body", ABORT: True})

    @property
    def _gathers(self) -> bool:
        return EXTENSION in self.scope.get("extensions", {})

    async def gone(self) -> None:
        """Returns when the client has left: `send` says nothing then."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


Sender = Callable[[Exchange, GovernedStream, "bytes | memoryview"], Awaitable[None]]


class _Endpoint:
    """A handler as an ASGI application: method and version checked, errors as problem objects."""

    def __init__(self, handle: Callable[[Exchange], Awaitable[None]], method: str) -> None:
        self._handle, self._method = handle, method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            self._check(scope)
            await self._handle(exchange)
        except (HanseError, PolicyError) as error:
            if exchange.started:
                raise
            await _refuse(exchange, as_error(error))
        except Exception as error:
            if exchange.started:
                raise
            _log.exception("unforeseen", exc_info=error)
            await _refuse(exchange, unforeseen())

    def _check(self, scope: Scope) -> None:
        if scope["method"] != self._method:
            raise BadInput(f"expected {self._method} here, came {scope['method']}", code="method_not_allowed")
        if scope.get("http_version") == "1.0":  # answered in chunks, which such a client takes for data
            raise BadInput("expected HTTP/1.1 or later, came HTTP/1.0", code="http_version")


class _Bodies:
    """Large bodies on their way in: few of one consumer at once. What is begun and never finished would fill memory."""

    def __init__(self) -> None:
        self._turns: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, exchange: Exchange, consumer: str) -> AsyncIterator[bytes]:
        """The body, until the block ends; what is made of it in there counts too."""
        if exchange.small:
            yield await exchange.body()
            return
        turn, users = self._turns.get(consumer) or (asyncio.Semaphore(_BODIES), 0)
        self._turns[consumer] = turn, users + 1
        try:
            async with asyncio.timeout(_BODY_SECONDS) as limit, turn:
                body = await exchange.body()
                limit.reschedule(None)
                yield body
        except TimeoutError:
            raise Limited(
                f"expected a body within {_BODY_SECONDS:g} s, and at most {_BODIES} large ones at once; send it again",
                code="body_late",
            ) from None
        finally:
            self._turns[consumer] = turn, self._turns[consumer][1] - 1
            if not self._turns[consumer][1]:
                del self._turns[consumer]


class _Transport:
    """The handlers."""

    def __init__(self, reads: Reads, addresses: Addresses, *, owner: str, stall_seconds: float) -> None:
        self._reads = reads
        self._addresses = addresses
        self._owner = owner
        self._stall_seconds = stall_seconds
        self._bodies = _Bodies()

    @property
    def _grants(self) -> Grants:
        return self._reads.grants

    async def query(self, exchange: Exchange) -> None:
        """One SELECT under one or several agreements."""
        ticket = self._ticket(exchange.headers.get("authorization"))
        async with self._bodies.turn(exchange, ticket.consumer) as body:
            envelope = parse_envelope(body) if exchange.small else await asyncio.to_thread(parse_envelope, body)
        del body  # megabytes, which the answer does not need
        if envelope.agreement and envelope.agreement != ticket.agreement:
            raise Refused(
                f"this ticket is for agreement {ticket.agreement}, the query names another", code="ticket_mismatch"
            )
        others = [self._ticket(text) for text in envelope.tickets]
        await self._deliver(exchange, asked_of(envelope, (ticket, *others)))

    async def rows(self, exchange: Exchange) -> None:
        """The rows of the ticket's dataset, with a condition and a choice of columns."""
        ticket = self._ticket(exchange.headers.get("authorization"))
        given = exchange.query(_ROWS_PARAMETERS)
        held = await self._grants.hold(ticket.agreement, consumer=ticket.consumer)
        name = exchange.path("dataset") or held.dataset.name
        if name not in (held.dataset.name, held.dataset.id):
            raise NotFound(f"this ticket is for {held.dataset.name!r}, not for {name[:200]!r}")
        wanted = Wanted(
            columns=tuple(column.strip() for column in given.get("columns", "").split(",") if column.strip()),
            where=given.get("where", ""),
            purpose=expand(given.get("purpose", "")[:1024]),
            application=given.get("application", "")[:1024],
        )
        split = await self._split(ticket, wanted, given)
        # As the gate: hostile text takes its time.
        work = partial(plans.asked_of, ticket, held, wanted, owner=self._owner, split=split)
        asked = await self._reads.judging.judge(ticket.consumer, work)
        most = _number(given, "limit_rows")
        if most is not None and split is None:  # the first rows, and that is the whole answer
            asked, most = replace(asked, sql=f"{asked.sql} LIMIT {most}", unfiltered=False), None
        await self._deliver(
            exchange,
            replace(
                asked,
                rows=most,
                batch_rows=_number(given, "batch_rows"),
                format=formats.chosen(given, exchange.headers.get("accept", "")),
                codec=given.get("codec") or accepted_codec(exchange.headers.get("accept", "")),
                digest=given.get("digest", "xxh3"),
                query_id=_identifier(given.get("id", "")),
            ),
        )

    async def plan(self, exchange: Exchange) -> None:
        """The blocks of the ticket's dataset, without a row of it."""
        ticket = self._ticket(exchange.headers.get("authorization"))
        async with self._bodies.turn(exchange, ticket.consumer) as body:
            form = _parsed(PlanForm, body) if exchange.small else await asyncio.to_thread(_parsed, PlanForm, body)
        wanted = Wanted(
            columns=tuple(form.columns),
            where=form.where,
            purpose=expand(form.purpose),
            application=form.application,
        )
        found = await self._reads.plan(ticket, wanted)
        await exchange.answer(200, json.dumps(found).encode(), "application/json")

    async def _split(self, ticket: Ticket, wanted: Wanted, given: Mapping[str, str]) -> ask.Split | None:
        if not given.get("blocks"):
            if given.get("after") or given.get("snapshot"):
                raise BadInput("expected blocks beside after or snapshot: the list they belong to, or all")
            return None
        return await self._reads.split(
            ticket, wanted, snapshot=given.get("snapshot", ""), blocks=given["blocks"], after=given.get("after", "")
        )

    async def renew(self, exchange: Exchange) -> None:
        """Let a running read go on with the fresh ticket in the header."""
        ticket = self._ticket(exchange.headers.get("authorization"))
        await self._grants.hold(ticket.agreement, consumer=ticket.consumer)
        await self._reads.renew(exchange.path("read"), ticket)
        await exchange.answer(200, b"{}", "application/json")

    def _ticket(self, text: str | None) -> Ticket:
        return self._addresses.read(text)

    async def _deliver(self, exchange: Exchange, asked: Asked) -> None:
        """Send a stream, and stop it when its reader leaves or stops reading."""
        sending = asyncio.ensure_future(self._send(exchange, asked))
        leaving = asyncio.ensure_future(exchange.gone())
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()
            with suppress(asyncio.CancelledError, ConnectionAbortedError):
                await sending
        finally:
            leaving.cancel()
            sending.cancel()

    async def _send(self, exchange: Exchange, asked: Asked) -> None:
        async with self._reads.open(asked, spans=exchange.sends_files) as stream:
            if asked.format != formats.ARROW:
                await formats.send(exchange, stream, asked.format, exchange.path("dataset") or "rows", self._part)
                return
            media = MEDIA if asked.codec == "none" else f'{MEDIA}; codecs="{asked.codec}"'
            await exchange.begin(
                200,
                {
                    "content-type": media,
                    "cache-control": "no-store",
                    "x-content-type-options": "nosniff",
                    "hanse-read": stream.id,
                    **({"hanse-snapshot": asked.split.snapshot} if asked.split else {}),
                },
            )
            await self._part(exchange, stream, stream.schema)
            async with aclosing(stream.parts()) as parts:
                async for part in parts:
                    await self._part(exchange, stream, part)
        await exchange.send({"type": "http.response.body", "body": b""})

    async def _part(self, exchange: Exchange, stream: GovernedStream, part: bytes | memoryview | InFiles) -> None:
        async def sending(moved: Moved) -> None:
            if isinstance(part, InFiles):
                await exchange.file(part, stream.following, moved)
            else:
                await exchange.part(part, moved)

        try:
            await in_time(sending, seconds=self._stall_seconds, over=lambda: stream.over)
        except Limited as stalled:
            stream.abandon(stalled.code, stalled.message)
            await exchange.abort()
            raise ConnectionAbortedError("the client does not read") from None
        except (EOFError, VersionChanged):
            stream.abandon("version_changed", "a file of this version is not what it was; register a new version")
            await exchange.abort()
            raise ConnectionAbortedError("the file does not hold what it did") from None
        except Busy as error:
            stream.abandon(error.code, error.message)
            await exchange.abort()
            raise ConnectionAbortedError("the file cannot be read now") from None


def parse_envelope(body: bytes) -> Envelope:
    """The envelope in a body; QueryInvalid or BadInput says which field does not fit."""
    return _parsed(Envelope, body)


_Form = TypeVar("_Form", bound=BaseModel)


def _parsed(form: type[_Form], body: bytes) -> _Form:
    if sum(map(body.count, (b",", b"[", b"{"))) > _PARTS_MAX:
        raise BadInput(f"expected a body of at most {_PARTS_MAX} parts, came more", code="envelope_invalid")
    try:
        return form.model_validate(strictjson.loads(body))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise BadInput(f"{where}: {first['msg']}", code="envelope_invalid") from None
    except strictjson.GivenTwice as error:
        raise BadInput(str(error), code="envelope_invalid") from None
    except (ValueError, RecursionError) as error:
        raise BadInput("expected a JSON object as the body, came something else", code="envelope_invalid") from error


def asked_of(envelope: Envelope, tickets: tuple[Ticket, ...]) -> Asked:
    """The read that an envelope asks for."""
    bounds = envelope.limits
    return Asked(
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
        query_id=envelope.query_id,
        fragment=envelope.fragment,
        versions=envelope.datasets,
        epsilon=envelope.epsilon,
        brought=tuple(Brought(table.name, tuple(table.columns), _arrow(table)) for table in envelope.keys),
    )


def accepted_codec(accept: str) -> str:
    """The first codec that an Accept header names (`...; codecs="zstd, lz4"`), none where it names none of ours."""
    _, found, rest = accept.partition("codecs=")
    named = [word.strip() for word in rest.split(";", 1)[0].strip(' "').replace('"', "").split(",")] if found else []
    return next((word for word in named if word in ask.CODECS), "none")


def as_error(error: HanseError | PolicyError) -> HanseError:
    """What the client is told: a policy's no is 403 with its rule, a query that cannot be read is 400."""
    if isinstance(error, HanseError):
        return error
    if error.rule.startswith("/"):
        return Refused(str(error), code=error.code, rule=error.rule)
    return QueryInvalid(str(error), code=error.code, rule=error.rule)


async def _refuse(exchange: Exchange, error: HanseError) -> None:
    if error.status >= 500:
        _log.error("failed", code=error.code, reason=error.message, why=error.private)
    body = json.dumps(error.problem(), ensure_ascii=False, default=str).encode()
    await exchange.answer(error.status, body, "application/problem+json", **error.headers)


def _arrow(table: Table) -> bytes:
    try:
        return base64.b64decode(table.arrow, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"expected base64 in keys.{table.name}", code="envelope_invalid") from None


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) < 1:
        raise BadInput(f"expected {name} to be a whole number of at least 1, came {text[:20]!r}")
    return int(text)


def _identifier(text: str) -> str:
    if len(text) > 64 or not all(letter.isascii() and (letter.isalnum() or letter in "_.-") for letter in text):
        raise BadInput("expected id to be at most 64 letters, digits, _, . or -")
    return text


__all__ = [
    "MEDIA",
    "Envelope",
    "Exchange",
    "accepted_codec",
    "as_error",
    "asked_of",
    "parse_envelope",
    "routes",
]
