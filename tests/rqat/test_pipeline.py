"""The pipeline by itself: a plan of toy steps that write files, interrupted, damaged, changed and refused."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import rqat.intact
import rqat.pipeline
import rqat.report
import rqat.run_lock
from rqat.errors import PluginError, RunError
from rqat.facts import difference
from rqat.intact import sealed, verified
from rqat.job import Job, Silence
from rqat.pipeline import run_pipeline
from rqat.run_folder import MANIFEST
from rqat.run_lock import only_one
from rqat.storage import HEAD_BYTES, SCRATCH, Ahead, fingerprint_of, sha256_of, write_json


@dataclass
class ToyStep:
    name: str
    value: int
    stage: str = "toy"
    variant: str = "toy"
    inputs: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)


@dataclass
class ToyPlan:
    steps: list[ToyStep]

    def step(self, name: str) -> ToyStep:
        return next(step for step in self.steps if step.name == name)

    def facts(self, step: ToyStep) -> dict:
        return {"settings": {"value": step.value}}

    def fingerprint(self, step: ToyStep) -> str:
        return fingerprint_of(self.facts(step))

    def fingerprints(self) -> dict[str, str]:
        return {step.name: self.fingerprint(step) for step in self.steps}


@pytest.fixture
def toy(monkeypatch):
    """A stage that writes its value, notes the call, and does what `toy.before` says first."""
    stage = types.ModuleType("rqat.stages.toy.run")
    stage.calls, stage.told, stage.before = [], [], lambda work: None

    def run(job, step):
        stage.calls.append(step.name)
        work = job.workdir(step)
        stage.before(work)
        (work / "inner").mkdir(exist_ok=True)
        (work / "inner" / "value.txt").write_text(str(step.value))
        return {"value": step.value}

    stage.run = run
    monkeypatch.setitem(sys.modules, "rqat.stages.toy.run", stage)

    def write(job):
        summary = {"written": len(stage.calls)}
        (job.folder / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(rqat.report, "begin", lambda job: None)
    monkeypatch.setattr(rqat.report, "refresh", lambda folder, running=None: stage.told.append((folder, running)))
    monkeypatch.setattr(rqat.report, "write", write)
    return stage


def job_of(folder: Path, *values: int) -> Job:
    steps = [ToyStep(f"{number:02}-toy", value) for number, value in enumerate(values, 1)]
    return Job(plan=ToyPlan(steps), folder=folder, registry=None)


def test_a_finished_run_is_not_done_again(toy, tmp_path):
    first = run_pipeline(job_of(tmp_path / "run", 1, 2))
    assert first.ran == ["01-toy", "02-toy"]
    again = run_pipeline(job_of(tmp_path / "run", 1, 2))
    assert (again.ran, again.skipped) == ([], ["01-toy", "02-toy"])
    assert again.summary == first.summary
    assert toy.calls == ["01-toy", "02-toy"]


def test_a_run_that_fails_leaves_a_report_of_what_was_done(toy, tmp_path):
    def interrupted(work):
        raise KeyboardInterrupt

    toy.before = interrupted
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(job_of(tmp_path / "run", 1))
    assert toy.told == [(tmp_path / "run", False)]


def test_the_report_is_written_anew_at_every_checkpoint(toy, tmp_path):
    job = job_of(tmp_path / "run", 1)
    toy.before = lambda work: job.saved()
    run_pipeline(job)
    assert toy.told == [(tmp_path / "run", None)]


def test_a_run_that_is_taken_up_again_no_longer_shows_the_page_of_its_stop(toy, tmp_path):
    """At its start, before the first checkpoint; one that has nothing to do leaves its page alone."""
    run = tmp_path / "run"
    run_pipeline(job_of(run, 1))
    (run / rqat.report.REPORT).write_text("Stopped")
    toy.before = lambda work: toy.told.append("at work")
    run_pipeline(job_of(run, 1, 2))
    assert toy.told == [(run, None), "at work"]
    run_pipeline(job_of(run, 1, 2))
    assert len(toy.told) == 2


class Shown(Silence):
    """Notes the steps that are shown, with what is said of the time left."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int, str]] = []

    def step(self, name, number, count, left=""):
        self.steps.append((name, number, count, left))
        return super().step(name, number, count, left)


