"""More requests than may wait for the catalogue's threads are told to come again; the others are served."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

from tests.catalogue.conftest import Catalogue

_THREADS, _WAITING = 4, 5


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.infra.concurrency.thread_pool.WAITING_MAX", _WAITING)


@pytest.mark.parametrize(
    ("path", "status", "whom"),
    [("/api/v1/search", 200, "the index"), ("/api/v1/datasets/urn:none", 404, "the database")],
    ids=["index", "database"],
)
async def test_more_than_may_wait_are_refused(
    few: None, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, path: str, status: int, whom: str
) -> None:
    go_on, parts = threading.Event(), catalogue.parts
    begun = threading.Semaphore(0)

    def slow(do: Any, *about: Any) -> Any:
        begun.release()
        go_on.wait(60)
        return do(*about)

    search, find = parts.index.search, parts.store.read_now
    monkeypatch.setattr(parts.index, "search", lambda *about: slow(search, *about))
    if status == 404:
        monkeypatch.setattr(parts.store, "read_now", lambda *about: slow(find, *about))
    asked = [asyncio.ensure_future(catalogue.http.get(path)) for _ in range(_THREADS)]
    for _ in asked:
        assert await asyncio.to_thread(begun.acquire, timeout=60)
    asked += [asyncio.ensure_future(catalogue.http.get(path)) for _ in range(2 * _WAITING)]
    answers = []
    for done in asyncio.as_completed(asked):
        answers.append(await done)
        if len(answers) == _WAITING:  # they are refused while all others wait
            go_on.set()
    assert Counter(answer.status_code for answer in answers[_WAITING:])[status] >= _THREADS  # a search asks both
    for refused in answers[:_WAITING]:
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["content-type"] == "application/problem+json"
        assert (refused.json()["code"], refused.json()["detail"]) == (
            "busy",
            f"more than 5 units of work wait for {whom}; try again in a moment",
        )


async def test_who_waited_too_long_is_refused(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, parts = threading.Event(), catalogue.parts
    begun = threading.Semaphore(0)

    def hold(_: Any) -> bool:
        begun.release()
        return go_on.wait(60)

    held = [asyncio.ensure_future(parts.store.read(hold)) for _ in range(_THREADS)]
    for _ in held:
        assert await asyncio.to_thread(begun.acquire, timeout=60)
    monkeypatch.setattr("connector.infra.concurrency.thread_pool.WAIT_SECONDS", 0.1)
    late = asyncio.ensure_future(catalogue.http.get("/api/v1/datasets/urn:none"))
    while not parts.store._readers._threads._work_queue.qsize():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    go_on.set()
    assert ((await late).status_code, (await late).json()["code"]) == (503, "busy")
    assert await asyncio.gather(*held) == [True] * _THREADS
