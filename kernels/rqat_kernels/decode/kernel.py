"""The small kernels of a decoding step in Triton; formulas and shapes as in `reference.py`.

They move few bytes, so what counts is their number: one program per row or head, everything in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device

BLOCK = 1024
"""Elements of one program of `silu_mul`."""


@triton.jit
def add_rms_norm_kernel(
    residual, delta, weight, total, normed, width, eps, HAS_DELTA: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """`r = residual + delta`; `normed = weight * round(r / sqrt(mean(r^2) + eps))`; a row per program."""
    row = tl.program_id(0).to(tl.int64) * width
    i = tl.arange(0, WIDTH)
    inside = i < width
    r = tl.load(residual + row + i, mask=inside, other=0.0)
    if HAS_DELTA:
        r = r + tl.load(delta + row + i, mask=inside, other=0.0)
    tl.store(total + row + i, r, mask=inside)
    wide = r.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = (wide * factor).to(r.dtype)
    tl.store(normed + row + i, scaled * tl.load(weight + i, mask=inside, other=0.0), mask=inside)


@triton.jit
def rope_append_kernel(
    qkv, q_weight, k_weight, cos, sin, keys, values, slots, positions, query,
    heads, key_heads, width, capacity, eps, HAS_NORM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A head per program: queries, then keys, then values. The halves of a head are loaded apart, to be rotated."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = width // 2
    i = tl.arange(0, HALF)
    inside = i < half
    source = qkv + (row * (heads + 2 * key_heads) + head) * width
    one = tl.load(source + i, mask=inside, other=0.0)
    two = tl.load(source + half + i, mask=inside, other=0.0)
    position = tl.load(positions + row).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if head >= heads + key_heads:
        target = values + ((slot * key_heads + head - heads - key_heads) * capacity + position) * width
        tl.store(target + i, one, mask=inside)
        tl.store(target + half + i, two, mask=inside)
    else:
        a = one.to(tl.float32)
        b = two.to(tl.float32)
        if HAS_NORM:
            factor = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / width + eps)
            weight = q_weight
            if head >= heads:
                weight = k_weight
            a = (a * factor).to(one.dtype).to(tl.float32) * tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
            b = (b * factor).to(one.dtype).to(tl.float32) * tl.load(weight + half + i, mask=inside, other=0.0).to(
                tl.float32
            )
            a = a.to(one.dtype).to(tl.float32)
            b = b.to(one.dtype).to(tl.float32)
        c = tl.load(cos + position * width + i, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + position * width + i, mask=inside, other=0.0).to(tl.float32)
        target = query + (row * heads + head) * width
        if head >= heads:
            target = keys + ((slot * key_heads + head - heads) * capacity + position) * width
        tl.store(target + i, (a * c - b * s).to(one.dtype), mask=inside)
        tl.store(target + half + i, (b * c + a * s).to(one.dtype), mask=inside)


@triton.jit
def silu_mul_kernel(gate_up, product, width, BLOCK: tl.constexpr):
    """`round(silu(gate)) * up`; a piece of a row per program."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
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
            num_warps=4 if block <= 2048 else 8,
        )
    return total, normed


def rope_append(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    eps: float,
) -> Tensor:
    """See `reference.rope_append`; the cache must be contiguous."""
    qkv = qkv.contiguous()
    rows, (_, key_heads, capacity, width) = len(qkv), keys.shape
    heads = qkv.shape[1] // width - 2 * key_heads
    query = qkv.new_empty(rows, heads, width)
    if rows == 0:
        return query
    with on_device(qkv):
        rope_append_kernel[(rows, heads + 2 * key_heads)](
            qkv,
            qkv if q_weight is None else q_weight,
            qkv if k_weight is None else k_weight,
            cos,
            sin,
            keys,
            values,
            slots,
            positions,
            query,
            heads,
            key_heads,
            width,
            capacity,
            eps,
            HAS_NORM=q_weight is not None,
            HALF=triton.next_power_of_2(width // 2),
            num_warps=1,
        )
    return query


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    product = gate_up.new_empty(*gate_up.shape[:-1], width)
    rows = product.numel() // max(width, 1)
    if rows == 0:
        return product
    with on_device(gate_up):
        silu_mul_kernel[(rows, triton.cdiv(width, BLOCK))](gate_up, product, width, BLOCK=BLOCK, num_warps=4)
    return product
