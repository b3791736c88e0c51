"""A hidden folder beside OUT, or in it if OUT is there, in which a command works until what it makes is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RqatError
from ..quiet import only_our_bars
from ..storage import explained, publish, sync_folder
from . import display

if TYPE_CHECKING:
    from ..job import Job
    from ..plan import Plan
    from ..registry import Registry

WORK = ".rqat"


def work_of(out: Path) -> Path:
    """Where a command works: in a folder that is there already, which may be another disk, or where the shell is."""
    place = out.resolve()
    return place / WORK if place.is_dir() else place.with_name(f".{place.name}{WORK}")


def hand_over(made: Path, out: Path, last: str) -> None:
    """Gives a finished folder the name `out`; a folder of that name stays and gets its files, `last` the last of them.

    A folder that is there may be a link's target, the root of a disk, or where the user's shell is.
    """
    place = out.resolve()
    if not place.is_dir():
        publish(made, place)
        return
    with explained(place):
        sync_folder(made)
        for path in sorted(made.iterdir(), key=lambda path: path.name == last):
            path.replace(place / path.name)
        sync_folder(place)


@contextmanager
def work_beside(out: Path, *, worth_keeping: Sequence[str]) -> Iterator[Path]:
    """The folder, from which the same command resumes when it was interrupted; removed at the end.

    Args:
        worth_keeping: patterns of files of which one has to be there for another attempt to have anything to start
            from, after an error, the user's or a plugin's.
    """
    work = work_of(out)
    made = [parent for parent in work.parents if not parent.exists()]
    try:
        yield work
    except Exception:
        if not any(True for pattern in worth_keeping for _ in work.glob(pattern)):
            shutil.rmtree(work, ignore_errors=True)
            for parent in made:
                with suppress(OSError):  # it is not empty, or was never made
                    parent.rmdir()
        raise
    shutil.rmtree(work, ignore_errors=True)


def run_in(
    work: Path, plan: Plan, registry: Registry, *, offline: bool, told: Sequence[str] = (), workers: int = 1
) -> Job:
    """Runs a plan in a folder, on the best device there is, and shows how far it is; the finished job.

    Args:
        workers: processes that a stage runs in which can run in several.
    """
    from ..model.memory import importing

    with display.waiting("Loading libraries"), importing():
        from ..job import Job
        from ..model.devices import device_to_work_on
        from ..pipeline import run_pipeline

        only_our_bars()
        job = Job(plan, work, registry, device_to_work_on(), offline, display.Bars(), workers=workers, told=told)
        job.import_all(plan.steps)
    try:
        run_pipeline(job)
    except RqatError as error:  # a recipe's keys, in the words of the command that stands for it
        error.message, error.hint = plan.place.in_flags(error.message), plan.place.in_flags(error.hint)
        raise
    return job
