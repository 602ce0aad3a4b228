"""Answers that may end before all has come: what came of them over HTTP, over Flight and as files, and how they ended.

Files are taken from the socket: of an answer in chunks what is not whole has no last one, and what is has trailers.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
import pyarrow as pa
import pyarrow.flight as fl

from connector.dataplane.flight.listener import FlightServer
from tests.support import provider, streamed
from tests.support.flying import flyer
from tests.support.provider import Provider
from tests.support.random_formats import unlike_file, untrue_file, whole_rows
from tests.support.random_space import Different

REFUSED = "refused"
Pause = tuple[int, Callable[[], Awaitable[object]]]  # what is waited for, after so many bytes
_TOTALS = ("rows", "bytes", "batches", "digest")


@dataclass(frozen=True, slots=True)
class Came:
    """What came of an answer. `end`: its end record, of a refusal its code; None where it was cut off.

    Of a file `form` and `body`, its trailers are the end; `read` is the id of the read.
    """

    batches: tuple[pa.RecordBatch, ...] = ()
    places: tuple[dict[str, Any], ...] = ()
    end: Mapping[str, Any] | None = None
    form: str = ""
    body: bytes = b""
    read: str = ""

    @property
    def rows(self) -> int:
        """Of a Parquet file that is not whole only the log knows them."""
        if self.form and self.end is not None and self.status != REFUSED:
            return int(self.end["rows"])
        return whole_rows(self.form, self.body) if self.form else sum(batch.num_rows for batch in self.batches)

    @property
    def status(self) -> str:
        return "cut" if self.end is None else str(self.end["status"])

    def check_first_of(self, expected: pa.Table) -> None:
        """Different unless these are the first of the expected rows, as many as the end says, all if it is complete."""
        if self.form and self.status != REFUSED:
            self._check_file(expected)
        if self.batches and (wrong := streamed.unlike(self._table, expected.slice(0, self.rows))):
            raise Different(f"{wrong}, ended as {self.end}")
        if self.end is not None and self.status != REFUSED and self.end["rows"] != self.rows:
            raise Different(f"{self.rows} rows came, ended as {self.end}")
        if self.status == "complete" and self.rows != len(expected):
            raise Different(f"{self.rows} of {len(expected)} rows, and complete")

    def _check_file(self, expected: pa.Table) -> None:
        whole = self.status == "complete"
        wrong = unlike_file(self.form, self.body, expected, whole=whole)
        if (came := whole_rows(self.form, self.body)) > self.rows:
            wrong = f"{came} rows came"
        if wrong := wrong or (untrue_file(self.body, self.end or {}) if whole else ""):
            raise Different(f"{self.form}: {wrong}, ended as {self.end}")

    @property
    def _table(self) -> pa.Table:
        return pa.Table.from_batches(self.batches)


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
    return _stream(answer, bytes(body if cut is None else body[:cut]))


async def over_query(client: httpx2.AsyncClient, tickets: Sequence[str], sql: str) -> Came:
    """One SELECT under one or several agreements."""
    form, headers = {"sql": sql, "tickets": list(tickets[1:])}, {"authorization": f"Bearer {tickets[0]}"}
    answer = await client.post("/data/v1/query", json=form, headers=headers)
    return _stream(answer, answer.content)


def _stream(answer: httpx2.Response, body: bytes) -> Came:
    if answer.status_code != 200:
        return Came(end={**json.loads(body), "status": REFUSED})
    batches, places, end = streamed.partly(body)
    return Came(tuple(batches), tuple(places), end, read=answer.headers["hanse-read"])


async def as_file(url: str, ticket: str, parameters: Mapping[str, str], form: str) -> Came:
    """CSV or Parquet, as it comes out of the socket."""
    at, query = urlsplit(url), urlencode({**parameters, "format": form})
    lines = (f"GET /data/v1?{query} HTTP/1.1", "host: x", f"authorization: Bearer {ticket}", "connection: close")
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
    read = headers["hanse-read"]
    return Came(end={**end, "query": read} if end else None, form=form, body=body, read=read)


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


async def over_flight(front: FlightServer, ticket: str, name: str, *, cut: int | None = None) -> Came:
    """All rows of a dataset that has one endpoint. `cut`: after so many batches the call is cancelled."""
    found = await endpoints(front, ticket, name)
    if isinstance(found, Came):
        return found
    (endpoint,) = found
    return await at_endpoint(front, ticket, endpoint, cut=cut)


async def endpoints(front: FlightServer, ticket: str, name: str) -> list[fl.Ticket] | Came:
    """Where the rows of a dataset are, or the refusal."""

    def ask() -> list[fl.Ticket] | Came:
        with flyer(front, ticket) as client:
            try:
                return [one.ticket for one in client.info(provider.OWNER, name).endpoints]
            except fl.FlightError as error:
                return _failed([], error)

    return await asyncio.to_thread(ask)


async def at_endpoint(front: FlightServer, ticket: str, endpoint: fl.Ticket, *, cut: int | None = None) -> Came:
    """The rows of one endpoint."""
    return await asyncio.to_thread(_at_endpoint, front, ticket, endpoint, cut)


def _at_endpoint(front: FlightServer, ticket: str, endpoint: fl.Ticket, cut: int | None) -> Came:
    batches: list[pa.RecordBatch] = []
    try:
        with flyer(front, ticket) as client:
            reader = client.get(endpoint)
            for chunk in reader:
                if chunk.app_metadata is not None:
                    return Came(tuple(batches), (), json.loads(chunk.app_metadata.to_pybytes()))
                batches.append(chunk.data)
                if cut is not None and len(batches) >= cut:
                    reader.cancel()
                    break
    except fl.FlightError as error:
        return _failed(batches, error)
    return Came(tuple(batches))


def _failed(batches: Sequence[pa.RecordBatch], error: fl.FlightError) -> Came:
    told = json.loads(error.extra_info)
    return Came(tuple(batches), (), told if isinstance(told["status"], str) else told | {"status": REFUSED})


async def recorded(running: Provider, came: Came) -> Came:
    """A file that was cut off, with the end that the log has for it."""
    if not came.form or came.end is not None:
        return came
    await provider.settled(running)
    (ended,) = [one for one in running.of_kind("ReadEnded") if one.process == came.read]
    return replace(came, end={**ended.detail, "status": ended.code, "code": ended.code, "query": came.read})


async def check_records(running: Provider, agreement: str, answers: Sequence[Came]) -> int:
    """Different unless the log has what came of each read; the bytes that have left under the agreement."""
    await provider.settled(running)
    ended = {one.process: one for one in running.of_kind("ReadEnded") if one.agreement == agreement}
    for came in answers:
        if came.end is None or came.status == REFUSED:
            continue
        told = ended[came.end["query"]].detail
        if any(told[name] != came.end[name] for name in _TOTALS if name in came.end or not came.form):
            raise Different(f"recorded as {told}, ended as {came.end}")
    return sum(one.detail["bytes"] for one in ended.values())
