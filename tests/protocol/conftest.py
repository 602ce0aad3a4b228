"""What the protocol's suites share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import DATABASES
from tests.support import migrated


@pytest.fixture(params=DATABASES)
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two migrated databases of each kind."""
    if request.param == "sqlite":
        yield migrated.sqlite(tmp_path / "a.db"), migrated.sqlite(tmp_path / "b.db")
    else:
        cluster = request.getfixturevalue("postgres_cluster")
        with ExitStack() as stack:
            a, b = (stack.enter_context(migrated.postgresql(cluster)) for _ in range(2))
            yield a, b
