"""The outbox worker: order, retries, leases and limits, with a courier that does what the test says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connector.dataplane.push import push_receiver
from connector.dsp import process_limits
from connector.errors import AddressRefused, AlreadyExists, Denied, PeerUnreachable
from connector.outbox import delivery_classes
from connector.outbox.sender import Courier, DeliveryOutcome, DeliveryResult, Sender
from connector.store import Store, Transaction
from connector.store.tables import Outbox
from tests.support.clocks import hands

Carry = Callable[[Outbox], Awaitable[DeliveryOutcome]]
DELIVERED = DeliveryOutcome(DeliveryResult.DELIVERED)


class Script(Courier):
    """Carries as the test says, and notes what was settled how."""

    def __init__(self, carry: Carry) -> None:
        self._carry = carry
        self.carried: list[str] = []
        self.settled: list[tuple[str, DeliveryResult]] = []
        self.changed = asyncio.Event()

    async def carry(self, row: Outbox) -> DeliveryOutcome:
        self.carried.append(row.path)
        return await self._carry(row)

    def hold(self, tx: Transaction, row: Outbox) -> None: ...

    def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Any) -> list[Outbox]:
        self.settled.append((row.path, outcome.result))
        return []

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.settled) < count:
                await asyncio.sleep(0.002)


def message(path: str, process: str = "p", address: str = "http://peer", to: str = "did:web:peer") -> Outbox:
    return Outbox(process=process, kind="test", address=address, path=path, message={}, audience=to)


def sender(store: Store, courier: Courier, **timing: Any) -> Sender:
    standing: dict[str, Any] = {"is_partner": process_limits.is_partner, "makes_partner": process_limits.makes_partner}
    timing = {"retry_first": 0.005, "retry_cap": 0.02, "retry_deadline": 600.0, **timing}
    made = Sender(store=store, **standing, **timing)
    made.register("test", courier)
    return made


async def send(made: Sender, store: Store, *rows: Outbox) -> None:
    queued = await store.write(lambda tx: [made.queue(tx, row) for row in rows])
    made.hand_over(queued)


async def test_a_message_leaves_right_after_its_commit_without_a_tick(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def carry(_: Outbox) -> DeliveryOutcome:
        return DELIVERED

    courier = Script(carry)
    made = sender(sqlite_store, courier)
    looked, look = asyncio.Event(), made._take_up

    async def once() -> float:
        """It has looked, found nothing, and does not look again."""
        assert await look() > 0
        looked.set()
        return 3_600.0

    monkeypatch.setattr(made, "_take_up", once)
    await made.start()
    await looked.wait()
    await send(made, sqlite_store, message("one"))
    await courier.until(1)
    await made.stop()
    assert courier.settled == [("one", DeliveryResult.DELIVERED)]


async def test_what_was_left_behind_is_delivered_oldest_first_in_each_process(sqlite_store: Store) -> None:
    async def carry(_: Outbox) -> DeliveryOutcome:
        await asyncio.sleep(0.01)
        return DELIVERED

    courier = Script(carry)
    old = sender(sqlite_store, courier)
    await sqlite_store.write(lambda tx: [old.queue(tx, message(f"{i}", process=f"p{i % 2}")) for i in range(10)])
    made = sender(sqlite_store, courier)
    await made.start()
    await courier.until(10)
    await made.stop()
    for parity in (0, 1):
        mine = [int(path) for path in courier.carried if int(path) % 2 == parity]
        assert mine == sorted(mine)


FATES: list[tuple[list[Any], int, DeliveryResult]] = [
    (
        [DeliveryOutcome(DeliveryResult.AGAIN), DeliveryOutcome(DeliveryResult.AGAIN), DELIVERED],
        3,
        DeliveryResult.DELIVERED,
    ),
    ([DeliveryOutcome(DeliveryResult.REFUSED)], 1, DeliveryResult.REFUSED),
    ([DeliveryOutcome(DeliveryResult.SOON)] * 10, 6, DeliveryResult.REFUSED),
    (
        [DeliveryOutcome(DeliveryResult.AGAIN)] * 4 + [DeliveryOutcome(DeliveryResult.SOON)] * 2 + [DELIVERED],
        7,
        DeliveryResult.DELIVERED,
    ),
    ([PeerUnreachable("no answer"), DELIVERED], 2, DeliveryResult.DELIVERED),
    ([AddressRefused("private")], 1, DeliveryResult.REFUSED),
    ([Denied("the agreement has ended")], 1, DeliveryResult.REFUSED),
]


@pytest.mark.parametrize(("answers", "attempts", "end"), FATES)
async def test_how_answers_are_taken(
    sqlite_store: Store, answers: list[Any], attempts: int, end: DeliveryResult
) -> None:
    left = list(answers)

    async def carry(_: Outbox) -> DeliveryOutcome:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]  # a DeliveryOutcome

    courier = Script(carry)
    made = sender(sqlite_store, courier)
    await made.start()
    await send(made, sqlite_store, message("one"))
    await courier.until(1)
    await made.stop()
    assert (len(courier.carried), courier.settled) == (attempts, [("one", end)])
    assert await sqlite_store.read(lambda tx: tx.outbox.count_waiting()) == 0


async def test_a_fault_of_ours_does_not_end_the_worker_nor_lose_the_message(sqlite_store: Store) -> None:
    tries: list[int] = []

    async def carry(row: Outbox) -> DeliveryOutcome:
        tries.append(1)
        if row.path == "bad" and len(tries) == 1:
            raise RuntimeError("a fault")
        return DELIVERED

    courier = Script(carry)
    made = sender(sqlite_store, courier, lease=0.1)
    await made.start()
    await send(made, sqlite_store, message("bad", process="a"), message("good", process="b"))
    await courier.until(2)
    await made.stop()
    assert sorted(courier.settled) == [("bad", DeliveryResult.DELIVERED), ("good", DeliveryResult.DELIVERED)]


async def test_a_command_waits_until_an_ended_delivery_is_recorded(sqlite_store: Store) -> None:
    settling, settle = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def carry(_: Outbox) -> DeliveryOutcome:
        return DELIVERED

    class Slow(Script):
        def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Any) -> list[Outbox]:
            loop.call_soon_threadsafe(settling.set)
            settle.wait(60)
            return super().settle(tx, row, outcome, held)

    courier = Slow(carry)
    made = sender(sqlite_store, courier)
    await made.start()
    await send(made, sqlite_store, message("one", process="p"))
    await settling.wait()
    await made.wait_recorded("another process")
    waiting = asyncio.create_task(made.wait_recorded("p"))
    await asyncio.sleep(0)
    assert not waiting.done()
    settle.set()
    await waiting
    assert courier.settled == [("one", DeliveryResult.DELIVERED)]
    await made.wait_recorded("p")
    await made.stop()


async def test_what_cannot_be_recorded_is_an_attempt_like_others(sqlite_store: Store) -> None:
    attempts: list[int] = []

    async def carry(row: Outbox) -> DeliveryOutcome:
        attempts.append(row.attempts)
        return DELIVERED

    class Clashing(Script):
        def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Any) -> list[Outbox]:
            if len(attempts) < 3:
                raise AlreadyExists("the same was stored by somebody else a moment ago")
            return super().settle(tx, row, outcome, held)

    courier = Clashing(carry)
    made = sender(sqlite_store, courier, lease=600.0)
    await made.start()
    await send(made, sqlite_store, message("one"))
    await courier.until(1)
    await made.stop()
    assert (attempts, courier.settled) == ([0, 1, 2], [("one", DeliveryResult.DELIVERED)])


async def test_a_message_that_cannot_be_delivered_in_time_is_given_up(sqlite_store: Store) -> None:
    async def carry(_: Outbox) -> DeliveryOutcome:
        return DeliveryOutcome(DeliveryResult.AGAIN, "nobody there")

    courier = Script(carry)
    made = sender(sqlite_store, courier, retry_deadline=0.1)
    await made.start()
    await send(made, sqlite_store, message("one"))
    await courier.until(1)
    await made.stop()
    assert courier.settled == [("one", DeliveryResult.EXPIRED)]


async def test_a_counterparty_that_hangs_at_many_addresses_does_not_keep_others_from_being_served(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is handed over nor what is found in the outbox; it has more there than may wait here."""
    monkeypatch.setattr(delivery_classes, "_WAITING_MAX", 150)
    hanging = asyncio.Event()

    async def carry(row: Outbox) -> DeliveryOutcome:
        if row.audience == "did:web:slow":
            await hanging.wait()
        return DELIVERED

    courier = Script(carry)
    made = sender(sqlite_store, courier)
    await made.start()
    slow = [message(f"s{i}", f"s{i}", f"http://slow{i}", to="did:web:slow") for i in range(100)]
    await send(made, sqlite_store, *slow)
    await send(made, sqlite_store, *(message(f"f{i}", f"f{i}", to="did:web:fast") for i in range(10)))
    dead = sender(sqlite_store, courier, lease=0.0)
    left = [message(f"l{i}", f"l{i}", to="did:web:fast") for i in range(10)]
    await sqlite_store.write(lambda tx: [dead.queue(tx, row) for row in left])
    made.wake()
    await courier.until(20)
    assert {path[0] for path, _ in courier.settled} == {"f", "l"}
    assert len([path for path in courier.carried if path[0] == "s"]) == 32
    hanging.set()
    await courier.until(20 + 75)
    await made.stop()
    assert len(courier.carried) == len(set(courier.carried)), "nothing that waits here is taken up twice"


