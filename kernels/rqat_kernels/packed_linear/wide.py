"""Packed linear layers of 16 to 64 rows: zero points are taken off codes before the product.

    y[m, n] = bias[n] + sum_g s[g, n] / F * sum_(k in g) F (q[n, k] - z[g, n]) x[m, k]

From 16 rows on, the product itself takes as long as the weights take to arrive, and a second one with ones, for the sum
of x, would double it where blocks are 64 rows tall. Two fused multiply-adds per pair of weights are cheaper: the first
difference of `OFFSET + F q - OFFSET - F z` is exact, the second rounds once, and not at all for whole zero points.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..packing.kernel import center, decode, factor_of, params_at
from .ahead import wait_for_x
from .ending import finish, rows_of


@triton.jit(do_not_specialize=["M", "slabs", "turns", "splits", "ahead"])
def _wide(
    x_ptr, words_ptr, extra_ptr, params_ptr, bias_ptr, y_ptr, partial_ptr, seen_ptr,
    M, N, K, slabs, turns, splits, ahead,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACROSS: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    PARTIAL: tl.constexpr, PDL: tl.constexpr, USE_ASM: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    WORDS: tl.constexpr = 128 if BITS == 4 else 64
    WIDE: tl.constexpr = 128 if BITS == 4 else (32 if BITS == 3 else 64)
    HALVES: tl.constexpr = 2 if BITS == 3 else 1
    PLANES: tl.constexpr = 1 if BITS == 4 else 2
    split = tl.program_id(1)
    block = tl.program_id(0)
    row = tl.minimum(rows_of(block, tl.arange(0, BLOCK), N, BLOCK, GATED), N - 1)
    m = tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    far = row.to(tl.int64)[:, None] * slabs
    words_at = words_ptr + far * WORDS + column[None, :]
    extra_at = extra_ptr + far * 32 + column[None, :]
    x_at = x_ptr + m.to(tl.int64)[:, None] * K + column[None, :]
    if PDL:
        wait_for_x(words_ptr, extra_ptr, params_ptr, row, split * turns, turns, ahead, N, slabs, BITS, FULL)
    total = tl.zeros([BLOCK, ROWS], tl.float32)
    for slab in tl.range(split * turns, tl.minimum(split * turns + turns, slabs), num_stages=STAGES):
        words = tl.load(words_at + slab * WORDS)
        other = words
        extra = words
        if BITS == 3:
            other = tl.load(words_at + slab * WORDS + 32)
            extra = tl.load(extra_at + slab * 32)
        for tile in tl.static_range(4):
            scale, zero = params_at(params_ptr, (slab * 4 + tile) * N + row, FULL, HALF)
            dots = tl.zeros([BLOCK, ROWS], tl.float32)
            factor = factor_of(BITS, tile * PLANES)
            for part in tl.static_range(PLANES * HALVES):
                k = slab * 512 + tile * 128 + part * WIDE
                if WHOLE:
                    x = tl.load(x_at + k, mask=(m < M)[:, None], other=0.0)
                else:
                    x = tl.load(x_at + k, mask=(m < M)[:, None] & (k + column < K)[None, :], other=0.0)
                x = tl.trans(x)
                if part % HALVES == 0:
                    fields = decode(words, extra, BITS, tile * PLANES + part // HALVES, 0, DTYPE, USE_ASM)
                else:
                    fields = decode(other, extra, BITS, tile * PLANES + part // HALVES, 1, DTYPE, USE_ASM)
                fields = center(fields, (factor * zero)[:, None], DTYPE, USE_ASM)
                dots = tl.dot(fields, x, dots, input_precision="ieee")
            total += dots * (scale * (1.0 / factor))[:, None]
    finish(
        total, y_ptr, partial_ptr, seen_ptr, bias_ptr, block, split, splits, m, M, N, BLOCK, HAS_BIAS, PARTIAL, GATED
    )  # fmt: skip
