"""Runs the steps of a plan in one folder; what the folder already holds is not done again.

    runs/quickstart/
      01-calibrate/            a finished step: its files and, written last, manifest.json
      02-quantize-gptq.partial/   a step that was interrupted; it resumes from what is there
      summary.json  report.html  manifest.json      the run's own, rewritten whenever a step was run

A step counts as done when its manifest carries the fingerprint the plan gives it and every file still has the hash
written there. A damaged step is set aside and done again. A step of the same name with another fingerprint belongs to
another plan: that is refused, with the difference, before anything is touched.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import __version__
from .errors import RunError
from .facts import difference
from .job import Job, log
from .launcher import check_processes, launch
from .stage import Step
from .stages import stages, work_of
from .storage import PARTIAL, explained, publish, read_json, sha256_of, write_json

MANIFEST = "manifest.json"
MARK = ".step.json"
"""In an unfinished folder: the fingerprint of the step that may resume from it."""

LOCK = ".lock"
OWN_FILES = frozenset({LOCK, MANIFEST, "summary.json", "report.html"})
"""What a run folder may hold besides the folders of steps."""


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        summary: contents of summary.json.
        ran: names of the steps that were run now.
        skipped: names of the steps that were done already.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def run_pipeline(job: Job, *, fresh: bool = False) -> Outcome:
    """Runs every step of `job.plan` that is not done yet, then writes the summary and the report.

    Args:
        fresh: throw away what the folder holds of an earlier run and start over.

    Raises:
        RunError: the folder holds something else, another plan's steps, or another process is running in it; the disk
            is full or not writable.
        RqatError: whatever a stage reports. What was finished stays, and the same command resumes from there.
    """
    if job.workers > 1:
        check_processes(job.workers, job.device)
    with _only_one(job.folder):
        _refuse_foreign_folder(job)
        if fresh:
            _clear(job)
        _refuse_other_plan(job)
        outcome = Outcome()
        for step in job.plan.steps:
            if _is_done(job, step):
                outcome.skipped.append(step.name)
                continue
            _run_step(job, step)
            outcome.ran.append(step.name)
        outcome.summary = read_json(job.folder / "summary.json") or {}
        if outcome.ran or not outcome.summary:
            from .report import write

            outcome.summary = write(job)
        return outcome


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Creates the folder if need be and holds its lock, which ends with the process however that ends."""
    created = not folder.exists()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"'{folder}' is in use by another rqat process.", hint="Wait for it, or use -o.") from error
        try:
            yield
        finally:
            if created and [entry.name for entry in folder.iterdir()] == [LOCK]:
                shutil.rmtree(folder)


def _refuse_foreign_folder(job: Job) -> None:
    ours = {step.name for step in job.plan.steps}
    for entry in sorted(job.folder.iterdir()):
        name = entry.name
        if name in OWN_FILES or name in ours or name.startswith("."):
            continue
        if entry.is_dir() and name[:2].isdigit() and name[2:3] == "-":  # a step of another plan; told apart below
            continue
        raise RunError(
            f"'{job.folder}' holds '{name}', which is not part of an rqat run.", hint="Choose an empty folder with -o."
        )


def _clear(job: Job) -> None:
    for entry in job.folder.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _refuse_other_plan(job: Job) -> None:
    """Compares every finished step of the folder with the step of that name in the plan."""
    steps = {step.name: step for step in job.plan.steps}
    for folder in sorted(job.folder.iterdir()):
        finished = folder.is_dir() and not folder.name.startswith(".") and folder.suffix != PARTIAL
        manifest = read_json(folder / MANIFEST) if finished else None
        if manifest is None:
            continue
        step = steps.get(folder.name)
        if step is None:
            raise RunError(
                f"'{job.folder}' holds the step {folder.name}, which this plan does not have.",
                hint="Choose another folder with -o, or start over with --fresh.",
            )
        if manifest.get("fingerprint") != job.plan.fingerprint(step):
            changes = difference(manifest.get("facts", {}), job.plan.facts(step))
            shown = "; ".join(changes[:6]) + ("; ..." if len(changes) > 6 else "")
            raise RunError(
                f"'{job.folder}' holds the step {folder.name} of another plan: {shown}.",
                hint="Choose another folder with -o, or start over with --fresh.",
            )


def _is_done(job: Job, step: Step) -> bool:
    folder = job.result_of(step.name)
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return False
    damaged = _damaged(folder, manifest)
    if not damaged:
        return True
    aside = job.folder / f".damaged-{step.name}-{int(time.time())}"
    log.warning(
        "%s: %s changed since it was written; set aside as %s and done again.", step.name, damaged[0], aside.name
    )
    folder.replace(aside)
    return False


def _damaged(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files of a finished step that are not what its manifest says."""
    return [
        name
        for name, digest in manifest["files"].items()
        if not (folder / name).is_file() or sha256_of(folder / name) != digest
    ]


def _run_step(job: Job, step: Step) -> None:
    work = job.workdir(step)
    fingerprint = job.plan.fingerprint(step)
    with explained(work):
        manifest = read_json(work / MANIFEST)  # there when it was interrupted while being published
        if manifest and manifest["fingerprint"] == fingerprint and not _damaged(work, manifest):
            (work / MARK).unlink(missing_ok=True)
            publish(work, job.result_of(step.name))
            return
        if work.exists() and _marked(work) != fingerprint:
            shutil.rmtree(work)
        work.mkdir(exist_ok=True)
        (work / MANIFEST).unlink(missing_ok=True)
        write_json(work / MARK, {"fingerprint": fingerprint})
    log.info("%s", step.name)
    started = datetime.now(UTC)
    clock = time.perf_counter()
    with explained(work):
        results = run_stage(job, step)
        written = (path for path in sorted(work.rglob("*")) if path.is_file() and path != work / MARK)
        files = {str(path.relative_to(work)): sha256_of(path) for path in written}
        write_json(
            work / MANIFEST,
            {
                "step": step.name,
                "stage": step.stage,
                "variant": step.variant,
                "fingerprint": fingerprint,
                "facts": job.plan.facts(step),
                "results": results,
                "files": files,
                "seconds": round(time.perf_counter() - clock, 3),
                "started": started.isoformat(timespec="seconds"),
                "rqat": __version__,
            },
        )
        (work / MARK).unlink()
    publish(work, job.result_of(step.name))


def run_stage(job: Job, step: Step) -> dict[str, Any]:
    """Does the work of a step in `job.workdir(step)`: in `job.workers` processes where its stage can run in several."""
    stage = stages().get(step.stage)
    if job.workers > 1 and stage is not None and stage.several:
        return launch(job, step)
    _seed()
    results: dict[str, Any] = work_of(step.stage).run(job, step)
    return results


def _marked(work: Path) -> str:
    """Fingerprint of the step that left this unfinished folder."""
    return str((read_json(work / MARK) or {}).get("fingerprint", ""))


def _seed() -> None:
    """One fixed state of every random generator at the start of a step, whatever ran before it in this process."""
    from transformers import set_seed

    set_seed(0)
