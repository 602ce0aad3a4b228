"""Audit pages: records with filters, one record with its checked proof, and the export of evidence."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from connector.audit.cosigning import Cosigning
from connector.audit.log import AuditLog, Filter
from connector.audit.record import Record
from connector.audit.signed_note import Signer, read_head
from connector.console.page import PageRenderer
from connector.console.view import proof_check
from connector.console.view.formatting import KINDS, did_of
from connector.errors import Absent, Invalid
from connector.events import OUTCOMES
from connector.management.audit import log_read_event
from connector.management.sign_on.auth import Caller

_LISTED = 50
_LOG_READ = "LogRead"
_DIGITS_MAX = 18  # digits that fit a 64-bit integer column
_EQUALS = ("kind", "actor", "agreement", "dataset", "outcome")
_SPAN = ("since", "until")


def router(pages: PageRenderer, *, log: AuditLog, signer: Signer, cosigning: Cosigning) -> APIRouter:
    routes = pages.router()

    @routes.get("/audit")
    async def list_records(
        request: Request, before: str = "", log_reads: bool = False, caller: Caller = pages.may("audit")
    ) -> Response:
        """Records with filters. That the log was read is a record too, and is shown only to those who ask for it."""
        asked = {name: request.query_params.get(name, "")[:255].strip() for name in (*_EQUALS, *_SPAN)}
        asked |= {
            name: _parse_instant(name, asked[name]) for name in _SPAN
        }  # links and fields show the normalized times
        asked["actor"] = did_of(asked["actor"], await pages.names())
        which = _make_filter(asked)
        await log.note_reading(log_read_event(caller, "list", which.terms))
        numbered = before.isdecimal() and len(before) <= _DIGITS_MAX  # a larger number is above every record's
        hidden = "" if log_reads or which.kind == _LOG_READ else _LOG_READ
        records = await log.page(
            await log.resolve_dataset(which), before=int(before) if numbered else None, limit=_LISTED, without=hidden
        )
        more = records[-1].idx if len(records) == _LISTED and records[-1].idx > 0 else None
        given = {name: value for name, value in asked.items() if value}
        listed = given | ({"log_reads": "1"} if log_reads else {})
        return await pages.render(
            request,
            "audit.html",
            where="audit",
            records=[record_to_view(record) for record in records],
            asked=asked,
            given=given,
            more=more,
            before=before,
            head=read_head(await log.head()),
            vkey=log.vkey,
            witnesses=await cosigning.statuses(),
            kinds=KINDS,
            outcomes=OUTCOMES,
            hidden=hidden,
            log_reads=log_reads,
            export_terms=urlencode(given),
            link=lambda **changes: _link(listed, changes),
        )

    @routes.get("/audit/{idx}")
    async def view_record(request: Request, idx: int, caller: Caller = pages.may("audit")) -> Response:
        if not 0 <= idx < 2**62:
            raise Absent(f"the log has no record {idx}")
        await log.note_reading(log_read_event(caller, "record", {"idx": idx}))
        await log.sequencer.settle()
        proven = await log.prove(idx)
        return await pages.render(
            request,
            "record.html",
            where="audit",
            record=record_to_view(proven.record),
            text=json.dumps(json.loads(proven.record.text), indent=2, ensure_ascii=False),
            proof=proven.proof,
            leaf=proven.record.leaf.decode(),
            checks=proof_check.check(proven, signer=signer),
            vkey=log.vkey,
        )

    return routes


def record_to_view(record: Record) -> dict[str, Any]:
    """Convert a record to the form that templates use."""
    return {"idx": record.idx, "ts": record.ts, "kind": record.kind, "body": json.loads(record.text)}


def _make_filter(asked: dict[str, str]) -> Filter:
    equals = {name: asked[name] for name in _EQUALS}
    since, until = (datetime.fromisoformat(asked[name]).timestamp() if asked[name] else None for name in _SPAN)
    return Filter(**equals, since=since, until=until)


def _parse_instant(name: str, text: str) -> str:
    """Normalize a time from a form (no zone: UTC) or a link to UTC, with the precision that a form can send back."""
    if not text:
        return ""
    try:
        found = datetime.fromisoformat(text)
        utc = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Invalid(f"{name}: expected a time such as 2026-11-24T12:00, got {text[:40]!r}") from None
    return utc.isoformat(timespec="milliseconds" if utc.microsecond else "seconds").replace("+00:00", "Z")


def _link(given: dict[str, str], changes: dict[str, Any]) -> str:
    """Return the link to the list with some filters changed; an empty value removes one."""
    wanted = {name: str(value) for name, value in {**given, **changes}.items() if value not in ("", None)}
    return f"/audit?{urlencode(wanted)}" if wanted else "/audit"
