"""What stops a stream: a reader that leaves, an owner that revokes, a reader that reads nothing; and going on."""

from __future__ import annotations

import re
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hanse._transport import http_stream
from hanse._transport.http_stream import HttpRequest
from hanse.errors import AccessRevoked, HanseError
from hanse.stream import Stream

from benchmarks.stream.space import Space, agree
from benchmarks.stream.tables import Table
from tests.support.processes import POLICY

_STALL_SECONDS = 57.0  # the owner cuts off a reader that takes nothing for 60
_TIMES = 5


def measure(space: Space, table: Table) -> dict[str, Any]:
    """Every figure, by name."""
    found = {
        "disconnect_ms": statistics.median(_disconnect(space, table) for _ in range(_TIMES)),
        **_resume(space, table),
        **_revoke(space, table),
        **_stall(space, table),
    }
    print("\nstopping: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
    return found


def _open(space: Space, dataset: str, *, idle: float = 60.0, **asked: str) -> Stream:
    url, token = space.address(dataset)
    url += "?" + urlencode(asked)
    headers = {"authorization": f"Bearer {token}"}
    return Stream(http_stream.open_stream(HttpRequest("GET", url, headers, idle_seconds=idle)))


def _resume(space: Space, table: Table) -> dict[str, float]:
    """Milliseconds to the first batch, from the start and from the cursor in the middle, in turn.

    What may be is the larger of one and a half times the first and 20 ms more.
    """
    name = f"{table.name}_open"
    with _open(space, name, blocks="all") as whole:
        places = [dict(whole.place or {}) for _ in whole]
        snapshot, cursor = whole.snapshot, str(places[len(places) // 2]["cursor"])
    start, half = [], []
    for _ in range(_TIMES):
        start.append(_first(space, name, blocks="all"))
        half.append(_first(space, name, blocks="all", after=cursor, snapshot=snapshot))
    from_start, from_half = statistics.median(start), statistics.median(half)
    over = max(0.0, from_half - max(1.5 * from_start, from_start + 20))
    return {"first_ms": from_start, "resumed_ms": from_half, "resume_over_ms": over}


def _first(space: Space, dataset: str, **asked: str) -> float:
    begun = time.perf_counter()
    with _open(space, dataset, **asked) as stream:
        next(iter(stream))
        return (time.perf_counter() - begun) * 1e3


def _metric(space: Space, name: str) -> float:
    """A figure of the owner, as its metrics say."""
    with socket.create_connection(("127.0.0.1", space.owners["north"].management_port)) as asked:
        token = space.owners["north"].token
        asked.sendall(f"GET /metrics HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\n".encode())
        asked.sendall(b"connection: close\r\n\r\n")
        text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
    found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    assert found is not None, text[:300]
    return float(found[1])


def _until_quiet(space: Space) -> None:
    """Wait until no read runs at the owner."""
    begun = time.perf_counter()
    while _metric(space, "hanse_streams_live"):
        if time.perf_counter() - begun > 30:
            raise RuntimeError("expected the stream to end within 30 s after its reader has left")


def _disconnect(space: Space, table: Table) -> float:
    """Milliseconds from the closing of the socket until the owner's stream has ended (its metrics are asked)."""
    stream = _open(space, f"{table.name}_open")
    batches = iter(stream)
    for _ in range(3):
        next(batches)
    stream.close()
    begun = time.perf_counter()
    _until_quiet(space)
    return (time.perf_counter() - begun) * 1e3


def _revoke(space: Space, table: Table) -> dict[str, float]:
    """Batches that left the owner after its click was answered, and how long until the reader was told.

    What lies in the kernels' buffers by then has left: the reader reads nothing while the click is on its way, so they
    are full.
    """
    after, took = [], []
    for number in range(3):
        name = f"revoked_{number}"
        agree(space, "north", name, Path(table.parquet), POLICY)
        stream = _open(space, name)
        batches = iter(stream)
        next(batches)
        api = space.owners["north"].api()
        api.post(f"/agreements/{space.datasets[name][2]}/revoke", {"reason": "the benchmark revokes it"})
        begun, came, most = time.perf_counter(), 0, 1
        left = _unread(space.owners["north"].public_port) + _unsent(space.owners["north"].public_port)
        try:
            for batch in batches:
                came, most = came + batch.nbytes, max(most, batch.nbytes)
        except AccessRevoked:
            after.append(max(0, came - left) / most)
            took.append((time.perf_counter() - begun) * 1e3)
        except HanseError as error:
            raise RuntimeError(f"expected AccessRevoked, came {error}") from error
        api.close()
    return {"revoked_batches": max(after, default=-1), "revoked_ms": max(took, default=-1)}


def _stall(space: Space, table: Table) -> dict[str, float]:
    """A reader takes 20 MB and then nothing for a minute, its connection open.

    How far the owner's own memory grows in that minute; how far it lies above that of an idle owner (with what a
    decoder holds, a row group above all); and what the owner has released that has not come to the reader's machine.
    What lies in the reader's own receive buffer has come: its kernel takes up to 32 MB here, and no owner can tell it
    not to. The batches that wait behind the gate, three in the ring, are not among these either: they are the depth
    that is allowed besides.
    Growth, because memory may fall: a worker that nobody has used for a minute is ended, and gives back 70 MB.
    """
    tree = space.tree(f"{table.name}_open")
    time.sleep(2)
    before, released = tree.own_mb(), _metric(space, "hanse_bytes_out_total")
    stream = _open(space, f"{table.name}_open", idle=2 * _STALL_SECONDS)
    batches, taken = iter(stream), 0  # held: a `for` that is left drops its iterator, which closes the stream
    while taken < 20e6:
        taken += next(batches).nbytes
    seen, ends = [], time.monotonic() + _STALL_SECONDS
    while time.monotonic() < ends:
        time.sleep(1)
        seen.append(tree.own_mb())
    if not _metric(space, "hanse_streams_live"):
        raise RuntimeError("expected the read to be there while its reader takes nothing; it has ended")
    came = taken + _unread(space.owners["north"].public_port)
    stream.close()
    _until_quiet(space)
    time.sleep(1)
    ahead = _metric(space, "hanse_bytes_out_total") - released - came
    return {
        "stalled_mb": max(seen) - before,
        "stalled_grows_mb": max(seen) - seen[0],
        "stalled_ahead_mb": ahead / 1e6,
    }


def _unread(port: int) -> int:
    """Bytes that have come from a local port and that nobody has read yet."""
    return sum(received for _, remote, _, received in _sockets() if remote == port)


def _unsent(port: int) -> int:
    """Bytes that were written at a local port and that the kernel has not got rid of yet."""
    return sum(sent for local, _, sent, _ in _sockets() if local == port)


def _sockets() -> Iterator[tuple[int, int, int, int]]:
    """Of each connection its ports, and what waits in it to be sent and to be read (proc(5), /proc/net/tcp)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        sent, received = queues.split(":")
        yield int(local[-4:], 16), int(remote[-4:], 16), int(sent, 16), int(received, 16)
