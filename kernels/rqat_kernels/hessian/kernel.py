"""`H[i, j] += sum_t x[t, i] x[t, j]` for `i <= j`, on matrix units: 16-bit inputs, float32 sums.

A program owns one tile of H that touches the upper triangle and a share of the tokens. Where there are too few tiles to
fill the GPU, tokens are split: every share's sum goes to a tile of its own, and a second kernel adds those in order, so
that two runs give the same bits.

Matrix units cut off what lies behind a sum's last bits, always downwards, so a sum that went on from the running total
would lose more with every call. Sums on matrix units begin with 0 and run over `LONGEST` tokens at most; they are then
added to H in float32, rounded to nearest.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import measured

FEWEST_TOKENS = 1024
"""Tokens per share at least: less does not pay for the second kernel."""

MOST_SHARES = 8

LONGEST = 16384
"""Tokens that are added up on matrix units at most: they lose 1.3e-4 of a sum of squares by then, at most."""

SUPER_ROWS, SUPER_COLUMNS = 2048, 2048
"""Tiles are walked square by square of this size: programs that run together then read the same inputs."""


@dataclass(frozen=True)
class Config:
    """Tile `(rows, columns)` of H, tokens per step of the sum, and launch parameters."""

    rows: int = 128
    columns: int = 256
    tokens: int = 64
    warps: int = 8
    stages: int = 4


@triton.jit
def gram_kernel(
    x,
    out,
    tiles,
    tokens,
    width,
    share,
    stride_x,
    stride_share,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    EVEN: tl.constexpr,
    ADD: tl.constexpr,
):
    """One tile of `x^T x` over one share of the tokens; added to `out`, or written to that share's part of it."""
    tile, part = tl.program_id(0), tl.program_id(1)
    i = tl.load(tiles + 2 * tile) * ROWS + tl.arange(0, ROWS)
    j = tl.load(tiles + 2 * tile + 1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = part * share
    end = tl.minimum(begin + share, tokens)
    t = tl.arange(0, TOKENS)
    # One 64-bit address for all, and 32-bit distances from it: registers are what this tile is short of.
    rows = x + begin.to(tl.int64) * stride_x
    left, right = t[:, None] * stride_x + i[None, :], t[:, None] * stride_x + j[None, :]
    where = i[:, None] * width + j[None, :]
    inside = (i < width)[:, None] & (j < width)[None, :]
    out += part.to(tl.int64) * stride_share
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(begin, end, TOKENS):
        if EVEN:
            a = tl.load(rows + left)
            b = tl.load(rows + right)
        else:
            seen = (start + t < end)[:, None]
            a = tl.load(rows + left, mask=seen & (i < width)[None, :], other=0.0)
            b = tl.load(rows + right, mask=seen & (j < width)[None, :], other=0.0)
        total = tl.dot(tl.trans(a), b, total, input_precision="ieee")
        rows += TOKENS * stride_x
    if ADD:
        # No registers are left for what would be loaded. A tile has one owner, so the order of sums is fixed.
        tl.atomic_add(out + where, total, mask=inside, sem="relaxed")
    else:
        tl.store(out + where, total, mask=inside)


@triton.jit
def fold_kernel(
    hessian, parts, tiles, width, shares, stride_share, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICE: tl.constexpr
):
    """Adds the shares' sums of `SLICE` rows of a tile to H, first share first."""
    tile, slice_ = tl.program_id(0), tl.program_id(1)
    i = tl.load(tiles + 2 * tile) * ROWS + slice_ * SLICE + tl.arange(0, SLICE)
    j = tl.load(tiles + 2 * tile + 1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (i < width)[:, None] & (j < width)[None, :]
    where = i[:, None].to(tl.int64) * width + j[None, :]
    total = tl.load(hessian + where, mask=inside, other=0.0)
    for _ in range(shares):
        total += tl.load(parts + where, mask=inside, other=0.0)
        parts += stride_share
    tl.store(hessian + where, total, mask=inside)


def add_gram(hessian: Tensor, x: Tensor, *, config: Config | None = None, shares: int | None = None) -> None:
    """Like `reference.add_gram`; `x (T, I)` is bfloat16 or float16.

    `config` and `shares` are chosen from the shape when left out; `measured("hessian", device)` may hold the fields of
    a `Config` under "wide" (I >= 2048) and "narrow".
    """
    tokens, width = x.shape
    if not tokens or not width:
        return
    if not hessian.is_contiguous():
        raise ValueError("add_gram: the Hessian must be contiguous")
    if x.stride(1) != 1:
        x = x.contiguous()
    config = config or _config(width, x.device)
    order = _tiles(width, config, x.device)
    if shares is None:
        shares = _shares(order.shape[0], tokens, x.device)
    if tokens > shares * LONGEST:
        for piece in x.split(shares * LONGEST):
            add_gram(hessian, piece, config=config, shares=shares)
        return
    share = triton.cdiv(triton.cdiv(tokens, shares), config.tokens) * config.tokens
    shares = triton.cdiv(tokens, share)
    even = tokens % config.tokens == 0 and width % config.rows == 0 and width % config.columns == 0
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        out = hessian if shares == 1 else torch.empty((shares, width, width), dtype=torch.float32, device=x.device)
        gram_kernel[(order.shape[0], shares)](
            x,
            out,
            order,
            tokens,
            width,
            share,
            x.stride(0),
            width * width,
            ROWS=config.rows,
            COLUMNS=config.columns,
            TOKENS=config.tokens,
            EVEN=even,
            ADD=shares == 1,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        if shares > 1:
            slice_ = 16
            fold_kernel[(order.shape[0], config.rows // slice_)](
                hessian,
                out,
                order,
                width,
                shares,
                width * width,
                ROWS=config.rows,
                COLUMNS=config.columns,
                SLICE=slice_,
            )


def _config(width: int, device: torch.device) -> Config:
    wide = width >= 2048
    # Ampere's matrix instructions take their inputs from registers, and a tile of 256 columns leaves none for them.
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    chosen = {} if wide and hopper else {"columns": 128}
    return Config(**chosen | measured("hessian", device).get("wide" if wide else "narrow", {}))


@cache
def _tiles(width: int, config: Config, device: torch.device) -> Tensor:
    """Places `(N, 2)` int32 of the tiles that touch the upper triangle, in the order in which they are computed."""
    rows, columns = triton.cdiv(width, config.rows), triton.cdiv(width, config.columns)
    step_i, step_j = max(1, SUPER_ROWS // config.rows), max(1, SUPER_COLUMNS // config.columns)
    places = [
        (i, j)
        for first in range(0, rows, step_i)
        for second in range(0, columns, step_j)
        for i in range(first, min(first + step_i, rows))
        for j in range(second, min(second + step_j, columns))
        if i * config.rows < (j + 1) * config.columns
    ]
    return torch.tensor(places, dtype=torch.int32, device=device)


def _shares(tiles: int, tokens: int, device: torch.device) -> int:
    """Into how many shares tokens are split: the fewest rounds over the GPU, a share's own cost (3 %) counted."""
    if device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    most = max(1, min(MOST_SHARES, tokens // FEWEST_TOKENS))
    return min(range(1, most + 1), key=lambda n: triton.cdiv(tiles * n, processors) / n * (1 + 0.03 * (n - 1)))
