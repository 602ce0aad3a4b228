"""The commands `hanse connector serve | ready | migrate | restored | new-key |
import-credential | settings`, an entry point."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from connector.errors import ConnectorError
from connector.setting_types import unfit
from connector.settings import Settings, find_misspelt

commands = typer.Typer(help="Run a participant's connector.", no_args_is_help=True)


def _settings() -> Settings:
    for name, near in find_misspelt(os.environ):
        typer.echo(f"{name} is not a setting and is ignored; did you mean {near}?", err=True)
    try:
        return Settings()
    except (ValidationError, SettingsError) as error:
        for sentence in unfit(error):
            typer.echo(sentence, err=True)
        raise typer.Exit(2) from None


@commands.command()
def serve() -> None:
    """Serve both listeners until SIGTERM (settings: environment, HANSE_...; list them with `settings`)."""
    settings = _settings()
    gc.disable()  # imports create no garbage, and collecting takes a tenth of their time
    from connector.server import serve as run

    gc.enable()
    try:
        run_loop(run(settings))
    except ConnectorError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from None


@commands.command()
def migrate() -> None:
    """Migrate the database to the schema of this program."""
    from connector.store.migrate import upgrade

    settings = _settings()
    try:
        before, after = upgrade(settings.database)
    except ConnectorError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from None
    typer.echo(f"schema {after}" + ("" if before == after else f" (was {before or 'empty'})"))


@commands.command()
def restored(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    lost_log_key: Annotated[bool, typer.Option(help="The log's key is lost, and keys/log.key is a new key.")] = False,
) -> None:
    """Continue with a database that was restored from a copy: ends agreements, offers and tokens, and changes the log's
    key. No process may serve the database meanwhile."""
    from connector.restored_database import go_on, place

    settings = _settings()
    where = place(settings)
    if not yes:
        typer.confirm(
            f"This ends every agreement that {settings.name} has as a provider, withdraws its offers, ends its tokens "
            f"and gives its log another key, in {where}. Continue?",
            abort=True,
        )
    try:
        done = asyncio.run(go_on(settings, lost_log_key=lost_log_key))
    except ConnectorError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from None
    typer.echo(f"restored: {where}")
    typer.echo(f"ended: {done.agreements} agreements, {done.negotiations} negotiations, {done.tokens} tokens")
    typer.echo(f"withdrawn: {done.offers} offers")
    typer.echo(f"the log continues with record {done.size}, under this key, which auditors need: {done.vkey}")


@commands.command("new-key")
def new_key() -> None:
    """Make a new key that signs for the participant. The DID document goes on listing the old one. Takes effect at the
    next start."""
    from connector.identity import keys

    settings = _settings()
    directory = settings.data_dir / "keys"
    try:
        key = keys.change_participant_key(directory)
    except ConnectorError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from None
    typer.echo(f"new key {key.thumbprint()} in {directory}; restart the connector")
    typer.echo("the DID document goes on listing the files participant-*.pem: remove each when nothing needs its key")


@commands.command("import-credential")
def import_credential(file: Annotated[Path, typer.Argument(help="A credential about us, as a JWT.")]) -> None:
    """Check a credential with its issuer's DID document and store it, for verifiers to see. Takes effect at once."""
    from connector.wallet.import_credential import import_credential as store

    try:
        row = asyncio.run(store(_settings(), file))
    except ConnectorError as error:
        typer.echo(f"{error.message}{f' ({error.private})' if error.private else ''}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"stored {', '.join(row.types)} of {row.issuer}")


@commands.command()
def ready() -> None:
    """Exit with 0 if the connector with these settings is ready, otherwise with 1; for supervisors."""
    from connector.infra.http.readiness_probe import explain_not_ready

    settings = _settings()
    if why := explain_not_ready(settings.public_host, settings.public_port, tls=settings.tls_certificate is not None):
        typer.echo(why, err=True)
        raise typer.Exit(1)


@commands.command("settings")
def show_settings() -> None:
    """List all settings with their defaults and help."""
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        typer.echo(f"HANSE_{name.upper()}={default if default is not None else ''}\n    {field.description}")


def run_loop(main: object) -> None:
    """Run a coroutine on uvloop, which hands buffers to the kernel without copying them."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)  # type: ignore[arg-type]  # a coroutine


if __name__ == "__main__":
    sys.exit(commands())
