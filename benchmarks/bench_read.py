"""What a short governed read costs its owner's main process: `python -m benchmarks.bench_read [--beside CHECKOUT]`.

Processor time, not seconds on the wall: the main process is the one that everybody's reads share.
1. The steps of a read in the database, each by itself in a process of its own, on SQLite or (`--postgres`) PostgreSQL.
2. A short read over HTTP from a connector as an operator starts it, its log's rounds and its watch over reads included;
   and what a question over two datasets of one owner costs the main processes of its asker and of that owner.
`--beside`: another checkout (`git worktree add`) in turns with this one, in one run: the ratio is what counts. It runs
on that one's `tests.support`, which must have what is asked of it here: beside older ones, run this file as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connector.audit.log import Sequencer
from connector.audit.signed_note import Signer
from connector.dataplane import running_reads
from connector.engine.pool.protocol import Relation
from connector.events import ReadEnded, ReadStarted
from connector.federation.tables import Holdings
from connector.store import Store, Transaction
from connector.store.migrate import upgrade
from connector.store.tables import Agreement, Transfer
from connector.usage.grants import Grants
from tests.support import gate, postgres, processes, provider
from tests.support.processes import Client, Process

_T = TypeVar("_T")
HERE = Path(__file__).resolve().parents[1]
OF_PROCESS = 2  # the clock of a process's scheduled time (`support.cpu`)
REST = 0.15  # seconds until a read's end is in the log
TABLES = ("air", "sea")
QUESTION = 'SELECT a.id, s.value FROM "north".air a JOIN "north".sea s ON a.id = s.id WHERE a.id < 10'
COUNTED = 4  # the agreement with limits
HELD = [f"urn:hanse:held:{number}" for number in range(20)]
ADDRESS = {
    "endpoint": "http://127.0.0.1:9/data/v1",
    "endpointProperties": [{"name": "authorization", "value": "t"}, {"name": "expires", "value": "9999999999"}],
}
Found = dict[str, list[float]]  # milliseconds of processor time, by what took them


# Inside the process of part 1.


def serve_steps(url: str) -> None:
    """For each line that comes, a round: milliseconds for each step."""
    asyncio.run(_serve_steps(url))


async def _serve_steps(url: str) -> None:
    upgrade(url)
    store = Store(url)
    steps = Steps(store)
    await store.write(fill)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(await steps.round(int(line))), flush=True)
    store.close()


def fill(tx: Transaction) -> None:
    """Agreements of the owner, one of them with limits, and twenty as a consumer."""
    counted = [gate.atom("odrl:count", "lteq", "1000000"), gate.atom("ds:rowQuota", "lteq", str(10**15))]
    kinds = [gate.agreement(action="odrl:use")] * COUNTED + [gate.agreement(*counted, action="odrl:use")]
    profile = {"rows": 10**9, "columns": [{"name": f"c{number}", "type": "BIGINT"} for number in range(20)]}
    for number, policy in enumerate(kinds):
        provider.insert(tx, policy, f"{number}", name=f"n{number}", relation=Relation("parquet"), profile=profile)
    for name in HELD:
        tx.agreements.add(
            Agreement(id=name, role="consumer", negotiation_id=name, dataset_id=name, provider=provider.PROVIDER,
                      consumer=provider.CONSUMER, address="", policy={}, digest="", signed_at=tx.now, finalized=True,
                      ended_at=None)
        )  # fmt: skip
        tx.transfers.add(
            Transfer(id=name, role="consumer", peer_pid=name, counterparty=provider.PROVIDER, address="",
                     state="STARTED", agreement_id=name, format="HttpData-PULL", data_address=ADDRESS,
                     created_at=tx.now, updated_at=tx.now)
        )  # fmt: skip


class Steps:
    """What a read does in the database, step by step."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._grants = Grants(store, facts_of=provider.member)
        self._holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nobody is asked here
        self._log = Sequencer(store, signer=Signer("north.example/log", Ed25519PrivateKey.generate()))
        self._spent: Found = {}

    async def round(self, count: int) -> dict[str, float]:
        """Milliseconds of processor time for each step, done so often."""
        self._spent = {}
        for _ in range(count):
            await self._read("of one", 0)
            await self._read("of three", 0, 1, 2)
            await self._read("counted", COUNTED)
            await self._watch()
            await self._ask()
        return {name: statistics.fmean(spent) for name, spent in self._spent.items()}

    async def _timed(self, name: str, work: Awaitable[_T]) -> _T:
        begun = time.process_time()
        try:
            return await work
        finally:
            self._spent.setdefault(name, []).append((time.process_time() - begun) * 1e3)

    async def _read(self, name: str, *numbers: int) -> None:
        told = {"actor": provider.CONSUMER, "dataset": "urn:hanse:clinic:n0", "process": os.urandom(16).hex()}

        def start(tx: Transaction) -> None:
            running_reads.begin(tx, ReadStarted(**told, detail={"columns": ["c0", "c1"]}), instance="i")

        def end(tx: Transaction) -> None:
            if running_reads.end(tx, ReadEnded(**told, detail={"rows": 10}), instance="i"):
                self._grants.end(tx, grants)

        grants = await self._timed(f"examine {name}", self._grants.examine(*map(provider.wanted, numbers)))
        await self._timed(f"begin {name}", self._grants.begin(grants, start, read_id=told["process"]))
        await self._timed(f"end {name}", self._store.write(end))
        self._grants.forget(grants)
        await self._timed("number its events", self._log.settle())

    async def _watch(self) -> None:
        grants = [grant for number in range(4) for grant in await self._grants.examine(provider.wanted(number))]
        await self._timed("look for ends of four", self._grants._look_for_ends())
        self._grants.forget(grants)

    async def _ask(self) -> None:
        await self._timed("what a question may name", self._holdings.tables((), ""))
        await self._timed("its ticket", self._holdings.ticket(HELD[0]))
        await self._timed("its four tickets", _all(map(self._holdings.ticket, HELD[:4])))


