"""`make bench-dsp`: what the protocol costs between two connectors on this machine, on SQLite and on PostgreSQL.

Real processes, real sockets, signed tokens, durable commits. Everything is compared with the median round trip of an
empty request to the same server in the same run. Catalogue pages are measured in process, on databases seeded to size.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from connector.dsp.catalog import encode_cursor
from connector.store import Transaction
from connector.store.migrate import upgrade
from tests.support import pair, postgres, processes
from tests.support.processes import Client, Process

PAGES = (100, 1_000, 10_000, 100_000)
POLICIES = 100
Times = list[float]


def ms(values: Times, quantile: float = 0.5) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1e3


def timed(repeat: int, act: Callable[[], Any]) -> Times:
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        act()
        found.append(time.perf_counter() - start)
    return found


class Bench:
    """Two running connectors and what is done with them."""

    def __init__(self, north: Process, south: Process, *, rows: int = 1_000) -> None:
        self.north, self.south = north, south
        self.dataset, self.offer = north.publish("air", rows=rows)
        self.queue, self.manual = north.publish("queue", decide="manual")
        self.api = south.api()
        self.public = Client(north.public_port)

    def empty(self) -> None:
        self.public.call("GET", "/health/live")

    def negotiate(self, api: Client | None = None) -> str:
        """One negotiation to FINALIZED, as seen by its consumer; the agreement."""
        api = api or self.api
        begun = api.post("/negotiations", self._asked(self.dataset, self.offer))
        done = api.get(f"/negotiations/{begun['id']}?wait=60&until=FINALIZED")
        if done["state"] != "FINALIZED":
            raise RuntimeError(f"expected FINALIZED, came {done['state']}: {done['reason']}")
        return str(done["agreement_id"])

    def first_byte(self) -> None:
        """Negotiation, transfer start, and the first byte of the data."""
        begun = self.api.post("/transfers", {"agreement_id": self.negotiate()})
        self.api.get(f"/transfers/{begun['id']}?wait=60&until=STARTED")
        address = self.api.get(f"/transfers/{begun['id']}/address")
        reply = self.public.start(
            "GET", "/data/v1/datasets/air/rows", headers={"Authorization": f"Bearer {address['ticket']}"}
        )
        reply.read(1)
        self._rest = reply.read()

    def open_one(self) -> None:
        """A negotiation that stays open: its provider's offer waits for a person."""
        self.api.post("/negotiations", self._asked(self.queue, self.manual))

    def _asked(self, dataset: str, offer: str) -> dict[str, Any]:
        return {
            "counter_party_id": self.north.participant,
            "counter_party_address": self.north.base,
            "dataset": dataset,
            "offer_id": offer,
            "policy": processes.POLICY,
        }

    def at_once(self, width: int, each: int) -> tuple[Times, float]:
        """`width` consumers at once, `each` negotiations one after the other: latencies, and the whole time."""
        found: Times = []
        clients = [self.south.api() for _ in range(width)]

        def work(client: Client) -> None:
            found.extend(timed(each, lambda: self.negotiate(client)))

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found, time.perf_counter() - start


