"""Runs the steps of a plan in one folder; what the folder already holds is not done again.

    runs/quickstart/
      01-calibrate/               a finished step: its files and, written last, manifest.json
      02-quantize-gptq.partial/   a step that was interrupted; it resumes from what is there
      plan.json  recipe.yaml      what the run is to do, written before its first step
      summary.json  report.html  manifest.json      the run's own, rewritten whenever a step was run

A step is kept when a manifest in the folder carries the fingerprint that the plan gives it and every file is still what
was written; see `run_folder` and `intact`. A damaged step is set aside and done again.

What an interrupted step resumes from (`.resume` in its folder) goes only when the step has its final name, so that at
no moment there is neither the one nor the other.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

from . import __version__, report
from .errors import PluginError, RqatError, RunError
from .estimate import LIBRARIES_BYTES
from .figures import roughly
from .intact import damaged, is_manifest, read_manifest, sealed
from .job import Job, heard, log
from .launcher import check_processes, launch
from .lighter import is_out_of_memory, needed_bytes, ran_out, refuse_hopeless
from .model.memory import Peak, give_back
from .run_folder import LINKING, MANIFEST, MARK, MOVING, OLD, SUMMARY, fates, refuse_links, settle
from .run_lock import LOCK, only_one
from .stage import Step
from .stages import stages, work_of
from .storage import SCRATCH, explained, fingerprint_of, publish, read_json, sweep, write_json

LIBRARIES = ("torch", "transformers", "trl")

MEMORY = "memory"
"""Under which a step's results come with the most memory that it has taken, and the estimate of it."""

DAMAGED = ".damaged-"
"""In front of the name of a step whose files were found changed."""

OWN_FILES = frozenset({LOCK, MANIFEST, SUMMARY, "report.html", "plan.json", "recipe.yaml", "logs"})
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
        RunError: the folder holds something else, or a link that leads out of it, or another process is running in it;
            the disk is full or not writable.
        RqatError: whatever a stage reports. What was finished stays, and the same command resumes from there.
    """
    if job.workers > 1:
        check_processes(job.workers, job.device)
    refuse_links(job.folder)
    if job.folder.is_dir():
        _refuse_foreign_folder(job)  # before a lock is left there
    with only_one(job.folder), job.nodes.leading(job.folder):
        _refuse_foreign_folder(job)
        sweep(job.folder)
        if fresh:
            _clear(job)
        outcome = Outcome()
        with explained(job.folder):
            chosen = fates(job.plan, job.folder, redo=redo)
            outcome.aside = settle(job.folder, chosen)
        for line in outcome.aside:
            log.warning("Set aside: %s", line)
        _tell_versions(job)
        job.saved = partial(report.refresh, job.folder)
        if any(fate.state != "kept" for fate in chosen):
            report.begin(job)
            if (job.folder / report.REPORT).is_file():  # of before it was stopped, or of other results
                job.saved()
        results = _Results(job, outcome)
        try:
            for step in job.plan.steps:
                results.make(step)
                if step.name == until:
                    break
        except BaseException:
            report.refresh(job.folder, running=False)
            raise
        outcome.summary = {} if outcome.ran or outcome.aside else _summary(job.folder)
        if not outcome.summary:
            outcome.summary = report.write(job)
        return outcome


def follow(job: Job) -> list[str]:
    """Takes part in what the first of several machines does in processes; names of the steps, when its run has ended.

    Raises:
        RunError: it runs another plan. RqatError: see `launch`.
    """
    if job.workers > 1:
        check_processes(job.workers, job.device)
    joined = []
    for name, fingerprint in job.nodes.calls(job.folder):
        step = next((step for step in job.plan.steps if step.name == name), None)
        if step is None or job.plan.fingerprint(step) != fingerprint:
            raise RunError(
                f"the first machine is at {name}, which is no step of this plan, or another.",
                hint="Give the same command on every machine, with the same files, plugins and version of rqat.",
            )
        log.warning("%s: joins as machine %d of %d", name, job.nodes.rank, job.nodes.count)
        launch(job, step)
        joined.append(name)
    return joined


def _summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run; empty where there is none, or it is not what was written."""
    summary, manifest = read_json(folder / SUMMARY), read_json(folder / MANIFEST)
    sound = isinstance(manifest, dict) and manifest.get("summary") == report.digest_of(summary)
    return summary if sound and isinstance(summary, dict) else {}


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
        if entry.name.startswith(".") and not entry.name.startswith((OLD, MOVING, DAMAGED, LINKING)):
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
        manifest = read_manifest(job.result_of(step.name)) or {}
        before |= {name: its for name, its in manifest.get("versions", {}).items() if its != now.get(name, its)}
    if before:
        changed = ", ".join(f"{name} {its} (now {now[name]})" for name, its in before.items())
        log.warning("Finished steps are kept that were made with %s; --fresh makes all anew.", changed)


