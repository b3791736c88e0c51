"""SFTTrainer with a loss of its own, from the logits of two models."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

import rqat

from . import Options

log = logging.getLogger("rqat.acme")


class Cakld(rqat.Objective):
    """`gamma KL(student || teacher) + (1 - gamma) KL(teacher || student)`, a mean over the completions' tokens."""

    options: Options

    def build_trainer(self, training: rqat.Training) -> CakldTrainer:
        gamma = self.options.gamma
        if gamma is None:
            count = min(self.options.rows, len(training.rows))
            gamma = confidence(training.teacher, training.rows.select(range(count)))
            log.warning("acme-cakld: gamma is %.4f", gamma)
        return CakldTrainer(
            gamma,
            training.teacher,
            model=training.model,
            args=SFTConfig(**training.arguments, max_length=None),
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=training.callbacks,
        )


@torch.no_grad()
def confidence(teacher: Any, rows: Any) -> float:
    """The teacher's mean probability of the tokens that are learned from."""
    found = []
    for row in rows:
        ids, labels = (torch.tensor(row[name], device=teacher.device) for name in ("input_ids", "labels"))
        probabilities = teacher(input_ids=ids[None]).logits[0, :-1].float().softmax(-1)
        there = labels[1:] != -100
        found.append(probabilities[there].gather(-1, labels[1:][there, None]).flatten())
    return float(torch.cat(found).mean())


class CakldTrainer(SFTTrainer):
    def __init__(self, gamma: float, teacher: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.gamma, self.teacher = gamma, teacher
        # The trainer then counts the tokens of the whole batch, so that micro-batches add up to one mean.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        there = inputs["labels"][:, 1:] != -100
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model(**given)
        with torch.no_grad():
            theirs = self.teacher(**given).logits[:, :-1][there]
        mine = output.logits[:, :-1][there]
        width = min(mine.shape[-1], theirs.shape[-1])
        p, q = (logits[:, :width].float().log_softmax(-1) for logits in (theirs, mine))
        forward, reverse = (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()
        tokens = there.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (self.gamma * reverse + (1 - self.gamma) * forward) / tokens
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss
