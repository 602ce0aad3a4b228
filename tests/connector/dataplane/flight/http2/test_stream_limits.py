"""Windows that grow are taken from the front of what came: nobody can tell it from the library's own way."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from h2.exceptions import ProtocolError
from hypothesis import given
from hypothesis import strategies as st

from connector.dataplane.flight.http2.stream_limits import States

HEAD = [(":method", "POST"), (":path", "/x"), (":scheme", "http"), (":authority", "h")]


class Slow(States):
    """The library alone."""

    def receive_data(self, data: Any) -> list[Any]:
        return H2Connection.receive_data(self, data)


def grown(number: int, increment: int, flags: int = 0) -> bytes:
    return struct.pack(">LBLL", 4 << 8 | 8, flags, number, increment)


PING = struct.pack(">LBL8s", 8 << 8 | 6, 0, 0, b"12345678")
RESET = struct.pack(">LBLL", 4 << 8 | 3, 0, 3, 8)
SHORT = struct.pack(">LBLH", 2 << 8 | 8, 0, 0, 1)
FRAMES = {
    "of the connection": grown(0, 1000),
    "of a call": grown(1, 1000),
    "of another": grown(3, 1),
    "of one that has ended": grown(5, 7),
    "of one that never was": grown(99, 7),
    "nothing": grown(0, 0),
    "nothing of a call": grown(1, 0),
    "the most": grown(0, 2**31 - 1),
    "the most of a call": grown(3, 2**31 - 1),
    "with the highest bits": grown(0x80000001, 0x80000400),
    "with flags": grown(1, 5, 0xFF),
    "short": SHORT,
    "a ping": PING,
    "a reset": RESET,
}


def begun(kind: type[States]) -> tuple[States, bytes]:
    """A connection with two calls that are answered and one that has been, and the head of one more."""
    client, states = H2Connection(H2Configuration(client_side=True)), kind()
    client.initiate_connection()
    states.initiate_connection()
    for number in (1, 3, 5):
        client.send_headers(number, HEAD, end_stream=number != 1)
    states.receive_data(client.data_to_send())
    states.send_headers(1, [(":status", "200")])
    states.send_headers(5, [(":status", "200")], end_stream=True)
    states.data_to_send()
    client.send_headers(7, HEAD, end_stream=True)
    return states, client.data_to_send()


def told(states: States, pieces: list[bytes]) -> dict[str, Any]:
    """What can be seen of a connection when these have come."""
    error, calls = "", 0
    try:
        for piece in pieces:
            calls += sum(isinstance(event, RequestReceived) for event in states.receive_data(piece))
    except ProtocolError as raised:
        error = type(raised).__name__
    windows = {number: stream.outbound_flow_control_window for number, stream in states.streams.items()}
    own = states.outbound_flow_control_window
    return {"error": error, "own": own, "windows": windows, "says": states.data_to_send(), "calls": calls} | (
        {} if error else {"count": states.came.count, "left": bytes(states.came._data)}
    )


def alike(chosen: list[str], size: int) -> None:
    found = []
    for kind in (States, Slow):
        states, head = begun(kind)
        data = b"".join(head if name == "a head" else FRAMES[name] for name in chosen)
        found.append(told(states, [data[at : at + size] for at in range(0, len(data), size)]))
    assert found[0] == found[1]


@pytest.mark.parametrize("size", [1, 13, 16, 1000])
@pytest.mark.parametrize("name", FRAMES)
def test_each_kind_of_frame_does_what_it_does_in_the_library(name: str, size: int) -> None:
    alike(["of the connection", name, "of a call", name], size)


@given(
    chosen=st.lists(st.sampled_from([*FRAMES, "a head"]), max_size=12).filter(lambda one: one.count("a head") < 2),
    size=st.integers(1, 60),
)
def test_any_frames_cut_anywhere_do_what_they_do_in_the_library(chosen: list[str], size: int) -> None:
    alike(chosen, size)


class _Counted(H2Connection):
    """The library, which counts how often it is given data."""

    given = 0

    def receive_data(self, data: bytes) -> list[events.Event]:
        self.given += 1
        return super().receive_data(data)


class _StatesOverCounted(States, _Counted):
    """Our states, whose `super()` is the library that counts."""


def test_what_only_grows_never_comes_to_the_library() -> None:
    states, _ = begun(_StatesOverCounted)
    assert isinstance(states, _Counted)
    before, given = states.outbound_flow_control_window, states.given
    assert given > 0
    assert len(states.receive_data(grown(0, 10) + grown(1, 20) + grown(3, 30))) == 1
    assert (states.outbound_flow_control_window, states.given) == (before + 10, given)


@pytest.mark.parametrize("begin", ["nothing", "a part of a head"])
def test_what_may_be_the_middle_of_something_else_is_the_librarys(begin: str) -> None:
    states, head = begun(States)
    if begin == "nothing":
        with pytest.raises(ProtocolError):
            States().receive_data(grown(0, 10))  # before any greeting
    else:
        half = bytearray(head)
        half[4] &= ~4  # its headers go on in the next frame
        states.receive_data(bytes(half))
        with pytest.raises(ProtocolError):
            states.receive_data(grown(0, 10))
