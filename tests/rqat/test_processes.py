"""Leader and followers: how they find each other, and that they all end, whoever fails, with one message."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rqat.errors import RqatError
from rqat.plan import build_plan
from rqat.processes import RANKS, Processes
from rqat.recipe import load_recipe
from rqat.registry import Registry
from rqat.storage import read_json

TIMEOUT_S = 60


def training(steps: int) -> tuple[str, ...]:
    """Settings of a run that does little else."""
    return (
        "calibration.samples=4",
        "calibration.tokens=64",
        f"train=[{{objective: kd, data: arith, steps: {steps}, batch: 4, max_tokens: 256}}]",
        "evaluate=[]",
        "compare=[]",
    )


SHORT, LONG = training(4), training(150)


def qat(folder: Path, overrides: tuple[str, ...]) -> list[str]:
    """The arguments of a run of the quickstart in `folder`."""
    settings = [word for override in overrides for word in ("--set", override)]
    return ["qat", "--recipe", "quickstart", "-o", str(folder), *settings]


class Pair:
    """A leader and a follower, started without a launcher, so that nothing else ends them.

    Args:
        folder: where what they print is kept.
        leader: arguments of `rqat`.
        follower: the follower's, when they are others.
    """

    def __init__(self, folder: Path, leader: list[str], follower: list[str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.files = [folder / f"printed-{rank}" for rank in (0, 1)]
        self.running = []
        for rank, arguments in enumerate((leader, follower or leader)):
            ranks = dict(zip(RANKS, map(str, (rank, 2, rank, 2)), strict=True))
            with self.files[rank].open("w") as printed:
                command = [sys.executable, "-m", "rqat", *arguments]
                environment = {**os.environ, **place, **ranks}
                self.running.append(subprocess.Popen(command, stdout=printed, stderr=printed, env=environment))

    def end(self) -> tuple[list[int], list[str]]:
        """Waits for both; their exit codes, and what they printed."""
        codes = [process.wait(timeout=TIMEOUT_S) for process in self.running]
        return codes, [file.read_text() for file in self.files]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Any]:
    """Starts a pair, of which nothing is left behind."""
    started: list[Pair] = []

    def start(*arguments: Any) -> Pair:
        started.append(Pair(tmp_path, *arguments))
        return started[-1]

    yield start
    for process in (process for pair in started for process in pair.running):
        process.kill()
        process.wait()


def wait_for_training(folder: Path, process: subprocess.Popen[Any]) -> None:
    """Until the first steps are done."""
    deadline = time.monotonic() + TIMEOUT_S
    while not any(len(log.read_text().splitlines()) > 2 for log in folder.glob("*-train-kd.partial/training.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------- what the environment says


def test_the_environment_tells_who_this_is_and_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip((*RANKS, "MASTER_ADDR", "MASTER_PORT"), ("3", "4", "1", "2", "here", "1"), strict=True):
        monkeypatch.setenv(name, value)
    found = Processes.here()
    assert (found.rank, found.count, found.local_rank, found.local_count) == (3, 4, 1, 2)
    assert not found.leads
    assert not set(RANKS) & set(os.environ)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_without_one_of_the_variables_it_is_alone(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.delenv(missing)
    found = Processes.here()
    assert found.count == 1
    assert found.leads
    assert found.gather("mine") == ["mine"]
    with found.taking_part(), found.together("cpu"):
        assert found.arguments("cpu") == {}


def test_more_processes_than_gpus_and_sharding_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RqatError, match="4 processes were started here, for 2 GPUs"):
        Processes(0, 4, 0, 4).prepare("cuda")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RqatError, match="FSDP splits a model"):
        Processes(0, 2, 0, 2).prepare("cpu")
    Processes().prepare("cuda")


# ------------------------------------------------------------------------------------------------------- the end of all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["qat", "--recipe", "quickstart", "--set", "train.kd.batch=7"],
            "a batch of 7 does not split over 2 processes",
        ),
        (["quantize", "builtin:tiny-reasoner", "-o", "out"], "`rqat quantize` runs in one process, and 2 were started"),
    ],
)
def test_a_users_mistake_is_told_once_and_ends_both(
    arguments: list[str], told: str, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    codes, (leader, follower) = pair(arguments).end()
    assert codes == [2, 2]
    assert leader.count("Error: ") == 1
    assert told in leader
    assert follower == ""


@pytest.mark.slow
def test_a_follower_that_fails_is_told_once_and_ends_both(pair: Any, tmp_path: Path) -> None:
    """Here by another recipe; the leader, who waits for it, is not left waiting."""
    other = tuple(override.replace("batch: 4", "batch: 8") for override in SHORT)
    codes, (leader, follower) = pair(qat(tmp_path / "run", SHORT), qat(tmp_path / "run", other)).end()
    assert codes == [2, 2]
    assert "Error" not in leader
    assert "Traceback" not in leader
    assert re.fullmatch(
        r"Process 1 of 2, where 0 leads:\n"
        r"Error: process 1 has another plan for 03-train-kd than the leader\.\nHint: .*\n",
        follower,
    )


@pytest.mark.slow
def test_interrupted_under_torchrun_all_end_and_then_go_on_to_what_one_process_makes(pair: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    with subprocess.Popen([*launcher, "-m", "rqat", *qat(folder, LONG)], stderr=subprocess.PIPE, text=True) as both:
        wait_for_training(folder, both)
        both.send_signal(signal.SIGINT)
        _, printed = both.communicate(timeout=TIMEOUT_S)
    told, traceback = printed.partition("\nInterrupted. The same command resumes from here.\n")[::2]
    assert "Device: cpu, 2 processes train together\n" in told
    assert not re.search("warning|traceback", told, re.IGNORECASE)
    assert "Interrupted" not in traceback
    assert "rqat/" not in traceback  # the launcher's own

    codes, (leader, follower) = pair(qat(folder, SHORT)).end()
    assert codes == [0, 0]
    assert "Checkpoint: " in leader
    assert follower == ""
    plan = build_plan(load_recipe("quickstart", SHORT), Registry.discover())
    found = {step.name: read_json(folder / step.name / "manifest.json")["fingerprint"] for step in plan.steps}
    assert found == {step.name: plan.fingerprint(step) for step in plan.steps}
