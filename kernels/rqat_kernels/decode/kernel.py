"""The small kernels of a decoding step in Triton; formulas and shapes as in `reference.py`.

They move few bytes, so what counts is their number: one program per row or head, everything in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..prefetch import to_l2
from .launch import early, on_device, options

BLOCK = 1024
"""Elements of one program of `silu_mul`."""

LINE = 128
"""Bytes that L2 fetches at a time."""

MOST_AHEAD = 8 << 20
"""Bytes of one tensor that are read ahead, at most: what memory delivers in two or three microseconds."""

AHEAD_PROGRAMS = 64
AHEAD_LINES = 128
"""Lines that a program asks for at a time, one per thread."""


@triton.jit(do_not_specialize=["rows", "lines_one", "lines_two", "lines_three"])
def add_rms_norm_kernel(
    residual, delta, weight, total, normed, one, two, three, rows, width, eps, lines_one, lines_two, lines_three,
    HAS_DELTA: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """`r = residual + delta`; `normed = weight * round(r / sqrt(mean(r^2) + eps))`; a row per program.

    Programs behind the rows send the first lines of `one`, `two` and `three`, bytes, on their way to L2.
    """
    if PDL:  # noqa: SIM102 - known when compiled; the rest is not
        if tl.program_id(0) >= rows:
            first = (tl.program_id(0) - rows) * LINES + tl.arange(0, LINES)
            step = (tl.num_programs(0) - rows) * LINES
            for which in tl.static_range(3):
                start = one if which == 0 else (two if which == 1 else three)
                lines = lines_one if which == 0 else (lines_two if which == 1 else lines_three)
                for at in range(0, lines, step):
                    to_l2(start + tl.minimum(first + at, lines - 1).to(tl.int64) * LINE)
            return
    row = tl.program_id(0).to(tl.int64) * width
    i = tl.arange(0, WIDTH)
    inside = i < width
    # Weights do not depend on the kernel before, so they need not wait for it.
    scale = tl.load(weight + i, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    r = tl.load(residual + row + i, mask=inside, other=0.0)
    if HAS_DELTA:
        r = r + tl.load(delta + row + i, mask=inside, other=0.0)
    tl.store(total + row + i, r, mask=inside)
    wide = r.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = (wide * factor).to(r.dtype)
    tl.store(normed + row + i, scaled * scale, mask=inside)


@triton.jit
def silu_mul_kernel(gate_up, product, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """`round(silu(gate)) * up`; a piece of a row per program."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    gate = tl.load(gate_up + row * 2 * width + i, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + i, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    tl.store(product + row * width + i, (wide * tl.sigmoid(wide)).to(gate.dtype) * up, mask=inside)


def add_rms_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, ahead: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; `ahead` are up to three contiguous tensors that a kernel soon reads.

    Where launches overlap, they are on their way to L2 while the kernel before this one still runs. The one behind this
    one could send for its weights only when that has ended, as this one takes so little time.
    """
    residual = residual.contiguous()
    total, normed = torch.empty_like(residual), torch.empty_like(residual)
    rows, width = residual.shape
    if rows == 0:
        return total, normed
    block = triton.next_power_of_2(width)
    overlaps = early(residual.device)
    bytes_ahead = [tensor.view(torch.uint8) for tensor in ahead if overlaps and tensor.numel()]
    lines = [triton.cdiv(min(tensor.numel(), MOST_AHEAD), LINE) for tensor in bytes_ahead]
    programs = min(AHEAD_PROGRAMS, triton.cdiv(max(lines, default=0), AHEAD_LINES))
    none = 3 - len(lines)
    with on_device(residual):
        add_rms_norm_kernel[(rows + programs,)](
            residual,
            residual if delta is None else delta.contiguous(),
            weight,
            total,
            normed,
            *bytes_ahead,
            *[residual] * none,
            rows,
            width,
            eps,
            *lines,
            *[0] * none,
            HAS_DELTA=delta is not None,
            WIDTH=block,
            PDL=overlaps,
            LINE=LINE,
            LINES=AHEAD_LINES,
            num_warps=4 if block <= 2048 else 8,
            **options(residual.device),
        )
    return total, normed


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    product = gate_up.new_empty(*gate_up.shape[:-1], width)
    rows = product.numel() // max(width, 1)
    if rows == 0:
        return product
    with on_device(gate_up):
        silu_mul_kernel[(rows, triton.cdiv(width, BLOCK))](
            gate_up,
            product,
            width,
            BLOCK=BLOCK,
            PDL=early(gate_up.device),
            num_warps=4,
            **options(gate_up.device),
        )
    return product
