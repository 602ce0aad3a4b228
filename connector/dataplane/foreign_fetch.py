"""Fetches data from the endpoint of another kind of connector, as it is: bytes and media type, nothing is interpreted.

For started transfers in which we are the consumer. A Hanse owner's data is read with its own streams instead, whose
end is checked. Here only the length that the owner announces, if any, tells that the bytes are complete. Must not know
the management API.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from connector.dataplane.data_address import PATH
from connector.errors import ConnectorError, Invalid, PeerBusy, PeerNonsense, PeerRefused, Unavailable
from connector.events import DataFetched
from connector.infra.http.media_type import OCTETS, read_media_type
from connector.infra.net.http_client import HttpClient, StreamedReply, fits_header, origin
from connector.store import Store
from connector.store.tables import Transfer

_AT_ONCE = 8
_SECONDS = 24 * 3600.0
_SILENCE = 120.0  # seconds without a byte; an owner may have to compute the first one


@dataclass(frozen=True, slots=True)
class FetchHead:
    """What the owner's endpoint announces. `length`: in bytes, -1 where it does not say."""

    media: str
    length: int


@dataclass(frozen=True, slots=True)
class FetchSource:
    """Where to fetch: the properties of a data address, and the transfer that it belongs to."""

    transfer: Transfer
    endpoint: str
    properties: Mapping[str, str]


class ForeignFetches:
    """All fetches of one connector, at most eight at once. `most`: bytes of one fetch."""

    def __init__(self, store: Store, net: HttpClient, *, most: int) -> None:
        self._store, self._net, self._most = store, net, most
        self._running = 0

    async def open(self, source: FetchSource, *, by: str) -> tuple[FetchHead, AsyncIterator[bytes]]:
        """The head and the pieces of the body. The end, complete or not, is recorded as `DataFetched`.

        Raises:
            Invalid: the owner is a Hanse connector, the address is not HTTP, or the body is beyond the limit.
            Unavailable: eight fetches are running.
            PeerFailed: the endpoint cannot be called, refuses, or ends before the announced length.
        """
        _check_source(source)
        if self._running >= _AT_ONCE:
            raise Unavailable(
                f"{_AT_ONCE} fetches are running, which is the limit; try again in a moment", code="fetches_max"
            )
        progress = _Progress()
        pieces = self._pieces(source, progress, by=by)
        await anext(pieces)  # an empty piece, after the head
        return progress.head, pieces

    async def _pieces(self, source: FetchSource, progress: _Progress, *, by: str) -> AsyncGenerator[bytes, None]:
        """The pieces of the body, after an empty one that comes once the endpoint has accepted the request.

        A time limit in a block would be for the task that opened it, and another task reads the rest.
        """
        self._running += 1
        try:
            async with self._open(source) as answer:
                progress.begin(answer, self._most)
                yield b""
                async for piece in answer.pieces():
                    progress.add(piece, self._most)
                    yield piece
                progress.end()
        except ConnectorError as error:
            progress.error = error
            raise
        finally:
            self._running -= 1
            await asyncio.shield(self._record(source, progress, by=by))

    @asynccontextmanager
    async def _open(self, source: FetchSource) -> AsyncIterator[StreamedReply]:
        """The endpoint's answer to GET. EDC takes its token as it is; others want `Bearer` before it."""
        token = source.properties.get("authorization", "")
        forms = [token] if " " in token or not token else [token, f"Bearer {token}"]
        async with AsyncExitStack() as stack:
            for form in forms:
                headers = {"authorization": form} if form else {}
                request = self._net.stream("GET", source.endpoint, headers=headers, seconds=_SILENCE)
                answer = await stack.enter_async_context(request)
                if answer.status not in (401, 403) or form == forms[-1]:
                    break
                await stack.aclose()
            _check_accepted(answer, source.endpoint)
            yield answer

    async def _record(self, source: FetchSource, progress: _Progress, *, by: str) -> None:
        transfer, error = source.transfer, progress.error
        broken = not progress.complete and error is None
        event = DataFetched(
            actor=by,
            process=transfer.id,
            agreement=transfer.agreement_id,
            purpose=transfer.purpose,
            correlation=transfer.correlation,
            outcome="ok" if progress.complete else "broken",
            code="reader_left" if broken else error.code if error is not None else "",
            reason="the reader left" if broken else error.message[:2_000] if error is not None else "",
            detail={
                "counterparty": transfer.counterparty,
                "from": origin(source.endpoint)[:255],
                "media": progress.head.media,
                "bytes": progress.size,
                "digest": f"sha256:{progress.digest.hexdigest()}" if progress.complete else "",
            },
        )
        await self._store.write(lambda tx: tx.publish(event))


class _Progress:
    """What has come of one fetch so far."""

    def __init__(self) -> None:
        self.head, self.size, self.digest = FetchHead("", -1), 0, hashlib.sha256()
        self._began = time.monotonic()
        self.complete = False
        self.error: ConnectorError | None = None

    def begin(self, answer: StreamedReply, most: int) -> None:
        length = answer.headers.get("content-length", "")
        known = length.isascii() and length.isdigit() and len(length) < 19
        media = read_media_type(answer.headers.get("content-type", "")) or OCTETS
        self.head = FetchHead(media, int(length) if known else -1)
        _check_size(self.head.length, most)

    def add(self, piece: bytes, most: int) -> None:
        self.size += len(piece)
        _check_size(self.size, most)
        if time.monotonic() - self._began > _SECONDS:
            raise PeerNonsense(f"expected all data within {_SECONDS:g} s, got a slower body", code="too_slow")
        self.digest.update(piece)

    def end(self) -> None:
        if self.head.length not in (-1, self.size):
            raise PeerNonsense(f"expected {self.head.length} bytes, as announced, got {self.size}; fetch it again")
        self.complete = True


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise Invalid(f"expected at most {most} bytes, got more; raise HANSE_FETCH_MB", code="fetch_too_large")


def is_of_hanse(endpoint: str, properties: Mapping[str, str]) -> bool:
    """Whether a data address is of a Hanse connector, whose data is read with its own streams."""
    return "agreement" in properties and endpoint.endswith(PATH)


def _check_source(source: FetchSource) -> None:
    if not source.endpoint.startswith(("http://", "https://")):
        raise Invalid(
            f"expected an HTTP endpoint to fetch from, got {source.endpoint[:40]!r}; ask for HttpData-PULL",
            code="not_http",
        )
    if is_of_hanse(source.endpoint, source.properties):
        raise Invalid(
            "this owner has a Hanse connector: read its data with `hanse query` or `space.agree(...).stream()`, which "
            "check that it is complete",
            code="use_stream",
        )
    if not fits_header(source.properties.get("authorization", "")):
        raise Invalid("expected a token of printable ASCII in the data address, got another")


def _check_accepted(answer: StreamedReply, endpoint: str) -> None:
    """Redirects are not followed: the token is for this address. A compressed body could expand without limit."""
    coding = answer.headers.get("content-encoding", "").strip().lower()
    if answer.status == 200 and coding not in ("", "identity"):
        raise PeerNonsense(f"{origin(endpoint)} sent a body in the encoding {coding[:30]!r}, expected none")
    if answer.status == 200:
        return
    kind = PeerBusy if answer.status in (429, 503) else PeerRefused
    raise kind(f"{origin(endpoint)} answered {answer.status}, expected 200 with the data", peer_status=answer.status)
