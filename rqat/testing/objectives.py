"""The suite of objectives."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..contracts import (
    Completion,
    Objective,
    Options,
    Reward,
    RewardFunction,
    Row,
    Task,
    TaskOptions,
    Training,
    Verdict,
)
from .grid import same
from .suite import Suite, expect
from .tiny import addition, decoded, rounded_layers, tiny_model
from .watch import Watch, expect_same_gradients

if TYPE_CHECKING:
    import transformers


LONG = 1100
"""Characters of the longest completion: more than TRL cuts rows to unless it is told not to."""


class ObjectiveSuite(Suite):
    """Trains a tiny model for two steps, as the train stage does, and watches what the trainer does.

    Class attributes:
        lr: learning rate of the latents, large enough that two steps show.
        split_tolerance: largest difference of gradients between two ways to split a batch, as a share of their norm.
    """

    kind = "objective"
    lr: ClassVar[float] = 1e-2
    split_tolerance: ClassVar[float] = 1e-3

    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        """Judges completions: any rule that calls some completions of an untrained model right and others wrong."""
        return "correct" if sum(map(ord, completion)) % 2 else "wrong"

    def test_it_trains_and_stays_on_the_grid(self) -> None:
        """The loss is finite, weights move, and every one is what its codes decode to."""
        model, optimizer, losses = self._train()
        expect(losses and all(map(math.isfinite, losses)), f"losses: {losses}")
        start, latents, moved = rounded_layers(tiny_model()[0]), optimizer.latents(), False
        for name, layer in optimizer.quantized_layers().items():
            weight = model.get_parameter(f"{name}.weight")
            expect(decoded(layer).equal(weight), f"{name} is not what its codes decode to")
            moved = moved or not layer.codes.equal(start[name].codes) or not latents[name].equal(decoded(start[name]))
        expect(moved, "after two steps nothing has moved: does the loss reach the weights?")

    def test_the_same_run_ends_the_same(self) -> None:
        """Seeded in everything."""
        _, first, losses = self._train()
        _, second, again = self._train()
        expect(losses == again, f"losses differ between two runs with one seed: {losses}, {again}")
        one, two = first.quantized_layers(), second.quantized_layers()
        expect(all(same(one[name], two[name]) for name in one), "codes differ between two runs with one seed")

    def test_it_uses_the_optimizer_it_is_given(self) -> None:
        """The one that keeps weights on the grid, with its schedule."""
        self._watched().expect_steps()
        self._watched().expect_schedule()

    def test_it_uses_the_callbacks_it_is_given(self) -> None:
        """They write the log of the training and look after the loss."""
        self._watched().expect_callbacks()

    def test_the_teacher_stays_as_it_is(self) -> None:
        """Its weights and its mode; it may be the model before quantization, which others need."""
        self._watched().expect_teacher_unchanged()

    def test_rows_arrive_whole_and_in_order(self) -> None:
        """However long they are; which row is used when is the host's part, so that a run can be resumed."""
        self._watched().expect_rows()

    def test_micro_batches_agree(self) -> None:
        """A batch of rows of unequal length gives one gradient, whether it is split into parts of 4 or of 1.

        Not for an objective that writes, since each way draws other completions.
        """
        if self.card.writes:
            return
        watches = []
        for micro_batch in (4, 1):
            self._train(1, 8, micro_batch=micro_batch, rows=_uneven())
            watches.append(self._watch)
            watches[-1].expect_steps()
        expect_same_gradients(watches[0], watches[1], self.split_tolerance)

    def _watched(self) -> Watch:
        """What was seen of one training, which all tests of this class share."""
        kept = vars(type(self))
        if "_seen" not in kept:
            self._train(rows=addition() if self.card.writes else _uneven())
            type(self)._seen = self._watch  # type: ignore[attr-defined]
        return kept["_seen"]

    def _train(
        self, steps: int = 2, batch: int = 8, *, micro_batch: int | None = None, rows: Iterable[Row] | None = None
    ) -> tuple[transformers.PreTrainedModel, Any, list[float]]:
        from transformers import get_scheduler, set_seed
        from transformers.trainer_callback import PrinterCallback

        from ..train.data import completion_room, prepare_rows
        from ..train.optimizer import QuantizedOptimizer
        from ..train.rollouts import Rollouts

        set_seed(0)
        model, tokenizer = tiny_model()
        layers = rounded_layers(model)
        for name, layer in layers.items():
            model.get_parameter(f"{name}.weight").data = decoded(layer)
        optimizer = QuantizedOptimizer(model, layers, lr=self.lr)
        max_tokens = 64 if rows is None or self.card.writes else 2 * LONG
        prepared = prepare_rows(
            rows or addition(),
            tokenizer,
            steps=steps,
            batch=batch,
            max_tokens=max_tokens,
            seed=0,
            writes=self.card.writes,
            graded=self.card.graded,
        )
        options = self._registry.options(self.card, self.options)
        room = completion_room(prepared.rows, max_tokens, options) if self.card.writes else 0
        teacher = tiny_model()[0].requires_grad_(False) if self.card.has_teacher(options) else None
        with tempfile.TemporaryDirectory() as folder:
            arguments = {
                "output_dir": folder,
                "max_steps": steps,
                "per_device_train_batch_size": micro_batch or batch,
                "gradient_accumulation_steps": batch // (micro_batch or batch),
                "learning_rate": self.lr,
                "max_grad_norm": 0.0,
                "seed": 0,
                "data_seed": 0,
                "train_sampling_strategy": "sequential",
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "logging_steps": 1,
                "report_to": "none",
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
            }
            training = Training(
                model=model,
                tokenizer=tokenizer,
                rows=prepared.rows,
                optimizer=optimizer,
                scheduler=get_scheduler("constant", optimizer),
                arguments=arguments,
                max_tokens=max_tokens,
                teacher=teacher,
                max_completion_tokens=room,
                rollouts=Rollouts(model, tokenizer, limit=room) if self.card.writes else None,
                rewards=[self._correct(prepared.source, tokenizer, room)] if self.card.graded else [],
                reward_weights=[1.0] if self.card.graded else [],
            )
            made: Objective = self.make()
            self._watch = Watch(training)
            self._watch.trainer = trainer = made.build_trainer(training)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return model, optimizer, [line["loss"] for line in trainer.state.log_history if "loss" in line]

    def _correct(self, rows: Sequence[Row], tokenizer: Any, limit: int) -> RewardFunction:
        """The reward of a correct completion, judged by `grade`."""
        from ..train.rewards import Judge, reward_function

        task = _Grader(TaskOptions())
        task.suite = self
        return reward_function(
            "correct", _Correct(Options()), Judge(task, rows, tokenizer, [tokenizer.eos_token_id], limit)
        )


class _Grader(Task):
    """A task without problems, that grades as a suite does."""

    suite: ObjectiveSuite

    def problems(self) -> Sequence[Row]:
        return ()

    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        return self.suite.grade(completion, answer, row)


class _Correct(Reward):
    def score(self, completion: Completion, row: Row, verdict: Verdict | None) -> float:
        return float(verdict == "correct")


def _uneven() -> Iterator[Row]:
    """Rows with completions of very unequal length, of which one is long."""
    for number, row in enumerate(addition()):
        yield {**row, "completion": "8" * (LONG if number == 3 else 1 + 7 * number % 23)}
