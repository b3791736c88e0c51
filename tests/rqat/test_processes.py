"""A run in several processes: what is refused, and that all end, whoever fails, with one message."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rqat.errors import RqatError, RunError
from rqat.launcher import GRACE_S, _cause, _grace, _run_workers, check_processes
from rqat.nodes import Nodes
from rqat.plan import build_plan
from rqat.processes import RANKS, Processes, WorkerFailed, work_alone
from rqat.recipe import load_recipe
from rqat.registry import Registry
from rqat.storage import read_json
from tests.campaign.several import is_there, workers_of
from tests.training import digests

TIMEOUT_S = 120

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def training(steps: int, **keys: Any) -> tuple[str, ...]:
    """Settings of a run that does little else."""
    keys = {
        "objective": "kd",
        "data": "arith",
        "steps": steps,
        "batch": 4,
        "max_tokens": 256,
        "save_every": 2,
        "lr": 1e-3,
        **keys,
    }
    listed = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return (
        "calibration.samples=4",
        "calibration.tokens=64",
        f"train=[{{{listed}}}]",
        "evaluate=[]",
        "compare=[]",
    )


STEPS = 24
SO_FAR = r"(train kd: \d+ of .*\n)*"
"""Lines that a bar writes now and then, on a machine that does much else."""

SHORT, LONG = training(4), training(STEPS)


def qat(folder: Path, overrides: tuple[str, ...], processes: int = 2) -> list[str]:
    """The command that runs the quickstart in `folder`."""
    settings = [word for override in overrides for word in ("--set", override)]
    rqat = [sys.executable, "-P", "-m", "rqat"]
    return [*rqat, "qat", "--recipe", "quickstart", "-o", str(folder), "--processes", str(processes), *settings]


def started(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command's exit code and what it printed."""
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, **environment})


class Running:
    """A run of the quickstart in two processes, which has done its first steps."""

    def __init__(self, folder: Path, printed: Path) -> None:
        self.printed, self.temporary = printed, printed.with_name("temporary")
        self.temporary.mkdir()
        with printed.open("w") as file:
            environment = {**os.environ, "TMPDIR": str(self.temporary)}
            self.parent = subprocess.Popen(qat(folder, LONG), stdout=file, stderr=file, env=environment)
        deadline = time.monotonic() + TIMEOUT_S
        while not any(len(log.read_text().splitlines()) > 4 for log in folder.glob("*-train-kd.partial/*.jsonl")):
            assert self.parent.poll() is None, printed.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.workers = workers_of(self.parent.pid)
        assert len(self.workers) == 2

    def end(self) -> tuple[int, str]:
        """Waits for all; the parent's exit code, and what all have printed."""
        code = self.parent.wait(timeout=TIMEOUT_S)
        deadline = time.monotonic() + 5
        while any(map(is_there, self.workers)):
            assert time.monotonic() < deadline, "a worker was left behind"
            time.sleep(0.02)
        return code, self.printed.read_text()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come to its training."""
    folder = tmp_path_factory.mktemp("quantized") / "run"
    assert started(qat(folder, SHORT, processes=1)).returncode == 0
    for step in folder.glob("0[34]-*"):
        shutil.rmtree(step)
    return folder


@pytest.fixture
def folder(quantized: Path, tmp_path: Path) -> Path:
    """A copy of it, to train in."""
    return Path(shutil.copytree(quantized, tmp_path / "run"))


@pytest.fixture(scope="module")
def unbroken(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing has interrupted, and what it printed."""
    folder = Path(shutil.copytree(quantized, tmp_path_factory.mktemp("unbroken") / "run"))
    done = started(qat(folder, LONG), RANK="1", WORLD_SIZE="7")
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


@pytest.fixture
def running(folder: Path, tmp_path: Path) -> Iterator[Running]:
    """A run that trains, of which nothing is left behind."""
    run = Running(folder, tmp_path / "printed")
    yield run
    for process in (run.parent.pid, *run.workers):
        if is_there(process):
            os.kill(process, signal.SIGKILL)
    run.parent.wait()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_alone_it_gathers_its_own_and_asks_for_nothing() -> None:
    alone = Processes()
    assert alone.leads
    assert alone.gather("mine") == ["mine"]
    assert alone.arguments("cuda") == {}
    assert not Processes(1, 2).leads


def test_variables_of_other_launchers_are_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.setenv(name, "2")
    work_alone()
    assert not set(RANKS) & set(os.environ)


