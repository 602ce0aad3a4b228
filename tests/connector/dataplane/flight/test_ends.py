"""How a call over Flight ends: readers that stall or leave, and requests that do not fit."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.flight as fl
import pytest
import pytest_asyncio

from connector.dataplane.flight import flight_queries, flightsql, grpc_call, protobuf
from connector.dataplane.flight.grpc_call import GrpcCall
from connector.dataplane.flight.listener import FlightServer
from connector.dataplane.governed_stream import GovernedStream
from connector.errors import Denied
from tests.support import flying, provider
from tests.support.flying import flyer
from tests.support.grpc_client import answer_of, connected
from tests.support.provider import Provider, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = (provider.OWNER, "numbers")
ENDLESS = 'SELECT a.id, b.x FROM "clinic".numbers a CROSS JOIN "clinic".numbers b'
# A reader that opens no more of its window than it has to.
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 65_535), ("grpc.http2.bdp_probe", 0))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=20_000) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(running: Provider) -> AsyncIterator[FlightServer]:
    """A server that ends the read of a client that takes nothing for a second."""
    async with flying.flying(running, stall_seconds=1.0) as started:
        yield started


async def passed(running: Provider, front: FlightServer, **envelope: str) -> tuple[str, bytes]:
    """A ticket, and the request for all rows, or for an envelope."""
    ticket = running.ticket(await running.agree())

    def go() -> bytes:
        with flyer(front, ticket) as client:
            found: bytes = client.info(*(() if envelope else PATH), **envelope).endpoints[0].ticket.ticket
            return found

    return ticket, protobuf.write([(1, await asyncio.to_thread(go))])


async def test_a_reader_that_takes_nothing_is_cut_off_and_counted_until_it_leaves(
    running: Provider, impatient: FlightServer
) -> None:
    """The read ends, with its record and its worker. What gRPC still holds for the client counts among its calls."""
    ticket, message = await passed(running, impatient, sql=ENDLESS)
    async with connected(impatient, *SMALL_WINDOW) as client:
        call = await client.begin("DoGet", message, ticket=ticket)
        await call.read()  # the schema
        await until(lambda: running.of_kind("ReadEnded")[-1:] and not running.reads.live)
        assert running.of_kind("ReadEnded")[-1].code == "client_stalled"
        assert impatient._queries._open == {provider.CONSUMER: 1}
        answer = await answer_of(call)  # a client that reads on gets what was sent, and the reason
        assert answer.sentence.startswith("client_stalled: ")
        await until(lambda: impatient._queries._open == {})


async def test_a_reader_that_takes_nothing_and_leaves_is_counted_no_more(
    running: Provider, impatient: FlightServer
) -> None:
    ticket, message = await passed(running, impatient, sql=ENDLESS)
    async with connected(impatient, *SMALL_WINDOW) as client:
        call = await client.begin("DoGet", message, ticket=ticket)
        await call.read()
        await until(lambda: running.of_kind("ReadEnded")[-1:] and not running.reads.live)
        assert impatient._queries._open == {provider.CONSUMER: 1}
        call.cancel()
        await until(lambda: impatient._queries._open == {})


async def test_a_large_message_has_the_time_limit_for_each_part_of_it(
    running: Provider, impatient: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC says when a message has gone, not how much of it."""
    monkeypatch.setattr(flight_queries, "_STALL_BYTES", 2**18)
    ticket, message = await passed(running, impatient, sql=ENDLESS)
    async with connected(impatient, *SMALL_WINDOW) as client:
        call = await client.begin("DoGet", message, ticket=ticket)
        await call.read()
        await asyncio.sleep(1.5)  # longer than a message of a quarter of a megabyte may take
        assert running.reads.live
        agreement = next(iter(running.reads.live.values())).grants[0].agreement_id
        running.grants.stop(agreement_id=agreement, reason="over")
        async with asyncio.timeout(30):  # of the revoked read one limit is left
            await until(lambda: not running.reads.live)
        call.cancel()
    await settled(running)