async def _all(works: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*works)


# Outside.


@contextmanager
def stepping(tree: Path, url: str) -> Iterator[Callable[[int], dict[str, float]]]:
    """A process of part 1 on a checkout's code."""
    program = [sys.executable, str(Path(__file__).resolve()), "--serve", url]
    with subprocess.Popen(program, env=_of(tree), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def asked(count: int) -> dict[str, float]:
            assert child.stdin is not None
            assert child.stdout is not None
            print(count, file=child.stdin, flush=True)
            return dict(json.loads(child.stdout.readline()))

        yield asked
        child.stdin.close()


def _of(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}


def steps(trees: Sequence[Path], folder: Path, *, on_postgres: bool, rounds: int, count: int) -> list[Found]:
    """Part 1, the checkouts in turns."""
    found: list[Found] = [{} for _ in trees]
    with ExitStack() as stack:
        urls = [f"sqlite:///{folder}/steps{number}.db" for number in range(len(trees))]
        if on_postgres:
            server = stack.enter_context(postgres.cluster())
            urls = [stack.enter_context(server.database()) for _ in trees]
        children = [stack.enter_context(stepping(tree, url)) for tree, url in zip(trees, urls, strict=True)]
        for child in children:
            child(count)  # caches fill
        for number in range(rounds):
            for which in _turn(len(trees), number):
                for name, ms in children[which](count).items():
                    found[which].setdefault(name, []).append(ms)
    return found


def _turn(many: int, number: int) -> list[int]:
    return list(range(many)) if number % 2 == 0 else list(range(many))[::-1]


class Pair:
    """Two connectors of a checkout, and an agreement on two small datasets."""

    def __init__(self, north: Process, south: Process) -> None:
        self.north, self.south = north, south
        for name in TABLES:
            _, transfer = south.agree(north, *north.publish(name))
            api = south.api()
            self._ticket = str(api.get(f"/transfers/{transfer}/address")["ticket"])
            api.close()
        self._public, self._asker = Client(north.public_port), south.api()

    def read(self) -> None:
        self._public.call(
            "GET", f"/data/v1/datasets/{TABLES[-1]}/rows", headers={"Authorization": f"Bearer {self._ticket}"}
        )

    def ask(self) -> None:
        self._asker.call("POST", "/queries", {"sql": QUESTION})

    def spent(self, act: Callable[[], None], count: int) -> tuple[float, float]:
        """Milliseconds that one costs the owner's main process and the asker's."""
        before = [_clock(one) for one in (self.north, self.south)]
        for _ in range(count):
            act()
        time.sleep(REST)
        owner, asker = (_clock(one) - was for one, was in zip((self.north, self.south), before, strict=True))
        return owner * 1e3 / count, asker * 1e3 / count


def _clock(process: Process) -> float:
    assert process.running is not None
    return time.clock_gettime(~process.running.pid << 3 | OF_PROCESS)


def reads(trees: Sequence[Path], folder: Path, *, rounds: int, count: int) -> list[Found]:
    """Part 2, the checkouts in turns."""
    found: list[Found] = [{} for _ in trees]
    with ExitStack() as stack:
        pairs = [
            Pair(*stack.enter_context(processes.two(folder / str(number), environment=lambda _, tree=tree: _of(tree))))
            for number, tree in enumerate(trees)
        ]
        for number in range(-1, rounds):
            for which in _turn(len(trees), number):
                pair, kept = pairs[which], found[which]
                of_read, (of_owner, of_asker) = pair.spent(pair.read, count)[0], pair.spent(pair.ask, count)
                for name, ms in (("a read", of_read), ("a question, owner", of_owner), ("a question, asker", of_asker)):
                    if number >= 0:  # the round before fills caches
                        kept.setdefault(name, []).append(ms)
    return found


def report(found: list[Found]) -> None:
    for name, mine in found[0].items():
        line = f"  {name:<24}{statistics.median(mine):8.2f} ms"
        if len(found) > 1:
            theirs = found[1][name]
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            line += f"{statistics.median(theirs):12.2f} ms beside{ratio:8.2f}"
        print(line, flush=True)


def main() -> int:
    """Print the medians; it measures, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--only", choices=("steps", "reads"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve_steps(asked.serve)
        return 0
    trees = [HERE, asked.beside.resolve()] if asked.beside else [HERE]
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as name:
        if asked.only != "reads":
            report(steps(trees, Path(name), on_postgres=asked.postgres, rounds=asked.rounds, count=asked.count))
        if asked.only != "steps":
            report(reads(trees, Path(name), rounds=asked.rounds, count=asked.count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
