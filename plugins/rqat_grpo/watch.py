"""When to stop reinforcement learning: no signal, or a policy that runs on without end or in circles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import rqat

from . import Options

COPIES = 4
"""A completion ends in a loop when its last tokens are at least this many copies of one piece..."""

LOOP_TOKENS = 32
"""...that cover at least this many tokens."""

LONGEST_PIECE = 64
"""Longest piece looked for, in tokens."""


def ends_in_loop(ids: Sequence[int]) -> bool:
    """Whether the tokens end in copies of one piece, the last copy perhaps cut off."""
    for period in range(1, min(LONGEST_PIECE, len(ids) // COPIES) + 1):
        need = max(LOOP_TOKENS, COPIES * period)
        if need > len(ids):
            continue
        tail = list(ids[-need:])
        if tail[period:] == tail[:-period]:
            return True
    return False


class Watch(TrainerCallback):
    """Judges the last `patience` steps from the Trainer's history, which is part of its checkpoints."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raises RqatError when the run is going nowhere."""
        steps = [entry for entry in state.log_history if "frac_reward_zero_std" in entry][-self.options.patience :]
        if len(steps) < self.options.patience:
            return
        where = f"grpo, step {state.global_step}"
        span = f"over the last {len(steps)} steps"
        reward = _mean(steps, "reward")
        if all(entry["frac_reward_zero_std"] == 1 for entry in steps):
            raise rqat.RqatError(
                f"{where}: no group of completions carried signal {span}; mean reward {reward:.3f}.",
                hint="All answers are right or all are wrong: use problems of another difficulty, more generations, "
                "or distil longer first.",
            )
        for key, what, bound in (
            ("completions/clipped_ratio", "were cut off", self.options.truncation_bound),
            ("repetition", "ended in a loop", self.options.repetition_bound),
        ):
            share = _mean(steps, key)
            if share > bound:
                raise rqat.RqatError(
                    f"{where}: {share:.0%} of the completions {what} {span} (bound {bound:.0%}); mean reward {reward:.3f}.",
                    hint="Raise max_tokens or lower lr; truncation_bound and repetition_bound set the bounds.",
                )


def _mean(entries: Sequence[dict[str, float]], key: str) -> float:
    return sum(entry.get(key) or 0.0 for entry in entries) / len(entries)
