"""The beginning and the end of a decoding step in Triton: rows of tables by token and position, and the next token.

Plain torch takes ten launches for the two, none of which overlaps another; formulas and shapes as in `reference.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counters import zero_counters
from .launch import early, on_device, options

PIECE = 4096
"""Logits of a program."""


@triton.jit
def look_up_kernel(
    tokens, slots, positions, embeddings, cos, sin, x, cos_out, sin_out, places, width, angles,
    WIDTH: tl.constexpr, ANGLES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A row per program; `places` is the length of a row of `tokens`."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    token = tl.load(tokens + tl.load(slots + row).to(tl.int64) * places + position)
    i = tl.arange(0, WIDTH)
    tl.store(x + row * width + i, tl.load(embeddings + token * width + i, mask=i < width), mask=i < width)
    a = tl.arange(0, ANGLES)
    tl.store(cos_out + row * angles + a, tl.load(cos + position * angles + a, mask=a < angles), mask=a < angles)
    tl.store(sin_out + row * angles + a, tl.load(sin + position * angles + a, mask=a < angles), mask=a < angles)


@triton.jit
def hash32(x):
    """lowbias32; `x` is uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def uniform(seed, position):
    """See `reference.uniform`; of one seed (int64) and one position."""
    bits = hash32(seed.to(tl.uint32) + position.to(tl.uint32) * 0x9E3779B9)
    bits = hash32(bits ^ (seed >> 32).to(tl.uint32))
    return ((bits >> 8).to(tl.float32) + 0.5) * (1.0 / 16777216)


@triton.jit
def scores_of(logits, row, i, vocabulary, temperature, floor, SAMPLE: tl.constexpr, FLOOR: tl.constexpr):
    """Logits at places `i` of a row, at the temperature, in float32, and which may be drawn; -inf behind the last."""
    found = tl.load(logits + row * vocabulary + i, mask=i < vocabulary, other=float("-inf")).to(tl.float32)
    drawn = found > float("-inf")
    if FLOOR:
        drawn = found >= tl.load(floor + row)
    if SAMPLE:
        found = found / tl.load(temperature)
    return found, drawn


