"""Flight before clients that are not all alike: what gRPC ("gRPC over HTTP2", "Compression") and RFC 9113 promise them.

Go, Rust, Java and Python differ in what they send. What was found with one of them is told here by a client that is
at hand: pyarrow's, ADBC's (which is Go), or one made of `h2`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi
import pyarrow.flight as fl
import pytest
import pytest_asyncio
from h2.errors import ErrorCodes

from connector.dataplane.flight import flightsql
from connector.dataplane.flight.http2 import http2_connection, protobuf
from connector.dataplane.flight.listener import Front
from tests.support import flying
from tests.support.certificates import self_signed
from tests.support.flying import flyer
from tests.support.http2 import Answer, Wire, wire
from tests.support.provider import Provider, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS = '"clinic".numbers'
ENDLESS = f"SELECT a.id, b.x FROM {NUMBERS} a CROSS JOIN {NUMBERS} b"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ticket(running: Provider) -> str:
    return running.ticket(await running.agree())


async def use(front: Front, work: Callable[[Wire], Any]) -> Any:
    """What `work` finds with a connection of its own, in a thread."""

    def go() -> Any:
        with wire(front.port) as made:
            return work(made)

    return await asyncio.to_thread(go)


def message(*fields: tuple[int, int | bytes | str]) -> bytes:
    """A message of gRPC with these fields."""
    raw = protobuf.write(fields)
    return b"\0" + len(raw).to_bytes(4, "big") + raw


def endless(front: Front, ticket: str) -> bytes:
    """What asks for a stream that does not end by itself."""
    with flyer(front, ticket) as client:
        return message((1, client.info(sql=ENDLESS).endpoints[0].ticket.ticket))


def sentence(answer: Answer) -> str:
    return answer.heads[-1]["grpc-message"]


# Who somebody is.


@pytest.mark.parametrize("user", ["", "m", "me", "you"])
async def test_a_password_is_read_whatever_the_length_of_the_name_before_it(
    front: Front, ticket: str, user: str
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
async def test_a_password_that_is_none_is_unauthenticated(front: Front, name: str) -> None:
    def go(made: Wire) -> Answer:
        return made.answer(made.ask("ListFlights", authorization=f"Basic {BROKEN_BASIC[name]}"))

    assert (await use(front, go)).status == "16"


# How long somebody waits.


async def test_a_stream_ends_when_the_time_of_its_call_is_over_though_its_client_says_nothing(
    running: Provider, front: Front, ticket: str
) -> None:
    """Rust's client tells the time and leaves it to us."""
    before = len(running.of_kind("ReadEnded"))

    def go(made: Wire) -> Answer:
        return made.answer(made.ask("DoGet", ticket, asked, grpc_timeout="900m"))

    asked = await asyncio.to_thread(endless, front, ticket)
    answer = await use(front, go)
    assert (answer.status, answer.reset) == ("4", None)
    assert sentence(answer).startswith("deadline_exceeded: ")
    await settled(running)
    (ended,) = running.of_kind("ReadEnded")[before:]
    assert ended.outcome == "broken"


async def test_a_request_that_does_not_come_is_awaited_no_longer_than_its_call(front: Front, ticket: str) -> None:
    def go(made: Wire) -> Answer:
        return made.answer(made.ask("GetFlightInfo", ticket, b"", whole=False, grpc_timeout="100m"))

    assert (await use(front, go)).status == "4"


TIMES = {
    "hours": ("1H", "0"),
    "the most that can be said": ("99999999H", "0"),
    "minutes": ("2M", "0"),
    "millionths": ("60000000u", "0"),
    "none at all": ("0n", "4"),
    "no number": ("S", "3"),
    "no unit": ("10", "3"),
    "more digits than eight": ("123456789S", "3"),
    "another unit": ("1d", "3"),
    "a negative one": ("-1S", "3"),
    "other digits": ("\u0663S", "3"),
}


@pytest.mark.parametrize("name", TIMES)
async def test_a_time_is_understood_or_refused(front: Front, ticket: str, name: str) -> None:
    told, expected = TIMES[name]

    def go(made: Wire) -> Answer:
        return made.answer(made.ask("ListFlights", ticket, grpc_timeout=told))

    answer = await use(front, go)
    assert answer.status == expected
    if expected == "3":
        assert "grpc-timeout" in sentence(answer)


# What is no request of ours.


async def test_a_request_that_is_compressed_is_told_what_would_be_understood(front: Front, ticket: str) -> None:
    """gRPC, "Compression": UNIMPLEMENTED, and the encodings that are accepted in `grpc-accept-encoding`."""

    def go(made: Wire) -> Answer:
        return made.answer(made.ask("ListFlights", ticket, b"\1\0\0\0\2xx", grpc_encoding="gzip"))

    answer = await use(front, go)
    assert answer.status == "12"
    assert "identity" in sentence(answer)
    assert answer.heads[0]["grpc-accept-encoding"] == "identity"


KINDS = {
    "gRPC": ({"content_type": "application/grpc"}, "200", "0"),
    "gRPC with its format": ({"content_type": "application/grpc+proto"}, "200", "0"),
    "gRPC with a parameter": ({"content_type": "application/grpc;charset=utf-8"}, "200", "0"),
    "gRPC for browsers": ({"content_type": "application/grpc-web"}, "415", "3"),
    "JSON": ({"content_type": "application/json"}, "415", "3"),
    "no kind": ({"content_type": ""}, "415", "3"),
    "a page": ({"__method": "GET"}, "405", "3"),
}