class _Results:
    """The results of the steps of a run, made where they are not there.

    Args:
        outcome: what was run and what was not is noted there.
    """

    def __init__(self, job: Job, outcome: Outcome) -> None:
        self.job, self.outcome = job, outcome
        self.sound: set[str] = set()
        """Steps whose files are known to be what was written, byte for byte."""

    def make(self, step: Step) -> None:
        """Does a step unless its result is there; what is read for that is compared byte for byte before."""
        if _is_done(self.job, step, whole=False):
            self.outcome.skipped.append(step.name)
            return
        self._do(step)

    def _do(self, step: Step) -> None:
        (self.job.folder / SUMMARY).unlink(missing_ok=True)  # its report is of other results
        for name in step.inputs.values():
            before = self.job.plan.step(name)
            if name not in self.sound and not _is_done(self.job, before, whole=True):
                self.outcome.skipped = [other for other in self.outcome.skipped if other != name]
                self._do(before)
            self.sound.add(name)
        _run_step(self.job, step)
        self.sound.add(step.name)
        self.outcome.ran.append(step.name)


def _is_done(job: Job, step: Step, *, whole: bool) -> bool:
    """Whether a step's result is there and sound; one that is not is set aside.

    Args:
        whole: read every file to its end; else look at the stamps only.
    """
    folder = job.result_of(step.name)
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return False
    with explained(folder):
        wrong = damaged(folder, manifest, whole=whole)
        if not wrong:
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # ended while it was being removed
            return True
        aside = job.folder / f"{DAMAGED}{step.name}-{int(time.time())}"
        log.warning(
            "%s: %s changed since it was written; set aside as %s and done again.", step.name, wrong[0], aside.name
        )
        folder.replace(aside)
    return False


def _run_step(job: Job, step: Step) -> None:
    work, final = job.workdir(step), job.result_of(step.name)
    facts = job.plan.facts(step)
    fingerprint = fingerprint_of(facts)
    with explained(work):
        manifest = read_json(work / MANIFEST)  # there when it was interrupted while being published
        if is_manifest(manifest) and manifest["fingerprint"] == fingerprint and not damaged(work, manifest, whole=True):
            _publish(work, final)
            return
        work.mkdir(exist_ok=True)
        sweep(work)
        (work / MANIFEST).unlink(missing_ok=True)
        write_json(work / MARK, {"fingerprint": fingerprint})
    log.info("%s", step.name)
    started = datetime.now(UTC)
    clock = time.perf_counter()
    with explained(work):
        number = job.plan.steps.index(step) + 1
        left = time_left(job, job.plan.steps[number - 1 :])
        with heard() as told, _nothing_left(work), job.progress.step(step.name, number, len(job.plan.steps), left):
            results = run_stage(job, step)
        memory = results.pop(MEMORY, {})
        left_out = {MARK, *([stage.card] if (stage := stages().get(step.stage)) else ())}
        written = sealed(work, without=left_out, ahead=job.ahead)
        write_json(
            work / MANIFEST,
            {
                "step": step.name,
                "stage": step.stage,
                "variant": step.variant,
                "fingerprint": fingerprint,
                "facts": facts,
                "results": results,
                "told": told,
                **written,
                "memory": memory,
                "seconds": round(time.perf_counter() - clock, 3),
                "started": started.isoformat(timespec="seconds"),
                "rqat": __version__,
                "versions": _versions(),
            },
        )
        _publish(work, final)