@pytest.mark.parametrize("hosts", [1, 400])
async def test_strangers_that_hang_keep_nobody_waiting_whom_we_know(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, hosts: int
) -> None:
    """Identifiers cost nothing. What is known is a member, or whom we ask; a newcomer waits only where hosts abound."""
    monkeypatch.setattr(delivery_classes, "_WAITING_MAX", 100)
    named: list[int] = []

    async def carry(row: Outbox) -> DeliveryOutcome:
        if row.audience.startswith("did:web:evil"):
            await asyncio.Event().wait()
        return DELIVERED

    courier = Script(carry)
    made = sender(sqlite_store, courier, is_member="did:web:member".__eq__)
    look = made._circles.full
    monkeypatch.setattr(made._circles, "full", lambda: named.append(len((full := look()).names)) or full)
    await made.start()
    evil = [message(f"e{i}", f"e{i}", f"http://evil{i % hosts}:{i}", to=f"did:web:evil:{i}") for i in range(400)]
    dead = sender(sqlite_store, courier, lease=0.0, is_member="did:web:member".__eq__)
    await send(made, sqlite_store, *evil[:200])
    left, asked = message("left", "l", to="did:web:member"), message("asked", "a", to="did:web:partner")
    asked.message = {"@type": "ContractRequestMessage"}
    more = [left, asked] if hosts > 1 else [left, asked, message("new", "n", "http://new", to="did:web:new")]
    await sqlite_store.write(lambda tx: [dead.queue(tx, row) for row in (*evil[200:], *more)])
    made.wake()
    await send(made, sqlite_store, message("one", "m", to="did:web:member"))
    await courier.until(len(more) + 1)
    assert len([path for path in courier.carried if path[0] == "e"]) == (16 if hosts == 1 else 64)
    assert (len(made._here) <= 100 + len(more) + 1, max(named) <= 25) == (True, True)
    await made.stop()


