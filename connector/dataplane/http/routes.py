"""HTTP routes of the data plane: parses requests and sends what `governed_stream` yields as chunks. Decides nothing.

    POST /data/v1/query                        a JSON envelope (`Envelope`), one SELECT
    GET  /data/v1/datasets/{dataset}/rows      ?columns=a,b&where=a > 3&purpose=...&batch_rows=...&codec=zstd
    GET  /data/v1                              the same for the ticket's own dataset (HttpData-PULL)
    POST to either                             the same, with the parameters as a form: an address has 64 KiB
    POST /data/v1/streams                      a plan: the blocks of those rows, to be read with &blocks=3,0,7
    POST /data/v1/reads/{id}/renew             a fresh ticket for a running read

All with `Authorization: Bearer <ticket>`. Before the first byte an error is a problem object with `code` and `rule`.
After it, the stream's end record says how it ended. docs/data-plane.md is the contract for clients.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from starlette.routing import BaseRoute, Route

from connector.acting import JOB_MAX
from connector.dataplane import block_plan
from connector.dataplane import read_request as ask
from connector.dataplane.admission import Reads
from connector.dataplane.block_plan import RowSelection
from connector.dataplane.data_address import PATH, Addresses
from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http import export_formats
from connector.dataplane.http.file_spans import Span
from connector.dataplane.http.request_context import Endpoint, Exchange
from connector.dataplane.http.schemas import PlanForm, envelope_to_request, parse_envelope, parse_form, parse_names
from connector.dataplane.http.stall_timeout import OnProgress, send_in_time
from connector.dataplane.read_request import ReadRequest
from connector.dataplane.tickets import Ticket
from connector.errors import Absent, Denied, Invalid, Limited, Unavailable, VersionChanged
from connector.infra.concurrency.fair_semaphore import FairSemaphore
from connector.usage.grants import Grants
from policies.vocabulary import expand

MEDIA = "application/vnd.apache.arrow.stream"
_BODIES = 2  # large bodies that one consumer may send at the same time
_BODY_SECONDS = 120.0
_FORM_MAX = 2**20  # bytes: enough for any condition and columns, with every letter escaped
_ROWS_PARAMETERS = (
    "columns", "column_names", "where", "purpose", "application", "batch_rows", "codec", "digest", "limit_rows", "id",
    "blocks", "snapshot", "shown", "after", "format", "guard",
)  # fmt: skip


def routes(reads: Reads, addresses: Addresses, *, owner: str, stall_seconds: float = 60.0) -> list[BaseRoute]:
    """Return the data plane's routes for the public application. `owner` is the schema name of datasets in SQL."""
    part = _DataRoutes(reads, addresses, owner=owner, stall_seconds=stall_seconds)
    return [
        Route(f"{PATH}/query", part.endpoint(part.query, "POST")),
        Route(f"{PATH}/datasets/{{dataset:path}}/rows", part.endpoint(part.rows, "GET", "POST")),
        Route(f"{PATH}/streams", part.endpoint(part.plan, "POST")),
        Route(f"{PATH}/reads/{{read}}/renew", part.endpoint(part.renew, "POST")),
        Route(PATH, part.endpoint(part.rows, "GET", "POST")),
    ]


class _BodyTurns:
    """Turns for large request bodies, few at once per consumer: unfinished bodies would fill memory."""

    def __init__(self) -> None:
        self._turns = FairSemaphore(sys.maxsize, each=_BODIES)

    @asynccontextmanager
    async def hold(self, exchange: Exchange, consumer: str) -> AsyncIterator[bytes]:
        """Yield the body. Until the block ends, what is made of it counts too."""
        if exchange.is_small:
            yield await exchange.body()
            return
        try:
            async with asyncio.timeout(_BODY_SECONDS) as limit, self._turns.hold(consumer):
                body = await exchange.body()
                limit.reschedule(None)
                yield body
        except TimeoutError:
            raise Limited(
                f"expected a body within {_BODY_SECONDS:g} s, and at most {_BODIES} large ones at once; send it again",
                code="body_late",
            ) from None


