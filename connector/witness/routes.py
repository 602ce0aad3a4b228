"""The public routes of a witness (C2SP tlog-witness), of connector and catalogue alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from connector.errors import Absent
from connector.witness.known_logs import PREFIX
from connector.witness.witness import BODY_MAX, Witness


def router(
    witness: Witness | None,
    *,
    published: Callable[[], Awaitable[str]],
    admit: Callable[[str | None], Awaitable[object]],
) -> APIRouter:
    """The routes; without a witness only the keys. `published`: our keys as lines of a policy. `admit` raises unless
    an Authorization header proves a participant."""
    routes = APIRouter(prefix=PREFIX, tags=["witness"])

    @routes.get("/keys", response_class=PlainTextResponse)
    async def keys() -> str:
        """The keys of our log and witness, as lines of a C2SP tlog-policy."""
        return await published()

    if witness is None:
        return routes

    @routes.post("/add-checkpoint")
    async def add_checkpoint(request: Request) -> Response:
        """Cosign a checkpoint of a log that is known here, if it continues the one before (C2SP tlog-witness)."""
        answer = await witness.add_checkpoint(await _read(request))
        headers = {"content-type": answer.media_type}  # as it is: clients compare the whole value, without a charset
        return Response(answer.body, status_code=answer.status, headers=headers)

    @routes.get("/{origin_hash}/checkpoint")
    async def checkpoint(origin_hash: str, request: Request) -> PlainTextResponse:
        """The newest cosigned checkpoint of a log, for members; `origin_hash` is the SHA-256 of its origin."""
        await admit(request.headers.get("authorization"))
        found = await witness.newest(origin_hash, hash_of=lambda origin: sha256(origin.encode()).hexdigest())
        if found is None:
            raise Absent("no checkpoint of such a log was cosigned here")
        return PlainTextResponse(found, headers={"cache-control": "no-store"})

    return routes


async def _read(request: Request) -> bytes:
    """The body, or its beginning where it is too long, which is then refused as malformed."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_MAX:
            break
    return body
