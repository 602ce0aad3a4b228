"""Answers with noise as a client meets them, and the budget that they spend: in the log, in the end record."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from connector.dataplane import noise_budget
from connector.infra.concurrency.turn_queue import TurnQueue
from policies.model import Policy
from tests.connector.dataplane.http.test_routes import ask, parse
from tests.support import data, gate, provider
from tests.support.flying import FlightServer, flyer, flying
from tests.support.gate import atom
from tests.support.provider import Provider, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNTED = 'SELECT gap, count(*) AS n FROM "clinic".numbers GROUP BY gap'
TOTAL = 'SELECT count(*) AS n FROM "clinic".numbers'


def policy(epsilon: str = "1") -> Policy:
    return gate.agreement(
        atom("ds:epsilonBudget", "lteq", epsilon),
        atom("ds:entityKey", "eq", "id"),
        atom("ds:dimension/gap", "eq", "exact"),
        atom("ds:measure/x", "eq", "0..150"),
        action="odrl:use",
    )


async def used(running: Provider, agreement: str) -> float:
    return await running.store.read(lambda tx: tx.noised_answers.read_spent(agreement)) / 1_000_000


async def test_an_answer_is_near_the_truth_and_not_the_truth(running: Provider) -> None:
    agreement = await running.agree(policy())
    answer = await ask(running, running.ticket(agreement), COUNTED, epsilon=0.5)
    table, end = parse(answer.content)
    true = data.table()["gap"].value_counts().to_pylist()
    truth = {row["values"]: row["counts"] for row in true}
    found = {row["gap"]: row["n"] for row in table.to_pylist()}
    assert found.keys() == truth.keys()
    assert all(abs(found[gap] - truth[gap]) < 400 for gap in truth)
    assert found != truth  # each of six counts equals the truth by chance once in eight
    assert end["policy"][-1] == "numbers: noise of epsilon 0.5 (0.5 spent for it; 0.5 of 1 used)"
    await settled(running)
    assert running.of_kind("ReadStarted")[-1].detail["policy"] == end["policy"]


async def test_a_repeat_costs_nothing_and_gives_the_same_answer(running: Provider) -> None:
    agreement = await running.agree(policy())
    ticket = running.ticket(agreement)
    first, _ = parse((await ask(running, ticket, COUNTED, epsilon=0.2)).content)
    again, end = parse((await ask(running, ticket, COUNTED + " ORDER BY gap", epsilon=0.2)).content)
    assert again.equals(first.sort_by("gap"))
    assert "a repeat, nothing spent" in end["policy"][-1]
    assert await used(running, agreement) == 0.2
    less, _ = parse((await ask(running, ticket, COUNTED, epsilon=0.1)).content)
    assert less.equals(first)  # what is better known already stays known
    more, _ = parse((await ask(running, ticket, COUNTED, epsilon=0.4)).content)
    assert not more.equals(first)
    assert await used(running, agreement) == pytest.approx(0.6)


async def test_a_spent_budget_refuses_new_questions_and_repeats_go_on(running: Provider) -> None:
    agreement = await running.agree(policy("0.3"))
    ticket = running.ticket(agreement)
    assert (await ask(running, ticket, TOTAL, epsilon=0.3)).status_code == 200
    refused = await ask(running, ticket, COUNTED, epsilon=0.000001)
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (429, "privacy_budget_spent")
    assert problem["rule"].startswith("/permission/0/constraint/0")
    assert "0 of 0.3 is left" in problem["detail"]
    assert (await ask(running, ticket, TOTAL)).status_code == 200
    await settled(running)
    logged = [event for event in running.of_kind("ReadRefused") if event.code == "privacy_budget_spent"]
    assert [event.agreement for event in logged] == [agreement]


async def test_an_answer_that_names_no_epsilon_spends_a_tenth(running: Provider) -> None:
    agreement = await running.agree(policy("0.5"))
    assert (await ask(running, running.ticket(agreement), TOTAL)).status_code == 200
    assert await used(running, agreement) == 0.05


BAD: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"epsilon": 2.0}, 400, "epsilon_invalid"),
    ({"epsilon": 0}, 400, "envelope_invalid"),
    ({"epsilon": -1}, 400, "envelope_invalid"),
    ({"epsilon": "much"}, 400, "envelope_invalid"),
)


@pytest.mark.parametrize(("more", "status", "code"), BAD)
async def test_an_epsilon_that_cannot_be_is_refused(
    running: Provider, more: dict[str, Any], status: int, code: str
) -> None:
    agreement = await running.agree(policy())
    answer = await ask(running, running.ticket(agreement), TOTAL, **more)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await used(running, agreement) == 0


async def test_a_question_that_no_worker_had_costs_nothing(running: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = await running.agree(policy())
    with monkeypatch.context() as patch:
        patch.setattr(running.pool, "_turns", TurnQueue(0, waiting=0, wait_seconds=1))
        assert (await ask(running, running.ticket(agreement), TOTAL, epsilon=0.2)).json()["code"] == "queue_full"
        await settled(running)
    assert await used(running, agreement) == 0
    assert running.of_kind("ReadEnded")[-1].detail["use"] == "given_back"


async def test_a_question_that_fails_after_the_charge_gives_nothing_back(running: Provider) -> None:
    agreement = await running.agree(policy())
    ticket = running.ticket(agreement)
    answer = await ask(running, ticket, 'SELECT gap, avg(x) FROM "clinic".numbers GROUP BY gap', limits={"rows": 1})
    assert answer.status_code != 200 or parse(answer.content)[1]["status"] != "complete"
    assert await used(running, agreement) == 0.1


async def test_rows_and_foreign_shapes_are_refused_before_anything_is_spent(running: Provider) -> None:
    agreement = await running.agree(policy())
    ticket = running.ticket(agreement)
    for sql in ('SELECT id FROM "clinic".numbers', 'SELECT max(x) FROM "clinic".numbers', TOTAL + " WHERE x > 3"):
        assert (await ask(running, ticket, sql)).status_code in (400, 403)
    assert await used(running, agreement) == 0


async def test_only_groups_that_noise_has_chosen_are_too_many(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 groups of ten rows each pass under a limit of 5: hardly one is shown, more than 5 once in 10^17 times."""
    monkeypatch.setattr(noise_budget, "_GROUPS_MAX", 5)
    agreement = await running.agree(
        gate.agreement(
            atom("ds:epsilonBudget", "lteq", "1"),
            atom("ds:dimension/gap", "eq", "exact"),
            atom("ds:dimension/id", "eq", "10"),
            action="odrl:use",
        )
    )
    ticket = running.ticket(agreement)
    table, _ = parse((await ask(running, ticket, 'SELECT id, count(*) AS n FROM "clinic".numbers GROUP BY id')).content)
    assert table.num_rows <= 5
    refused = await ask(running, ticket, COUNTED)
    assert (refused.status_code, refused.json()["code"]) == (429, "groups_max")


