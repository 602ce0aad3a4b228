"""The operator's API: members and visits. A member may ask for a visit of its own connector. Thin: services decide."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Response

from catalogue.api import schemas
from catalogue.api.access import MEMBERS, Viewer, ViewerAuthenticator
from catalogue.api.schemas import ChangedMember, CrawlRequest, NewMember
from catalogue.crawl import ingest
from catalogue.crawl.crawler import Crawler
from catalogue.crawl.sanitize import is_writable
from catalogue.members.members import Application, Members
from catalogue.search.index import Index
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import Member, VisitRecord
from connector.errors import Forbidden, Invalid, Unproven

_WAIT_MAX = 600.0


def router(
    members: Members, crawler: Crawler, index: Index, store: CatalogueStore, access: ViewerAuthenticator
) -> APIRouter:
    """Routes for the operator (bearer token or session), and `POST /crawl` for members too."""
    routes = APIRouter(prefix="/api/v1")
    operator = Depends(access.operator())

    @routes.get("/members", tags=["members"], dependencies=[operator])
    async def list_members() -> list[dict[str, Any]]:
        """Every member, with the state of its connector and how many datasets it lists."""
        return await store.read(_list_members)

    @routes.post("/members", tags=["members"], status_code=201, dependencies=[operator])
    async def join(wanted: NewMember) -> dict[str, Any]:
        """Admit a participant. Its DID document is fetched and must be its own."""
        return schemas.member(await members.join(Application(**wanted.model_dump())))

    @routes.get("/members/{key:path}", tags=["members"], dependencies=[operator])
    async def read_member(key: str) -> dict[str, Any]:
        """One member by DID or name, with its last visits."""
        return await store.read(partial(_read_member, key=key))

    @routes.patch("/members/{key:path}", tags=["members"], dependencies=[operator])
    async def change(key: str, changed: ChangedMember) -> dict[str, Any]:
        """Change facts, suspend or restore."""
        changes = {field: value for field, value in changed.model_dump().items() if value is not None}
        return schemas.member(await members.change(key, changes=changes))

    @routes.delete("/members/{key:path}", tags=["members"], status_code=204, dependencies=[operator])
    async def remove(key: str) -> Response:
        """End a membership; its datasets leave the search at once."""
        await members.remove(key)
        return Response(status_code=204)

    @routes.post("/crawl", tags=["visits"])
    async def crawl(
        viewer: Viewer = Depends(access.viewer),
        member: Annotated[str, Query(description="DID or name; empty is every active member.")] = "",
        wait: Annotated[float, Query(ge=0, le=_WAIT_MAX, description="Seconds to wait for the result.")] = 30.0,
        body: Annotated[CrawlRequest | None, Body()] = None,
    ) -> dict[str, Any]:
        """Visit a connector now. The operator names any member; a member's token asks for its own connector."""
        chosen = await store.read(partial(_list_members_to_visit, viewer=viewer, key=member))
        if body is not None and body.withdrawn:
            await _withdraw(store, viewer, body.withdrawn)
            await asyncio.to_thread(index.catch_up)
        why = "operator" if viewer.is_operator else "member"
        tasks = {crawler.start(one.id, why=why): one.name for one in chosen}
        done, _ = await asyncio.wait(tasks, timeout=wait) if tasks else (set[asyncio.Task[VisitRecord]](), None)
        stopped = {task for task in done if task.cancelled()}  # its member was suspended or removed meanwhile
        return {
            "runs": [schemas.run(task.result(), name) for task, name in tasks.items() if task in done - stopped],
            "running": [name for task, name in tasks.items() if task not in done],
            "stopped": [name for task, name in tasks.items() if task in stopped],
        }

    @routes.post("/index/rebuild", tags=["visits"], dependencies=[operator])
    async def rebuild() -> dict[str, int]:
        """Build the search index anew from the database."""
        return {"entries": await asyncio.to_thread(index.rebuild)}

    return routes


def _list_members(tx: CatalogueTransaction) -> list[dict[str, Any]]:
    sources = {source.member_id: source for source in tx.members.list_sources()}
    return [
        {
            **schemas.member(member),
            "source": schemas.source(sources.get(member.id)),
            "datasets": tx.entries.count_of(member.id),
        }
        for member in tx.members.list_all()
    ]


def _read_member(tx: CatalogueTransaction, *, key: str) -> dict[str, Any]:
    member = tx.members.of(key)
    return {
        **schemas.member(member),
        "source": schemas.source(tx.members.get_source(member.id)),
        "datasets": tx.entries.count_of(member.id),
        "runs": [schemas.run(run, member.name) for run in tx.members.list_runs(member.id)],
    }


def _list_members_to_visit(tx: CatalogueTransaction, *, viewer: Viewer, key: str) -> list[Member]:
    """The members that are to be visited, if this viewer may ask for it."""
    if not viewer.is_operator and viewer.kind != MEMBERS:
        raise Unproven("expected the operator's token, or a self-issued token of the member to visit")
    if viewer.is_operator and not key:
        return [member for member in tx.members.list_all() if member.status == "active"]
    member = tx.members.of(key or viewer.id)
    if not viewer.is_operator and member.id != viewer.id:
        raise Forbidden("a member may ask for a visit of its own connector only")
    if member.status != "active":
        raise Invalid(f"{member.name} is {member.status}; its connector is not visited")
    return [member]


async def _withdraw(store: CatalogueStore, viewer: Viewer, ids: list[str]) -> None:
    if viewer.kind != MEMBERS:
        raise Forbidden("only the member that lists a dataset withdraws it; the operator suspends members instead")
    if not is_writable(ids):
        raise Invalid("withdrawn: expected ids of datasets, came one with control characters, which is none")
    await store.write(lambda tx: ingest.withdraw(tx, viewer.id, ids))
