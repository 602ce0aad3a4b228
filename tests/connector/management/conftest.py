from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.connector.console.support import Console, opened


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Console]:
    """A management listener with an empty database."""
    async with opened(tmp_path) as made:
        yield made
