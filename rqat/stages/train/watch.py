"""Looks on while a model is trained: how far it is from the model before quantization, every few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...contracts import Comparison, TokenRow
from ...evals.compare import compare
from ...stage import WATCHED
from ...train.shards import whole

if TYPE_CHECKING:
    import transformers


class Watch(TrainerCallback):
    """Puts the figures of a comparison beside those of the training, as `watch/<figure>`.

    It changes nothing: no gradient is recorded and no random number is drawn. To stand in front of `Log`, which writes
    the line.

    Args:
        every: optimizer steps from one look to the next; the last step is looked at, too.
        rows: what is compared on; None in a process that only helps others to gather the models.
    """

    def __init__(
        self,
        task: Comparison,
        every: int,
        model: transformers.PreTrainedModel,
        original: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        rows: Sequence[TokenRow] | None,
    ) -> None:
        self.task, self.every = task, every
        self.model, self.original, self.tokenizer, self.rows = model, original, tokenizer, rows

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """After a step, with its figures."""
        logs: dict[str, Any] = given["logs"]
        step = state.global_step
        if "loss" not in logs or (step % self.every and step != state.max_steps):
            return
        with whole(self.model, self.original):
            if self.rows is not None:
                figures, _ = compare(self.task, self.model, self.original, self.tokenizer, self.rows)
                logs |= {f"{WATCHED}{name}": value for name, value in figures.items()}
