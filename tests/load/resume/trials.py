"""One trial: an epoch read by readers that are killed, cut off and changed in number, held against what must come."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hanse.loaders import merge

from tests.load.resume.readers import Reader, Source, Task, source
from tests.load.resume.sequence import CONDITION, Data, Epoch, Share, sequence, write
from tests.support.link import Link
from tests.support.ports import free_range
from tests.support.processes import Process

_SILENT = 180.0  # a reader that says nothing for so long has failed
KINDS: Mapping[str, int] = {"client": 30, "workers": 28, "connection": 25, "connector": 9, "everything": 5, "quiet": 3}


class Wrong(Exception):
    """What a trial has found."""


class Space:
    """An owner behind a relay, and the readers' own connector."""

    def __init__(self, folder: Path, *, forked: bool = False) -> None:
        first = free_range(4)
        self.link = Link(first)
        # Tickets are always near their end, so they are renewed everywhere, and long reads outlive theirs.
        settings = {"TICKET_SECONDS": "20"}
        self.north = Process(
            "north", folder / "north", first, first + 1, settings=settings, front_port=self.link.port, forked=forked
        )
        self.south = Process("south", folder / "south", first + 2, first + 3, forked=forked)
        self.data: dict[str, Data] = {}
        self.sources: dict[str, Source] = {}

    def start(self) -> Space:
        """Start both and agree on both datasets."""
        self.north.start()
        self.south.start()
        for data in write(self.north.directory / "data"):
            dataset, offer = self.north.offer(data.name, data.path)
            agreement, transfer = self.south.agree(self.north, dataset, offer)
            self.data[data.name] = data
            self.sources[data.name] = source(
                f"http://127.0.0.1:{self.south.management_port}", self.south.token,
                name=data.name, dataset=dataset, agreement=agreement, transfer=transfer,
            )  # fmt: skip
        return self

    def wait(self) -> None:
        """Until both answer."""
        self.north.wait()
        self.south.wait()

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        self.north.kill()
        self.south.kill()


