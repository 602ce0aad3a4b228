"""The operator's view of issued credentials: what a member has, in which state, and what is not delivered."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from catalogue.api import schemas
from catalogue.api.access import ViewerAuthenticator
from catalogue.api.schemas import CredentialWanted
from catalogue.members.members import Members


def router(members: Members, access: ViewerAuthenticator) -> APIRouter:
    """Routes for the operator (bearer token or session)."""
    routes = APIRouter(prefix="/api/v1", tags=["credentials"], dependencies=[Depends(access.operator())])

    @routes.get("/credentials")
    async def list_credentials(
        member: Annotated[str, Query(max_length=1024, description="DID or name.")],
    ) -> dict[str, list[dict[str, Any]]]:
        """A member's credentials with their state, and its requests with the state of their delivery, newest first."""
        issued, asked = await members.credentials(member)
        return {
            "credentials": [schemas.credential(row) for row in issued],
            "requests": [schemas.issuance(row) for row in asked],
        }

    @routes.post("/credentials", status_code=202)
    async def issue(wanted: CredentialWanted) -> dict[str, Any]:
        """Issue a new membership credential to a member and deliver it in the background."""
        return schemas.member(await members.issue(wanted.member))

    return routes