@triton.jit
def append_kernel(
    logits, temperature, floor, seeds, tokens, logprobs, told, slots, positions, live, limits, stops,
    best, where, sums, kept, seen, vocabulary, places, pieces, spare, ends,
    PIECE: tl.constexpr, PIECES: tl.constexpr, ENDS: tl.constexpr,
    SAMPLE: tl.constexpr, FLOOR: tl.constexpr, LIKELY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A piece of a row of logits per program; the last one of a row to arrive looks at what all of them found.

    Of a piece, all `(B, pieces)`: `best` float32, the largest score, and `where` int32, the first place it has; `sums`
    float32, of `exp(score - best)`, and `kept`, the same of what reaches the floor. Drawing reads logits once, and one
    piece, the one in which the token lies, a second time.
    """
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    t = tl.arange(0, PIECE)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    found, drawn = scores_of(logits, row, piece * PIECE + t, vocabulary, temperature, floor, SAMPLE, FLOOR)
    mine = row * pieces + piece
    if SAMPLE:
        largest = tl.max(found, 0)
    else:
        largest, place = tl.max(found, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(where + mine, piece * PIECE + place)
    tl.store(best + mine, largest)
    if SAMPLE or LIKELY:
        weights = tl.where(found > float("-inf"), tl.exp(found - largest), 0.0)
        tl.store(sums + mine, tl.sum(weights, 0))
        if FLOOR:
            tl.store(kept + mine, tl.sum(tl.where(drawn, weights, 0.0), 0))
    tl.debug_barrier()
    if tl.atomic_add(seen + row, 1, sem="acq_rel") == pieces - 1:
        tl.store(seen + row, 0)
        p = tl.arange(0, PIECES)
        there = p < pieces
        each = tl.load(best + row * pieces + p, mask=there, other=float("-inf"), cache_modifier=".cg")
        position = tl.load(positions + row) + tl.load(live + row)
        if SAMPLE:
            top = tl.max(each, 0)
            scale = tl.where(each > float("-inf"), tl.exp(each - top), 0.0)
            total = tl.sum(tl.load(sums + row * pieces + p, mask=there, other=0.0, cache_modifier=".cg") * scale, 0)
            source = kept if FLOOR else sums
            parts = tl.load(source + row * pieces + p, mask=there, other=0.0, cache_modifier=".cg") * scale
            target = uniform(tl.load(seeds + row), position) * tl.sum(parts, 0)
            # Sums in another order may differ in their last bits: what lies behind the last chance is the last chance.
            chosen = tl.sum((tl.cumsum(parts, 0) <= target).to(tl.int32), 0)
            chosen = tl.minimum(chosen, tl.max(tl.where(parts > 0, p, 0), 0))
            before = tl.sum(tl.where(p < chosen, parts, 0.0), 0)
            place = chosen * PIECE + t
            again, drawn = scores_of(logits, row, place, vocabulary, temperature, floor, SAMPLE, FLOOR)
            weights = tl.where(drawn, tl.exp(again - top), 0.0)
            inside = tl.sum((before + tl.cumsum(weights, 0) <= target).to(tl.int32), 0)
            inside = tl.minimum(inside, tl.max(tl.where(weights > 0, t, 0), 0))
            token = chosen * PIECE + inside
            score = tl.sum(tl.where(t == inside, again, 0.0), 0)
        else:
            score, winner = tl.max(each, 0, return_indices=True, return_indices_tie_break_left=True)
            token = tl.load(where + row * pieces + winner, cache_modifier=".cg")
            if LIKELY:
                top = score
                scale = tl.where(each > float("-inf"), tl.exp(each - top), 0.0)
                total = tl.sum(tl.load(sums + row * pieces + p, mask=there, other=0.0, cache_modifier=".cg") * scale, 0)
        token = tl.minimum(token, vocabulary - 1)  # logits that are no numbers must not lead out of the embeddings
        slot = tl.load(slots + row).to(tl.int64)
        at = slot * places + position
        tl.store(tokens + at, token.to(tl.int64))
        if LIKELY:
            tl.store(logprobs + at, score - top - tl.log(total))
        e = tl.arange(0, ENDS)
        stop = tl.max((tl.load(stops + e, mask=e < ends, other=-1) == token).to(tl.int32), 0)
        over = (stop > 0) | (position >= tl.load(limits + row))
        tl.store(told + slot, tl.where(over, -position, position).to(tl.int32))
        ended = over & (tl.load(live + row) > 0)
        tl.store(positions + row, tl.where(ended, 0, position))
        if ended:
            tl.store(slots + row, spare)
            tl.store(live + row, 0)


def look_up(
    tokens: Tensor, slots: Tensor, positions: Tensor, embeddings: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.look_up`; all tables are contiguous."""
    rows, width, angles = len(slots), embeddings.shape[1], cos.shape[1]
    x, cos_out, sin_out = embeddings.new_empty(rows, width), cos.new_empty(rows, angles), sin.new_empty(rows, angles)
    if rows:
        with on_device(tokens):
            look_up_kernel[(rows,)](
                tokens, slots, positions, embeddings, cos, sin, x, cos_out, sin_out, tokens.shape[1], width, angles,
                WIDTH=triton.next_power_of_2(width), ANGLES=triton.next_power_of_2(angles), PDL=early(tokens.device),
                num_warps=4, **options(tokens.device),
            )  # fmt: skip
    return x, cos_out, sin_out


def append(
    logits: Tensor,
    temperature: Tensor | None,
    floor: Tensor | None,
    seeds: Tensor,
    tokens: Tensor,
    logprobs: Tensor | None,
    told: Tensor,
    slots: Tensor,
    positions: Tensor,
    live: Tensor,
    limits: Tensor,
    stops: Tensor,
) -> None:
    """See `reference.append`; all are contiguous."""
    rows, vocabulary = logits.shape
    if rows == 0:
        return
    pieces = triton.cdiv(vocabulary, PIECE)
    best, sums, kept = (torch.empty(rows, pieces, dtype=torch.float32, device=logits.device) for _ in range(3))
    where = torch.empty(rows, pieces, dtype=torch.int32, device=logits.device)
    with on_device(logits):
        append_kernel[(rows, pieces)](
            logits,
            best if temperature is None else temperature,
            best if floor is None else floor,
            seeds, tokens,
            best if logprobs is None else logprobs,
            told, slots, positions, live, limits, stops,
            best, where, sums, kept, zero_counters(logits.device, rows),
            vocabulary, tokens.shape[1], pieces, len(tokens) - 1, len(stops),
            PIECE=PIECE, PIECES=triton.next_power_of_2(pieces), ENDS=triton.next_power_of_2(max(1, len(stops))),
            SAMPLE=temperature is not None, FLOOR=floor is not None, LIKELY=logprobs is not None,
            PDL=early(logits.device), num_warps=4, **options(logits.device),
        )  # fmt: skip
