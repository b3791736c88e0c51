"""What a trainer does with what an objective was given to build it from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..contracts import Training
from .suite import expect

if TYPE_CHECKING:
    import torch
    import transformers


class Watch:
    """Looks on while a trainer trains: rows that reach the model, gradients of the first step, callbacks, the teacher.

    Attributes:
        seen: every sequence of tokens that went into the model, padding left out, in order.
        gradients: of every parameter, as the optimizer found them at its first step; empty while it has made none.
        called: whether the trainer has called the callbacks it was given.
    """

    def __init__(self, training: Training) -> None:
        from transformers import TrainerCallback

        watch = self

        class Called(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch.called = True

        self.training = training
        self.seen: list[list[int]] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self.called = False
        self.trainer: transformers.Trainer | None = None
        self._teacher = self._digests()
        training.callbacks = [*training.callbacks, Called()]
        training.optimizer.register_step_pre_hook(self._step)
        training.model.get_input_embeddings().register_forward_pre_hook(self._forward)

    def expect_steps(self) -> None:
        """The trainer steps the optimizer it was given."""
        expect(
            self.gradients,
            "the trainer does not use the optimizer it was given, so weights leave the grid: "
            "pass optimizers=(training.optimizer, training.scheduler)",
        )

    def expect_schedule(self) -> None:
        """The trainer steps the schedule it was given."""
        inner = getattr(self.trainer, "lr_scheduler", None)
        inner = getattr(inner, "scheduler", inner)
        expect(
            inner is self.training.scheduler,
            "the trainer does not use the schedule it was given: "
            "pass optimizers=(training.optimizer, training.scheduler)",
        )

    def expect_callbacks(self) -> None:
        """The trainer calls the callbacks it was given: progress, the training log, checks of the loss."""
        expect(self.called, "the trainer never calls the callbacks it was given: pass callbacks=training.callbacks")

    def expect_teacher_unchanged(self) -> None:
        """The teacher is what it was: weights, frozen, in eval mode."""
        teacher = self.training.teacher
        if teacher is None:
            return
        for name, digest in self._digests().items():
            expect(self._teacher.get(name) == digest, f"training has changed the teacher: {name}")
        expect(not teacher.training, "training has left the teacher in train mode")
        frozen = not any(parameter.requires_grad for parameter in teacher.parameters())
        expect(frozen, "training has unfrozen the teacher")

    def expect_rows(self) -> None:
        """Rows reach the model whole and in the order in which they were given."""
        if "input_ids" in self.training.rows.column_names:
            _expect_whole(self.training.rows["input_ids"][:], self.seen)
        else:
            self._expect_prompts()

    def _expect_prompts(self) -> None:
        """For an objective that writes: prompts are taken one after another, and none is cut."""
        tokenizer = self.training.tokenizer
        texts = list(dict.fromkeys(self.training.rows["prompt"][:]))
        prompts = [tokenizer(text, add_special_tokens=True)["input_ids"] for text in texts]
        found: list[int] = []
        for row in self.seen:
            whole = (number for number, prompt in enumerate(prompts) if row[: len(prompt)] == prompt)
            number = next(whole, None)
            if number is not None and number not in found:
                found.append(number)
        expect(found, "no prompt of the rows reached the model whole")
        expect(
            found == list(range(len(found))),
            f"prompts came in the order {found}: training.rows are in the order in which they are used, "
            "so say shuffle_dataset=False",
        )

    def _forward(self, _: torch.nn.Module, given: tuple[Any, ...]) -> None:
        padding = self.training.tokenizer.pad_token_id
        if given and given[0].dim() == 2 and given[0].shape[1] > 1:
            self.seen += [_stripped(row, padding) for row in given[0].tolist()]

    def _step(self, *_: Any) -> None:
        if not self.gradients:
            named = self.training.model.named_parameters()
            self.gradients = {name: p.grad.detach().clone() for name, p in named if p.grad is not None}

    def _digests(self) -> dict[str, str]:
        teacher = self.training.teacher
        state = {} if teacher is None else teacher.state_dict()
        return {n: hashlib.sha256(t.contiguous().view(-1).numpy().tobytes()).hexdigest() for n, t in state.items()}


def expect_same_gradients(one: Watch, other: Watch, tolerance: float) -> None:
    """Two ways to split a batch give one gradient, since a loss divides by the tokens of the whole batch."""
    for name, gradient in one.gradients.items():
        share = float((other.gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-12))
        expect(
            share <= tolerance,
            f"the gradient of {name} moves by {share:.1%} when a batch is split into smaller micro-batches: "
            "divide the summed loss by num_items_in_batch, the tokens of the whole batch",
        )


def _expect_whole(rows: Sequence[Sequence[int]], seen: Sequence[Sequence[int]]) -> None:
    places = []
    for number, row in enumerate(map(list, rows)):
        if row in seen:
            places.append(seen.index(row))
            continue
        longest = max((len(part) for part in seen if part and row[: len(part)] == part), default=0)
        expect(
            not longest,
            f"row {number} was cut: {longest} of its {len(row)} tokens reached the model; say max_length=None",
        )
        expect(False, f"row {number} never reached the model")
    wrong = next((n for n, (one, two) in enumerate(pairwise(places)) if one > two), None)
    expect(
        wrong is None,
        f"row {(wrong or 0) + 1} came before row {wrong}: training.rows are in the order in which they are used, "
        "so nothing may shuffle or sort them",
    )


def _stripped(row: list[int], padding: int | None) -> list[int]:
    start, end = 0, len(row)
    while start < end and row[start] == padding:
        start += 1
    while end > start and row[end - 1] == padding:
        end -= 1
    return row[start:end]
