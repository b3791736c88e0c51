"""TRL's GRPO trainer, with completions that rqat writes: on the tokens, and by the code, of its evaluations."""

from __future__ import annotations

from typing import Any

import torch
import trl

import rqat

GAP = "sampling/sampling_logp_difference"
"""What TRL calls the distance, in nats, of sampler and trainer; it logs `/mean` and `/max`, and `/p95` is added."""


class Trainer(trl.GRPOTrainer):
    """Takes the token ids of prompts from the column `prompt_ids` of the training rows, and completions from rqat.

    TRL's own tokenization ends a prompt with the end token where the tokenizer adds one, and knows no settings of the
    chat template that differ from row to row. Its `rollout_func` would take completions from elsewhere, but drops
    their log-probabilities; everything that TRL does with those depends on `use_vllm`.

    Args:
        rollouts: writes completions; see `rqat.Rollouts`.
    """

    _asked: list[list[int]] | None = None

    def __init__(self, *, rollouts: rqat.Rollouts, **given: Any) -> None:
        super().__init__(**given)
        self._rollouts = rollouts
        # Once a trainer is built, this switches nothing but the correction for what the sampler says of its tokens.
        self.use_vllm = True

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = [list(row["prompt_ids"]) for row in inputs]
        found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._asked is not None or "importance_sampling_ratio" not in found:
            raise rqat.RqatError(
                f"grpo: trl {trl.__version__} makes completions in a way of its own.",
                hint="Install a release of trl that rqat names in its dependencies.",
            )
        apart = (found["old_per_token_logps"] - found["sampling_per_token_logps"]).abs()
        apart = apart[found["completion_mask"].bool()]
        worst = apart.float().quantile(0.95) if len(apart) else apart.new_zeros((), dtype=torch.float32)
        self._metrics["train"][f"{GAP}/p95"].append(self.accelerator.gather(worst).max().item())
        return found

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        asked, self._asked = self._asked, None
        assert asked is not None
        assert len(asked) == len(prompts)
        return asked, None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *_: Any, **__: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        step = self.state.global_step
        return self._rollouts(prompt_ids, step=step, temperature=self.temperature, top_p=self.top_p)
