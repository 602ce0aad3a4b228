"""HTTP binding of the protocol: one thin function per endpoint reads a message, calls a service and writes the reply.

Errors become the protocol's error objects here. An unidentified caller gets the same answer on negotiation and transfer
endpoints as an identified caller with an unknown pid (DSP 2025-1). Our messages that follow from a received message
leave after its reply.
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
from connector.dsp.messages import Message, ProcessMessage
from connector.dsp.negotiation import NegotiationService
from connector.dsp.process import MessageResult, new_pid
from connector.dsp.protocol_client import VERSION
from connector.dsp.transfer import TransferService
from connector.errors import Absent, BodyTooLarge, ConnectorError, Forbidden, Invalid, Unavailable, Unproven, WrongState
from connector.identity.principal import Principal
from connector.outbox.sender import Sender
from connector.store.tables import Outbox
from connector.telemetry import logger

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=ProcessMessage)
Authenticate = Callable[[str | None], Awaitable[Principal]]

PATH = f"/dsp/{VERSION}"
_log = logger("dsp")
_ERRORS: dict[str, type[messages.MessageWithReason]] = {
    "negotiations": messages.ContractNegotiationError,
    "transfers": messages.TransferError,
}
_NOWHERE = "nothing here for you"


class _Route(APIRoute):
    """Turns every error of an endpoint into the protocol's error object.

    Endpoints take only the request and the parameters of the path. They are called directly, which saves a third of
    the framework's time for each message.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint

        async def guarded(request: Request) -> Response:
            try:
                answer: Response = await endpoint(request=request, **request.path_params)
                return answer
            except ConnectorError as error:
                return _error_reply(request, error)
            except Exception as error:  # noqa: BLE001  # a fault here is a 500 of the protocol, and in our log
                _log.error("unforeseen", exc_info=error)
                return _error_reply(
                    request, ConnectorError("the connector failed; its operator has the reason in the log")
                )

        return guarded


def router(
    *,
    negotiations: NegotiationService,
    transfers: TransferService,
    catalog: Catalog,
    sender: Sender,
    authenticate: Authenticate,
    body_max_bytes: int = 2**20,
) -> APIRouter:
    """Every endpoint of the protocol under /dsp/2025-1, for both roles: a pid is unique over both."""
    routes = APIRouter(prefix=PATH, tags=["dataspace protocol"], route_class=_Route)

    async def caller(request: Request) -> Principal:
        """The identified caller. Others get 404, so that they do not learn whether a process exists."""
        try:
            return await authenticate(request.headers.get("authorization"))
        except Unproven as error:
            _log.info("unauthenticated", path=request.url.path, reason=error.message, why=error.private)
            raise Absent(_NOWHERE) from error

    async def message(request: Request, *kinds: type[M]) -> M:
        read = messages.read(await _read_body(request, body_max_bytes), *kinds)
        request.state.pids = (getattr(read, "consumer_pid", ""), getattr(read, "provider_pid", ""))
        return read

    async def leave(rows: tuple[Outbox, ...]) -> None:
        sender.hand_over(rows)

    def reply(view: Message, taken: MessageResult[Any], status: int) -> Response:
        after = BackgroundTask(leave, taken.send) if taken.send else None
        return _json(view.to_wire(), status=status, background=after)

    async def receive_negotiation(request: Request, pid: str, kind: type[N]) -> Response:
        who = await caller(request)
        taken = await negotiations.on_message(await message(request, kind), who, pid=pid)
        return reply(negotiations.view(taken.row), taken, 200)

    async def receive_transfer(request: Request, pid: str, kind: type[N]) -> Response:
        who = await caller(request)
        taken = await transfers.on_message(await message(request, kind), who, pid=pid)
        return reply(transfers.view(taken.row), taken, 200)

    # Catalogue.

    @routes.post("/catalog/request", summary="The catalogue as the caller may see it, a page at a time")
    async def catalog_request(request: Request) -> Response:
        who = await authenticate(request.headers.get("authorization"))
        asked = await message(request, messages.CatalogRequestMessage)
        cursor = {name: request.query_params.get(name, "") for name in ("after", "before")}
        page = await catalog.read_page(asked, who, **cursor)
        return _json(page.document, headers={"link": page.link} if page.link else None)

    @routes.get("/catalog/datasets/{dataset_id:path}", summary="One dataset, if the caller may see it")
    async def dataset(dataset_id: str, request: Request) -> Response:
        who = await authenticate(request.headers.get("authorization"))
        return _json(await catalog.read_dataset(dataset_id, who))

    # NegotiationService.

    @routes.post("/negotiations/request", status_code=201, summary="A consumer's first request")
    async def negotiation_request(request: Request) -> Response:
        who = await caller(request)
        taken = await negotiations.on_request(await message(request, messages.ContractRequestMessage), who)
        return reply(negotiations.view(taken.row), taken, 201)

    @routes.post("/negotiations/offers", status_code=201, summary="A provider's unasked offer")
    async def negotiation_offer(request: Request) -> Response:
        who = await caller(request)
        taken = await negotiations.on_offer(await message(request, messages.ContractOfferMessage), who)
        return reply(negotiations.view(taken.row), taken, 201)

    @routes.get("/negotiations/{pid}", summary="The state of a negotiation")
    async def negotiation_state(pid: str, request: Request) -> Response:
        return _json((await negotiations.read_status(pid, await caller(request))).to_wire())

    @routes.post("/negotiations/{pid}/request", summary="A counter-offer of the consumer")
    async def negotiation_counter(pid: str, request: Request) -> Response:
        return await receive_negotiation(request, pid, messages.ContractRequestMessage)

    @routes.post("/negotiations/{pid}/offers", summary="An offer of the provider")
    async def negotiation_reoffer(pid: str, request: Request) -> Response:
        return await receive_negotiation(request, pid, messages.ContractOfferMessage)

    @routes.post("/negotiations/{pid}/agreement", summary="The provider's agreement")
    async def negotiation_agreement(pid: str, request: Request) -> Response:
        return await receive_negotiation(request, pid, messages.ContractAgreementMessage)

    @routes.post("/negotiations/{pid}/agreement/verification", summary="The consumer's verification")
    async def negotiation_verification(pid: str, request: Request) -> Response:
        return await receive_negotiation(request, pid, messages.ContractAgreementVerificationMessage)

    @routes.post("/negotiations/{pid}/events", summary="ACCEPTED by the consumer, FINALIZED by the provider")
    async def negotiation_event(pid: str, request: Request) -> Response:
        return await receive_negotiation(request, pid, messages.ContractNegotiationEventMessage)

    @routes.post("/negotiations/{pid}/termination", summary="The end of a negotiation, by either side")
    async def negotiation_termination(pid: str, request: Request) -> Response:
        return await receive_negotiation(request, pid, messages.ContractNegotiationTerminationMessage)

    # TransferService.

    @routes.post("/transfers/request", status_code=201, summary="A consumer's request for a transfer")
    async def transfer_request(request: Request) -> Response:
        who = await caller(request)
        taken = await transfers.on_request(await message(request, messages.TransferRequestMessage), who)
        return reply(transfers.view(taken.row), taken, 201)

    @routes.get("/transfers/{pid}", summary="The state of a transfer")
    async def transfer_state(pid: str, request: Request) -> Response:
        return _json((await transfers.read_status(pid, await caller(request))).to_wire())

    @routes.post("/transfers/{pid}/start", summary="Start or resume")
    async def transfer_start(pid: str, request: Request) -> Response:
        return await receive_transfer(request, pid, messages.TransferStartMessage)

    @routes.post("/transfers/{pid}/completion", summary="The end of finite data")
    async def transfer_completion(pid: str, request: Request) -> Response:
        return await receive_transfer(request, pid, messages.TransferCompletionMessage)

    @routes.post("/transfers/{pid}/suspension", summary="A pause, by either side")
    async def transfer_suspension(pid: str, request: Request) -> Response:
        return await receive_transfer(request, pid, messages.TransferSuspensionMessage)

    @routes.post("/transfers/{pid}/termination", summary="The end of a transfer, by either side")
    async def transfer_termination(pid: str, request: Request) -> Response:
        return await receive_transfer(request, pid, messages.TransferTerminationMessage)

    return routes


