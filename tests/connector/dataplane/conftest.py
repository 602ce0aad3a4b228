"""What rests on a loop's own transports, and on what they do when they end, is tested on the product's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

# asyncio's `writelines` has no back-pressure in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 (CVE-2024-12254), and fails
# there where the client has just left.
_OURS = ("test_gather", "test_random_streams")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"loop": uvloop.new_event_loop if item.path.stem in _OURS else asyncio.SelectorEventLoop}
