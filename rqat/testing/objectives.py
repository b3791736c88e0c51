"""The suite of objectives."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

from ..contracts import Objective, Training, Verdict
from ..scheme import Scheme
from .grid import same
from .suite import Suite, expect
from .tiny import addition, rounded_layers, tiny_model

if TYPE_CHECKING:
    import transformers


class ObjectiveSuite(Suite):
    """Trains a tiny model for two steps, as the train stage does.

    Class attributes:
        lr: learning rate of the latents, large enough that two steps show.
    """

    kind = "objective"
    lr: ClassVar[float] = 1e-2

    def grade(self, completion: str, answer: str) -> Verdict:
        """Rewards for rollouts: any rule that calls some completions of an untrained model right and others wrong."""
        return "correct" if sum(map(ord, completion)) % 2 else "wrong"

    def test_it_trains_and_stays_on_the_grid(self) -> None:
        """The loss is finite, weights move, and every one is what its codes decode to."""
        import torch

        from rqat_kernels.grid import dequantize

        model, optimizer, losses = self._train()
        expect(losses and all(torch.isfinite(torch.tensor(loss)) for loss in losses), f"losses: {losses}")
        moved = 0
        start, layers = rounded_layers(tiny_model()[0]), optimizer.quantized_layers()
        for name, layer in layers.items():
            decoded = dequantize(layer.codes, layer.scale, layer.zero)
            expect(model.get_submodule(name).weight.equal(decoded), f"{name} is not what its codes decode to")
            moved += int((layer.codes != start[name].codes).sum())
        latents = optimizer.latents()
        moved += sum(int((latents[name] != decoded(start[name])).sum()) for name in latents)
        expect(moved, "after two steps nothing has moved: does the loss reach the weights?")

    def test_the_same_run_ends_the_same(self) -> None:
        """Seeded in everything."""
        _, first, losses = self._train()
        _, second, again = self._train()
        expect(losses == again, f"losses differ between two runs with one seed: {losses}, {again}")
        one, two = first.quantized_layers(), second.quantized_layers()
        expect(all(same(one[name], two[name]) for name in one), "codes differ between two runs with one seed")

    def _train(self, steps: int = 2, batch: int = 4) -> tuple[transformers.PreTrainedModel, Any, list[float]]:
        from transformers import get_scheduler, set_seed

        from rqat_kernels.grid import dequantize

        from ..train.data import prepare_rows
        from ..train.optimizer import QuantizedOptimizer

        set_seed(0)
        model, tokenizer = tiny_model()
        layers = rounded_layers(model)
        for name, layer in layers.items():
            model.get_submodule(name).weight.data = dequantize(layer.codes, layer.scale, layer.zero)
        optimizer = QuantizedOptimizer(model, layers, Scheme.parse("w2g32"), lr=self.lr)
        rows = prepare_rows(
            addition(), tokenizer, steps=steps, batch=batch, max_tokens=64, seed=0, rollouts=self.card.rollouts
        )
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
                grade=self.grade if self.card.rollouts else None,
            )
            made: Objective = self.make()
            trainer = made.build_trainer(training)
            trainer.train()
        return model, optimizer, [line["loss"] for line in trainer.state.log_history if "loss" in line]
