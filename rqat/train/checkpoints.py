"""Interrupted training: which checkpoints are whole, and a log that a resumed run continues without a seam.

A Trainer's checkpoint is a folder of several files, and a kill may come between any two of them. `Checkpoints` marks a
folder as complete once everything in it is on disk; only marked ones are resumed from, the others are removed.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import NumericsError, RunError
from ..processes import Processes
from ..storage import append_json_line, read_json_lines, sync_folder, write_json_lines, write_text

COMPLETE = ".complete"
"""Name of the marker, written last."""

KEPT = 2
"""Checkpoints kept on disk: with one, a kill during the next save could leave none."""

NOT_LOGGED = frozenset(
    {"learning_rate", "epoch", "num_tokens", "num_input_tokens_seen", "total_flos", "step_time", "train_runtime"}
    | {"train_tokens_per_second"}
)
"""Figures of the Trainer that stand in a line under our own names, or are clocks."""

_FOLDER = re.compile(r"checkpoint-(\d+)")


def last_complete(folder: Path, *, clean: bool = True) -> Path | None:
    """The newest checkpoint in a Trainer's output folder that is whole.

    Args:
        clean: half-written ones are removed; for one process of several.
    """
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        match = _FOLDER.fullmatch(path.name)
        if match is None:
            continue
        if (path / COMPLETE).is_file():
            found[int(match[1])] = path
        elif clean:
            shutil.rmtree(path)
    return found[max(found)] if found else None


def discard(folder: Path) -> None:
    """Removes a Trainer's output folder, marks first: a kill in between must leave no gutted checkpoint marked."""
    for mark in folder.glob(f"checkpoint-*/{COMPLETE}"):
        mark.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def step_of(checkpoint: Path | None) -> int:
    """Optimizer steps done at a checkpoint; 0 for None."""
    match = _FOLDER.fullmatch(checkpoint.name) if checkpoint is not None else None
    return int(match[1]) if match else 0


def processes_of(checkpoint: Path) -> int:
    """How many processes trained together when a checkpoint was saved: each has left its random state."""
    return max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


class Checkpoints(TrainerCallback):
    """Marks checkpoints as complete; the last is that of the last step.

    Args:
        processes: those that train together; the first waits until all have written their files, and marks.
        digest: of what this process has trained.
    """

    def __init__(self, processes: Processes, digest: Callable[[], str]) -> None:
        self.processes, self.digest = processes, digest

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After this process has written its files of a checkpoint.

        Raises:
            RunError: another process has trained other weights.
        """
        if self.processes.count > 1:
            digests = self.processes.gather(self.digest())
            others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
            if others:
                raise RunError(
                    f"step {state.global_step}: processes 0 and {others[0]} of {len(digests)} have different weights.",
                    hint="All must run the same versions on the same kind of device, and an objective must compute its "
                    "loss by way of the model that it is handed. One process can resume from the last checkpoint.",
                )
        if not self.processes.leads:
            return
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        sync_folder(folder)
        write_text(folder / COMPLETE, f"{state.global_step}\n")
        sync_folder(folder)


class Log(TrainerCallback):
    """training.jsonl: one line per optimizer step; and the progress display.

    Every line has `step`, `loss`, `lr`, `grad_norm`, `tokens` (seen so far) and `seconds` (of this step); an
    objective's own figures stand beside them.

    Args:
        path: the file.
        done: steps a resumed run has behind it; later lines of the interrupted run are cut off.
        steps: of the whole run.
        bar: a `job.Bar` to report to.
    """

    def __init__(self, path: Path, *, done: int, steps: int, bar: Any) -> None:
        self.path, self.steps, self.bar = path, steps, bar
        self.started: float | None = None
        self.seconds = 0.0
        kept = [line for line in read_json_lines(path) if line["step"] <= done]
        write_json_lines(path, kept)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the step's clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stops it: what others do before the line is written is no part of the step."""
        self.seconds = 0.0 if self.started is None else time.perf_counter() - self.started

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Appends a line.

        Raises:
            NumericsError: the loss is not finite.
        """
        logs: dict[str, Any] = given["logs"]
        if "loss" not in logs:  # the summary at the end
            return
        line = _line(state, logs, self.seconds)
        append_json_line(self.path, line)
        if not abs(line["loss"]) < float("inf"):
            raise NumericsError(
                f"step {line['step']}: the loss is {line['loss']}.",
                hint="Lower lr or scale_lr; the same command then starts this step anew, because its settings changed.",
            )
        # The loss of rollouts is near 0 by construction, whatever they learn; their figure is the mean reward.
        figure = f"reward {line['reward']:.3f}" if "reward" in line else f"loss {line['loss']:.4g}"
        self.bar.update(line["step"], figure)


def _line(state: TrainerState, logs: dict[str, Any], seconds: float) -> dict[str, Any]:
    known = {
        "step": state.global_step,
        "loss": float(logs["loss"]),
        "lr": float(logs.get("learning_rate", 0.0)),
        "grad_norm": float(logs.get("grad_norm", 0.0)),
        "tokens": int(state.num_input_tokens_seen),
        "seconds": round(seconds, 4),
    }
    left_out = {*known, *NOT_LOGGED}
    own = {key: value for key, value in logs.items() if isinstance(value, int | float) and key not in left_out}
    return {**known, **own}
