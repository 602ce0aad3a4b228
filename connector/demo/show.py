"""Terminal output of the demo: one line for each step with its time, progress bars and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(slots=True)
class StoryStep:
    """One line of output. `say` sets the text after the title; `advance` moves the bar."""

    title: str
    said: str = ""
    progress: Progress | None = None
    task: object = None

    def say(self, text: str) -> None:
        self.said = text

    def total(self, total: float) -> None:
        if self.progress is not None:
            self.progress.update(self.task, total=total)  # type: ignore[arg-type]  # the id that Progress gave

    def advance(self, amount: float = 1.0) -> None:
        if self.progress is not None:
            self.progress.advance(self.task, amount)  # type: ignore[arg-type]  # the id that Progress gave


@dataclass(slots=True)
class Show:
    """Prints chapters, steps and tables, and counts failed steps."""

    console: Console = field(default_factory=lambda: Console(highlight=False, width=_width()))
    failed: int = 0
    began: float = field(default_factory=time.monotonic)

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.print(f"[bold]{title}[/bold]")

    @contextmanager
    def step(self, title: str, *, total: float | None = None) -> Iterator[StoryStep]:
        """Time the block and print its line; a failure is printed and raised."""
        begun = time.monotonic()
        bar = Progress(
            TextColumn("  [dim]{task.description}[/dim]"),
            BarColumn(bar_width=32),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            step = StoryStep(title, progress=bar, task=bar.add_task(title, total=total))
            try:
                yield step
            except BaseException:
                self.failed += 1
                self._line("[red]✗[/red]", step, begun)
                raise
        self._line("[green]✓[/green]", step, begun)

    def _line(self, mark: str, step: StoryStep, begun: float) -> None:
        took = time.monotonic() - begun
        shown = f"{took * 1000:6.0f} ms" if took < 10 else f"{took:6.1f} s "
        detail = f"  [dim]{escape(step.said)}[/dim]" if step.said else ""
        self.console.print(f"  {mark} [cyan]{shown}[/cyan]  {escape(step.title)}{detail}", soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
        made = Table(
            title=title or None, title_justify="left", title_style="italic", header_style="bold", padding=(0, 1)
        )
        for place, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[place], (int, float)) or row[place] is None for row in rows)
            made.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            made.add_row(*(escape(cell(value)) for value in row))
        self.console.print(made)

    def note(self, text: str) -> None:
        self.console.print(f"             [dim]{escape(text)}[/dim]", soft_wrap=True)

    def expect(self, holds: bool, what: str) -> None:
        """Fail the demo unless `holds`. Raises: AssertionError."""
        if not holds:
            raise AssertionError(f"the demo expected {what}")


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def size(nbytes: float) -> str:
    """Format bytes, e.g. `5.3 MB`."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.2f} GB"


def _width() -> int | None:
    """Return None for a terminal's own width; 128 columns without a terminal."""
    return None if sys.stdout.isatty() else 128
