"""`micro_batch: auto`: what fits is taken, stands in the record, and is taken again by a run that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from rqat import lighter
from rqat.stages.train import run as train
from rqat.stages.train.chosen import CHOSEN
from rqat.storage import read_json
from tests.training import digests, train_step, with_callback, write_start

KEYS: dict[str, Any] = {
    "steps": 4, "batch": 8, "micro_batch": "auto", "save_every": 2, "max_tokens": 64, "lr": 1e-2, "scale_lr": 1e-3,
}  # fmt: skip


class Stop(TrainerCallback):
    """Ends a training within its fourth step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def step_of(root: Path, **keys: Any) -> tuple[Any, Any]:
    return train_step(root, "kd", **KEYS | keys)


def takes(job: Any, step: Any, micro_batch: int) -> float:
    return lighter.MARGIN * lighter.needed_bytes(step, job.plan, "cpu", 1, {"micro_batch": micro_batch})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Memory that is said to be free."""
    told: dict[str, float] = {"bytes": 0}
    monkeypatch.setattr(lighter, "available_bytes", lambda device: int(told["bytes"]))
    return told


@pytest.mark.parametrize("fits", [8, 4, 1])
def test_the_largest_that_fits_is_taken_and_recorded(tmp_path: Path, free: dict[str, float], fits: int) -> None:
    write_start(tmp_path)
    job, step = step_of(tmp_path, steps=1)
    free["bytes"] = takes(job, step, fits) + 2
    assert train.run(job, step)["chosen"] == {"micro_batch": fits}
    write_start(tmp_path / "same")
    job, step = step_of(tmp_path / "same", steps=1, micro_batch=fits)
    assert "chosen" not in train.run(job, step)
    assert digests(job.workdir(step)) == digests(tmp_path / "run" / job.workdir(step).name)


def test_resumed_with_other_memory_free_it_ends_with_the_same_bytes(tmp_path: Path, free: dict[str, float]) -> None:
    for name in ("whole", "broken", "small"):
        write_start(tmp_path / name)
    job, step = step_of(tmp_path / "whole")
    enough = takes(job, step, 4) + 2
    free["bytes"] = enough
    train.run(job, step)
    whole = digests(job.workdir(step))

    job, step = step_of(tmp_path / "broken")
    with with_callback(job, step, Stop()), pytest.raises(KeyboardInterrupt):
        train.run(job, step)
    assert read_json(job.scratch(step) / CHOSEN) == {"micro_batch": 4}
    free["bytes"] = takes(job, step, 1)
    assert train.run(job, step)["chosen"] == {"micro_batch": 4}
    assert digests(job.workdir(step)) == whole

    job, step = step_of(tmp_path / "small")
    assert train.run(job, step)["chosen"] == {"micro_batch": 1}
    assert digests(job.workdir(step)) != whole, "another one rounds sums in another way"