class _DataRoutes:
    """Handlers of the routes."""

    def __init__(self, reads: Reads, addresses: Addresses, *, owner: str, stall_seconds: float) -> None:
        self._reads = reads
        self._addresses = addresses
        self._owner = owner
        self._stall_seconds = stall_seconds
        self._bodies = _BodyTurns()

    @property
    def _grants(self) -> Grants:
        return self._reads.grants

    def endpoint(self, handle: Callable[[Exchange, Ticket], Awaitable[None]], *methods: str) -> Endpoint:
        """Return an endpoint for requests with a ticket. Refusals after the ticket was checked are recorded."""

        async def handle_recorded(exchange: Exchange) -> None:
            ticket = self._addresses.read(exchange.headers.get("authorization"))
            async with self._reads.record_refusals(ticket):
                exchange.check()
                await handle(exchange, ticket)

        return Endpoint(handle_recorded, *methods)

    async def query(self, exchange: Exchange, ticket: Ticket) -> None:
        """Answer one SELECT under one or several agreements."""
        export_formats.choose_media(exchange.headers.get("accept", ""), export_formats.ARROW_ONLY)
        async with self._bodies.hold(exchange, ticket.consumer) as body:
            envelope = await exchange.parse_body(partial(parse_envelope, body))
        del body  # free megabytes that the answer does not need
        if envelope.agreement and envelope.agreement != ticket.agreement:
            raise Denied(
                f"expected the ticket's agreement {ticket.agreement}, got another; send that one's ticket",
                code="ticket_mismatch",
            )
        tickets = (ticket, *(self._addresses.read(text) for text in envelope.tickets))
        asked = await exchange.parse_body(partial(envelope_to_request, envelope, tickets))
        await self._deliver(exchange, asked)

    async def rows(self, exchange: Exchange, ticket: Ticket) -> None:
        """Send the rows of the ticket's dataset, with a condition and a choice of columns."""
        given, columns = await self._read_parameters(exchange, ticket)
        held = await self._grants.load(ticket.agreement, consumer=ticket.consumer)
        name = exchange.path("dataset") or held.dataset.name
        if name not in (held.dataset.name, held.dataset.id):
            raise Absent(f"this ticket is for {held.dataset.name!r}, not for {name[:200]!r}")
        wanted = RowSelection(
            columns=columns,
            where=given.get("where", ""),
            purpose=expand(given.get("purpose", "")[:1024]),
            application=given.get("application", "")[:1024],
        )
        split = await self._find_split(ticket, wanted, given)
        # In turn, as for the gate: hostile text takes long.
        work = partial(block_plan.build_read_request, ticket, held, wanted, owner=self._owner, split=split)
        asked = await self._reads.gate_queue.run_in_turn(ticket.consumer, work)
        most = _parse_number(given, "limit_rows")
        if most is not None and split is None:  # here the first rows are the whole answer
            asked, most = replace(asked, sql=f"{asked.sql} LIMIT {most}", unfiltered=False), None
        await self._deliver(
            exchange,
            replace(
                asked,
                rows=most,
                batch_rows=_parse_number(given, "batch_rows"),
                format=export_formats.choose_format(given, exchange.headers.get("accept", "")),
                codec=given.get("codec") or choose_codec(exchange.headers.get("accept", "")),
                digest=given.get("digest", "xxh3"),
                query_id=ask.make_read_id(_check_identifier(given.get("id", ""))),
            ),
        )

    async def _read_parameters(self, exchange: Exchange, ticket: Ticket) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return the parameters, and the columns that they name. Parsed in a thread where the body is large."""
        if exchange.scope["method"] == "GET":
            return _parse_parameters(exchange)
        async with self._bodies.hold(exchange, ticket.consumer) as body:
            if len(body) > _FORM_MAX:
                raise Invalid(f"expected a form of at most {_FORM_MAX} bytes, got {len(body)}", code="body_too_large")
            return await exchange.parse_body(partial(_parse_parameters, exchange, body))

    async def plan(self, exchange: Exchange, ticket: Ticket) -> None:
        """Answer the blocks of the ticket's dataset, without any row."""
        async with self._bodies.hold(exchange, ticket.consumer) as body:
            form = await exchange.parse_body(partial(parse_form, PlanForm, body))
        wanted = RowSelection(
            columns=tuple(form.columns),
            where=form.where,
            purpose=expand(form.purpose),
            application=form.application,
        )
        found = await self._reads.plan(ticket, wanted)
        await exchange.answer(200, json.dumps(found).encode(), "application/json")

    async def _find_split(self, ticket: Ticket, wanted: RowSelection, given: Mapping[str, str]) -> ask.Split | None:
        if not given.get("blocks"):
            if given.get("after") or given.get("snapshot") or given.get("shown"):
                raise Invalid(
                    "expected blocks with after, snapshot or shown, got none; send the list that they belong to, or all"
                )
            return None
        return await self._reads.split(
            ticket,
            wanted,
            snapshot=given.get("snapshot", ""),
            blocks=given["blocks"],
            after=given.get("after", ""),
            as_shown=given.get("shown", ""),
        )

    async def renew(self, exchange: Exchange, ticket: Ticket) -> None:
        """Extend a running read with the fresh ticket in the header."""
        await self._grants.load(ticket.agreement, consumer=ticket.consumer)
        await self._reads.renew(exchange.path("read"), ticket)
        await exchange.answer(200, b"{}", "application/json")

    async def _deliver(self, exchange: Exchange, asked: ReadRequest) -> None:
        """Send a stream, and stop it when its reader leaves or stops reading."""
        named = replace(asked, job=_read_job(exchange))
        sending = asyncio.ensure_future(self._send(exchange, named))
        leaving = asyncio.ensure_future(exchange.wait_until_gone())
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()
            with suppress(asyncio.CancelledError, ConnectionAbortedError):
                await sending
        finally:
            leaving.cancel()
            sending.cancel()
            del sending  # its error refers to this frame, and would keep the request alive until garbage collection

    async def _send(self, exchange: Exchange, asked: ReadRequest) -> None:
        async with self._reads.open(replace(asked, transport="http"), spans=exchange.sends_files) as stream:
            if asked.format != export_formats.ARROW:
                await export_formats.send(
                    exchange, stream, asked.format, exchange.path("dataset") or "rows", self._send_part
                )
                return
            media = MEDIA if asked.codec == "none" else f'{MEDIA}; codecs="{asked.codec}"'
            await exchange.begin(
                200,
                {
                    "content-type": media,
                    "cache-control": "no-store",
                    "x-content-type-options": "nosniff",
                    "hanse-read": stream.id,
                    "hanse-withheld": stream.withheld.value,
                    **({"hanse-snapshot": asked.split.snapshot} if asked.split else {}),
                },
            )
            await self._send_part(exchange, stream, stream.schema)
            async with aclosing(stream.parts()) as parts:
                async for part in parts:
                    await self._send_part(exchange, stream, part)
        await exchange.send({"type": "http.response.body", "body": b""})

    async def _send_part(self, exchange: Exchange, stream: GovernedStream, part: bytes | memoryview | Span) -> None:
        async def sending(moved: OnProgress) -> None:
            if isinstance(part, Span):
                await exchange.file(part, stream.following, moved)
            else:
                await exchange.part(part, moved)

        try:
            await send_in_time(sending, seconds=self._stall_seconds, over=lambda: stream.over)
        except Limited as stalled:
            stream.abandon(stalled.code, stalled.message)
            await exchange.abort()
            raise ConnectionAbortedError("the client does not read") from None
        except (EOFError, VersionChanged):
            changed = VersionChanged.of("a file of this version is not what it was")
            stream.abandon(changed.code, changed.message)
            await exchange.abort()
            raise ConnectionAbortedError("the file does not hold what it did") from None
        except Unavailable as error:
            stream.abandon(error.code, error.message)
            await exchange.abort()
            raise ConnectionAbortedError("the file cannot be read now") from None


