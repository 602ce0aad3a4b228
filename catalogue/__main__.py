"""The command line of the catalogue: `hanse catalogue serve | ready | migrate | token | member ...`."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from catalogue.settings import CatalogueSettings
from connector.errors import Absent, ConnectorError, WrongState
from connector.setting_types import make_folder, unfit

if TYPE_CHECKING:
    import uvicorn

commands = typer.Typer(help="The data space's operator: members, search, pages.", no_args_is_help=True)
member = typer.Typer(help="Admit, list, suspend and remove members.", no_args_is_help=True)
commands.add_typer(member, name="member")

_LIST_COLUMNS = ("name", "status", "role", "country", "id", "url")


def _run(server: uvicorn.Server) -> None:
    """Serve until a signal ends it."""
    with suppress(KeyboardInterrupt):  # it has ended as it should
        server.run()


@commands.command()
def serve() -> None:
    """Run the catalogue; settings come from the environment (HANSE_...)."""
    gc.disable()  # nothing of what is loaded now is garbage: looking for some takes a tenth of the time
    import uvicorn

    from catalogue.app import create_app
    from catalogue.store.single_instance import hold_exclusively
    from connector.infra.http.http_limits import LimitedHttpProtocol, raise_descriptors
    from connector.telemetry import set_up_logging

    gc.enable()
    settings = _settings()
    set_up_logging(level=settings.log_level, as_json=settings.log_json)
    raise_descriptors()
    host, port = settings.public_host, settings.public_port

    servers: list[uvicorn.Server] = []
    lost: list[WrongState] = []

    def end(why: WrongState) -> None:
        lost.append(why)
        for server in servers:
            server.should_exit = True

    def run_server() -> None:
        make_folder(settings.data_dir, "HANSE_DATA_DIR", mode=0o700)
        with hold_exclusively(settings.data_dir, settings.database, lost=end):
            app = create_app(settings)
            made = uvicorn.Config(
                app, host=host, port=port, http=LimitedHttpProtocol, log_level="warning", access_log=False
            )
            servers.append(server := uvicorn.Server(made))
            if not lost:
                _run(server)
        if lost:  # an exit that supervisors take for a failure: this one is wanted again when the other one is gone
            raise lost[0]
        if not server.started:
            raise typer.Exit(3)  # its log says why

    _run_or_exit(run_server)


@commands.command()
def ready() -> None:
    """Exit 0 if the catalogue with these settings is ready, else 1. For supervisors."""
    from connector.infra.http.readiness_probe import explain_not_ready

    settings = _settings()
    if why := explain_not_ready(settings.public_host, settings.public_port, tls=False):
        typer.echo(why, err=True)
        raise typer.Exit(1)


@commands.command()
def migrate() -> None:
    """Migrate the database to the schema of this program."""
    from catalogue.store.migrate import upgrade

    before, after = _run_or_exit(lambda: upgrade(_settings().database))
    typer.echo(f"schema {after} (was {before or 'empty'})")


@commands.command()
def token() -> None:
    """Make a new token for the operator. The old token and all browser sessions end at once."""
    from catalogue.api.access import replace_token

    settings = _settings()
    file = settings.admin_token_file
    text = _run_or_exit(lambda: _with_store(lambda store: store.write_now(lambda tx: replace_token(tx, file))))
    typer.echo(f"the operator's token is in {file}" if file else f"Operator's token (shown once): {text}")


@member.command("add")
def add(
    did: Annotated[str, typer.Argument(help="The participant's did:web; its document must resolve.")],
    name: Annotated[str, typer.Argument(help="Short name, e.g. north.")],
    title: Annotated[str, typer.Option(help="Name for people.")] = "",
    role: Annotated[str, typer.Option(help="Role in the data space.")] = "participant",
    country: Annotated[str, typer.Option(help="Two capitals (ISO 3166).")] = "",
    url: Annotated[str, typer.Option(help="Root of its public listener; empty is the DID's address.")] = "",
) -> None:
    """Admit a participant."""
    from catalogue.members.members import Application

    wanted = Application(id=did, name=name, title=title, role=role, country=country, url=url)
    row = _with_members(lambda members: members.join(wanted))
    typer.echo(f"{row.name} ({row.id}) is a member")


@member.command("list")
def list_members(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Every member."""
    rows = [
        {name: getattr(row, name) for name in _LIST_COLUMNS} for row in _with_members(lambda members: members.list())
    ]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not rows:
        typer.echo("no members yet; `hanse catalogue member add DID NAME` admits one", err=True)
        return
    for row in [dict(zip(_LIST_COLUMNS, _LIST_COLUMNS, strict=True)), *rows]:
        typer.echo("{name:20} {status:10} {role:15} {country:8} {id}  {url}".format(**row))


