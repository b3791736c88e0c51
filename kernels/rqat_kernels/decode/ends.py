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
def append_greedy_kernel(
    logits, tokens, slots, positions, advance, best, where, seen, vocabulary, places, pieces,
    PIECE: tl.constexpr, PIECES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A piece of a row of logits per program; the last one of a row to arrive looks at what all of them found.

    best `(B, pieces)` float32 and where `(B, pieces)` int32: the largest logit of a piece, and the first place it has.
    """
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    i = piece * PIECE + tl.arange(0, PIECE)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    found = tl.load(logits + row * vocabulary + i, mask=i < vocabulary, other=float("-inf")).to(tl.float32)
    largest, place = tl.max(found, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best + row * pieces + piece, largest)
    tl.store(where + row * pieces + piece, piece * PIECE + place)
    tl.debug_barrier()
    if tl.atomic_add(seen + row, 1, sem="acq_rel") == pieces - 1:
        tl.store(seen + row, 0)
        p = tl.arange(0, PIECES)
        each = tl.load(best + row * pieces + p, mask=p < pieces, other=float("-inf"), cache_modifier=".cg")
        _, winner = tl.max(each, 0, return_indices=True, return_indices_tie_break_left=True)
        token = tl.load(where + row * pieces + winner, cache_modifier=".cg")
        token = tl.minimum(token, vocabulary - 1)  # logits that are no numbers must not lead out of the embeddings
        position = tl.load(positions + row) + tl.load(advance + row)
        tl.store(tokens + tl.load(slots + row).to(tl.int64) * places + position, token.to(tl.int64))
        tl.store(positions + row, position)


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


def append_greedy(logits: Tensor, tokens: Tensor, slots: Tensor, positions: Tensor, advance: Tensor) -> None:
    """See `reference.append_greedy`; all are contiguous."""
    rows, vocabulary = logits.shape
    if rows == 0:
        return
    pieces = triton.cdiv(vocabulary, PIECE)
    best = torch.empty(rows, pieces, dtype=torch.float32, device=logits.device)
    where = torch.empty(rows, pieces, dtype=torch.int32, device=logits.device)
    with on_device(logits):
        append_greedy_kernel[(rows, pieces)](
            logits, tokens, slots, positions, advance, best, where, zero_counters(logits.device, rows), vocabulary,
            tokens.shape[1], pieces, PIECE=PIECE, PIECES=triton.next_power_of_2(pieces), PDL=early(logits.device),
            num_warps=4, **options(logits.device),
        )  # fmt: skip