@pytest.mark.parametrize("name", KINDS)
async def test_what_is_no_call_of_grpc_is_told_so_in_http(front: Front, ticket: str, name: str) -> None:
    """So that no proxy and no browser takes it for a success."""
    headers, status, expected = KINDS[name]

    def go(made: Wire) -> Answer:
        return made.answer(made.ask("ListFlights", ticket, **headers))

    answer = await use(front, go)
    assert (answer.heads[0][":status"], answer.status) == (status, expected)


PUT = {
    "an update": flightsql.pack("CommandStatementUpdate", [(1, "DELETE FROM x")]),
    "a table to take in": flightsql.pack("CommandStatementIngest", [(3, "x")]),
    "a prepared update": flightsql.pack("CommandPreparedStatementUpdate", [(1, flightsql.handle("SELECT 1", []))]),
}


@pytest.mark.parametrize("name", PUT)
async def test_data_that_is_put_is_refused_at_its_first_message(front: Front, ticket: str, name: str) -> None:
    """Java's client ends its request when it has an answer, and its answer was that its request does not end."""
    first = message((1, protobuf.write([(1, 2), (2, PUT[name])])))

    def go(made: Wire) -> Answer:
        return made.answer(made.ask("DoPut", ticket, first, whole=False))

    answer = await use(front, go)
    assert answer.status == "12"
    assert "read, not written" in sentence(answer)


AGENTS = {
    "pyarrow's": ("grpc-c++/1.76.0 grpc-c/51.0.0 (linux; chttp2)", True),
    "Go's": ("ADBC Flight SQL Driver v1.8 grpc-go/1.58.0", False),
    "Java's": ("grpc-java-netty/1.71.0", False),
    "Rust's": ("tonic/0.14.9", False),
    "none": ("", False),
}


@pytest.mark.parametrize("name", AGENTS)
async def test_details_are_sent_to_those_who_take_them_as_they_are(front: Front, name: str) -> None:
    """In gRPC they are a message `google.rpc.Status`, and older clients of Go take anything else for an error of ours;
    in Arrow's C++ they are the `extra_info` of its exceptions."""
    agent, told = AGENTS[name]

    def go(made: Wire) -> Answer:
        return made.answer(made.ask("ListFlights", user_agent=agent))

    answer = await use(front, go)
    assert answer.status == "16"
    assert ("grpc-status-details-bin" in answer.heads[-1]) is told
    if told:
        assert json.loads(base64.b64decode(answer.heads[-1]["grpc-status-details-bin"] + "=="))["status"] == 401


# How long a connection lasts.


async def test_what_is_on_its_way_when_we_say_goodbye_may_be_asked_again_elsewhere(
    front: Front, ticket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9113, section 6.8: clients ask anew what comes after the last request that GOAWAY names, unless the
    connection breaks before they have read that."""
    monkeypatch.setattr(http2_connection, "_REST_SECONDS", 0.05)

    def go(made: Wire) -> tuple[Any, bool]:
        made.answer(first := made.ask("ListActions", ticket))
        seen = 0  # the goodbye is there, and has not been looked at
        while (have := len(made.socket.recv(2**16, socket.MSG_PEEK))) < 17 or have == seen:
            seen = have
        late = [made.ask("ListActions", ticket) for _ in range(20)]
        with suppress(ConnectionAbortedError):  # closed, in good order: a reset is another error
            while True:
                made.read()
        assert made.goodbye is not None
        assert not any(made.answers[number].heads for number in late)
        return made.goodbye, made.goodbye.last_stream_id == first

    goodbye, named = await use(front, go)
    assert goodbye.error_code == ErrorCodes.NO_ERROR
    assert named


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_comes_back_after_a_rest_notices_nothing(
    running: Provider, ticket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(http2_connection, "_REST_SECONDS", 0.05)
    certificate = str(self_signed(tmp_path / "c.pem")) if tls else ""

    def go(front: Front) -> None:
        with flyer(front, ticket) as client:
            for pause in (0.2, 0.05, 0.049, 0.048, 0.051, 0.052, 0.05, 0.05):
                assert len(list(client.client.list_flights(options=client.options))) == 1
                time.sleep(pause)

    async with flying.flying(running, certificate=certificate, key=certificate) as front:
        await asyncio.to_thread(go, front)


async def test_pings_of_a_client_that_waits_or_reads_are_answered(running: Provider, front: Front, ticket: str) -> None:
    """Keepalive as often as once in a tenth of a second, which is more than libraries let one ask for."""

    def go(made: Wire) -> tuple[int, Any]:
        for _ in range(20):
            made.ping()
            time.sleep(0.02)
        made.ask("DoGet", ticket, asked)
        for _ in range(50):
            made.ping()
            made.read()
        while made.pings < 70:
            made.read()
        return made.pings, made.goodbye

    asked = await asyncio.to_thread(endless, front, ticket)
    pings, goodbye = await use(front, go)
    assert (pings, goodbye) == (70, None)


async def test_a_client_that_asks_with_many_headers_is_answered(front: Front, ticket: str) -> None:
    def go() -> int:
        headers = [(b"x-%d" % number, b"v" * 300) for number in range(150)]
        with flyer(front, ticket, headers=headers) as client:
            return len(list(client.client.list_flights(options=client.options)))

    assert await asyncio.to_thread(go) == 1


async def test_a_call_that_a_client_gives_up_is_over_for_both(running: Provider, front: Front, ticket: str) -> None:
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
