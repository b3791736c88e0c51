"""`kill -9` in every step of the quickstart, then the same command: the same weights as a run that was left alone.

The test runs a cut-down quickstart; the real one, against a finished run of it:

    python tests/test_kill.py runs/quickstart OUT
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CUT_DOWN = (
    "calibration.samples=8",
    "train.kd.steps=6",
    "train.kd.save_every=2",
    "train.grpo.steps=3",
    "train.grpo.save_every=1",
    "train.grpo.batch=8",
    "train.grpo.gate.prompts=4",
    "train.grpo.gate.action=warn",
    "evaluate.arith.limit=8",
)


def command(folder: Path, overrides: tuple[str, ...]) -> list[str]:
    """The `rqat qat` command of a run in `folder`."""
    settings = [word for override in overrides for word in ("--set", override)]
    return [sys.executable, "-m", "rqat", "qat", "--recipe", "quickstart", "-o", str(folder), *settings]


def environment() -> dict[str, str]:
    """This environment with the repository's packages on the path."""
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "plugins", "kernels"))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


def weights(folder: Path) -> dict[str, str]:
    """Hash of every safetensors file of a finished run, by its path in the run folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_in(step: str, folder: Path, overrides: tuple[str, ...], delay_s: float) -> bool:
    """Starts the run, kills it `delay_s` after the step has begun; False when the step was over by then."""
    with (folder.parent / "log").open("a") as log:
        process = subprocess.Popen(command(folder, overrides), env=environment(), stdout=log, stderr=log)
    partial = folder / f"{step}.partial"
    while process.poll() is None and not partial.exists() and not (folder / step).exists():
        time.sleep(0.002)
    time.sleep(delay_s)
    inside = partial.exists()
    process.kill()
    process.wait()
    return inside


def kill_everywhere(folder: Path, steps: list[str], overrides: tuple[str, ...], delays_s: list[float]) -> list[str]:
    """Kills the run once in each step, then lets it finish; returns the steps in which the kill found it at work."""
    hit = [step for step, delay in zip(steps, delays_s, strict=True) if kill_in(step, folder, overrides, delay)]
    done = subprocess.run(command(folder, overrides), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return hit


def steps_of(folder: Path) -> list[str]:
    """Names of the finished steps of a run."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


@pytest.mark.long
def test_a_run_killed_in_every_stage_ends_with_the_same_weights(tmp_path):
    left_alone, killed = tmp_path / "left-alone", tmp_path / "killed"
    reference = subprocess.run(command(left_alone, CUT_DOWN), env=environment(), capture_output=True, text=True)
    assert reference.returncode == 0, reference.stderr[-2000:]
    stages = ("calibrate", "quantize-gptq", "train-kd", "gate-grpo", "train-grpo", "export", "evaluate-arith-bf16")
    steps = [name for name in steps_of(left_alone) if name[3:] in stages]
    assert len(steps) == len(stages)
    hit = kill_everywhere(killed, steps, CUT_DOWN, [0.05 if "train" not in step else 1.5 for step in steps])
    assert {"quantize-gptq", "train-kd", "train-grpo"} <= {step[3:] for step in hit}
    assert len(weights(left_alone)) >= 8
    assert weights(killed) == weights(left_alone)


if __name__ == "__main__":
    finished, out = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    names = steps_of(finished)
    chance = random.Random(0)
    longest_s = {"train": 60.0, "evaluate": 8.0, "gate": 4.0, "quantize": 3.0}
    waits = [chance.uniform(0, longest_s.get(name[3:].partition("-")[0], 0.05)) for name in names]
    struck = kill_everywhere(out, names, (), waits)
    print(f"killed at work in {len(struck)} of {len(names)} steps: {', '.join(struck)}")
    same = weights(out) == weights(finished)
    print(f"{len(weights(finished))} safetensors files, {'all equal' if same else 'NOT equal'}")
    sys.exit(0 if same else 1)
