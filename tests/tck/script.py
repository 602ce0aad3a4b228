"""The table of scripted behaviours (`cases.yaml`), and the player that follows it. Knows no HTTP and no connector."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Command = Callable[[str, str, str], Awaitable[None]]  # kind of process, its pid, the command


@dataclass(frozen=True, slots=True)
class Step:
    """When the process reaches `state`, send `command`."""

    state: str
    command: str


@dataclass(frozen=True, slots=True)
class Case:
    """One row: its subject (a dataset, or an agreement made for it in a role), and what is played."""

    id: str
    dataset: str = ""
    offer: str = ""
    agreement: str = ""
    play: tuple[Step, ...] = ()

    @property
    def prefix(self) -> str:
        """How the kit's properties spell the case."""
        return re.sub("[:-]", "_", self.id)


@dataclass(frozen=True, slots=True)
class Table:
    participant: str
    format: str
    policy: dict[str, Any]
    after: float
    agreements: Mapping[str, Case]
    cases: Mapping[str, Case]


@dataclass(frozen=True, slots=True)
class Change:
    """A process reached a state, as the connector's events tell it."""

    kind: str  # negotiation | transfer
    pid: str
    subject: str  # dataset of a negotiation, agreement of a transfer
    state: str


def load(path: Path) -> Table:
    """The table in `path`. A row that says something unknown is a TypeError."""
    raw: dict[str, Any] = yaml.safe_load(path.read_text())
    for part in ("agreements", "cases"):
        raw[part] = {key: _case(key, row) for key, row in raw[part].items()}
    return Table(**raw)


def _case(name: str, row: dict[str, Any]) -> Case:
    steps = tuple(Step(*line.split()) for line in row.get("play", ()))
    return Case(name, **{**row, "play": steps})


class Player:
    """Follows the scripts: each process has its own place in the script of its subject."""

    def __init__(self, command: Command, *, after: float) -> None:
        self._command = command
        self._scripts: dict[tuple[str, str], tuple[Step, ...]] = {}
        self._left: dict[str, list[Step]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.after = after

    def assign(self, kind: str, subject: str, steps: tuple[Step, ...]) -> None:
        """Processes of this kind about this subject follow these steps."""
        self._scripts[kind, subject] = steps

    def on(self, change: Change) -> None:
        """Send the next command if the process has reached the state that it waits for."""
        script = self._scripts.get((change.kind, change.subject), ())
        left = self._left.setdefault(change.pid, list(script))
        if left and left[0].state == change.state:
            task = asyncio.create_task(self._later(change, left.pop(0).command))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _later(self, change: Change, command: str) -> None:
        await asyncio.sleep(self.after)
        await self._command(change.kind, change.pid, command)
