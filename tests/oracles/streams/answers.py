"""What came of a read, whichever way it was asked, how it ended, and whether that is what must come.

HTTP and Arrow Flight are read with nothing of ours, files from the socket: of an answer in chunks what is not whole has
no last one, and what is has trailers.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import xxhash

from connector.dataplane.flight.listener import FlightServer
from tests.oracles.streams import csv_values
from tests.support import flying, provider, streamed
from tests.support.provider import Provider

REFUSED = "refused"
Pause = tuple[int, Callable[[], Awaitable[object]]]  # what is waited for, after so many bytes
_MEDIA = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
_HASHES = {"xxh3": xxhash.xxh3_128_hexdigest, "sha256": lambda body: hashlib.sha256(body).hexdigest()}
_LAST = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow stream
_TOTALS = ("rows", "bytes", "batches", "digest")


class Different(Exception):
    """What differs."""


@dataclass(frozen=True, slots=True)
class Came:
    """What came of an answer. `end`: its end record, of a refusal its code; None where it was cut off.

    Of a file `form` and `body`, its trailers are the end; `read` is the id of the read, where that was said. `wrong`:
    what of the end is not what came.
    """

    batches: tuple[pa.RecordBatch, ...] = ()
    places: tuple[dict[str, Any], ...] = ()
    end: Mapping[str, Any] | None = None
    schema: pa.Schema | None = None
    form: str = ""
    body: bytes = b""
    read: str = ""
    wrong: str = ""
    reads: int = 1  # that the log has of it

    @property
    def rows(self) -> int:
        """Of a Parquet file that is not whole only the log knows them."""
        if self.form and self.end is not None and not self.refused:
            return int(self.end["rows"])
        return self._whole_rows if self.form else sum(batch.num_rows for batch in self.batches)

    @property
    def status(self) -> str:
        return "cut" if self.end is None else str(self.end["status"])

    @property
    def refused(self) -> bool:
        return self.status == REFUSED

    @property
    def code(self) -> str:
        """How it ended, in one word: the code of what is no answer, else its status."""
        return str((self.end or {}).get("code") or self.status)

    @property
    def table(self) -> pa.Table:
        return pa.Table.from_batches(self.batches, self.schema)

    @property
    def _whole_rows(self) -> int:
        """Rows of a CSV file that have come whole."""
        lines = csv_values.lines(csv_values.without_part(self.body)) if self.form == "csv" else ()
        return max(0, sum(1 for _ in lines) - 1)

    def check_first_of(self, expected: pa.Table, *, batch_rows: int | None = None) -> None:
        """Different unless these are the first of the expected rows, as many as the end says, all if it is complete."""
        if self.refused:
            return
        whole = self.status == "complete"
        wrong = self.wrong or (self._wrong_file(expected, whole=whole) if self.form else "")
        if not self.form and (self.batches or self.schema is not None):
            wrong = wrong or streamed.unlike(self.table, expected.slice(0, self.rows))
        if self.end is not None and self.end["rows"] != self.rows:
            wrong = wrong or f"{self.rows} rows came"
        if whole and self.rows != len(expected):
            wrong = wrong or f"{self.rows} of {len(expected)} rows, and complete"
        if hidden := next(filter(None, map(streamed.hides, self.batches)), ""):
            wrong = f"more than its values is in {hidden}"
        if batch_rows and any(one.num_rows > batch_rows for one in self.batches):
            wrong = wrong or f"batches of {[one.num_rows for one in self.batches]} rows for {batch_rows}"
        if wrong:
            raise Different(f"{self.form or 'arrow'}: {wrong}, ended as {self.end}")

    def _wrong_file(self, expected: pa.Table, *, whole: bool) -> str:
        """What of a file is not as it must be. One that is not `whole` has the first rows, and looks so."""
        if self.form == "parquet":
            if not whole:
                return "a part of a file has a footer" if _opens(self.body) else ""
            stored = [
                one.with_type(pa.timestamp("ms")) if one.type == pa.timestamp("s") else one for one in expected.schema
            ]
            return streamed.unlike(pq.ParquetFile(io.BytesIO(self.body)).read(), expected.cast(pa.schema(stored)))
        if not whole and self._whole_rows > self.rows:
            return f"{self._whole_rows} rows came"
        text = self.body.decode() if whole else csv_values.without_part(self.body)
        shown = expected if whole else expected.slice(0, self._whole_rows)
        return csv_values.unlike(text, shown) if text or whole else ""


def _opens(body: bytes) -> bool:
    try:
        pq.ParquetFile(io.BytesIO(body))
    except (pa.ArrowException, OSError):
        return False
    return True


# HTTP


async def over_http(
    client: httpx2.AsyncClient,
    ticket: str,
    parameters: Mapping[str, str],
    *,
    cut: int | None = None,
    pause: Pause | None = None,
) -> Came:
    """`cut`: after so many bytes the connection is closed. `pause`: after so many, something else is waited for."""
    body, headers = bytearray(), {"authorization": f"Bearer {ticket}"}
    async with client.stream("GET", "/data/v1", params=dict(parameters), headers=headers) as answer:
        async for part in answer.aiter_bytes():
            body += part
            if pause is not None and len(body) >= pause[0]:
                await pause[1]()
                pause = None
            if cut is not None and len(body) >= cut:
                break
    return _stream(answer, bytes(body if cut is None else body[:cut]), cut=cut is not None)


async def over_query(client: httpx2.AsyncClient, tickets: Sequence[str], sql: str) -> Came:
    """One SELECT under one or several agreements."""
    form, headers = {"sql": sql, "tickets": list(tickets[1:])}, {"authorization": f"Bearer {tickets[0]}"}
    answer = await client.post("/data/v1/query", json=form, headers=headers)
    return _stream(answer, answer.content)


def _stream(answer: httpx2.Response, body: bytes, *, cut: bool = False) -> Came:
    if answer.status_code != 200:
        return Came(end={**json.loads(body), "status": REFUSED})
    read = answer.headers["hanse-read"]
    batches, at, end = streamed.partly(body)
    places = tuple(at) if at and at[0] else ()
    if end is None or (cut and not body.endswith(_LAST)):
        return Came(tuple(batches), places, end, read=read)
    found = streamed.parse(body)
    return Came(found.batches, places, end, found.schema, read=read, wrong=found.untrue())


async def as_file(url: str, ticket: str, parameters: Mapping[str, str], form: str, *, accept: bool = False) -> Came:
    """CSV or Parquet as it comes out of the socket. `accept`: asked for by a header."""
    at, query = urlsplit(url), urlencode({**parameters, **({} if accept else {"format": form})})
    lines = [f"GET /data/v1?{query} HTTP/1.1", "host: x", f"authorization: Bearer {ticket}", "connection: close"]
    lines += [f"accept: {_MEDIA[form]}"] if accept else []
    secure = ssl.create_default_context() if at.scheme == "https" else None
    reader, writer = await asyncio.open_connection(at.hostname, at.port, ssl=secure)
    writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    came = bytearray()
    with suppress(ConnectionResetError):
        while part := await reader.read(2**16):
            came += part
    writer.close()
    return _file(bytes(came), form)


def _file(came: bytes, form: str) -> Came:
    head, _, rest = came.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if " 200 " not in f"{status} ":
        return Came(end={**json.loads(rest), "status": REFUSED}, form=form)
    body, trailers = _of_chunks(rest)
    told = dict(line.removeprefix("hanse-").split(": ", 1) for line in trailers.decode().splitlines() if line)
    end = {name: int(value) if value.isdigit() else value for name, value in told.items()}
    read, wrong = headers["hanse-read"], ""
    if end.get("status") == "complete":
        name, _, digest = str(end["digest"]).partition(":")
        wrong = "" if _HASHES[name](body) == digest and end["bytes"] == len(body) else f"{len(body)} bytes"
    return Came(end={**end, "query": read} if end else None, form=form, body=body, read=read, wrong=wrong)


def _of_chunks(rest: bytes) -> tuple[bytes, bytes]:
    """The body, and the trailers behind its last chunk; none where that has not come."""
    body, at = bytearray(), 0
    while (stop := rest.find(b"\r\n", at)) >= 0:
        size, first = int(rest[at:stop], 16), stop + 2
        if not size:
            return bytes(body), rest[first:] if rest.endswith(b"\r\n\r\n") else b""
        body += rest[first : first + size]
        at = first + size + 2
    return bytes(body), b""


# Flight


async def endpoints(front: FlightServer, ticket: str, *path: str, **envelope: Any) -> list[fl.Ticket] | Came:
    """Where the rows of a dataset or of an envelope are, or the refusal."""

    def ask() -> list[fl.Ticket] | Came:
        with flying.flyer(front, ticket) as client:
            try:
                return [one.ticket for one in client.info(*path, **envelope).endpoints]
            except fl.FlightError as error:
                return _failed([], None, error)

    return await asyncio.to_thread(ask)


async def over_flight(front: FlightServer, ticket: str, parts: Sequence[fl.Ticket], *, cut: int | None = None) -> Came:
    """The rows of these endpoints, read at once where there are several. `cut`: after so many batches the call is
    cancelled."""
    answers = await asyncio.gather(*(asyncio.to_thread(_at_endpoint, front, ticket, one, cut) for one in parts))
    whole = [one for one in answers if one.status == "complete"]
    if len(answers) == 1 or len(whole) < len(answers):
        return next(one for one in answers if one not in whole or len(answers) == 1)
    batches = tuple(batch for one in answers for batch in one.batches)
    end = {"status": "complete", "rows": sum((one.end or {})["rows"] for one in answers)}
    return Came(batches, (), end, answers[0].schema, reads=len(parts))


def _at_endpoint(front: FlightServer, ticket: str, endpoint: fl.Ticket, cut: int | None) -> Came:
    batches: list[pa.RecordBatch] = []
    schema = None
    try:
        with flying.flyer(front, ticket) as client:
            reader = client.get(endpoint)
            schema = reader.schema
            for chunk in reader:
                if chunk.app_metadata is not None:
                    end = json.loads(chunk.app_metadata.to_pybytes())
                    return Came(tuple(batches), (), end, schema, read=end["query"])
                batches.append(chunk.data)
                if cut is not None and len(batches) >= cut:
                    reader.cancel()
                    break
    except fl.FlightError as error:
        return _failed(batches, schema, error)
    return Came(tuple(batches), (), None, schema)


def _failed(batches: Sequence[pa.RecordBatch], schema: pa.Schema | None, error: fl.FlightError) -> Came:
    told = json.loads(error.extra_info)
    end = told if isinstance(told["status"], str) else told | {"status": REFUSED}
    return Came(tuple(batches), (), end, schema if batches else None)


async def by_statement(front: FlightServer, ticket: str, sql: str, action: str) -> Came:
    """One SELECT as ADBC's driver asks it; it has no end record."""

    def ask() -> Came:
        header = {"adbc.flight.sql.rpc.call_header.hanse-action": action}
        with flying.connect(front, ticket, **header) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            found = cursor.fetch_arrow_table()
        end = {"status": "complete", "rows": len(found)}
        return Came(tuple(found.to_batches()), (), end, found.schema)

    return await asyncio.to_thread(ask)


