"""The clip search in Triton: every try of a group's span with its weights in registers, read once.

    for each shrink:  s, z = grid on (low shrink, high shrink)
                      cost = sum_i c_i (s clamp(round(w_i / s), -z, Q - z) - w_i)**2
    the first grid of least cost is kept

Scales, zero points and errors are rounded as torch rounds them on the same device; only the order in which the terms of
a cost are summed differs. Two tries whose costs are closer than that (1e-6 relative) may therefore be told apart
differently; at equal costs the wider span wins in both.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import interpreted
from .kernel import TILE, quotient, round_half_even, snapped

WIDEST_GROUP = 8192
"""Weights per group a program's registers hold; wider groups are left to the reference."""

PER_WARP = 512
"""Weights per warp: 16 per thread, and as many importances."""

BY_RECIPROCAL = tl.constexpr(not interpreted())
"""Whether a tensor is divided by a Python number by its reciprocal, as torch does it on CUDA and not on the CPU."""


@triton.jit
def grid_on(low, high, MAX_CODE: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Scale and zero point whose grid reaches from `low` to `high`; as `reference._grid_on`."""
    if SYMMETRIC:
        high = tl.maximum(high, -low)
        low = -high
    span = high - low
    if BY_RECIPROCAL:
        step = span * (1.0 / MAX_CODE)
    else:
        step = tl.div_rn(span, MAX_CODE * 1.0)
    scale = snapped(tl.where(span > 0, step, 1.0))
    if SYMMETRIC:
        return scale, tl.zeros_like(scale) + (MAX_CODE + 1) // 2
    return scale, tl.minimum(tl.maximum(round_half_even(tl.div_rn(-low, scale)), 0.0), MAX_CODE * 1.0)


@triton.jit
def _fit_clip(weight, importance, shrinks, scale, zero, R, groups, tries,
              MAX_CODE: tl.constexpr, SYMMETRIC: tl.constexpr, WEIGHTED: tl.constexpr,
              GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Grids of `ROWS` groups. Padding weighs zero: zero is inside every span and on every grid, so it costs nothing."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < R
    mask = inside[:, None] & (column < GROUP)[None, :]
    w = tl.load(weight + row[:, None] * GROUP + column[None, :], mask=mask, other=0).to(tl.float32)
    if WEIGHTED:
        c = tl.load(importance + (row % groups)[:, None] * GROUP + column[None, :], mask=mask, other=0)
    low, high = tl.minimum(tl.min(w, axis=1), 0.0), tl.maximum(tl.max(w, axis=1), 0.0)
    best_scale, best_zero = grid_on(low, high, MAX_CODE, SYMMETRIC)
    best_cost = tl.full((ROWS,), float("inf"), tl.float32)
    for number in range(tries):
        shrink = tl.load(shrinks + number)
        s, z = grid_on(low * shrink, high * shrink, MAX_CODE, SYMMETRIC)
        q = round_half_even(quotient(w, s[:, None]))
        q = tl.minimum(tl.maximum(q, -z[:, None]), MAX_CODE - z[:, None])
        error = q * s[:, None] - w
        error = error * error
        if WEIGHTED:
            error = error * c
        cost = tl.sum(error, axis=1)
        better = cost < best_cost
        best_cost = tl.where(better, cost, best_cost)
        best_scale = tl.where(better, s, best_scale)
        best_zero = tl.where(better, z, best_zero)
    tl.store(scale + row, best_scale, mask=inside)
    tl.store(zero + row, best_zero, mask=inside)


def takes(weight: Tensor, groups: int, importance: Tensor | None) -> bool:
    """Whether the kernel can do this search: groups that fit its registers, no quadratic form, no float64."""
    if importance is not None and importance.dim() != 1:
        return False
    return weight.dtype != torch.float64 and weight.shape[1] // groups <= WIDEST_GROUP


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
    """As the reference, for finite weights in float32, bfloat16 or float16 and `importance (I,)` or None."""
    out, features = weight.shape
    scale, zero = (torch.empty((out, groups), dtype=torch.float32, device=weight.device) for _ in range(2))
    if not scale.numel():
        return scale, zero
    group = features // groups
    columns = triton.next_power_of_2(group)
    rows = max(1, TILE // columns)
    weighted = importance is not None
    weight = weight.contiguous()
    costs = importance.float().contiguous() if importance is not None else weight
    with torch.cuda.device_of(weight):
        _fit_clip[(triton.cdiv(out * groups, rows),)](
            weight,
            costs,
            _spans(shrinks, narrowest, weight.device),
            scale,
            zero,
            out * groups,
            groups,
            shrinks,
            MAX_CODE=max_code,
            SYMMETRIC=symmetric,
            WEIGHTED=weighted,
            GROUP=group,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=max(4, columns // PER_WARP),
            enable_fp_fusion=False,  # torch rounds the product before the difference
        )
    return scale, zero


@cache
def _spans(shrinks: int, narrowest: float, device: torch.device) -> Tensor:
    """The spans tried, rounded to float32 from the reference's float64; at least one number, so that there is memory.

    Kept, because to copy them to a GPU is to wait for it.
    """
    spans = [1.0 - (1.0 - narrowest) * step / max(1, shrinks - 1) for step in range(max(1, shrinks))]
    return torch.tensor(spans, dtype=torch.float32, device=device)