def version_router() -> APIRouter:
    """The version document: open to all callers, without a version in its own path."""
    routes = APIRouter(tags=["dataspace protocol"])
    document = {
        "protocolVersions": [{"version": VERSION, "path": PATH, "binding": "HTTPS", "identifierType": "did:web"}]
    }

    @routes.get("/.well-known/dspace-version", summary="The versions of the Dataspace Protocol that are spoken here")
    async def versions() -> Response:
        return _json(document)

    return routes


async def _read_body(request: Request, longest: int) -> bytes:
    """The body within its limit in bytes, of any media type."""
    held = bytearray()
    try:
        async for piece in request.stream():
            held += piece
            if len(held) > longest:
                raise BodyTooLarge(f"expected a body of at most {longest} bytes")
    except ClientDisconnect:
        raise Invalid("the sender left before its message was complete; send it again") from None
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


def _error_reply(request: Request, error: ConnectorError) -> Response:
    """The protocol's error object. Refusals and illegal steps are 400: 404 would say that there is no process."""
    status = 400 if isinstance(error, WrongState | Forbidden) else error.status
    if status >= 500:
        log = _log.warning if isinstance(error, Unavailable) else _log.error  # any party can cause a 503
        log("failed", path=request.url.path, code=error.code, reason=error.message, why=error.private)
    elif error.private:  # for our own log only
        _log.info("refused", path=request.url.path, code=error.code, reason=error.message, why=error.private)
    area = request.url.path.removeprefix(PATH).strip("/").partition("/")[0]
    reason = (_NOWHERE,) if status == 404 and area in _ERRORS else (error.message,)
    headers = error.headers if status == error.status else None
    if area not in _ERRORS:
        catalog_error = messages.CatalogError(code=error.code, reason=reason)
        return _json(catalog_error.to_wire(), status=status, headers=headers)
    consumer, provider = getattr(request.state, "pids", ("", ""))
    # The schema requires both pids. A missing pid is made up, and stored nowhere.
    body = _ERRORS[area](
        consumer_pid=consumer or new_pid(), provider_pid=provider or new_pid(), code=error.code, reason=reason
    )
    return _json(body.to_wire(), status=status, headers=headers)