@member.command("credentials")
def list_credentials(
    key: Annotated[str, typer.Argument(help="DID or short name.")],
    issue: Annotated[bool, typer.Option(help="Issue a new membership credential first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """A member's issued credentials with their state, and deliveries that are not done."""
    from catalogue.api import schemas

    if issue:
        _with_members(lambda members: members.issue(key))
    issued, asked = _with_members(lambda members: members.credentials(key))
    if as_json:
        rows = {"credentials": [schemas.credential(row) for row in issued]}
        typer.echo(json.dumps({**rows, "requests": [schemas.issuance(row) for row in asked]}, indent=2))
        return
    for row in issued:
        typer.echo(f"{row.state:10} {row.type:30} {row.profile:16} until {_day(row.expires_at)}  {row.id}")
    for row in asked:
        if row.next_at is not None or row.status == "REJECTED":
            typer.echo(f"{row.status:10} {', '.join(row.wanted)}  attempts {row.attempts}  {row.problem}", err=True)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


@member.command("suspend")
def suspend(
    key: Annotated[str, typer.Argument(help="DID or short name.")],
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    lift: Annotated[bool, typer.Option(help="Make the member active again.")] = False,
) -> None:
    """Suspend a member, or lift its suspension."""
    changes = {"status": "active" if lift else "suspended", "reason": reason}
    row = _with_members(lambda members: members.change(key, changes=changes))
    typer.echo(f"{row.name} is {row.status}")


@member.command("remove")
def remove(key: Annotated[str, typer.Argument(help="DID or short name.")]) -> None:
    """End a membership; its datasets leave the search."""
    _with_members(lambda members: members.remove(key))
    typer.echo(f"{key} is no longer a member")


def _settings() -> CatalogueSettings:
    """Read the settings. Exit 2 and name each invalid one."""
    try:
        return CatalogueSettings()
    except ValidationError as error:
        for sentence in unfit(error):
            typer.echo(sentence, err=True)
        raise typer.Exit(2) from None


def _with_members(work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run `work` on the members of the configured database; a running catalogue follows within seconds."""
    from catalogue.members.members import Members
    from connector.infra.net.http_client import AddressGuard, HttpClient

    async def run(store: Any) -> Any:
        settings = _settings()
        guard = AddressGuard(allow=settings.allow_private, insecure_http=settings.insecure_http)
        net = HttpClient(guard, timeout=settings.call_timeout, max_bytes=settings.crawl_page_bytes)
        try:
            return await work(Members(store, net, settings))
        finally:
            await net.close()

    return _run_or_exit(lambda: _with_store(lambda store: asyncio.run(run(store))))


def _with_store(work: Callable[[Any], Any]) -> Any:
    """Run `work` on the configured database, which must exist."""
    from catalogue.store import CatalogueStore
    from catalogue.store.migrate import check_made, upgrade

    settings = _settings()
    check_made(settings.database)
    upgrade(settings.database)
    store = CatalogueStore(settings.database)
    try:
        return work(store)
    finally:
        store.close()


def _run_or_exit(work: Callable[[], Any]) -> Any:
    """Run `work`. A ConnectorError is printed as a sentence and ends the command with status 1, or 4 for Absent."""
    try:
        return work()
    except ConnectorError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(4 if isinstance(error, Absent) else 1) from error


if __name__ == "__main__":
    commands()
