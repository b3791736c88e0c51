"""Training in two processes: what one would have learned, to rounding; whole checkpoints; one GPU in one process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerState

from rqat.errors import RqatError, RunError
from rqat.model.checkpoint import load_checkpoint
from rqat.processes import Processes
from rqat.stages.train import run as train
from rqat.storage import SCRATCH, read_json_lines
from rqat.train.checkpoints import last_complete, processes_of
from rqat.train.one_gpu import one_gpu
from rqat.train.saving import Saving
from tests.together import launched, work_of
from tests.training import digests, train_step, write_start

COMMON: dict[str, Any] = {
    "steps": 6, "batch": 4, "save_every": 2, "max_tokens": 64, "lr": 1e-3, "scale_lr": 1e-3, "other_lr": 1e-3
}  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {
    "kd": {**COMMON, "micro_batch": 1, "gradient_checkpointing": True, "sft_weight": 0.1},
    "sft": COMMON,
    "grpo": {**COMMON, "generations": 4, "max_completion_tokens": 6},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_start(folder)
    return folder


@pytest.fixture
def root(start: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, to train in."""
    return Path(shutil.copytree(start, tmp_path / "root"))


@pytest.fixture(scope="module")
def together(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have trained for every objective."""
    root = Path(shutil.copytree(start, tmp_path_factory.mktemp("together") / "root"))
    done = subprocess.run(launched(root, ASKED), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kd", "sft"])
def test_two_processes_learn_what_one_learns(objective: str, together: Path, root: Path) -> None:
    """Only the order of a step's sums differs: some last places of float32, and hardly a code that was on a border."""
    job, step = train_step(root, objective, **ASKED[objective])
    train.run(job, step)
    alone, both = (read_json_lines(work_of(folder, objective) / "training.jsonl") for folder in (root, together))
    assert [line["tokens"] for line in both] == [line["tokens"] for line in alone]
    for figure in ("loss", "grad_norm"):
        assert [line[figure] for line in both] == pytest.approx([line[figure] for line in alone], rel=2e-6)
    mine, theirs = (load_checkpoint(work_of(folder, objective)).layers for folder in (root, together))
    before = load_checkpoint(root / "run" / "01-quantize-rtn").layers
    count = sum(layer.codes.numel() for layer in mine.values())
    changed = sum(int((before[name].codes != layer.codes).sum()) for name, layer in mine.items())
    different = sum(int((theirs[name].codes != layer.codes).sum()) for name, layer in mine.items())
    assert changed > count / 50
    assert different < count / 10_000


@pytest.mark.slow
def test_rollouts_are_spread_and_are_not_the_same(together: Path) -> None:
    """A prompt's four completions are written two by two, with random numbers of their own."""
    lines = read_json_lines(work_of(together, "grpo") / "training.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 7))
    first, second = ((together / f"graded-{rank}").read_text().splitlines() for rank in (0, 1))
    assert len(first) == len(second) == 12
    assert sum(one == other for one, other in zip(first, second, strict=True)) < 6


@pytest.mark.long
def test_killed_it_goes_on_with_the_same_bytes_or_in_another_number(
    together: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"kd": ASKED["kd"]}
    work = work_of(root, "kd")
    with subprocess.Popen(launched(root, asked), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while (
            len(read_json_lines(work / "training.jsonl")) < 5 and time.monotonic() < deadline and process.poll() is None
        ):
            time.sleep(0.002)
        leader, follower = (int((root / f"pid-{rank}").read_text()) for rank in (0, 1))
        os.kill(leader, signal.SIGKILL)
        assert process.wait(timeout=30) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(follower, 0)
    checkpoint = last_complete(work / SCRATCH)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    assert processes_of(checkpoint) == 2

    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    done = subprocess.run(launched(root, asked), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(work) == digests(work_of(together, "kd"))
    lines, unbroken = (
        [{**line, "seconds": 0} for line in read_json_lines(work_of(folder, "kd") / "training.jsonl")]
        for folder in (root, together)
    )
    assert lines == unbroken

    job, step = train_step(copy, "kd", **ASKED["kd"])
    with caplog.at_level(logging.WARNING, "rqat"):
        train.run(job, step)
    assert "resumes with 1 process(es), its checkpoint was saved by 2" in caplog.text
    losses = [line["loss"] for line in read_json_lines(work_of(copy, "kd") / "training.jsonl")]
    assert losses == pytest.approx([line["loss"] for line in unbroken], rel=2e-6)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"batch": 5},
            "a batch of 5 does not split over 2 processes. Use a multiple of 2.",
        ),
        ({"batch": 6, "micro_batch": 2}, "over 2 processes with micro_batch 2. Use a multiple of 4."),
        ({"batch": 1}, "a batch of 1 does not split over 2 processes"),
    ],
)
def test_a_batch_that_does_not_split_is_refused(root: Path, keys: dict[str, Any], told: str) -> None:
    _, step = train_step(root, "sft", **{**COMMON, **keys})
    with pytest.raises(RqatError) as refused:
        train._arguments(step.settings, root, "cpu", Processes(0, 2))  # type: ignore[arg-type]
    assert told in str(refused.value)


class Answered(Processes):
    """Of three, two of which have answered."""

    def gather(self, text: str = "") -> list[str]:
        return [text, *(json.dumps({"digest": digest}) for digest in "ab")]


def test_processes_that_trained_other_weights_are_told_and_leave_no_checkpoint(tmp_path: Path) -> None:
    optimizer: Any = SimpleNamespace(digest=lambda: "a")
    scheduler: Any = SimpleNamespace(state_dict=dict)
    saving = Saving(
        tmp_path, optimizer, scheduler, every_steps=3, every_s=0, processes=Answered(0, 3), log=tmp_path / "log"
    )
    with pytest.raises(RunError, match="step 3: processes 0 and 2 of 3 have different weights"):
        saving._end_step(TrainerState(global_step=3, max_steps=9))
    assert last_complete(tmp_path) is None


@pytest.mark.parametrize("objective", ["sft", "grpo"])
def test_one_process_stays_on_one_gpu_of_several(objective: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four visible GPUs, as the Trainer counts them; they would be four times the batch, or an error from TRL."""
    from transformers import TrainingArguments

    counted = vars(TrainingArguments)["n_gpu"]
    results = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda arguments: 4))
        job, step = train_step(root, objective, **{**ASKED[objective], "steps": 2})
        facts = train.run(job, step)
        results.append((facts["tokens"], digests(job.workdir(step))))
        shutil.rmtree(job.workdir(step))
    assert results[0] == results[1]
    monkeypatch.undo()
    with one_gpu():
        assert TrainingArguments(output_dir=str(root), use_cpu=True).n_gpu == 0
    assert vars(TrainingArguments)["n_gpu"] is counted


def test_a_digest_tells_any_changed_bit(root: Path) -> None:
    from rqat.scheme import Scheme
    from tests.toys import built

    _, optimizer = built(Scheme.parse("w2g32"))
    before = optimizer.digest()
    assert optimizer.digest() == before
    with torch.no_grad():
        next(iter(optimizer.masters.values()))[0] += 1e-6
    assert optimizer.digest() != before
