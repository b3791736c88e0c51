"""On-policy distillation (arXiv 2306.13649): the student writes, the teacher says how likely every token was.

TRL's DistillationTrainer as it is, over prompts alone: no completion, no answer, no grader.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

import rqat

if TYPE_CHECKING:
    import transformers


class Options(rqat.Options):
    """Options of `acme-opd`.

    Attributes:
        beta: between forward KL (0) and reverse KL (1) lies JSD.
        temperature: of sampling.
        max_completion_tokens: longest completion; None is what `max_tokens` leaves after the longest prompt.
    """

    beta: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        limit = context.settings["max_tokens"]
        if self.max_completion_tokens is not None and self.max_completion_tokens >= limit:
            text = f"max_completion_tokens={self.max_completion_tokens} leaves no prompt in max_tokens={limit}."
            yield rqat.Problem(text, "Raise max_tokens.", "max_completion_tokens")


class OnPolicy(rqat.Objective):
    """Divergence from the teacher on what the student writes."""

    options: Options

    def build_trainer(self, training: rqat.Training) -> transformers.Trainer:
        from trl import DistillationConfig, DistillationTrainer

        config = DistillationConfig(
            **training.arguments,
            beta=self.options.beta,
            temperature=self.options.temperature,
            max_completion_length=training.max_completion_tokens,
            shuffle_dataset=False,
        )
        return DistillationTrainer(
            model=training.model,
            teacher_model=training.teacher,
            args=config,
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=training.callbacks,
        )


@rqat.hookimpl
def register_objectives(register: rqat.RegisterObjective) -> None:
    register(
        "acme-opd",
        options=Options,
        load=":OnPolicy",
        summary="on-policy distillation from the model before quantization",
        paper="2306.13649",
        teacher=True,
        writes=True,
    )
