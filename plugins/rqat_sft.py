"""Supervised fine-tuning: cross entropy on the completions, with TRL's trainer as it is.

The shortest objective there is, and the one to read first: the host gives the model, the optimizer that keeps it on the
grid, and the rows; the objective names a trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import rqat

if TYPE_CHECKING:
    import transformers


class Sft(rqat.Objective):
    """Mean cross entropy over the completion's tokens."""

    def build_trainer(self, training: rqat.Training) -> transformers.Trainer:
        from trl import SFTConfig, SFTTrainer

        # The rows are tokenized already and none is longer than max_tokens: nothing may be cut here.
        config = SFTConfig(**training.arguments, max_length=None, include_num_input_tokens_seen="non_padding")
        return SFTTrainer(
            model=training.model,
            args=config,
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=training.callbacks,
        )


@rqat.hookimpl
def register_objectives(register: rqat.RegisterObjective) -> None:
    """The card of `sft`."""
    register("sft", load=":Sft", summary="cross entropy on the completions", logits="chunks")
