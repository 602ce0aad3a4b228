"""The HTTP binding: one thin function per endpoint. Reads a message, asks a service, writes the reply.

Errors become the protocol's error objects here, in one place. Whoever is not identified gets the same answer on
negotiation and transfer endpoints as somebody who asks for a pid that is not there (DSP 2025-1, section 3 of our
summary). Messages of ours that follow from a message leave after its reply has left.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from connector.dsp import messages
from connector.dsp.catalog import Catalog
from connector.dsp.jsonld import Json
from connector.dsp.messages import Message, Numbered
from connector.dsp.negotiation import Negotiations
from connector.dsp.process import Taken, new_pid
from connector.dsp.protocol_client import VERSION
from connector.dsp.transfer import Transfers
from connector.errors import BadInput, Busy, Conflict, Forbidden, HanseError, NotFound, Unauthenticated
from connector.identity.principal import Principal
from connector.outbox.sender import Sender
from connector.store.tables import Outbox
from connector.telemetry import logger

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Numbered)
Authenticate = Callable[[str | None], Awaitable[Principal]]

PATH = f"/dsp/{VERSION}"
_log = logger("dsp")
_ERRORS: dict[str, type[messages.Reasoned]] = {
    "negotiations": messages.ContractNegotiationError,
    "transfers": messages.TransferError,
}
_NOWHERE = "nothing here for you"


class BodyTooLarge(BadInput):
    status = 413
    code = "body_too_large"


class _Route(APIRoute):
    """Turns every error of an endpoint into the protocol's error object.

    Endpoints take the request and what the path names, nothing else: they are called directly, which saves a third of
    what the framework costs per message.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint

        async def guarded(request: Request) -> Response:
            try:
                answer: Response = await endpoint(request=request, **request.path_params)
                return answer
            except HanseError as error:
                return _error(request, error)
            except Exception as error:  # noqa: BLE001  # a fault of ours is a 500 of the protocol, and in our log
                _log.error("unforeseen", exc_info=error)
                return _error(request, HanseError("the connector failed; its operator has the reason in the log"))

        return guarded


def router(
    *,
    negotiations: Negotiations,
    transfers: Transfers,
    catalog: Catalog,
    sender: Sender,
    authenticate: Authenticate,
    body_max_bytes: int = 2**20,
) -> APIRouter:
    """Every endpoint of the protocol under /dsp/2025-1, for both roles: pids are unique over them."""
    routes = APIRouter(prefix=PATH, tags=["dataspace protocol"], route_class=_Route)

    async def caller(request: Request) -> Principal:
        """Who calls. On endpoints of processes, nobody is told that there is something to be identified for."""
        try:
            return await authenticate(request.headers.get("authorization"))
        except Unauthenticated as error:
            _log.info("unauthenticated", path=request.url.path, reason=error.message, why=error.private)
            raise NotFound(_NOWHERE) from error

    async def message(request: Request, *kinds: type[M]) -> M:
        read = messages.read(await _body(request, body_max_bytes), *kinds)
        request.state.pids = (getattr(read, "consumer_pid", ""), getattr(read, "provider_pid", ""))
        return read

    async def leave(rows: tuple[Outbox, ...]) -> None:
        sender.hand_over(rows)

    def reply(view: Message, taken: Taken[Any], status: int) -> Response:
        after = BackgroundTask(leave, taken.send) if taken.send else None
        return _json(view.to_wire(), status=status, background=after)

    async def negotiating(request: Request, pid: str, kind: type[N]) -> Response:
        who = await caller(request)
        taken = await negotiations.received(await message(request, kind), who, pid=pid)
        return reply(negotiations.view(taken.row), taken, 200)

    async def transferring(request: Request, pid: str, kind: type[N]) -> Response:
        who = await caller(request)
        taken = await transfers.received(await message(request, kind), who, pid=pid)
        return reply(transfers.view(taken.row), taken, 200)

    # Catalogue.

    @routes.post("/catalog/request", summary="The catalogue as the caller may see it, a page at a time")
    async def catalog_request(request: Request) -> Response:
        who = await authenticate(request.headers.get("authorization"))
        asked = await message(request, messages.CatalogRequestMessage)
        cursor = {name: request.query_params.get(name, "") for name in ("after", "before")}
        page = await catalog.page(asked, who, **cursor)
        return _json(page.document, headers={"link": page.link} if page.link else None)

    @routes.get("/catalog/datasets/{dataset_id:path}", summary="One dataset, if the caller may see it")
    async def dataset(dataset_id: str, request: Request) -> Response:
        who = await authenticate(request.headers.get("authorization"))
        return _json(await catalog.dataset(dataset_id, who))

    # Negotiations.

    @routes.post("/negotiations/request", status_code=201, summary="A consumer's first request")
    async def negotiation_request(request: Request) -> Response:
        who = await caller(request)
        taken = await negotiations.requested(await message(request, messages.ContractRequestMessage), who)
        return reply(negotiations.view(taken.row), taken, 201)

    @routes.post("/negotiations/offers", status_code=201, summary="A provider's unasked offer")
    async def negotiation_offer(request: Request) -> Response:
        who = await caller(request)
        taken = await negotiations.offered(await message(request, messages.ContractOfferMessage), who)
        return reply(negotiations.view(taken.row), taken, 201)

    @routes.get("/negotiations/{pid}", summary="The state of a negotiation")
    async def negotiation_state(pid: str, request: Request) -> Response:
        return _json((await negotiations.status(pid, await caller(request))).to_wire())

    @routes.post("/negotiations/{pid}/request", summary="A counter-offer of the consumer")
    async def negotiation_counter(pid: str, request: Request) -> Response:
        return await negotiating(request, pid, messages.ContractRequestMessage)

    @routes.post("/negotiations/{pid}/offers", summary="An offer of the provider")
    async def negotiation_reoffer(pid: str, request: Request) -> Response:
        return await negotiating(request, pid, messages.ContractOfferMessage)

    @routes.post("/negotiations/{pid}/agreement", summary="The provider's agreement")
    async def negotiation_agreement(pid: str, request: Request) -> Response:
        return await negotiating(request, pid, messages.ContractAgreementMessage)

    @routes.post("/negotiations/{pid}/agreement/verification", summary="The consumer's verification")
    async def negotiation_verification(pid: str, request: Request) -> Response:
        return await negotiating(request, pid, messages.ContractAgreementVerificationMessage)

    @routes.post("/negotiations/{pid}/events", summary="ACCEPTED by the consumer, FINALIZED by the provider")
    async def negotiation_event(pid: str, request: Request) -> Response:
        return await negotiating(request, pid, messages.ContractNegotiationEventMessage)

    @routes.post("/negotiations/{pid}/termination", summary="The end of a negotiation, by either side")
    async def negotiation_termination(pid: str, request: Request) -> Response:
        return await negotiating(request, pid, messages.ContractNegotiationTerminationMessage)

    # Transfers.

    @routes.post("/transfers/request", status_code=201, summary="A consumer's request for a transfer")
    async def transfer_request(request: Request) -> Response:
        who = await caller(request)
        taken = await transfers.requested(await message(request, messages.TransferRequestMessage), who)
        return reply(transfers.view(taken.row), taken, 201)

    @routes.get("/transfers/{pid}", summary="The state of a transfer")
    async def transfer_state(pid: str, request: Request) -> Response:
        return _json((await transfers.status(pid, await caller(request))).to_wire())

    @routes.post("/transfers/{pid}/start", summary="Start or resume")
    async def transfer_start(pid: str, request: Request) -> Response:
        return await transferring(request, pid, messages.TransferStartMessage)

    @routes.post("/transfers/{pid}/completion", summary="The end of finite data")
    async def transfer_completion(pid: str, request: Request) -> Response:
        return await transferring(request, pid, messages.TransferCompletionMessage)

    @routes.post("/transfers/{pid}/suspension", summary="A pause, by either side")
    async def transfer_suspension(pid: str, request: Request) -> Response:
        return await transferring(request, pid, messages.TransferSuspensionMessage)

    @routes.post("/transfers/{pid}/termination", summary="The end of a transfer, by either side")
    async def transfer_termination(pid: str, request: Request) -> Response:
        return await transferring(request, pid, messages.TransferTerminationMessage)

    return routes


