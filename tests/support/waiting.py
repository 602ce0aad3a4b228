"""Waiting for what another process will do, without a guess of how long it takes."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.support.own_name import changed


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


def removed_by(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[threading.Thread]:
    """The threads in which `module` removes folders from now on. In the loop's thread that would hold up every task."""
    found: list[threading.Thread] = []

    def noted(*given: Any, **named: Any) -> None:
        found.append(threading.current_thread())
        shutil.rmtree(*given, **named)

    monkeypatch.setattr(module, "shutil", changed(shutil, rmtree=noted))
    return found
