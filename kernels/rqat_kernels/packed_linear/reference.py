"""The definition of a linear layer on packed weights, in plain torch: `y = x w_hat^T + bias`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..packing import PackedWeight, dequantize_reference


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """`(..., O)` of `x (..., I)`, computed in float32 (float64 for float64) and rounded once to the type of `x`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dense = dequantize_reference(weight, wide)
    return torch.nn.functional.linear(x.to(wide), dense, None if bias is None else bias.to(wide)).to(x.dtype)
