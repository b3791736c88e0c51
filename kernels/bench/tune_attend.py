"""Times attention of one token per row on this GPU, for several tiles, warps and stages.

    python kernels/bench/tune_attend.py [--rows 64,512] [--models 0.5B,1.5B,8B]

Rows have 90 to 500 positions, as answers that are being written have. One line per setting: microseconds of a launch in
a graph, terabytes per second of keys and values that are read, and the largest difference from the first setting; at
the end the three fastest. The best goes into `TILE`, `WARPS` and `STAGES` of `rqat_kernels/decode/attention.py`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import torch
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench_cudagraph

sys.path.insert(0, str(Path(__file__).parents[1]))

from rqat_kernels.decode import attention

CAPACITY = 1024
HEADS = {"0.5B": (14, 2, 64), "1.5B": (12, 2, 128), "8B": (32, 8, 128)}
"""Query heads, key heads, width: of Qwen2.5's and Qwen3's sizes."""

SETTINGS = tuple(itertools.product((32, 64, 128), (1, 2, 4, 8), (1, 2, 3, 4)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="64,512")
    parser.add_argument("--models", default=",".join(HEADS))
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for rows, name in itertools.product(map(int, asked.rows.split(",")), asked.models.split(",")):
        compare(name, rows, *HEADS[name], device)


def compare(name: str, rows: int, heads: int, key_heads: int, width: int, device: str) -> None:
    """One model's heads, for so many rows."""
    torch.manual_seed(0)
    made = {"device": device, "dtype": torch.bfloat16 if device == "cuda" else torch.float32}
    qkv = torch.randn(rows, (heads + 2 * key_heads) * width, **made)
    keys, values = (torch.randn(rows + 1, key_heads, CAPACITY, width, **made) for _ in range(2))
    cos, sin = (torch.randn(rows, width, **made) for _ in range(2))
    slots, positions = torch.arange(rows, device=device), torch.randint(90, 500, (rows,), device=device)
    read = int(positions.sum()) * key_heads * width * 2 * keys.element_size()

    def attend() -> torch.Tensor:
        return attention.attend(qkv, None, None, cos, sin, keys, values, slots, positions, 1e-6, 0)

    first: torch.Tensor | None = None
    timed: list[tuple[float, str]] = []
    for attention.TILE, attention.WARPS, attention.STAGES in SETTINGS:
        setting = f"{name} {rows:4d} rows, tile {attention.TILE:3d}, {attention.WARPS} warps, {attention.STAGES} stages"
        try:
            found = attend()
        except OutOfResources:
            print(f"{setting}: too much shared memory")
            continue
        first = found if first is None else first
        apart = float((found - first).abs().max())
        ms = do_bench_cudagraph(attend) if device == "cuda" else float("nan")
        timed.append((ms, setting))
        print(f"{setting}: {1e3 * ms:6.1f} us, {read / ms / 1e9:.2f} TB/s, {apart:.4f} apart", flush=True)
    for ms, setting in sorted(timed)[:3]:
        print(f"fastest: {setting}: {1e3 * ms:6.1f} us", flush=True)


if __name__ == "__main__":
    main()
