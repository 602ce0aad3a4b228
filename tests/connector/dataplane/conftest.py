"""What rests on a loop's own transports is tested on the product's loop, and on no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    # asyncio's has no back-pressure for `writelines` in 3.12 before 3.12.9, in 3.13 before 3.13.2: CVE-2024-12254.
    return {"loop": uvloop.new_event_loop if item.path.stem == "test_gather" else asyncio.SelectorEventLoop}