async def test_budgets_of_two_agreements_are_two(running: Provider) -> None:
    first, second = await running.agree(policy()), await running.agree(policy())
    one, _ = parse((await ask(running, running.ticket(first), TOTAL, epsilon=0.25)).content)
    other, _ = parse((await ask(running, running.ticket(second), TOTAL, epsilon=0.5)).content)
    assert (await used(running, first), await used(running, second)) == (0.25, 0.5)
    assert one.num_rows == other.num_rows == 1


async def test_questions_at_once_are_charged_each(running: Provider) -> None:
    agreement = await running.agree(policy())
    ticket = running.ticket(agreement)
    asked = [f"{TOTAL} WHERE gap < {number}" for number in range(1, 6)]
    answers = await asyncio.gather(*(ask(running, ticket, sql, epsilon=0.3) for sql in asked))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429]
    assert await used(running, agreement) == pytest.approx(0.9)


async def test_a_question_asked_several_times_at_once_is_answered_and_paid_once(running: Provider) -> None:
    agreement = await running.agree(policy())
    ticket = running.ticket(agreement)
    answers = await asyncio.gather(*(ask(running, ticket, COUNTED, epsilon=0.2) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    kept, _ = parse((await ask(running, ticket, COUNTED, epsilon=0.2)).content)
    assert all(parse(answer.content)[0].equals(kept) for answer in answers)
    assert await used(running, agreement) == 0.2
    await settled(running)
    assert not [event for event in running.of_kind("ReadRefused") if event.agreement == agreement]


class Slow:
    """The first answer that is made waits for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs, self.go, self._real = asyncio.Event(), asyncio.Event(), noise_budget.load_or_compute_answer
        monkeypatch.setattr(noise_budget, "load_or_compute_answer", self.answered)

    async def answered(self, *args: Any, **named: Any) -> bytes:
        self.runs.set()
        await self.go.wait()
        return await self._real(*args, **named)


async def test_who_asks_for_more_than_the_answer_under_way_waits_for_it_and_pays(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, agreement = Slow(monkeypatch), await running.agree(policy())
    ticket = running.ticket(agreement)
    less = asyncio.ensure_future(ask(running, ticket, COUNTED, epsilon=0.001))
    await slow.runs.wait()
    more = asyncio.ensure_future(ask(running, ticket, COUNTED, epsilon=0.5))
    await asyncio.sleep(0.3)
    assert not more.done()
    slow.go.set()
    ends = [parse(answer.content)[1] for answer in await asyncio.gather(less, more)]
    assert [end["policy"][-1].split(" (")[0] for end in ends] == [
        "numbers: noise of epsilon 0.001",
        "numbers: noise of epsilon 0.5",
    ]
    assert await used(running, agreement) == pytest.approx(0.501)


@pytest.mark.parametrize(
    ("how", "refused"), [("no time", ["busy"]), ("revoked", ["revoked"]), ("left", [])], ids=["time", "right", "reader"]
)
async def test_who_waits_for_an_answer_stops_where_time_or_right_or_reader_have_gone(
    running: Provider, monkeypatch: pytest.MonkeyPatch, how: str, refused: list[str]
) -> None:
    slow, agreement = Slow(monkeypatch), await running.agree(policy())
    ticket = running.ticket(agreement)
    first = asyncio.ensure_future(ask(running, ticket, TOTAL, epsilon=0.2))
    await slow.runs.wait()
    if how == "no time":
        monkeypatch.setattr(running.reads, "_most", replace(running.reads._most, seconds=0.3))
    waiting = asyncio.ensure_future(ask(running, ticket, TOTAL, epsilon=0.2))
    async with asyncio.timeout(20):
        while not (running.reads._waited or waiting.done()):
            await asyncio.sleep(0.01)
        if how == "revoked":
            await running.revoke(agreement, "over")
        if how == "left":
            waiting.cancel()
        while running.reads._waited:
            await asyncio.sleep(0.01)
    slow.go.set()
    await asyncio.wait([first, waiting])
    await settled(running)
    assert [event.code for event in running.of_kind("ReadRefused") if event.agreement == agreement] == refused
    assert len([event for event in running.of_kind("ReadStarted") if event.agreement == agreement]) == 1


async def test_a_question_whose_reads_have_ended_is_asked_anew(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = await running.agree(policy())
    with monkeypatch.context() as patch:
        patch.setattr(noise_budget, "_ANSWER_MAX", 1)
        assert (await ask(running, running.ticket(agreement), TOTAL)).json()["code"] == "groups_max"
    await settled(running)
    assert (await ask(running, running.ticket(agreement), TOTAL)).status_code == 200
    assert await used(running, agreement) == 0.2


async def test_the_dataset_asked_about_pays_whichever_ticket_comes_first(running: Provider, tmp_path: Path) -> None:
    """The ticket of a dataset that the question never reads stands for nothing."""
    agreement = await running.agree(policy())
    dull = await running.agree(name="dull", path=data.parquet(tmp_path / "dull.parquet", 10))
    tickets = [running.ticket(one) for one in (dull, agreement)]
    first, _ = parse((await ask(running, tickets[0], COUNTED, tickets=tickets[1:], epsilon=1)).content)
    assert (await used(running, agreement), await used(running, dull)) == (1, 0)
    for bearer, *others in (tickets, tickets[::-1], tickets[1:]):
        again, end = parse((await ask(running, bearer, COUNTED, tickets=others, epsilon=1)).content)
        assert again.equals(first)
        assert "a repeat, nothing spent" in end["policy"][-1]
    refused = await ask(running, tickets[0], TOTAL, tickets=tickets[1:], epsilon=0.1)
    assert refused.json()["code"] == "privacy_budget_spent"


async def test_over_flight_the_dataset_asked_about_pays(running: Provider, tmp_path: Path) -> None:
    agreement = await running.agree(policy())
    dull = await running.agree(name="dull", path=data.parquet(tmp_path / "dull.parquet", 10))

    def go(front: FlightServer) -> None:
        further = [(b"hanse-ticket", running.ticket(agreement).encode())]
        with flyer(front, running.ticket(dull), headers=further) as client:
            client.read(sql=COUNTED, epsilon=1)

    async with flying(running) as front:
        await asyncio.to_thread(go, front)
    assert (await used(running, agreement), await used(running, dull)) == (1, 0)


async def test_a_kept_answer_is_of_the_dataset_asked_about_and_of_its_version(
    running: Provider, tmp_path: Path
) -> None:
    """All three are under the same words, and are asked the same question."""
    path = tmp_path / "few.parquet"
    pq.write_table(data.table().slice(0, 2_000), path)
    dull = running.ticket(await running.agree(policy(), name="dull", path=data.parquet(tmp_path / "dull.parquet", 10)))
    agreements = {"numbers": await running.agree(policy()), "few": await running.agree(policy(), name="few", path=path)}

    async def total(name: str) -> int:
        sql = f'SELECT count(*) AS n FROM "clinic".{name}'
        answer = await ask(running, dull, sql, tickets=[running.ticket(agreements[name])], epsilon=0.4)
        return int(parse(answer.content)[0]["n"][0].as_py())

    assert abs(await total("numbers") - data.ROWS) < 400
    assert abs(await total("few") - 2_000) < 400
    newer = data.relation("parquet", data.parquet(tmp_path / "newer.parquet", 5_000), tmp_path)
    profile = await running.profile(newer)
    await running.store.write(lambda tx: provider.renew(tx, "few", "v2", newer, profile))
    assert abs(await total("few") - 5_000) < 400
    assert [await used(running, one) for one in agreements.values()] == pytest.approx([0.4, 0.8])
