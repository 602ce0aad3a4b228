"""A borrowed object as a file: threads that seek and read between one another get the bytes that each sought."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from connector.datasets.object_cache import BLOCK
from connector.datasets.sources.source_files import FileRef
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import LOAN
from connector.engine.worker.read.object_channel import ObjectChannel
from connector.engine.worker.read.object_filesystem import Borrowed, _File

BODY = bytes(range(256)) * 64


class Memory:
    """An object whose bytes are in memory."""

    def read_into(self, number: int, start: int, target: memoryview) -> int:
        piece = BODY[start : start + len(target)]
        target[: len(piece)] = piece
        return len(piece)


def opened() -> _File:
    return _File(cast(Borrowed, Memory()), 0, len(BODY))


def test_reads_go_on_where_the_last_ended_and_stop_at_the_end() -> None:
    file = opened()
    assert (file.read(3), file.read(2), file.tell()) == (BODY[:3], BODY[3:5], 5)
    assert (file.seek(-2, 2), file.read(9), file.read(9)) == (len(BODY) - 2, BODY[-2:], b"")
    assert file.seek(10) == 10
    assert file.seek(5, 1) == 15
    assert file.read() == BODY[15:]


def test_a_seek_of_another_thread_between_seek_and_read_changes_nothing() -> None:
    file, between = opened(), threading.Barrier(2)

    def ranged(start: int) -> bytes:
        file.seek(start)
        between.wait(timeout=60)  # both have sought, neither has read
        found = file.read(100)
        between.wait(timeout=60)
        return found

    with ThreadPoolExecutor(2) as threads:
        for first, second in ((0, 5_000), (7_777, 12), (300, 300)):
            found = list(threads.map(ranged, (first, second)))
            assert found == [BODY[first : first + 100], BODY[second : second + 100]]


def test_many_threads_read_ranges_of_one_file() -> None:
    file = opened()

    def ranged(start: int) -> Any:
        file.seek(start)
        return file.read(64) == BODY[start : start + 64]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ranged, [(7919 * n) % (len(BODY) - 64) for n in range(20_000)]))


def test_two_datasets_of_one_job_get_the_bytes_that_each_asked_for() -> None:
    """Each with a lock of its own, one took the other's blocks: they come in the order of the requests."""
    blocks = 20  # more than are held
    ref = FileRef("s3://b/o", 0, 0, blocks * BLOCK, 0, etag="e")
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours, ThreadPoolExecutor(3) as threads:
        threads.submit(_lend, theirs)
        desk = ObjectChannel(ours)
        both = [Borrowed(desk, relation, [ref]) for relation in (0, 1)]

        def read(one: Borrowed) -> set[int]:
            found, target = set(), bytearray(1)
            for number in range(2_000):
                one.read_into(0, number % blocks * BLOCK, memoryview(target))
                found.add(target[0])
            return found

        try:
            assert list(threads.map(read, both)) == [{0}, {1}]
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            for one in both:
                one.close()


def test_answers_that_nobody_took_are_nobodys() -> None:
    """A block that cannot be read left those behind it to whoever asked next, of another dataset perhaps."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours, ThreadPoolExecutor(1) as threads:
        threads.submit(_lend, theirs)
        ref = FileRef("s3://b/o", 0, 0, 3 * BLOCK, 0, etag="e")
        one, other = (Borrowed(desk, relation, [ref]) for desk in [ObjectChannel(ours)] for relation in (0, 1))
        target = bytearray(BLOCK + 1)  # of two blocks, whose files are shorter than that
        try:
            with pytest.raises(OSError, match="the object cannot be read"):
                one.read_into(0, 0, memoryview(target))
            with pytest.raises(OSError, match="the object cannot be read"):
                other.read_into(0, 0, memoryview(target)[:1])
            for found in (one, other):
                with pytest.raises(Coded) as raised:
                    found.check_unchanged()
                assert raised.value.code == "source_unreadable"
                found.close()
        finally:
            ours.shutdown(socket.SHUT_RDWR)


def _lend(desk: socket.socket) -> None:
    """Blocks that begin with the number of the relation."""
    files = [os.memfd_create(f"{relation}") for relation in (0, 1)]
    for relation, file in enumerate(files):
        os.write(file, bytes([relation]))
    while asked := desk.recv(LOAN.size):
        _, relation, _, _, count = LOAN.unpack(asked)
        for _ in range(count):
            socket.send_fds(desk, [b"b"], [files[relation]])
    for file in files:
        os.close(file)


@pytest.mark.parametrize("close", [lambda desk: desk.shutdown(socket.SHUT_RDWR), lambda desk: desk.close()])
def test_who_lends_no_more_has_ended_the_job(close: Callable[[socket.socket], None]) -> None:
    """Any other error left the job without an answer, and its process, with all who read in it, was taken for dead."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours:
        found = Borrowed(ObjectChannel(ours), 0, ())
        close(theirs)
        with pytest.raises(Coded) as raised:
            found.check_unchanged()
        assert raised.value.code == "cancelled"
