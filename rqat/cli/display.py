"""What the commands draw: progress bars and tables, both with rich, which is imported only when something is drawn.

Results go to stdout and everything about the run to stderr, so that `rqat ... --json > file` holds JSON only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ..figures import seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

WIDTH = 200
"""Columns when the output is no terminal: wide enough that a table is not cut."""


def console(*, err: bool = False) -> Console:
    """A console on stdout or stderr that neither guesses at highlighting nor reads markup in what it prints."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, soft_wrap=width is not None)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", err: bool = False) -> None:
    """Prints a table; columns whose every cell is a number are set right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        drawn.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(harmless(str(cell))) for cell in row))
    screen = console(err=err)
    with screen.capture() as captured:
        screen.print(drawn)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip(), err=err)  # rich fills every line up with blanks


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal, or turn the direction of what follows; tab and line break are harmless."""


def harmless(text: str) -> str:
    """Text that a model, a file or a stranger wrote, with characters that steer a terminal spelled out: `\\x1b`."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def note(text: str = "") -> None:
    """A line about the run, on stderr."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    written = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    typer.echo(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", written))


def _is_number(cell: object) -> bool:
    return str(cell).strip().removesuffix("%").strip().replace(".", "", 1).lstrip("+-").isdigit() or cell in ("", "-")


class Bars:
    """`rqat.job.Progress` on a terminal: one line per piece of work, with a bar, the time left and the latest figure.

    Where stderr is no terminal a line is written when a piece of work begins and one when it ends.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Bar]:
        """See `rqat.job.Progress`; bars may be nested, the outermost one starts and stops the drawing."""
        outermost = self._progress is None
        if self._progress is None:
            self._progress = _progress()
            self._progress.start()
        progress = self._progress
        bar = Bar(progress, progress.add_task(label, total=total or None, note=""), total, label)
        if not progress.console.is_terminal:
            note(f"{label} ...")
        try:
            yield bar
            bar.finish()
        finally:
            if outermost:
                progress.stop()
                self._progress = None


class Bar:
    """`rqat.job.Bar`: one line of `Bars`."""

    def __init__(self, progress: Progress, task: TaskID, total: float, label: str) -> None:
        self._progress, self._task, self._total, self._label = progress, task, total, label
        self._note = ""

    def update(self, done: float, note: str = "") -> None:
        """See `rqat.job.Bar`."""
        self._note = note or self._note
        self._progress.update(self._task, completed=done, note=self._note)

    def finish(self) -> None:
        """Fills the bar."""
        self._progress.update(self._task, completed=self._total, total=self._total)
        if not self._progress.console.is_terminal:
            elapsed = self._progress.tasks[self._progress.task_ids.index(self._task)].elapsed or 0.0
            note(f"{self._label}: {seconds(elapsed)}{'  ' + self._note if self._note else ''}")


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Times(ProgressColumn):
        """Time taken, and while the work goes on the time it still takes."""

        def render(self, task: Task) -> Text:
            taken = seconds(task.finished_time or task.elapsed or 0.0)
            if task.finished or task.time_remaining is None:
                return Text(taken)
            return Text(f"{taken}, {seconds(task.time_remaining)} left")

    screen = console(err=True)
    return Progress(
        TextColumn("{task.description:<30}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Times(),
        TextColumn("{task.fields[note]}", markup=False),
        console=screen,
        disable=not screen.is_terminal,
        refresh_per_second=4,
    )
