from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import objectstore, postgres
from tests.support.owner import Owner, owning

collect_ignore = [] if postgres.binaries() is not None else ["sources/test_postgres.py"]  # said loudly at the end


@pytest.fixture(scope="session")
def s3() -> Iterator[objectstore.Server]:
    with objectstore.server() as running:
        yield running


@pytest_asyncio.fixture
async def owner(tmp_path: Path) -> AsyncIterator[Owner]:
    async with owning(tmp_path, None) as running:
        yield running
