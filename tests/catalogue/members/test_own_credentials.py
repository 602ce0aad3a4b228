"""The operator's own credentials: who may query them, and which are presented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from catalogue.api import presentation_routes
from catalogue.members.own_credentials import OwnCredentials
from catalogue.settings import CatalogueSettings
from connector.identity.credentials.presentation_query import PresentationService
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity
from connector.infra.http import problem_json
from tests.connector.identity.credentials.world import HOLDER, KEYS, US, V2, World
from tests.connector.wallet.test_wallet import SCOPE, granted, us_to_holder


async def ask(folder: Path, head: str, **changes: Any) -> httpx2.Response:
    """A query to HOLDER as the operator, whose credentials are in `folder`."""
    world = World()
    identity = Identity(did=HOLDER, key=KEYS[HOLDER], resolver=DidResolver(world))  # type: ignore[arg-type]  # a fake
    service = PresentationService(identity, OwnCredentials(folder, did=HOLDER).find)
    app = FastAPI()
    problem_json.install(app)
    app.include_router(presentation_routes.router(service, prefix="/dcp"))
    transport = httpx2.ASGITransport(app=app)
    body = {"@context": [], "type": "PresentationQueryMessage", "scope": [SCOPE]} | changes
    async with httpx2.AsyncClient(transport=transport, base_url="https://operator.example") as client:
        return await client.post("/dcp/presentations/query", json=body, headers={"authorization": head})


async def test_the_operator_presents_the_files_that_are_credentials_about_it(tmp_path: Path) -> None:
    contents = {
        "a.jwt": World().credential() + "\n",
        "b.jwt": World(V2).credential(),
        "of-another.jwt": World(**{"in": {"credentialSubject.id": US}}).credential(),
        "ended.jwt": World(vc={"exp": 1}).credential(),
        "nonsense.jwt": "é",
        "long.jwt": "x" * 70_000,
        "not-read.txt": World().credential(),
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    answer = await ask(tmp_path, us_to_holder(granted()))
    assert (answer.status_code, len(answer.json()["presentation"])) == (200, 2)  # one of each data model
    for name in ("a.jwt", "b.jwt"):
        (tmp_path / name).unlink()
    assert (await ask(tmp_path, us_to_holder(granted()))).json()["presentation"] == []


@pytest.mark.parametrize("head", ["", "Bearer abc", "no access token", "for another"])
async def test_who_has_no_access_token_of_the_operator_sees_nothing(tmp_path: Path, head: str) -> None:
    (tmp_path / "a.jwt").write_text(World().credential())
    made = {"no access token": us_to_holder(None), "for another": us_to_holder(granted(receiver=HOLDER))}
    assert (await ask(tmp_path, made.get(head, head))).status_code == 401


async def test_a_query_beyond_its_access_token_gets_what_is_granted(tmp_path: Path) -> None:
    (tmp_path / "a.jwt").write_text(World().credential())
    other = SCOPE.replace("Membership", "Other")
    assert (await ask(tmp_path, us_to_holder(granted(other)))).json()["presentation"] == []
    assert (await ask(tmp_path, us_to_holder(granted()), scope=[])).status_code == 400


@pytest.mark.parametrize("more", [{"credential_folder": "there"}, {"credential_scopes": "MembershipCredential"}])
def test_folder_and_types_are_set_together(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="HANSE_CREDENTIAL_FOLDER and HANSE_CREDENTIAL_SCOPES"):
        CatalogueSettings(**more)
