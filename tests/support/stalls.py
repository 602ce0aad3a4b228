"""For tests about real seconds: where the machine stood still meanwhile, what came of them says nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar

import pytest

_EVERY = 0.01
_STALL = 0.1  # seconds that nobody gets to run: as long as what such tests wait for
_TRIES = 10

Test = TypeVar("Test", bound=Callable[..., Any])


def in_real_time(test: Test) -> Test:
    """The test, tried again where it has failed while this process did not get to run; else it has failed."""

    @wraps(test)
    def plain(*given: Any, **named: Any) -> None:
        for _ in range(_TRIES):
            with stalled() as told:
                try:
                    return test(*given, **named)
                except (Exception, pytest.fail.Exception):
                    if not told():
                        raise
        return test(*given, **named)

    @wraps(test)
    async def waiting(*given: Any, **named: Any) -> None:
        for _ in range(_TRIES):
            with stalled() as told:
                try:
                    return await test(*given, **named)
                except (Exception, pytest.fail.Exception):
                    if not told():
                        raise
        return await test(*given, **named)

    made: Any = waiting if iscoroutinefunction(test) else plain
    return made  # type: ignore[no-any-return]  # of the same kind


@contextmanager
def stalled() -> Iterator[Callable[[], bool]]:
    """Whether this process has stood still since the block began."""
    last, longest, over = time.monotonic(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal last, longest
        while not over.wait(_EVERY):
            now = time.monotonic()
            last, longest = now, max(longest, now - last)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(longest, time.monotonic() - last) > _STALL
    finally:
        over.set()
        thread.join()
