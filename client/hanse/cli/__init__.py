"""The command line `hanse`: groups of commands, one file each, and the server's commands where the server is installed.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 refused by policy or contract; 4 not found; 5 not reachable;
6 evidence does not hold; 7 evidence holds, but who signed it is not known; 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hanse.cli import (
    audit,
    config,
    connection,
    dataset,
    duty,
    fact,
    match,
    negotiate,
    offer,
    policy,
    query,
    token,
    transfer,
)
from hanse.cli.output import EXIT, describe_place, exit_code, print_error
from hanse.errors import BadInput, HanseError

_GROUP = "hanse.commands"
_OF_SERVER = {
    "connector": "Run a participant's connector: serve, migrate, settings.",
    "catalogue": "Run a data space's catalogue: serve, migrate, member.",
    "demo": "A small data space on this machine, and its story.",
    "docs": "The help as a site on this machine.",
}


class Root(TyperGroup):
    """Lists the server's commands without importing the server; one is loaded when it is used."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. A broken pipe ends it without an error: `hanse ... | head`.

        Handled here, because typer would treat it as a failure without a message.
        """
        try:
            returned = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # also for what is still buffered
            raise typer.Exit(EXIT["ok"]) from None
        return returned

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(name for name in _installed() if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command of the client, or a placeholder for the help."""
        if cmd_name in self.commands or cmd_name not in _installed():
            return super().get_command(ctx, cmd_name)
        return TyperCommand(cmd_name, help=_OF_SERVER.get(cmd_name, "A command of an installed extension."))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command to run: the placeholder becomes the real one."""
        name = args[0]
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        if (found := _installed().get(name)) is not None:
            return name, _loaded(found), args[1:]
        if name in _OF_SERVER:
            ctx.fail(
                f"`hanse {name}` comes with the server, which is not installed here: `make setup` in a checkout of "
                "Hanse has both"
            )
        return super().resolve_command(ctx, args)


def _installed() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=_GROUP)}


def _loaded(found: EntryPoint) -> Any:
    """An entry point is a Typer application, or a function that is one command by itself."""
    made = found.load()
    if not isinstance(made, typer.Typer):
        alone = typer.Typer(pretty_exceptions_enable=False)
        alone.command()(made)
        made = alone
    command = typer.main.get_command(made)
    command.name = found.name
    return command


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find, agree on, query and stream the data of a data space; offer your own.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 not found, 5 unreachable, 6 evidence does not hold, "
    "7 evidence holds, but who signed it is not known.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"hanse {version('hanse')}")
        raise typer.Exit


@app.callback()
def options(
    url: Annotated[
        str, typer.Option(help="Your connector's management listener. [HANSE_URL]", show_default=False)
    ] = "",
    secret: Annotated[str, typer.Option("--token", help="A token of it. [HANSE_TOKEN]", show_default=False)] = "",
    _: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)] = False,
) -> None:
    """Where to go; without these, the environment and `hanse login` say."""
    connection.GLOBAL_OPTIONS.url, connection.GLOBAL_OPTIONS.token = url, secret


app.add_typer(dataset.commands, name="dataset")
app.add_typer(offer.commands, name="offer")
app.add_typer(policy.commands, name="policy")
app.add_typer(fact.commands, name="fact")
app.add_typer(fact.credential_commands, name="credential")
app.add_typer(duty.commands, name="duty")
match.register(audit.commands)
app.add_typer(audit.commands, name="audit")
app.add_typer(token.commands, name="token")
app.add_typer(transfer.commands, name="transfer")
for part in (config, negotiate, query, transfer):
    part.register(app)


def _somewhere() -> None:
    """What is written to a stream that was closed before (`>&-`) goes nowhere, as to `/dev/null`.

    Python has None for it then, and the next file or socket would be open in its place.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  open for as long as the process is
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def main(args: Sequence[str] | None = None) -> None:
    """The console script: runs a command, and turns every error into a sentence and an exit code."""
    _somewhere()
    try:
        app(args)
    except HanseError as error:
        print_error(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        print_error(HanseError(f"{describe_place(error)}: {error.strerror or error}", code="file"))
        sys.exit(EXIT["failed"])
    except UnicodeEncodeError as error:
        if re.search("[\udc80-\udcff]", error.object[error.start : error.end]):  # bytes of the command line
            said = "expected words and names in UTF-8, got one in another encoding; write, or rename, it anew"
        else:
            said = f"the output is in {error.encoding}, which lacks signs of what is to be said; set PYTHONUTF8=1"
        print_error(BadInput(said))
        sys.exit(EXIT["failed"])
    except Exception as error:
        if os.environ.get("HANSE_DEBUG"):
            raise
        # Only its kind: the text of a foreign error may quote anything, a token among it.
        what = type(error).__name__
        print_error(HanseError(f"the command failed unexpectedly ({what}); HANSE_DEBUG=1 shows where", code="defect"))
        sys.exit(EXIT["failed"])


if __name__ == "__main__":
    main()
