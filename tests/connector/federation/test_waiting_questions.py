"""Questions that wait for their turn: order between askers, bounds in number and time, cancelling, refusals."""

from __future__ import annotations

import asyncio
import time

import pytest

from connector.errors import Denied, Limited
from connector.federation.coordinator import Question
from connector.infra.concurrency.turn_queue import TurnQueue
from tests.support.asking import Asked
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SQL = 'SELECT count(*) AS n FROM "all".patients'
RUNNING_MAX = 8
SHARE = 6  # of one asker


async def fill(asked: Asked) -> None:
    """Take every place, as questions of two askers that run do."""
    for by in ["holder"] * SHARE + ["other"] * (RUNNING_MAX - SHARE):
        await asked.coordinator._turns.take(by)


def waiting(asked: Asked) -> int:
    return asked.coordinator._turns.waiting


def limit(asked: Asked, monkeypatch: pytest.MonkeyPatch, *, places: int, waiting: int, seconds: float) -> None:
    monkeypatch.setattr(asked.coordinator, "_queue_seconds", seconds)
    monkeypatch.setattr(asked.coordinator, "_turns", TurnQueue(places, waiting=waiting, wait_seconds=seconds))


async def test_a_question_waits_for_a_place_and_is_answered(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked.coordinator, "_queue_seconds", 60.0)
    await fill(asked)
    asking = asyncio.ensure_future(asked.rows(SQL, query_id="a" * 16))
    await until(lambda: waiting(asked) == 1)
    known = asked.coordinator.progress("a" * 16)
    assert known is not None
    assert (known.state, asked.coordinator.recent()) == ("waiting", [known])
    assert not any(owner.asked for owner in asked.owners.of.values())
    asked.coordinator._turns.give_back("holder")
    rows, end = await asking
    assert (rows, end["status"], known.state) == ([{"n": 153}], "complete", "complete")
    assert asked.coordinator._turns.places.free == 1  # it gave its place back


async def test_a_plan_waits_for_a_place_too(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked.coordinator, "_queue_seconds", 60.0)
    await fill(asked)
    planning = asyncio.ensure_future(asked.coordinator.plan(Question(sql=SQL), by="tests"))
    await until(lambda: waiting(asked) == 1)
    asked.coordinator._turns.give_back("holder")
    assert len((await planning).fragments) == 3
    assert asked.coordinator._turns.places.free == 1


@pytest.mark.parametrize(("line", "why"), [(0, "too many questions wait"), (8, "questions before it take long")])
async def test_a_question_without_a_place_is_refused_before_any_work_and_counted(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, line: int, why: str
) -> None:
    limit(asked, monkeypatch, places=0, waiting=line, seconds=0.0 if line else 2.5)
    with pytest.raises(Limited, match=why) as full:
        await asked.coordinator.ask(Question(sql="no SQL at all", query_id="b" * 16), by="greedy")
    with pytest.raises(Limited, match=why):
        await asked.coordinator.plan(Question(sql="no SQL at all"), by="greedy")
    told = full.value
    pause = "1" if line else "3"
    assert (told.status, told.code, told.headers) == (429, "queries_max", {"retry-after": pause})
    assert told.message.startswith("expected one of 8 places for questions to become free, got none")
    assert told.message.endswith(f"ask again in {pause} s")
    assert (asked.recorded, asked.coordinator.recent()) == ([], [])
    (counted,) = asked.coordinator._store.refusals.list_counts(time.monotonic())
    assert (counted.actor, counted.detail["codes"]) == ("greedy", {"queries_max": 2})


