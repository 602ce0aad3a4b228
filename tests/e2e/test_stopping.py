"""A connector that is asked to stop ends, also where its database never answers again."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import DATABASES
from tests.support.ports import free_range
from tests.support.processes import Process

pytestmark = pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
SOON = "from connector import __main__, server; server._STOP_SECONDS = 3.0; __main__.commands(['serve'])"


def test_a_connector_ends_although_its_database_hangs(tmp_path: Path, postgres_cluster: Any) -> None:
    with postgres_cluster.database() as url:
        ports = free_range(2)
        one = Process("north", tmp_path, ports, ports + 1, url, program=("-c", SOON), forked=True)
        one.start()
        running = one.running
        assert running is not None
        try:
            with psycopg.connect(url.replace("+psycopg", "")) as other:
                other.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")  # by somebody who has gone to lunch
                running.send_signal(signal.SIGTERM)
                assert running.wait(30) == 1
        finally:
            if running.poll() is None:
                one.kill()
        assert "ended before all was closed" in (tmp_path / "log").read_text()
