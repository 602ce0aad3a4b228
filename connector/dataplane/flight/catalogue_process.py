"""Makes and reads Flight's tables: `python -m connector.dataplane.flight.catalogue_process <socket's fd>`.

It holds nothing, may open no file and no connection, and ends when the socket closes: what strangers send as Arrow is
parsed here, where it can be limited and killed. One question at a time, and its answer; both are frames. `making` is
its inside, `tables` the other end. Standard library only: both ends load it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

from connector.engine.pool.sandbox import confine

HEADER: Final = struct.Struct("<II")  # bytes of JSON ([what is told, sizes of the parts]), bytes of the parts behind it
READY: Final = "ready"
_MEMORY = 2**30  # address space: a tenth of it is taken by libraries
_ALONE_SECONDS = 30  # longer than any connector waits: one that is gone cannot end us


def frame(told: Any, parts: Sequence[bytes] = ()) -> bytes:
    """What is told, and bytes that belong to it, as they pass the socket."""
    text, body = json.dumps([told, [len(part) for part in parts]]).encode(), b"".join(parts)
    return HEADER.pack(len(text), len(body)) + text + body


def unframed(text: bytes, body: bytes) -> tuple[Any, list[bytes]]:
    """What `frame` was given. ValueError for what it never made."""
    try:
        told, sizes = json.loads(text)
        parts, at = [], 0
        for size in sizes:
            parts.append(body[at : at + size])
            at += len(parts[-1])
    except (TypeError, RecursionError):
        raise ValueError("expected what is told and the sizes of its parts") from None
    if at != len(body) or [len(part) for part in parts] != sizes:
        raise ValueError("expected parts of the sizes that are told")
    return told, parts


def main() -> None:
    """Shut ourselves in, load Arrow, and answer until the connector goes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    null = os.open(os.devnull, os.O_WRONLY)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _MEMORY)
    confine(readable=(), writable=())
    # After that: the library starts a thread, which must be inside as well. It does without NumPy, which would take
    # as long to load again, and address space for each processor.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    from connector.dataplane.flight.catalogue_tables import answer

    os.dup2(null, 2)  # errors of libraries quote values
    channel.sendall(frame(READY))
    with channel.makefile("rb") as questions:
        while header := questions.read(HEADER.size):
            signal.alarm(_ALONE_SECONDS)
            size, room = HEADER.unpack(header)
            channel.sendall(answer(*unframed(questions.read(size), questions.read(room))))
            signal.alarm(0)


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (most, most) if hard < 0 or most < hard else (hard, hard))


if __name__ == "__main__":
    main()
