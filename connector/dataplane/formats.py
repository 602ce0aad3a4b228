"""Rows for people: Parquet and CSV on the same governed path, by `Accept` or `?format=`.

A worker writes the format (`connector.query.written`); here it is named and framed. Neither carries an end record, so
completeness is proven otherwise: a whole answer ends with the last chunk and the trailer `hanse-status: complete`; one
that is not whole is cut off without a last chunk, which every HTTP/1.1 client takes for an error, and a Parquet file
without its footer cannot be opened. Knows nothing of policies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

from connector.dataplane.asked import COMPLETE
from connector.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from connector.dataplane.exchange import Exchange
    from connector.dataplane.governed import GovernedStream

    Sender = Callable[[Exchange, GovernedStream, bytes | memoryview], Awaitable[None]]

ARROW = "arrow"
MEDIA: Mapping[str, str] = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8; header=present",
    "csv_guarded": "text/csv; charset=utf-8; header=present",
}
_BY_MEDIA = {
    "application/vnd.apache.arrow.stream": ARROW,
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
    "text/csv": "csv",
}
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_TRAILERS = ("hanse-status", "hanse-rows", "hanse-bytes", "hanse-digest")


def chosen(given: Mapping[str, str], accept: str) -> str:
    """The format that a request asks for: `format`, else the best in `Accept` that is ours, else Arrow.

    `guard=true` asks for CSV whose text cells no spreadsheet takes for a formula.
    """
    name = given.get("format") or _accepted(accept)
    guard = given.get("guard", "false")
    if name not in (ARROW, "parquet", "csv") or guard not in ("true", "false"):
        raise BadInput(
            f"expected format arrow, parquet or csv and guard true or false, came {name[:50]!r} and {guard[:50]!r}",
            code="format_unknown",
        )
    if guard == "true" and name != "csv":
        raise BadInput("expected guard beside the format csv only", code="format_unknown")
    return "csv_guarded" if guard == "true" else name


async def send(exchange: Exchange, stream: GovernedStream, form: str, name: str, part: Sender) -> None:
    """The stream as one file with a name; cut off where it does not end whole."""
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
        raise ConnectionAbortedError("the stream did not end whole")
    values = (end.status, str(end.rows), str(end.nbytes), end.digest)
    await exchange.end(dict(zip(_TRAILERS, values, strict=True)))


def _accepted(accept: str) -> str:
    best, found = 0.0, ARROW
    for entry in accept.split(","):
        media, *parameters = (word.strip().lower() for word in entry.split(";"))
        quality = next((_quality(word) for word in parameters if word.startswith("q=")), 1.0)
        if media in _BY_MEDIA and quality > best:
            best, found = quality, _BY_MEDIA[media]
    return found


def _quality(word: str) -> float:
    try:
        return float(word[2:6])
    except ValueError:
        return 0.0
