"""TRL's GRPO trainer, with completions that rqat writes: on the tokens, and by the code, of its evaluations."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
import trl
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

import rqat

from .layout import Layout, by_length
from .teacher import Distilled, last_hidden_states

GAP = "sampling/sampling_logp_difference"
"""What TRL calls the distance, in nats, of sampler and trainer."""

RATIO = "sampling/importance_sampling_ratio"
"""And what the loss of a token, or of a completion, is multiplied by."""


class Trainer(trl.GRPOTrainer):
    """Takes the token ids of prompts from the column `prompt_ids` of the training rows, and completions from rqat.

    TRL's own tokenization ends a prompt with the end token where the tokenizer adds one, and knows no settings of the
    chat template that differ from row to row. Its `rollout_func` would take completions from elsewhere, but drops
    their log-probabilities; everything that TRL does with those depends on `use_vllm`. Before learning, TRL would score
    completions in a pass of their own; here the loss takes the log-probabilities that it computes anyway, since every
    completion is learned from once, with the weights that wrote it. And it would pad all rows of a step to one length;
    see `Layout`.

    Args:
        rollouts: writes completions; see `rqat.Rollouts`. None: TRL has them written by a vLLM server.
        distilled: what is learned from a teacher beside the rewards.
        reference: the model that TRL's own KL is taken to, in place of a copy of the student that it would load.
        reference_weight: of that KL, TRL's `beta`.
    """

    _asked: list[list[int]] | None = None
    _learned: dict[str, Any] | None = None
    _layout: Layout

    def __init__(
        self,
        *,
        rollouts: rqat.Rollouts | None,
        distilled: Distilled | None = None,
        reference: Any = None,
        reference_weight: float = 0.0,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self._rollouts, self._distilled = rollouts, distilled
        if reference is not None:
            reference = copy.copy(reference)  # TRL gives it another `forward`, and the teacher may be used again
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model, self.beta = reference, reference_weight
        self._apart: list[Tensor] = []
        self._ratios: list[Tensor] = []
        self._divergences: list[Tensor] = []

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before: Any = self._buffered_inputs
        arguments: Any = self.args
        found = super()._prepare_inputs(generation_batch)
        written: Any = self._buffered_inputs
        # Left to chance is which rows share a step, where several learn from what was written at once, and which share
        # a mean: bnpo's is that of a micro-batch.
        one_step = arguments.steps_per_generation == arguments.gradient_accumulation_steps
        if written is before or not one_step or self.loss_type == "bnpo":
            return found
        written[:] = by_length(written)
        return written[self._step % len(written)]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = [list(row["prompt_ids"]) for row in inputs]
        self.use_vllm = False  # no pass that scores
        found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._asked is not None or "old_per_token_logps" in found or "sampling_per_token_logps" not in found:
            raise rqat.RqatError(
                f"grpo: trl {trl.__version__} makes completions in a way of its own.",
                hint="Install a release of trl that rqat names in its dependencies.",
            )
        return found

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        asked, self._asked = self._asked, None
        assert asked is not None
        assert len(asked) == len(prompts)
        return asked, None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *more: Any, **named: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        if self._rollouts is not None:
            step = self.state.global_step
            return self._rollouts(prompt_ids, step=step, temperature=self.temperature, top_p=self.top_p)
        self.use_vllm = True
        found: tuple[list[list[int]], list[list[float]]] = super()._generate_single_turn(prompt_ids, *more, **named)
        self.use_vllm = False
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self.use_vllm = True  # the loss is multiplied by `importance_sampling_ratio`
        self._learned = inputs
        student = self.accelerator.unwrap_model(model)
        watched: Any = last_hidden_states(student) if self._distilled is not None else nullcontext([])
        with watched as hidden:
            loss: Tensor = super()._compute_loss(model, inputs)
        self._learned = None
        if self._distilled is not None:
            # As many tokens as TRL divides by: those of the step, or of the part of it that is computed at once.
            arguments: Any = self.args
            passes = self.current_gradient_accumulation_steps / arguments.steps_per_generation
            count = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes * passes
            divergence = self._distilled.loss(student, hidden[-1], self._layout, count)
            loss = loss + self._distilled.weight * divergence
            self._divergences.append(divergence.detach())
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **none: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's own, on rows as `Layout` has them; there are no images."""
        size = batch_size or len(input_ids)
        logprobs, entropies, balances = [], [], []
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            self._layout = layout = Layout.of(ids, mask, logits_to_keep)
            given: dict[str, Any] = {"input_ids": layout.ids, "labels": layout.labels}
            if compute_aux_loss:
                given |= {"attention_mask": layout.mask, "output_router_logits": True}
            with self.accelerator.autocast():
                outputs = model(**given, fused_lm_head=True)
            logprobs.append(layout.completions(outputs.log_probs, mask))
            if compute_entropy:
                entropies.append(layout.completions(outputs.entropy, mask))
            if compute_aux_loss:
                balances.append(outputs.aux_loss)
        scored = torch.cat(logprobs)
        if self._learned is not None:
            self._learned["importance_sampling_ratio"] = self._ratio(scored.detach(), self._learned)
        return (
            scored,
            torch.cat(entropies) if entropies else None,
            torch.stack(balances).mean() if balances else None,
        )

    def _ratio(self, logprobs: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Of the trainer's and the sampler's probability: `(B, T)` of tokens or `(B, 1)` of completions, bounded."""
        mask = inputs["completion_mask"].bool()
        # A server may have no log-probability of a token: it counts as it is.
        difference = (logprobs - inputs["sampling_per_token_logps"]).nan_to_num(0.0) * mask
        self._apart.append(difference[mask].abs().float())
        mode, bound = self.vllm_importance_sampling_mode, self.vllm_importance_sampling_clip_max
        if mode.startswith("sequence"):
            difference = difference.sum(dim=-1, keepdim=True)
        ratio = difference.exp()
        ratio = ratio.clamp(max=bound) if mode.endswith("truncate") else ratio.masked_fill(ratio > bound, 0.0)
        self._ratios.append(ratio[mask] if len(ratio[0]) == len(mask[0]) else ratio.flatten())
        return ratio

    def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
        """Adds how far sampler and trainer were apart on the tokens of the steps since the last line.

        Rewards are left out where none counts.
        """
        if self._apart and "loss" in logs:
            apart, ratios = torch.cat(self._apart), torch.cat(self._ratios)
            self._apart, self._ratios = [], []
            nothing = apart.new_zeros(1)
            apart, ratios = (apart, ratios) if len(apart) else (nothing, nothing + 1)
            figures = torch.stack([apart.mean(), quantile(apart, 0.95), apart.max(), ratios.mean()])
            found = self.accelerator.gather(figures[None])
            worst, mean = found.amax(dim=0).tolist(), found.mean(dim=0).tolist()
            named_figures = {f"{GAP}/mean": mean[0], f"{GAP}/p95": worst[1], f"{GAP}/max": worst[2]}
            for name, figure in {**named_figures, f"{RATIO}/mean": mean[3]}.items():
                self._metrics["train"][name].append(figure)
        if self._divergences and "loss" in logs:
            found = self.accelerator.gather(torch.stack(self._divergences).sum()[None])
            self._divergences = []
            self._metrics["train"]["distillation/divergence"].append(found.mean().item())
        if not any(self.reward_weights):  # 0 throughout, which would look like a model that gets nothing right
            for name in [name for name in self._metrics["train"] if name.startswith("reward")]:
                del self._metrics["train"][name]
        super().log(logs, *more, **named)


def quantile(values: Tensor, share: float) -> Tensor:
    """What a share of values is not above, as `torch.quantile` has it, which takes no more than 16 million."""
    place = share * (len(values) - 1)
    below = int(place)
    ordered = values.sort().values
    return ordered[below].lerp(ordered[min(below + 1, len(values) - 1)], place - below)