def test_steps_are_numbered_and_the_time_left_is_said_as_far_as_it_is_known(toy, tmp_path, monkeypatch):
    job = job_of(tmp_path / "run", 1, 2, 3)
    job.plan.steps[2].stage = "other"
    monkeypatch.setitem(sys.modules, "rqat.stages.other.run", toy)
    clock = iter(range(0, 10_000, 200))
    monkeypatch.setattr(rqat.pipeline, "time", types.SimpleNamespace(perf_counter=lambda: next(clock), time=time.time))
    job.progress = Shown()
    run_pipeline(job)
    # The first step took 200 s; the second is like it, the third is not.
    assert job.progress.steps == [
        ("01-toy", 1, 3, ""),
        ("02-toy", 2, 3, "at least 3 min left"),
        ("03-toy", 3, 3, ""),
    ]
    again = job_of(tmp_path / "run", 1, 5, 6)
    again.progress = Shown()
    run_pipeline(again)
    assert again.progress.steps == [("02-toy", 2, 3, "about 7 min left"), ("03-toy", 3, 3, "about 3 min left")]


def test_the_manifest_tells_what_was_done(toy, tmp_path):
    run_pipeline(job_of(tmp_path / "run", 7))
    manifest = json.loads((tmp_path / "run" / "01-toy" / MANIFEST).read_text())
    assert manifest["results"] == {"value": 7}
    assert manifest["facts"] == {"settings": {"value": 7}}
    assert list(manifest["files"]) == ["inner/value.txt"]
    assert manifest["seconds"] >= 0


def test_a_step_that_is_refused_leaves_nothing_but_what_it_can_go_on_from(toy, tmp_path):
    def refuse(work):
        (work / "half").write_text("of no use")
        raise RunError("no", hint="Do it otherwise.")

    def refuse_later(work):
        (work / SCRATCH).mkdir()
        refuse(work)

    toy.before = refuse
    with pytest.raises(RunError):
        run_pipeline(job_of(tmp_path / "run", 1))
    assert not (tmp_path / "run").exists()
    toy.before = refuse_later
    with pytest.raises(RunError):
        run_pipeline(job_of(tmp_path / "run", 1))
    assert (tmp_path / "run" / "01-toy.partial" / "half").exists()


def test_a_plugin_that_ends_the_process_does_not_end_the_run_as_if_it_were_done(toy, tmp_path):
    job = job_of(tmp_path / "run", 1)
    toy.before = lambda work: sys.exit(0)
    with pytest.raises(PluginError, match="was about to end the process with 0"):
        run_pipeline(job)
    assert not (job.folder / "01-toy").exists()


def test_an_interrupted_step_goes_on_from_its_own_folder(toy, tmp_path):
    def fail(work):
        (work / "half").write_text("done so far")
        raise KeyboardInterrupt

    toy.before = fail
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(job_of(tmp_path / "run", 1))
    assert not (tmp_path / "run" / "01-toy").exists()

    seen = []
    toy.before = lambda work: seen.append((work / "half").read_text())
    run_pipeline(job_of(tmp_path / "run", 1))
    assert seen == ["done so far"]


def test_remains_of_another_plan_are_not_gone_on_from(toy, tmp_path):
    def fail(work):
        (work / "half").write_text("of value 1")
        raise KeyboardInterrupt

    toy.before = fail
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(job_of(tmp_path / "run", 1))
    seen = []
    toy.before = lambda work: seen.append((work / "half").exists())
    run_pipeline(job_of(tmp_path / "run", 2))
    assert seen == [False]


def test_what_belongs_to_another_plan_is_set_aside_and_taken_back(toy, tmp_path):
    run_pipeline(job_of(tmp_path / "run", 1, 2))
    changed = run_pipeline(job_of(tmp_path / "run", 1, 3))
    assert (changed.ran, changed.skipped) == (["02-toy"], ["01-toy"])
    assert changed.aside == ["02-toy is now .old/1/02-toy"]
    assert (tmp_path / "run" / ".old" / "1" / "02-toy" / "inner" / "value.txt").read_text() == "2"
    back = run_pipeline(job_of(tmp_path / "run", 1, 2))
    assert (back.ran, back.aside) == ([], ["02-toy is now .old/2/02-toy"])
    assert (tmp_path / "run" / "02-toy" / "inner" / "value.txt").read_text() == "2"


def test_a_step_that_gets_another_number_is_kept(toy, tmp_path):
    run_pipeline(job_of(tmp_path / "run", 1, 2, 3))
    shifted = run_pipeline(job_of(tmp_path / "run", 9, 1, 2, 3))
    assert (shifted.ran, shifted.skipped) == (["01-toy"], ["02-toy", "03-toy", "04-toy"])
    values = [(tmp_path / "run" / f"0{n}-toy" / "inner" / "value.txt").read_text() for n in (1, 2, 3, 4)]
    assert values == ["9", "1", "2", "3"]
    fewer = run_pipeline(job_of(tmp_path / "run", 2))
    assert fewer.ran == []
    assert (tmp_path / "run" / "01-toy" / "inner" / "value.txt").read_text() == "2"
    assert len(fewer.aside) == 3


