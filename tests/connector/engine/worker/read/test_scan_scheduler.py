"""Scans that take turns: every row once and in order, few engines at once, and nobody waits for a slow reader."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Range
from connector.engine.worker.read import scan_scheduler
from connector.engine.worker.read.scan_scheduler import Floor, Resting

ROWS = 1000


class Engines:
    """Engines that give ten rows at a time, and count themselves."""

    def __init__(self) -> None:
        self.open = self.most = self.made = 0
        self._lock = threading.Lock()

    def begin(self, left: list[Range]) -> tuple[pa.Schema, Iterator[Any]]:
        with self._lock:
            self.open, self.made = self.open + 1, self.made + 1
            self.most = max(self.most, self.open)
        return pa.schema([("n", pa.int64())]), self._parts(left)

    def end(self) -> None:
        with self._lock:
            self.open -= 1

    def _parts(self, left: list[Range]) -> Iterator[Any]:
        while left:
            one = left[0]
            for first in range(one.first, one.stop, 10):
                stop = min(first + 10, one.stop)
                left[0] = Range(-1, 0, stop, one.stop)
                time.sleep(0.0005)  # an engine works outside the interpreter's lock: others have their turn
                yield pa.record_batch({"n": range(first, stop)}), ""
            left.pop(0)

    def scan(self, floor: Floor) -> Resting:
        ranges = [Range(-1, 0, 0, 333), Range(-1, 0, 333, ROWS)]
        return Resting(floor, ranges, begin=self.begin, end=self.end, check=lambda: None)


def numbers(parts: Any) -> list[int]:
    return [number for batch, *_ in parts for number in batch["n"].to_pylist()]


def test_scans_that_take_turns_give_every_row_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_scheduler, "_TURN", 0.0)
    engines, floor, found = Engines(), Floor(2), []
    threads = [threading.Thread(target=lambda: found.append(numbers(engines.scan(floor)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [list(range(ROWS))] * 8
    assert (engines.most, engines.open) == (2, 0)
    assert engines.made > 8  # they did take turns


def test_who_rests_goes_on_where_it_was_and_lets_others_pass() -> None:
    engines, floor = Engines(), Floor(1)
    slow = engines.scan(floor)
    came = numbers([next(slow), next(slow)])
    slow.rest()
    assert numbers(engines.scan(floor)) == list(range(ROWS))
    assert came + numbers(slow) == list(range(ROWS))
    assert engines.open == 0


def test_who_has_many_scans_has_no_more_turns_than_who_has_one() -> None:
    floor, order, lock = Floor(1), list[str](), threading.Lock()
    floor.take(lambda: None)

    def scan(consumer: str) -> None:
        floor.take(lambda: None, consumer=consumer)
        with lock:
            order.append(consumer)
        floor.give_back()

    threads = []
    for number, consumer in enumerate("aaaaaba"):
        threads.append(threading.Thread(target=scan, args=(consumer,)))
        threads[-1].start()
        while len(floor._lines) <= number:
            time.sleep(0.001)
    floor.give_back()
    for thread in threads:
        thread.join(60)
    assert order == list("abaaaaa")
    assert not floor.has_waiting


def test_a_scan_alone_keeps_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_scheduler, "_TURN", 0.0)
    engines = Engines()
    assert numbers(engines.scan(Floor(1))) == list(range(ROWS))
    assert engines.made == 1


@pytest.mark.parametrize("stops", ["the scan", "the reader"])
def test_who_is_not_wanted_any_more_waits_for_no_turn(stops: str) -> None:
    engines, floor, raised = Engines(), Floor(1), []
    holding = engines.scan(floor)
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise Coded("cancelled")

    def wait() -> None:
        try:
            numbers(other)
        except Coded as error:
            raised.append(error.code)

    holding.rest()
    other = Resting(floor, [Range(-1, 0, 0, ROWS)], begin=engines.begin, end=engines.end, check=check)
    other.rest()
    next(holding)
    waiting = threading.Thread(target=wait)
    waiting.start()
    while not floor.has_waiting:
        time.sleep(0.001)
    other.close() if stops == "the scan" else gone.set()
    waiting.join(60)
    assert raised == ["cancelled"]
    assert not floor.has_waiting
    assert len(numbers(holding)) == ROWS - 10
    assert engines.open == 0


def test_a_scan_that_has_failed_gives_no_more_and_does_not_look_for_more() -> None:
    asked = 0

    def parts() -> Any:
        yield pa.record_batch({"n": [1]}), ""
        raise OSError("the engine was interrupted")

    class Counted:
        def __init__(self) -> None:
            self.parts = parts()

        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            nonlocal asked
            asked += 1
            assert asked < 10, "it asks for ever"
            return next(self.parts)

        def close(self) -> None:
            self.parts.close()

    floor, left = Floor(1), [Range(-1, 0, 0, ROWS)]
    scan = Resting(floor, left, begin=lambda _: (pa.schema([]), Counted()), end=lambda: None, check=lambda: None)
    assert numbers([next(scan)]) == [1]
    with pytest.raises(OSError, match="interrupted"):
        next(scan)
    with pytest.raises(Coded, match="cancelled"):  # asked for before the failure was seen
        next(scan)
    scan.rest()
    floor.take(lambda: None)


def test_a_scan_that_is_closed_makes_no_more_parts() -> None:
    engines = Engines()
    scan = engines.scan(Floor(1))
    next(scan)
    scan.close()
    with pytest.raises(Coded, match="cancelled"):
        next(scan)
    scan.rest()
    assert engines.open == 0


def test_an_engine_that_does_not_open_leaves_its_place() -> None:
    floor = Floor(1)

    def begin(_: list[Range]) -> Any:
        raise Coded("engine_failed")

    for _ in range(2):
        with pytest.raises(Coded):
            Resting(floor, [Range(-1, 0, 0, ROWS)], begin=begin, end=lambda: None, check=lambda: None)
    floor.take(lambda: None)


def test_what_reads_in_an_engine_ends_before_the_engine() -> None:
    said: list[str] = []

    def parts() -> Any:
        try:
            yield pa.record_batch({"n": [1]}), ""
        finally:
            said.append("reader")

    def begin(_: list[Range]) -> Any:
        return pa.schema([]), parts()

    scan = Resting(
        Floor(1), [Range(-1, 0, 0, ROWS)], begin=begin, end=lambda: said.append("engine"), check=lambda: None
    )
    next(scan)
    kept = scan._parts  # somebody may hold it still
    scan.rest()
    assert (said, kept is None) == (["reader", "engine"], False)
