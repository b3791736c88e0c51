"""Straight-through gradients in plain torch: from the gradient on `w_hat` to those of latent, scale and zero point.

    u = w / s,   v = round(u) + z,   q = clamp(v, 0, Q),   in = [0 <= v <= Q]
    gw = D * in
    gs = sum_group D * (q - z - in * u)
    gz = -s * sum_group D * (1 - in)

All three are linear in `D`, and `w, s, z` stay the same within an optimizer step, so `D` may be summed over
micro-batches first. The scale's straight-through form is that of LSQ (arXiv 1902.08153, eq. 3), the zero point's that
of LSQ+ (arXiv 2004.09576, eq. 6).
"""

from __future__ import annotations

import torch
from torch import Tensor


def arithmetic(weight: Tensor) -> torch.dtype:
    """The dtype of everything in between, and of `gs` and `gz`: float64 for float64, else float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def latent_step(
    grad: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, max_code: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients `gw (O, I)` in the dtype of `weight`, `gs (O, G)` and `gz (O, G)` in float32 (float64 for float64).

    Args:
        grad: `D (O, I)`, the gradient on `w_hat`.
        weight: latent `w (O, I)`.
        scale: `s (O, G)`, as used in the forward pass (snapped).
        zero: `z (O, G)`, as used in the forward pass (whole numbers).
        max_code: `Q`.
    """
    out, groups = scale.shape
    dtype = arithmetic(weight)
    d = grad.to(dtype).reshape(out, groups, -1)
    s, z = scale.to(dtype)[..., None], zero.to(dtype)[..., None]
    u = weight.to(dtype).reshape(out, groups, -1) / s
    v = u.round() + z
    q = v.clamp(0, max_code)
    inside = (v == q).to(dtype)
    gw = d * inside
    gs = (d * (q - z - inside * u)).sum(-1)
    gz = -s.squeeze(-1) * (d - gw).sum(-1)
    return gw.view(weight.shape).to(weight.dtype), gs, gz
