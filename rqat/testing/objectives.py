"""The suite of objectives."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
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
from ..scheme import Scheme
from .grid import same
from .suite import Suite, expect
from .tiny import addition, decoded, rounded_layers, tiny_model

if TYPE_CHECKING:
    import transformers


class ObjectiveSuite(Suite):
    """Trains a tiny model for two steps, as the train stage does.

    Class attributes:
        lr: learning rate of the latents, large enough that two steps show.
    """

    kind = "objective"
    lr: ClassVar[float] = 1e-2

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

    def _train(self, steps: int = 2, batch: int = 8) -> tuple[transformers.PreTrainedModel, Any, list[float]]:
        from transformers import get_scheduler, set_seed
        from transformers.trainer_callback import PrinterCallback

        from ..train.data import completion_room, prepare_rows
        from ..train.optimizer import QuantizedOptimizer

        set_seed(0)
        model, tokenizer = tiny_model()
        layers = rounded_layers(model)
        for name, layer in layers.items():
            model.get_parameter(f"{name}.weight").data = decoded(layer)
        optimizer = QuantizedOptimizer(model, layers, Scheme.parse("w2g32"), lr=self.lr)
        rows = prepare_rows(
            addition(),
            tokenizer,
            steps=steps,
            batch=batch,
            max_tokens=64,
            seed=0,
            writes=self.card.writes,
            graded=self.card.graded,
        )
        options = self._registry.options(self.card, self.options)
        room = completion_room(rows.rows, 64, options) if self.card.writes else 0
        teacher = tiny_model()[0].requires_grad_(False) if self.card.teacher else None
        with tempfile.TemporaryDirectory() as folder:
            arguments = {
                "output_dir": folder,
                "max_steps": steps,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 1,
                "learning_rate": self.lr,
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
                rows=rows.rows,
                optimizer=optimizer,
                scheduler=get_scheduler("constant", optimizer),
                arguments=arguments,
                max_tokens=64,
                teacher=teacher,
                max_completion_tokens=room,
                rewards=[self._correct(rows.source, tokenizer, room)] if self.card.graded else [],
                reward_weights=[1.0] if self.card.graded else [],
            )
            made: Objective = self.make()
            trainer = made.build_trainer(training)
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