async def test_lasting_deliveries_leave_the_places_of_the_others_alone(sqlite_store: Store) -> None:
    async def carry(row: Outbox) -> DeliveryOutcome:
        if row.kind == "push":
            await asyncio.Event().wait()
        return DELIVERED

    courier = Script(carry)
    made = sender(sqlite_store, courier)
    made.register("push", courier, lasting=True)
    await made.start()
    for i in range(40):
        pushed = message(f"p{i}", f"p{i}")
        pushed.kind = "push"
        await send(made, sqlite_store, pushed)
    await send(made, sqlite_store, message("one", "m"))
    await courier.until(1)
    await made.stop()
    assert courier.settled == [("one", DeliveryResult.DELIVERED)]


@pytest.mark.parametrize("known", [True, False], ids=["members", "others"])
async def test_a_counterparty_is_sent_no_more_lasting_deliveries_at_once_than_it_takes(
    sqlite_store: Store, known: bool
) -> None:
    """Those that wait are not begun; another counterparty of the same host has places of its own."""
    under_way: dict[str, int] = {"did:web:one": 0, "did:web:two": 0}
    most, takes, all_begun = dict(under_way), dict.fromkeys(under_way, push_receiver._EACH), asyncio.Event()

    async def carry(row: Outbox) -> DeliveryOutcome:
        under_way[row.audience] += 1
        most[row.audience] = max(most[row.audience], under_way[row.audience])
        if most == takes:
            all_begun.set()
        await all_begun.wait()
        await asyncio.sleep(0.01)
        under_way[row.audience] -= 1
        return DELIVERED

    courier = Script(carry)
    made = sender(sqlite_store, courier, is_member=lambda _: known)
    made.register("test", courier, lasting=True)
    await made.start()
    await send(made, sqlite_store, *(message(f"{to}{i}", f"{to}{i}", to=to) for to in most for i in range(20)))
    await courier.until(40)
    await made.stop()
    assert most == takes