def choose_codec(accept: str) -> str:
    """Return the first known codec in an Accept header (`...; codecs="zstd, lz4"`), "none" without one."""
    _, found, rest = accept.partition("codecs=")
    named = [word.strip() for word in rest.split(";", 1)[0].strip(' "').replace('"', "").split(",")] if found else []
    return next((word for word in named if word in ask.CODECS), "none")


def _parse_parameters(exchange: Exchange, form: bytes = b"") -> tuple[dict[str, str], tuple[str, ...]]:
    given = exchange.query(_ROWS_PARAMETERS, form)
    return given, _parse_columns(given)


def _parse_columns(given: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns, separated by commas or as JSON, which can carry any name."""
    listed = tuple(column.strip() for column in given.get("columns", "").split(",") if column.strip())
    if not given.get("column_names"):
        return listed
    if listed:
        raise Invalid("expected columns or column_names, got both")
    return parse_names(given["column_names"])


def _read_job(exchange: Exchange) -> str:
    """Return the training job that the consumer names, for the log. Raises: Invalid for a long one."""
    job: str = exchange.headers.get("hanse-job", "")
    if len(job) > JOB_MAX:
        raise Invalid(f"expected a job in hanse-job of at most {JOB_MAX} characters, got {len(job)}")
    return job


def _parse_number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) < 1:
        raise Invalid(f"expected {name} to be a whole number of at least 1, got {text[:20]!r}")
    return int(text)


def _check_identifier(text: str) -> str:
    if len(text) > 64 or not all(letter.isascii() and (letter.isalnum() or letter in "_.-") for letter in text):
        raise Invalid("expected id to be at most 64 letters, digits, _, . or -, got another text")
    return text
