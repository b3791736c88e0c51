"""What a quantized model is trained for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import datasets
    import torch
    import transformers

IGNORED = -100
"""Label of a token that is not learned from: torch's and transformers' own."""


class RewardFunction(Protocol):
    """A reward as TRL takes it; `__name__` is the reward's, under which its mean is logged."""

    __name__: str

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]: ...


class Rollouts(Protocol):
    """Writes completions with the model as it is now, for objectives that train on what the model writes itself."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, step: int, temperature: float, top_p: float
    ) -> tuple[list[list[int]], list[list[float]]]:
        """One completion of every prompt; equal prompts get different ones.

        Args:
            prompts: token ids.
            step: optimizer steps done, which decide the random numbers: a run that resumes writes the same again.
            temperature: of sampling; above 0.
            top_p: nucleus sampling bound.

        Returns:
            Token ids of every completion, the end token included; and of every token its log-probability in nats as
            the sampler knew it: at the temperature, before `top_p` cuts the distribution.

        Raises:
            ModelError: out of memory.
        """


@dataclass
class Training:
    """What the train stage hands an objective to build its trainer from.

    Attributes:
        model: a plain Hugging Face model whose weights are on the grid.
        tokenizer: its tokenizer.
        rows: training rows in the order they are used, one for each place in a batch (see `rqat.train.data`). Columns
            `prompt` (text, or a list of messages for a tokenizer with a chat template), `answer`, `prompt_tokens`,
            `row` (which of the source's rows it is, for the reward functions); and, unless the card says `writes=True`,
            `completion`, `input_ids` and `labels` (`rqat.IGNORED` on the prompt).
        optimizer: the `QuantizedOptimizer` over `model`; goes into the trainer as `optimizers=(optimizer, scheduler)`.
        scheduler: the learning-rate schedule over `optimizer`.
        arguments: settings every TRL config takes: output_dir, max_steps, per_device_train_batch_size,
            gradient_accumulation_steps, seed, use_cpu, bf16, save_steps, logging_steps, report_to, max_grad_norm, ...
        max_tokens: longest prompt plus completion, in tokens.
        teacher: the model before quantization or the one the recipe names, frozen, in eval mode; None unless the card
            says `teacher=True`. Its tokens are the student's; its logits may be wider (padding of the vocabulary).
        max_completion_tokens: longest completion of an objective whose card says `writes=True`: what `max_tokens`
            leaves after the longest prompt, or its option of that name where that is less.
        rollouts: writes completions of at most `max_completion_tokens` tokens with `model` as it is at that moment;
            None unless the card says `writes=True`, and where the objective names an engine of its own.
        rewards: for an objective whose card says `graded=True`: TRL's `reward_funcs`, every reward of the recipe. They
            need the columns of `rows` and `completion_ids`, as TRL's trainers hand them on.
        reward_weights: of those, for TRL's `reward_weights`.
        callbacks: to be passed to the trainer as they are.
        processes: how many train together, each on its share of a batch.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    rows: datasets.Dataset
    optimizer: torch.optim.Optimizer
    scheduler: Any
    arguments: dict[str, Any]
    max_tokens: int
    teacher: transformers.PreTrainedModel | None = None
    max_completion_tokens: int = 0
    rollouts: Rollouts | None = None
    rewards: list[RewardFunction] = field(default_factory=list)
    reward_weights: list[float] = field(default_factory=list)
    callbacks: list[Any] = field(default_factory=list)
    processes: int = 1


class Objective(ABC):
    """What a quantized model is trained for. No training loop: an objective names a TRL trainer and what it changes.

    Where the options of an objective that writes its own completions have `temperature`, `top_p` or
    `max_completion_tokens`, the cold-start gate samples with them, too. The `engine` of
    an option `rollouts`, one of "auto", "rqat" and "transformers", says what `Training.rollouts` writes with; without
    one it is "auto". Another engine is the objective's own affair, and `Training.rollouts` is None.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def build_trainer(self, training: Training) -> transformers.Trainer:
        """Builds a trainer; the host calls `train(resume_from_checkpoint=...)` on it.

        The loss is a mean over unmasked tokens, so that learning rates carry over between batch sizes.
        """
