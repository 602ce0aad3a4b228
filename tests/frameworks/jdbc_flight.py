"""Arrow's own JDBC driver, as BI tools bring it, against a provider: `make test-jdbc` gets it and runs this."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import data, flying, provider

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def said(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    """What `Ask.java` was answered."""
    async with provider.running(tmp_path_factory.mktemp("provider")) as running, flying.flying(running) as front:
        asking = await asyncio.create_subprocess_exec(
            "java", "--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", os.environ["JDBC_DRIVER"],
            str(Path(__file__).with_name("Ask.java")), f"127.0.0.1:{front.port}",
            running.ticket(await running.agree()), '"clinic".numbers',
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, errors = await asyncio.wait_for(asking.communicate(), 120)
        assert asking.returncode == 0, errors.decode()[-2000:]
        yield dict(line.split("=", 1) for line in out.decode().splitlines())


ROWS = data.table()
SAID = {
    "alive": "true",
    "product": "Hanse",
    "refused": "[]",
    "schemas": "[clinic]",
    "tables": "[numbers]",
    "columns": f"[{', '.join(ROWS.schema.names)}]",
    "keys": "[]",
    "read": "[0, 1, 2]",
    "unsigned": "[255]",
    "whole": "7",
    "again": "[5, 50]",
    "float": str(sum(x is not None and x >= 0.5 for x in ROWS["x"].to_pylist())),
    "text": str(sum(name in ("name-1", "name-2") for name in ROWS["name"].to_pylist())),
    "null": "0",
    "limit": "4",
}


@pytest.mark.parametrize("what", SAID)
async def test_a_bi_tool_is_answered(said: dict[str, str], what: str) -> None:
    assert said[what] == SAID[what]


async def test_a_refusal_comes_with_its_words(said: dict[str, str]) -> None:
    assert "dataset_unknown" in said["other"]
    assert "agreed:" in said["other"]
