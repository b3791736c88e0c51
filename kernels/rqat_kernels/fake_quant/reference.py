"""Fake quantization in plain torch: values on a grid in the forward pass, straight-through gradients in the backward.

Weights, in groups with a scale and a zero point each (`D` is the gradient on `w_hat`):

    z' = clamp(round(z), 0, Q),   w_hat = (clamp(round(w / s) + z', 0, Q) - z') * s
    gw, gs, gz = latent_step(D, w, s, z'),   gz = 0 where z lies outside [0, Q]

Activations, the grid spanned by each token or group itself, always with zero in it:

    asymmetric: s = (max(x, 0) - min(x, 0)) / Q,   z = round(-min(x, 0) / s)
    symmetric:  s = max|x| / (2^(bits-1) - 1),     z = 2^(bits-1)
    x_hat = (clamp(round(x / s) + z, 0, Q) - z) * s,   gx = D

Nothing lies outside a grid that the data itself spans, so their straight-through gradient is the one that came.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..grid.reference import requantize
from ..latent_step.reference import arithmetic, latent_step

SMALLEST_SCALE = 2.0**-100
"""Below it a scale counts as that of a row of zeros, and is one: its reciprocal must be a float too."""


def whole_zero(zero: Tensor, max_code: int) -> Tensor:
    """`z'`."""
    return zero.round().clamp(0, max_code)


def fake_quant(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """`w_hat (O, I)` in the dtype of `weight`, computed in float32; float64 for float64."""
    if weight.dtype != torch.float64:
        return requantize(weight, scale, whole_zero(zero, max_code), max_code, weight.dtype)
    s, z = scale[..., None].double(), whole_zero(zero, max_code)[..., None].double()
    q = (torch.round(weight.view(*scale.shape, -1) / s) + z).clamp(0, max_code)
    return ((q - z) * s).view(weight.shape)


def fake_quant_backward(
    grad: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, *, lsq: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, scale and zero point in their dtypes."""
    gw, gs, gz = latent_step(grad, weight, scale, whole_zero(zero, max_code), max_code, lsq=lsq)
    within = (zero >= 0) & (zero <= max_code)
    return gw, gs.to(scale.dtype), (gz * within).to(zero.dtype)


def fake_quant_activations(x: Tensor, bits: int, group: int | None = None, *, symmetric: bool = False) -> Tensor:
    """`x_hat` in the shape and dtype of `x (..., I)`, computed in float32; float64 for float64."""
    rows = x.to(arithmetic(x)).reshape(-1, group or x.shape[-1])
    max_code = 2**bits - 1
    if symmetric:
        middle = (max_code + 1) // 2
        scale = _quotient(rows.abs().amax(-1, keepdim=True), middle - 1)
        zero = torch.full_like(scale, middle)
    else:
        low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
        scale = _quotient(high - low, max_code)
        zero = low
    scale = torch.where(scale > SMALLEST_SCALE, scale, 1.0)
    if not symmetric:
        zero = torch.round(-zero / scale)
    codes = (torch.round(rows / scale) + zero).clamp_(0, max_code)
    return ((codes - zero) * scale).to(x.dtype).view(x.shape)


def _quotient(value: Tensor, by: int) -> Tensor:
    """A true quotient on every device: by a plain number, CUDA multiplies with its rounded reciprocal."""
    return value / torch.full_like(value, by)
