"""training.jsonl: a log that a resumed run continues without a seam, and the progress display."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import NumericsError
from ..storage import append_json_line, read_json_lines, write_json_lines

log = logging.getLogger("rqat")

FIRST, LAST = 5, 20
"""Steps whose mean losses are compared: those that a training begins with, and the latest."""

HUMP, RISE = 1.5, 4.0
"""A loss so many times that of the first steps, and so many standard errors above it, has not gone up by chance: at
rates that suit the start it falls. Batches of few rows scatter by more than the first alone."""

WINDOW = 16
"""Steps whose mean rewards are compared: one step's hangs on which problems it drew."""

FALL, OFTEN = 4.0, 64
"""A fall of so many standard errors is told within the first `OFTEN` steps, and of one more whenever they have doubled.
Where nothing changes, one run in a hundred shows it by chance, and one of a thousand steps in fifty (simulated)."""

NOT_LOGGED = frozenset(
    {"learning_rate", "epoch", "num_tokens", "num_input_tokens_seen", "total_flos", "step_time", "train_runtime"}
    | {"train_tokens_per_second"}
)
"""Figures of the Trainer that stand in a line under our own names, or are clocks."""


class Log(TrainerCallback):
    """training.jsonl: one line per optimizer step; and the progress display.

    Every line has `step`, `loss`, `lr`, `grad_norm`, `tokens` (seen so far) and `seconds` (of this step); an
    objective's own figures stand beside them.

    Args:
        path: the file.
        name: of the step, for what is told.
        done: steps a resumed run has behind it; later lines of the interrupted run are cut off.
        steps: of the whole run.
        bar: a `job.Bar` to report to.
    """

    def __init__(self, path: Path, name: str, *, done: int, steps: int, bar: Any) -> None:
        self.path, self.name, self.steps, self.bar = path, name, steps, bar
        self.started: float | None = None
        self.seconds = 0.0
        kept = [line for line in read_json_lines(path) if _is_line(line) and line["step"] <= done]
        write_json_lines(path, kept)
        self.losses = [line["loss"] for line in kept]
        self.told = any(rise_at(self.losses[:count]) for count in range(len(kept) + 1))
        self.rewards = Rewards()
        falls = [self.rewards.add(line["reward"]) for line in kept if "reward" in line]
        self.fallen = any(falls)
        if done:
            bar.update(done)

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
        self.losses.append(line["loss"])
        rise = 0.0 if self.told or "reward" in line else rise_at(self.losses)
        if rise:
            self.told = True
            log.warning(
                "%s: after %d steps the loss is %.1f times what it was at first: the rates are high for this start. It "
                "falls as the schedule lowers them, and would fall farther at a lower lr and scale_lr.",
                self.name, line["step"], rise,
            )  # fmt: skip
        if "reward" in line and (fall := self.rewards.add(line["reward"])) and not self.fallen:
            self.fallen = True
            last, best = line["step"], fall.first + WINDOW - 1
            log.warning(
                "%s: the mean reward of steps %d to %d is %.2f; it was %.2f in steps %d to %d. What was won is being "
                "lost: lower lr and scale_lr, or leave the codes as they are (`lr: null`).",
                self.name, last - WINDOW + 1, last, fall.now, fall.best, fall.first, best,
            )  # fmt: skip
        # The loss of rollouts is near 0 by construction, whatever they learn; their figure is the mean reward.
        figure = f"reward {line['reward']:.3f}" if "reward" in line else f"loss {line['loss']:.4g}"
        self.bar.update(line["step"], figure)


def rise_at(losses: Sequence[float]) -> float:
    """How many times its first mean the loss of the latest steps is, where that is a hump; else 0."""
    if len(losses) < FIRST + LAST:
        return 0.0
    latest = losses[-LAST:]
    first, last = fmean(losses[:FIRST]), fmean(latest)
    # What steps scatter by, told apart from a trend: by how far each is from the one before.
    scatter = fmean((after - before) ** 2 for before, after in pairwise(latest)) / 2
    error = math.sqrt(scatter * (1 / FIRST + 1 / LAST))
    return last / first if 0 < HUMP * first < last and last - first > RISE * error else 0.0


@dataclass(frozen=True)
class Fall:
    """Mean rewards of `WINDOW` steps: the latest, and the best of those before, which begin with step `first`."""

    now: float
    best: float
    first: int


class Rewards:
    """The mean rewards of the steps so far, and whether they have fallen for good."""

    def __init__(self) -> None:
        self._seen: list[float] = []
        self._best = (float("-inf"), 0.0, 0)  # mean, variance and first step of a window

    def add(self, reward: float) -> Fall | None:
        """Takes the next step's, from step 1 on; a fall where the latest are far below the best of those before."""
        self._seen.append(reward)
        start = len(self._seen) - 2 * WINDOW
        if start < 0:
            return None
        before, latest = self._seen[start : start + WINDOW], self._seen[start + WINDOW :]
        self._best = max(self._best, (fmean(before), variance(before), start + 1))
        best, spread, first = self._best
        now = fmean(latest)
        error = math.sqrt((spread + variance(latest)) / WINDOW)
        far = FALL + max(0.0, math.log2(len(self._seen) / OFTEN))
        return Fall(now, best, first) if best - now > far * error > 0 else None


def _is_line(line: dict[str, Any]) -> bool:
    """Whether this is a line that was written here."""
    return {"step", "loss", "seconds"} <= line.keys() and all(isinstance(value, int | float) for value in line.values())


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
