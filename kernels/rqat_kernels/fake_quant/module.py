"""FakeQuantLinear: a linear layer whose weight is fake-quantized in every forward pass, for those who want a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..grid import fit_clip, quantize, snap_scale
from . import fake_quant, fake_quant_activations


class FakeQuantLinear(nn.Module):
    """`y = x w_hat^T + bias`, with `w_hat` on the grid of trained scales and zero points.

    Scales are snapped straight through, so that the codes of `quantized` decode to exactly the weight used in training.

    Args:
        linear: the layer to start from; its weight and bias are taken over, not copied.
        bits: of the weight, 2 to 8.
        group: input features that share a scale.
        symmetric: fix the zero points in the middle of the codes.
        lsq: as in `fake_quant`.
        activation_bits: fake-quantize the input as well, per token.

    Raises:
        ValueError: `group` does not divide the layer's input features.
    """

    def __init__(
        self,
        linear: nn.Linear,
        bits: int,
        group: int = 128,
        *,
        symmetric: bool = False,
        lsq: bool = False,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__()
        if linear.in_features % group:
            raise ValueError(f"groups of {group} do not divide {linear.in_features} input features")
        self.max_code = 2**bits - 1
        self.lsq, self.activation_bits = lsq, activation_bits
        self.weight, self.bias = linear.weight, linear.bias
        scale, zero = fit_clip(linear.weight.detach(), linear.in_features // group, self.max_code, symmetric=symmetric)
        self.scale = nn.Parameter(scale)
        self.zero = nn.Parameter(zero, requires_grad=not symmetric)

    def snapped_scale(self) -> Tensor:
        """`s (O, G)` as used and exported; its gradient is that of the trained one."""
        return self.scale + (snap_scale(self.scale.detach()) - self.scale.detach())

    def forward(self, x: Tensor) -> Tensor:
        """`x (..., I)` to `(..., O)`."""
        if self.activation_bits is not None:
            x = fake_quant_activations(x, self.activation_bits)
        weight = fake_quant(self.weight, self.snapped_scale(), self.zero, self.max_code, lsq=self.lsq)
        return functional.linear(x, weight, self.bias)

    @torch.no_grad()
    def quantized(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes `(O, I)` uint8, scale `(O, G)` float32 and zero point `(O, G)` uint8, for an exporter."""
        zero = self.zero.round().clamp(0, self.max_code)
        scale = snap_scale(self.scale)
        return quantize(self.weight, scale, zero, self.max_code), scale, zero.to(torch.uint8)
