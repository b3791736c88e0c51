"""SEQ: the stretched elastic grid of ParetoQ (arXiv 2502.02631, section 3) at 2 bits: balanced, and without a zero.

    q     = clamp(floor(w / s) + 2, 0, 3)
    w_hat = (q - 1.5) * s                       one of -1.5 s, -0.5 s, 0.5 s, 1.5 s

The paper writes it with `a = 2 s`: `w_hat = a (round(clip(w / a, -1, 1) * 2 - 0.5) + 0.5) / 2`. A symmetric uniform
grid of four values has two below zero, zero, and one above; this one has two on each side, at equal distances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import rqat

if TYPE_CHECKING:
    import torch

TRIES = 24
"""Scales tried per group, evenly spaced."""

NARROWEST = 0.3
"""Smallest of them, as a share of the scale whose outermost value is the largest weight."""


class StretchedElastic(rqat.Grid):
    """See the module. Its zero points are all 0 and mean nothing; they are there because every layer has some."""

    @property
    def fixed_zero(self) -> bool:
        """There is nothing to train or to store."""
        return True

    @property
    def centre(self) -> float:
        """The code, halfway between two, that zero would have: 1.5."""
        return self.scheme.max_code / 2

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The scale of least squared rounding error; a group of zeros gets the smallest there is."""
        weight = weight.float()
        widest = weight.abs().amax(1, keepdim=True) / self.centre
        best = self.snap(widest)
        zero = best.new_zeros(best.shape)
        least = best.new_full(best.shape, float("inf"))
        for number in range(TRIES):
            scale = self.snap(widest * (1.0 - (1.0 - NARROWEST) * number / (TRIES - 1)))
            error = (self.requantize(weight, scale, zero) - weight).square()
            cost = (error if importance is None else error * importance).sum(1, keepdim=True)
            best, least = best.where(cost >= least, scale), least.minimum(cost)
        return best, zero

    def quantize(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See the module."""
        return self._code(weight / scale).clamp(0, self.scheme.max_code).byte()

    def decode(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See the module; exact in float32 for the scales that can be stored."""
        return (codes.to(scale.dtype) - self.centre) * scale

    def gradients(
        self, grad: torch.Tensor, latent: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Straight through where `|w| < 2 s`, and none beyond; of the scale as in LSQ (arXiv 1902.08153, eq. 3).

        gw = D * in,   gs = sum_group D * (q - 1.5 - in * w / s),   in = [|w / s| < 2]
        """
        grad, share = grad.to(latent.dtype), latent / scale
        code = self._code(share)
        nearest = code.clamp(0, self.scheme.max_code)
        inside = (code == nearest).to(latent.dtype)
        of_scale = (grad * (nearest - self.centre - inside * share)).sum(1, keepdim=True)
        return grad * inside, of_scale, of_scale.new_zeros(of_scale.shape)

    def _code(self, share: torch.Tensor) -> torch.Tensor:
        """The code of `w / s`, were there one for every number."""
        return share.floor() + (self.centre + 0.5)


@rqat.hookimpl
def register_grids(register: rqat.RegisterGrid) -> None:
    """The card of `seq`."""
    register(
        "seq",
        load=":StretchedElastic",
        bits=(2,),
        zero_bits=0,
        # The optimizer step of a 0.6B model: 40 ms in torch on an H200; about 4.5 by the uniform grid's kernel.
        slower=9.0,
        summary="two values on each side of zero, none at it",
        paper="2502.02631",
    )
