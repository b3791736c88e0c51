"""The GRPO objective: TRL's trainer, the rewards of the recipe, and a watch that stops a run going nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl import GRPOConfig

import rqat

from . import Options
from .rollouts import Trainer
from .watch import Watch

if TYPE_CHECKING:
    import transformers


RATIO_BOUND = 3.0
"""Largest ratio of the trainer's and the sampler's probability that counts; TRL's own default."""


class Grpo(rqat.Objective):
    """Group-relative policy optimization without a reference model."""

    options: Options

    def build_trainer(self, training: rqat.Training) -> transformers.Trainer:
        options = self.options
        assert training.rewards, "an objective that is graded gets rewards"
        config = GRPOConfig(
            **training.arguments,
            beta=0.0,
            num_generations=options.generations,
            num_iterations=1,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=0,
            max_completion_length=training.max_completion_tokens,
            reward_weights=training.reward_weights,
            loss_type=options.loss_type,
            scale_rewards=options.scale_rewards,
            epsilon=options.epsilon,
            epsilon_high=options.epsilon_high,
            mask_truncated_completions=options.mask_truncated,
            shuffle_dataset=False,
            disable_dropout=True,
            vllm_importance_sampling_mode=options.correction,
            vllm_importance_sampling_clip_max=RATIO_BOUND,
        )
        assert training.rollouts is not None, "an objective that writes gets rollouts"
        return Trainer(
            rollouts=training.rollouts,
            model=training.model,
            reward_funcs=training.rewards,
            args=config,
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=[*training.callbacks, Watch(options)],
        )
