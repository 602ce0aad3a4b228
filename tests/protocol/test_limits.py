"""What one counterparty may begin with us: over its limits it is told so, and nothing of it is stored."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector.dsp import agreement_terms, states
from connector.dsp.process_limits import ProcessLimits
from connector.dsp.states import CONSUMER, PROVIDER
from connector.events import RefusalsCounted, RequestRefused
from connector.infra.net import resolver
from connector.infra.net.http_client import Reply
from connector.store import Store, refusal_sampling
from policies.evaluation.evaluate import Facts
from tests.support import migrated
from tests.support.counterparty import CONTEXT, DATASET, OFFER_ID, USE, Counterparty, snapshot
from tests.support.own_name import changed
from tests.support.pair import Pair, pair, side

Begin = Callable[[Counterparty, str], Awaitable[Reply]]


async def request(peer: Counterparty, pid: str) -> Reply:
    return await peer.post("/negotiations/request", peer.request(pid))


async def offer(peer: Counterparty, pid: str, **more: Any) -> Reply:
    terms = {"@type": "Offer", "@id": OFFER_ID, "target": DATASET, **USE, **more}
    message = {"@context": CONTEXT, "@type": "ContractOfferMessage", "providerPid": pid}
    return await peer.post("/negotiations/offers", {**message, "offer": terms, "callbackAddress": peer.address})


async def transfer(peer: Counterparty, pid: str) -> Reply:
    """Under an agreement that is there already. Its negotiation is `manual`, so that no start leaves."""
    held = await peer.to.store.read(
        lambda tx: [one.id for one in tx.agreements.page() if one.consumer == peer.participant]
    )
    if not held:
        row = await peer.negotiation(role=PROVIDER, state=states.FINALIZED)
        held = [row.agreement_id]
    message = {"@context": CONTEXT, "@type": "TransferRequestMessage", "consumerPid": pid, "agreementId": held[0]}
    return await peer.post(
        "/transfers/request", {**message, "format": "HttpData-PULL", "callbackAddress": peer.address}
    )


BEGINNINGS = pytest.mark.parametrize(
    ("begin", "error", "role", "end"),
    [
        (request, "ContractNegotiationError", PROVIDER, states.NEGOTIATION_TERMINATION),
        (offer, "ContractNegotiationError", CONSUMER, states.NEGOTIATION_TERMINATION),
        (transfer, "TransferError", PROVIDER, states.TRANSFER_TERMINATION),
    ],
    ids=["request", "offer", "transfer"],
)
BOTH = pytest.mark.parametrize(
    ("limits", "code"),
    [(ProcessLimits(open=3, per_minute=600), "too_many_open"), (ProcessLimits(open=600, per_minute=3), "too_many_new")],
    ids=["open", "new"],
)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the database time stands: no place of a minute comes free again while a slow machine takes them."""
    now = time.time()
    clock = SimpleNamespace(time=lambda: now, sleep=time.sleep, monotonic=time.monotonic)
    monkeypatch.setattr("connector.store.engine.time", clock)


def pid() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


async def arranged(two: Pair) -> Counterparty:
    await two.north.publish(DATASET, offer=OFFER_ID, decide="manual")
    return Counterparty(two.north)


@pytest.mark.usefixtures("still")
@BEGINNINGS
@BOTH
async def test_over_the_limit_is_told_and_nothing_is_stored(
    tmp_path: Path, begin: Begin, error: str, role: str, end: str, limits: ProcessLimits, code: str
) -> None:
    async with pair(tmp_path, limits=limits) as two:
        peer = await arranged(two)
        assert [(await begin(peer, pid())).status for _ in range(3)] == [201] * 3
        before = await snapshot(two.north)
        replies = [await begin(peer, pid()) for _ in range(5)]
        assert await snapshot(two.north) == before
        said = [json.loads(reply.body) for reply in replies]
        assert {(reply.status, one["@type"], one["code"]) for reply, one in zip(replies, said, strict=True)} == {
            (429, error, code)
        }
        assert all(int(reply.headers["retry-after"]) > 0 for reply in replies)


@pytest.mark.parametrize("host", ["payroll.corp.internal", "nothere.corp.internal", "10.1.2.3"])
@BEGINNINGS
async def test_nobody_is_told_what_our_network_calls_by_which_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, begin: Begin, error: str, role: str, end: str
) -> None:
    inside = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.20.30.40", 443))]

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host.startswith("payroll"):
            return inside
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=look_up))
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        await begin(peer, pid())  # a transfer needs its agreement
        peer.host = host
        said = json.loads((reply := await begin(peer, pid())).body)
        assert (reply.status, said["@type"]) == (400, error)
        assert said["reason"] == [
            f"the address {peer.address!r} cannot be called from here; give a publicly reachable address"
        ]


