"""Job: what every stage receives. Passed by argument, never global."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import RqatError
from .model.kept import KeptCheckpoints
from .model.original import Original
from .nodes import Nodes
from .processes import Processes
from .stages import work_of
from .storage import PARTIAL, SCRATCH, Ahead

if TYPE_CHECKING:
    from .plan import Plan, Step
    from .registry import Registry
    from .stage import Use

log = logging.getLogger("rqat")


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collects what is warned of meanwhile, each text once: it stands in the manifest of the step that said it."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (text := record.getMessage()) not in told:
                told.append(text)

    listener = Listener(logging.WARNING)
    log.addHandler(listener)
    try:
        yield told
    finally:
        log.removeHandler(listener)


class Bar(Protocol):
    """One bar of a progress display."""

    def update(self, done: float, note: str = "") -> None:
        """Sets how much is done, out of the total given at the start; `note` is a short figure such as a loss."""


class Progress(Protocol):
    """Shows how far long work has come and how long it still takes; the CLI draws it, tests ignore it."""

    def step(self, name: str, number: int, count: int, left: str = "") -> Any:
        """A context manager around a step of a run, the `number`-th of `count`; `left`: what is known of the time."""

    def task(self, label: str, total: float) -> Any:
        """A context manager that gives a `Bar`."""


class Silence:
    """A Progress that shows nothing."""

    @contextmanager
    def step(self, name: str, number: int, count: int, left: str = "") -> Iterator[None]:
        """See `Progress`."""
        yield

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Silence]:
        """See `Progress`."""
        yield self

    def update(self, done: float, note: str = "") -> None:
        """See `Bar`."""


@dataclass
class Job:
    """One run of a plan in one folder.

    Attributes:
        plan: what to do.
        folder: the run folder; each step has a folder of its name in it.
        registry: where parts are built from.
        device: "cpu" or "cuda".
        offline: nothing may be fetched.
        progress: where long work reports to.
        workers: processes on this machine that a stage runs in which can run in several.
        nodes: machines that do the run together.
        told: what was known of the plan before it ran; it stands in the run's manifest and in the report.
        told_of_data: what was found in the data of steps that are still to be done.
        saved: called whenever a step has saved what it can resume from.
        original: keeps the plan's model in memory between steps, where there is room.
        ahead: takes over large files of a step's result once they are written.
        checkpoints: keep what steps have made in memory, while steps that only read it follow one another.
        processes: this one among those, while it does such a step; alone otherwise.
    """

    plan: Plan
    folder: Path
    registry: Registry
    device: str = "cpu"
    offline: bool = False
    progress: Progress = field(default_factory=Silence)
    processes: Processes = field(default_factory=Processes)
    workers: int = 1
    nodes: Nodes = field(default_factory=Nodes)
    told: Sequence[str] = ()
    told_of_data: Sequence[str] = ()
    saved: Callable[[], None] = field(default=lambda: None)
    original: Original = field(default_factory=Original)
    ahead: Ahead = field(default_factory=Ahead)
    checkpoints: KeptCheckpoints = field(default_factory=KeptCheckpoints)

    @property
    def together(self) -> int:
        """Processes that such a stage runs in, on all machines."""
        return self.workers * self.nodes.count

    def import_all(self, steps: Iterable[Step]) -> None:
        """Imports what does the work of steps; what cannot be imported is told by the step that needs it."""
        import transformers.modeling_utils  # noqa: F401  # which transformers does when the first model is made

        for step in steps:
            work_of(step.stage)
            for use in (use for use in step.uses if use.card.load):
                with suppress(RqatError):
                    self.registry.load_class(use.card)

    def built(self, use: Use) -> Any:
        """Builds a part that reads nothing of other steps."""
        return self.registry.make(use.card, use.options)

    def make(self, step: Step, role: str) -> Any:
        """Builds the part a step uses in `role` ("quantizer", "source", "objective", "task", "exporter")."""
        use = step.parts[role]
        if not step.reads:
            return self.built(use)
        written = ((self.plan.step(name).parts["source"], self.result_of(name)) for name in step.reads)
        return self.registry.make(use.card, use.options, [(w.card, w.options, folder) for w, folder in written])

    def result_of(self, step_name: str) -> Path:
        """Folder of a finished step."""
        return self.folder / step_name

    def workdir(self, step: Step) -> Path:
        """Folder a running step writes into; the pipeline gives it its final name when the step is done."""
        return self.folder / f"{step.name}{PARTIAL}"

    def scratch(self, step: Step) -> Path:
        """Folder for what a running step resumes from when it is interrupted; no part of its result.

        It is there until the step is published: whatever is lost before can be made again from it.
        """
        return self.workdir(step) / SCRATCH
