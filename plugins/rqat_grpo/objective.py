"""The GRPO objective: TRL's trainer, the rewards of the recipe, and a watch that stops a run going nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

import rqat

from . import Options
from .rollouts import Trainer
from .teacher import Distilled
from .watch import Watch

if TYPE_CHECKING:
    import transformers


RATIO_BOUND = 3.0
"""Largest ratio of the trainer's and the sampler's probability that counts; TRL's own default."""


class Grpo(rqat.Objective):
    """Group-relative policy optimization, with a teacher where its options ask for one."""

    options: Options

    def build_trainer(self, training: rqat.Training) -> transformers.Trainer:
        options = self.options
        assert training.rewards, "an objective that is graded gets rewards"
        distilled = self._distilled(training)
        server: dict[str, Any] = {}
        if options.rollouts.engine == "vllm":
            server = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": options.rollouts.url}
        config = GRPOConfig(
            **training.arguments,
            beta=0.0,  # TRL would load a reference model of its own; see `Trainer`
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
            **server,
        )
        try:
            return Trainer(
                rollouts=None if server else training.rollouts,
                distilled=distilled,
                reference=training.teacher if options.beta else None,
                reference_weight=options.beta,
                model=training.model,
                reward_funcs=training.rewards,
                args=config,
                train_dataset=training.rows,
                processing_class=training.tokenizer,
                optimizers=(training.optimizer, training.scheduler),
                callbacks=[*training.callbacks, Watch(options)],
            )
        except (OSError, ImportError, RuntimeError) as error:
            if not server:
                raise
            raise rqat.RqatError(
                f"grpo: the vLLM server at {options.rollouts.url} cannot write the completions: {error}",
                hint="docs/howto/several-gpus.md says how it is started.",
            ) from error

    def _distilled(self, training: rqat.Training) -> Distilled | None:
        options = self.options
        if not options.kd_weight:
            return None
        assert training.teacher is not None, "an objective that learns from a teacher gets one"
        for model in (training.model, training.teacher):
            rqat.check_linear_head(model)
        vocabulary = max(training.tokenizer.get_vocab().values()) + 1
        return Distilled(training.teacher, options.kd_weight, options.divergence, options.kd_beta, vocabulary)
