"""One of several processes that do a step together: started by `rqat.launcher`, with its order as the argument."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import RqatError, RunError
from .job import Job
from .launcher import RELAY, RESULTS
from .model.memory import importing
from .pipeline import run_stage
from .plan import Step, build_plan
from .processes import Processes
from .quiet import hush, quiet_imports
from .recipe import built_recipe
from .registry import Registry
from .storage import explained, read_json, write_json

TRIES = 6
"""How often a worker tries to remove a temporary folder, `LOOK_S` apart."""

LOOK_S = 0.5
"""Seconds between two looks whether the parent is still there."""


def main() -> None:
    """Does what the order says; never returns."""
    file = Path(sys.argv[1])
    with reporting(file.parent):
        order = read_json(file)
        threading.Thread(target=_end_without, args=[order["parent"], file.parent], daemon=True).start()
        with importing():
            job, step = job_of(order)
            job.import_all([step])
        job.processes = Processes.join(job.device)
        if job.processes.leads:
            relay = Relay(file.with_name(RELAY), order["levels"])
            job.progress, job.saved = relay, relay.saved
        with explained(job.workdir(step)):
            results = run_stage(job, step)
        if job.processes.leads:
            write_json(file.with_name(RESULTS), results)
        job.processes.gather()


def job_of(order: dict[str, Any]) -> tuple[Job, Step]:
    """The run and the step that an order is about.

    Raises:
        RunError: the plan made here is not the parent's.
    """
    registry = Registry.discover()
    origins = {tuple(keys): origin for keys, origin in order["origins"]}
    plan = build_plan(built_recipe(order["recipe"], origins), registry)
    step = next((step for step in plan.steps if step.name == order["step"]), None)
    if step is None or plan.fingerprint(step) != order["fingerprint"]:
        raise RunError(
            f"a process that was started for {order['step']} has another plan than the run.",
            hint="Files or plugins were changed meanwhile; give the same command again.",
        )
    return Job(plan, Path(order["folder"]), registry, order["device"], order["offline"]), step


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Around all that a worker does. Ends the process; when it fails, `launcher` finds the reason in its error file.

    At once, past the interpreter's own end: freeing a process group there may wait for ever.

    Args:
        folder: temporary, of the process that started it.
    """
    code, parent = 0, os.getppid()
    try:
        yield
    except BaseException as error:
        code = error.exit_code if isinstance(error, RqatError) else 1
        known = {"message": error.message, "hint": error.hint} if isinstance(error, RqatError) else {}
        told = {"message": traceback.format_exc(), "timestamp": int(time.time()), "time": time.time(), **known}
        if os.getppid() == parent:  # else nobody reads it, and another worker is removing the folder
            write_json(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), told)
    finally:
        if os.getppid() != parent:
            _take_away(folder)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _end_without(parent: int, folder: Path) -> None:
    """In a thread: ends this process when the one that started it is gone, whatever it is waiting for."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    _take_away(folder)
    os._exit(1)


def _take_away(folder: Path) -> None:
    """Removes what a parent that is gone has left; other workers are at it, too, and get in each other's way."""
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(LOOK_S)


class Relay(io.TextIOBase):
    """Hands the parent what this process shows, logs and prints: lines of JSON, as `launcher` reads them.

    Args:
        path: of the pipe.
        levels: of the loggers of these names, in the parent.
    """

    def __init__(self, path: Path, levels: dict[str, int]) -> None:
        self._pipe = path.open("w", buffering=1)
        self._alone = threading.Lock()  # checkpoints are written, and told, by a thread of their own
        handler = logging.Handler()
        handler.emit = lambda record: self._say("log", record.name, record.levelno, handler.format(record))  # type: ignore[method-assign]
        logging.root.handlers = [handler]
        for name, level in levels.items():
            hush(name, level=level)
        if levels["rqat"] > logging.INFO:
            quiet_imports()
        sys.stdout = sys.stderr = self

    def _say(self, *message: Any) -> None:
        with self._alone:
            self._pipe.write(json.dumps(message) + "\n")

    def write(self, text: str) -> int:
        """As a text stream: in place of the screen."""
        self._say("print", text)
        return len(text)

    @contextmanager
    def step(self, name: str, number: int, count: int, left: str = "") -> Iterator[None]:
        """See `rqat.job.Progress`; the parent says which step it is."""
        yield

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Relay]:
        """See `rqat.job.Progress`."""
        self._say("task", label, total)
        yield self
        self._say("done")

    def update(self, done: float, note: str = "") -> None:
        """See `rqat.job.Bar`."""
        self._say("update", done, note)

    def saved(self) -> None:
        """See `rqat.job.Job`: the parent holds the folder's lock and writes the report."""
        self._say("saved")
