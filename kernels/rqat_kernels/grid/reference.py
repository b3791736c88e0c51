"""The uniform grid in plain torch: the definition every faster path is tested against.

Letters: weight `w (O, I)` in `G` groups of `g = I / G` input features, codes `q`, scale `s (O, G)`, zero point
`z (O, G)`, largest code `Q = 2**bits - 1`.

    q     = clamp(round_half_even(w / s) + z, 0, Q)
    w_hat = (q - z) * s

Scales are stored in 16 bits by every checkpoint format, in float16 by some and bfloat16 by others. `snap_scale` rounds
them to values both hold exactly, before anything is computed from them, so that no export step ever moves a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-17
"""Smallest scale whose seven fraction bits (bfloat16's) still fit float16, whose spacing ends at 2**-24."""

LARGEST_SCALE = 65280.0
"""Largest bfloat16 value below float16's 65504."""


AT_ONCE = 1 << 17
"""Weights that a CPU rounds at once: what stays in its cache takes half the time."""


def snap_scale(scale: Tensor) -> Tensor:
    """Nearest positive float32 value that bfloat16 and float16 both hold; any shape."""
    return scale.float().clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.bfloat16).float()


def quantize(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """Codes `(O, I)` uint8 of `weight (O, I)` on the grid of `scale (O, G)` and `zero (O, G)`; float32 arithmetic."""
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for part in pieces(weight):
        s, z = scale[part].detach().float()[..., None], zero[part].detach().float()[..., None]
        grouped = weight[part].detach().float().reshape(*s.shape[:2], -1)
        nearest = (grouped / s).round_().add_(z).clamp_(0, max_code)
        # By way of 16 bits: a CPU takes five times as long from floats to bytes.
        codes[part] = nearest.to(torch.int16).view(codes[part].shape)
    return codes


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`w_hat (O, I)` in `dtype`: computed in float32, where it is exact, then rounded once."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for part in pieces(codes):
        s, z = scale[part].float()[..., None], zero[part].float()[..., None]
        grouped = codes[part].reshape(*s.shape[:2], -1)
        if dtype == torch.float32:
            values[part].view(grouped.shape).copy_(grouped).sub_(z).mul_(s)
        else:
            values[part] = grouped.float().sub_(z).mul_(s).view(values[part].shape)
    return values


def pieces(weight: Tensor) -> list[slice]:
    """Slices of rows that stay in a CPU's cache while they are worked on; elsewhere, all of them at once."""
    rows, width = len(weight), weight[:1].numel()
    step = max(1, AT_ONCE // max(1, width)) if weight.is_cpu else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]


def requantize(
    weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The grid's values `(O, I)` nearest to `weight`: `dequantize` of `quantize`."""
    return dequantize(quantize(weight, scale, zero, max_code), scale, zero, dtype)


def fit_minmax(weight: Tensor, groups: int, max_code: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale `(O, G)` float32 (snapped) and zero point `(O, G)` float32 (whole numbers) that span each group.

    Asymmetric: `s = (max(w, 0) - min(w, 0)) / Q`, `z = round(-min / s)`.
    Symmetric: `s = 2 max|w| / Q`, `z = (Q + 1) / 2`.
    A group of zeros gets scale 1.
    """
    ends = [_span(weight[part].float().view(-1, groups, weight.shape[1] // groups)) for part in pieces(weight)]
    low, high = (torch.cat(each) for each in zip(*ends, strict=True))
    return _grid_on(low, high, max_code, symmetric)


def fit_clip(
    weight: Tensor,
    groups: int,
    max_code: int,
    *,
    symmetric: bool,
    importance: Tensor | None = None,
    shrinks: int = 20,
    narrowest: float = 0.4,
) -> tuple[Tensor, Tensor]:
    """Like `fit_minmax`, with the span of each group narrowed to the one of least squared rounding error.

    Args:
        importance: what an error costs: `(I,)`, a weight per input feature, e.g. the Hessian's diagonal; `(G, g, g)`, a
            quadratic form per group, e.g. the Hessian's blocks; None is the plain square.
        shrinks: number of spans tried, evenly from 1 down to `narrowest`.
    """
    grouped = weight.float().view(weight.shape[0], groups, -1)
    if importance is not None:
        importance = importance.float().view((groups, -1) if importance.dim() == 1 else importance.shape)
    low, high = _span(grouped)
    best_scale, best_zero = _grid_on(low, high, max_code, symmetric)
    best_cost = torch.full_like(best_scale, torch.inf)
    error = torch.empty_like(grouped)  # one buffer for every try: memory traffic is what this search costs
    for step in range(shrinks):
        shrink = 1.0 - (1.0 - narrowest) * step / max(1, shrinks - 1)
        scale, zero = _grid_on(low * shrink, high * shrink, max_code, symmetric)
        s, z = scale[..., None], zero[..., None]
        torch.div(grouped, s, out=error).round_().clamp_(-z, max_code - z).mul_(s).sub_(grouped)
        cost = _cost(error, importance)
        better = cost < best_cost
        best_cost = torch.where(better, cost, best_cost)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _span(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight `(O, G)` of each group, zero always between them."""
    return grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)


def _cost(error: Tensor, importance: Tensor | None) -> Tensor:
    """Cost `(O, G)` of `error (O, G, g)`, which is overwritten."""
    if importance is None:
        return error.square_().sum(-1)
    if importance.dim() == 2:
        return error.square_().mul_(importance).sum(-1)
    return torch.einsum("ogi,gij->ogj", error, importance).mul_(error).sum(-1)


def _grid_on(low: Tensor, high: Tensor, max_code: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point whose grid reaches from `low` to `high`."""
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    span = high - low
    scale = snap_scale(torch.where(span > 0, span / max_code, torch.ones_like(span)))
    if symmetric:
        return scale, torch.full_like(scale, (max_code + 1) // 2)
    return scale, torch.round(-low / scale).clamp_(0, max_code)
