"""What child processes do, and where they die: with a connector's store, at one grant."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from connector.errors import Limited, Unavailable
from connector.management.sign_on.auth import Tokens
from connector.store import Store, Transaction
from connector.store.queries.agreements import AgreementQueries
from connector.usage import held_agreement as values
from connector.usage import quotas
from policies.contracts.batch_gate import Lease
from policies.contracts.contract import UsageLimits

READS, ROWS = 4, 15_625


def admits(url: str, dies: str, said: Connection) -> None:
    """Admits one read as `usage.grants` does, and dies where it is told to; without a place to die it says what it
    got."""
    for name in ("count_use", "reserve"):
        _after(name, dies)
    asyncio.run(_admits(url, dies, said))


def hands_over(url: str, file: str, _: Connection) -> None:
    """Makes the first token, and dies when it has written it."""

    def hand_over(text: str) -> None:
        Path(file).write_text(text)
        _die()

    asyncio.run(Tokens(Store(url, pool_size=1)).first(hand_over))


def spends(url: str, tries: int, seed: int, most: dict[str, int], said: Connection) -> None:
    """Counts uses, rows and epsilon as often as it can, and says what it got."""
    said.send(asyncio.run(_spends(url, tries, random.Random(seed), most)))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(name: str, dies: str) -> None:
    real = getattr(AgreementQueries, name)

    def counted(self: AgreementQueries, *args: Any, **more: Any) -> Any:
        done = real(self, *args, **more)
        if dies == name:
            _die()
        return done

    setattr(AgreementQueries, name, counted)


async def _admits(url: str, dies: str, said: Connection) -> None:
    store = Store(url, pool_size=1)
    quotas._SHARE = 1  # whoever is admitted takes all that is left
    contract: Any = SimpleNamespace(
        limits=UsageLimits(queries=READS, rows=ROWS), permission="/permission/0", reasons={}
    )
    held: Any = SimpleNamespace(agreement=SimpleNamespace(id="g"), version=None)
    grant = values.ReadGrant(held, contract, "did:web:lab.example", "t", "ds:query", "", "", Lease(deadline=9e9))
    try:
        grant.take(*await store.write(lambda tx: quotas.admit(tx, grant, time.time(), "r")))
    except Limited as refused:
        said.send({"refused": refused.code})
        return
    if dies == "commit":
        _die()
    said.send({"rows": grant.lease.rows})
    store.close()


async def _spends(url: str, tries: int, rng: random.Random, most: dict[str, int]) -> dict[str, int]:
    store = Store(url, pool_size=2)
    spent = {"uses": 0, "today": 0, "rows": 0, "epsilon": 0}

    async def write(work: Callable[[Transaction], bool]) -> bool:
        while True:
            try:
                return await store.write(work)
            except Unavailable:  # eight wait for one file, on a machine that may stand still: nothing was counted
                pass

    async def once(amount: int) -> None:
        used = await write(lambda tx: tx.agreements.count_use("uses", day=1, most=most["uses"], most_today=None))
        today = await write(lambda tx: tx.agreements.count_use("today", day=1, most=None, most_today=most["today"]))
        taken = await write(
            lambda tx: tx.agreements.reserve(
                "rows", rows=amount, nbytes=amount * 8, most_rows=most["rows"], most_bytes=most["rows"] * 8 + 4
            )
        )
        private = await write(lambda tx: tx.noised_answers.spend("epsilon", micro=amount * 333, most=most["micro"]))
        spent["uses"] += used
        spent["epsilon"] += private * amount * 333
        spent["today"] += today
        spent["rows"] += taken * amount

    for _ in range(0, tries, 6):
        await asyncio.gather(*(once(rng.randint(1, 9)) for _ in range(6)))
    store.close()
    return spent
