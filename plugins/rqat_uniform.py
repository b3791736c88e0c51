"""The uniform grid: evenly spaced values around a whole zero point, as every checkpoint format of servers stores them.

    q     = clamp(round_half_even(w / s) + z, 0, 2**bits - 1)
    w_hat = (q - z) * s

The arithmetic is that of `rqat_kernels.grid` and `rqat_kernels.latent_step`, with kernels for GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import rqat

if TYPE_CHECKING:
    import torch


class Uniform(rqat.Grid):
    """See the module. Symmetric schemes fix `z` in the middle."""

    uniform: ClassVar[bool] = True

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The span of every group, narrowed to the one of least squared rounding error."""
        from rqat_kernels.grid import fit_clip

        if importance is None:
            return fit_clip(weight, 1, self.scheme.max_code, symmetric=self.scheme.symmetric)
        # One row of many groups: only so every weight has an importance of its own.
        flat = importance.expand_as(weight).reshape(-1)
        symmetric, max_code = self.scheme.symmetric, self.scheme.max_code
        scale, zero = fit_clip(weight.reshape(1, -1), len(weight), max_code, symmetric=symmetric, importance=flat)
        return scale.view(-1, 1), zero.view(-1, 1)

    def quantize(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See `rqat_kernels.grid.quantize`."""
        from rqat_kernels.grid import quantize

        return quantize(weight, scale, zero, self.scheme.max_code)

    def decode(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See `rqat_kernels.grid.dequantize`; exact in float32 for the scales that can be stored."""
        from rqat_kernels.grid import dequantize

        return dequantize(codes, scale, zero, _arithmetic(scale))

    def requantize(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See `rqat_kernels.grid.requantize`: in one pass on a GPU."""
        from rqat_kernels.grid import requantize

        return requantize(weight, scale, zero, self.scheme.max_code, _arithmetic(weight))

    def gradients(
        self, grad: torch.Tensor, latent: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `rqat_kernels.latent_step`."""
        from rqat_kernels.latent_step import latent_step

        return latent_step(grad, latent, scale, zero, self.scheme.max_code)


def _arithmetic(tensor: torch.Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@rqat.hookimpl
def register_grids(register: rqat.RegisterGrid) -> None:
    """The card of `uniform`."""
    register(
        "uniform",
        load=":Uniform",
        bits=(2, 3, 4, 8),
        slower=1.0,
        summary="evenly spaced values around a whole zero point; what schemes without a grid's name mean",
    )
