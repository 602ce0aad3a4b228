"""Flight before people who mean it badly: tickets not theirs, garbage, floods."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest
import pytest_asyncio

from connector.dataplane.flight import flightsql
from connector.dataplane.flight.listener import FlightServer
from connector.engine.pool.sandbox import memory_of
from connector.errors import WrongState
from connector.infra.http import http_limits
from tests.support import flying, provider
from tests.support.certificates import self_signed
from tests.support.flying import flyer
from tests.support.own_name import changed
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = ("clinic", "numbers")
OTHER = "did:web:rival.example"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=20_000) as started:
        yield started


async def test_tickets_of_others_changed_ones_and_ended_ones_open_nothing(
    running: Provider, front: FlightServer
) -> None:
    agreement, second = await running.agree(), await running.agree()
    good = running.ticket(agreement)
    before = len(running.of_kind("ReadStarted"))

    def go() -> None:
        with flyer(front, good) as client:
            seal = client.info(*PATH).endpoints[0].ticket
        changed = seal.ticket.replace(b"numbers", b"patient")
        attempts = [
            (good, changed),
            (good, seal.ticket[:-3]),
            (running.ticket(second), seal.ticket),
            (running.ticket(agreement, consumer=OTHER), seal.ticket),
            (running.ticket(agreement, seconds=-1), seal.ticket),
            (good[:-4] + "AAAA", seal.ticket),
            ("", seal.ticket),
        ]
        for shown, raw in attempts:
            with (
                flyer(front, shown) as client,
                pytest.raises((fl.FlightUnauthorizedError, fl.FlightUnauthenticatedError)),
            ):
                client.get(fl.Ticket(raw))

    await asyncio.to_thread(go)
    assert len(running.of_kind("ReadStarted")) == before


async def test_a_ticket_used_again_by_its_owner_is_another_read(running: Provider, front: FlightServer) -> None:
    agreement = await running.agree()
    before = len(running.of_kind("ReadStarted"))

    def go() -> list[int]:
        with flyer(front, running.ticket(agreement)) as client:
            seal = client.info(*PATH).endpoints[0].ticket
            return [flying.whole(client.get(seal))[1]["rows"] for _ in range(2)]

    rows = await asyncio.to_thread(go)
    assert rows[0] == rows[1] > 0
    assert len(running.of_kind("ReadStarted")) == before + 2


async def test_garbage_is_bad_input_whatever_it_is(running: Provider, front: FlightServer) -> None:
    ticket, dice = running.ticket(await running.agree()), random.Random(11)
    whole = flightsql.pack("CommandStatementQuery", [(1, "SELECT 1")])

    def go() -> None:
        with flyer(front, ticket) as client:
            for number in range(150):
                raw = bytearray(whole if number % 2 else dice.randbytes(dice.randrange(1, 200)))
                raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
                junk = bytes(raw)
                calls = (
                    lambda junk=junk: client.client.get_flight_info(
                        fl.FlightDescriptor.for_command(junk), client.options
                    ),
                    lambda junk=junk: client.get(fl.Ticket(junk)),
                    lambda junk=junk: client.act("CreatePreparedStatement", junk),
                    lambda junk=junk: client.act("CancelFlightInfo", junk),
                )
                told = _refusal(calls[number % 4])
                assert ".py" not in str(told)
                assert not isinstance(told, fl.FlightInternalError), told

    await asyncio.to_thread(go)


async def test_arrow_that_is_damaged_is_bad_input(running: Provider, front: FlightServer) -> None:
    ticket = running.ticket(await running.agree())
    command = flightsql.pack("CommandPreparedStatementQuery", [(1, flightsql.handle("SELECT ?", []))])

    def go() -> None:
        with flyer(front, ticket) as client:
            descriptor = fl.FlightDescriptor.for_command(command)
            no_text = [None, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe")]
            bad = pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.string(), 1, no_text)], names=["0"])

            def put() -> None:
                writer, reader = client.client.do_put(descriptor, bad.schema, client.options)
                writer.write_batch(bad)
                writer.done_writing()
                reader.read()
                writer.close()

            assert isinstance(_refusal(put), pa.ArrowException | fl.FlightError)

    await asyncio.to_thread(go)
    assert await asyncio.to_thread(_rows, front, ticket) > 0


async def test_what_nobody_known_puts_is_not_unfolded(running: Provider, front: FlightServer) -> None:
    ticket = running.ticket(await running.agree())
    command = flightsql.pack("CommandPreparedStatementQuery", [(1, flightsql.handle("SELECT ?", []))])
    size = 500_000_000  # of zeros, in 16 kB
    ends = pa.array([0, size]).buffers()[1]
    large = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(bytes(size))])
    folded = pa.ipc.IpcWriteOptions(compression="zstd")

    def put() -> None:
        with flyer(front, "nobody") as client:
            options = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer nobody")], write_options=folded)
            batch = pa.record_batch([large], names=["0"])
            writer, reader = client.client.do_put(fl.FlightDescriptor.for_command(command), batch.schema, options)
            writer.write_batch(batch)
            writer.done_writing()
            reader.read()
            writer.close()

    assert isinstance(await asyncio.to_thread(_refusal, put), fl.FlightUnauthenticatedError)
    assert await asyncio.to_thread(_rows, front, ticket) > 0


FLOOD = """
import sys
import pyarrow.flight as fl
with fl.connect(sys.argv[1]) as client:
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {one}".encode()) for one in sys.argv[2:]])
    try:
        client.get_flight_info(fl.FlightDescriptor.for_command(bytes(200_000_000)), options)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ("", "FlightUnauthenticatedError"),
        ("nobody", "FlightUnauthenticatedError"),
        ("ticket", "ArrowInvalid gRPC returned resource exhausted error"),
    ],
)
async def test_a_flood_of_bytes_is_refused_and_takes_no_memory(
    running: Provider, front: FlightServer, shown: str, told: str
) -> None:
    ticket = running.ticket(await running.agree())
    await asyncio.to_thread(_rows, front, ticket)
    before = most = memory_of(os.getpid()).own
    given = [ticket if shown == "ticket" else shown] * bool(shown)
    flooding = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOOD, f"grpc://127.0.0.1:{front.port}", *given, stdout=asyncio.subprocess.PIPE
    )
    said = asyncio.ensure_future(flooding.communicate())
    while not said.done():
        most = max(most, memory_of(os.getpid()).own)
        await asyncio.sleep(0.01)
    assert (await said)[0].decode().startswith(told)
    assert most - before < 2**25
    assert await asyncio.to_thread(_rows, front, ticket) > 0