def test_until_and_redo(toy, tmp_path):
    assert run_pipeline(job_of(tmp_path / "run", 1, 2, 3), until="02-toy").ran == ["01-toy", "02-toy"]
    assert run_pipeline(job_of(tmp_path / "run", 1, 2, 3)).ran == ["03-toy"]
    job = job_of(tmp_path / "run", 1, 2, 3)
    job.plan.steps[2].inputs["start"] = "01-toy"
    assert run_pipeline(job, redo=["01-toy"]).ran == ["01-toy", "03-toy"]


def test_other_versions_of_libraries_are_told_and_force_nothing(toy, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("rqat"), "propagate", True)
    run_pipeline(job_of(tmp_path / "run", 1))
    file = tmp_path / "run" / "01-toy" / MANIFEST
    manifest = json.loads(file.read_text())
    assert set(manifest["versions"]) >= {"torch", "transformers"}
    manifest["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(manifest))
    assert run_pipeline(job_of(tmp_path / "run", 1)).ran == []
    assert "made with torch 1.0 (now " in caplog.text


def test_fresh_starts_over(toy, tmp_path):
    run_pipeline(job_of(tmp_path / "run", 1))
    assert run_pipeline(job_of(tmp_path / "run", 2), fresh=True).ran == ["01-toy"]
    assert (tmp_path / "run" / "01-toy" / "inner" / "value.txt").read_text() == "2"


def test_fresh_throws_away_what_runs_leave_and_nothing_else(toy, tmp_path):
    run = tmp_path / "run"
    for name in (".git", ".old", ".damaged-01-toy-1", ".moving-01-toy", ".linking-01-toy"):
        (run / name).mkdir(parents=True)
        (run / name / "file").write_text("")
    run_pipeline(job_of(run, 1), fresh=True)
    there = {path.name for path in run.iterdir() if path.name.startswith(".")}
    assert there == {".git", ".lock"}


@pytest.mark.parametrize("damage", [lambda file: file.write_text("x"), lambda file: file.unlink()])
def test_a_damaged_step_is_set_aside_and_done_again(toy, tmp_path, damage):
    run_pipeline(job_of(tmp_path / "run", 1, 2))
    damage(tmp_path / "run" / "01-toy" / "inner" / "value.txt")
    assert run_pipeline(job_of(tmp_path / "run", 1, 2)).ran == ["01-toy"]
    assert (tmp_path / "run" / "01-toy" / "inner" / "value.txt").read_text() == "1"
    assert len(list((tmp_path / "run").glob(".damaged-01-toy-*"))) == 1
    assert run_pipeline(job_of(tmp_path / "run", 1, 2)).ran == []


def test_killed_while_being_published_it_is_not_done_again(toy, tmp_path, monkeypatch):
    def killed(partial, final, **flushed):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rqat.pipeline, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(job_of(tmp_path / "run", 1, 2))
    run_pipeline(job_of(tmp_path / "run", 1, 2))
    assert toy.calls == ["01-toy", "02-toy"]
    manifest = json.loads((tmp_path / "run" / "01-toy" / MANIFEST).read_text())
    assert list(manifest["files"]) == ["inner/value.txt"]
    assert run_pipeline(job_of(tmp_path / "run", 1, 2)).ran == []


def test_a_folder_with_something_else_is_refused_and_left_alone(toy, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(RunError, match=r"thesis\.tex"):
            run_pipeline(job_of(tmp_path, 1), fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_where_the_folder_should_be(toy, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="stands in its way"):
        run_pipeline(job_of(tmp_path / "run", 1))


def test_two_processes_do_not_share_a_folder(toy, tmp_path):
    """The second is refused, by the name of the first."""

    def second(work):
        code = (
            "import pathlib\nfrom rqat.errors import RunError\nfrom rqat.run_lock import is_held, only_one\n"
            f"try:\n    with only_one(pathlib.Path({str(work.parent)!r})): pass\n"
            "except RunError as error: print(error)\n"
            f"print(is_held(pathlib.Path({str(work.parent)!r})))\n"
        )
        said.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    said: list[str] = []
    toy.before = second
    run_pipeline(job_of(tmp_path / "run", 1))
    assert not rqat.run_lock.is_held(tmp_path / "run")
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in said[0]
    assert said[0].endswith("True\n")


def test_whoever_looks_keeps_nobody_from_starting(tmp_path):
    """`rqat runs` has a run's lock for as long as it looks: a run that begins just then is not refused."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    with (tmp_path / "run" / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.02, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with only_one(tmp_path / "run"):
            assert rqat.run_lock.is_held(tmp_path / "run")


def test_a_folder_without_locks_says_so(toy, tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(rqat.run_lock.fcntl, "flock", refuse)
    with pytest.raises(RunError, match=r"cannot be locked \(flock: No locks available\)"):
        run_pipeline(job_of(tmp_path / "run", 1))
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / ".lock").touch()
    assert not rqat.run_lock.is_held(tmp_path / "run")  # nobody knows


def test_what_a_step_resumes_from_outlives_everything_up_to_its_name(toy, tmp_path, monkeypatch):
    """A kill while results are hashed, and while the folder gets its name, finds it there; after that it is gone."""

    def run_with_scratch(work):
        (work / SCRATCH).mkdir(exist_ok=True)
        seen.append((work / SCRATCH / "state").exists())
        (work / SCRATCH / "state").write_text("so far")

    def killed(*_, **__):
        raise KeyboardInterrupt

    seen: list[bool] = []
    toy.before = run_with_scratch
    for name in ("sealed", "publish"):
        with monkeypatch.context() as patch:
            patch.setattr(rqat.pipeline, name, killed)
            with pytest.raises(KeyboardInterrupt):
                run_pipeline(job_of(tmp_path / "run", 1))
        assert (tmp_path / "run" / "01-toy.partial" / SCRATCH / "state").exists()
    with monkeypatch.context() as patch:  # killed after it got its name
        patch.setattr(rqat.pipeline.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(job_of(tmp_path / "run", 1))
    run_pipeline(job_of(tmp_path / "run", 1))
    assert seen == [False, True]
    assert sorted(path.name for path in (tmp_path / "run" / "01-toy").iterdir()) == ["inner", MANIFEST]


def test_a_start_reads_no_whole_files_and_a_step_that_uses_them_does(toy, tmp_path, monkeypatch):
    """Content that changed behind an unchanged size, time and head is found when it is read, or by `runs verify`."""
    toy.before = lambda work: (work / "large.bin").write_bytes(bytes(HEAD_BYTES) + b"end")
    run_pipeline(job_of(tmp_path / "run", 1, 2))
    large = tmp_path / "run" / "01-toy" / "large.bin"
    time = large.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(rqat.intact, "sha256_of", lambda path: pytest.fail(f"{path} was read to its end"))
        assert run_pipeline(job_of(tmp_path / "run", 1, 2)).ran == []
    large.write_bytes(bytes(HEAD_BYTES) + b"END")
    os.utime(large, ns=(time, time))
    assert run_pipeline(job_of(tmp_path / "run", 1, 2)).ran == []
    assert verified(tmp_path / "run" / "01-toy") == ["large.bin"]
    assert verified(tmp_path / "run" / "02-toy") == []
    job = job_of(tmp_path / "run", 1, 3)
    job.plan.steps[1].inputs["start"] = "01-toy"
    assert run_pipeline(job).ran == ["01-toy", "02-toy"]
    assert large.read_bytes().endswith(b"end")


def test_a_file_is_hashed_ahead_once_and_anew_where_it_was_written_again(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(rqat.storage, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    ahead = Ahead()
    for name in ("kept", "changed", "other"):
        (tmp_path / name).write_bytes(name.encode())
        if name != "other":
            ahead.begin(tmp_path / name)
            ahead._begun[tmp_path / name][1].result()
    (tmp_path / "changed").write_bytes(b"something else")
    files = sealed(tmp_path, ahead=ahead)["files"]
    assert files == {path.name: sha256_of(path) for path in tmp_path.iterdir()}
    assert sorted(hashed) == ["changed", "changed", "kept", "other"]


def test_a_copied_run_on_a_disk_that_cannot_be_written_is_found_whole(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 10)
    manifest = dict.fromkeys(("step", "stage", "variant", "fingerprint"), "s") | {"facts": {}, "results": {}}
    manifest |= {"seconds": 1.0} | sealed(tmp_path)
    write_json(tmp_path / MANIFEST, manifest)
    os.utime(tmp_path / "a", (1, 1))
    written = []

    def refused(path: Path, value: object) -> None:
        written.append(path)
        raise RunError(f"'{path}' cannot be written: permission denied.")

    monkeypatch.setattr(rqat.intact, "write_json", refused)
    assert verified(tmp_path) == []
    assert written == [tmp_path / MANIFEST]


def test_a_copied_run_is_read_once(toy, tmp_path, monkeypatch):
    run_pipeline(job_of(tmp_path / "run", 1))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy, copy_function=shutil.copyfile)
    assert run_pipeline(job_of(copy, 1)).ran == []
    monkeypatch.setattr(rqat.intact, "write_json", lambda *_: pytest.fail("the new times were not kept"))
    assert run_pipeline(job_of(copy, 1)).ran == []


def test_what_a_killed_process_was_writing_is_swept_away(toy, tmp_path):
    def killed(work):
        (work / ".tmpAb3").write_text("of safetensors")
        raise KeyboardInterrupt

    toy.before = killed
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(job_of(tmp_path / "run", 1))
    (tmp_path / "run" / ".summary.json.17.tmp").write_text("{")
    toy.before = lambda work: None
    run_pipeline(job_of(tmp_path / "run", 1))
    assert [path.name for path in (tmp_path / "run").rglob("*tmp*")] == []


def test_a_step_that_was_about_to_begin_leaves_nothing(toy, tmp_path):
    """Killed as it marked its folder, whose mark then says nothing."""
    partial = tmp_path / "run" / "01-toy.partial"
    (partial / SCRATCH).mkdir(parents=True)
    (partial / "..step.json.17.tmp").write_text("{")
    run_pipeline(job_of(tmp_path / "run", 1))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "01-toy", "summary.json"]


def test_a_report_that_was_not_written_is_written(toy, tmp_path, monkeypatch):
    """Also where an earlier run, of other results, had written one."""
    run_pipeline(job_of(tmp_path / "run", 1))

    def killed(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rqat.report, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(job_of(tmp_path / "run", 1, 2))
    assert run_pipeline(job_of(tmp_path / "run", 1, 2)).summary == {"written": 2}


def test_a_full_disk_is_explained_and_leaves_nothing_that_looks_finished(toy, tmp_path):
    def full(work):
        raise OSError(errno.ENOSPC, "No space left on device")

    toy.before = full
    with pytest.raises(RunError, match="disk is full"):
        run_pipeline(job_of(tmp_path / "run", 1))
    assert not (tmp_path / "run" / "01-toy").exists()


def test_difference_names_the_key_and_both_values():
    lines = difference({"settings": {"steps": 3, "lr": 1}}, {"settings": {"steps": 4, "lr": 1}})
    assert len(lines) == 1
    assert "steps" in lines[0]
    assert "3" in lines[0]
    assert "4" in lines[0]


def test_a_folder_that_somebody_removes_meanwhile_is_one_line(toy, tmp_path):
    toy.before = lambda work: shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match="was removed while this command was at work in it"):
        run_pipeline(job_of(tmp_path / "run", 1))
    toy.before = lambda work: None
    assert run_pipeline(job_of(tmp_path / "run", 1)).ran


def test_all_of_a_step_is_on_disk_before_it_gets_its_name(toy, tmp_path, monkeypatch):
    """Each file is flushed once, its manifest as it is written, and so are the entries of its folders."""
    flushed: list[str] = []

    def note(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        if ".partial" in name:
            flushed.append(name.partition("01-toy.partial")[2])
        real(handle)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", note)
    replaced = Path.replace

    def named(path, target):
        if path.name == "01-toy.partial":
            flushed.append("named")
        return replaced(path, target)

    monkeypatch.setattr(Path, "replace", named)
    run_pipeline(job_of(tmp_path / "run", 1))
    before = flushed[: flushed.index("named")]
    assert {"", "/inner", "/inner/value.txt"} <= set(before)
    assert sum(MANIFEST in name for name in before) == 1
    assert before.count("/inner/value.txt") == 1


def test_what_cannot_be_imported_ahead_is_left_to_its_step(toy, tmp_path):
    """All that the steps use is asked for; tasks of lm-eval have nothing to be imported."""
    asked = []

    def load_class(card):
        asked.append(card.name)
        raise PluginError(f"{card.name} does not import.")

    job = job_of(tmp_path / "run", 1, 2)
    job.registry = types.SimpleNamespace(load_class=load_class)
    for step, names in zip(job.plan.steps, (("gptq", "own-rows"), ("", "arith")), strict=True):
        cards = [types.SimpleNamespace(name=name, load=name) for name in names]
        step.uses = [types.SimpleNamespace(card=card) for card in cards]
    job.import_all(job.plan.steps)
    assert asked == ["gptq", "own-rows", "arith"]


def test_what_builds_models_is_imported_with_the_libraries():
    """Later its objects would be looked through at every full collection, and nobody told that libraries are loaded."""
    code = """
import sys
from rqat.job import Job
before = "transformers.modeling_utils" in sys.modules
Job(None, None, None).import_all([])
print(before, "transformers.modeling_utils" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "True"]