def test_more_processes_than_gpus_and_sharding_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RqatError, match=r"4 processes were asked for, and there are 2 GPUs.*--processes 2"):
        check_processes(4, "cuda")
    check_processes(4, "cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RqatError, match=r"FSDP, by which accelerate splits a model.*`shard: true`"):
        check_processes(2, "cpu")


@pytest.mark.slow
def test_torchrun_is_told_off_once(tmp_path: Path) -> None:
    done = started([*TORCHRUN, "-m", "rqat", *qat(tmp_path, SHORT)[4:]])
    assert done.stderr.count("Error: rqat starts its processes itself, and a launcher has started 2 of it.") == 1
    assert "Hint: Start it without torchrun or accelerate: rqat qat --processes 2 ..." in done.stderr
    assert re.search(r"exitcode +: 2 ", done.stderr)


@pytest.mark.slow
def test_a_batch_that_does_not_split_is_refused_before_any_work(tmp_path: Path) -> None:
    done = started(qat(tmp_path / "run", training(4, batch=7)))
    assert done.returncode == 2
    assert "a batch of 7 does not split over 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- the end of all


@pytest.mark.slow
def test_it_shows_and_leaves_what_one_process_does(unbroken: tuple[Path, str]) -> None:
    folder, printed = unbroken
    assert "Device: cpu, 2 processes work together\n" in printed
    assert re.search(rf"^train kd \.\.\.\n{SO_FAR}train kd: [\d.]+ s  loss [\d.]+\n", printed, re.MULTILINE)
    assert not re.search("warning|traceback|gloo", printed, re.IGNORECASE)
    plan = build_plan(load_recipe("quickstart", LONG), Registry.discover())
    found = {step.name: read_json(folder / step.name / "manifest.json") for step in plan.steps}
    assert {name: manifest["fingerprint"] for name, manifest in found.items()} == {
        step.name: plan.fingerprint(step) for step in plan.steps
    }
    trained = found["03-train-kd"]
    assert trained["results"]["steps"] == STEPS
    assert {*trained["files"], "manifest.json"} == {path.name for path in (folder / "03-train-kd").iterdir()}


def state_told(folder: Path) -> str:
    """What the report says of a run that is not finished; not when that was."""
    found = re.search(r"(Running|Stopped|Not finished)[^;<]*;", (folder / "report.html").read_text())
    return found[0].partition(" when this page was written")[0].rstrip(";") + ";" if found else ""


@pytest.mark.long
def test_ctrl_c_ends_all_and_the_report_goes_along(running: Running, folder: Path) -> None:
    """It is written anew at a checkpoint, though the parent, which writes it, makes none, and when the run ends."""
    deadline = time.monotonic() + TIMEOUT_S
    while not re.fullmatch(rf"Running at 03-train-kd, step \d+ of {STEPS};", state_told(folder)):
        assert time.monotonic() < deadline, state_told(folder)
        assert running.parent.poll() is None, "the run ended before its report told of it"
        time.sleep(0.02)
    running.parent.send_signal(signal.SIGINT)
    code, printed = running.end()
    assert code == 130
    assert re.fullmatch(rf"Stopped at 03-train-kd, step \d+ of {STEPS};", state_told(folder))
    assert printed.endswith("\nInterrupted. The same command resumes from here.\n")
    assert not re.search("warning|error|traceback|train kd:", printed, re.IGNORECASE)


def test_a_signal_is_told_as_ctrl_c_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException

    def ended(*_: Any) -> Any:
        raise SignalException("ended", signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", ended)
    with pytest.raises(KeyboardInterrupt) as caught:
        _run_workers(2, tmp_path, Nodes(), "run")
    assert caught.value.args == (signal.SIGTERM,)


@pytest.mark.long
def test_workers_do_not_outlive_their_parent(running: Running) -> None:
    """Nor do its temporary files."""
    running.parent.kill()
    assert running.end()[0] == -signal.SIGKILL
    assert not [*running.temporary.rglob("*")]


@pytest.mark.long
def test_a_killed_worker_is_told_and_the_run_resumes_to_the_same_bytes(
    running: Running, folder: Path, unbroken: tuple[Path, str]
) -> None:
    os.kill(running.workers[1], signal.SIGKILL)
    code, printed = running.end()
    assert code == 2
    told = printed.partition("train kd ...\n")[2]
    assert re.fullmatch(rf"{SO_FAR}Error: process 1 of 2 was killed\.\nHint: .* resumes from what was saved\.\n", told)
    done = started([*qat(folder, LONG), "-v"])
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Info: 03-train-kd: resumes after step \d+ of", done.stderr, re.MULTILINE)
    assert digests(folder / "03-train-kd") == digests(unbroken[0] / "03-train-kd")


@pytest.mark.long
def test_a_bug_in_one_is_told_once_and_ends_all(folder: Path, tmp_path: Path) -> None:
    """By a source that fails in the second process only."""
    (tmp_path / "failing.py").write_text(
        "import os, rqat\n"
        "class Failing(rqat.Source):\n"
        "    def rows(self, split, seed):\n"
        "        while True:\n"
        "            yield {'prompt': '1+1=', 'completion': ['2'][int(os.environ.get('RANK', 0))], 'answer': '2'}\n"
        "@rqat.hookimpl\n"
        "def register_sources(register):\n"
        "    register('failing', options=rqat.Options, load=':Failing')\n"
    )
    done = started([*qat(folder, training(4, data="failing")), "--plugin", str(tmp_path / "failing.py")])
    assert done.returncode == 1, done.stderr
    told = done.stderr.rpartition("work together\n")[2]
    # The first may have begun to train before the second fails.
    assert re.fullmatch(
        r"Step 3 of 4: 03-train-kd\n(train kd \.\.\.\n)?Traceback .*\n( .*\n)+IndexError: list index out of range\n\n",
        told,
    ), told


def failed(rank: int, code: int, timestamp: int = 100, **data: Any) -> tuple[int, Any]:
    """A failure as torch's launcher reports it."""
    return rank, SimpleNamespace(exitcode=code, timestamp=timestamp, error_file_data={"message": "<NONE>", **data})


BUG = {"message": "Traceback", "time": 100.2}


@pytest.mark.parametrize(
    ("failures", "kind", "told"),
    [
        ([failed(0, -15), failed(1, 2, message="wrong.", hint="Do it.", time=100.1)], RqatError, "wrong. Do it."),
        ([failed(0, 1, **BUG), failed(1, 2, message="wrong.", hint="", time=100.1)], RqatError, "wrong."),
        ([failed(0, 1, **BUG), failed(1, 1, message="later", time=100.3)], WorkerFailed, "Traceback"),
        ([failed(0, -6, **BUG), failed(1, -9)], RunError, "process 1 of 2 was killed."),
        ([failed(0, 1, **BUG), failed(1, -9, timestamp=140)], WorkerFailed, "Traceback"),
        ([failed(0, -15), failed(1, 7)], WorkerFailed, "last words of 1\n\nprocess 1 of 2 ended with exit"),
        ([failed(0, 1, **BUG), failed(1, -11)], WorkerFailed, "last words of 1\n\nprocess 1 of 2 ended with exit"),
    ],
)  # fmt: skip
def test_the_one_that_failed_first_is_told(failures: Any, kind: type[Exception], told: str, tmp_path: Path) -> None:
    for rank in (0, 1):
        log = tmp_path / "id" / "attempt_0" / str(rank) / "stdout.log"
        log.parent.mkdir(parents=True)
        log.write_text(f"last words of {rank}\n")
    cause = _cause(SimpleNamespace(failures=dict(failures)), 2, tmp_path)  # type: ignore[arg-type]
    assert type(cause) is kind
    assert str(cause).startswith(told)


@pytest.mark.long
def test_a_worker_with_another_plan_says_so(tmp_path: Path) -> None:
    """Here the fingerprint that the parent tells is not that of the workers."""
    code = (
        "from rqat.plan import Plan; from rqat.cli.app import main\n"
        "Plan.fingerprint = lambda plan, step, known=None, of=Plan.fingerprint: of(plan, step, known) + 'x'\n"
        "main()"
    )
    done = started([sys.executable, "-P", "-c", code, *qat(tmp_path, SHORT)[4:]])
    assert done.returncode == 2
    assert re.search(
        r"Error: a process that was started for 03-train-kd has another plan than the run\.\nHint", done.stderr
    )


def test_a_launcher_that_knows_no_grace_is_told_none() -> None:
    """torch 2.11's configuration has no `shutdown_timeout`, that of 2.13 has."""

    @dataclass
    class Older:
        max_restarts: int = 0

    @dataclass
    class Newer(Older):
        shutdown_timeout: int = 30

    assert _grace(Older) == {}
    assert _grace(Newer) == {"shutdown_timeout": GRACE_S}
