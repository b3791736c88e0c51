"""Which cell runs when: shared steps once, the rest side by side; what is worse than others by far is stopped.

A cell is started with as many of its steps as nobody else is at work on. The next cell that needs one of those waits
for that step alone: it is then linked into its folder, and the cell goes on from there.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import RunError
from ..job import Job
from ..pipeline import run_pipeline
from ..registry import Registry
from ..run_folder import finished
from ..run_lock import is_held, only_one
from ..stage import WATCHED, bare_name
from ..storage import PARTIAL, read_json, read_json_lines, write_json
from .cells import Cell, StopKeys, Sweep
from .executors import Executor, Running
from .shared import bring, pool

LOOK_S = 0.5
"""Seconds between two looks at what runs."""

State = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass
class Folders:
    """Where a sweep's files are.

    Attributes:
        root: of all.
    """

    root: Path

    def cell(self, cell: Cell) -> Path:
        """Run folder of a cell."""
        return self.root / "cells" / cell.name

    @property
    def logs(self) -> Path:
        """Folder of what cells print."""
        return self.root / "logs"

    @property
    def stopped(self) -> Path:
        """File of the cells that were stopped."""
        return self.root / "stopped.json"


@dataclass
class _Work:
    """A cell's process, and the fingerprints of the steps it was started for."""

    running: Running
    claims: set[str]


@dataclass
class Controller:
    """One sweep on its way.

    Attributes:
        tell: receives a line for whatever happens.
        offline: nothing may be fetched.
        failed: exit codes of cells that failed this time, by name.
    """

    sweep: Sweep
    folders: Folders
    executor: Executor
    registry: Registry
    tell: Callable[[str], None]
    offline: bool = False
    failed: dict[str, int] = field(default_factory=dict)
    _work: dict[str, _Work] = field(default_factory=dict)
    _elsewhere: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Runs what is missing; returns when nothing is left that could be run.

        Raises:
            RunError: another sweep is at work in this folder; what cells are made of was changed meanwhile.
        """
        with only_one(self.folders.root):
            try:
                while self._left():
                    self._collect()
                    self._stop_the_worst()
                    self._start()
                    if self._left():
                        time.sleep(LOOK_S)
            finally:
                for work in self._work.values():
                    work.running.cancel()
                self._work.clear()

    def state(self, cell: Cell) -> State:
        """How far a cell is."""
        if cell.name in self._work:
            return "running"
        if cell.name in self.failed:
            return "failed"
        if self._is_stopped(cell):
            return "stopped"
        done = set(cell.prints.values()) <= set(finished(self.folders.cell(cell)))
        return "done" if done and (self.folders.cell(cell) / "summary.json").is_file() else "waiting"

    def _left(self) -> list[Cell]:
        return [cell for cell in self.sweep.cells if self.state(cell) in ("waiting", "running")]

    def _collect(self) -> None:
        """Takes note of what has ended.

        Raises:
            RunError: it has made other steps than were planned.
        """
        for name, work in list(self._work.items()):
            code = work.running.code()
            if code is None:
                continue
            del self._work[name]
            if code:
                self.failed[name] = code
                self.tell(f"{name}: failed ({_last_line(self.folders.logs / f'{name}.log')})")
            elif not work.claims <= set(finished(self.folders.cell(self._cell(name)))):
                raise RunError(
                    f"{name}: it has made other steps than were planned: a plugin, the model or the data was changed "
                    "since the sweep began.",
                    hint="Start the same command again: it plans anew, and what is finished counts.",
                )
            elif self.state(self._cell(name)) == "done":
                self.tell(f"{name}: done")

    def _start(self) -> None:
        """Starts whatever can be, in the order of the cells."""
        there = pool(self.folders.cell(cell) for cell in self.sweep.cells)
        for cell in self.sweep.cells:
            if len(self._work) >= self.executor.places:
                return
            if self.state(cell) != "waiting" or self._in_use(cell):
                continue
            taken = {fingerprint for work in self._work.values() for fingerprint in work.claims} - set(there)
            chosen = list(_free(cell, set(there), taken))
            missing = [name for name, fingerprint in cell.prints.items() if fingerprint not in there]
            if missing and not chosen:
                continue  # for the step that another cell is at work on
            brought = bring(self.folders.cell(cell), cell.prints, there)
            if not missing:
                self._finish(cell)
                continue
            until = chosen[-1] if chosen[-1] != cell.plan.steps[-1].name else ""
            shared = f"; steps taken from other cells: {len(brought)}" if brought else ""
            self.tell(f"{cell.name}: runs {', '.join(chosen)}{shared}")
            running = self.executor.start(cell.name, self.command(cell, until))
            self._work[cell.name] = _Work(running, {cell.prints[name] for name in chosen})

    def command(self, cell: Cell, until: str = "") -> list[str]:
        """The `rqat qat` command that runs a cell."""
        words = [sys.executable, "-m", "rqat", *(["--offline"] if self.offline else []), "qat"]
        words += ["--recipe", str(self.sweep.recipe.absolute()), "-o", str(self.folders.cell(cell).absolute())]
        words += [word for override in cell.overrides for word in ("--set", override)]
        return words + (["--until", until] if until else [])

    def _finish(self, cell: Cell) -> None:
        """Of a cell whose every step is there already: puts them in their places and writes the report."""
        run_pipeline(Job(cell.plan, self.folders.cell(cell), self.registry, offline=self.offline))
        self.tell(f"{cell.name}: done")

    def _in_use(self, cell: Cell) -> bool:
        """Whether a process of an earlier attempt is still at work in a cell's folder, as jobs of a cluster may be."""
        held = is_held(self.folders.cell(cell))
        if held and cell.name not in self._elsewhere:
            self.tell(f"{cell.name}: another process is at work on it; waits")
            self._elsewhere.add(cell.name)
        return held

    def _cell(self, name: str) -> Cell:
        return next(cell for cell in self.sweep.cells if cell.name == name)

    # ------------------------------------------------------------------------------------------- early stopping

    def _is_stopped(self, cell: Cell) -> bool:
        why = (read_json(self.folders.stopped) or {}).get(cell.name, {})
        rule = self.sweep.stop
        return rule is not None and why.get("fingerprint") in cell.prints.values() and why["rule"] == rule.model_dump()

    def _stop_the_worst(self) -> None:
        """Ends cells whose watched figure is worse than the best at the same step by the rule's factor."""
        rule = self.sweep.stop
        if rule is None or not self._work:
            return
        seen = {cell.name: watched(self.folders.cell(cell), rule.figure) for cell in self.sweep.cells}
        for name in list(self._work):
            found = too_bad(name, seen, rule)
            if found is None:
                continue
            step, at, value, best = found
            self._work.pop(name).running.cancel()
            cell = self._cell(name)
            stopped = read_json(self.folders.stopped) or {}
            fingerprint = next(print_ for full, print_ in cell.prints.items() if bare_name(full) == step)
            why = {"step": step, "at": at, rule.figure: value, "best": best}
            stopped[name] = {**why, "fingerprint": fingerprint, "rule": rule.model_dump()}
            write_json(self.folders.stopped, stopped)
            self.tell(f"{name}: stopped at step {at} of {step}: {rule.figure} {value:.4g}, the best has {best:.4g}")


