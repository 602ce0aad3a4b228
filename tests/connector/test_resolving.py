"""Looking up names: what hangs takes the places of its own circle, and of nobody else."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from connector import resolving
from connector.errors import Busy
from connector.net import Guard
from connector.resolving import Names
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

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield answers
    answers.set()


async def test_names_that_hang_keep_nobody_of_another_circle_waiting(server: Event) -> None:
    names, parties = Names(), [f"{host}.example" for host in range(resolving._PLACES // resolving._EACH)]
    hanging = []
    for who in parties:
        with resolving.within("strangers", who):
            hanging += [asyncio.create_task(names.addresses(SLOW, 443)) for _ in range(resolving._EACH)]
    await until(lambda: names._taken["strangers", ""] == resolving._PLACES)
    began = time.monotonic()
    with resolving.within("strangers", "one.more.example"), pytest.raises(Busy, match="too many names"):
        await names.addresses("fast.example", 443)
    assert await names.addresses("fast.example", 443) == ["203.0.113.9"]
    with resolving.within("known", "did:web:member.example"):
        assert await names.addresses("fast.example", 443) == ["203.0.113.9"]
    assert time.monotonic() - began < 5
    server.set()
    assert await asyncio.gather(*hanging) == [["203.0.113.9"]] * resolving._PLACES
    assert not names._taken


async def test_one_party_has_a_part_of_its_circle(server: Event) -> None:
    names = Names()
    with resolving.within("strangers", "a.example"):
        hanging = [asyncio.create_task(names.addresses(SLOW, 443)) for _ in range(resolving._EACH)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await names.addresses(SLOW, 443)
    with resolving.within("strangers", "b.example"):
        assert await names.addresses("fast.example", 443)
    server.set()
    await asyncio.gather(*hanging)


async def test_who_leaves_leaves_the_place_taken_until_the_look_up_has_ended(
    server: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "_SECONDS", 0.05)
    names = Names()
    with pytest.raises(Busy, match="in time"):
        await names.addresses(SLOW, 443)
    assert names._taken
    server.set()
    await until(lambda: not names._taken)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
async def test_the_machine_resolves_as_it_always_does(host: str) -> None:
    assert await Guard(allow=["127.0.0.0/8", "::1", "localhost"]).pin(host, 443, secure=True) in ("127.0.0.1", "::1")


def test_a_look_up_that_hangs_does_not_keep_the_process_from_its_end() -> None:
    program = """
import asyncio, socket, time
from connector import resolving
socket.getaddrinfo = lambda *_, **__: time.sleep(3600)
resolving._SECONDS = 0.1
try:
    asyncio.run(resolving.Names().addresses("slow.example", 443))
except resolving.Busy:
    print("left")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "left\n"
