"""Quantized layers in llama.cpp's K types: 256 weights in 16 parts of 16, near the size of the grid but rounded anew.

Q2_K    84 bytes   16 bytes (m << 4 | sc), 64 bytes of codes, float16 d and dmin     w = d sc q - dmin m, q 0 to 3
Q3_K   110 bytes   32 bytes of high bits, 64 of low ones, 12 of scales, float16 d    w = d (sc - 32) q, q -4 to 3

A part's scale is a small multiple of the block's: 4 bits and never negative in Q2_K, 6 bits and of either sign in Q3_K.
So one scale for the whole block (rows, groups of a multiple of 256) is held exactly at 2 bits, and at 3 bits where zero
points are 3 or 4; several scales in a block are held to a few percent. Q3_K has no zero points: what lies beyond -4 to
3 steps (-3 to 4 with the other sign) is reached by a wider step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import rqat

from . import PART, SUPER

if TYPE_CHECKING:
    import torch

AT_ONCE = 1 << 20
"""Weights that are fitted at once: a few arrays of their size in float32 are alive."""

LEVELS = {"Q2_K": range(16), "Q3_K": range(-32, 32)}
"""What a part's scale may be, in steps of the block's."""

REFITS = 2
"""Times that scales are fitted to codes, and codes to scales: the second takes 5 to 15 % of the difference away."""

STRETCHES = (1.0, 1.1, 1.2, 1.25, 4 / 3, 1.4, 1.5, 1.6, 1.75, 2.0, 7 / 3)
"""Steps that are tried for a part of Q3_K, in those of the grid: 7 / 4 and 7 / 3 reach the farthest code."""


def k_blocks(weight: rqat.QuantizedWeight, kind: str) -> np.ndarray:
    """A layer in one of the types above: bytes `(O, I / 256 * bytes of a block)`."""
    rows = max(1, AT_ONCE // weight.codes.shape[1])
    parts = zip(weight.codes.split(rows), weight.zero.split(rows), weight.scale.split(rows), strict=True)
    pack = _q2_k if kind == "Q2_K" else _q3_k
    return np.concatenate([pack(*_in_parts(*each)).reshape(len(each[0]), -1) for each in parts])


def _in_parts(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Codes less zero points `(N, 16, 16)`, zero points and scales `(N, 16)` of blocks of 256; float32."""
    count = codes.shape[1] // scale.shape[1] // PART
    zeros, scales = (
        each.float().repeat_interleave(count, 1).numpy().reshape(-1, SUPER // PART) for each in (zero, scale)
    )
    steps = codes.numpy().astype(np.float32).reshape(len(zeros), -1, PART) - zeros[..., None]
    return steps, zeros, scales


def _q2_k(steps: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    values, q, least = steps * scales[..., None], steps + zeros[..., None], zeros * scales
    for _ in range(REFITS):  # the first time, of the grid's own codes, it is the grid's own scales that are wanted
        norm = (q * q).sum(-1)
        wanted = ((values + least[..., None]) * q).sum(-1)
        d, sc = _fitted(np.divide(wanted, norm, out=np.zeros_like(norm), where=norm > 0), norm, LEVELS["Q2_K"])
        dl = d[:, None] * sc
        dmin, m = _fitted((dl[..., None] * q - values).mean(-1), 1.0, LEVELS["Q2_K"])
        least = dmin[:, None] * m
        q = np.clip(np.rint(_divided(values + least[..., None], dl)), 0, 3)
    nibbles = m.astype(np.uint8) << 4 | sc.astype(np.uint8)
    return np.concatenate([nibbles, _two_bits(q.astype(np.uint8)), _half(d), _half(dmin)], -1)


def _q3_k(steps: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    best, stretch = np.full(scales.shape, np.inf, np.float32), np.ones_like(scales)
    for each in (sign * size for size in STRETCHES for sign in (1.0, -1.0)):
        error = ((np.clip(np.rint(steps / each), -4, 3) * each - steps) ** 2).sum(-1)
        stretch, best = np.where(error < best, each, stretch), np.minimum(error, best)
    weights = (steps / stretch[..., None]) ** 2
    d, sc = _fitted(scales * stretch, weights.sum(-1) + 1e-3, LEVELS["Q3_K"])
    values = steps * scales[..., None]
    q = (np.clip(np.rint(_divided(values, d[:, None] * sc)), -4, 3) + 4).astype(np.uint8)
    bits = (q >> 2).reshape(-1, 8, 32)
    high = np.bitwise_or.reduce(bits << np.arange(8, dtype=np.uint8)[:, None], 1)
    six = (sc + 32).astype(np.uint8)
    top = (six >> 4).reshape(-1, 4, 4) << (2 * np.arange(4, dtype=np.uint8))[:, None]
    packed = [(six[:, :8] & 15) | (six[:, 8:] & 15) << 4, np.bitwise_or.reduce(top, 1)]
    return np.concatenate([high, _two_bits(q & 3), *packed, _half(d)], -1)


def _fitted(wanted: np.ndarray, weights: np.ndarray | float, levels: range) -> tuple[np.ndarray, np.ndarray]:
    """`d (N,)`, which float16 holds, and `k (N, 16)` of `levels` with `d * k` near `wanted (N, 16)` by least squares.

    Every level is tried for the largest value of a block, then `d` is refitted to the levels that this gives. Few
    levels come first: of equally good ones that is the one whose `d` float16 rounds the least.
    """
    largest = np.take_along_axis(wanted, np.abs(wanted).argmax(-1)[:, None], -1)[:, 0]
    best = np.full(len(wanted), np.inf, np.float32)
    found, chosen = np.zeros(len(wanted), np.float32), np.zeros_like(wanted)
    for level in sorted((level for level in levels if level), key=abs):
        k = _nearest(wanted, largest / level, levels)
        norm = (weights * k * k).sum(-1)
        d = np.divide((weights * wanted * k).sum(-1), norm, out=np.zeros_like(best), where=norm > 0)
        d = d.astype(np.float16).astype(np.float32)
        k = _nearest(wanted, d, levels)
        error = (weights * (wanted - d[:, None] * k) ** 2).sum(-1)
        better = error < best
        best = np.where(better, error, best)
        found, chosen = np.where(better, d, found), np.where(better[:, None], k, chosen)
    return found, chosen


def _nearest(wanted: np.ndarray, d: np.ndarray, levels: range) -> np.ndarray:
    return np.clip(np.rint(_divided(wanted, d)), levels[0], levels[-1])


def _divided(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Over one axis more; 0 where a scale is 0."""
    by = np.broadcast_to(by[..., None], values.shape)
    return np.divide(values, by, out=np.zeros_like(values), where=by != 0)


def _two_bits(q: np.ndarray) -> np.ndarray:
    """Codes below 4 of blocks, four to a byte: 32 neighbours lie in the same bits of 32 bytes."""
    shifts = (2 * np.arange(4, dtype=np.uint8))[:, None]
    return np.bitwise_or.reduce(q.reshape(len(q), 2, 4, 32) << shifts, 2).reshape(len(q), -1)


def _half(d: np.ndarray) -> np.ndarray:
    return d.astype(np.float16)[:, None].view(np.uint8)
