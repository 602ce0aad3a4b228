"""A case that does not go well: connections that are cut, leases that end, agreements that are revoked while rows come.

After a break of the first two kinds one goes on from the cursor: all rows come, each once, in their order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pyarrow as pa

from connector.dataplane.flight import flight_queries
from policies.contracts import batch_gate
from tests.support import provider
from tests.support.random_ends import REFUSED, Came, over_flight, over_http
from tests.support.random_http import OverHttp
from tests.support.random_reads import Read
from tests.support.random_space import Different, World

_BREAKS = 6


class Broken(OverHttp):
    """What came is the first of the rows, the log has no fewer, and whoever goes on has the rest."""

    met = ""

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        blocks = "" if world.reserved else asked.blocks or rng.choice(("", "all", "some"))
        whole = replace(asked, columns=(), where="") if not blocks else asked
        return replace(whole, blocks=blocks, most=None)

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield self.met

    async def ask(self) -> str:
        with mock.patch.object(flight_queries, "_PARTS", 1):
            return await self._asked()

    async def _asked(self) -> str:
        if self.rng.random() < 0.3:
            return await self._revoked()
        if self.asked.blocks:
            return await self._by_blocks()
        self.met = "cut over Flight"
        await self._recorded(
            over_flight(self.over.door.front, self.ticket, self.world.name, cut=self.rng.randint(1, 4))
        )
        came = await self._recorded(over_flight(self.over.door.front, self.ticket, self.world.name))
        return self._complete(came, self.expected)

    async def _by_blocks(self) -> str:
        """One break after the other, then the rest."""
        given, expected = await self._chosen()
        self.met, got = "gone on after breaks", 0
        for number in range(_BREAKS):
            came = await self._broken(given, expected.slice(got), last=number == _BREAKS - 1)
            got += came.rows
            if came.places:
                given["after"] = came.places[-1]["cursor"]
            if came.status == "complete":
                break
        return self._complete(came, expected.slice(got - came.rows))

    async def _broken(self, given: dict[str, str], left: pa.Table, *, last: bool) -> Came:
        """A read that may be cut at any byte, or whose lease may end before any batch; the last of them neither."""
        cut = self.rng.randint(1, left.nbytes + 3_000) if self.rng.random() < 0.5 and not last else None
        check = self.rng.randint(1, 6) if cut is None and not last else 0
        with at_check(check, lambda: self.over.running.later(1e6)):
            asked = over_http(self.over.door.client, self.ticket, self.asked.parameters | given, cut=cut)
            came = await self._recorded(asked, left)
        if came.status not in ("complete", "cut", "lease_expired"):
            raise Different(f"ended as {came.end}")
        return came

    async def _chosen(self) -> tuple[dict[str, str], pa.Table]:
        plan = await self._planned()
        order = list(range(len(plan["blocks"])))
        given = {"blocks": "all", "snapshot": plan["snapshot"]}
        if self.asked.blocks == "some" and order:
            order = self.rng.sample(order, self.rng.randint(1, len(order)))
            given["blocks"] = ",".join(map(str, order))
            if self.asked.twice:  # so that some blocks are prepared
                await self._read(self._of_blocks(order[::2]), **given | {"blocks": ",".join(map(str, order[::2]))})
                await provider.settled(self.over.running)
        return given, self._of_blocks(order)

    async def _revoked(self) -> str:
        """Once the agreement is revoked nothing more leaves, and nothing can be begun."""
        self.met, loop, expected = "revoked", asyncio.get_running_loop(), self.expected
        given: dict[str, str] = {}
        if self.asked.blocks:
            given, expected = await self._chosen()

        def revoke() -> None:
            asyncio.run_coroutine_threadsafe(self.over.running.revoke(self.agreement, "enough"), loop)

        flight = not self.asked.blocks and self.rng.random() < 0.5
        with at_check(self.rng.randint(1, 4), revoke):
            if flight:
                came = await self._recorded(over_flight(self.over.door.front, self.ticket, self.world.name), expected)
            else:
                asked = over_http(self.over.door.client, self.ticket, self.asked.parameters | given)
                came = await self._recorded(asked, expected)
        if came.status == "revoked" and came.end is not None and "enough" not in str(came.end):
            raise Different(f"no reason in {came.end}")
        if came.status not in ("complete", "revoked"):
            raise Different(f"ended as {came.end}")
        await self.over.running.revoke(self.agreement, "enough")
        after = await over_http(self.over.door.client, self.ticket, {})
        if after.status != REFUSED or after.end is None or after.end["code"] != "agreement_ended":
            raise Different(f"after its end came {after.end}")
        return "equal"

    async def _recorded(self, asked: Any, expected: pa.Table | None = None) -> Came:
        """What came, which is the first of what was expected; the log has it, or more that was on its way."""
        running, before = self.over.running, len(self.over.running.events)
        came: Came = await asked
        await provider.settled(running)
        expected = self.expected if expected is None else expected
        came.check_first_of(expected)
        (ended,) = [one for one in running.events[before:] if one.kind == "ReadEnded"]
        told = ended.detail
        if came.end is not None and any(told[name] != came.end[name] for name in ("rows", "bytes", "batches")):
            raise Different(f"recorded as {told}, ended as {came.end}")
        if not came.rows <= told["rows"] <= len(expected):
            raise Different(f"{came.rows} of {len(expected)} rows came, {told['rows']} are recorded")
        return came

    def _complete(self, came: Came, expected: pa.Table) -> str:
        if came.status != "complete":
            raise Different(f"ended as {came.end}")
        came.check_first_of(expected)
        return "equal"


@contextmanager
def at_check(number: int, act: Callable[[], None]) -> Iterator[None]:
    """`act` once the gate is asked for that time; never for nought."""
    left, check = iter(range(number, 0, -1)), batch_gate.check

    def asked(*given: Any) -> str | None:
        if next(left, 0) == 1:
            act()
        return check(*given)

    with mock.patch.object(batch_gate, "check", asked):
        yield
