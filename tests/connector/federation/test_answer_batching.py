"""When answers are read: small ones together, if they come soon; else alone. In memory, without owners and workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connector.errors import Invalid, PeerNonsense
from connector.federation import answer_batching
from connector.federation.answer_batching import AnswerBatches
from connector.federation.owner_client import OwnerAnswer

TABLES = {"f0": ("f0.a", "f0.b", "f0.c"), "f1": ("f1.a", "f1.b"), "f2": ("f2",)}
FRAGMENTS: dict[str, Any] = {
    name: SimpleNamespace(id=name, table=table) for table, names in TABLES.items() for name in names
}
LATE = 0.02


class Answers:
    """What is read, and how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sources: str, bad: str = "", patience: float = 60.0) -> None:
        monkeypatch.setattr(answer_batching, "_PATIENCE_S", patience)
        self.read: list[str] = []
        self.bad = bad
        plan: Any = SimpleNamespace(
            fragments=tuple(FRAGMENTS.values()),
            tables={table: [FRAGMENTS[name] for name in names] for table, names in TABLES.items()},
        )
        self.reading = AnswerBatches(plan, sources=sources.split(), together=self.together, apart=self._apart)

    async def came(self, name: str, *, small: bool = True) -> str:
        """Whether it was `read` in the end, or is `unread` still."""
        found = await self.reading.read(OwnerAnswer(FRAGMENTS[name], Path(name), unread=small))
        assert found.fragment is FRAGMENTS[name]
        return "unread" if found.unread else "read"

    async def all(self, *names: str, small: bool = True) -> list[str]:
        return await asyncio.gather(*(self.came(name, small=small) for name in names))

    async def together(self, answers: Sequence[OwnerAnswer]) -> list[OwnerAnswer]:
        names = [one.fragment.id for one in answers]
        self.read.append("+".join(names))
        if self.bad in names:
            raise Invalid("one of them")
        return [replace(one, unread=False) for one in answers]

    async def _apart(self, answers: Sequence[OwnerAnswer]) -> list[OwnerAnswer]:
        for one in answers:
            self.read.append(one.fragment.id)
            if one.fragment.id == self.bad:
                raise PeerNonsense(self.bad)
        return [replace(one, unread=False) for one in answers]


async def test_answers_that_narrow_nothing_stay_unread_until_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, sources="")
    assert await answers.all(*FRAGMENTS) == ["unread"] * 6
    assert answers.read == []


async def test_the_shares_of_a_table_that_narrows_others_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, sources="f0 f2")
    assert await answers.all("f0.c", "f0.a", "f0.b") == ["read"] * 3  # without a wait for others
    assert await answers.all("f1.a", "f2", "f1.b") == ["unread", "read", "unread"]
    assert answers.read == ["f0.c+f0.a+f0.b", "f2"]


async def test_who_waits_in_vain_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, sources="f0", patience=LATE)
    assert await answers.all("f0.a", "f0.b", "f1.a") == ["read"] * 3
    assert sorted(answers.read) == ["f0.a", "f0.b", "f1.a"]
    assert await answers.came("f0.c") == "read"  # the last of its table, which waits for nobody
    assert answers.read[3:] == ["f0.c"]


async def test_large_answers_come_read_and_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, sources="f0")
    assert await answers.all("f0.a", "f0.b", "f1.a", "f1.b", "f2", small=False) == ["read"] * 5
    assert await answers.came("f0.c") == "read"
    assert answers.read == ["f0.c"]


async def test_one_that_is_not_whole_is_found_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, sources="f0", bad="f0.b")
    asked = [asyncio.ensure_future(answers.came(name)) for name in ("f0.a", "f0.b", "f0.c")]
    done, _ = await asyncio.wait(asked)
    assert {str(one.exception()) for one in done} == {"f0.b"}
    assert answers.read == ["f0.a+f0.b+f0.c", "f0.a", "f0.b"]


async def test_nothing_goes_on_for_a_question_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(_: Answers, __: Sequence[OwnerAnswer]) -> list[OwnerAnswer]:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()
        return []

    monkeypatch.setattr(Answers, "together", endless)
    answers = Answers(monkeypatch, sources="f2")
    waiting = asyncio.ensure_future(answers.came("f2"))
    await begun.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not ended.is_set()  # others may wait for it
    answers.reading.cancel()
    async with asyncio.timeout(60):
        await ended.wait()
