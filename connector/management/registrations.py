"""Registrations under way on the management API: how far each is, and stopping it."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from connector.datasets.registration import RegistrationProgress
from connector.datasets.registry import Registry
from connector.errors import NotFound
from connector.management.auth import Caller, Tokens


class RegistrationView(BaseModel):
    """A registration or new version, running or among the last that ended, of this process of the connector."""

    name: str
    path: str
    by: str
    state: str = Field(
        description="finding, converting, checking, digesting, counting, storing; registered, refused or stopped."
    )
    files: int = Field(description="0 until they are found.")
    done: int = Field(description="Files that are done in this state.")
    started_at: float
    ended_at: float | None
    code: str
    reason: str


def view(one: RegistrationProgress) -> RegistrationView:
    return RegistrationView(
        name=one.asked.name,
        path=one.asked.path,
        by=one.by,
        state=one.state,
        files=one.files,
        done=one.done,
        started_at=one.started_at,
        ended_at=one.ended_at,
        code=one.error.code if one.error else "",
        reason=one.error.message if one.error else "",
    )


def router(registry: Registry, tokens: Tokens) -> APIRouter:
    routes = APIRouter(prefix="/registrations", tags=["datasets"])
    owner = Depends(tokens.require("owner"))

    @routes.get("", summary="Registrations that run, and the last that ended")
    async def listed(_: Caller = owner) -> list[RegistrationView]:
        return [view(one) for one in registry.under_way.recent()]

    @routes.get("/{name}", summary="How far a registration is")
    async def one(name: str, _: Caller = owner) -> RegistrationView:
        found = registry.under_way.find(name)
        if found is None:
            raise NotFound(f"no registration of {name[:64]!r} runs or has ended of late")
        return view(found)

    @routes.delete("/{name}", status_code=204, summary="Stop a registration; nothing of it is kept")
    async def stop(name: str, _: Caller = owner) -> None:
        if not await registry.under_way.stop(name):
            raise NotFound(f"no registration of {name[:64]!r} runs that could be stopped")

    return routes
