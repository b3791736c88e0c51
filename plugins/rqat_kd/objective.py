"""The distillation objective: TRL's SFTTrainer with another loss, and no logits in memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

import rqat
from rqat_kernels.linear_kl import linear_kl

from . import Options

if TYPE_CHECKING:
    import transformers


class Distillation(rqat.Objective):
    """Divergence from the teacher's next-token distribution, averaged over tokens.

    Over the tokens of the tokenizer only: rows beyond them, by which vocabularies are padded, mean nothing.
    """

    options: Options

    def build_trainer(self, training: rqat.Training) -> transformers.Trainer:
        if training.teacher is None:
            raise rqat.ModelError("distillation needs a teacher.", hint="Give Training one.")
        for model in (training.model, training.teacher):
            rqat.check_linear_head(model)
        rows = training.rows
        if self.options.positions == "all":
            rows = rows.remove_columns("labels").add_column("labels", rows["input_ids"][:])
        config = SFTConfig(**training.arguments, max_length=None, include_num_input_tokens_seen="non_padding")
        return DistillationTrainer(
            self.options,
            training.teacher,
            model=training.model,
            args=config,
            train_dataset=rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=training.callbacks,
        )


class DistillationTrainer(SFTTrainer):
    """SFTTrainer whose loss compares hidden states times head weights, chunk by chunk."""

    def __init__(self, options: Options, teacher: transformers.PreTrainedModel, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.options = options
        self.teacher = teacher
        tokenizer: Any = self.processing_class
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1
        # Have the trainer count the tokens of the whole batch, so that accumulated gradients are a true token mean.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one micro-batch: the sum over its tokens divided by the tokens of the whole batch."""
        student = self.accelerator.unwrap_model(model)
        # Counted once: a GPU has to be waited for, to know how many there are.
        row, column = (inputs["labels"][:, 1:] != rqat.IGNORED).nonzero(as_tuple=True)
        places = row * inputs["labels"].shape[1] + column
        given = (inputs["input_ids"], places)
        theirs = rqat.as_forward(self.teacher, partial(_hidden, self.teacher, train=False), *given)
        mine = rqat.as_forward(model, partial(_hidden, student, train=True), *given)
        loss = linear_kl(
            mine,
            student.get_output_embeddings().weight,
            theirs,
            self.teacher.get_output_embeddings().weight,
            divergence=self.options.divergence,
            beta=self.options.beta,
            temperature=self.options.temperature,
            labels=inputs["labels"].flatten()[places + 1],
            label_share=self.options.sft_weight,
            count=num_items_in_batch,
            vocabulary=self.vocabulary,
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss


def _hidden(model: transformers.PreTrainedModel, input_ids: Tensor, places: Tensor, *, train: bool) -> Tensor:
    """Last hidden states `(N, d)` at the places `row * length + column` that predict a counted token.

    Rows are padded on the right, where causal attention never looks: without a mask the faster kernel is used.
    """
    with torch.set_grad_enabled(train):
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[places]