async def test_who_takes_no_table_of_the_catalogue_is_cut_off(
    running: Provider, impatient: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_call, "_STALL_TIMEOUT_S", 0.5)

    async def waits(call: GrpcCall, message: bytes) -> None:
        await asyncio.Event().wait()  # for a window that does not open

    monkeypatch.setattr(GrpcCall, "send", waits)
    ticket = running.ticket(await running.agree())
    async with connected(impatient) as client:
        request = protobuf.write([(1, flightsql.pack("CommandGetTables", []))])
        answer = await client.ask("DoGet", request, ticket=ticket)
    assert answer.sentence.startswith("client_stalled: ")


async def test_a_reader_that_cancels_and_leaves_leaves_nothing_behind(
    running: Provider, impatient: FlightServer
) -> None:
    ticket, message = await passed(running, impatient, sql=ENDLESS)
    async with connected(impatient) as client:
        call = await client.begin("DoGet", message, ticket=ticket)
        await call.read()
        call.cancel()
        await settled(running)
        await until(lambda: (impatient._queries._running, impatient._queries._open) == ({}, {}))
    assert running.of_kind("ReadEnded")[-1].code == "client_gone"


async def test_a_reader_that_leaves_before_the_first_row_is_in_the_log_as_one_that_leaves(
    running: Provider, impatient: FlightServer
) -> None:
    long = "SELECT count(*) FROM clinic.numbers a, clinic.numbers b, clinic.numbers c WHERE a.x < b.x * c.x"
    ticket, message = await passed(running, impatient, sql=long)
    started, ends = len(running.of_kind("ReadStarted")), len(running.of_kind("ReadEnded"))
    async with connected(impatient) as client:
        call = await client.begin("DoGet", message, ticket=ticket)
        await until(lambda: len(running.of_kind("ReadStarted")) > started)
        call.cancel()
        await until(lambda: len(running.of_kind("ReadEnded")) > ends)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code, ended.reason) == ("broken", "client_gone", "the client left")


@pytest.mark.parametrize("leaves", ["the call", "the connection", "nothing"])
async def test_what_was_being_sent_to_a_reader_that_leaves_goes_with_it(
    running: Provider, impatient: FlightServer, leaves: str
) -> None:
    """At once, and not with the garbage collector: batches of thirty megabytes would wait for it."""
    ticket, message = await passed(running, impatient, sql=ENDLESS)
    gc.collect()
    gc.disable()
    try:
        async with connected(impatient, *SMALL_WINDOW) as client:
            call = await client.begin("DoGet", message, ticket=ticket)
            await call.read()
            if leaves == "the call":
                call.cancel()
            elif leaves == "nothing":  # it is cut off
                await until(lambda: not running.reads.live)
                await answer_of(call)
        await settled(running)
        await until(lambda: not [one for one in gc.get_objects() if isinstance(one, GovernedStream | GrpcCall)])
    finally:
        gc.enable()


async def test_a_request_that_does_not_come_is_not_awaited_for_ever(
    running: Provider, impatient: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_call, "_BODY_TIMEOUT_S", 0.3)
    ticket = running.ticket(await running.agree())
    async with connected(impatient) as client:
        answer = await answer_of(client.call("GetFlightInfo", ticket=ticket))
    assert answer.sentence.startswith("body_late: ")


async def test_a_caller_without_a_ticket_is_refused_before_its_request_is_read(
    impatient: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrpcCall, "_read", None)
    async with connected(impatient) as client:
        answer = await answer_of(client.call("DoGet"))  # which does not come
    assert answer.status == 16


@pytest.mark.parametrize("count", [256, 257])
async def test_a_request_has_a_bounded_number_of_messages(
    running: Provider, impatient: FlightServer, count: int
) -> None:
    ticket = running.ticket(await running.agree())
    async with connected(impatient) as client:
        answer = await client.ask("ListFlights", *[b""] * count, ticket=ticket)
    expected = "expected one message, got 256" if count == 256 else "expected at most 256 messages, got more"
    assert answer.sentence == f"request_invalid: {expected}"


