"""Layers whose weights are stacked as rows of groups, and where their numbers lie in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stack:
    """Layers that are stacked as `R` rows, but for their gradients.

    Attributes:
        weights, latent, origin, ratio, zero: as `latent_adam` takes them.
    """

    weights: Sequence[Tensor]
    latent: Sequence[Tensor]
    origin: Tensor
    ratio: Sequence[Tensor]
    zero: Sequence[Tensor]

    @property
    def group(self) -> int:
        """`g`."""
        return self.latent[0].numel() // len(self.origin)

    def addresses(self) -> Iterator[tuple[int, list[int]]]:
        """Of each layer the number of its rows and where its numbers begin."""
        start = 0
        # Frozen scales and zero points have no moments; any address will do.
        ratio, zero = (list(of) if len(of) == 3 else [of[0]] * 3 for of in (self.ratio, self.zero))
        per_row = [self.origin, *ratio, *zero]
        for weight in self.weights:
            row = [weight.data_ptr()]
            row += [tensor.data_ptr() + 4 * start * self.group for tensor in self.latent]
            row += [tensor.data_ptr() + 4 * start for tensor in per_row]
            yield weight.numel() // self.group, row
            start += weight.numel() // self.group
