"""Linear layers of few rows on packed weights, each weight read once from memory.

    y[m, n] = bias[n] + sum_g s[g, n] * sum_(k in g) (q[n, k] - z[g, n]) x[m, k]

Fields of words become floats `OFFSET + F q` with one `lop3` per pair (`packing/kernel.py`), so that a group of 128 is

    s / F * (dot(OFFSET + F q, x) - (OFFSET + F z) * sum_(k in g) x)

and the sum of x comes out of the same tensor cores, as a dot with ones. The weight stands on the left, y^T = w x^T:
there it goes from registers into the product, and the rows of x are the short side, 8 at least.

Two kernels cut the work. In `_skinny`, for the fewest rows, each warp has slabs of its own (the first dimension of all
tiles; tensor cores of different warps share no sum), and at the end a program adds up what its warps found, always in
the same order. In `_tall`, warps have rows of the weight of their own and share x. In both, `splits` programs can share
a block of rows, and leave float32 partial sums for a second, small kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import interpreted
from ..packing import PackedWeight
from ..packing.kernel import decode, factor_of, offset_of, params_at, params_of
from .choose import Config, choose


@triton.jit(do_not_specialize=["M", "slabs", "turns"])
def _skinny(
    x_ptr, words_ptr, extra_ptr, params_ptr, bias_ptr, y_ptr, M, N, K, slabs, turns,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr, PARTIAL: tl.constexpr,
    PDL: tl.constexpr, USE_ASM: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    OFFSET: tl.constexpr = offset_of(DTYPE)
    WORDS: tl.constexpr = 128 if BITS == 4 else 64
    WIDE: tl.constexpr = 128 if BITS == 4 else (32 if BITS == 3 else 64)
    HALVES: tl.constexpr = 2 if BITS == 3 else 1
    PLANES: tl.constexpr = 1 if BITS == 4 else 2
    split = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.minimum(n, N - 1)
    m = tl.arange(0, ROWS)
    warp = tl.arange(0, WARPS)
    column = tl.arange(0, WIDE)
    far = row.to(tl.int64)[None, :, None] * slabs
    words_at = words_ptr + far * WORDS + column[None, None, :]
    extra_at = extra_ptr + far * 32 + column[None, None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :, None] * K + column[None, None, :]
    if PDL:
        # Weights do not depend on the kernel before: they are on their way to L2 while it ends.
        first = tl.minimum(split * turns * WARPS + warp, slabs - 1)[:, None]
        line = words_ptr + row.to(tl.int64)[None, :] * (slabs * WORDS) + first * WORDS
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1
        )
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    ones = tl.full([WARPS, 16, WIDE], 1.0, DTYPE)
    total = tl.zeros([WARPS, BLOCK, ROWS], tl.float32)
    for turn in tl.range(split * turns, split * turns + turns, num_stages=STAGES):
        slab = turn * WARPS + warp
        inside = tl.minimum(slab, slabs - 1)
        words = tl.load(words_at + (inside * WORDS)[:, None, None])
        other = words
        extra = words
        if BITS == 3:
            other = tl.load(words_at + (inside * WORDS)[:, None, None] + 32)
            extra = tl.load(extra_at + (inside * 32)[:, None, None])
        real = (m < M)[None, :, None] & (slab < slabs)[:, None, None]
        for tile in tl.static_range(4):
            scale, zero = params_at(params_ptr, (inside[:, None] * 4 + tile) * N + row[None, :], FULL, HALF)
            sums = tl.zeros([WARPS, 16, ROWS], tl.float32)
            dots = tl.zeros([WARPS, BLOCK, ROWS], tl.float32)
            for part in tl.static_range(PLANES * HALVES):
                k = slab * 512 + tile * 128 + part * WIDE
                if WHOLE:
                    x = tl.load(x_at + k[:, None, None], mask=real, other=0.0)
                else:
                    x = tl.load(
                        x_at + k[:, None, None], mask=real & (k[:, None] + column[None, :] < K)[:, None, :], other=0.0
                    )
                x = tl.permute(x, (0, 2, 1))
                sums = tl.dot(ones, x, sums, input_precision="ieee")
                if part % HALVES == 0:
                    fields = decode(words, extra, BITS, tile * PLANES + part // HALVES, 0, DTYPE, USE_ASM)
                else:
                    fields = decode(other, extra, BITS, tile * PLANES + part // HALVES, 1, DTYPE, USE_ASM)
                dots = tl.dot(fields, x, dots, input_precision="ieee")
            factor = factor_of(BITS, tile * PLANES)
            same = tl.broadcast_to(tl.reshape(sums, [WARPS, 1, 16, ROWS]), [WARPS, BLOCK // 16, 16, ROWS])
            dots -= tl.reshape(same, [WARPS, BLOCK, ROWS]) * (OFFSET + factor * zero)[:, :, None]
            total += dots * (scale * (1.0 / factor))[:, :, None]
    y = tl.sum(total, 0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + row).to(tl.float32)[:, None]
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    if PARTIAL:
        at += split.to(tl.int64) * M * N
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit(do_not_specialize=["M", "slabs", "turns"])
def _tall(
    x_ptr, words_ptr, extra_ptr, params_ptr, bias_ptr, y_ptr, M, N, K, slabs, turns,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr, PARTIAL: tl.constexpr,
    PDL: tl.constexpr, USE_ASM: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    OFFSET: tl.constexpr = offset_of(DTYPE)
    WORDS: tl.constexpr = 128 if BITS == 4 else 64
    WIDE: tl.constexpr = 128 if BITS == 4 else (32 if BITS == 3 else 64)
    HALVES: tl.constexpr = 2 if BITS == 3 else 1
    PLANES: tl.constexpr = 1 if BITS == 4 else 2
    # A dot with as many rows as the warps hold at a time: its sums lie where the sums of the block lie.
    ONES: tl.constexpr = min(BLOCK, 16 * WARPS)
    split = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.minimum(n, N - 1)
    m = tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    far = row.to(tl.int64)[:, None] * slabs
    words_at = words_ptr + far * WORDS + column[None, :]
    extra_at = extra_ptr + far * 32 + column[None, :]
    x_at = x_ptr + m.to(tl.int64)[:, None] * K + column[None, :]
    if PDL:
        line = words_ptr + row.to(tl.int64) * (slabs * WORDS) + split * turns * WORDS
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1
        )
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    ones = tl.full([ONES, WIDE], 1.0, DTYPE)
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
            sums = tl.zeros([ONES, ROWS], tl.float32)
            dots = tl.zeros([BLOCK, ROWS], tl.float32)
            for part in tl.static_range(PLANES * HALVES):
                k = slab * 512 + tile * 128 + part * WIDE
                if WHOLE:
                    x = tl.load(x_at + k, mask=(m < M)[:, None], other=0.0)
                else:
                    x = tl.load(x_at + k, mask=(m < M)[:, None] & (k + column < K)[None, :], other=0.0)
                x = tl.trans(x)
                sums = tl.dot(ones, x, sums, input_precision="ieee")
                if part % HALVES == 0:
                    fields = decode(words, extra, BITS, tile * PLANES + part // HALVES, 0, DTYPE, USE_ASM)
                else:
                    fields = decode(other, extra, BITS, tile * PLANES + part // HALVES, 1, DTYPE, USE_ASM)
                dots = tl.dot(fields, x, dots, input_precision="ieee")
            factor = factor_of(BITS, tile * PLANES)
            same = tl.broadcast_to(tl.reshape(sums, [1, ONES, ROWS]), [BLOCK // ONES, ONES, ROWS])
            dots -= tl.reshape(same, [BLOCK, ROWS]) * (OFFSET + factor * zero)[:, None]
            total += dots * (scale * (1.0 / factor))[:, None]
    if HAS_BIAS:
        total += tl.load(bias_ptr + row).to(tl.float32)[:, None]
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    if PARTIAL:
        at += split.to(tl.int64) * M * N
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def _add_up(partial_ptr, bias_ptr, y_ptr, size, N, splits, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        total += tl.load(partial_ptr + split * size + at, mask=at < size, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + at % N, mask=at < size, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=at < size)


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, config: Config | None = None) -> Tensor:
    """See `packed_linear` of the package; at most 64 rows of bfloat16 or float16 (float32 by the interpreter)."""
    out, width = weight.out_features, weight.in_features
    flat = x.reshape(-1, width).contiguous()
    rows = flat.shape[0]
    y = torch.empty((rows, out), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y.view(*x.shape[:-1], out)
    if config is None:
        config = choose(rows, out, width, weight.bits, x.device)
    params, full, half = params_of(weight)
    slabs = weight.padded // 512
    together = config.warps if config.variant == "skinny" else 1
    turns = triton.cdiv(slabs, together * config.splits)
    splits = triton.cdiv(slabs, together * turns)
    partial = splits > 1
    target = torch.empty((splits, rows, out), dtype=torch.float32, device=x.device) if partial else y
    kernel = _skinny if config.variant == "skinny" else _tall
    options = {"launch_pdl": True} if config.pdl else {}
    with torch.cuda.device_of(x):
        kernel[triton.cdiv(out, config.block), splits](
            flat, weight.words, weight.words if weight.extra is None else weight.extra, params,
            flat if bias is None else bias, target, rows, out, width, slabs, turns,
            BITS=weight.bits, FULL=full, HALF=half, HAS_BIAS=bias is not None and not partial, WHOLE=width % 512 == 0,
            ROWS=max(8, triton.next_power_of_2(rows)), BLOCK=config.block, WARPS=config.warps, STAGES=config.stages,
            PARTIAL=partial, PDL=config.pdl, USE_ASM=not interpreted(), num_warps=config.warps,
            num_stages=config.stages, **options,
        )  # fmt: skip
        if partial:
            _add_up[(triton.cdiv(rows * out, 512),)](
                target, flat if bias is None else bias, y, rows * out, out, splits,
                HAS_BIAS=bias is not None, BLOCK=512, num_warps=4,
            )  # fmt: skip
    return y.view(*x.shape[:-1], out)
