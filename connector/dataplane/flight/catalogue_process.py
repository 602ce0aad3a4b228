"""Makes and reads Flight's tables: `python -m connector.dataplane.flight.catalogue_process <socket's fd>`.

Runs as a child process without secrets. It may open no file and no connection, and ends when the socket closes: Arrow
from strangers is parsed here, where it can be limited and killed. It answers one question at a time; both are frames.
`catalogue_tables` makes the answers, `catalogue_client` is the other end. Standard library only: both ends load it.
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

HEADER: Final = struct.Struct("<II")  # bytes of JSON ([value, sizes of the parts]), bytes of the parts after it
READY: Final = "ready"
_MEMORY = 2**30  # address space: a tenth of it is taken by libraries
_ALONE_SECONDS = 30  # longer than any connector waits: a connector that is gone cannot end this process


def frame(told: Any, parts: Sequence[bytes] = ()) -> bytes:
    """Returns a value and its parts as they pass the socket."""
    text, body = json.dumps([told, [len(part) for part in parts]]).encode(), b"".join(parts)
    return HEADER.pack(len(text), len(body)) + text + body


def unframed(text: bytes, body: bytes) -> tuple[Any, list[bytes]]:
    """Returns the value and the parts of a frame. Raises ValueError for anything else."""
    try:
        told, sizes = json.loads(text)
        parts, at = [], 0
        for size in sizes:
            parts.append(body[at : at + size])
            at += len(parts[-1])
    except (TypeError, RecursionError):
        raise ValueError("expected a value and the sizes of its parts, got something else") from None
    if at != len(body) or [len(part) for part in parts] != sizes:
        raise ValueError("expected parts of the stated sizes, got others")
    return told, parts


def main() -> None:
    """Enter the sandbox, load Arrow, and answer until the connector goes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    null = os.open(os.devnull, os.O_WRONLY)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _MEMORY)
    confine(readable=(), writable=())
    # After the sandbox: the library starts a thread, which must be inside, too. NumPy is left out: it would double the
    # time to load, and take address space for each processor.
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
