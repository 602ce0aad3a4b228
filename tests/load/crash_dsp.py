"""`make crash`: connectors are killed at random points of negotiations and transfers, on SQLite and on PostgreSQL.

Two real processes, SIGKILL, and a consumer's operator who goes on whatever happens. Afterwards both databases are read:
every process must have come to its end on both sides, none may be lost, and no message may have had a second effect.
Where that is not so, a post-mortem says what both sides know of the processes in question.
"""

from __future__ import annotations

import argparse
import http.client
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench_dsp import databases
from connector.store import Transaction
from tests.load import postmortem
from tests.support import processes
from tests.support.processes import Client, Failed, Process

TRACKS = 6
PATIENCE = 120.0  # seconds after the last kill: what is killed twice a second need not get anywhere before
COUNTED = ("NegotiationAdvanced", "TransferAdvanced", "AgreementConcluded")
SETTINGS = {"DSP_RETRY_FIRST": "0.05", "DSP_RETRY_CAP": "0.5", "CALL_TIMEOUT": "5", "LOG_LEVEL": "info"}


class Unended(RuntimeError):
    """A process that is not where it should be; `pids` name it."""

    def __init__(self, pid: str, what: str, *more: str) -> None:
        super().__init__(f"{pid}: {what}")
        self.pids = (pid, *more)


