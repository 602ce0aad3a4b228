"""Bodies that are begun and never finished take no more memory than two of them, and nobody else's turn."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from connector.dataplane.http import request_context, routes
from connector.dataplane.read_request import JoinTable
from policies.odrl import strictjson
from policies.sql import parse
from tests.connector.dataplane.http.test_routes import ask, client
from tests.support import data, provider
from tests.support.provider import Provider

COUNT = 'SELECT count(*) AS n FROM "clinic".numbers'
FORM = "application/x-www-form-urlencoded"
LARGE = {"fq": 1, "sql": COUNT, "application": "x"}


async def begun(running: Provider, ticket: str) -> asyncio.StreamWriter:
    """A body of 10 MB of which a part has left, and no more comes."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    head = (
        f"POST /data/v1/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ticket}\r\nContent-Length: 10000000\r\n\r\n"
    )
    writer.write(head.encode() + b" " * 100_000)
    await writer.drain()
    return writer


async def send(running: Provider, ticket: str, *, seconds: float) -> int:
    async with asyncio.timeout(seconds), client(running, ticket) as session:
        body = json.dumps(LARGE).encode() + b" " * 1_000_000
        return int((await session.post("/data/v1/query", content=body)).status_code)


async def test_of_one_consumer_two_large_bodies_are_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[routes._BodyTurns] = []

    class Bodies(routes._BodyTurns):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(routes, "_BodyTurns", Bodies)
    async with provider.running(tmp_path, rows=100) as running:
        agreement = await running.agree()
        ticket, other = running.ticket(agreement), running.ticket(await running.agree())
        stalled = [await begun(running, ticket) for _ in range(2)]
        async with asyncio.timeout(60):
            while sum(one._turns._held.total() for one in made) < 2:
                await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await send(running, ticket, seconds=1)
        assert (await ask(running, ticket, COUNT)).status_code == 200
        theirs = running.ticket(agreement, consumer="did:web:other.example")
        assert await send(running, theirs, seconds=60) == 404  # read, and no agreement of theirs
        for writer in stalled:
            writer.close()
        assert await send(running, other, seconds=60) == 200


KEYS = base64.b64encode(data.stream(pa.table({"k": pa.array(range(200_000), pa.int64())}))).decode()
BROUGHT = {
    "answered": f"{COUNT} SEMI JOIN wanted ON numbers.id = wanted.k",
    "refused by the gate": "SELECT 1",
    "failed in the worker": f"{COUNT} SEMI JOIN wanted ON numbers.id = wanted.k AND name = 5",
    "left by its reader": "SELECT id, name FROM clinic.numbers WHERE id NOT IN (SELECT k FROM wanted)",
}


@pytest.mark.parametrize("sql", BROUGHT.values(), ids=BROUGHT.keys())
async def test_what_a_body_brought_goes_with_its_answer(tmp_path: Path, sql: str) -> None:
    """Not when the collector of garbage comes by: bodies of thirty megabytes would stand in line for it."""
    async with provider.running(tmp_path, rows=1_000_000) as running:
        ticket = running.ticket(await running.agree())
        envelope = {"sql": sql, "keys": [{"name": "wanted", "columns": ["k"], "arrow": KEYS}]}
        gc.collect()
        gc.disable()
        try:
            async with (
                client(running, ticket) as session,
                session.stream("POST", "/data/v1/query", json=envelope) as answer,
            ):
                await anext(answer.aiter_raw())
            await provider.settled(running)
            assert not [one for one in gc.get_objects() if isinstance(one, JoinTable)]
        finally:
            gc.enable()


def test_large_blocks_go_back_to_the_system_whatever_was_freed_before() -> None:
    code = """
import ctypes
from connector.infra.http import http_limits as http_limits

class Info(ctypes.Structure):
    _fields_ = [(str(number), ctypes.c_size_t) for number in range(10)]

def mapped(library=ctypes.CDLL(None)):  # bytes of blocks that go back when they are freed
    library.mallinfo2.restype = Info
    return getattr(library.mallinfo2(), "4")

http_limits.return_large_blocks()
for _ in range(3):
    bytes(6 * http_limits.LARGE)  # glibc learns from what is freed
before, body = mapped(), bytes(2 * http_limits.LARGE)
print(mapped() - before >= len(body))
"""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("needs a recent glibc")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"


async def test_a_body_that_does_not_come_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.dataplane.http.routes._BODY_SECONDS", 0.3)
    async with provider.running(tmp_path, rows=100) as running:
        ticket = running.ticket(await running.agree())
        reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
        head = f"POST /data/v1/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ticket}\r\n"
        writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n     \r\n")
        assert b" 429 " in await asyncio.wait_for(reader.readline(), 60)
        assert b"body_late" in await asyncio.wait_for(reader.readuntil(b"}"), 60)
        writer.close()
        monkeypatch.setattr("connector.dataplane.http.routes._BODY_SECONDS", 60.0)
        assert await send(running, ticket, seconds=60) == 200


async def test_what_takes_long_to_read_is_read_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop answers everybody meanwhile."""
    loops, read = threading.get_ident(), list[tuple[str, bool]]()

    def noting(name: str, what: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **more: Any) -> Any:
            read.append((name, threading.get_ident() == loops))
            return what(*given, **more)

        return noted

    monkeypatch.setattr(parse, "parse", noting("SQL", parse.parse))
    monkeypatch.setattr(strictjson, "loads", noting("JSON", strictjson.loads))
    async with provider.running(tmp_path, rows=100) as running:
        ticket = running.ticket(await running.agree())
        async with client(running, ticket) as session:
            for blocks in ({}, {"blocks": "all"}):
                answer = await session.get("/data/v1", params={"where": "id > 5", **blocks})
                assert answer.status_code == 200
            padded = json.dumps({"where": "id > 5"}).encode() + b" " * 100_000
            assert (await session.post("/data/v1/streams", content=padded)).status_code == 200
            monkeypatch.setattr(request_context, "parse_qsl", noting("form", request_context.parse_qsl))
            escaped = {"content": b"columns=" + b"%69%64%2c" * 100_000, "headers": {"content-type": FORM}}
            answer = await session.post("/data/v1", **escaped)
            assert (answer.status_code, answer.json()["code"]) == (400, "query_invalid")
        assert await send(running, ticket, seconds=60) == 200
    assert {name for name, _ in read} == {"SQL", "JSON", "form"}
    assert not any(in_loop for _, in_loop in read)
