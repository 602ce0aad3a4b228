"""These tests run on the event loop of the product: much of what is tested rests on the loop's own transports.

A file that needs another provider, or another front before it, has a fixture of its own with that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio
import uvloop

from connector.dataplane.flight.listener import FlightServer
from tests.support import flying, provider
from tests.support.provider import Provider

_LOOKING = ("test_leaving_readers", "test_stream_cache")  # into what uvloop has in C: clock and timers


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    # asyncio's own writes without back-pressure in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 (CVE-2024-12254).
    return {"loop": asyncio.SelectorEventLoop if item.path.stem in _LOOKING else uvloop.new_event_loop}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider")) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(running: Provider) -> AsyncIterator[FlightServer]:
    async with flying.flying(running) as started:
        yield started