async def test_an_id_that_was_refused_may_be_used_again_and_one_that_waits_may_not(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(asked, monkeypatch, places=0, waiting=8, seconds=0.0)
    for _ in range(2):
        with pytest.raises(Limited):
            await asked.rows(SQL, query_id="c" * 16)
    limit(asked, monkeypatch, places=0, waiting=8, seconds=60.0)
    asking = asyncio.ensure_future(asked.rows(SQL, query_id="c" * 16))
    await until(lambda: waiting(asked) == 1)
    with pytest.raises(Exception, match="choose another"):
        await asked.rows(SQL, query_id="c" * 16)
    asked.coordinator._turns.give_back("holder")
    assert (await asking)[1]["status"] == "complete"


async def test_one_question_of_another_asker_is_next_however_many_one_asker_has(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(asked, monkeypatch, places=1, waiting=128, seconds=60.0)
    order: list[str] = []

    async def plan(by: str) -> None:
        await asked.coordinator.plan(Question(sql=SQL), by=by)
        order.append(by)

    await asked.coordinator._turns.take("greedy")
    greedy = [asyncio.ensure_future(plan("greedy")) for _ in range(10)]
    await until(lambda: waiting(asked) == 10)
    modest = asyncio.ensure_future(plan("modest"))
    await until(lambda: waiting(asked) == 11)
    asked.coordinator._turns.give_back("holder")
    await asyncio.gather(*greedy, modest)
    assert order.index("modest") <= 1


async def test_one_asker_leaves_places_to_others_however_long_its_questions_run(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked.coordinator, "_queue_seconds", 60.0)
    holding = [asyncio.ensure_future(asked.coordinator._turns.take("greedy")) for _ in range(RUNNING_MAX)]
    await until(lambda: waiting(asked) == RUNNING_MAX - SHARE)
    plan = await asked.coordinator.plan(Question(sql=SQL), by="modest")  # at once, past those that wait
    assert len(plan.fragments) == 3
    assert waiting(asked) == RUNNING_MAX - SHARE
    for one in holding[SHARE:]:
        one.cancel()
    await asyncio.wait(holding)
    for _ in range(SHARE):
        asked.coordinator._turns.give_back("greedy")
    assert asked.coordinator._turns.places.free == RUNNING_MAX


async def test_one_asker_leaves_half_of_the_line_to_others(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(asked, monkeypatch, places=0, waiting=8, seconds=60.0)
    asking = [asyncio.ensure_future(asked.coordinator.plan(Question(sql=SQL), by="greedy")) for _ in range(64)]
    await until(lambda: sum(one.done() for one in asking) == 60)
    assert waiting(asked) == 4
    modest = asyncio.ensure_future(asked.coordinator.plan(Question(sql=SQL), by="modest"))
    await until(lambda: waiting(asked) == 5)
    for one in (*asking, modest):
        one.cancel()
    await asyncio.gather(*asking, modest, return_exceptions=True)


async def test_the_wait_is_within_the_questions_own_time(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(asked, monkeypatch, places=0, waiting=8, seconds=600.0)
    with pytest.raises(Limited) as full:
        await asked.rows(SQL, seconds=0.05)
    assert full.value.code == "queries_max"


async def test_a_client_that_leaves_gives_up_its_place_in_the_line(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(asked, monkeypatch, places=0, waiting=8, seconds=60.0)
    asking = asyncio.ensure_future(asked.rows(SQL))
    await until(lambda: waiting(asked) == 1)
    asking.cancel()
    with pytest.raises((asyncio.CancelledError, Denied)):
        await asking
    assert (waiting(asked), asked.coordinator.recent()) == (0, [])
    assert [(event.outcome, event.code) for event in asked.recorded] == [("broken", "cancelled")]
    asked.coordinator._turns.give_back("holder")
    assert (await asked.rows(SQL))[1]["status"] == "complete"


async def test_a_question_that_waits_can_be_stopped(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(asked, monkeypatch, places=0, waiting=8, seconds=60.0)
    asking = asyncio.ensure_future(asked.rows(SQL, query_id="d" * 16))
    await until(lambda: waiting(asked) == 1)
    assert asked.coordinator.cancel("d" * 16)
    with pytest.raises(Denied) as stopped:
        await asking
    assert (stopped.value.code, waiting(asked)) == ("cancelled", 0)
