"""Attention of one new token per row over a cache with gaps, in Triton; formula and shapes as in `reference.attend`.

One launch does all that lies between the projections. A program works on one row, one key head and one part of the
positions (split-KV, arXiv 2311.01282): the query heads that share the key head are the rows of its matrix products, and
every program norms and rotates them again, which is less than a launch. The new token is not read back from the cache:
the program of the first part computes its key, appends it, and begins its sums with it.

With several parts, each leaves its share and the logarithm of its sum of exponentials; the last program to arrive adds
them up in fixed order, so that results do not depend on timing.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counters import zero_counters
from ..prefetch import to_l2
from .launch import early, on_device, options

TILE = 64
"""Positions of one turn of the loop."""

WARPS = 4

STAGES = 2
"""Turns whose keys and values are on their way at once: so little shared memory that 64 rows of 8 key heads all run at
a time. `kernels/bench/tune_attend.py` compares."""

MOST_SPLITS = 32


@triton.jit
def rotated(one, two, weight_one, weight_two, cos, sin, width, eps, HAS_NORM: tl.constexpr):
    """The halves of heads `(R, D / 2)`, normed and turned; rounded where the reference rounds.

    Halves are kept apart everywhere: putting them together would send them through shared memory.
    """
    a = one.to(tl.float32)
    b = two.to(tl.float32)
    if HAS_NORM:
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / width + eps)[:, None]
        a = ((a * factor).to(one.dtype).to(tl.float32) * weight_one).to(one.dtype).to(tl.float32)
        b = ((b * factor).to(one.dtype).to(tl.float32) * weight_two).to(one.dtype).to(tl.float32)
    return (a * cos - b * sin).to(one.dtype), (b * cos + a * sin).to(one.dtype)


@triton.jit
def parts_of(end, window, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """The first position that the token at `end` sees, and how many each part has; whole tiles."""
    start = end * 0
    if window > 0:
        start = tl.maximum(end + 1 - window, 0)
    return start, tl.maximum(tl.cdiv(tl.cdiv(end - start, SPLITS), TILE), 1) * TILE


@triton.jit
def read_ahead(
    keys, values, base, start, stop, width, TILE: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Sends the first tile of a part, positions `start` to `stop` behind `base`, on its way to L2.

    All but the new token was written long ago.
    """
    LINE: tl.constexpr = 1024 // keys.dtype.element_ty.primitive_bitwidth
    place = tl.minimum(start + tl.arange(0, TILE), tl.maximum(stop - 1, 0)).to(tl.int64)
    line = tl.minimum(tl.arange(0, max(1, WIDTH // LINE)) * LINE, width - 1)
    at = base + place[:, None] * width + line[None, :]
    for which in tl.static_range(2):
        pointer = keys + at if which == 0 else values + at
        to_l2(pointer)


@triton.jit
def attend_kernel(
    qkv, q_weight, k_weight, cos_at, sin_at, keys, values, slots, positions, out, parts, sums, seen,
    heads, key_heads, capacity, width, scale, eps, window,
    GROUP: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
    SPLITS: tl.constexpr, HAS_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Online softmax (arXiv 1805.02867) in base 2 over the positions of one part.

    parts `(B, H, SPLITS, D)` float32, sums `(B, H, SPLITS)` float32, log2 of the sums, and seen `(B, K)`, zeros, are
    used when there are several parts.
    """
    row = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1)
    part = tl.program_id(2)
    HALF: tl.constexpr = WIDTH // 2
    m = tl.arange(0, ROWS)
    half = width // 2
    h = tl.arange(0, HALF)[None, :]
    near = h < half
    # Rows are the query heads and, behind them, the key head.
    is_key = (m == GROUP)[:, None]
    w_one = tl.full((1, HALF), 1.0, tl.float32)
    w_two = w_one
    if HAS_NORM:
        # Weights do not depend on the kernel before, so they need not wait for it.
        w_one = tl.load(tl.where(is_key, k_weight, q_weight) + h, mask=near, other=0.0).to(tl.float32)
        w_two = tl.load(tl.where(is_key, k_weight, q_weight) + half + h, mask=near, other=0.0).to(tl.float32)
    # Nor do the places of the tokens, which are the same for all layers of a step.
    slot = tl.load(slots + row).to(tl.int64)
    end = tl.load(positions + row).to(tl.int32)
    cos = tl.load(cos_at + row * width + h, mask=near, other=0.0).to(tl.float32)
    sin = tl.load(sin_at + row * width + h, mask=near, other=0.0).to(tl.float32)
    start, span = parts_of(end, window, TILE, SPLITS)
    used = tl.maximum(tl.cdiv(end - start, span), 1)
    if part >= used:
        return
    start += part * span
    stop = tl.minimum(start + span, end)
    base = (slot * key_heads + key_head) * capacity * width
    if PDL:
        read_ahead(keys, values, base, start, stop, width, TILE, WIDTH)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    d = tl.arange(0, WIDTH)[None, :]
    real = d < width
    source = qkv + row * (heads + 2 * key_heads) * width
    head = (key_head * GROUP + m)[:, None]
    at = source + tl.where(is_key, heads + key_head, head) * width + h
    used_row = (m <= GROUP)[:, None] & near
    q_one = tl.load(at, mask=used_row, other=0.0)
    q_two = tl.load(at + half, mask=used_row, other=0.0)
    first = part == 0
    v = tl.load(source + (heads + key_heads + key_head) * width + d, mask=real & first, other=0.0)
    q_one, q_two = rotated(q_one, q_two, w_one, w_two, cos, sin, width, eps, HAS_NORM)

    fresh = base + end.to(tl.int64) * width
    tl.store(keys + fresh + h + tl.zeros_like(head), q_one, mask=is_key & near & first)
    tl.store(keys + fresh + half + h + tl.zeros_like(head), q_two, mask=is_key & near & first)
    tl.store(values + fresh + d, v, mask=real & first)
    a = q_one.to(tl.float32)
    b = q_two.to(tl.float32)
    new_a = tl.sum(tl.where(is_key, a, 0.0), 0)[None, :]
    new_b = tl.sum(tl.where(is_key, b, 0.0), 0)[None, :]
    best = tl.where(first, tl.sum(a * new_a + b * new_b, 1) * scale, float("-inf"))
    total = tl.where(first, tl.full((ROWS,), 1.0, tl.float32), 0.0)
    acc = tl.zeros((ROWS, WIDTH), tl.float32) + v.to(tl.float32)
    t = tl.arange(0, TILE)
    for tile in range(start, stop, TILE):
        place = tile + t
        there = place[:, None] < stop
        offset = base + place[:, None].to(tl.int64) * width
        one = tl.load(keys + offset + h, mask=there & near, other=0.0)
        two = tl.load(keys + offset + half + h, mask=there & near, other=0.0)
        value = tl.load(values + offset + d, mask=there & real, other=0.0)
        score = tl.dot(q_one, tl.trans(one), input_precision="ieee")
        score = tl.dot(q_two, tl.trans(two), score, input_precision="ieee") * scale
        score = tl.where(place[None, :] < stop, score, float("-inf"))
        new = tl.maximum(best, tl.max(score, 1))
        shrink = tl.exp2(best - new)
        p = tl.exp2(score - new[:, None])
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        best = new
    acc = acc / total[:, None]
    mine = (m < GROUP)[:, None] & real
    target = out + (row * heads + head) * width + d
    if SPLITS > 1:  # noqa: SIM102 - known when compiled; the rest is not
        if used > 1:
            place = row * heads + key_head * GROUP + m
            tl.store(parts + (place[:, None] * SPLITS + part) * width + d, acc, mask=mine)
            tl.store(sums + place * SPLITS + part, best + tl.log2(total), mask=m < GROUP)
            # All threads' shares are written before one counts the program; the count orders them for the last one.
            tl.debug_barrier()
            count = seen + row * key_heads + key_head
            if tl.atomic_add(count, 1, sem="acq_rel") == used - 1:
                tl.store(count, 0)
                merge(parts, sums, out, row * heads + key_head * GROUP, used, width, GROUP, HEADS, WIDTH, SPLITS)
            return
    tl.store(target, acc.to(out.dtype.element_ty), mask=mine)


@triton.jit
def merge(
    parts, sums, out, first, used, width,
    GROUP: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """`out = sum_i 2^(sums_i - max) parts_i / sum_i 2^(sums_i - max)` of GROUP heads, over `used` parts.

    A thread has its numbers of all parts, so that nothing is exchanged, and all of them are asked for at once.
    """
    m = tl.arange(0, HEADS)
    d = tl.arange(0, WIDTH)[None, :]
    head = first + m
    mine = m < GROUP
    inside = mine[:, None] & (d < width)
    best = tl.full((HEADS,), float("-inf"), tl.float32)
    for part in tl.static_range(SPLITS):
        found = tl.load(
            sums + head * SPLITS + part, mask=mine & (part < used), other=float("-inf"), cache_modifier=".cg"
        )
        best = tl.maximum(best, found)
    total = tl.zeros((HEADS,), tl.float32)
    acc = tl.zeros((HEADS, WIDTH), tl.float32)
    for part in tl.static_range(SPLITS):
        found = tl.load(
            sums + head * SPLITS + part, mask=mine & (part < used), other=float("-inf"), cache_modifier=".cg"
        )
        share = tl.load(
            parts + (head * SPLITS + part)[:, None] * width + d,
            mask=inside & (part < used),
            other=0.0,
            cache_modifier=".cg",
        )
        weight = tl.exp2(found - best)
        total += weight
        acc += share * weight[:, None]
    tl.store(out + head[:, None] * width + d, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


def attend(
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
    window: int,
) -> Tensor:
    """See `reference.attend`; the cache must be contiguous.

    The launch reads `slots`, `positions`, `cos` and `sin` before the kernel before it has ended, so that one must not
    be what writes them. `qkv` it may write.
    """
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    rows, (_, key_heads, capacity, width) = len(qkv), keys.shape
    heads = qkv.shape[1] // width - 2 * key_heads
    out = qkv.new_empty(rows, heads * width)
    if rows == 0:
        return out
    splits = splits_for(rows * key_heads, capacity, qkv.device)
    parts = sums = seen = out
    if splits > 1:
        parts = qkv.new_empty(rows, heads, splits, width, dtype=torch.float32)
        sums = qkv.new_empty(rows, heads, splits, dtype=torch.float32)
        seen = zero_counters(qkv.device, rows * key_heads)
    group = heads // key_heads
    block = max(32, triton.next_power_of_2(width))  # halves are 16 wide or more in matrix products
    with on_device(qkv):
        attend_kernel[(rows, key_heads, splits)](
            qkv,
            qkv if q_weight is None else q_weight,
            qkv if k_weight is None else k_weight,
            cos,
            sin,
            keys,
            values,
            slots,
            positions,
            out,
            parts,
            sums,
            seen,
            heads,
            key_heads,
            capacity,
            width,
            width**-0.5 * 1.4426950408889634,  # log2(e)
            eps,
            window,
            GROUP=group,
            HEADS=triton.next_power_of_2(group),
            ROWS=max(16, triton.next_power_of_2(group + 1)),
            TILE=TILE,
            WIDTH=block,
            SPLITS=splits,
            HAS_NORM=q_weight is not None,
            PDL=early(qkv.device),
            num_warps=WARPS,
            num_stages=STAGES,
            **options(qkv.device),
        )
    return out


def splits_for(programs: int, capacity: int, device: torch.device) -> int:
    """Parts, a power of two, into which positions are split so that every multiprocessor has work."""
    splits = 1
    while splits < MOST_SPLITS and programs * splits < processors(device) and splits * TILE < capacity:
        splits *= 2
    return splits


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; on the CPU, where the interpreter runs, as many as make small tests split."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16
