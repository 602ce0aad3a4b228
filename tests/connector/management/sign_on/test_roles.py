"""Which role may call which route of the management listener: a table of all routes against the listener itself.

`tests/cases/roles.csv` has a line for each method and path: the roles that are let in. A new route needs its line.
Where the row of a path decides, any reader is let in as far as the row, and the second table says who may do it.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from connector.app import management_app
from connector.management.sign_on.sign_on_file import ROLES
from tests.connector.console.support import AGREEMENT, NEGOTIATION, TRANSFER, Console, fill
from tests.connector.management.test_access import OPEN, tried

CASES = Path(__file__).parents[3] / "cases" / "roles.csv"


async def let_in(desk: Console, method: str, path: str, role: str) -> bool:
    """Whether a route lets a role in. What it says of an empty request is another matter."""
    token = await desk.token(*ROLES[role])
    headers = {"authorization": f"Bearer {token}"}
    answer = await desk.http.request(method, path, headers=headers)
    refused = answer.status_code == 403 and "scope" in answer.text
    return not refused and answer.status_code != 401


async def test_each_route_lets_in_the_roles_of_the_table_and_no_other(desk: Console) -> None:
    found = {}
    for method, path in tried(management_app(desk.parts).routes):
        if path in OPEN or path == "/logout" or path.endswith("/events/stream"):  # the stream has no end
            continue
        roles = [role for role in ROLES if await let_in(desk, method, path, role)]
        found[method, path] = " ".join(roles)
    with CASES.open(encoding="utf-8", newline="") as lines:
        table = {(row["method"], row["path"]): row["roles"] for row in csv.DictReader(lines)}
    assert found == table


AS_PROVIDER = [
    (f"/api/v1/negotiations/{NEGOTIATION}/counter", {}, "owner approver operator"),  # a conflict: not ours to say
    (f"/api/v1/transfers/{TRANSFER}/start", {}, "owner operator"),
    (f"/api/v1/agreements/{AGREEMENT}/revoke?as_role=provider", {"reason": "x"}, "owner operator"),
]


@pytest.mark.parametrize(("path", "body", "roles"), AS_PROVIDER)
async def test_the_row_of_a_path_decides_who_may_act_as_provider(
    desk: Console, path: str, body: dict[str, str], roles: str
) -> None:
    await fill(desk.parts)
    found = []
    for role in ROLES:
        headers = {"authorization": f"Bearer {await desk.token(*ROLES[role])}"}
        answer = await desk.http.post(path, json=body, headers=headers)
        assert answer.status_code != 400, answer.text
        if not (answer.status_code == 403 and "with the scope" in answer.text):
            found.append(role)
    assert " ".join(found) == roles
