"""`hanse fact`: what you know of participants (permits, environments, roles) and of your datasets, and vouch for.

`hanse credential`: what issuers vouch for about you.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Annotated, Any

import typer

from hanse.agreement import quote_segment
from hanse.cli.connection import list_all, space
from hanse.cli.output import AsJson, format_time, print_json, print_one, print_rows, say, time_column

commands = typer.Typer(help="What you know of participants, and vouch for.", no_args_is_help=True)

Subject = Annotated[str, typer.Argument(help="A participant's DID, or the name of a dataset.", show_default=False)]
Word = Annotated[str, typer.Argument(metavar="FACT", help="A word of policies, e.g. ds:permit.", show_default=False)]


@commands.command("add")
def add(
    subject: Subject,
    fact: Word,
    value: Annotated[list[str], typer.Argument(metavar="VALUE...", help="One value or several.", show_default=False)],
    until: Annotated[str, typer.Option(help="Valid until: 2027-12-31, or a time with its zone.")] = "",
    evidence: Annotated[str, typer.Option(help="Where you know it from: a certificate, a letter.")] = "",
    as_json: AsJson = False,
) -> None:
    """Vouch for a fact: policies that ask for it are decided by it from now on."""
    body = {"subject": subject, "fact": fact, "values": value, "valid_until": until, "evidence": evidence}
    rows = space().api.post("/facts", body)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ends = f" until {format_time(row['valid_until'])}" if row.get("valid_until") else ""
        say(f"you vouch that {row['fact']} of {row['subject']} is {row['value']}{ends}")


@commands.command("list")
def list_(as_json: AsJson = False) -> None:
    """What you vouch for."""
    columns = {"subject": "subject", "fact": "fact", "value": "value", "until": time_column("valid_until")}
    print_rows(
        list_all("/facts", after=itemgetter("subject", "fact", "value")),
        {**columns, "evidence": "evidence", "by": "recorded_by"},
        as_json=as_json,
    )


@commands.command()
def remove(
    subject: Subject,
    fact: Word,
    value: Annotated[str, typer.Argument(help="Only this value; else all of the fact.")] = "",
) -> None:
    """Vouch for it no longer; reads that rest on it end within seconds."""
    chosen = {"subject": subject, "fact": fact, **({"value": value} if value else {})}
    space().api.delete("/facts", **chosen)
    say(f"you no longer vouch for {fact} of {subject}")


@commands.command("known")
def show_known(
    participant: Annotated[str, typer.Argument(help="A participant's DID.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a participant now, from whom, and who could supply the rest."""
    found = space().api.get("/facts/known", participant=participant)
    if as_json:
        print_json(found)
        return
    rows = [
        {"fact": fact, "value": entry["values"], "from": entry["source"], "until": format_time(entry.get("validUntil"))}
        for fact, entry in found["known"].items()
    ]
    rows += [{"fact": fact, "value": "(unknown)", "from": f"could be: {who}"} for fact, who in found["unknown"].items()]
    print_rows(rows, {"fact": "fact", "value": "value", "from": "from", "until": "until"}, as_json=False)


credential_commands = typer.Typer(help="What issuers vouch for about you: list and request it.", no_args_is_help=True)
_REQUEST = {"id": "id", "type": "type", "status": "status", "issuer": "issuer", "reason": "reason"}


@credential_commands.command("list")
def list_credentials(as_json: AsJson = False) -> None:
    """The credentials that your connector holds, with their status now."""
    columns = {"types": _types, "status": "status", "issuer": "issuer", "ends": time_column("expires")}
    print_rows(space().api.get("/credentials"), columns, as_json=as_json)


@credential_commands.command("request")
def request_credential(
    issuer: Annotated[str, typer.Option(help="DID of an issuer in HANSE_CREDENTIAL_ISSUERS.", show_default=False)],
    type_: Annotated[str, typer.Option("--type", help="Type, e.g. MembershipCredential.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Ask an issuer for a credential. It delivers to your connector, at once or once a person there has decided."""
    made = space().api.post("/credentials/requests", {"issuer": issuer, "type": type_})
    print_one(made, _REQUEST, as_json=as_json)
    if not as_json:
        say(f"see what came of it with `hanse credential show {made['id']}`")


@credential_commands.command("requests")
def list_credential_requests(as_json: AsJson = False) -> None:
    """Your requests, as last known."""
    print_rows(space().api.get("/credentials/requests"), _REQUEST, as_json=as_json)


@credential_commands.command("show")
def show_credential_request(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The request's id.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """One request, with the status that its issuer gives now."""
    row = space().api.get(f"/credentials/requests/{quote_segment(id_)}")
    print_one(row, _REQUEST, as_json=as_json)


def _types(row: Mapping[str, Any]) -> str:
    return ", ".join(one for one in row["types"] if one != "VerifiableCredential")