def time_left(job: Job, steps: Sequence[Step]) -> str:
    """What is known of the time that steps still take, from such steps of this run as were like them; "" if nothing."""
    took: dict[tuple[str, str], list[float]] = {}
    for step in job.plan.steps:
        manifest = read_manifest(job.result_of(step.name))
        if manifest is not None:
            took.setdefault(_likeness(step), []).append(float(manifest["seconds"]))
    to_do = [took.get(_likeness(step)) for step in steps if not job.result_of(step.name).is_dir()]
    known = sum(sum(found) / len(found) for found in to_do if found)
    if known < 1:
        return ""
    return f"{'about' if all(to_do) else 'at least'} {roughly(known)} left"


def _likeness(step: Step) -> tuple[str, str]:
    """Steps of which this is the same take about the same time: one task on different models, for one."""
    return step.stage, "/".join(f"{role}={use.card.full_name}" for role, use in step.parts.items())


@contextmanager
def _nothing_left(work: Path) -> Iterator[None]:
    """Around the work of a step: when that is refused, and nothing is there to go on from, its folder goes."""
    try:
        yield
    except RqatError:
        if not (work / SCRATCH).exists():
            shutil.rmtree(work, ignore_errors=True)
        raise


def _publish(work: Path, final: Path) -> None:
    """Gives a finished step its name, and only then removes what it could have resumed from."""
    (work / MARK).unlink(missing_ok=True)
    publish(work, final, flushed=True)  # by `sealed`
    shutil.rmtree(final / SCRATCH, ignore_errors=True)


def run_stage(job: Job, step: Step) -> dict[str, Any]:
    """Does the work of a step in `job.workdir(step)`: in `job.workers` processes where its stage can run in several."""
    stage = stages().get(step.stage)
    if job.together > 1 and stage is not None and stage.in_several(step):
        return launch(job, step)
    _seed()
    together = job.processes.count
    try:  # from the first word to the device, which may have been filled by others
        give_back(job.device)  # other processes share the machine, and torch keeps what the step before has freed
        now, later = _read_by(job, [step]), _read_by(job, _alike_behind(job, step))
        if stage is not None:
            needed = needed_bytes(step, job.plan, job.device, together)
            job.checkpoints.make_room(needed, job.device, now=now, later=later)
            job.original.make_room(needed, job.device)
            refuse_hopeless(needed, job.device)
        peak = Peak(job.device)
        results: dict[str, Any] = work_of(step.stage).run(job, step)
    except SystemExit as error:  # of several processes all but the first end in this way
        if together > 1:
            raise
        raise PluginError(
            f"{step.name}: a plugin, or a library, was about to end the process with {error.code!r}.",
            hint="A plugin raises an error; sys.exit would look as if the run were done.",
        ) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ran_out(step, job.plan, job.device, error) from error
    if stage is None or peak.bytes is None:
        return results
    beside = job.original.uncounted_bytes + job.checkpoints.beside_bytes(now)
    needed = needed_bytes(step, job.plan, job.device, together, results.get("chosen")) + beside
    needed += LIBRARIES_BYTES if job.device == "cpu" else 0
    return {**results, MEMORY: {"peak_bytes": peak.bytes, "estimate_bytes": needed}}


def _alike_behind(job: Job, step: Step) -> list[Step]:
    """The steps of the same stage that follow a step, up to one of another."""
    behind = job.plan.steps[job.plan.steps.index(step) + 1 :]
    return list(takewhile(lambda other: other.stage == step.stage, behind))


def _read_by(job: Job, steps: Sequence[Step]) -> set[Path]:
    """Folders of what steps start from."""
    return {job.result_of(name) for step in steps for name in step.inputs.values()}


def _seed() -> None:
    """One fixed state of every random generator at the start of a step, whatever ran before it in this process."""
    from transformers import set_seed

    set_seed(0)
