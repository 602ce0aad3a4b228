"""Where readers tell of reads that are over: with which token, how many, and in which form."""

from __future__ import annotations

from typing import Any

import pytest

from connector.usage.receipt_log import TOGETHER_MAX
from tests.connector.console.support import Console

ONE = {"id": "a" * 32, "agreement": "urn:none", "transfer": "", "read": "r1", "rows": 5, "code": "left"}


async def told(desk: Console, *scopes: str, **body: Any) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {await desk.token(*scopes)}"}
    answer = await desk.http.post("/api/v1/receipts", json=body, headers=headers)
    return answer.status_code, answer.json()


async def test_it_takes_the_token_that_reading_takes(desk: Console) -> None:
    assert await told(desk, "consume", ends=[ONE]) == (200, {"recorded": 0, "unknown": [ONE["id"]]})
    status, problem = await told(desk, "read", "owner", "audit", ends=[ONE])
    assert (status, problem["code"]) == (403, "scope_missing")


@pytest.mark.parametrize(
    "ends",
    [
        [],
        [ONE] * (TOGETHER_MAX + 1),
        [ONE | {"id": "A" * 32}],
        [ONE | {"agreement": "a\0"}],
        [ONE | {"agreement": "a" * 256}],
        [ONE | {"read": "r" * 129}],
        [ONE | {"read": "r 1"}],
        [ONE | {"rows": -1}],
        [ONE | {"rows": 2**53 + 1}],
        [ONE | {"end": {"status": "complete\n"}}],
        [ONE | {"end": {"digest": "0" * 201}}],
        [ONE | {"seconds": -1}],
        [ONE | {"more": 1}],
    ],
)
async def test_what_is_none_is_refused(desk: Console, ends: list[Any]) -> None:
    status, problem = await told(desk, "consume", ends=ends)
    assert (status, "ends" in problem["detail"]) == (400, True), problem
