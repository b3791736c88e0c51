"""Folds a scale per input feature into the weights that read it and its inverse into the module before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import rqat


@dataclass(frozen=True)
class Fold:
    """A place where `x` can be divided by `s` in the module that puts it out, and the layers that read it multiplied.

    Attributes:
        before: a norm whose weight multiplies its output, or a linear layer, whose rows are output features.
        readers: the layers that read `x (I,)`.
        repeats: how often each head of `before` stands in `x`; more than 1 for the values of grouped-query attention.
        head: features of a head.
    """

    before: nn.Module
    readers: Sequence[nn.Linear]
    repeats: int = 1
    head: int = 1

    @classmethod
    def find(cls, block: rqat.Block, shared: rqat.SharedInput) -> Fold | None:
        """The fold of a shared input; None where there is none that leaves the block's function as it is."""
        if shared.before is None:
            return None
        before = block.module.get_submodule(shared.before)
        readers = [block.linear(name) for name in shared.names]
        features = readers[0].in_features
        if not isinstance(before, nn.Linear):
            return cls(before, readers) if _multiplies_its_output(before, features) else None
        if before.out_features == features:
            return cls(before, readers)
        head = getattr(block.module.get_submodule(shared.before.rpartition(".")[0]), "head_dim", None)
        if not isinstance(head, int) or features % before.out_features or before.out_features % head:
            return None
        return cls(before, readers, features // before.out_features, head)

    def share(self, magnitude: Tensor) -> Tensor:
        """Gives the copies of a feature their mean; `(I,)` to `(I,)`.

        Value head j stands in the attention's output as heads j n to j n + n - 1.
        """
        copies = magnitude.view(-1, self.repeats, self.head)
        return copies.mean(1, keepdim=True).expand_as(copies).flatten()

    @torch.no_grad()
    def apply(self, scale: Tensor) -> None:
        """Folds `scale (I,)`, equal for the copies of a feature, in place."""
        divisor = scale.view(-1, self.repeats, self.head)[:, 0].flatten()
        for parameter in self.before.parameters(recurse=False):  # weight and bias
            shape = (-1, 1) if parameter.dim() == 2 else (-1,)
            parameter.copy_(parameter.float() / divisor.view(shape))
        for reader in self.readers:
            reader.weight.copy_(reader.weight.float() * scale)


@torch.no_grad()
def _multiplies_its_output(module: nn.Module, features: int) -> bool:
    """Whether halving the parameters of a norm halves its output; not so where it multiplies by `1 + weight`."""
    parameters = list(module.parameters())
    if not parameters or any(parameter.shape != (features,) for parameter in parameters):
        return False
    probe = torch.randn(2, features, generator=torch.Generator().manual_seed(0)).to(parameters[0])
    whole = module(probe)
    for parameter in parameters:
        parameter.mul_(0.5)  # exact, both ways
    half = module(probe)
    for parameter in parameters:
        parameter.mul_(2.0)
    return torch.allclose(half * 2, whole, rtol=1e-2, atol=1e-6)