async def test_a_strangers_names_that_hang_keep_no_partner_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host.endswith(".slow.example"):
            answers.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 80))]

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=look_up))
    async with pair(tmp_path) as two:
        partner = await arranged(two)
        await partner.negotiation(role=PROVIDER, state=states.FINALIZED)
        partner.host = "partner.example"
        strangers = [
            Counterparty(two.north, f"did:web:s{index // 8}.example", host=f"h{index}.slow.example")
            for index in range(40)
        ]
        asking = [asyncio.create_task(request(one, pid())) for one in strangers]
        try:
            done, _ = await asyncio.wait(asking, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result().status for task in done} == {503}
            async with asyncio.timeout(30):
                assert (await request(partner, pid())).status == 201
        finally:
            answers.set()
            await asyncio.gather(*asking)


@pytest.mark.usefixtures("still")
async def test_a_flood_of_what_is_refused_does_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is answered for what it is; the log has some of them, and how many more there were."""
    monkeypatch.setattr(refusal_sampling, "ACTOR_BURST", 3)
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        unknown = {"@context": CONTEXT, "@type": "TransferRequestMessage", "agreementId": "urn:agreement:none"}
        more = {"format": "HttpData-PULL", "callbackAddress": peer.address}
        statuses = [
            (await peer.post("/transfers/request", {**unknown, **more, "consumerPid": pid()})).status for _ in range(9)
        ]
        assert statuses == statuses[:1] * 9
        assert 400 <= statuses[0] < 429
        told = [event for event in two.north.events if isinstance(event, RequestRefused)]
        assert len(told) == 3
        await two.north.store.record_refusal_counts()
        (counted,) = (event for event in two.north.events if isinstance(event, RefusalsCounted))
        assert (counted.actor, counted.detail["codes"]) == (peer.participant, {told[0].code: 6})


@pytest.mark.usefixtures("still")
@BEGINNINGS
@BOTH
async def test_repeats_and_others_are_not_held_up(
    tmp_path: Path, begin: Begin, error: str, role: str, end: str, limits: ProcessLimits, code: str
) -> None:
    async with pair(tmp_path, limits=limits) as two:
        peer = await arranged(two)
        first = [(name, await begin(peer, name)) for name in (pid(), pid(), pid())]
        assert (await begin(peer, pid())).status == 429
        for name, reply in first:
            assert (await begin(peer, name)).body == reply.body
        other = Counterparty(two.north, participant="did:web:third.example")
        assert (await begin(other, pid())).status == 201


@BEGINNINGS
async def test_the_end_of_one_makes_room_for_one(tmp_path: Path, begin: Begin, error: str, role: str, end: str) -> None:
    async with pair(tmp_path, limits=ProcessLimits(open=2, per_minute=600)) as two:
        peer = await arranged(two)
        for _ in range(2):
            assert (await begin(peer, pid())).status == 201
        kind = "transfers" if begin is transfer else "negotiations"
        rows = await two.north.store.read(lambda tx: getattr(tx, kind).page(role=role))
        row = next(one for one in rows if one.state not in states.FINAL)
        ids = {"providerPid" if role == CONSUMER else "consumerPid": row.peer_pid}
        assert (await peer.say(end, row, **ids)).status == 200
        assert [(await begin(peer, pid())).status for _ in range(2)] == [201, 429]


def stranger(two: Pair, number: int, **known: str) -> Counterparty:
    made = Counterparty(two.north, participant=f"did:web:stranger{number}.example")
    facts = {f"ds:{name}": value for name, value in known.items()}
    two.north.facts[made.participant] = Facts.of({"ds:participant": made.participant, **facts}, source="register")
    return made


@pytest.mark.parametrize(("begin", "role"), [(request, PROVIDER), (offer, CONSUMER)], ids=["request", "offer"])
async def test_strangers_begin_so_much_between_them_and_leave_room_for_members_and_partners(
    tmp_path: Path, begin: Begin, role: str
) -> None:
    async with pair(tmp_path, limits=ProcessLimits(all_open=2)) as two:
        partner = await arranged(two)
        await partner.negotiation(role=role, state=states.FINALIZED)
        replies = [await begin(stranger(two, number, membership="none"), pid()) for number in range(4)]
        assert [reply.status for reply in replies] == [201, 201, 429, 429]
        assert json.loads(replies[-1].body)["code"] == "too_many_strangers"
        member = stranger(two, 9, membership="active")
        assert [(await begin(who, pid())).status for who in (member, partner)] == [201, 201]


@pytest.mark.usefixtures("still")
async def test_strangers_begin_so_many_a_minute_between_them_ended_or_not(tmp_path: Path) -> None:
    async with pair(tmp_path, limits=ProcessLimits(strangers_per_minute=2)) as two:
        known = await arranged(two)
        await known.negotiation(role=PROVIDER, state=states.FINALIZED)
        replies = []
        for number in range(3):
            who, theirs = stranger(two, number, membership="none"), pid()
            replies.append(await request(who, theirs))
            if replies[-1].status == 201:
                row = await two.north.negotiation(json.loads(replies[-1].body)["providerPid"])
                assert (await who.say(states.NEGOTIATION_TERMINATION, row)).status == 200
        assert [reply.status for reply in replies] == [201, 201, 429]
        assert json.loads(replies[-1].body)["code"] == "too_many_strangers"
        member = stranger(two, 9, membership="active")
        assert [(await request(who, pid())).status for who in (member, known)] == [201, 201]


@pytest.mark.parametrize(("length", "kept"), [(100, True), (5_000, False)])
async def test_little_is_kept_of_what_a_stranger_asked_and_ended(tmp_path: Path, length: int, kept: bool) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        among = {"leftOperand": "purpose", "operator": "eq", "rightOperand": "urn:" + "x" * length}
        asked = {"@type": "Offer", "@id": OFFER_ID, "target": DATASET}
        terms = {**asked, "permission": [{"action": "use", "constraint": [among]}]}
        reply = await peer.post("/negotiations/request", peer.request(pid(), offer=terms))
        row = await two.north.negotiation(json.loads(reply.body)["providerPid"])
        assert "permission" in row.offer
        assert (await peer.say(states.NEGOTIATION_TERMINATION, row)).status == 200
        ended = await two.north.negotiation(row.id)
        assert (ended.offer == row.offer) if kept else (ended.offer == asked)


async def test_where_there_is_a_register_only_members_and_partners_make_offers_unasked(tmp_path: Path) -> None:
    async with pair(tmp_path, limits=ProcessLimits(members_offer=True)) as two:
        asked = await arranged(two)
        await asked.negotiation(role=PROVIDER, state=states.FINALIZED)
        known = {number: {"membership": status} for number, status in enumerate(("none", "suspended", "active"))}
        peers = [asked, *(stranger(two, number, **facts) for number, facts in known.items())]
        replies = [await offer(peer, pid()) for peer in peers]
        assert [(reply.status, json.loads(reply.body).get("code")) for reply in replies] == [
            (503, "busy"),  # nothing is known of it, so perhaps it is one
            (400, "not_a_member"),
            (400, "not_a_member"),
            (201, None),
        ]
        await asked.negotiation(role=CONSUMER, state=states.REQUESTED)
        assert [(await offer(asked, pid())).status, (await request(peers[1], pid())).status] == [201, 201]


async def test_an_offer_of_others_may_not_be_much_larger_than_what_it_is_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement_terms, "_OFFER_MAX", 600)
    names = [f"did:web:{number:03}.example" for number in range(100)]
    among = {"leftOperand": "ds:participant", "operator": "isAnyOf", "rightOperand": [*names, "did:web:other.example"]}
    large = {"permission": [{"action": "use", "constraint": [among]}]}
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide="manual", policy=large)
        peer = Counterparty(two.north)
        asked = {"@type": "Offer", "@id": OFFER_ID, "target": DATASET, **large}
        assert (await peer.post("/negotiations/request", peer.request(pid(), offer=asked))).status == 201
        larger = {**asked, "prohibition": [{"action": "use", "constraint": [among]}]}
        row = await peer.negotiation(role=PROVIDER, state=states.OFFERED)
        replies = [
            await offer(peer, pid(), **large),
            await peer.post("/negotiations/request", peer.request(pid(), offer=larger)),
            await peer.say(states.REQUEST, row, offer=asked),
        ]
        assert [(one.status, json.loads(one.body)["code"]) for one in replies] == [(400, "offer_too_large")] * 3


async def test_one_process_changes_so_often_and_can_always_be_ended(tmp_path: Path) -> None:
    async with pair(tmp_path, limits=ProcessLimits(changes=4)) as two:
        peer = Counterparty(two.north)
        row, other = [await peer.transfer(role=CONSUMER, state=states.STARTED) for _ in range(2)]
        there_and_back = [states.SUSPENSION, states.START] * 3
        replies = [await peer.say(step, row) for step in there_and_back]
        assert [reply.status for reply in replies] == [200] * 4 + [429] + [400]  # it was not suspended a third time
        assert json.loads(replies[4].body)["code"] == "too_many_changes"
        assert 0 < int(replies[4].headers["retry-after"]) <= 15
        assert (await peer.say(states.SUSPENSION, other)).status == 200
        assert (await peer.say(states.TRANSFER_TERMINATION, row)).status == 200


async def test_refusals_beyond_a_limit_do_not_fill_the_log_and_are_counted(tmp_path: Path) -> None:
    async with pair(tmp_path, limits=ProcessLimits(open=1, per_minute=600)) as two:
        peer = await arranged(two)
        replies = await asyncio.gather(*(request(peer, pid()) for _ in range(20)))
        other = Counterparty(two.north, participant="did:web:third.example")
        replies += await asyncio.gather(*(request(other, pid()) for _ in range(20)))
        refused = Counter(event.actor for event in two.north.events if event.kind == "RequestRefused")
        assert refused == {peer.participant: 1, other.participant: 1}
        await two.north.store.record_refusal_counts()
        counted = [event.detail["codes"] for event in two.north.events if isinstance(event, RefusalsCounted)]
        assert sum(codes["too_many_open"] for codes in counted) == sum(reply.status == 429 for reply in replies) - 2


async def test_what_is_refused_for_now_is_asked_again(tmp_path: Path) -> None:
    """A consumer like ours takes 429 as what it is: its request waits in the outbox, and gets through later."""
    async with pair(tmp_path, limits=ProcessLimits(open=1, per_minute=600)) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide="manual")
        first, second = await two.ask(OFFER_ID), await two.ask(OFFER_ID)
        async with asyncio.timeout(60):
            while True:
                rows = {row.id: row.state for row in await two.south.store.read(lambda tx: tx.negotiations.page())}
                if sorted(rows.values()) == ["", "REQUESTED"]:
                    break
                await asyncio.sleep(0.005)
        through = first.id if rows[first.id] else second.id
        await two.south.negotiations.command(through, "terminate", by="test")
        waiting = ({first.id, second.id} - {through}).pop()
        async with asyncio.timeout(60):
            while (await two.south.negotiation(waiting)).state != "REQUESTED":
                await asyncio.sleep(0.005)


@pytest.mark.usefixtures("still")
@BOTH
@BEGINNINGS
async def test_many_at_once_over_every_instance_get_exactly_what_is_allowed(
    tmp_path: Path,
    urls: tuple[str, str],
    begin: Begin,
    error: str,
    role: str,
    end: str,
    limits: ProcessLimits,
    code: str,
) -> None:
    async with pair(tmp_path, urls=urls, limits=limits) as two:
        peer = await arranged(two)
        instances = [peer]
        if not two.north.store.is_sqlite:  # an SQLite file belongs to one process
            second = side("north", two.north.host, two.cable, urls[0], limits=limits)
            instances.append(Counterparty(second))
        if begin is transfer:  # the agreement is there before
            await peer.negotiation(role=PROVIDER, state=states.FINALIZED)
        replies = await asyncio.gather(*(begin(instances[i % len(instances)], pid()) for i in range(24)))
        assert Counter(reply.status for reply in replies) == {201: 3, 429: 21}
        for one in instances[1:]:
            one.to.store.close()


async def test_a_clock_that_is_set_back_keeps_nobody_out(tmp_path: Path) -> None:
    store = Store(migrated.sqlite(tmp_path / "store.db"), pool_size=1)

    async def ask(at: float) -> float:
        return await store.write(
            lambda tx: tx.process_counters.take("them", kind="transfer", step=30.0, most=60.0, now=at)
        )

    try:
        assert [await ask(90_000.0) == 0 for _ in range(3)] == [True, True, False]
        assert [await ask(80_000.0) == 0 for _ in range(3)] == [True, True, False]
    finally:
        store.close()


STEPS = st.lists(st.floats(0, 30), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(per_minute=st.integers(1, 20), pauses=STEPS)
def test_any_minute_holds_what_is_allowed_at_once_and_what_a_minute_adds(
    per_minute: int, pauses: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the asking is spread: never more in a span of time than the burst and what that span refills, and
    whoever waits as long as told is let through."""
    store = Store(migrated.sqlite(tmp_path_factory.mktemp("rate") / "store.db"), pool_size=1)
    step, now, admitted = 60 / per_minute, 1_000.0, []

    def ask(at: float) -> float:
        return asyncio.run(
            store.write(lambda tx: tx.process_counters.take("them", kind="negotiation", step=step, most=60.0, now=at))
        )

    try:
        for pause in pauses:
            now += pause
            wait = ask(now)
            if wait == 0:
                admitted.append(now)
            else:
                now += wait + 1e-6
                assert ask(now) == 0
                admitted.append(now)
    finally:
        store.close()
    for i, start in enumerate(admitted):
        for count, ends in enumerate(admitted[i:], 1):
            assert count <= per_minute + (ends - start) / step + 1e-3
