"""Reads under way on the management API: who reads what now, under which agreement, and through which transfer.

One ends when its transfer is suspended or ended (`/transfers/{id}/suspend`), or its agreement revoked.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from connector.dataplane import running_reads
from connector.management.sign_on.auth import Caller, Tokens
from connector.store import Store


class UnderView(BaseModel):
    """What a read has under one of its agreements."""

    dataset: str
    version: str
    agreement: str
    purpose: str
    transfer: str


class ReadView(BaseModel):
    """A read of our data that has begun and not ended: rows and bytes are what had left a second ago."""

    id: str
    consumer: str
    transport: str = Field(description="http, flight or push; empty where that is not known.")
    since: float
    rows: int
    bytes: int
    under: list[UnderView] = Field(description="One for each of its agreements.")


def view(read: running_reads.RunningRead) -> ReadView:
    return ReadView.model_validate(asdict(read))


def router(store: Store, tokens: Tokens) -> APIRouter:
    routes = APIRouter(prefix="/reads", tags=["reads"])
    reader = Depends(tokens.require("read"))

    @routes.get("", summary="Reads of our data that run now, the newest first")
    async def listed(
        agreement: Annotated[str, Query(max_length=255)] = "",
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        _: Caller = reader,
    ) -> list[ReadView]:
        found = await store.read(
            lambda tx: running_reads.list_running(tx, agreement=agreement, limit=limit, offset=offset)
        )
        return [view(one) for one in found]

    return routes
