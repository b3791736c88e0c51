"""Linear layers of few rows on packed weights, each weight read once from memory.

    y[m, n] = bias[n] + sum_g s[g, n] * sum_(k in g) (q[n, k] - z[g, n]) x[m, k]

Fields of words become floats `OFFSET + F q` with one `lop3` per pair (`packing/kernel.py`), so that a group of 128 is

    s / F * (dot(OFFSET + F q, x) - (OFFSET + F z) * sum_(k in g) x)

and the sum of x comes out of the same tensor cores, as a dot with ones. The weight stands on the left, y^T = w x^T:
there it goes from registers into the product, and the rows of x are the short side, 8 at least.

Kernels differ in how they cut the work. In `_skinny`, for up to 32 rows, the first dimension of all tiles is the
warps': each has a slab and a few rows of the weight of its own and shares x with the warps of the same slab, and at the
end a program adds up what its slabs gave, always in the same order. `_stream` is the same with only as many programs as
run at a time, each with several blocks. `wide.py`, up to 64 rows, is for tensor cores that four warps feed together
(Hopper's), and does without the dot with ones. `tiled.py`, up to 256 rows, scales weights before the product and has
shorter turns, so that several programs fit on a processor: it is the faster one where there are many. `splits` programs
can share a block of rows, and the last of them to arrive adds up what all found (`ending.py`). An FMA kernel for one
row was compiled as well: 5 to 12 instructions per weight, so it is not here.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counters import zero_counters
from ..dispatch import interpreted
from ..packing import PackedWeight
from ..packing.kernel import decode, factor_of, offset_of, params_at, params_of
from .ahead import read_ahead
from .choose import MOST, PROCESSORS, Config, choose
from .ending import finish, rows_of
from .tiled import _tiled, starts_of
from .wide import _wide


@triton.jit
def add_turn(
    total, turn, x_ptr, words_ptr, extra_ptr, params_ptr, warp, row, m, M, N, K, slabs,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ACROSS: tl.constexpr, WARPS: tl.constexpr, USE_ASM: tl.constexpr,
):  # fmt: skip
    """`total` and what the ACROSS slabs of a turn add to it."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    OFFSET: tl.constexpr = offset_of(DTYPE)
    WORDS: tl.constexpr = 128 if BITS == 4 else 64
    WIDE: tl.constexpr = 128 if BITS == 4 else (32 if BITS == 3 else 64)
    HALVES: tl.constexpr = 2 if BITS == 3 else 1
    PLANES: tl.constexpr = 1 if BITS == 4 else 2
    # Warps stand in ACROSS slabs and DOWN blocks of EACH rows.
    DOWN: tl.constexpr = WARPS // ACROSS
    EACH: tl.constexpr = BLOCK // DOWN
    column = tl.arange(0, WIDE)
    far = row.to(tl.int64)[:, :, None] * slabs
    words_at = words_ptr + far * WORDS + column[None, None, :]
    extra_at = extra_ptr + far * 32 + column[None, None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :, None] * K + column[None, None, :]
    ones = tl.full([WARPS, 16, WIDE], 1.0, DTYPE)
    inside = tl.minimum(turn * ACROSS + warp // DOWN, slabs - 1)
    words = tl.load(words_at + (inside * WORDS)[:, None, None])
    other = words
    extra = words
    if BITS == 3:
        other = tl.load(words_at + (inside * WORDS)[:, None, None] + 32)
        extra = tl.load(extra_at + (inside * 32)[:, None, None])
    slab = turn * ACROSS + tl.arange(0, ACROSS)
    real = (m < M)[None, :, None] & (slab < slabs)[:, None, None]
    for tile in tl.static_range(4):
        scale, zero = params_at(params_ptr, (inside[:, None] * 4 + tile) * N + row, FULL, HALF)
        sums = tl.zeros([WARPS, 16, ROWS], tl.float32)
        dots = tl.zeros([WARPS, EACH, ROWS], tl.float32)
        for part in tl.static_range(PLANES * HALVES):
            k = slab * 512 + tile * 128 + part * WIDE
            if WHOLE:
                x = tl.load(x_at + k[:, None, None], mask=real, other=0.0)
            else:
                inner = (k[:, None] + column[None, :] < K)[:, None, :]
                x = tl.load(x_at + k[:, None, None], mask=real & inner, other=0.0)
            x = tl.permute(x, (0, 2, 1))
            if DOWN > 1:
                x = tl.reshape(x, [ACROSS, 1, WIDE, ROWS])
                x = tl.reshape(tl.broadcast_to(x, [ACROSS, DOWN, WIDE, ROWS]), [WARPS, WIDE, ROWS])
            sums = tl.dot(ones, x, sums, input_precision="ieee")
            if part % HALVES == 0:
                fields = decode(words, extra, BITS, tile * PLANES + part // HALVES, 0, DTYPE, USE_ASM)
            else:
                fields = decode(other, extra, BITS, tile * PLANES + part // HALVES, 1, DTYPE, USE_ASM)
            dots = tl.dot(fields, x, dots, input_precision="ieee")
        factor = factor_of(BITS, tile * PLANES)
        same = tl.broadcast_to(tl.reshape(sums, [WARPS, 1, 16, ROWS]), [WARPS, EACH // 16, 16, ROWS])
        dots -= tl.reshape(same, [WARPS, EACH, ROWS]) * (OFFSET + factor * zero)[:, :, None]
        total += dots * (scale * (1.0 / factor))[:, :, None]
    return total


@triton.jit
def over_warps(
    total, BLOCK: tl.constexpr, ACROSS: tl.constexpr, DOWN: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr
):
    """`(BLOCK, ROWS)` of what each warp found."""
    if ACROSS > 1:
        y = tl.reshape(tl.sum(tl.reshape(total, [ACROSS, DOWN, EACH, ROWS]), 0), [BLOCK, ROWS])
    else:
        y = tl.reshape(total, [BLOCK, ROWS])
    return y


@triton.jit(do_not_specialize=["M", "slabs", "turns", "splits", "ahead"])
def _skinny(
    x_ptr, words_ptr, extra_ptr, params_ptr, bias_ptr, y_ptr, partial_ptr, seen_ptr,
    M, N, K, slabs, turns, splits, ahead,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACROSS: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    PARTIAL: tl.constexpr, PDL: tl.constexpr, USE_ASM: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    # Warps stand in ACROSS slabs and DOWN blocks of EACH rows.
    DOWN: tl.constexpr = WARPS // ACROSS
    EACH: tl.constexpr = BLOCK // DOWN
    split = tl.program_id(1)
    warp = tl.arange(0, WARPS)
    block = tl.program_id(0)
    inside = (warp % DOWN)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    row = tl.minimum(rows_of(block, inside, N, BLOCK, GATED), N - 1)
    m = tl.arange(0, ROWS)
    if PDL:
        for turn in range(split * turns, split * turns + tl.minimum(turns, ahead)):
            slab = tl.minimum(turn * ACROSS + warp // DOWN, slabs - 1)[:, None]
            read_ahead(words_ptr, extra_ptr, params_ptr, row, slab, N, slabs, BITS, FULL)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros([WARPS, EACH, ROWS], tl.float32)
    for turn in tl.range(split * turns, split * turns + turns, num_stages=STAGES):
        total = add_turn(
            total, turn, x_ptr, words_ptr, extra_ptr, params_ptr, warp, row, m, M, N, K, slabs,
            BITS, FULL, HALF, WHOLE, ROWS, BLOCK, ACROSS, WARPS, USE_ASM,
        )  # fmt: skip
    y = over_warps(total, BLOCK, ACROSS, DOWN, EACH, ROWS)
    finish(y, y_ptr, partial_ptr, seen_ptr, bias_ptr, block, split, splits, m, M, N, BLOCK, HAS_BIAS, PARTIAL, GATED)


@triton.jit(do_not_specialize=["M", "slabs", "turns", "splits", "ahead"])
def _stream(
    x_ptr, words_ptr, extra_ptr, params_ptr, bias_ptr, y_ptr, partial_ptr, seen_ptr,
    M, N, K, slabs, turns, splits, ahead,
    BITS: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACROSS: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    PARTIAL: tl.constexpr, PDL: tl.constexpr, USE_ASM: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    # Warps stand in ACROSS slabs and DOWN blocks of EACH rows.
    DOWN: tl.constexpr = WARPS // ACROSS
    EACH: tl.constexpr = BLOCK // DOWN
    first = tl.program_id(0)
    blocks = tl.cdiv(N, BLOCK)
    if GATED:
        blocks = tl.cdiv(N // 2, BLOCK // 2)
    programs = tl.num_programs(0)
    warp = tl.arange(0, WARPS)
    m = tl.arange(0, ROWS)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros([WARPS, EACH, ROWS], tl.float32)
    # One loop over the turns of all blocks of a program, so that weights of the next block arrive while one ends.
    for step in tl.range(0, tl.cdiv(blocks - first, programs) * turns, num_stages=STAGES):
        block = first + step // turns * programs
        turn = step % turns
        inside = (warp % DOWN)[:, None] * EACH + tl.arange(0, EACH)[None, :]
        row = tl.minimum(rows_of(block, inside, N, BLOCK, GATED), N - 1)
        total = add_turn(
            total, turn, x_ptr, words_ptr, extra_ptr, params_ptr, warp, row, m, M, N, K, slabs,
            BITS, FULL, HALF, WHOLE, ROWS, BLOCK, ACROSS, WARPS, USE_ASM,
        )  # fmt: skip
        if turn == turns - 1:
            y = over_warps(total, BLOCK, ACROSS, DOWN, EACH, ROWS)
            finish(y, y_ptr, partial_ptr, seen_ptr, bias_ptr, block, 0, 1, m, M, N, BLOCK, HAS_BIAS, False, GATED)
            total = tl.zeros([WARPS, EACH, ROWS], tl.float32)


KERNELS = {"skinny": _skinny, "stream": _stream, "wide": _wide, "tiled": _tiled}

ROUNDING = ("wide", "tiled")
"""Variants that take zero points off codes, or scale them, in the type of x."""


def packed_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, config: Config | None = None, *, gated: bool = False
) -> Tensor:
    """See `packed_linear` and `packed_swiglu` (`gated`) of the package.

    bfloat16 or float16 (float32 by the interpreter); at most 64 rows, but for "tiled".
    """
    out, width = weight.out_features, weight.in_features
    flat = x.reshape(-1, width).contiguous()
    rows = flat.shape[0]
    y = torch.empty((rows, out // 2 if gated else out), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y.view(*x.shape[:-1], y.shape[-1])
    if config is None:
        config = choose(rows, out, width, weight.bits, x.device)
    params, full, half = params_of(weight)
    slabs = weight.padded // 512
    turns = triton.cdiv(slabs, config.slabs * config.splits)
    splits = triton.cdiv(slabs, config.slabs * turns)
    blocks = triton.cdiv(y.shape[1], config.block // 2 if gated else config.block)
    grid: tuple[int, ...] = (blocks, splits)
    if config.variant == "stream":
        turns, splits = triton.cdiv(slabs, config.across), 1
        grid = (min(blocks, config.splits * PROCESSORS), 1)
    options: dict[str, Any] = {"launch_pdl": True} if config.pdl else {}
    at_once = max(8, triton.next_power_of_2(rows))
    if config.variant == "tiled":
        at_once = min(MOST, at_once)
        grid = (blocks, splits, triton.cdiv(rows, at_once))
        options |= {"starts_ptr": starts_of(x.device), "TILES": config.across}
    else:
        options["ACROSS"] = config.across
    partial, seen = y, y
    if splits > 1:
        partial = torch.empty((splits, rows, out), dtype=torch.float32, device=x.device)
        seen = zero_counters(x.device, blocks * triton.cdiv(rows, at_once))
    kernel = KERNELS[config.variant]
    if config.variant in ROUNDING and not holds(x.dtype, weight.params.dtype):
        raise ValueError(
            f"'{config.variant}' takes zero points off in {x.dtype}, which does not hold {weight.params.dtype}"
        )
    with torch.cuda.device_of(x):
        kernel[grid](
            flat, weight.words, weight.words if weight.extra is None else weight.extra, params,
            flat if bias is None else bias, y, partial, seen, rows, out, width, slabs, turns, splits, config.ahead,
            BITS=weight.bits, FULL=full, HALF=half, HAS_BIAS=bias is not None, WHOLE=width % 512 == 0,
            ROWS=at_once, BLOCK=config.block, WARPS=config.warps,
            STAGES=config.stages, PARTIAL=splits > 1, PDL=config.pdl, USE_ASM=not interpreted(), GATED=gated,
            num_warps=config.warps, num_stages=config.stages, **options,
        )  # fmt: skip
    return y.view(*x.shape[:-1], y.shape[-1])


def holds(dtype: torch.dtype, kept: torch.dtype) -> bool:
    """Whether the type of x holds zero points of a type, so that they can be taken off codes in it."""
    return kept in (dtype, torch.bfloat16) or dtype == torch.float32
