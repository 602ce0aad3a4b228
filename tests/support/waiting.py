"""Waiting for what another process will do, without a guess of how long it takes."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest


def eventually(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `look` finds, as soon as it is true."""
    ends = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)
    return found


async def until(look: Callable[[], Any]) -> None:
    """The same where the other side is another task."""
    async with asyncio.timeout(60):
        while not look():
            await asyncio.sleep(0.01)


def removed_by(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that remove folders from now on: while the loop's does, everybody waits."""
    found: list[threading.Thread] = []
    remove: Any = shutil.rmtree

    def noted(*given: Any, **named: Any) -> None:
        found.append(threading.current_thread())
        remove(*given, **named)

    monkeypatch.setattr(shutil, "rmtree", noted)
    return found
