"""`hanse demo`: play the story on a small data space on this machine, and keep it running to look around."""

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
from connector.demo.space import DEFAULT_PORT, PORT_SETTING, Space, tail
from connector.demo.story import Story
from connector.errors import HanseError

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
        typer.echo(f"expected {PORT_SETTING} between 1024 and 65000, came {port}", err=True)
        raise typer.Exit(2)
    raise typer.Exit(play(Space(directory.resolve(), port), once=once, began=began))


def play(space: Space, *, once: bool, began: float = 0.0) -> int:
    """The exit status: 0 when every step did what it should."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    show = Show()
    try:
        fresh(space)
        Story(space, show).tell()
        setting_up = f", {time.time() - began:.0f} s with the set-up" if began else ""
        show.console.print(f"\n[bold]Every step held, {time.monotonic() - show.began:.1f} s in all{setting_up}.[/bold]")
        if not once:
            stay(space, show)
        return 0
    except KeyboardInterrupt:
        show.console.print("\n[dim]stopped[/dim]")
        return 130
    except (HanseError, AssertionError) as error:
        show.console.print(f"\n[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 1
    except Exception:  # noqa: BLE001  # whatever it was, the demo shows it, ends every process and says 1
        show.console.print_exception(max_frames=6)
        for member in space.members.values():
            show.console.print(
                f"[dim]{member.name}, the end of {member.log}:\n{tail(member.log, 6)}[/dim]", soft_wrap=True
            )
        return 1
    finally:
        read_receipts.leave()
        space.stop()


def fresh(space: Space) -> None:
    """Start from nothing but the data: keys and databases of an earlier run go."""
    import shutil

    space.directory.mkdir(parents=True, exist_ok=True)
    for member in space.members.values():
        shutil.rmtree(member.directory, ignore_errors=True)


def stay(space: Space, show: Show) -> None:
    """Keep running until interrupted, with the addresses to look at."""
    show.chapter("It stays up; Ctrl-C ends it")
    show.table(
        ("what", "address", "token to log in with"),
        [
            ("catalogue", space.catalogue.url, space.catalogue.token),
            *((f"console of {m.name}", m.management, m.token) for m in space.connectors),
            ("API of north", f"{space.members['north'].management}/docs", "the same"),
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
