"""Quantized layers in blocks of GGUF: bytes `(O, I / 32 * bytes of a block)`.

Q4_0   18 bytes   float16 d, 16 bytes                w = (q - 8) d; low halves of the bytes: weights 0 to 15
Q5_0   22 bytes   float16 d, 4 bytes, 16 bytes       w = (q - 16) d, bit i of the four bytes is the highest of weight i
Q8_0   34 bytes   float16 d, 32 bytes                w = q d
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import rqat

from . import BLOCK

if TYPE_CHECKING:
    import torch

OFFSETS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}
"""What stands for a weight of 0."""


AT_ONCE = 1 << 22
"""Weights that are packed at once: an embedding has a hundred million, and their differences take four bytes each."""


def blocks(weight: rqat.QuantizedWeight, kind: str) -> np.ndarray:
    """A layer in one of the types above.

    Raises:
        ValueError: a value, or a scale, that the type does not hold.
    """
    rows = max(1, AT_ONCE // weight.codes.shape[1])
    parts = zip(weight.codes.split(rows), weight.zero.split(rows), weight.scale.split(rows), strict=True)
    return np.concatenate([_rows(codes, zero, scale, kind) for codes, zero, scale in parts])


def _rows(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, kind: str) -> np.ndarray:
    out, width = codes.shape
    group = width // scale.shape[1]
    levels = codes.int() - zero.int().repeat_interleave(group, 1) + OFFSETS[kind]
    if int(levels.min()) < 0 or int(levels.max()) >= 2 * OFFSETS[kind]:
        raise ValueError(f"{kind} does not hold its codes")
    parts: list[np.ndarray]
    q = levels.numpy().astype(np.uint8).reshape(out, -1, BLOCK)
    low, high = q[..., : BLOCK // 2], q[..., BLOCK // 2 :]
    if kind == "Q4_0":
        parts = [low | high << 4]
    elif kind == "Q5_0":
        parts = [np.packbits(q >> 4, axis=-1, bitorder="little"), (low & 15) | high << 4]
    else:
        parts = [q ^ 128]  # two's complement
    halves = _half(scale).repeat_interleave(group // BLOCK, 1).numpy()
    return np.concatenate([halves[..., None].view(np.uint8), *parts], -1).reshape(out, -1)


def _half(scale: torch.Tensor) -> torch.Tensor:
    half = scale.half()
    if not half.float().equal(scale):
        raise ValueError("float16 does not hold its scales")
    return half
