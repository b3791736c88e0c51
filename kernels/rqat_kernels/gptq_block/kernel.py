"""GPTQ's column loop on a GPU: one kernel per block of columns, then one matrix product for everything behind it.

With `k` the columns of a block and `w (I, O)` the transposed weight, for i = 0 .. columns-1:

    r        = clamp(round_half_even(w[i] / s), -z, Q - z)         codes[i] = r + z
    e[i]     = (w[i] - r s) / U[i, i]
    w[k > i] -= U[i, k > i] e[i]

A program keeps the block's columns of a few output rows in registers from the first column to the last. What the next
column needs from memory (its row of U, its group's scale and zero point) is asked for before the present one is
rounded. Outside the block: `w[stop:] -= U[block, stop:]^T e`, in float32 on cuBLAS, without TF32 unless torch's global
switch says otherwise: at 8B shapes all of these are a second of work.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import measured
from .reference import Refit

WIDEST = 128
"""Columns per kernel at most: what fits into registers."""

HALF_EVEN = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and taking it away rounds a float32 below 2**22 to the nearest whole number, ties to even."""


@triton.jit
def block_kernel(
    w,
    u,
    s,
    z,
    group_of,
    codes,
    errors,
    out_features,
    start,
    columns,
    stride_u,
    max_code,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Columns `start .. start + columns` of `w (I, O)`, for `ROWS` output rows per program; see the module."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < out_features
    k = tl.arange(0, BLOCK)
    first = tl.cast(start, tl.int64)
    w += first * out_features
    codes += first * out_features
    u += first * stride_u + first
    group_of += first
    tile = tl.load(
        w + k[:, None] * out_features + row[None, :], mask=(k < columns)[:, None] & inside[None, :], other=0.0
    )
    group = tl.load(group_of)
    scale = tl.load(s + group * out_features + row, mask=inside, other=1.0)
    zero = tl.load(z + group * out_features + row, mask=inside, other=0.0)
    pivot = tl.load(u)
    share = tl.load(u + k, mask=(k > 0) & (k < columns), other=0.0)
    for i in range(columns):
        after = tl.minimum(i + 1, columns - 1)
        group = tl.load(group_of + after)
        next_pivot = tl.load(u + after * stride_u + after)
        next_share = tl.load(u + after * stride_u + k, mask=(k > after) & (k < columns), other=0.0)
        next_scale = tl.load(s + group * out_features + row, mask=inside, other=1.0)
        next_zero = tl.load(z + group * out_features + row, mask=inside, other=0.0)
        column = tl.sum(tl.where((k == i)[:, None], tile, 0.0), axis=0)
        rounded = tl.minimum(tl.maximum(tl.div_rn(column, scale), -zero), max_code - zero)
        rounded = (rounded + HALF_EVEN) - HALF_EVEN
        error = (column - rounded * scale) * (1.0 / pivot)
        tile -= share[:, None] * error[None, :]
        tl.store(codes + i * out_features + row, (rounded + zero).to(tl.uint8), mask=inside)
        tl.store(errors + i * out_features + row, error, mask=inside)
        scale, zero, pivot, share = next_scale, next_zero, next_pivot, next_share


def gptq_block(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    group_of: Tensor,
    *,
    refit: Refit | None = None,
    columns: int = WIDEST,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `reference.gptq_loop`, in float32; groups have equal sizes. With `refit` a block ends where a group does.

    `measured("gptq_block", device)` may hold "rows", output rows per program, and "warps".
    """
    w = weight.float().t().clone(memory_format=torch.contiguous_format)
    u = factor.float().contiguous()
    s = scale.float().t().clone(memory_format=torch.contiguous_format)
    z = zero.float().t().clone(memory_format=torch.contiguous_format)
    width, out = w.shape
    codes = torch.empty((width, out), dtype=torch.uint8, device=w.device)
    if codes.numel():
        run = width // s.shape[0] if refit is not None else width
        wide = max(1, min(columns, WIDEST))
        errors = torch.empty((wide, out), dtype=torch.float32, device=w.device)
        group_of = group_of.to(w.device, torch.int32).contiguous()
        groups = group_of[::run].tolist() if refit is not None else []
        chosen = measured("gptq_block", w.device)
        rows, warps = chosen.get("rows", 8), chosen.get("warps", 1)
        cuts = sorted({*range(0, width, wide), *range(0, width, run), width})
        with torch.cuda.device(w.device) if w.is_cuda else nullcontext():
            for start, stop in pairwise(cuts):
                if refit is not None and start % run == 0:
                    fitted = refit(w[start : start + run].t().contiguous(), slice(start, start + run))
                    g = groups[start // run]
                    s[g], z[g] = fitted[0][:, 0], fitted[1][:, 0]
                block_kernel[(triton.cdiv(out, rows),)](
                    w,
                    u,
                    s,
                    z,
                    group_of,
                    codes,
                    errors,
                    out,
                    start,
                    stop - start,
                    u.stride(0),
                    max_code,
                    BLOCK=max(16, triton.next_power_of_2(wide)),
                    ROWS=rows,
                    num_warps=warps,
                )
                w[stop:].addmm_(u[start:stop, stop:].t(), errors[: stop - start], alpha=-1)
    return codes.t().contiguous(), s.t().contiguous(), z.t().contiguous()
