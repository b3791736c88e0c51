"""Packed linear layers of 17 to 256 rows: a tile of 128 features at a time, weights scaled before the product.

    y[m, n] = bias[n] + sum_k round((q[n, k] - z[g, n]) s[g, n]) x[m, k]

These are the weights of a dense copy, rounded where its would be, and one product runs through all of a program's
features. A turn of the loop is TILES tiles of a slab, 1, 2 or all 4: short turns keep so few rows of x that several
programs fit on a processor, and one decodes while another multiplies. The words of a slab are asked for in each of its
turns; all but once the first-level cache has them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packing.kernel import decode, factor_of, params_at, rotated, scaled
from .ahead import wait_for_x
from .ending import finish, rows_of

TALLEST = tl.constexpr(256)
"""Rows of the weight that a program can have."""

_starts: dict[torch.device, Tensor] = {}


def starts_of(device: torch.device) -> Tensor:
    """`(4, TALLEST)` int32: the number of a tile in its slab, once for each row of a program."""
    starts = _starts.get(device)
    if starts is None:
        starts = torch.arange(4, dtype=torch.int32, device=device)[:, None].repeat(1, TALLEST.value)
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            _starts[device] = starts
    return starts


@triton.jit(do_not_specialize=["M", "slabs", "turns", "splits", "ahead"])
def _tiled(
    x_ptr, words_ptr, extra_ptr, params_ptr, bias_ptr, y_ptr, partial_ptr, seen_ptr,
    M, N, K, slabs, turns, splits, ahead, starts_ptr,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    PARTIAL: tl.constexpr, PDL: tl.constexpr, USE_ASM: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    WORDS: tl.constexpr = 128 if BITS == 4 else 64
    WIDE: tl.constexpr = 128 if BITS == 4 else (32 if BITS == 3 else 64)
    HALVES: tl.constexpr = 2 if BITS == 3 else 1
    PLANES: tl.constexpr = 1 if BITS == 4 else 2
    block = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.minimum(rows_of(block, tl.arange(0, BLOCK), N, BLOCK, GATED), N - 1)
    m = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    far = row.to(tl.int64)[:, None] * slabs
    words_at = words_ptr + far * WORDS + column[None, :]
    extra_at = extra_ptr + far * 32 + column[None, :]
    x_at = x_ptr + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K + column[None, :]
    if PDL:
        wait_for_x(words_ptr, extra_ptr, params_ptr, row, split * turns, turns, ahead, N, slabs, BITS, FULL)
    y = tl.zeros([BLOCK, ROWS], tl.float32)
    PER_SLAB: tl.constexpr = 4 // TILES
    first = split * turns * PER_SLAB
    last = tl.minimum(split * turns + turns, slabs) * PER_SLAB
    for step in tl.range(first, last, num_stages=STAGES):
        slab = step // PER_SLAB
        low = tl.load(words_at + slab * WORDS, cache_modifier=".ca")
        high = low
        even = low
        odd = low
        if BITS == 3:
            high = tl.load(words_at + slab * WORDS + 32, cache_modifier=".ca")
            even = tl.load(extra_at + slab * 32, cache_modifier=".ca")
            odd = even
        if TILES < 4:
            # So that the planes of any turn stand where those of the first do; for high bits see `planes.EXTRA_BIT`.
            start = tl.load(starts_ptr + step % PER_SLAB * TILES * TALLEST + tl.arange(0, BLOCK))[:, None]
            low = rotated(low, start * 4, USE_ASM)
            if BITS == 3:
                high = rotated(high, start * 4, USE_ASM)
                even = rotated(even, (start % 2 * 4 - start // 2) & 31, USE_ASM)
                odd = rotated(odd, (start % 2 * 4 - start // 2 * 3) & 31, USE_ASM)
        for tile in tl.static_range(TILES):
            scale, zero = params_at(params_ptr, (step * TILES + tile) * N + row, FULL, HALF)
            factor = factor_of(BITS, tile * PLANES)
            zeros = (factor * zero)[:, None]
            scales = (scale * (1.0 / factor))[:, None]
            for part in tl.static_range(PLANES * HALVES):
                k = (step * TILES + tile) * 128 + part * WIDE
                if WHOLE:
                    x = tl.load(x_at + k)
                else:
                    x = tl.load(x_at + k, mask=(k + column < K)[None, :], other=0.0)
                bits = even if part // HALVES == 0 else odd
                fields = decode(
                    low if part % HALVES == 0 else high, bits,
                    BITS, tile * PLANES + part // HALVES, part % HALVES, DTYPE, USE_ASM,
                )  # fmt: skip
                y = tl.dot(scaled(fields, zeros, scales, DTYPE, USE_ASM), tl.trans(x), y, input_precision="ieee")
    seen_at = seen_ptr + tl.program_id(2) * tl.num_programs(0)
    finish(y, y_ptr, partial_ptr, seen_at, bias_ptr, block, split, splits, m, M, N, BLOCK, HAS_BIAS, PARTIAL, GATED)
