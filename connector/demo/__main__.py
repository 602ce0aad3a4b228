"""`hanse demo`: play the tour on a small data space on this machine, then keep it running."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from hanse.audit import read_receipts
from rich.markup import escape

from connector.demo.show import Show
from connector.demo.space import DEFAULT_PORT, PORT_SETTING, DemoSpace, read_tail
from connector.demo.story import Story
from connector.errors import ConnectorError

_DIRECTORY = Path("var/demo")


def commands(
    once: Annotated[bool, typer.Option(help="Play the story and end; exit status 0 only if every step held.")] = False,
    directory: Annotated[
        Path, typer.Option(help="Where the demo keeps its things; data is kept between runs.")
    ] = _DIRECTORY,
    port: Annotated[int, typer.Option(envvar=PORT_SETTING, help="First of the ten ports it uses.")] = DEFAULT_PORT,
    began: Annotated[float, typer.Option(envvar="HANSE_DEMO_BEGAN", hidden=True, help="When set-up began.")] = 0.0,
) -> None:
    """A governed data space on this machine: three owners, a catalogue, a gigafactory, and what they do together."""
    if not 1024 <= port <= 65_000:
        typer.echo(f"expected {PORT_SETTING} between 1024 and 65000, got {port}", err=True)
        raise typer.Exit(2)
    raise typer.Exit(play(DemoSpace(directory.resolve(), port), once=once, began=began))


def play(space: DemoSpace, *, once: bool, began: float = 0.0) -> int:
    """Play the tour; return the exit status: 0 if every step succeeded."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    show = Show()
    try:
        clear_state(space)
        Story(space, show).tell()
        setting_up = f", {time.time() - began:.0f} s with the set-up" if began else ""
        show.console.print(f"\n[bold]Every step held, {time.monotonic() - show.began:.1f} s in all{setting_up}.[/bold]")
        if not once:
            keep_running(space, show)
        return 0
    except KeyboardInterrupt:
        show.console.print("\n[dim]stopped[/dim]")
        return 130
    except (ConnectorError, AssertionError) as error:
        show.console.print(f"\n[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 1
    except Exception:  # noqa: BLE001  # the demo shows any error, ends every process and exits with 1
        show.console.print_exception(max_frames=6)
        for member in space.members.values():
            show.console.print(
                f"[dim]{member.name}, the end of {member.log}:\n{read_tail(member.log, 6)}[/dim]", soft_wrap=True
            )
        return 1
    finally:
        read_receipts.leave()
        space.stop()


def clear_state(space: DemoSpace) -> None:
    """Delete keys and databases of an earlier run; the data files stay."""
    import shutil

    space.directory.mkdir(parents=True, exist_ok=True)
    for member in space.members.values():
        shutil.rmtree(member.directory, ignore_errors=True)


def keep_running(space: DemoSpace, show: Show) -> None:
    """Show the addresses and keep running until interrupted."""
    show.chapter("It stays up; Ctrl-C ends it")
    show.table(
        ("what", "address", "token to log in with"),
        [
            ("catalogue", space.catalogue.url, space.catalogue.token),
            *((f"console of {m.name}", m.management, m.token) for m in space.connectors),
            ("API of north", f"{space.members['north'].management}/docs", "the same"),
            ("help", f"{space.members['north'].management}/help/", "none is needed"),
        ],
    )
    forge = space.members["forge"]
    show.note(f"export HANSE_URL={forge.management} HANSE_TOKEN={forge.token}")
    show.note('hanse search "breast cancer"')
    show.note(
        "hanse query 'SELECT horTh, count(*) AS n FROM \"all\".patients GROUP BY horTh' "
        "--purpose dpv:ScientificResearch"
    )
    while all(member.process is not None and member.process.poll() is None for member in space.members.values()):
        time.sleep(0.5)
    ended = [m.name for m in space.members.values() if m.process is not None and m.process.poll() is not None]
    show.console.print(f"[red]{', '.join(ended)} ended; see the logs under {space.directory}[/red]")
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    typer.run(commands)
