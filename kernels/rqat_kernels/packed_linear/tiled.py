"""Packed linear layers of 16 and more rows: a tile of 128 features at a time, weights scaled before the product.

    y[m, n] = bias[n] + sum_k round((q[n, k] - z[g, n]) s[g, n]) x[m, k]

These are the weights of a dense copy, rounded where its would be, and one product runs through all of a program's
features. A turn of the loop is a tile, not a slab, so that the rows of x of several turns fit into shared memory; the
words of a slab are asked for four times, and three times the first-level cache has them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packing.kernel import decode_tile, params_at, scaled
from .ahead import read_ahead
from .ending import finish, rows_of

TALLEST = tl.constexpr(256)
"""Rows of the weight that a program can have."""

_tiles: dict[torch.device, Tensor] = {}


def tiles_of(device: torch.device) -> Tensor:
    """`(4, TALLEST)` int32: the number of a tile in its slab, once for each row of a program."""
    tiles = _tiles.get(device)
    if tiles is None:
        tiles = torch.arange(4, dtype=torch.int32, device=device)[:, None].repeat(1, TALLEST.value)
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            _tiles[device] = tiles
    return tiles


@triton.jit(do_not_specialize=["M", "slabs", "turns", "splits", "ahead"])
def _tiled(
    x_ptr, words_ptr, extra_ptr, params_ptr, bias_ptr, y_ptr, partial_ptr, seen_ptr,
    M, N, K, slabs, turns, splits, ahead, tiles_ptr,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACROSS: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
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
    x_at = x_ptr + m.to(tl.int64)[:, None] * K + column[None, :]
    if PDL:
        for slab in range(split * turns, tl.minimum(split * turns + tl.minimum(turns, ahead), slabs)):
            read_ahead(words_ptr, extra_ptr, params_ptr, row, slab, N, slabs, BITS, FULL)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    y = tl.zeros([BLOCK, ROWS], tl.float32)
    for step in tl.range(split * turns * 4, tl.minimum(split * turns + turns, slabs) * 4, num_stages=STAGES):
        slab = step // 4
        words = tl.load(words_at + slab * WORDS, cache_modifier=".ca")
        other = words
        extra = words
        if BITS == 3:
            other = tl.load(words_at + slab * WORDS + 32, cache_modifier=".ca")
            extra = tl.load(extra_at + slab * 32, cache_modifier=".ca")
        tile = tl.load(tiles_ptr + step % 4 * TALLEST + tl.arange(0, BLOCK))[:, None]
        scale, zero = params_at(params_ptr, step * N + row, FULL, HALF)
        for part in tl.static_range(PLANES * HALVES):
            k = step * 128 + part * WIDE
            if WHOLE:
                x = tl.load(x_at + k, mask=(m < M)[:, None], other=0.0)
            else:
                x = tl.load(x_at + k, mask=(m < M)[:, None] & (k + column < K)[None, :], other=0.0)
            if part % HALVES == 0:
                fields = decode_tile(words, extra, BITS, tile, part // HALVES, 0, DTYPE, USE_ASM)
            else:
                fields = decode_tile(other, extra, BITS, tile, part // HALVES, 1, DTYPE, USE_ASM)
            weights = scaled(fields, zero[:, None], scale[:, None], DTYPE, USE_ASM)
            y = tl.dot(weights, tl.trans(x), y, input_precision="ieee")
    seen_at = seen_ptr + tl.program_id(2) * tl.num_programs(0)
    finish(y, y_ptr, partial_ptr, seen_at, bias_ptr, block, split, splits, m, M, N, BLOCK, HAS_BIAS, PARTIAL, GATED)
