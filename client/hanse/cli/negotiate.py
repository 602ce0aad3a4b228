"""Finding and agreeing: search, negotiate, negotiations, agreements, transfers, revoke, pending, approve."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from hanse.agreement import DPV, quote_segment
from hanse.cli.connection import list_all, space
from hanse.cli.output import (
    AsJson,
    console,
    print_json,
    print_one,
    print_rows,
    print_sentences,
    progress,
    say,
    time_column,
)
from hanse.errors import HanseError

if TYPE_CHECKING:
    from hanse._transport.api import Api

Role = Annotated[str, typer.Option(help="Only ours as consumer or provider.")]
Reason = Annotated[str, typer.Option(help="Why, for the other side and for the log.")]


def register(app: typer.Typer) -> None:
    for command in (search, members, negotiate, negotiations, agreements, transfers, revoke, pending, approve, reject):
        app.command()(command)


def search(
    words: Annotated[list[str] | None, typer.Argument(help="Words to search for.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="A column that it must have; may be repeated.")] = None,
    theme: Annotated[list[str] | None, typer.Option(help="EU data theme, e.g. HEAL.")] = None,
    owner: Annotated[list[str] | None, typer.Option(help="Only of this participant.")] = None,
    terms: Annotated[bool, typer.Option("--terms", help="Show the terms of each in plain words.")] = False,
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """Find datasets in the whole data space."""
    filters = {"theme": theme or [], "participant": owner or []}
    found = space().search(" ".join(words or []), column=column or [], limit=limit, **filters)
    if as_json:
        print_json([dict(entry.raw) for entry in found])
        return
    shown = {"dataset": "path", "title": "title", "columns": "columns", "offers": _classes, "state": "state"}
    print_rows([entry.raw for entry in found], shown, as_json=False)
    for entry in found if terms else []:
        console().print(f"[bold]{escape(entry.path)}[/]")
        print_sentences(entry.sentences)


def members(as_json: AsJson = False) -> None:
    """The members of the data space, as its operator lists them now."""
    shown = {"name": "name", "title": "title", "role": "role", "country": "country", "status": "status", "id": "id"}
    rows = space().api.get("/members")
    if rows or as_json:
        print_rows(rows, shown, as_json=as_json)
        return
    say(
        "no members, as this connector has no register of them: its operator sets HANSE_TRUST_ANCHOR to the DID of the "
        "data space's operator; where that is set, the connector's log says why the register cannot be read"
    )


def negotiate(
    dataset: Annotated[str, typer.Argument(help="participant/dataset, e.g. north/flights.", show_default=False)],
    purpose: Annotated[str, typer.Option(help="What for, e.g. dpv:ScientificResearch.")] = "",
    offer: Annotated[str, typer.Option(help="Which offer, where there are several.")] = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait for the owner.", min=0)] = 60.0,
    again: Annotated[bool, typer.Option("--again", help="Ask anew where somebody said no.")] = False,
    as_json: AsJson = False,
) -> None:
    """Come to an agreement and start the transfer; afterwards the dataset can be queried and streamed."""
    with progress(f"negotiating for {dataset}") as advance:
        got = space().agree(dataset, purpose=purpose, offer=offer, timeout=wait, again=again)
        advance(1)
    row = {"dataset": got.name, "agreement": got.agreement_id, "transfer": got.transfer_id, "sql_name": got.sql_name}
    print_one(row, {name: name for name in row}, as_json=as_json)
    if not as_json:
        print_sentences(got.agreement().get("sentences", []))


def negotiations(role: Role = "", state: Annotated[str, typer.Option()] = "", as_json: AsJson = False) -> None:
    """Negotiations, ours and those of others with us."""
    rows = list_all("/negotiations", role=role, state=state)
    shown = {"id": "id", "role": "role", "with": "counterparty", "dataset": "dataset", "state": "state"}
    more = {"waits for": "waits_for", "why": "reason", "changed": time_column("updated_at")}
    print_rows(rows, {**shown, **more}, as_json=as_json)


def agreements(
    agreement: Annotated[str, typer.Argument(help="Show this one.")] = "", role: Role = "", as_json: AsJson = False
) -> None:
    """Agreements that were signed, or one of them in plain words, with the columns that we may read under it."""
    api = space().api
    if agreement:
        row = api.get(f"/agreements/{quote_segment(agreement)}")
        if row["role"] == "consumer" and row["state"] == "active":
            row = {**row, **_allowed(api, agreement)}
        fields: dict[str, Any] = {"id": "id", "dataset": "dataset", "provider": "provider", "consumer": "consumer"}
        print_one(
            row,
            {**fields, "state": "state", "signed": time_column("signed_at"), "why": "end_reason", "problem": "problem"},
            as_json=as_json,
        )
        if not as_json:
            print_sentences(row.get("sentences", []))
            _print_allowed(row.get("allows", {}))
        return
    shown: dict[str, Any] = {"id": "id", "role": "role", "dataset": "dataset", "with": "counterparty", "state": "state"}
    print_rows(list_all("/agreements", role=role), {**shown, "signed": time_column("signed_at")}, as_json=as_json)


def _allowed(api: Api, agreement: str) -> dict[str, Any]:
    """What its owner lets us read; nothing, and a word why, where it cannot be asked now."""
    try:
        return {"allows": api.get(f"/agreements/{quote_segment(agreement)}/contract")}
    except HanseError as error:
        say(f"its columns are not known now: {error}")
        return {}


def _print_allowed(allows: Mapping[str, Any]) -> None:
    """Columns with their types, once for all actions and purposes that have the same."""
    same: dict[str, list[str]] = {}
    for one in allows.get("contracts", []):
        actions = same.setdefault(json.dumps([one["purposes"], one["columns"]]), [])
        actions += [action.rpartition("/")[2] for action in one["actions"]]
    for about, actions in same.items():
        purposes, columns = json.loads(about)
        told = ", ".join(purposes).replace(DPV, "dpv:") or "any purpose"
        console().print(f"[bold]{escape(', '.join(actions))}[/] for {escape(told)}")
        print_rows(columns, {"column": "name", "type": "type", "masked": "mask"}, as_json=False)


def transfers(role: Role = "", as_json: AsJson = False) -> None:
    """Transfers and how they stand."""
    rows = list_all("/transfers", role=role)
    datasets = {} if as_json or not rows else _datasets(role)
    shown = {
        "id": "id",
        "role": "role",
        "dataset": lambda row: datasets.get(row["agreement_id"]),
        "with": "counterparty",
    }
    more = {"agreement": "agreement_id", "state": "state", "purpose": "purpose", "why": "reason"}
    print_rows(rows, {**shown, **more, "changed": time_column("updated_at")}, as_json=as_json)


def _datasets(role: str) -> dict[str, str]:
    """What each agreement is about, by its id; none where the agreements cannot be had."""
    try:
        return {str(one["id"]): str(one["dataset"]) for one in list_all("/agreements", role=role)}
    except HanseError:
        return {}


def revoke(
    agreement: Annotated[str, typer.Argument(help="The agreement's id.", show_default=False)],
    reason: Reason = "revoked by its owner",
    as_json: AsJson = False,
) -> None:
    """End an agreement now: running streams stop, no new ones start."""
    started = time.monotonic()
    row = space().api.post(f"/agreements/{quote_segment(agreement)}/revoke", {"reason": reason})
    if as_json:
        print_json(row or {"id": agreement})
        return
    say(
        f"{agreement} is revoked ({(time.monotonic() - started) * 1000:.0f} ms), and in the log here; the other side "
        "hears of it with the end of its transfers, once it can be reached"
    )
    if others := (row or {}).get("others"):
        say(
            f"its consumer has {len(others)} more under the same offer, each to be revoked by itself: "
            f"{', '.join(others)}"
        )


def pending(as_json: AsJson = False) -> None:
    """Negotiations that wait for a person here."""
    api = space().api
    rows = api.get("/negotiations", waiting_for_us="true")
    names = {} if as_json or not rows else _names(api)
    shown = {"id": "id", "name": lambda row: names.get(row["counterparty"]), "with": "counterparty"}
    more = {"dataset": "dataset", "offer": "offer_id", "state": "state", "why": "reason"}
    print_rows(rows, {**shown, **more, "since": time_column("updated_at")}, as_json=as_json)
    if as_json or not rows:
        return
    for row in rows:
        console().print(f"[bold]{escape(str(row['id']))}[/] would be agreed on these terms:")
        print_sentences(row.get("sentences", []))
    say("answer with `hanse approve ID` or `hanse reject ID --reason ...`")


def _names(api: Api) -> dict[str, str]:
    """Members' names by their DIDs; none where the register cannot be had."""
    try:
        return {str(one["id"]): str(one.get("name") or "") for one in api.get("/members")}
    except HanseError:
        return {}


def approve(
    negotiation: Annotated[str, typer.Argument(help="The negotiation's id.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say yes: agree as provider, accept an offer or verify an agreement as consumer."""
    row = space().api.post(f"/negotiations/{quote_segment(negotiation)}/approve", {})
    print_one(row, {"id": "id", "state": "state"}, as_json=as_json)
    if row.get("pending") and not as_json:
        say("the approval is being sent: the state changes when the other side has it; see `hanse negotiations`")


def reject(
    negotiation: Annotated[str, typer.Argument(help="The negotiation's id.", show_default=False)],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Say no: the negotiation ends, and the other side gets the reason."""
    row = space().api.post(
        f"/negotiations/{quote_segment(negotiation)}/terminate", {"reason": reason} if reason else {}
    )
    print_one(row, {"id": "id", "state": "state"}, as_json=as_json)


def _classes(row: Mapping[str, Any]) -> str:
    """What kind of terms there are, over all offers."""
    offers = [offer for offer in row.get("offers", []) if isinstance(offer, Mapping)]
    return ", ".join(sorted({str(name) for offer in offers for name in offer.get("classes", [])})) or str(len(offers))
