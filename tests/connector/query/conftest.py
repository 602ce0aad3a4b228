from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from connector.query.job import Relation
from connector.query.pool import Pool
from tests.support import data


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def numbers(folder: Path) -> Relation:
    return data.relation("parquet", data.parquet(folder / "numbers.parquet"), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    """Confined as in production: to the directory of the test run's files."""
    roots = [tmp_path_factory.getbasetemp()]
    async with Pool(tmp_path_factory.mktemp("work"), size=2, warm=1, readable=[], writable=roots) as started:
        yield started
