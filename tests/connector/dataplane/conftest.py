"""These tests run on the event loop of the product: much of what is tested rests on the loop's own transports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

_LOOKING = ("test_gather_leaving", "test_prepared")  # into what uvloop has in C: clock and timers
_BOTH = ("test_flight_turns",)  # how a transport goes with what is written to its socket beside it


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.stem in _BOTH:
        return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
    # asyncio's own writes without back-pressure in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 (CVE-2024-12254).
    return {"loop": asyncio.SelectorEventLoop if item.path.stem in _LOOKING else uvloop.new_event_loop}
