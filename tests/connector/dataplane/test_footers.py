"""What a footer says of its rows decides on none of them: a policy holds also where whoever wrote the file lied."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pyarrow as pa
import pytest
import pytest_asyncio

from policies.model import Policy
from tests.support import footers, gate, provider
from tests.support.footers import NO_NULLS, as_said
from tests.support.gate import atom
from tests.support.provider import OPEN, Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGES = [5, 30, 79, 95] * 3
WORDS = ["aa", "mm", "nn", "zz"] * 3
SAID: dict[str, tuple[list[Any], dict[bytes, bytes]]] = {
    "whole numbers": (AGES, {as_said(5): as_said(30), as_said(95): as_said(79)}),
    "floats": ([float(one) for one in AGES], {as_said(5.0): as_said(30.0), as_said(95.0): as_said(79.0)}),
    "texts": (WORDS, {b"aa": b"mm", b"zz": b"nn"}),
    "nulls": ([30, None, 79, 40] * 3, NO_NULLS),
}


def rows(*bounds: tuple[str, Any]) -> Policy:
    return gate.agreement(*(atom("ds:row/x", operator, str(value)) for operator, value in bounds), action="odrl:use")


# The data, the policy, the consumer's own condition, and what may leave.
READS: dict[str, tuple[str, Policy, str, set[Any]]] = {
    "from and below": ("whole numbers", rows(("gteq", 30), ("lt", 80)), "", {30, 79}),
    "above": ("whole numbers", rows(("gt", 29), ("lteq", 79)), "", {30, 79}),
    "one number": ("whole numbers", rows(("isAnyOf", 30)), "", {30}),
    "another number": ("whole numbers", rows(("neq", 79), ("lteq", 79), ("gteq", 30)), "", {30}),
    "floats": ("floats", rows(("gteq", 30), ("lt", 80)), "", {30.0, 79.0}),
    "texts": ("texts", rows(("gteq", "mm"), ("lt", "oo")), "", {"mm", "nn"}),
    "what is null": ("nulls", rows(("gteq", 1)), "", {30, 79, 40}),
    "a condition": ("whole numbers", OPEN, "x >= 30 AND x < 80", {30, 79}),
    "a condition on nulls": ("nulls", OPEN, "x IS NOT NULL", {30, 79, 40}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("lies"), rows=100) as started:
        yield started


async def read(running: Provider, agreement: str, dataset: str, **parameters: str) -> list[Any]:
    headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=30) as session:
        answer = await session.get(f"/data/v1/datasets/{dataset}/rows", params=parameters)
    assert answer.status_code == 200, answer.text
    with pa.ipc.open_stream(answer.content) as reader:
        found: list[Any] = reader.read_all()["x"].to_pylist()
    return found


@pytest.mark.parametrize("blocks", [{}, {"blocks": "all"}], ids=["whole", "by blocks"])
@pytest.mark.parametrize("name", READS)
async def test_no_row_leaves_because_a_footer_says_that_it_may(
    running: Provider, name: str, blocks: dict[str, str]
) -> None:
    of, policy, where, expected = READS[name]
    values, said = SAID[of]
    path, dataset = running.path.with_name(f"{of}.parquet"), of.replace(" ", "_")
    if not path.exists():
        footers.write(path, pa.table({"id": range(12), "x": values}), said)
    agreement = await running.agree(policy, name=dataset, path=path)
    asked = {"where": where} if where else {}
    found = await read(running, agreement, dataset, **asked, **blocks)
    assert found == [value for value in values if value in expected]
