"""What passes between the Flight process and the connector. Standard library only: both ends load it.

For each call the Flight process makes a pair of sockets and sends one end over. On it goes one question, a JSON object
with its length before it; back come frames: `VALUE` or `ERROR` (JSON), or for a read `SCHEMA`, any number of `BATCH`
and one `END`. A batch lies in a slot of shared memory; the frame names slot and size, and carries the descriptor of
the slot's memory when that is new. The reader sends the slot's number back, one byte, when nobody holds it any more.
Closing the socket ends the call, from either side.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Final

VALUE: Final = 1
ERROR: Final = 2
SCHEMA: Final = 3
BATCH: Final = 4
END: Final = 5

HEADER: Final = struct.Struct("<BBBxQ")  # kind, slot, whether a descriptor comes along, size
LENGTH: Final = struct.Struct("<I")
QUESTION_MAX: Final = 2**20
SLOTS: Final = 4  # one being sent, two ready, one being filled: with one less the sender waits now and then


def ask(channel: socket.socket, question: dict[str, Any]) -> None:
    """Send a question. ValueError where it is larger than one may be."""
    text = json.dumps(question).encode()
    if len(text) > QUESTION_MAX:
        raise ValueError(f"expected a request of at most {QUESTION_MAX} bytes, came {len(text)}")
    channel.sendall(LENGTH.pack(len(text)) + text)


def receive(channel: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; EOFError where the other end has gone."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        more = channel.recv_into(view[got:])
        if not more:
            raise EOFError
        got += more
    return bytes(data)


def receive_header(channel: socket.socket) -> tuple[int, int, int, int | None]:
    """Kind, slot, size and the descriptor that came along; EOFError where the other end has gone."""
    data, descriptors, _, _ = socket.recv_fds(channel, HEADER.size, 1)
    if not data:
        raise EOFError
    data += receive(channel, HEADER.size - len(data))
    kind, slot, _, size = HEADER.unpack(data)
    return kind, slot, size, descriptors[0] if descriptors else None
