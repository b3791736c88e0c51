"""The GRPO objective: TRL's trainer, rewards from the task's grader, and a watch that stops a run going nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

import rqat

from . import Options
from .rollouts import Trainer
from .watch import Watch

if TYPE_CHECKING:
    import transformers


class Grpo(rqat.Objective):
    """Group-relative policy optimization with rewards in {0, 1} and no reference model."""

    options: Options

    def build_trainer(self, training: rqat.Training) -> transformers.Trainer:
        options = self.options
        if training.grade is None:
            raise rqat.RqatError("grpo is rewarded by a task's grader, and there is none.", hint="Add `task: ...`.")
        config = GRPOConfig(
            **self._checked(training),
            beta=0.0,
            num_generations=options.generations,
            num_iterations=1,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=0,
            max_completion_length=self._completion_tokens(training),
            loss_type=options.loss_type,
            scale_rewards=options.scale_rewards,
            epsilon=options.epsilon,
            epsilon_high=options.epsilon_high,
            mask_truncated_completions=options.mask_truncated,
            shuffle_dataset=False,
            disable_dropout=True,
            # A model that went through another trainer may have it switched off in its config.
            generation_kwargs={"use_cache": True},
        )
        return Trainer(
            model=training.model,
            reward_funcs=correctness(training.grade),  # type: ignore[arg-type]
            args=config,
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=[*training.callbacks, Watch(options)],
        )

    def _checked(self, training: rqat.Training) -> dict[str, Any]:
        arguments = training.arguments
        batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * training.processes
        if batch % self.options.generations:
            raise rqat.RqatError(
                f"grpo: batch is {batch} completions, not a multiple of generations={self.options.generations}.",
                hint="Every prompt of a step needs all its completions in it.",
            )
        return arguments

    def _completion_tokens(self, training: rqat.Training) -> int:
        longest = max(training.rows["prompt_tokens"])
        room = training.max_tokens - longest
        if room < 1:
            raise rqat.DataError(
                f"grpo: the longest prompt fills {longest} of max_tokens={training.max_tokens}: no completion fits.",
                hint="Raise max_tokens.",
            )
        return min(room, self.options.max_completion_tokens or room)


def correctness(grade: Callable[[str, str], rqat.Verdict]) -> Callable[..., list[float]]:
    """TRL's reward function: 1 for a correct completion, else 0; logs shares of loops and of unverifiable answers."""

    def correct(
        completions: Sequence[Any],
        answer: Sequence[str],
        completion_ids: Sequence[list[int]],
        log_metric: Any,
        **_: Any,
    ) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        verdicts = [grade(text, right) for text, right in zip(texts, answer, strict=True)]
        log_metric("unverifiable", sum(verdict == "unverifiable" for verdict in verdicts) / len(verdicts))
        log_metric("repetition", sum(map(rqat.is_looping, completion_ids)) / len(verdicts))
        return [float(verdict == "correct") for verdict in verdicts]

    return correct