async def test_a_request_of_many_messages_has_the_limit_of_one(running: Provider, impatient: FlightServer) -> None:
    ticket = running.ticket(await running.agree())
    async with connected(impatient) as client:
        answer = await client.ask("ListFlights", *[bytes(2**18)] * 5, ticket=ticket)
    assert answer.sentence.startswith("request_too_large: ")


async def test_open_calls_of_one_consumer_are_bounded(running: Provider, impatient: FlightServer) -> None:
    ticket = running.ticket(await running.agree())
    async with connected(impatient) as client:
        calls = [client.call("GetFlightInfo", ticket=ticket) for _ in range(flight_queries._CALLS_OF_ONE)]
        await until(lambda: impatient._queries._open == {provider.CONSUMER: len(calls)})
        answer = await client.ask("ListActions", b"", ticket=ticket)
        assert (answer.status, answer.sentence.partition(":")[0]) == (14, "streams_of_consumer")
        for call in calls:
            call.cancel()
        await until(lambda: impatient._queries._open == {})
        assert (await client.ask("ListActions", b"", ticket=ticket)).status == 0


def handed(text: str) -> bytes:
    """The request for the info of a prepared statement with this handle."""
    return flightsql.pack("CommandPreparedStatementQuery", [(1, text)])


@pytest.mark.parametrize(
    "asked",
    [
        fl.FlightDescriptor.for_path(),
        fl.FlightDescriptor.for_path(*PATH, "more"),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[1]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["int"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["int","1","2"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["int",["1"]]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[[{},"1"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["text","\\ud800"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT \\ud800 FROM clinic.numbers","values":[]}')),
        fl.FlightDescriptor.for_command(b'{"sql":"SELECT \\ud800 FROM clinic.numbers"}'),
    ],
    ids=lambda one: str(one.command or one.path)[-60:],
)
async def test_what_is_asked_in_another_form_is_bad_input(
    running: Provider, impatient: FlightServer, asked: fl.FlightDescriptor
) -> None:
    ticket = running.ticket(await running.agree())

    def go() -> None:
        with flyer(impatient, ticket) as client:
            client.client.get_flight_info(asked, client.options)

    with pytest.raises(pa.ArrowInvalid, match=r"^\w+: "):
        await asyncio.to_thread(go)
    await settled(running)


@pytest.mark.parametrize("header", ["hanse-purpose", "hanse-application"])
async def test_what_is_declared_at_length_is_bad_input(running: Provider, impatient: FlightServer, header: str) -> None:
    ticket = running.ticket(await running.agree())

    def go(size: int) -> None:
        with flyer(impatient, ticket, headers=[(header.encode(), b"x" * size)]) as client:
            client.info(*PATH)

    await asyncio.to_thread(go, 1024)
    with pytest.raises(pa.ArrowInvalid, match=f"^request_invalid: expected one header {header} of at most 1024"):
        await asyncio.to_thread(go, 1025)


async def test_a_job_at_length_is_bad_input(running: Provider, impatient: FlightServer) -> None:
    ticket = running.ticket(await running.agree())

    def go() -> None:
        with flyer(impatient, ticket, headers=[(b"hanse-job", b"x" * 251)]) as client:
            client.info(*PATH)

    with pytest.raises(pa.ArrowInvalid, match=r"^request_invalid: expected one header hanse-job of at most 250"):
        await asyncio.to_thread(go)


@pytest.mark.parametrize("letter", ["a", "%", "\u00e9", "\u6f22", "\U0001f600", "\ud800", "\r\n"])
async def test_a_refusal_in_any_script_fits_into_the_metadata_that_clients_take(
    impatient: FlightServer, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    error = Denied(letter * 1000, code="revoked", rule=letter * 200)

    async def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(impatient._queries, "identify", refuse)
    agent = ("grpc.primary_user_agent", "grpc-c++/1.76.0")  # gets the JSON, too
    async with connected(impatient, agent, ("grpc.max_metadata_size", 8192)) as client:
        answer = await answer_of(client.call("ListFlights", ticket="any"))
    assert (answer.status, answer.sentence[:9]) == (7, "revoked: ")
    size = sum(len(name) + len(value) + 32 for name, value in answer.trailers.items())
    assert size + len(quote(answer.sentence)) <= 8192
