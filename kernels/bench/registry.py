"""Everything that is checked and timed: one list of jobs, gathered from `cases/`.

A job is a piece of work that yields rows: seconds long, and of use by itself. The runner does checks first, then jobs
by `order`, so that what was not reached when the time is over is what matters least.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .table import Row

if TYPE_CHECKING:
    from .bench import Bench

CASES = tuple(sorted(path.stem for path in (Path(__file__).parent / "cases").glob("[a-z]*.py")))
"""Files of `cases/`; each has `jobs()`, and what it covers in `OPS`."""

WITHOUT: dict[str, str] = {}
"""Folders of `rqat_kernels` that no case covers, each with the reason."""

PARTS = {
    1: "ceilings, and packed linears against 16 bits and other libraries",
    2: "training operations and GPTQ, each against its limit, torch, compiled torch and other libraries",
    3: "end to end: a training step, decoding, GPTQ of whole models",
}


@dataclass(frozen=True)
class Job:
    """Work that yields rows.

    Attributes:
        op: the operation; a folder of `rqat_kernels`, or the name of something larger.
        label: what of it, for the log.
        part: in which part of the run it is done.
        run: does it.
        order: lower is sooner.
        seconds: about how long it takes; it is not begun with less time left.
        check: whether it compares with float64 instead of timing. Operations whose check fails are not timed.
    """

    op: str
    label: str
    part: int
    run: Callable[[Bench], Iterable[Row]]
    order: float = 50
    seconds: float = 3
    check: bool = False


def jobs(part: int, only: str | None = None) -> list[Job]:
    """The jobs of one part in the order in which they are done; `only` keeps those of one operation."""
    found = [job for name in CASES for job in _jobs_of(name, part)]
    wanted = [job for job in found if job.part == part and (only is None or only in (job.op, job.op.split(".")[0]))]
    return sorted(wanted, key=lambda job: (not job.check, job.order))


def covered() -> set[str]:
    """Operations that some case covers."""
    return {op for name in CASES for op in importlib.import_module(f"bench.cases.{name}").OPS}


def known() -> list[str]:
    """Names that `only` takes."""
    return sorted({job.op for part in PARTS for job in jobs(part)})


def _jobs_of(name: str, part: int) -> list[Job]:
    """The jobs of a file; one that does not import gives a single job that says so, and stops no other."""
    try:
        return importlib.import_module(f"bench.cases.{name}").jobs()  # type: ignore[no-any-return]
    except Exception as error:
        problem = error

        def fail(bench: Bench) -> Iterable[Row]:
            raise problem

        return [Job(name, "import", part, fail, seconds=0)]