def conversations(name: str, bench: Bench, *, repeat: int, opened: int) -> None:
    for _ in range(10):
        bench.first_byte()
    timed(200, bench.empty)
    empty = ms(timed(500, bench.empty))
    alone = timed(repeat, bench.negotiate)
    whole = timed(repeat, bench.first_byte)
    crowd, seconds = bench.at_once(50, max(1, repeat // 20))
    print(f"\n{name}")
    print(f"  empty request, median                      {empty:8.2f} ms")
    print(f"  negotiation to FINALIZED, one by one       {ms(alone):8.2f} ms median {ms(alone, 0.95):8.2f} ms p95"
          f" {1 / statistics.mean(alone):8.1f} /s")  # fmt: skip
    print(f"  the same, 50 at once                       {ms(crowd):8.2f} ms median {ms(crowd, 0.95):8.2f} ms p95"
          f" {len(crowd) / seconds:8.1f} /s")  # fmt: skip
    print(f"  negotiation + transfer start + first byte  {ms(whole):8.2f} ms median {ms(whole, 0.95):8.2f} ms p95"
          f" = {ms(whole) / empty:5.1f} empty requests (aim: 15)")  # fmt: skip
    for _ in range(opened):
        bench.open_one()
    before, after = ms(timed(200, bench.empty)), ms(timed(repeat, bench.negotiate))
    print(f"  negotiation beside {opened} open ones         {after:8.2f} ms median"
          f" = {100 * (after / ms(alone) - 1):+5.1f} % (aim: at most +20; empty request {before:.2f} ms)")  # fmt: skip


async def catalogue(name: str, url_of: Callable[[int], str], sizes: tuple[int, ...]) -> None:
    print(f"\ncatalogue on {name}: a page of 100, {POLICIES} distinct policies")
    for size in sizes:
        url = url_of(size)
        upgrade(url)
        north = pair.side("north", "203.0.113.1", pair.Cable(), url)
        await north.store.write(lambda tx, size=size: _seed(tx, size))  # type: ignore[misc]  # bound by default
        first = await _pages(north, "", 100)
        middle = await _pages(north, f"?after={encode_cursor(_dataset(size // 2))}", min(100, size - size // 2 - 1))
        print(f"  {size:>7} datasets: first page {ms(first):7.2f} ms, a page in the middle {ms(middle):7.2f} ms")
        north.store.close()


def _dataset(i: int) -> str:
    return f"urn:hanse:north:d{i:06d}"


def _seed(tx: Transaction, size: int) -> None:
    for i in range(size):
        pair.add_dataset(tx, _dataset(i))
        atom = {"leftOperand": "https://w3id.org/hanse/policy/1/participant", "operator": "neq",
                "rightOperand": f"did:web:excluded{i % POLICIES}.example"}  # fmt: skip
        policy = {"permission": [{"action": "use", "constraint": [atom]}]}
        tx.datasets.add(pair.offer_row(f"offer:{i}", _dataset(i), policy, decide="auto", now=tx.now))
        if i % 2_000 == 1_999:
            tx.session.flush()
            tx.session.expunge_all()


async def _pages(north: pair.Side, query: str, count: int) -> Times:
    found = []
    headers = {"authorization": f"Bearer did:web:asker.example>{north.participant}"}
    body = b'{"@context": ["https://w3id.org/dspace/2025/1/context.jsonld"], "@type": "CatalogRequestMessage"}'
    for _ in range(20):
        start = time.perf_counter()
        reply = await pair.exchange(
            north.app, "POST", f"{north.base}/catalog/request{query}", headers, body, check=False
        )
        found.append(time.perf_counter() - start)
        if reply.status != 200 or reply.body.count(b'"Dataset"') != count:
            raise RuntimeError(f"expected a page of {count}, came {reply.status} {reply.body[:200]!r}")
    return found[5:]


@contextmanager
def databases(directory: Path) -> Iterator[dict[str, Callable[[str], str]]]:
    """A maker of database URLs for each kind that this machine has."""
    sqlite = {"SQLite": lambda name: f"sqlite:///{directory / name}.db"}
    if postgres.binaries() is None:
        print("PostgreSQL is not installed here: LEFT OUT")
        yield sqlite
        return
    with postgres.cluster(fsync=True) as cluster:
        yield {**sqlite, "PostgreSQL": lambda name: cluster.create(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--open", type=int, default=1_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=PAGES)
    given = parser.parse_args()
    print(f"on {os.cpu_count()} cores; both connectors and the client share them")
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as folder, databases(Path(folder)) as kinds:
        for kind, url in kinds.items():
            where = Path(folder) / kind
            with processes.two(where, urls=(url(f"{kind}-north".lower()), url(f"{kind}-south".lower()))) as two:
                conversations(kind, Bench(*two), repeat=given.repeat, opened=given.open)
        for kind, url in kinds.items():
            asyncio.run(catalogue(kind, lambda size, url=url, kind=kind: url(f"{kind}-{size}".lower()), given.sizes))  # type: ignore[misc]  # bound by default


if __name__ == "__main__":
    main()
