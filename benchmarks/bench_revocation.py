"""How long a running stream outlives its agreement: `python -m benchmarks.bench_revocation [trials]`.

Two connectors as processes, real HTTP. Each trial agrees, starts a transfer, reads rows as fast as they come (with a
pause of a millisecond after each 64 kB, so that the stream lasts), has the owner revoke the agreement over the
management API, and reads on to the end. Measured from just before the owner's request to the last byte at the reader,
what lay in the sockets' buffers included. Aim: 1 s at the 99th percentile over 200 trials.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_dsp import Bench
from tests.support import processes
from tests.support.processes import Client

ROWS = 4_000_000
PIECE = 64 * 1024


def trial(bench: Bench, owner: Client, *, after: float) -> float | None:
    """Seconds from revocation to the last byte, or None where the stream was over before."""
    # Another offer each time: who was taken an agreement under one gets no second by itself.
    bench.offer = owner.post("/offers", {"dataset": "air", "policy": processes.POLICY, "decide": "auto"})["id"]
    agreement = bench.negotiate()
    begun = bench.api.post("/transfers", {"agreement_id": agreement})
    bench.api.get(f"/transfers/{begun['id']}?wait=60&until=STARTED")
    ticket = bench.api.get(f"/transfers/{begun['id']}/address")["ticket"]
    public = Client(bench.north.public_port)
    reply = public.start("GET", "/data/v1/datasets/air/rows", headers={"Authorization": f"Bearer {ticket}"})
    asked: list[float] = []

    def revoke() -> None:
        time.sleep(after)
        asked.append(time.perf_counter())
        owner.post(f"/agreements/{agreement}/revoke", {"reason": "measured"})

    revoking = threading.Thread(target=revoke)
    revoking.start()
    last, ended = _read(reply)
    revoking.join()
    public.close()
    owner.call("DELETE", f"/offers/{bench.offer}")
    return ended - asked[0] if b'"revoked"' in last else None


def _read(reply: Any) -> tuple[bytes, float]:
    """The end of an answer, and when it came."""
    last, ended = b"", time.perf_counter()
    while piece := reply.read(PIECE):
        last, ended = (last + piece)[-65_536:], time.perf_counter()
        time.sleep(0.001)
    return last, ended


def main(arguments: list[str]) -> int:
    """Print the percentiles; 1 if a stream was not ended by its revocation."""
    trials, chance = int(arguments[0]) if arguments else 200, random.Random(7)
    with tempfile.TemporaryDirectory() as name, processes.two(Path(name)) as (north, south):
        bench = Bench(north, south, rows=ROWS)
        owner = north.api()
        found = [trial(bench, owner, after=chance.uniform(0.01, 0.2)) for _ in range(trials)]
    taken = sorted(seconds for seconds in found if seconds is not None)
    if len(taken) < 2:
        print("every stream was over before its agreement was")
        return 1
    p99 = statistics.quantiles(taken, n=100, method="inclusive")[98]
    print(f"from revocation to the last byte, {len(taken)} of {trials} streams (the others had ended before):")
    middle, longest = taken[len(taken) // 2] * 1e3, taken[-1] * 1e3
    print(f"  p50 {middle:.0f} ms, p99 {p99 * 1e3:.0f} ms, max {longest:.0f} ms (aim: p99 1000 ms)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
