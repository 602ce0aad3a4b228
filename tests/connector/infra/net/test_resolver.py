"""Looking up names: what hangs takes the places of its own circle, and of nobody else."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from connector.errors import Unavailable
from connector.infra.net import resolver
from connector.infra.net.http_client import AddressGuard
from connector.infra.net.resolver import NameResolver
from tests.support.own_name import changed
from tests.support.waiting import until

SLOW = "slow.example"
THERE = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 443))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """A name server that says nothing of names under `slow.example` until it is let."""
    answers = Event()

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host.endswith(SLOW):
            answers.wait()
        return [THERE]

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=look_up))
    yield answers
    answers.set()
    while _threads():
        time.sleep(0.01)


def _threads() -> int:
    return sum(thread.name == "name look-up" for thread in threading.enumerate())


async def test_names_that_hang_keep_nobody_of_another_circle_waiting(
    server: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_SECONDS", 2.0)
    names, parties = NameResolver(), [f"{host}.example" for host in range(resolver._PLACES // resolver._EACH)]
    hanging = []
    for who in parties:
        with resolver.use_group("strangers", who):
            hanging += [asyncio.create_task(names.addresses(f"{n}.{who}.{SLOW}", 443)) for n in range(resolver._EACH)]
    await until(lambda: _threads() == resolver._PLACES)
    began = time.monotonic()
    with resolver.use_group("strangers", "one.more.example"), pytest.raises(Unavailable, match="too many names"):
        await names.addresses("fast.example", 443)
    assert await names.addresses("fast.example", 443) == ["203.0.113.9"]
    with resolver.use_group("known", "did:web:member.example"):
        assert await names.addresses("fast.example", 443) == ["203.0.113.9"]
    assert time.monotonic() - began < 5
    server.set()
    await asyncio.gather(*hanging, return_exceptions=True)
    await until(lambda: not _threads())
    with resolver.use_group("strangers", "one.more.example"):
        assert await names.addresses("fast.example", 443) == ["203.0.113.9"]


async def test_one_party_has_a_part_of_its_circle_and_waits_for_more(server: Event) -> None:
    names = NameResolver()
    with resolver.use_group("strangers", "a.example"):
        hanging = [asyncio.create_task(names.addresses(f"{n}.{SLOW}", 443)) for n in range(resolver._EACH + 1)]
        await until(lambda: _threads() == resolver._EACH)
    with resolver.use_group("strangers", "b.example"):
        assert await names.addresses("fast.example", 443)
    await until(lambda: _threads() == resolver._EACH)
    server.set()
    assert await asyncio.gather(*hanging) == [["203.0.113.9"]] * len(hanging)


async def test_who_asks_for_the_same_name_waits_for_the_same_answer(server: Event) -> None:
    names = NameResolver()
    with resolver.use_group("strangers", "a.example"):
        asking = [asyncio.create_task(names.addresses(SLOW, 443)) for _ in range(3 * resolver._PLACES)]
    await until(lambda: _threads() > 0)
    assert _threads() == 1
    asking.pop(0).cancel()  # the first leaves, and the others have their answer all the same
    server.set()
    assert await asyncio.gather(*asking) == [["203.0.113.9"]] * len(asking)


async def test_beside_a_look_up_that_hangs_another_is_made(server: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_SECONDS", 0.05)
    names = NameResolver()
    for _ in range(2):
        with pytest.raises(Unavailable, match="in time"):
            await names.addresses(SLOW, 443)
        await asyncio.sleep(resolver._SECONDS)  # it hangs for as long as that by now
    assert _threads() == 2


async def test_more_names_of_our_own_than_there_are_places_are_looked_up_in_turn() -> None:
    async with asyncio.TaskGroup() as group:
        names = NameResolver()
        for number in range(4 * resolver._PLACES):
            group.create_task(names.addresses(f"127.0.0.{number + 1}", 443))


async def test_who_leaves_leaves_the_place_taken_until_the_look_up_has_ended(
    server: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_SECONDS", 0.05)
    names = NameResolver()
    for number in range(resolver._EACH):
        with resolver.use_group("strangers", "a.example"), pytest.raises(Unavailable, match="in time"):
            await names.addresses(f"{number}.{SLOW}", 443)
    with resolver.use_group("strangers", "a.example"), pytest.raises(Unavailable, match="too many names"):
        await names.addresses("fast.example", 443)
    server.set()
    await until(lambda: not _threads())
    monkeypatch.setattr(resolver, "_SECONDS", 60.0)
    with resolver.use_group("strangers", "a.example"):
        assert await names.addresses("fast.example", 443)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
async def test_the_machine_resolves_as_it_always_does(host: str) -> None:
    assert await AddressGuard(allow=["127.0.0.0/8", "::1", "localhost"]).pin(host, 443, secure=True) in (
        "127.0.0.1",
        "::1",
    )


def test_a_look_up_that_hangs_does_not_keep_the_process_from_its_end() -> None:
    program = """
import asyncio, socket, time
from connector.infra.net import resolver
socket.getaddrinfo = lambda *_, **__: time.sleep(3600)
resolver._SECONDS = 0.1
try:
    asyncio.run(resolver.NameResolver().addresses("slow.example", 443))
except resolver.Unavailable:
    print("left")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "left\n"
