"""The connector's database, migrated and empty, as a copy of one: migrating takes longer than most tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from connector.store.migrate import upgrade
from tests.support.postgres import Cluster


def sqlite(path: Path) -> str:
    """The database in this file, made where there is none; its URL."""
    if not path.exists():
        path.write_bytes(_file())
    return f"sqlite:///{path}"


@contextmanager
def postgresql(cluster: Cluster) -> Iterator[str]:
    """A database of this server; its URL. Dropped afterwards."""
    with cluster.database(_template(cluster)) as url:
        yield url


@cache
def _file() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        upgrade(f"sqlite:///{directory}/empty.db")
        return (Path(directory) / "empty.db").read_bytes()


@cache
def _template(cluster: Cluster) -> str:
    upgrade(cluster.create("migrated"))
    return "migrated"
