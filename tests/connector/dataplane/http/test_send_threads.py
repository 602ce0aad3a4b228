"""Threads that send from a disk that hangs: a read waits for them for a while, and they keep what they use."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from connector.dataplane.http import send_threads
from connector.dataplane.http.send_threads import run_in_send_thread
from connector.errors import Unavailable
from tests.support.waiting import until

DEVICE = 77


@pytest.fixture
def over() -> Iterator[threading.Event]:
    found = threading.Event()
    yield found
    found.set()


async def test_those_who_wait_for_a_disk_that_hangs_are_refused_and_few_threads_are_lost(
    monkeypatch: pytest.MonkeyPatch, over: threading.Event
) -> None:
    monkeypatch.setattr(send_threads, "_SECONDS", 0.2)
    stopped: list[int] = []
    many = 3 * send_threads._SENDERS
    async with asyncio.timeout(20):
        found = await asyncio.gather(
            *(run_in_send_thread(over.wait, stop=lambda: stopped.append(1), device=DEVICE) for _ in range(many)),
            return_exceptions=True,
        )
    assert [one.code for one in found if isinstance(one, Unavailable)] == ["file_unavailable"] * many
    assert len(stopped) == many
    assert send_threads._executor_of(DEVICE)._work_queue.qsize() <= many  # each of those is cancelled
    assert len(send_threads._executor_of(DEVICE)._threads) == send_threads._SENDERS
    over.set()
    assert await run_in_send_thread(lambda: 7, stop=over.set, device=DEVICE) == 7


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_thread_that_is_lost_has_its_socket_until_it_ends(
    monkeypatch: pytest.MonkeyPatch, over: threading.Event, cancelled: bool
) -> None:
    monkeypatch.setattr(send_threads, "_SECONDS", 0.2)
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    with theirs, ours:
        sending = asyncio.ensure_future(run_in_send_thread(over.wait, stop=lambda: None, device=DEVICE, out=ours))
        if cancelled:
            await asyncio.sleep(0.05)
            sending.cancel()
        async with asyncio.timeout(20):
            with pytest.raises(Unavailable):
                await sending
        assert ours.fileno() == -1
    assert os.fstat(number)
    over.set()
    await until(lambda: not os.path.exists(f"/proc/self/fd/{number}"))
