"""The small kernels of a decoding step in Triton; formulas and shapes as in `reference.py`.

They move few bytes, so what counts is their number: one program per row or head, everything in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import early, on_device, options

BLOCK = 1024
"""Elements of one program of `silu_mul`."""


@triton.jit
def add_rms_norm_kernel(
    residual, delta, weight, total, normed, width, eps,
    HAS_DELTA: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`r = residual + delta`; `normed = weight * round(r / sqrt(mean(r^2) + eps))`; a row per program."""
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


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    residual = residual.contiguous()
    total, normed = torch.empty_like(residual), torch.empty_like(residual)
    rows, width = residual.shape
    if rows == 0:
        return total, normed
    block = triton.next_power_of_2(width)
    with on_device(residual):
        add_rms_norm_kernel[(rows,)](
            residual,
            residual if delta is None else delta.contiguous(),
            weight,
            total,
            normed,
            width,
            eps,
            HAS_DELTA=delta is not None,
            WIDTH=block,
            PDL=early(residual.device),
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
