"""Parquet and CSV for people, on the same governed path, chosen by `Accept` or `?format=`.

A worker writes the format (`file_formats`); here it is named and framed. These formats carry no end record, so
completeness is shown otherwise: a whole answer ends with the last chunk and the trailer `hanse-status: complete`. An
incomplete one is cut off without a last chunk, which every HTTP/1.1 client takes for an error, and a Parquet file
without its footer cannot be opened. Must not know policies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

from connector.dataplane.read_request import COMPLETE
from connector.errors import Invalid, NotAcceptable
from connector.infra.http.accept_header import read_weights

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from connector.dataplane.governed_stream import GovernedStream
    from connector.dataplane.http.request_context import Exchange

    Sender = Callable[[Exchange, GovernedStream, bytes | memoryview], Awaitable[None]]

ARROW = "arrow"
MEDIA: Mapping[str, str] = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8; header=present",
    "csv_guarded": "text/csv; charset=utf-8; header=present",
}
ARROW_ONLY: Mapping[str, str] = {"application/vnd.apache.arrow.stream": ARROW}
_BY_MEDIA = {
    **ARROW_ONLY,
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
    "text/csv": "csv",
}
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_ACCEPT_MAX = 8_192
_TRAILERS = ("hanse-status", "hanse-rows", "hanse-bytes", "hanse-digest")


def choose_format(given: Mapping[str, str], accept: str) -> str:
    """Return the format that a request asks for: `format`, else the choice of `choose_media`.

    `guard=true` asks for CSV whose text cells no spreadsheet takes for a formula. Raises: Invalid for other values.
    """
    name = given.get("format") or choose_media(accept)
    guard = given.get("guard", "false")
    if name not in (ARROW, "parquet", "csv") or guard not in ("true", "false"):
        raise Invalid(
            f"expected format arrow, parquet or csv and guard true or false, got {name[:50]!r} and {guard[:50]!r}",
            code="format_unknown",
        )
    if guard == "true" and name != "csv":
        raise Invalid("expected guard only with the format csv, got another format", code="format_unknown")
    return "csv_guarded" if guard == "true" else name


async def send(exchange: Exchange, stream: GovernedStream, form: str, name: str, part: Sender) -> None:
    """Send the stream as one file with a name. The connection is cut where the stream is incomplete."""
    file = f"{_UNSAFE.sub('_', name)[:100]}.{form.partition('_')[0]}"
    await exchange.begin(
        200,
        {
            "content-type": MEDIA[form],
            "content-disposition": f'attachment; filename="{file}"',
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "hanse-read": stream.id,
            "trailer": ", ".join(_TRAILERS),
        },
    )
    await part(exchange, stream, stream.schema)
    async with aclosing(stream.frames()) as frames:
        async for piece in frames:
            await part(exchange, stream, piece)
    end = stream.end
    if end is None or end.status != COMPLETE:
        await exchange.abort()
        raise ConnectionAbortedError("the stream ended before it was complete")
    values = (end.status, str(end.rows), str(end.nbytes), end.digest)
    await exchange.end(dict(zip(_TRAILERS, values, strict=True)))


def choose_media(accept: str, offered: Mapping[str, str] = _BY_MEDIA) -> str:
    """Return the best offered format for `Accept` (RFC 9110, 12.5.1), Arrow where it is empty.

    Raises: NotAcceptable where `Accept` takes none of them: an answer that cannot be used would still count as a read.
    """
    if len(accept) > _ACCEPT_MAX:  # bounds the time to parse it
        raise NotAcceptable(f"expected an Accept of at most {_ACCEPT_MAX} characters, got {len(accept)}")
    liked = read_weights(accept)

    def quality_of(media: str) -> float:
        ranges = (media, media.partition("/")[0] + "/*", "*/*")
        return next((liked[one] for one in ranges if one in liked), 0.0)

    # Of equal quality, named types come first.
    best = max([*(media for media in liked if media in offered), *offered], key=quality_of)
    if liked and not quality_of(best):
        raise NotAcceptable(
            f"expected Accept to take one of {', '.join(offered)} (or */*), got {accept[:100]!r}; "
            "without Accept, the answer is Arrow"
        )
    return offered[best]
