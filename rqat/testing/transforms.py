"""The suite of transforms."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ..contracts import Transform
from .suite import Suite, expect
from .tiny import tiny_model

if TYPE_CHECKING:
    import torch
    import transformers


class TransformSuite(Suite):
    """The model computes what it did, and its hooks can be put back from the state that is saved.

    Class attributes:
        tolerance: largest difference of logits that `apply` may make, as a share of the largest logit, in float32.
    """

    kind = "transform"
    tolerance: ClassVar[float] = 1e-4

    def test_applying_it_keeps_the_logits(self) -> None:
        """Before `attach`, which may add hooks that change them."""
        model = self._model()
        before = self._logits(model)
        self.make().apply(model)
        error = float((self._logits(model) - before).abs().max() / before.abs().max())
        expect(error <= self.tolerance, f"logits moved by {error:.1e} of the largest, at most {self.tolerance:.0e}")

    def test_its_state_can_be_saved(self) -> None:
        """Tensors by name, finite, and none of them a parameter of the model."""
        import torch

        model = self._model()
        for name, tensor in self.make().apply(model).items():
            expect(isinstance(name, str) and isinstance(tensor, torch.Tensor), f"state {name!r} is no tensor")
            expect(not tensor.requires_grad, f"state '{name}' requires a gradient: detach it")
            expect(bool(torch.isfinite(tensor.float()).all()), f"state '{name}' is not finite")

    def test_it_can_be_attached_again(self) -> None:
        """A fresh model with the saved weights and the saved state gives the same logits, to the bit."""
        model = self._model()
        made: Transform = self.make()
        state = {name: tensor.clone() for name, tensor in made.apply(model).items()}
        weights = copy.deepcopy(model.state_dict())
        made.attach(model, state)
        again = self._attached(weights, state)
        expect(self._logits(model).equal(self._logits(again)), "attached to a fresh model, the logits are others")

    def test_the_same_model_gives_the_same_result(self) -> None:
        """Seeded in everything."""
        first, second = self._model(), self._model()
        one, two = self.make().apply(first), self.make().apply(second)
        expect(one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one), "two states differ")
        expect(self._logits(first).equal(self._logits(second)), "two models differ")

    def _attached(self, weights: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        fresh = self._model(seed=1)
        fresh.load_state_dict(weights)
        self.make().attach(fresh, state)
        return fresh

    def _model(self, seed: int = 0) -> transformers.PreTrainedModel:
        """A tiny model, its head untied where the transform says so, as the host does."""
        import torch

        model, _ = tiny_model(seed)
        if self.make().unties:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
            model.config.tie_word_embeddings = False
        return model

    def _logits(self, model: torch.nn.Module) -> torch.Tensor:
        import torch

        with torch.no_grad():
            return model(torch.arange(64).view(2, 32) % 90).logits
