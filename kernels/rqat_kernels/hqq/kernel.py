"""HQQ's fit in Triton: all iterations of a group with its weights in registers, read once.

    e = u + z - clamp(round(u + z), 0, Q),   u = w / s
    z = z - mean(e - sign(e) max(|e| - |e|^(p - 1) / beta, 0))       while sum |e|^p falls
    of all z passed, rounded where they are whole: the first of least sum |e|^p

Powers are `2^(p log2 |e|)` by the hardware's two approximations, 2**-21 relative or so. Arithmetic is what it costs:
two logarithms and three powers per weight and iteration, against four bytes read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid.clip import PER_WARP
from ..grid.kernel import TILE, quotient, round_half_even
from .reference import BETA, KAPPA

THRESHOLD = tl.constexpr(1.0 / BETA)
FALL = tl.constexpr(1.0 / KAPPA)

NOTHING = tl.constexpr(1e-30)
"""Stands for an error of zero, which has no logarithm: its power is lost beside that of any other error."""


@triton.jit
def error_of(share, zero, MAX_CODE: tl.constexpr):
    """Rounding errors in units of the scale."""
    at = share + zero[:, None]
    return at - tl.minimum(tl.maximum(round_half_even(at), 0.0), MAX_CODE * 1.0)


@triton.jit
def log_of(error):
    """Logarithms, to base 2, of the errors' sizes."""
    return tl.log2(tl.maximum(tl.abs(error), NOTHING))


@triton.jit
def sum_of(values, GROUP: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of rows, without their padding: it has errors of its own."""
    if GROUP != COLUMNS:
        values = tl.where((tl.arange(0, COLUMNS) < GROUP)[None, :], values, 0.0)
    return tl.sum(values, axis=1)


@triton.jit
def _fit_hqq(weight, scale, zero, out, R, lp_norm, iterations, MAX_CODE: tl.constexpr, WHOLE: tl.constexpr,
             GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Zero points of `ROWS` groups."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < R
    mask = inside[:, None] & (column < GROUP)[None, :]
    w = tl.load(weight + row[:, None] * GROUP + column[None, :], mask=mask, other=0).to(tl.float32)
    share = quotient(w, tl.load(scale + row, mask=inside, other=1)[:, None])
    best = tl.load(zero + row, mask=inside, other=0)
    passed = best
    least = sum_of(tl.exp2(log_of(error_of(share, best, MAX_CODE)) * lp_norm), GROUP, COLUMNS)
    last = tl.full((ROWS,), float("inf"), tl.float32)
    threshold = tl.zeros((ROWS,), tl.float32) + THRESHOLD
    for _ in range(iterations):
        error = error_of(share, passed, MAX_CODE)
        logarithm = log_of(error)
        norm = sum_of(tl.exp2(logarithm * lp_norm), GROUP, COLUMNS)
        # Not kept of an error is all of a small one, and of a large one what it is shrunk by.
        taken = tl.minimum(tl.abs(error), tl.exp2(logarithm * (lp_norm - 1.0)) * threshold[:, None])
        step = sum_of(tl.where(error < 0, -taken, taken), GROUP, COLUMNS) * (1.0 / GROUP)
        passed = tl.where(norm < last, passed - step, passed)
        last = norm  # of a group that has ended it stays what it is, and so does its zero point
        threshold = threshold * FALL
        tried = passed
        if WHOLE:
            tried = tl.minimum(tl.maximum(round_half_even(passed), 0.0), MAX_CODE * 1.0)
        norm = sum_of(tl.exp2(log_of(error_of(share, tried, MAX_CODE)) * lp_norm), GROUP, COLUMNS)
        best = tl.where(norm < least, tried, best)
        least = tl.minimum(norm, least)
    tl.store(out + row, best, mask=inside)


def fit_hqq(
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    *,
    whole: bool = True,
    lp_norm: float = 0.7,
    iterations: int = 20,
) -> Tensor:
    """As the reference, for weights in float32, bfloat16 or float16."""
    out = torch.empty(scale.shape, dtype=torch.float32, device=weight.device)
    if not out.numel():
        return out
    group = weight.numel() // out.numel()
    columns = triton.next_power_of_2(group)
    rows = max(1, TILE // columns)
    with torch.cuda.device_of(weight):
        _fit_hqq[(triton.cdiv(out.numel(), rows),)](
            weight.contiguous(),
            scale.float().contiguous(),
            zero.float().contiguous(),
            out,
            out.numel(),
            lp_norm,
            iterations,
            MAX_CODE=max_code,
            WHOLE=whole,
            GROUP=group,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=max(4, columns // PER_WARP),
        )
    return out
