"""What comes from an owner is kept within its bounds, in a file where it is much."""

from __future__ import annotations

import asyncio
import json
import os
import select
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from connector.errors import ConnectorError, Denied, Limited, PeerNonsense, Unavailable
from connector.federation import owner_client
from connector.federation.owner_client import Budget
from tests.support.waiting import until


class StreamedReply:
    """An owner's answer in pieces of 100,000 bytes."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def pieces(self) -> AsyncIterator[bytes]:
        for number in range(self.count):
            yield bytes([number]) * 100_000


async def spool(path: Path, *, count: int = 25, most: int = 10_000_000) -> tuple[int, bytes | None]:
    answer: Any = StreamedReply(count)
    return await owner_client._spool(answer, path, Budget(most))


@pytest.mark.parametrize("count", [0, 1, 10, 11, 25])
async def test_every_byte_is_kept_in_its_order_and_many_in_a_file(tmp_path: Path, count: int) -> None:
    size, held = await spool(tmp_path / "spool", count=count)
    came = (tmp_path / "spool").read_bytes() if held is None else held
    assert came == b"".join(bytes([number]) * 100_000 for number in range(count))
    assert size == len(came)
    assert (held is None) == (size > 2**20) == (tmp_path / "spool").exists()


async def test_a_full_disk_is_said_with_what_to_do() -> None:
    with pytest.raises(Unavailable, match="make room") as caught:
        await spool(Path("/dev/full"))
    assert caught.value.code == "disk_full"


async def test_more_than_the_budget_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Limited):
        await spool(tmp_path / "spool", most=1_500_000)
    assert (tmp_path / "spool").stat().st_size <= 1_500_000


class No:
    """An owner's refusal."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body

    async def read_up_to(self, most: int) -> bytes:
        return self.body[:most]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b"[" * 64_000], ids=["text", "list", "empty", "nested"])
@pytest.mark.parametrize(("status", "kind"), [(502, Unavailable), (403, PeerNonsense)])
async def test_a_refusal_that_is_no_problem_object_is_told_by_its_status(
    body: bytes, status: int, kind: type[ConnectorError]
) -> None:
    answer: Any = No(status, body)
    found = await owner_client.refusal(answer, "https://north.example/data/v1")
    assert type(found) is kind
    assert "north.example" in found.message


async def test_what_a_refusal_says_can_be_shown_and_stored() -> None:
    told = rb'{"code":"not_permitted","detail":"\ud800 no\u0000 \u001b[2J\u202e","rule":"\udfff"}'
    answer: Any = No(403, told)
    found = await owner_client.refusal(answer, "https://north.example/data/v1")
    assert isinstance(found, Denied)
    assert (found.code, found.rule) == ("not_permitted", r"\udfff")
    assert found.message == r"\ud800 no\u0000 \u001b[2J\u202e"
    assert json.dumps(found.problem(), ensure_ascii=False).encode()


async def test_a_code_that_is_no_code_is_shown_in_the_sentence_alone() -> None:
    answer: Any = No(403, rb'{"code":"not\ud800\u001b","detail":"no","rule":"x"}')
    found = await owner_client.refusal(answer, "https://north.example/data/v1")
    assert (type(found), found.code) == (PeerNonsense, "peer_nonsense")
    assert found.message == r"not\ud800\u001b: no"
    assert json.dumps(found.problem(), ensure_ascii=False).encode()


async def test_a_file_is_not_closed_under_the_thread_that_writes_to_it(tmp_path: Path) -> None:
    """As where a question ends while a disk is slow: the next file to be opened would have its number."""
    path = tmp_path / "spool"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def ends() -> int:
        return sum(os.path.samefile(path, f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd") if _is(one))

    spooling = asyncio.ensure_future(spool(path))
    await until(lambda: select.select([reader], [], [], 0)[0])  # it writes, and waits for its reader
    spooling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spooling
    assert ends() == 2

    def emptied() -> bool:
        with suppress(BlockingIOError):
            while os.read(reader, 2**20):
                pass
        return ends() == 1

    await until(emptied)
    os.close(reader)


def _is(descriptor: str) -> bool:
    """Whether it is still open: the listing itself had one."""
    return Path("/proc/self/fd", descriptor).exists()
