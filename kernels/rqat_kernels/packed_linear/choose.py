"""How a packed linear layer is cut into programs, by its shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ..dispatch import measured

SLAB = 512
PROCESSORS = 132
"""Of an H100 or H200, which the rule below was made for."""

MOST = 128
"""Rows of x that a program of "tiled" takes; others take all there are."""

SHARED_BYTES = 200 * 1024
"""Shared memory that a program may plan with: 227 KiB less what reductions need."""


@dataclass(frozen=True)
class Config:
    """What a launch is made of.

    Attributes:
        block: rows of the weight per program.
        across: slabs that a program works on at a time, a power of 2 that divides `warps`; of "tiled", tiles of a slab,
            1, 2 or 4.
        warps: per program; `warps / across` of them share a slab and have `block * across / warps` rows each, 16 or
            more.
        stages: of the loop's pipeline.
        splits: programs that share a block of rows; of "stream", programs on each processor.
        pdl: whether the launch may overlap the end of the kernel before it (Hopper).
        variant: "skinny", "stream", "wide" (`across` is 1) or "tiled", see `kernel.py`; "dense" for a dense copy and
            cuBLAS.
        ahead: turns of the loop whose weights are sent for meanwhile, see `ahead.py`.
    """

    block: int
    across: int
    warps: int
    stages: int
    splits: int = 1
    pdl: bool = False
    variant: str = "skinny"
    ahead: int = 1

    @property
    def slabs(self) -> int:
        """What of a row splits are made of: as many slabs as a program works on at a time."""
        return 1 if self.variant == "tiled" else self.across


def bucket(rows: int) -> int:
    """Rows of x rounded up to what is tuned apart: 1, 2, 4, 8, ... 256."""
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
    overlap = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return by_rule(rows, out_features, in_features, bits, overlap)


def by_rule(rows: int, out_features: int, in_features: int, bits: int, overlap: bool = False) -> Config:
    """What was fastest on an H100 for shapes alike: tall programs where they fill two thirds of the processors.

    Tall ones read x less often. `overlap`: whether launches may overlap, which saves a microsecond of each.
    """
    slabs = max(1, -(-in_features // SLAB))
    enough = 2 * PROCESSORS // 3
    programs = -(-out_features // 64)
    if rows <= 16 and programs >= enough:
        across = 2 if rows <= 8 and bits != 3 and slabs % 2 == 0 else 1
        # Overlap costs where each processor gets several small programs anyway.
        return Config(64, across, 4, 3, 1, overlap and (rows > 8 or across > 1 or programs < 2 * PROCESSORS))
    if rows <= 8:
        # Codes of 3 bits come in three arrays: more slabs at a time would not fit into registers.
        if -(-out_features // 32) >= enough * 9 // 10 and slabs > 1:
            return Config(32, 4 if slabs >= 16 and bits != 3 else 2, 4, 3, 1, overlap)
        across = min(4, 1 << (slabs.bit_length() - 1))
        return Config(16, across, across, 3 if slabs > 4 else 2, 1, overlap)
    if rows <= 16 and 1 < slabs < 16:
        return Config(32, 2, 4, 3, 1, overlap)
    if rows > 64 or (rows > 16 and programs >= 2 * PROCESSORS):
        splits = max(1, min(2 * PROCESSORS // (programs * -(-rows // MOST)), slabs, 8))
        return Config(64, 1, 4, 3, splits, variant="tiled")
    # Long sums of few rows of the weight are shared by several programs.
    block = 128 if rows > 32 and -(-out_features // 128) * slabs >= PROCESSORS else 64
    splits = max(1, min(PROCESSORS // -(-out_features // block), slabs, 8))
    stages = 2 if rows > 32 else 3
    return Config(block, 1, block // 16, stages, splits, variant="wide" if rows > 16 else "skinny")


def shared_bytes(config: Config, rows: int, bits: int) -> int:
    """Bytes of shared memory of the pipeline: weights, scales and x of the slabs of a turn, per stage."""
    if config.variant == "tiled":  # a turn is part of a slab
        words = config.block * (SLAB * bits // 8 + 8)
        return (config.stages - 1) * words + config.stages * min(MOST, max(8, rows)) * config.across * 256
    slab = config.block * (SLAB * bits // 8 + 16) + max(8, rows) * SLAB * 2
    # Products of several warps at once read a buffer while the next ones are filled.
    buffers = config.stages if config.variant == "wide" else config.stages - 1
    return config.across * slab * max(1, buffers)
