"""Attention of one token per row over a cache with gaps, in Triton; formula and shapes as in `reference.attend`.

A program works on one row, one key head and one part of the positions (split-KV, arXiv 2311.01282): the query heads
that share the key head are the rows of its matrix products. With several parts, each leaves its share and the logarithm of
its sum of exponentials, and a second kernel adds them up in fixed order, so that results do not depend on timing.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device

TILE = 64
"""Positions of one turn of the loop."""

MOST_SPLITS = 32


@triton.jit
def attend_kernel(
    query, keys, values, slots, positions, out, sums,
    heads, key_heads, capacity, width, scale, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Online softmax (arXiv 1805.02867) in base 2 over the positions of one part.

    out: `(B, H, D)`, or `(B, H, SPLITS, D)` float32 with `sums (B, H, SPLITS)` float32, log2 of the sum; -inf
    stands for no position.
    """
    row = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1)
    part = tl.program_id(2)
    slot = tl.load(slots + row).to(tl.int64)
    end = tl.load(positions + row).to(tl.int32) + 1
    start = 0
    if window > 0:
        start = tl.maximum(end - window, 0)
    span = tl.cdiv(tl.cdiv(end - start, SPLITS), TILE) * TILE
    start += part * span
    stop = tl.minimum(start + span, end)

    m = tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    t = tl.arange(0, TILE)
    head = key_head * GROUP + m
    q = tl.load(
        query + (row * heads + head[:, None]) * width + d[None, :],
        mask=(m[:, None] < GROUP) & (d[None, :] < width),
        other=0.0,
    )
    base = (slot * key_heads + key_head) * capacity * width
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(start, stop, TILE):
        place = tile + t
        inside = (place[:, None] < stop) & (d[None, :] < width)
        offset = base + place[:, None].to(tl.int64) * width + d[None, :]
        k = tl.load(keys + offset, mask=inside, other=0.0)
        v = tl.load(values + offset, mask=inside, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(place[None, :] < stop, score, float("-inf"))
        new = tl.maximum(best, tl.max(score, 1))
        shrink = tl.exp2(best - new)
        p = tl.exp2(score - new[:, None])
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        best = new
    inside = (m[:, None] < GROUP) & (d[None, :] < width)
    if SPLITS == 1:
        acc = acc / total[:, None]
        tl.store(out + (row * heads + head[:, None]) * width + d[None, :], acc.to(out.dtype.element_ty), mask=inside)
    else:
        place = (row * heads + head) * SPLITS + part
        empty = stop <= start
        acc = acc / tl.where(empty, 1.0, total)[:, None]
        tl.store(out + place[:, None] * width + d[None, :], acc, mask=inside)
        tl.store(sums + place, tl.where(empty, float("-inf"), best + tl.log2(total)), mask=m < GROUP)


@triton.jit
def merge_kernel(parts, sums, out, width, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """`out = sum_i 2^(sums_i - max) parts_i / sum_i 2^(sums_i - max)`; a head of a row per program."""
    head = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, WIDTH)
    weight = tl.load(sums + head * SPLITS + s)
    weight = tl.exp2(weight - tl.max(weight, 0))
    part = tl.load(parts + (head * SPLITS + s[:, None]) * width + d[None, :], mask=d[None, :] < width, other=0.0)
    merged = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + head * width + d, merged.to(out.dtype.element_ty), mask=d < width)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    """See `reference.attend`; the cache must be contiguous."""
    query = query.contiguous()
    rows, heads, width = query.shape
    _, key_heads, capacity, _ = keys.shape
    out = query.new_empty(rows, heads * width)
    if rows == 0:
        return out
    splits = splits_for(rows * key_heads, capacity, query.device)
    alone = splits == 1
    parts = out if alone else query.new_empty(rows, heads, splits, width, dtype=torch.float32)
    sums = out if alone else query.new_empty(rows, heads, splits, dtype=torch.float32)
    group = heads // key_heads
    block = max(16, triton.next_power_of_2(width))
    with on_device(query):
        attend_kernel[(rows, key_heads, splits)](
            query,
            keys,
            values,
            slots,
            positions,
            parts,
            sums,
            heads,
            key_heads,
            capacity,
            width,
            scale * 1.4426950408889634,  # log2(e)
            window,
            GROUP=group,
            ROWS=max(16, triton.next_power_of_2(group)),
            TILE=TILE,
            WIDTH=block,
            SPLITS=splits,
            num_warps=4,
            num_stages=2,
        )
        if not alone:
            merge_kernel[(rows * heads,)](parts, sums, out, width, WIDTH=block, SPLITS=splits, num_warps=2)
    return out


def splits_for(programs: int, capacity: int, device: torch.device) -> int:
    """Parts, a power of two, into which positions are split so that every multiprocessor has work."""
    splits = 1
    while splits < MOST_SPLITS and programs * splits < processors(device) and splits * 2 * TILE <= capacity:
        splits *= 2
    return splits


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; on the CPU, where the interpreter runs, as many as make small tests split."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16
