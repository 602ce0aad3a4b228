"""Flight before clients that are not all alike: what gRPC promises them, and what each of them sends.

Go, Rust, Java and Python differ in what they send. What was found with one of them is played here by a client at hand:
pyarrow's, ADBC's (which is Go), or one of bytes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi
import grpc.aio
import pyarrow.flight as fl
import pytest
import pytest_asyncio

from connector.dataplane.flight import flightsql, listener, protobuf
from connector.dataplane.flight.listener import FlightServer
from tests.support import flying
from tests.support.certificates import self_signed
from tests.support.flying import flyer
from tests.support.grpc_client import answer_of, connected
from tests.support.provider import Provider, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS = '"clinic".numbers'
ENDLESS = f"SELECT a.id, b.x FROM {NUMBERS} a CROSS JOIN {NUMBERS} b"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ticket(running: Provider) -> str:
    return running.ticket(await running.agree())


# The caller's identity.


@pytest.mark.parametrize("user", ["", "m", "me", "you"])
async def test_a_password_is_read_whatever_the_length_of_the_name_before_it(
    front: FlightServer, ticket: str, user: str
) -> None:
    """Go's client leaves out the padding of base64; with one name in three there is none."""

    def go() -> Any:
        options = {"username": user, "password": ticket}
        where = f"grpc+tcp://127.0.0.1:{front.port}"
        with (
            adbc_driver_flightsql.dbapi.connect(where, db_kwargs=options, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(f"SELECT count(*) FROM {NUMBERS} WHERE id < 5")
            return cursor.fetchall()

    assert await asyncio.to_thread(go) == [(5,)]


BROKEN_BASIC = {"no base64": "!", "nothing": "", "no password": base64.b64encode(b"me:").decode(), "a letter": "a"}


@pytest.mark.parametrize("name", BROKEN_BASIC)
async def test_a_password_that_is_none_is_unauthenticated(front: FlightServer, name: str) -> None:
    async with connected(front) as client:
        answer = await client.ask("ListFlights", b"", headers=[("authorization", f"Basic {BROKEN_BASIC[name]}")])
    assert answer.status == 16


async def test_a_handshake_with_a_password_returns_the_bearer_token(front: FlightServer, ticket: str) -> None:
    def go() -> object:
        with fl.connect(f"grpc+tcp://127.0.0.1:{front.port}") as client:
            return client.authenticate_basic_token("me", ticket)

    assert await asyncio.to_thread(go) == (b"authorization", f"Bearer {ticket}".encode())


# What is refused.


@pytest.mark.parametrize("method", ["DoExchange", "PollFlightInfo", "Nothing", "/other.Service/DoGet"])
async def test_a_method_that_is_not_there_is_unimplemented_for_known_callers(
    front: FlightServer, ticket: str, method: str
) -> None:
    async with connected(front) as client:
        assert (await client.ask(method, b"", ticket=ticket)).status == 12
        assert (await client.ask(method, b"")).status == 16


async def test_a_compressed_request_is_understood(front: FlightServer, ticket: str) -> None:
    async with connected(front, ("grpc.default_compression_algorithm", 2)) as client:
        answer = await client.ask(
            "GetSchema", protobuf.write([(1, 1), (3, "clinic"), (3, "numbers"), (9, "x" * 9999)]), ticket=ticket
        )
    assert answer.status == 0


async def test_a_compressed_request_has_the_limit_of_its_real_size(front: FlightServer, ticket: str) -> None:
    async with connected(front, ("grpc.default_compression_algorithm", 2)) as client:
        answer = await client.ask("ListFlights", bytes(200_000_000), ticket=ticket)
    assert answer.status == 8


PUT = {
    "an update": flightsql.pack("CommandStatementUpdate", [(1, "DELETE FROM x")]),
    "a table to take in": flightsql.pack("CommandStatementIngest", [(3, "x")]),
    "a prepared update": flightsql.pack("CommandPreparedStatementUpdate", [(1, flightsql.handle("SELECT 1", []))]),
}


@pytest.mark.parametrize("name", PUT)
async def test_data_that_is_put_is_refused_at_its_first_message(front: FlightServer, ticket: str, name: str) -> None:
    """Java's client ends its request when it has an answer."""
    first = protobuf.write([(1, protobuf.write([(1, 2), (2, PUT[name])]))])
    async with connected(front) as client:
        call = client.call("DoPut", ticket=ticket)
        await call.write(first)
        answer = await answer_of(call)
    assert answer.status == 12
    assert "read, not written" in answer.sentence


AGENTS = {
    "pyarrow's": ("grpc-c++/1.76.0 grpc-c/51.0.0 (linux; chttp2)", True),
    "Go's": ("ADBC Flight SQL Driver v1.8 grpc-go/1.58.0", False),
    "Java's": ("grpc-java-netty/1.71.0", False),
    "Rust's": ("tonic/0.14.9", False),
    "none": ("", False),
}


@pytest.mark.parametrize("name", AGENTS)
async def test_details_are_sent_to_those_who_take_them_as_they_are(front: FlightServer, name: str) -> None:
    """In gRPC they are a message `google.rpc.Status`, and older clients of Go take anything else for an error of the
    server; in Arrow's C++ they are the `extra_info` of its exceptions."""
    agent, sent = AGENTS[name]
    async with connected(front, ("grpc.primary_user_agent", agent)) as client:
        answer = await answer_of(client.call("ListFlights"))
    assert answer.status == 16
    details = answer.trailers.get("grpc-status-details-bin")
    assert (details is not None) is sent
    if details:
        assert json.loads(details)["status"] == 401


# How long a call and a connection last.


async def test_a_request_that_does_not_come_is_awaited_no_longer_than_its_call(
    front: FlightServer, ticket: str
) -> None:
    async with connected(front) as client:
        assert (await answer_of(client.call("GetFlightInfo", ticket=ticket, timeout=0.1))).status == 4


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_comes_back_after_a_rest_notices_nothing(
    running: Provider, ticket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(listener, "_IDLE_TIMEOUT_S", 0.05)
    certificate = str(self_signed(tmp_path / "c.pem")) if tls else ""

    def go(front: FlightServer) -> None:
        with flyer(front, ticket) as client:
            for pause in (0.2, 0.05, 0.049, 0.048, 0.051, 0.052, 0.05, 0.05):
                assert len(list(client.client.list_flights(options=client.options))) == 1
                time.sleep(pause)

    async with flying.flying(running, certificate=certificate, key=certificate) as front:
        await asyncio.to_thread(go, front)


async def test_a_renewed_certificate_is_shown_to_new_connections(
    running: Provider, ticket: str, tmp_path: Path
) -> None:
    pem, other = tmp_path / "c.pem", self_signed(tmp_path / "other.pem").read_bytes()
    pem.write_bytes(first := self_signed(tmp_path / "first.pem").read_bytes())

    async def status(front: FlightServer, roots: bytes) -> int:
        credentials = grpc.ssl_channel_credentials(roots)
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{front.port}", credentials, options=own) as channel:
            call = channel.stream_stream("/arrow.flight.protocol.FlightService/Handshake")(
                metadata=[("authorization", f"Bearer {ticket}")]
            )
            return int((await call.code()).value[0])

    async with flying.flying(running, certificate=str(pem)) as front:
        assert (await status(front, first), await status(front, other)) == (0, 14)
        pem.write_bytes(other)
        assert (await status(front, first), await status(front, other)) == (0, 14)
        front.renew()
        assert (await status(front, first), await status(front, other)) == (14, 0)


async def test_connections_beyond_the_limit_are_refused_until_one_ends(running: Provider, ticket: str) -> None:
    async with flying.flying(running, connections=2) as front:
        async with connected(front) as first, connected(front) as second:
            for client in (first, second):
                assert (await client.ask("ListActions", b"", ticket=ticket)).status == 0
            async with connected(front) as third:
                assert (await third.ask("ListActions", b"", ticket=ticket)).status == 14
        async with asyncio.timeout(30):
            while True:
                async with connected(front) as third:
                    if (await third.ask("ListActions", b"", ticket=ticket)).status == 0:
                        break


async def test_calls_beyond_the_limit_of_a_connection_wait(
    running: Provider, front: FlightServer, ticket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_CALLS_MAX", 1)
    async with flying.flying(running) as narrow, connected(narrow) as client:
        first = client.call("GetFlightInfo", ticket=ticket)
        await first.write(b"")
        second = asyncio.ensure_future(client.ask("ListActions", b"", ticket=ticket))
        await asyncio.sleep(0.2)
        assert not second.done()
        first.cancel()
        assert (await second).status == 0


async def test_a_client_that_asks_with_many_headers_is_answered(front: FlightServer, ticket: str) -> None:
    def go() -> int:
        headers = [(b"x-%d" % number, b"v" * 300) for number in range(150)]
        with flyer(front, ticket, headers=headers) as client:
            return len(list(client.client.list_flights(options=client.options)))

    assert await asyncio.to_thread(go) == 1


async def test_a_call_that_a_client_gives_up_is_over_for_both(
    running: Provider, front: FlightServer, ticket: str
) -> None:
    def go() -> None:
        with flyer(front, ticket) as client:
            seal = client.info(sql=ENDLESS).endpoints[0].ticket
            waits = fl.FlightCallOptions(headers=client.options.headers, timeout=0.5)
            with pytest.raises(fl.FlightTimedOutError):
                for _ in client.client.do_get(seal, waits):
                    pass
            assert len(list(client.client.list_flights(options=client.options))) == 1

    await asyncio.to_thread(go)
    await settled(running)