def _free(cell: Cell, there: set[str], taken: set[str]) -> Iterator[str]:
    """Names of the steps a cell could do now: those that are not there, up to the first that others are at work on."""
    for name, fingerprint in cell.prints.items():
        if fingerprint in taken:
            return
        if fingerprint not in there:
            yield name


Curves = dict[str, dict[int, float]]
"""A watched figure by optimizer step, for every training of a cell by its step's name without number."""


def watched(folder: Path, figure: str) -> Curves:
    """What trainings of a run have found of a watched figure so far."""
    found: Curves = {}
    for path in sorted(folder.glob("[0-9]*/training.jsonl")):
        name = bare_name(path.parent.name.removesuffix(PARTIAL))
        values = {
            line["step"]: line[f"{WATCHED}{figure}"] for line in read_json_lines(path) if f"{WATCHED}{figure}" in line
        }
        if values:
            found[name] = values
    return found


def too_bad(name: str, seen: dict[str, Curves], rule: StopKeys) -> tuple[str, int, float, float] | None:
    """Where a cell is worse than the rule allows: training, optimizer step, its value, the best; None: nowhere."""
    for training, values in seen[name].items():
        for at, value in sorted(values.items()):
            others: Sequence[Any] = [
                curves[training][at]
                for other, curves in seen.items()
                if other != name and at in curves.get(training, {})
            ]
            finite = [other for other in others if math.isfinite(other)]
            if at >= rule.after and finite and not value <= rule.factor * min(finite):
                return training, at, value, min(finite)
    return None


def _last_line(log: Path) -> str:
    """The line that says what was wrong, and where the rest is."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line for line in lines if line.startswith("Error")] or [line for line in lines if line.strip()]
    return f"{said[-1].strip() if said else 'it said nothing'}; {log}"
