"""What the reader's digest costs: one stream over loopback, read with it and without it, in turns.

python -m benchmarks.bench_digest [megabytes] [rounds]
"""

from __future__ import annotations

import os
import socket
import sys
import time
from statistics import median
from typing import Any

import hanse._arrow.message_limits
import numpy as np
import pyarrow as pa
from hanse._digests import Digest
from hanse._transport import http_stream
from hanse._transport.http_stream import HttpRequest
from hanse.stream import Stream

from tests.client.support import chunked, complete, ipc

_BATCH_ROWS = 400_000  # 3.2 MB, as owners send them
_TEN_GBIT = 0.8  # seconds a gigabyte


class _Without(Digest):
    """The digest of nothing."""

    def update(self, data: Any) -> None: ...

    def text(self) -> str:
        return _wanted


_wanted = ""


def main(megabytes: int = 1024, rounds: int = 7) -> None:
    global _wanted
    schema = pa.schema([("x", pa.float64())])
    batch = pa.record_batch([np.random.default_rng(31).random(_BATCH_ROWS)], schema=schema)
    count = megabytes * 2**20 // batch.nbytes
    whole = chunked(ipc([batch] * count, complete(count * _BATCH_ROWS), schema=schema)).data
    _wanted = f"xxh3:{whole.rsplit(b'xxh3:', 1)[1][:32].decode()}"
    found: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for name, kind in (("with", Digest), ("without", _Without)):
            hanse._messages.Digest = kind  # type: ignore[misc]  # what is compared
            found[name].append(_seconds(whole))
    slow, fast = (min(found[name]) for name in ("with", "without"))
    size = len(whole) / 1e9
    for name, seconds in found.items():
        print(f"{name:>8} digest: {min(seconds) / size:.3f} s/GB best, {median(seconds) / size:.3f} s/GB median")
    cost = (slow - fast) / size
    print(
        f"the digest costs {cost:.3f} s/GB: {100 * (slow / fast - 1):.0f} % of the processor time of a reader that does"
    )
    print(f"nothing else, {100 * cost / _TEN_GBIT:.1f} % of the time that a stream takes over 10 Gbit/s")


def _seconds(whole: bytes) -> float:
    """Processor time of the reader; the sender is another process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if (sender := os.fork()) == 0:
            with listener.accept()[0] as accepted:
                accepted.recv(65_536)
                accepted.sendall(whole)
            os._exit(0)
        host, port = listener.getsockname()
        begun = time.process_time()
        for _ in Stream(http_stream.open_stream(HttpRequest("GET", f"http://{host}:{port}/"))):
            pass
        seconds = time.process_time() - begun
        os.waitpid(sender, 0)
        return seconds


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
