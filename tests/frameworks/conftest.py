from __future__ import annotations

from collections.abc import Iterator

import pytest
from hanse.client import Dataset

from tests.suites import loaders
from tests.support import served
from tests.support.served import Owner


@pytest.fixture(scope="session")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    with served.owner(tmp_path_factory.mktemp("owner"), rows=10) as running:
        yield running


@pytest.fixture(scope="session")
def training(owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve blocks of training data."""
    return owner.dataset(name="training", path=loaders.write(tmp_path_factory.mktemp("data") / "training"))
