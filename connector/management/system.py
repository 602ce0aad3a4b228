"""The connector itself on the management API: who it is, and its tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from connector.identity.member_register import MemberRegister
from connector.json_number import JSON_NUMBER
from connector.management.sign_on.auth import SCOPES, Caller, Tokens
from connector.settings import Settings


class NewToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Who will hold it, as the log names its acts.")
    scopes: list[Annotated[str, Field(max_length=16)]] = Field(
        max_length=8, description=f"Some of {', '.join(SCOPES)}."
    )
    days: Annotated[float, Field(gt=0, le=3660), JSON_NUMBER] | None = Field(
        None, description="Days until it ends; empty: it does not."
    )


class TokenText(BaseModel):
    """A new token. The text is shown this once."""

    name: str
    scopes: list[str]
    token: str


class TokenView(BaseModel):
    name: str
    scopes: list[str]
    created_at: float
    expires_at: float | None
    last_used_at: float | None = None
    owner: str = Field("", description="Owner of a personal access token.")
    label: str = Field("", description="The owner's name for a personal access token.")


class Self(BaseModel):
    """Who this connector speaks for, and where others reach it."""

    participant_id: str
    name: str
    title: str
    public_url: str
    dsp_base: str
    version: str
    caller: str
    scopes: list[str]


def router(
    settings: Settings, tokens: Tokens, trust: MemberRegister, *, participant_id: str, version: str
) -> APIRouter:
    routes = APIRouter(tags=["system"])
    reader = Depends(tokens.require("read"))
    anyone = Depends(tokens.require("", bound=True))
    admin = Depends(tokens.require("admin"))

    @routes.get("/self", summary="Who this connector speaks for")
    async def own(caller: Caller = anyone) -> Self:
        return Self(
            participant_id=participant_id,
            name=settings.name,
            title=settings.title or settings.name,
            public_url=settings.root_url,
            dsp_base=settings.dsp_base,
            version=version,
            caller=caller.name,
            scopes=sorted(caller.scopes),
        )

    @routes.get("/members", summary="Members of the data space, as its operator lists them now")
    async def members(_: Caller = reader) -> list[dict[str, Any]]:
        return [dict(entry) for entry in (await trust.members(newest=True)).values()]

    @routes.get("/tokens", summary="Tokens of the management API, without their text")
    async def listed(_: Caller = admin) -> list[TokenView]:
        return [
            TokenView(
                name=row.name,
                scopes=row.scopes,
                created_at=row.created_at,
                expires_at=row.expires_at,
                last_used_at=row.last_used_at,
                owner=row.owner_name or "",
                label=row.label or "",
            )
            for row in await tokens.list()
        ]

    @routes.post("/tokens", status_code=201, summary="Issue a token; its text is shown this once")
    async def issue(new: NewToken, caller: Caller = admin) -> TokenText:
        text = await tokens.issue(new.name, new.scopes, by=caller.name, subject=caller.subject, days=new.days)
        return TokenText(name=new.name, scopes=new.scopes, token=text)

    @routes.delete("/tokens/{name}", status_code=204, summary="End a token at once")
    async def revoke(name: str, caller: Caller = admin) -> None:
        await tokens.revoke(name, by=caller.name)

    return routes
