"""Management API of the audit log: records with filters and proofs, the signed head, tiles for monitors, evidence
files.

Each read of records publishes `LogRead`, which is durable before the first byte is sent. The head, tiles and entries
hold only salted hashes. Machines read them every few seconds, and recording that would make the log grow for ever.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from connector.audit.cosigning import Cosigning
from connector.audit.export import blocks, export
from connector.audit.log import AuditLog, Filter
from connector.audit.record import Record
from connector.audit.signed_note import Signer
from connector.errors import Absent, Invalid
from connector.events import LogRead
from connector.management.sign_on.auth import Caller, Tokens

_PATH = re.compile(r"(?P<n>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<wide>[1-9][0-9]{0,2}))?")
_IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
_INDEX_MAX = 2**62


def router(log: AuditLog, *, signer: Signer, cosigning: Cosigning, data_dir: Path, tokens: Tokens) -> APIRouter:
    """The routes under /audit. Evidence files are put together in `data_dir`."""
    routes = APIRouter(prefix="/audit", tags=["audit"])
    may_read = Depends(tokens.require("audit"))

    @routes.get("/events")
    async def list_events(
        which: Annotated[Filter, Depends(_filter)],
        before: Annotated[int | None, Query(ge=0, le=_INDEX_MAX, description="Only records below this index.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        caller: Caller = may_read,
    ) -> dict[str, Any]:
        """The newest records that fit, newest first; `next` is the `before` of the page that follows."""
        await log.note_reading(log_read_event(caller, "list", which.terms))
        records = await log.page(await log.resolve_dataset(which), before=before, limit=limit)
        more = len(records) == limit and records[-1].idx > 0
        return {"records": [_record_json(record) for record in records], "next": records[-1].idx if more else None}

    @routes.get("/events/{idx}")
    async def one_event(idx: int, caller: Caller = may_read) -> dict[str, Any]:
        """One record, its leaf, and the proof that it is in the log (C2SP tlog-proof)."""
        if not 0 <= idx <= _INDEX_MAX:
            raise Absent(f"the log has no record {idx}")
        await log.note_reading(log_read_event(caller, "record", {"idx": idx}))
        proven = await log.prove(idx)
        return {
            **_record_json(proven.record),
            "leaf": proven.record.leaf.decode(),
            "proof": proven.proof,
            "key": log.vkey,
        }

    @routes.get("/export", response_class=StreamingResponse)
    async def export_evidence(
        which: Annotated[Filter, Depends(_filter)], caller: Caller = may_read
    ) -> StreamingResponse:
        """An evidence file (zip) that `hanse audit verify` checks offline: the whole log, or the records that fit."""
        await log.note_reading(log_read_event(caller, "export", which.terms))
        file = await export(log, signer=signer, which=await log.resolve_dataset(which), directory=data_dir)
        length = file.seek(0, 2)
        file.seek(0)
        headers = {"content-disposition": 'attachment; filename="evidence.zip"', "content-length": str(length)}
        return StreamingResponse(blocks(file), media_type="application/zip", headers=headers)

    @routes.get("/key", response_class=PlainTextResponse)
    async def verifier_key(_: Caller = may_read) -> str:
        """The log's verifier key. Keep it: a copy from elsewhere is what makes a check worth anything."""
        return f"{log.vkey}\n"

    @routes.get("/witnesses")
    async def witnesses(_: Caller = may_read) -> dict[str, Any]:
        """The witnesses of our log (C2SP tlog-witness): their keys, and the newest size that each has cosigned."""
        return {"log": log.vkey, "witnesses": [asdict(one) for one in await cosigning.statuses()]}

    @routes.get("/checkpoint", response_class=PlainTextResponse)
    async def checkpoint(_: Caller = may_read) -> PlainTextResponse:
        """The newest signed head (C2SP tlog-checkpoint)."""
        return PlainTextResponse(await log.head(), headers={"cache-control": "no-store"})

    @routes.get("/consistency")
    async def consistency(
        old: Annotated[int, Query(ge=1, le=_INDEX_MAX)],
        new: Annotated[int, Query(ge=1, le=_INDEX_MAX)],
        _: Caller = may_read,
    ) -> dict[str, list[str]]:
        """The proof that the first `old` records are a prefix of the first `new` (RFC 6962 §2.1.2)."""
        return {"hashes": [base64.b64encode(step).decode() for step in await log.consistency(old, new)]}

    @routes.get("/tile/entries/{path:path}", response_class=Response)
    async def entry_bundle(path: str, _: Caller = may_read) -> Response:
        """Up to 256 log entries: salted commitments, no content (C2SP tlog-tiles)."""
        n, wide = _tile_path(path)
        return Response(await log.entries(n, wide), media_type="application/octet-stream", headers=_IMMUTABLE)

    @routes.get("/tile/{level}/{path:path}", response_class=Response)
    async def tile(level: int, path: str, _: Caller = may_read) -> Response:
        """Up to 256 hashes of the tree (C2SP tlog-tiles)."""
        if not 0 <= level <= 63:
            raise Absent(f"expected a level from 0 to 63, came {level}")
        n, wide = _tile_path(path)
        return Response(await log.tile(level, n, wide), media_type="application/octet-stream", headers=_IMMUTABLE)

    return routes


def _filter(
    kind: Annotated[str, Query(max_length=64, description="What happened, as `ReadRefused`.")] = "",
    actor: Annotated[str, Query(max_length=255)] = "",
    agreement: Annotated[str, Query(max_length=255)] = "",
    dataset: Annotated[str, Query(max_length=255, description='Id, name (`owner/name`), or "very text".')] = "",
    outcome: Annotated[str, Query(max_length=64, description="ok, refused, failed or broken.")] = "",
    since: Annotated[str, Query(max_length=40, description="ISO 8601 with a zone.")] = "",
    until: Annotated[str, Query(max_length=40, description="ISO 8601 with a zone; not included.")] = "",
) -> Filter:
    return Filter(
        kind=kind,
        actor=actor,
        agreement=agreement,
        dataset=dataset,
        outcome=outcome,
        since=_moment("since", since),
        until=_moment("until", until),
    )


def _moment(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Invalid(f"{name}: expected a time with its zone such as 2026-11-24T12:00:00Z, came {text!r}")
    return moment.timestamp()


def _tile_path(path: str) -> tuple[int, int]:
    """Return the number of a tile and how many of its hashes are requested: `x001/x234/067`, `000.p/12`."""
    found = _PATH.fullmatch(path)
    if found is None or len(path) > 40:
        raise Absent(f"expected a tile such as x001/234 or 000.p/12, came {path[:60]!r}")
    number = found["n"].replace("x", "").replace("/", "")
    wide = int(found["wide"] or 256)
    if int(number) > _INDEX_MAX // 256:
        raise Absent("the log has no tile of such a number; read the checkpoint for its size")
    if wide > 256 or (found["wide"] and wide > 255) or ("/" in found["n"] and number.startswith("000")):
        raise Absent(f"expected a tile such as x001/234 or 000.p/12, came {path[:60]!r}")
    return int(number), wide


def _record_json(record: Record) -> dict[str, Any]:
    salt = base64.b64encode(record.salt).decode()
    return {"idx": record.idx, "ts": record.ts, "kind": record.kind, "body": json.loads(record.text), "salt": salt}


def log_read_event(caller: Caller, what: str, terms: dict[str, Any]) -> LogRead:
    """Return the event for a read of the log."""
    return LogRead(actor=caller.name, detail={"what": what, **({"terms": terms} if terms else {})})
