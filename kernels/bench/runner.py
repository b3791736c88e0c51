"""Does the jobs of one part within its time: checks first, then what matters most, every row at once on disk.

A job that fails gives a row with the reason. When a job breaks the device's context, nothing more can be done in this
process: the runner then starts itself anew behind that job, in the time that is left.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .bench import Absent, Bench
from .registry import Job
from .table import Row, Table
from .timing import ContextLost, check_device, describe

RESERVE_S = 8.0
"""Left for plots and the closing table."""


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        red: operations whose check failed.
        left: labels of jobs for which no time was left.
        failed: labels of jobs that ended with an error.
        lost: number of the job that broke the device's context; None as long as it answers.
    """

    red: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lost: int | None = None


def run(jobs: Sequence[Job], bench: Bench, table: Table, deadline: float, *, first: int = 0) -> Outcome:
    """Does `jobs[first:]` until `deadline` (seconds of `time.time()`); every job leaves at least one row."""
    outcome = Outcome()
    reported: set[str] = set()
    for number, job in enumerate(jobs[first:], first):
        if job.op in outcome.red and not job.check:
            if job.op not in reported:
                table.add(_reason(job, "not timed: its check failed"))
                reported.add(job.op)
            continue
        if deadline - time.time() < job.seconds + RESERVE_S:
            outcome.left.append(f"{job.op} {job.label}")
            continue
        start = time.time()
        try:
            for row in job.run(bench):
                table.add(row)
                if job.check and row.note.startswith("RED"):
                    outcome.red.add(job.op)
        except KeyboardInterrupt:
            outcome.left += [f"{left.op} {left.label}" for left in jobs[number:]]
            return outcome
        except ContextLost as error:
            table.add(_reason(job, f"RED: the device was lost: {error}"))
            outcome.failed.append(f"{job.op} {job.label}")
            outcome.lost = number
            return outcome
        except (Absent, ImportError, AttributeError) as error:
            table.add(_reason(job, f"not there: {describe(error)}"))
            outcome.failed.append(f"{job.op} {job.label}")
        except Exception as error:
            table.add(_reason(job, f"{'RED: ' if job.check else ''}{describe(error)}"))
            outcome.failed.append(f"{job.op} {job.label}")
            if job.check:
                outcome.red.add(job.op)
            try:
                check_device(bench.device, error)
            except ContextLost:
                outcome.lost = number
                return outcome
        took = time.time() - start
        if took > 2 * job.seconds + 5:
            print(f"slow: {job.op} {job.label} took {took:.0f} s", file=sys.stderr, flush=True)
    return outcome


def start_again(number: int, deadline: float) -> None:
    """Replaces this process by one that goes on behind job `number`."""
    arguments = [a for a in sys.argv if not a.startswith(("--first=", "--deadline="))]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments, f"--first={number + 1}", f"--deadline={deadline:.0f}"])


def _reason(job: Job, note: str) -> Row:
    return Row(job.op, "rqat", mode="check" if job.check else "forward", x_name="case", x=job.label, note=note)