class Operator(threading.Thread):
    """Wants agreements, transfers and their completion, one after the other, until told to stop."""

    def __init__(
        self, name: str, south: Process, asked: dict[str, Any], stop: threading.Event, calm: Callable[[], float]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._south, self._asked, self._told_to_stop = south, asked, stop
        self._calm = calm  # how many seconds nobody was killed any more; 0 as long as the storm lasts
        self._api: Client | None = None
        self.done = 0
        self.problem: Exception | None = None

    def run(self) -> None:
        while not self._told_to_stop.is_set() and not self.problem:
            try:
                self._story(f"{self.name}-{self.done}")
            except Exception as error:  # noqa: BLE001  # told at the end
                self.problem = error

    def _story(self, label: str) -> None:
        begun = self._once("/negotiations", label, self._asked)
        agreed = self._reach("/negotiations", begun["id"], "FINALIZED")
        begun = self._once("/transfers", label, {"agreement_id": agreed["agreement_id"]})
        self._reach("/transfers", begun["id"], "STARTED", "COMPLETED")
        while self._get(f"/transfers/{begun['id']}")["state"] == "STARTED":
            try:
                self._try(lambda api: api.post(f"/transfers/{begun['id']}/complete"))
            except Failed as error:
                if error.status != 409:  # ordered before, and the answer was lost
                    raise
            self._reach("/transfers", begun["id"], "COMPLETED")
        self.done += 1

    def _once(self, path: str, label: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask for a process unless it is there already: an answer may have been lost."""
        while True:
            known = self._get(f"{path}?role=consumer&correlation={label}")
            if known:
                return dict(known[0])
            try:
                return dict(self._client().post(path, {**body, "correlation": label}))
            except (OSError, http.client.HTTPException, Failed) as error:
                self._lost(error)

    def _reach(self, path: str, pid: str, *goals: str) -> dict[str, Any]:
        while self._calm() < PATIENCE:
            row = self._get(f"{path}/{pid}?wait=2&until={goals[0]}")
            if row["state"] in goals:
                return dict(row)
            if row["state"] in ("TERMINATED", "COMPLETED"):
                break
        raise Unended(pid, f"expected {goals[0]}, it is {row['state']} ({row['pending']}): {row['reason']}")

    def _get(self, path: str) -> Any:
        return self._try(lambda api: api.get(path))

    def _try(self, act: Callable[[Client], Any]) -> Any:
        while True:
            try:
                return act(self._client())
            except (OSError, http.client.HTTPException, Failed) as error:
                if self._calm() > PATIENCE or (isinstance(error, Failed) and error.status < 500):
                    raise
                self._lost(error)

    def _client(self) -> Client:
        self._api = self._api or self._south.api()
        return self._api

    def _lost(self, error: Exception) -> None:
        if isinstance(error, Failed) and error.status < 500:
            raise error
        self._api = None
        time.sleep(0.05)


def storm(north: Process, south: Process, *, kills: int, chance: random.Random) -> tuple[int, Counter[str]]:
    """Conversations on several tracks while either side is killed again and again; how many came to their end."""
    dataset, offer = north.publish("air")
    asked = {
        "counter_party_id": north.participant,
        "counter_party_address": north.base,
        "dataset": dataset,
        "offer_id": offer,
        "policy": processes.POLICY,
    }
    stop = threading.Event()
    over: list[float] = []  # when the last kill was over

    def calm() -> float:
        return time.monotonic() - over[0] if over else 0.0

    tracks = [Operator(f"track{i}", south, asked, stop, calm) for i in range(TRACKS)]
    for track in tracks:
        track.start()
    killed: Counter[str] = Counter()
    for number in range(kills):
        time.sleep(chance.uniform(0.0, 0.5))
        victim = chance.choice((north, south))
        victim.kill()
        # Now and then it is killed again while it starts: what it does then must bear that too.
        victim.start(wait=chance.random() < 0.8 or number == kills - 1)
        killed[victim.name] += 1
        if number % 20 == 19:
            print(f"    {number + 1} kills, {sum(track.done for track in tracks)} stories", flush=True)
    for one in (north, south):
        one.wait()
    stop.set()
    over.append(time.monotonic())
    for track in tracks:
        track.join(2 * PATIENCE)
    problems = [track.problem for track in tracks if track.problem is not None]
    stuck = [track.name for track in tracks if track.is_alive()]
    if problems or stuck:
        pids = [pid for one in problems for pid in getattr(one, "pids", ())]
        raise Unended("", f"problems {problems}, stuck {stuck}", *pids)
    return sum(track.done for track in tracks), killed


def check(urls: tuple[str, str], stories: int) -> None:
    """Read both databases when all is quiet. AssertionError says what was lost or doubled."""
    north, south = (_contents(url) for url in urls)
    for name, found in (("north", north), ("south", south)):
        assert found["outbox"] == 0, f"{found['outbox']} messages were never delivered by {name}"
        twice = [key for key, count in found["told"].items() if count > 1]
        if twice:
            raise Unended("", f"effects that came twice at {name}: {twice[:5]}", *(pid for _, pid, _ in twice[:5]))
        assert len(found["negotiations"]) == len(found["transfers"]) == stories, (
            f"expected {stories} negotiations and transfers at {name}, "
            f"found {len(found['negotiations'])} and {len(found['transfers'])}"
        )
        assert found["open"] == [], f"processes without an end at {name}: {found['open'][:5]}"
    for kind in ("negotiations", "transfers"):
        assert {(peer, pid) for pid, peer in north[kind]} == set(south[kind]), f"the two sides pair {kind} differently"


def _contents(url: str) -> dict[str, Any]:
    return postmortem.reading(url, _collect)


def _collect(tx: Transaction) -> dict[str, Any]:
    negotiations, transfers = tx.negotiations.page(limit=10**6), tx.transfers.page(limit=10**6)
    told = Counter(
        (body["kind"], body["process"], body["detail"].get("state", ""))
        for _, body in postmortem.events(tx)
        if body["kind"] in COUNTED
    )
    return {
        "negotiations": [(row.id, row.peer_pid) for row in negotiations],
        "transfers": [(row.id, row.peer_pid) for row in transfers],
        "open": [(row.id, row.state, row.pending, row.reason) for row in postmortem.unfinished(tx)],
        "outbox": tx.outbox.count_waiting(),
        "told": told,
    }


def quiet(north: Process, south: Process, urls: tuple[str, str]) -> None:
    """Wait until nothing is to be delivered any more, then stop both."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and any(_contents(url)["outbox"] for url in urls):
        time.sleep(0.2)
    for one in (north, south):
        one.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="on each database")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="SQLite or PostgreSQL")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hanse-crash-") as folder, databases(Path(folder)) as kinds:
        for kind, url in kinds.items():
            if given.only and kind != given.only:
                continue
            print(f"{kind}: {given.kills} kills", flush=True)
            urls = (url(f"{kind}-north".lower()), url(f"{kind}-south".lower()))
            started = time.monotonic()
            sides = [
                postmortem.Side(name, one, Path(folder) / kind / name / "log")
                for name, one in zip(("north", "south"), urls, strict=True)
            ]
            try:
                with processes.two(Path(folder) / kind, urls=urls, **SETTINGS) as (north, south):
                    stories, killed = storm(north, south, kills=given.kills, chance=random.Random(given.seed))
                    quiet(north, south, urls)
                check(urls, stories)
            except (RuntimeError, AssertionError) as error:
                print(f"{kind} FAILED: {error}\n{postmortem.report(sides, getattr(error, 'pids', ()))}", flush=True)
                raise SystemExit(1) from error
            print(
                f"{kind}: {stories} negotiations and transfers came to their end through {sum(killed.values())} kills "
                f"({dict(killed)}) in {time.monotonic() - started:.0f} s; nothing lost, nothing twice",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
