"""Runs the steps of a plan in one folder; what the folder already holds is not done again.

    runs/quickstart/
      01-calibrate/               a finished step: its files and, written last, manifest.json
      02-quantize-gptq.partial/   a step that was interrupted; it resumes from what is there
      summary.json  report.html  manifest.json      the run's own, rewritten whenever a step was run

A step is kept when a manifest in the folder carries the fingerprint that the plan gives it and every file still has the
hash written there; see `run_folder`. A damaged step is set aside and done again.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__
from .errors import RunError
from .job import Job, heard, log
from .launcher import check_processes, launch
from .run_folder import MANIFEST, MARK, fates, settle
from .stage import Step
from .stages import stages, work_of
from .storage import explained, publish, read_json, sha256_of, write_json

LIBRARIES = ("torch", "transformers", "trl")

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
        aside: a line for every folder that belonged to another plan and was set aside.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)


def run_pipeline(job: Job, *, fresh: bool = False, until: str = "", redo: Collection[str] = ()) -> Outcome:
    """Runs every step of `job.plan` that is not done yet, then writes the summary and the report.

    Args:
        fresh: throw away what the folder holds of an earlier run and start over.
        until: name of the last step to run; "" is all.
        redo: names of steps to do again, with what depends on them.

    Raises:
        RunError: the folder holds something else, or another process is running in it; the disk is full or not
            writable.
        RqatError: whatever a stage reports. What was finished stays, and the same command resumes from there.
    """
    if job.workers > 1:
        check_processes(job.workers, job.device)
    with _only_one(job.folder):
        _refuse_foreign_folder(job)
        if fresh:
            _clear(job)
        outcome = Outcome()
        with explained(job.folder):
            outcome.aside = settle(job.plan, job.folder, fates(job.plan, job.folder, redo=redo))
        for line in outcome.aside:
            log.warning("Set aside: %s", line)
        _tell_versions(job)
        for step in job.plan.steps:
            if _is_done(job, step):
                outcome.skipped.append(step.name)
            else:
                _run_step(job, step)
                outcome.ran.append(step.name)
            if step.name == until:
                break
        outcome.summary = read_json(job.folder / "summary.json") or {}
        if outcome.ran or outcome.aside or not outcome.summary:
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


def _versions() -> dict[str, str]:
    """Versions of the libraries that compute: kept beside a result, told when they change, no part of a fingerprint."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _tell_versions(job: Job) -> None:
    """Says, once for all kept steps, which libraries they were made with where those are others now."""
    now, before = _versions(), dict[str, str]()
    for step in job.plan.steps:
        manifest = read_json(job.result_of(step.name) / MANIFEST) or {}
        before |= {name: its for name, its in manifest.get("versions", {}).items() if its != now.get(name, its)}
    if before:
        changed = ", ".join(f"{name} {its} (now {now[name]})" for name, its in before.items())
        log.warning("Finished steps are kept that were made with %s; --fresh makes all anew.", changed)


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
        work.mkdir(exist_ok=True)
        (work / MANIFEST).unlink(missing_ok=True)
        write_json(work / MARK, {"fingerprint": fingerprint})
    log.info("%s", step.name)
    started = datetime.now(UTC)
    clock = time.perf_counter()
    with explained(work):
        with heard() as told:
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
                "told": told,
                "files": files,
                "seconds": round(time.perf_counter() - clock, 3),
                "started": started.isoformat(timespec="seconds"),
                "rqat": __version__,
                "versions": _versions(),
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


def _seed() -> None:
    """One fixed state of every random generator at the start of a step, whatever ran before it in this process."""
    from transformers import set_seed

    set_seed(0)