class _Resting:
    """The module `asyncio`, with a note of who sleeps."""

    def __init__(self) -> None:
        self.rests = 0

    async def sleep(self, seconds: float) -> None:
        self.rests += 1
        await asyncio.sleep(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


async def reached(there: Callable[[], bool]) -> None:
    """Wait, where the loop's own clock stands."""
    ends = time.monotonic() + 60
    while not there():
        assert time.monotonic() < ends
        await asyncio.sleep(0)


async def test_a_delivery_that_takes_longer_than_its_lease_is_not_done_twice(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, resting = 30.0, _Resting()

    async def carry(_: Outbox) -> DeliveryOutcome:
        """Takes twice its lease; another looks for what is left behind whenever it was due to be renewed."""
        for number in range(1, 7):
            await reached(lambda number=number: resting.rests >= number)  # type: ignore[misc]  # bound
            await second._take_up()
            await clock.go_on(lease / 3)
        return DELIVERED

    courier = Script(carry)
    first, second = (sender(sqlite_store, courier, lease=lease) for _ in range(2))
    with hands(stands=True) as clock:
        for module in ("outbox.sender", "store.engine"):
            monkeypatch.setattr(f"connector.{module}.time", SimpleNamespace(time=clock, monotonic=clock))
        monkeypatch.setattr("connector.outbox.sender.asyncio", resting)
        await first.start()
        await second.start()
        await send(first, sqlite_store, message("long"))
        await reached(lambda: bool(courier.settled))
        await first.stop()
        await second.stop()
    assert courier.carried == ["long"]


@pytest.mark.parametrize("ahead", [-40.0, 40.0])
async def test_processes_whose_clocks_differ_do_not_take_each_others(
    store: Store, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """On one database, by whose clock they go; an SQLite file is one process's."""
    if store.is_sqlite:
        return
    carried, end = asyncio.Event(), asyncio.Event()

    async def carry(_: Outbox) -> DeliveryOutcome:
        carried.set()
        await end.wait()
        return DELIVERED

    first, second = (sender(store, courier, lease=20.0) for courier in (Script(carry), Script(carry)))
    await first.start()
    await send(first, store, message("one"))
    await carried.wait()
    with monkeypatch.context() as other:
        for module in ("outbox.sender", "store.engine"):
            clock = SimpleNamespace(time=lambda: time.time() + ahead, monotonic=time.monotonic)
            other.setattr(f"connector.{module}.time", clock)
        assert await second._take_up() > 0
        assert await store.read(lambda tx: tx.outbox.lock_leased(1, owner=first.owner)) is not None
        late = await store.write(lambda tx: second.queue(tx, message("two", process="q")))
        assert await store.read(lambda tx: 10 < late.lease_until - tx.outbox.read_clock() < 30)
    end.set()
    await first.stop()


async def test_a_delivery_whose_lease_is_lost_goes_no_further(sqlite_store: Store) -> None:
    ended = asyncio.Event()

    async def never(_: Outbox) -> DeliveryOutcome:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return DELIVERED

    courier = Script(never)
    made = sender(sqlite_store, courier, lease=0.3)
    await made.start()
    await send(made, sqlite_store, message("one"))
    async with asyncio.timeout(60):
        while not courier.carried:
            await asyncio.sleep(0.002)
        await sqlite_store.write(lambda tx: tx.outbox.claim(owner="other", now=tx.now + 60, lease=600.0, limit=1))
        await ended.wait()
    await made.stop()
    assert courier.settled == []


async def test_stopping_gives_back_what_is_under_way(sqlite_store: Store) -> None:
    async def never(_: Outbox) -> DeliveryOutcome:
        await asyncio.Event().wait()
        return DELIVERED

    courier = Script(never)
    made = sender(sqlite_store, courier)
    await made.start()
    await send(made, sqlite_store, message("one"))
    while not courier.carried:
        await asyncio.sleep(0.002)
    await made.stop()
    await send(made, sqlite_store, message("two"))
    claimed = await sqlite_store.write(
        lambda tx: [row.path for row in tx.outbox.claim(owner="other", now=tx.now, lease=1.0, limit=10)]
    )
    assert claimed == ["one"], "the second one waits for the first of its process"


async def test_a_configured_delay_comes_before_every_message(sqlite_store: Store) -> None:
    async def carry(_: Outbox) -> DeliveryOutcome:
        return DELIVERED

    courier = Script(carry)
    made = sender(sqlite_store, courier, send_delay=0.15)
    await made.start()
    loop = asyncio.get_running_loop()
    start = loop.time()
    await send(made, sqlite_store, message("one"))
    await courier.until(1)
    await made.stop()
    assert loop.time() - start >= 0.15


async def test_what_was_put_off_by_a_clock_that_is_set_back_is_delivered_all_the_same(sqlite_store: Store) -> None:
    """It was due when the wrong clock said, a year later perhaps, and its process could send nothing else."""

    def put_off(tx: Transaction) -> None:
        row = message("one")
        row.circle, row.host, row.lease_owner, row.lease_until = "strangers", "peer", "", 0.0
        row.due_at = row.created_at = tx.now + 365 * 86_400
        tx.outbox.send(row)

    async def carry(_: Outbox) -> DeliveryOutcome:
        return DELIVERED

    await sqlite_store.write(put_off)
    courier = Script(carry)
    made = sender(sqlite_store, courier)
    await made.start()
    async with asyncio.timeout(60):
        await courier.until(1)
    await made.stop()


async def test_old_notes_of_messages_taken_in_are_forgotten(tmp_path: Path, sqlite_store: Store) -> None:
    def note(tx: Transaction) -> None:
        tx.outbox.record_received(sender="a", message_id="old", digest="", now=tx.now - 40 * 86_400)
        tx.outbox.record_received(sender="a", message_id="new", digest="", now=tx.now)

    await sqlite_store.write(note)

    async def carry(_: Outbox) -> DeliveryOutcome:
        return DELIVERED

    made = sender(sqlite_store, Script(carry))
    await made.start()
    async with asyncio.timeout(60):
        while await sqlite_store.read(lambda tx: tx.outbox.find_received("a", "old")):
            await asyncio.sleep(0.005)
    await made.stop()
    assert await sqlite_store.read(lambda tx: tx.outbox.find_received("a", "new")) is not None


@pytest.mark.parametrize(("instance", "at_once"), [("first", True), ("second", False)])
async def test_an_instance_that_comes_back_takes_up_what_it_had_leased(
    store: Store, instance: str, at_once: bool
) -> None:
    """Its earlier process is dead. What another instance of the connector has leased stays that one's."""

    async def carry(_: Outbox) -> DeliveryOutcome:
        return DELIVERED

    dead = sender(store, Script(carry), instance="first", lease=600.0)
    await store.write(lambda tx: dead.queue(tx, message("left behind")))
    courier = Script(carry)
    back = sender(store, courier, instance=instance)
    await back.start()
    if at_once or store.is_sqlite:  # one process has an SQLite file for itself
        await courier.until(1)
    else:
        await asyncio.sleep(0.3)
    await back.stop()
    assert courier.carried == (["left behind"] if at_once or store.is_sqlite else [])


async def test_a_stop_that_meets_a_wake_ends_all_the_same(sqlite_store: Store) -> None:
    """The cancellation arrives in the very turn of the loop in which the worker is woken."""

    async def carry(_: Outbox) -> DeliveryOutcome:
        return DELIVERED

    for _ in range(20):
        made = sender(sqlite_store, Script(carry))
        await made.start()
        await asyncio.sleep(0.005)
        made.wake()
        async with asyncio.timeout(60):
            await made.stop()