def in_order(table: pa.Table) -> pa.Table:
    """Rows that come in no order of their own, in one."""
    rows = list(zip(*map(texts, table.columns), strict=True))
    return table.take(pa.array(sorted(range(len(rows)), key=rows.__getitem__), pa.int64()))


def texts(column: pa.ChunkedArray) -> Iterator[str]:
    """Values as texts, moments as numbers: Python has few years."""
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return map(repr, column.to_pylist())


# the log


async def recorded(running: Provider, came: Came) -> Came:
    """A file that was cut off, with the end that the log has for it."""
    if not came.form or came.end is not None:
        return came
    await provider.settled(running)
    (ended,) = [one for one in running.of_kind("ReadEnded") if one.process == came.read]
    return replace(came, end={**ended.detail, "status": ended.code, "code": ended.code, "query": came.read})


async def check_records(running: Provider, agreement: str, answers: Sequence[Came]) -> int:
    """Different unless the log has each read, what came of it, and no fewer rows of those that were cut off; the bytes
    that have left under the agreement."""
    await provider.settled(running)
    ended = {one.process: one.detail for one in running.of_kind("ReadEnded") if one.agreement == agreement}
    for came in answers:
        read, end = came.read or str((came.end or {}).get("query", "")), came.end or {}
        if came.refused or not read:
            continue
        told = ended[read]
        if any(told[name] != end[name] for name in _TOTALS if name in end) or told["rows"] < came.rows:
            raise Different(f"{came.rows} rows are recorded as {told}, ended as {came.end}")
    return sum(told["bytes"] for told in ended.values())
