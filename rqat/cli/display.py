"""What the commands draw: progress bars and tables, both with rich, which is imported only when something is drawn.

Results go to stdout and everything about the run to stderr, so that `rqat ... --json > file` holds JSON only.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ..figures import clock, seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.status import Status

WIDTH = 200
"""Columns when the output is no terminal: wide enough that a table is not cut."""

ROOMY = 106
"""Columns from which a bar and its figures have more room."""

MARKS = 32
"""Reports of a bar from which its pace is taken."""

LINE_S, LINE_SHARE, LONGEST_S = 10.0, 0.05, 300.0
"""Where there is no terminal: seconds between two lines of a bar at least, the share of the work between them, and
seconds after which there is one in any case."""


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

    drawn = Table(
        title=Text(harmless(title)) if title else None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
    )
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        drawn.add_column(Text(harmless(column)), justify="right" if numeric else "left", overflow="fold")
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


def line(text: str) -> None:
    """A line of a result, on stdout; what it holds may be a stranger's."""
    typer.echo(harmless(text))


def note(text: str = "") -> None:
    """A line about the run, on stderr; what it holds may be a stranger's."""
    typer.echo(harmless(text), err=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    written = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    typer.echo(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", written))


def _is_number(cell: object) -> bool:
    return str(cell).strip().removesuffix("%").strip().replace(".", "", 1).lstrip("+-").isdigit() or cell in ("", "-")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says at once what is waited for: on a terminal for as long as that takes, else by a line."""
    screen = console(err=True)
    if not screen.is_terminal:
        note(f"{text} ...")
        yield
        return
    shown = _status(screen, f"{text} ...")
    try:
        yield
    finally:
        shown.stop()


def _status(screen: Console, text: str) -> Status:
    """A line that is there until it is stopped; drawn now, since what follows may leave no thread a chance."""
    shown = screen.status(text)
    shown.start()
    shown.update(spinner="dots")
    return shown


class Bars:
    """`rqat.job.Progress` on a terminal: a line for every piece of work, with a bar, the time left and a figure.

    Where stderr is no terminal a line is written when a piece of work begins, when it ends, and now and then between.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._waiting: Status | None = None
        self._number = ""

    @contextmanager
    def step(self, name: str, number: int, count: int, left: str = "") -> Iterator[None]:
        """See `rqat.job.Progress`; what is loaded for a step is waited for under a line that goes when work begins."""
        told = f"Step {number} of {count}: {name}{f', {left}' if left else ''}"
        self._number = f"{number}/{count} "
        screen = console(err=True)
        if screen.is_terminal:
            self._waiting = _status(screen, f"{told}, loading ...")
        else:
            note(told)
        try:
            yield
        finally:
            self._number = ""
            self._wait_no_more()

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Bar]:
        """See `rqat.job.Progress`; bars may be nested, the outermost one starts and stops the drawing."""
        self._wait_no_more()
        outermost = self._progress is None
        if self._progress is None:
            self._progress = _progress()
            self._progress.start()
        progress = self._progress
        label = harmless(label)
        shown = f"{self._number if outermost else '  '}{label}"
        bar = Bar(progress, progress.add_task(shown, total=total or None, times="", note=""), total, label)
        if not progress.console.is_terminal:
            note(f"{label} ...")
        try:
            yield bar
            bar.finish()
        finally:
            if outermost:
                progress.stop()
                self._progress = None

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None


class Bar:
    """`rqat.job.Bar`: one line of `Bars`.

    What is done at the first report counts as done before: a resumed run's first steps took no time now.
    """

    def __init__(self, progress: Progress, task: TaskID, total: float, label: str) -> None:
        self._progress, self._task, self._total, self._label = progress, task, total, label
        self._note = ""
        self._started = time.monotonic()
        self._marks: deque[tuple[float, float]] = deque(maxlen=MARKS)
        self._told = (self._started, 0.0)

    def update(self, done: float, note: str = "") -> None:
        """See `rqat.job.Bar`."""
        self._note = harmless(note) or self._note
        if not self._marks or done > self._marks[-1][1]:
            self._marks.append((time.monotonic(), done))
        times = self._times()
        self._progress.update(self._task, completed=done, times=times, note=self._note)
        if not self._progress.console.is_terminal and self._is_time(done):
            self._told = (time.monotonic(), done)
            # Whole pieces: a block is also reported by its parts.
            say(f"{self._label}: {math.floor(done)} of {self._total:g}  {times}  {self._note}")

    def finish(self) -> None:
        """Fills the bar."""
        taken = time.monotonic() - self._started
        self._progress.update(self._task, completed=self._total, total=self._total, times=clock(taken))
        if not self._progress.console.is_terminal:
            say(f"{self._label}: {seconds(taken)}  {self._note}")

    def _times(self) -> str:
        """Time taken, and behind a `<` what is left at the pace of late."""
        taken = clock(time.monotonic() - self._started)
        (began, first), (now, done) = self._marks[0], self._marks[-1]
        if done <= first or done >= self._total:
            return taken
        return f"{taken}<{clock((self._total - done) * (now - began) / (done - first))}"

    def _is_time(self, done: float) -> bool:
        """Whether a line is due: after a twentieth of the work that took a while, or a longer while."""
        since, share = time.monotonic() - self._told[0], (done - self._told[1]) / (self._total or 1)
        return done < self._total and since >= LINE_S and (share >= LINE_SHARE or since >= LONGEST_S)


def say(text: str) -> None:
    """A line of a bar where there is no bar."""
    note(text.rstrip())


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    screen = console(err=True)
    if screen.is_terminal:
        # What a terminal writes for Ctrl-C must not break the line, which would then be drawn twice.
        screen.width = max(40, screen.width - 4)
    roomy = screen.width >= ROOMY
    # Cells of one width, and none that wraps: the lines stay where they are.
    cells = {
        "description": Column(width=34 if roomy else 26, no_wrap=True, overflow="ellipsis"),
        "times": Column(width=15 if roomy else 11, no_wrap=True),
        "note": Column(width=24 if roomy else 15, no_wrap=True, overflow="ellipsis"),
    }
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=cells["description"]),
        BarColumn(bar_width=24 if roomy else 10, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
        TextColumn("{task.fields[times]}", markup=False, table_column=cells["times"]),
        TextColumn("{task.fields[note]}", markup=False, table_column=cells["note"]),
        console=screen,
        disable=not screen.is_terminal,
        refresh_per_second=4,
    )
