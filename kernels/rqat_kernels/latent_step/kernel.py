"""Straight-through gradients in Triton, all three in one pass over `D` and `w`.

    u = w / s,   v = round(u) + z,   q = clamp(v, 0, Q),   in = [0 <= v <= Q]
    gw = D * in
    gs = sum_group D * (q - z - in * u)
    gz = -s * sum_group D * (1 - in)

Codes, and with them `in` and `gw`, equal the reference's to the bit; the two sums are taken in another order, in
float32. A program works on whole groups, so nothing is added up between programs: results do not change from run to
run. Bytes per weight: `D`, `w` and `gw`, e.g. 2 + 4 + 4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid.kernel import grid_scale, quotient, round_half_even, shape_of_tile


@triton.jit
def straight_through(d, w, s, z, MAX_CODE: tl.constexpr):
    """Per element: `gw`, and the terms of `gs` and of `-gz / s`."""
    u = quotient(w, s)
    v = round_half_even(u) + z
    q = tl.minimum(tl.maximum(v, 0.0), MAX_CODE)
    inside = v == q
    gw = tl.where(inside, d, 0.0)
    return gw, d * ((q - z) - tl.where(inside, u, 0.0)), d - gw


@triton.jit
def _latent_step(grad, weight, scale, zero, gw, gs, gz, R, MAX_CODE: tl.constexpr, GROUP: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < R
    s, z = grid_scale(scale, row, present), grid_scale(zero, row, present)
    to_scale, outside = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for start in tl.static_range(0, GROUP, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = present[:, None]
        if GROUP % COLUMNS != 0:
            mask = mask & (column < GROUP)[None, :]
        offsets = row[:, None] * GROUP + column[None, :]
        d = tl.load(grad + offsets, mask=mask, other=0).to(tl.float32)
        w = tl.load(weight + offsets, mask=mask, other=0).to(tl.float32)
        inner, scaled, outer = straight_through(d, w, s, z, MAX_CODE)
        tl.store(gw + offsets, inner.to(gw.dtype.element_ty), mask=mask)
        to_scale += tl.sum(scaled, axis=1)
        outside += tl.sum(outer, axis=1)
    tl.store(gs + row, to_scale, mask=present)
    tl.store(gz + row, -tl.reshape(s, [ROWS]) * outside, mask=present)


def latent_step(
    grad: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, max_code: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference; `grad` and `weight` in float32, bfloat16 or float16."""
    gw = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    gs = torch.zeros(scale.shape, dtype=torch.float32, device=weight.device)
    gz = torch.zeros_like(gs)
    if gw.numel() == 0:
        return gw, gs, gz
    rows = scale.numel()
    group = weight.numel() // rows
    per_tile, columns = shape_of_tile(group)
    with torch.cuda.device_of(weight):
        _latent_step[(triton.cdiv(rows, per_tile),)](
            grad.contiguous(), weight.contiguous(), scale.contiguous(), zero.contiguous(), gw, gs, gz, rows, max_code,
            group, per_tile, columns,
        )  # fmt: skip
    return gw, gs, gz