async def test_what_is_no_http2_is_dropped(running: Provider, front: FlightServer) -> None:
    def go() -> None:
        for junk in (b"GET / HTTP/1.1\r\n\r\n", random.Random(3).randbytes(4096)):
            with socket.create_connection(("127.0.0.1", front.port), timeout=60) as raw:
                raw.sendall(junk)
                while raw.recv(65_536):
                    pass

    await asyncio.to_thread(go)
    assert await asyncio.to_thread(_rows, front, running.ticket(await running.agree())) > 0


async def test_a_port_in_use_is_told_at_start(running: Provider, front: FlightServer) -> None:
    with pytest.raises(WrongState, match="HANSE_FLIGHT_PORT"):
        async with flying.flying(running, port=front.port):
            pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize(("host", "reached"), [("::1", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"])])
async def test_it_listens_where_it_is_told(running: Provider, host: str, reached: list[str]) -> None:
    async with flying.flying(running, host=host) as front:
        options = fl.FlightCallOptions(
            headers=[(b"authorization", f"Bearer {running.ticket(await running.agree())}".encode())]
        )

        def go(name: str) -> int:
            with fl.connect(f"grpc://{name}:{front.port}") as client:
                return len(list(client.list_flights(options=options)))

        assert [await asyncio.to_thread(go, name) for name in reached] == [1] * len(reached)


async def test_with_as_many_connections_as_each_listener_has_the_process_can_open_files(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_limits, "resource", changed(resource, getrlimit=lambda which: (1024, 1024)))
    async with flying.flying(running) as front:
        public, management, flight = http_limits.connections_max(), http_limits.connections_max(), front.connections_max
        assert public + management + flight + http_limits.OUR_DESCRIPTORS <= 1024


async def test_tls_proves_the_server_and_carries_the_same(running: Provider, tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "owner.pem")
    ticket = running.ticket(await running.agree())
    async with flying.flying(running, certificate=str(pem)) as front:

        def go() -> int:
            options = {"tls_root_certs": pem.read_bytes()}
            with flyer(front, ticket, scheme="grpc+tls", **options) as client:
                rows = int(client.read(*PATH)[0].num_rows)
            with flyer(front, ticket, scheme="grpc+tls") as client, pytest.raises(fl.FlightUnavailableError):
                client.info(*PATH)
            with flyer(front, ticket, scheme="grpc+tcp") as client, pytest.raises(fl.FlightUnavailableError):
                client.info(*PATH)
            return rows

        assert await asyncio.to_thread(go) == 20_000


def _rows(front: FlightServer, ticket: str) -> int:
    with flyer(front, ticket) as client:
        return int(client.read(*PATH)[0].num_rows)


def _refusal(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except (pa.ArrowException, fl.FlightError, NotImplementedError) as error:
        return error
    return None
