"""Trains in several processes, as `tests.training` does in one; `torchrun -m tests.together ROOT {OBJECTIVE: KEYS}`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rqat.contracts import Row, Verdict
from rqat.processes import Processes
from rqat.stages.train import run as train
from rqat.worker import reporting

from .training import EvenLength, train_step


def launched(root: Path, asked: dict[str, Any], count: int = 2) -> list[str]:
    """The command that trains in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return [*launcher, "-m", "tests.together", str(root), json.dumps(asked)]


def work_of(root: Path, objective: str) -> Path:
    """Where a training is done, and what it leaves."""
    return root / "run" / f"02-train-{objective}.partial"


class Noted(EvenLength):
    """Writes down what this process grades."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        with self.file.open("a") as file:
            file.write(json.dumps(completion) + "\n")
        return super().grade(completion, answer, row)


def main(root: Path, asked: dict[str, Any]) -> None:
    """Trains for every objective, one after the other."""
    processes = Processes.join("cpu")
    (root / f"pid-{processes.rank}").write_text(str(os.getpid()))
    for objective, keys in asked.items():
        job, step = train_step(root, objective, **keys)
        job.processes = processes
        job.given["task"] = Noted(root / f"graded-{processes.rank}")
        train.run(job, step)
        processes.gather()


if __name__ == "__main__":
    with reporting(Path(sys.argv[1]) / "temporary"):
        main(Path(sys.argv[1]), json.loads(sys.argv[2]))
