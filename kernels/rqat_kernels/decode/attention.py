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

from ..packed_linear.ending import zero_counters
from .launch import early, on_device, options

TILE = 64
"""Positions of one turn of the loop."""

MOST_SPLITS = 32


@triton.jit
def rotated(one, two, weight_one, weight_two, cos, sin, width, eps, HAS_NORM: tl.constexpr):
    """Heads `one (R, D)`, whose halves change places in `two`, normed and turned; rounded where the reference rounds.

    sin is negative in the first half.
    """
    a = one.to(tl.float32)
    b = two.to(tl.float32)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(a * a, 1) / width + eps)[:, None]
        a = ((a * factor).to(one.dtype).to(tl.float32) * weight_one.to(tl.float32)).to(one.dtype).to(tl.float32)
        b = ((b * factor).to(one.dtype).to(tl.float32) * weight_two.to(tl.float32)).to(one.dtype).to(tl.float32)
    return (a * cos + b * sin).to(one.dtype)


@triton.jit
def attend_kernel(
    qkv, q_weight, k_weight, cos_at, sin_at, keys, values, slots, positions, out, parts, sums, seen,
    heads, key_heads, capacity, width, scale, eps, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    HAS_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Online softmax (arXiv 1805.02867) in base 2 over the positions of one part.

    parts `(B, H, SPLITS, D)` float32, sums `(B, H, SPLITS)` float32, log2 of the sums, and seen `(B, K)`, zeros, are
    used when there are several parts.
    """
    row = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1)
    part = tl.program_id(2)
    m = tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)[None, :]
    half = width // 2
    other = tl.where(d < half, d + half, d - half)
    real = d < width
    w_one = tl.full((1, WIDTH), 1.0, tl.float32)
    w_two = w_one
    v_one = w_one
    v_two = w_one
    if HAS_NORM:
        # Weights do not depend on the kernel before, so they need not wait for it.
        w_one = tl.load(q_weight + d, mask=real, other=0.0).to(tl.float32)
        w_two = tl.load(q_weight + other, mask=real, other=0.0).to(tl.float32)
        v_one = tl.load(k_weight + d, mask=real, other=0.0).to(tl.float32)
        v_two = tl.load(k_weight + other, mask=real, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(slots + row).to(tl.int64)
    end = tl.load(positions + row).to(tl.int32)
    start = 0
    if window > 0:
        start = tl.maximum(end + 1 - window, 0)
    span = tl.maximum(tl.cdiv(tl.cdiv(end - start, SPLITS), TILE), 1) * TILE
    used = tl.maximum(tl.cdiv(end - start, span), 1)
    if part >= used:
        return
    start += part * span
    stop = tl.minimum(start + span, end)

    source = qkv + row * (heads + 2 * key_heads) * width
    head = (key_head * GROUP + m)[:, None]
    mine = (m < GROUP)[:, None] & real
    q = tl.load(source + head * width + d, mask=mine, other=0.0)
    q_other = tl.load(source + head * width + other, mask=mine, other=0.0)
    cos = tl.load(cos_at + row * width + d, mask=real, other=0.0).to(tl.float32)
    sin = tl.load(sin_at + row * width + d, mask=real, other=0.0).to(tl.float32)
    sin = tl.where(d < half, -sin, sin)
    q = rotated(q, q_other, w_one, w_two, cos, sin, width, eps, HAS_NORM)

    base = (slot * key_heads + key_head) * capacity * width
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    if part == 0:
        new_key = source + (heads + key_head) * width
        k = tl.load(new_key + d, mask=real, other=0.0)
        k = rotated(
            k, tl.load(new_key + other, mask=real, other=0.0), v_one, v_two, cos, sin, width, eps, HAS_NORM
        )  # fmt: skip
        v = tl.load(source + (heads + key_heads + key_head) * width + d, mask=real, other=0.0)
        tl.store(keys + base + end.to(tl.int64) * width + d, k, mask=real)
        tl.store(values + base + end.to(tl.int64) * width + d, v, mask=real)
        best = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * scale
        total += 1.0
        acc += v.to(tl.float32)
    t = tl.arange(0, TILE)
    for tile in range(start, stop, TILE):
        place = tile + t
        inside = (place[:, None] < stop) & real
        offset = base + place[:, None].to(tl.int64) * width + d
        key = tl.load(keys + offset, mask=inside, other=0.0)
        value = tl.load(values + offset, mask=inside, other=0.0)
        score = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(place[None, :] < stop, score, float("-inf"))
        new = tl.maximum(best, tl.max(score, 1))
        shrink = tl.exp2(best - new)
        p = tl.exp2(score - new[:, None])
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        best = new
    acc = acc / total[:, None]
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
                merge(parts, sums, out, row * heads + key_head * GROUP, used, width, GROUP, WIDTH, SPLITS)
            return
    tl.store(target, acc.to(out.dtype.element_ty), mask=mine)


@triton.jit
def merge(
    parts, sums, out, first, used, width, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr
):  # fmt: skip
    """`out = sum_i 2^(sums_i - max) parts_i / sum_i 2^(sums_i - max)` of GROUP heads, over `used` parts."""
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, WIDTH)
    for m in tl.static_range(GROUP):
        head = first + m
        weight = tl.load(sums + head * SPLITS + s, mask=s < used, other=float("-inf"), cache_modifier=".cg")
        weight = tl.exp2(weight - tl.max(weight, 0))
        share = tl.load(
            parts + (head * SPLITS + s[:, None]) * width + d[None, :],
            mask=(s < used)[:, None] & (d < width)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        merged = tl.sum(share * weight[:, None], 0) / tl.sum(weight, 0)
        tl.store(out + head * width + d, merged.to(out.dtype.element_ty), mask=d < width)


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
    """See `reference.attend`; the cache must be contiguous."""
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
    block = max(16, triton.next_power_of_2(width))
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
            ROWS=max(16, triton.next_power_of_2(group)),
            TILE=TILE,
            WIDTH=block,
            SPLITS=splits,
            HAS_NORM=q_weight is not None,
            PDL=early(qkv.device),
            num_warps=4,
            num_stages=2,  # so little shared memory that 64 rows of 8 key heads all run at a time
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
