"""Times the step of the quantized optimizer's kernel for several sizes of tile on this GPU.

    python kernels/bench/tune_latent_adam.py

One line per number of weights in a tile: milliseconds of the update and of the search for infinities, and terabytes per
second of both. The best goes into `TILE` of `rqat_kernels/latent_adam/kernel.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from rqat_kernels.latent_adam import Rates, Stack, kernel

GROUP = 128
TILES = (512, 1024, 2048, 4096)
LAYERS = ((2048, 1024), (1024, 1024), (3072, 1024))
COPIES = 40
ROUNDS = 15


def stack(out: int, features: int) -> tuple[Stack, list[torch.Tensor | None]]:
    """Layers of one shape in bfloat16, and their gradients."""
    rows = COPIES * out * features // GROUP
    wide = [torch.randn(rows, GROUP, device="cuda") for _ in range(2)] + [torch.rand(rows, GROUP, device="cuda")]
    narrow = [torch.rand(rows, 1, device="cuda") for _ in range(7)]
    weights = [torch.empty(out, features, device="cuda", dtype=torch.bfloat16) for _ in range(COPIES)]
    grads: list[torch.Tensor | None] = [torch.randn_like(weight) for weight in weights]
    return Stack(weights, wide, narrow[0], narrow[1:4], narrow[4:7]), grads


def main() -> None:
    """Prints the table."""
    made = [stack(*shape) for shape in LAYERS]
    grads = [grad for _, some in made for grad in some]
    count = sum(grad.numel() for grad in grads if grad is not None)
    launches, search = kernel.Launches([one for one, _ in made]), kernel.Search(torch.device("cuda"))
    rates = Rates(1e-5, 1e-4, 1e-4, 0.0, True, 0.9, 0.999, 1e-8, 3)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    for size in TILES:
        kernel.TILE = size
        taken = []
        for _ in range(ROUNDS):
            torch.cuda._sleep(2_000_000)  # so that the host is ahead
            marks[0].record()
            refused = search.start([grad for grad in grads if grad is not None])
            marks[1].record()
            launches.step(grads, 3, rates, refused)
            marks[2].record()
            torch.cuda.synchronize()
            taken.append((marks[1].elapsed_time(marks[2]), marks[0].elapsed_time(marks[1])))
        step, look = (sorted(times)[ROUNDS // 2] for times in zip(*taken, strict=True))
        rates_of = [count * 28 / step / 1e9, count * 2 / look / 1e9]
        print(f"{size:5d} weights: {step:.3f} ms {rates_of[0]:.2f} TB/s, search {look:.3f} ms {rates_of[1]:.2f} TB/s")


if __name__ == "__main__":
    main()