@dataclass
class Trial:
    """Trial `number` of a run with `seed`: the same pair gives the same trial."""

    space: Space
    seed: int
    number: int
    kind: str = ""
    rows: int = 0
    struck: int = 0  # kills, cuts, restarts, changes
    felt: int = 0  # connections that a reader had to make anew
    data: Data = field(init=False)
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed}/{self.number}")
        chance = self.chance
        self.kind = self.kind or chance.choices(list(KINDS), list(KINDS.values()))[0]
        self.data = self.space.data[chance.choice(("pieces", "pieces", "long"))]
        seed = chance.choice((None, chance.randrange(2**32), chance.randrange(2**32)))
        few_rows = self.data.name == "pieces"
        few_columns = chance.random() < 0.3 or not few_rows
        sizes = (None, 7, 64, 333, 1000) if few_rows else (None, 999, 4_096, 30_000)
        self.options = {
            "seed": seed,
            "epoch": chance.randrange(3),
            "window": 0 if seed is None else chance.choice((0, 0, 100, 4_000) if few_rows else (0, 0, 4_000, 50_000)),
            "columns": ["id", "check"] if few_columns else [],
            "where": chance.choice(("", "", CONDITION)),
            "batch_size": chance.choice(sizes),
            "prefetch_bytes": chance.choice((1, 2**20, 2**23)),
            "codec": chance.choice(("", "", "lz4")),
        }

    def __str__(self) -> str:
        return f"trial {self.number} of seed {self.seed} ({self.kind}, {self.data.name}, {self.options})"

    def run(self) -> None:
        """Wrong says what did not come as it must."""
        self.space.wait()
        getattr(self, f"_{self.kind}")()

    # Kinds.

    def _quiet(self) -> None:
        """Nothing happens."""
        tasks = self._tasks(self.chance.randint(1, 4))
        self._phase(tasks, self._epoch().dealt(len(tasks)))

    def _client(self) -> None:
        """The readers are killed and each goes on from its own state."""
        shares = self._epoch().dealt(self.chance.randint(1, 3))
        tasks = self._tasks(len(shares))
        for _ in range(self.chance.randint(1, 2)):
            tasks = self._phase(tasks, shares, stops=self._stops(shares))
        self._phase(tasks, shares)

    def _workers(self) -> None:
        """Their number changes, again and again."""
        epoch = self._epoch()
        tasks = self._tasks(self.chance.randint(1, 4))
        for _ in range(self.chance.randint(1, 2)):
            shares = epoch.dealt(len(tasks))
            tasks = self._phase(tasks, shares, stops=self._stops(shares))
            epoch.collect(shares)
            tasks = self._merged(tasks)
        self._phase(tasks, epoch.dealt(len(tasks)))

    def _connection(self) -> None:
        """Connections are cut, at rows and at bytes."""
        shares = self._epoch().dealt(self.chance.randint(1, 3))
        if self.chance.random() < 0.5:
            self.space.link.cut_after = self._cut_bytes
        try:
            self._phase(self._tasks(len(shares)), shares, faults=self._at_rows(shares, self._cut, most=5))
        finally:
            self.space.link.cut_after = None

    def _connector(self) -> None:
        """A connector is killed and comes back: the owner's, now and then the readers' own."""
        shares = self._epoch().dealt(self.chance.randint(1, 2))
        self._phase(self._tasks(len(shares)), shares, faults=self._at_rows(shares, self._restart, most=2))

    def _everything(self) -> None:
        """All of it at once."""
        epoch = self._epoch()
        tasks = self._tasks(self.chance.randint(1, 4))
        for _ in range(self.chance.randint(1, 2)):
            shares = epoch.dealt(len(tasks))
            faults = self._at_rows(shares, self.chance.choice((self._cut, self._cut, self._restart)), most=2)
            tasks = self._phase(tasks, shares, stops=self._stops(shares), faults=faults)
            self.space.wait()
            epoch.collect(shares)
            tasks = self._merged(tasks)
        self._phase(tasks, epoch.dealt(len(tasks)))

    # What befalls.

    def _cut(self) -> None:
        self.space.link.drop()

    def _cut_bytes(self) -> int | None:
        """How far a new connection lasts: seldom to its end, and mostly long enough to get anywhere."""
        return None if self.chance.random() < 0.2 else int(10 ** self.chance.uniform(4, 7.3))

    def _restart(self) -> None:
        victim = self.space.north if self.chance.random() < 0.7 else self.space.south
        victim.kill()
        victim.start(wait=False)

    def _at_rows(self, shares: Sequence[Share], act: Callable[[], None], *, most: int) -> list[tuple[int, Any]]:
        total = sum(share.rows - share.given for share in shares)
        rows = sorted(self.chance.randint(0, total) for _ in range(self.chance.randint(1, most)))
        return [(row, act) for row in rows]

    def _stops(self, shares: Sequence[Share]) -> list[int]:
        """After how many rows each reader is killed; blocks are small and large, so a place is drawn before a row."""
        found = []
        for share in shares:
            place = self.chance.randint(0, len(share.places))
            before = sum(len(ids) for _, ids in share.places[:place])
            inside = len(share.places[place][1]) if place < len(share.places) else 0
            found.append(max(0, before + self.chance.randint(0, inside) - share.given))
        return found

    # How it goes.

    def _epoch(self, more: int = 0) -> Epoch:
        made = self.options
        return Epoch(
            sequence(
                self.data, seed=made["seed"], epoch=made["epoch"] + more, window=made["window"],
                filtered=bool(made["where"]),
            )
        )  # fmt: skip

    def _tasks(self, parts: int, state: str = "") -> list[Task]:
        given = self.space.sources[self.data.name]
        return [Task(given, {**self.options, "part": part, "parts": parts}, state) for part in range(parts)]

    def _merged(self, tasks: Sequence[Task]) -> list[Task]:
        """Another number of readers from the states of these."""
        self.struck += 1
        state = merge([json.loads(task.state) for task in tasks])
        return self._tasks(self.chance.randint(1, 5), json.dumps(state))

    def _phase(
        self,
        tasks: Sequence[Task],
        shares: Sequence[Share],
        *,
        stops: Sequence[int] = (),
        faults: Sequence[tuple[int, Callable[[], None]]] = (),
    ) -> list[Task]:
        """Run the readers, each to its stop or to the end, and then another epoch; the tasks to go on with."""
        again = 0 if stops or self.chance.random() < 0.85 else 1
        running = [
            _Running(
                Reader(Task(t.source, t.options, t.state, 1 + again), self.chance.choice((2, 16, 64))), share, stop
            )
            for t, share, stop in zip(tasks, shares, stops or [None] * len(tasks), strict=True)
        ]
        try:
            self._watch(running, list(faults), len(tasks), again)
        finally:
            for one in running:
                one.reader.kill() if stops else one.reader.end()
        self.rows += sum(one.rows for one in running)
        self.struck += len(running) if stops else 0
        self.felt += sum(one.felt for one in running)
        return [Task(t.source, t.options, one.state) for t, one in zip(tasks, running, strict=True)]

    def _watch(self, running: Sequence[_Running], faults: list[tuple[int, Any]], parts: int, again: int) -> None:
        later = self._epoch(1).dealt(parts) if again else []
        rows = 0
        while open_now := {one.reader.pipe: one for one in running if not one.done}:
            while faults and rows >= faults[0][0]:
                self.struck += 1
                faults.pop(0)[1]()
            ready = wait(list(open_now), timeout=_SILENT)
            if not ready:
                raise Wrong(f"no reader said anything for {_SILENT:g} s")
            for pipe in ready:
                rows += open_now[pipe].take(later)  # type: ignore[index]  # one of those we wait for


@dataclass
class _Running:
    """A reader under way, its share, and after how many rows it is to be killed."""

    reader: Reader
    share: Share
    stop: int | None
    state: str = ""
    rows: int = 0
    felt: int = 0
    done: bool = False
    epochs: int = 0

    def take(self, later: Sequence[Share]) -> int:
        """Its next record, held against its share; how many rows that was."""
        part = int(self.reader.task.options["part"])
        record = self.reader.next()
        if record.failed:
            raise Wrong(f"reader {part}: {record.failed}")
        share = later[part] if self.epochs else self.share
        if found := share.wrong(record.ids, whole=record.over):
            raise Wrong(f"reader {part} of {self.reader.task.options['parts']}: {found}")
        share.given += len(record.ids)
        self.rows += len(record.ids)
        self.state = record.state or self.state
        if record.over:
            self.felt += record.reopened
            self.epochs += 1
        self.done = self.epochs == self.reader.task.epochs or (self.stop is not None and self.rows >= self.stop)
        return len(record.ids)


def seconds(act: Callable[[], None]) -> float:
    begun = time.monotonic()
    act()
    return time.monotonic() - begun
