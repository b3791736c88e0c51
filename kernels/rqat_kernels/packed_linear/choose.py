"""How a packed linear layer is cut into programs, by its shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ..dispatch import measured

SLAB = 512
PROCESSORS = 132
"""Of an H100 or H200, which the rule below was made for."""

SHARED_BYTES = 200 * 1024
"""Shared memory that a program may plan with: 227 KiB less what reductions need."""


@dataclass(frozen=True)
class Config:
    """What a launch is made of.

    Attributes:
        block: rows of the weight per program, 16 to 128.
        warps: per program; each takes slabs of its own.
        stages: of the loop's pipeline.
        splits: programs that share a block of rows.
        pdl: whether the launch may overlap the end of the kernel before it.
        variant: "skinny" or "tall", see `kernel.py`; "dense" for a dense copy and cuBLAS.
    """

    block: int
    warps: int
    stages: int
    splits: int = 1
    pdl: bool = False
    variant: str = "skinny"


def bucket(rows: int) -> int:
    """Rows of x rounded up to what is tuned apart: 1, 2, 4, 8, 16, 32, 64."""
    return 1 << (rows - 1).bit_length()


def choose(rows: int, out_features: int, in_features: int, bits: int, device: torch.device) -> Config:
    """The measured configuration of a shape on this GPU, or one by rule."""
    return _choose(bucket(rows), out_features, in_features, bits, device)


@cache
def _choose(rows: int, out_features: int, in_features: int, bits: int, device: torch.device) -> Config:
    configs = measured("packed_linear", device).get("configs", {})
    # 1 to 8 rows run the same code, so one of these numbers speaks for another; the nearest first.
    others = sorted((1, 2, 4, 8), key=lambda other: (abs(other - rows), other)) if rows <= 8 else [rows]
    for other in others:
        found = configs.get(f"b{bits}-m{other}-n{out_features}-k{in_features}")
        if found:
            return Config(**found)
    return by_rule(rows, out_features, in_features, bits)


def by_rule(rows: int, out_features: int, in_features: int, bits: int) -> Config:
    """Enough programs for two on each processor, then blocks as tall as that leaves, so that x is read less often."""
    slabs = -(-in_features // SLAB)
    if rows > 8:
        blocks = -(-out_features // 64)
        splits = min(max(1, 2 * PROCESSORS // blocks), max(1, slabs // 2), 8)
        return Config(64, 4, 2 if rows > 32 else 3, splits, variant="tall")
    warps = 8 if slabs >= 8 else 4 if slabs >= 4 else 2 if slabs >= 2 else 1
    block = 32 if -(-out_features // 32) >= 2 * PROCESSORS else 16
    stages = 3 if slabs > warps else 2
    while shared_bytes(Config(block, warps, stages), rows, bits) > SHARED_BYTES:
        if stages > 2:
            stages -= 1
        else:
            warps //= 2
    return Config(block, warps, stages)


def shared_bytes(config: Config, rows: int, bits: int) -> int:
    """Bytes of shared memory of the pipeline: weights, scales and x of the slabs of a turn, per stage."""
    slabs = config.warps if config.variant == "skinny" else 1
    slab = config.block * (SLAB * bits // 8 + 16) + max(8, rows) * SLAB * 2
    return slabs * slab * max(1, config.stages - 1)
