"""What stops a stream: a reader that leaves, an owner that revokes, a reader that reads nothing; and going on."""

from __future__ import annotations

import re
import socket
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hanse import _wire
from hanse._wire import Request
from hanse.errors import AccessRevoked, HanseError
from hanse.stream import Stream

from tests.load.stream.space import Space, agree
from tests.load.stream.tables import Table
from tests.support.processes import POLICY

_STALL_SECONDS = 60
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
    return Stream(_wire.ask(Request("GET", url, {"authorization": f"Bearer {token}"}, idle_seconds=idle)))


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


def _live(space: Space) -> int:
    """Reads running at the owner, as its metrics say."""
    with socket.create_connection(("127.0.0.1", space.owners["north"].management_port)) as asked:
        token = space.owners["north"].token
        asked.sendall(f"GET /metrics HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\n".encode())
        asked.sendall(b"connection: close\r\n\r\n")
        text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
    found = re.search(r"^hanse_streams_live (\S+)", text, re.MULTILINE)
    assert found is not None, text[:300]
    return int(float(found[1]))


def _disconnect(space: Space, table: Table) -> float:
    """Milliseconds from the closing of the socket until the owner's stream has ended (its metrics are asked)."""
    stream = _open(space, f"{table.name}_open")
    batches = iter(stream)
    for _ in range(3):
        next(batches)
    stream.close()
    begun = time.perf_counter()
    while _live(space):
        if time.perf_counter() - begun > 30:
            raise RuntimeError("expected the stream to end within 30 s after its reader has left")
    return (time.perf_counter() - begun) * 1e3


def _revoke(space: Space, table: Table) -> dict[str, float]:
    """Batches that came after the owner's click was answered, and how long until the reader was told."""
    after, took = [], []
    for number in range(3):
        name = f"revoked_{number}"
        agree(space, "north", name, Path(table.parquet), POLICY)
        stream = _open(space, name)
        batches = iter(stream)
        next(batches)
        api = space.owners["north"].api()
        api.post(f"/agreements/{space.datasets[name][2]}/revoke", {"reason": "the benchmark revokes it"})
        begun, came = time.perf_counter(), 0
        try:
            for _ in batches:
                came += 1
        except AccessRevoked:
            after.append(came)
            took.append((time.perf_counter() - begun) * 1e3)
        except HanseError as error:
            raise RuntimeError(f"expected AccessRevoked, came {error}") from error
        api.close()
    return {"revoked_batches": max(after, default=-1), "revoked_ms": max(took, default=-1)}


def _stall(space: Space, table: Table) -> dict[str, float]:
    """Memory of the owner while a reader takes 20 MB and then nothing: growth, and movement while nothing is read."""
    tree = space.tree(f"{table.name}_open")
    time.sleep(2)
    before = tree.memory_mb()
    stream = _open(space, f"{table.name}_open")
    taken = 0
    for batch in stream:
        taken += batch.nbytes
        if taken > 20e6:
            break
    time.sleep(1)
    seen = []
    for _ in range(_STALL_SECONDS):
        seen.append(tree.memory_mb())
        time.sleep(1)
    stream.close()
    return {"stalled_mb": max(seen) - before, "stalled_moves_mb": max(seen) - min(seen)}