def version_router() -> APIRouter:
    """The version document: open to everybody, without a version in its own path."""
    routes = APIRouter(tags=["dataspace protocol"])
    document = {
        "protocolVersions": [{"version": VERSION, "path": PATH, "binding": "HTTPS", "identifierType": "did:web"}]
    }

    @routes.get("/.well-known/dspace-version", summary="The versions of the Dataspace Protocol that are spoken here")
    async def versions() -> Response:
        return _json(document)

    return routes


async def _body(request: Request, longest: int) -> bytes:
    """The body within its limit, whatever its media type says."""
    held = bytearray()
    try:
        async for piece in request.stream():
            held += piece
            if len(held) > longest:
                raise BodyTooLarge(f"expected a body of at most {longest} bytes")
    except ClientDisconnect:
        raise BadInput("the sender left before its message was complete; send it again") from None
    return bytes(held)


def _json(
    document: Json,
    *,
    status: int = 200,
    background: BackgroundTask | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(body, status, headers, "application/json", background)


def _error(request: Request, error: HanseError) -> Response:
    """The protocol's error object. Refusals and illegal steps are 400: 404 would say that there is no process."""
    status = 400 if isinstance(error, Conflict | Forbidden) else error.status
    if status >= 500:
        log = _log.warning if isinstance(error, Busy) else _log.error  # anybody can have us answer 503
        log("failed", path=request.url.path, code=error.code, reason=error.message, why=error.private)
    elif error.private:  # our own people get to know what the caller does not
        _log.info("refused", path=request.url.path, code=error.code, reason=error.message, why=error.private)
    area = request.url.path.removeprefix(PATH).strip("/").partition("/")[0]
    reason = (_NOWHERE,) if status == 404 and area in _ERRORS else (error.message,)
    headers = error.headers if status == error.status else None
    if area not in _ERRORS:
        catalog_error = messages.CatalogError(code=error.code, reason=reason)
        return _json(catalog_error.to_wire(), status=status, headers=headers)
    consumer, provider = getattr(request.state, "pids", ("", ""))
    # The schema wants both pids even where a process has none: then they are made up, and stored nowhere.
    body = _ERRORS[area](
        consumer_pid=consumer or new_pid(), provider_pid=provider or new_pid(), code=error.code, reason=reason
    )
    return _json(body.to_wire(), status=status, headers=headers)
