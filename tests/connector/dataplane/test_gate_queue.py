"""Texts that take long to look at take their own consumer's time, and nobody else's."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connector.dataplane import block_plan
from connector.dataplane.gate_queue import _AT_ONCE, GateQueue
from tests.connector.dataplane.http.test_routes import ask, client
from tests.support import data, provider

OTHER = "did:web:other.example"
_MANY = 40  # more than there are threads
COUNT = 'SELECT count(*) AS n FROM "clinic".numbers'


async def until(found: Any) -> None:
    async with asyncio.timeout(60):
        while not found():
            await asyncio.sleep(0.01)


async def of_another(running: provider.Provider) -> str:
    """A ticket of another consumer, for the same dataset."""
    relation = data.relation("parquet", running.path, running.path.parent)
    profile, policy = await running.profile(relation), replace(provider.OPEN, assignee=OTHER)
    await running.store.write(
        lambda tx: provider.insert(
            tx, policy, "other", name=provider.DATASET, relation=relation, profile=profile, consumer=OTHER
        )
    )
    return running.ticket("urn:agreement:other", consumer=OTHER)


@pytest.mark.parametrize("path", ["/data/v1", "/data/v1/streams"])
async def test_many_texts_of_one_consumer_hold_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    turn, looked_at = threading.Semaphore(0), []
    build_rows_sql = block_plan.ask.build_rows_sql

    def slow(*given: Any, where: str = "", **more: Any) -> str:
        if where:
            looked_at.append(where)
            turn.acquire(timeout=60)
        return build_rows_sql(*given, where=where, **more)

    monkeypatch.setattr(block_plan.ask, "build_rows_sql", slow)
    async with provider.running(tmp_path, rows=100) as running:
        mine, theirs = running.ticket(await running.agree()), await of_another(running)
        async with client(running, mine) as session:
            sent = [asyncio.ensure_future(of_text(session, path)) for _ in range(_MANY)]
            try:
                await until(lambda: len(looked_at) >= _AT_ONCE)
                asking = asyncio.ensure_future(ask(running, theirs, COUNT))
                await until(lambda: running.grants.running("urn:agreement:other"))
                turn.release(_AT_ONCE)  # one more of theirs at most, and then it is the other's turn
                assert (await asking).status_code == 200
                assert len(looked_at) < _MANY
            finally:
                turn.release(2 * _MANY)
                await asyncio.gather(*sent, return_exceptions=True)


async def of_text(session: Any, path: str) -> Any:
    """A request with a condition."""
    where = {"where": "x > 1"}
    return await (session.post(path, json=where) if path.endswith("streams") else session.get(path, params=where))


async def test_who_leaves_keeps_the_place_of_a_thread_that_works() -> None:
    judging, go, begun = GateQueue(), threading.Event(), []

    def slow() -> bool:
        begun.append(1)
        return go.wait(60)

    try:
        left = [asyncio.ensure_future(judging.run_in_turn("lab", slow)) for _ in range(_AT_ONCE)]
        await until(lambda: len(begun) == _AT_ONCE)
        for one in left:
            one.cancel()
        await asyncio.wait(left)
        waiting = asyncio.ensure_future(judging.run_in_turn("lab", slow))
        await asyncio.sleep(0.05)
        assert len(begun) == _AT_ONCE
    finally:
        go.set()
    assert await waiting
