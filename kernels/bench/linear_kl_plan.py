"""Finds the plan of `linear_kl` on this GPU: its products one by one, its row kernels, then whole calls.

    python kernels/bench/linear_kl_plan.py [row_kernels] [few_rows] [whole] [products]

prints a line of JSON per figure, milliseconds per 8,192 tokens of 151,936 logits in bfloat16, in about a minute. The
best `lanes`, `warps`, `splits`, `rows`, chunk lengths and `sum_parts` go to `rqat_kernels/measured/<gpu>.json`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from rqat_kernels.linear_kl import kernel

TOKENS, VOCABULARY = 8192, 151_936
PAIRS = ((1024, 2560), (2560, 4096), (4096, 4096))


def milliseconds(work: Callable[[], Any], rounds: int = 5) -> float:
    """Median of device time, after two calls to warm up."""
    taken = []
    for turn in range(rounds + 2):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        if turn >= 2:
            taken.append(start.elapsed_time(stop))
    return statistics.median(taken)


def show(what: str, ms: float, **config: Any) -> None:
    """One line of output."""
    print(json.dumps({"what": what, "ms": round(ms, 3), **config}), flush=True)


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Random bfloat16 numbers on the GPU."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).mul_(scale)


def products() -> None:
    """Every product of a call by itself, per 8,192 tokens, with how many tokens it takes at a time."""
    for width in sorted({width for pair in PAIRS for width in pair}):
        head, out = normal(VOCABULARY, width, scale=width**-0.5), torch.empty(0, device="cuda")
        for tokens in (256, 512, 1024, 2048):
            hidden, grad, times = normal(tokens, width), normal(tokens, VOCABULARY), TOKENS // tokens
            flops = 2.0 * TOKENS * VOCABULARY * width
            ms = milliseconds(lambda h=hidden, w=head, o=grad: torch.mm(h, w.T, out=o)) * times
            show("logits", ms, tokens=tokens, width=width, tflops=round(flops / ms / 1e9))
            if tokens < 512:
                continue
            out = torch.empty(tokens, width, device="cuda", dtype=torch.bfloat16)
            for parts in (1, 2, 4, 8):
                work = lambda g=grad, w=head, o=out, p=parts: kernel.hidden_gradient(g, w, o, p)  # noqa: E731
                ms = milliseconds(work) * times
                show("dh", ms, tokens=tokens, width=width, parts=parts, tflops=round(flops / ms / 1e9))
            for few in (16, 0):
                sums = kernel.WeightGradient(head, VOCABULARY, 8, few)
                ms = milliseconds(lambda g=grad, h=hidden, s=sums: s.add(g, h)) * times
                show("dW", ms, tokens=tokens, width=width, float32=not few, tflops=round(flops / ms / 1e9))
                del sums


def row_kernels() -> None:
    """The row kernels alone, in every shape; with the bytes that both passes move."""
    tokens, moved = 512, 10.0 * TOKENS * VOCABULARY
    mine, theirs = (normal(tokens, VOCABULARY) for _ in range(2))
    inverse = torch.full((1,), 1 / TOKENS, device="cuda")
    losses = torch.empty(tokens, device="cuda")
    for divergence in ("forward", "jsd"):
        for lanes, warps, splits in product((128, 256, 512), (4, 8, 16), (1, 2, 4, 8)):
            if not 32 <= lanes // warps <= 64 or (divergence == "jsd" and splits == 1):
                continue
            plan = kernel.Plan(tokens, tokens, splits, lanes, warps)
            loop = kernel.RowLoop(plan, VOCABULARY, VOCABULARY, divergence, 1.0, mine.device)  # type: ignore[arg-type]
            ms = milliseconds(lambda: loop(mine, theirs, None, inverse, losses, beta=0.5, label_share=0.0))  # noqa: B023
            ms *= TOKENS / tokens
            shape = {"divergence": divergence, "lanes": lanes, "warps": warps, "splits": splits}
            show("rows", ms, **shape, terabytes_per_second=round(moved / ms / 1e9, 2))


def few_rows() -> None:
    """The row kernels on so few rows that their logits stay in the cache between both passes."""
    tokens = 512
    mine, theirs = (normal(tokens, VOCABULARY) for _ in range(2))
    inverse, losses = torch.full((1,), 1 / TOKENS, device="cuda"), torch.empty(tokens, device="cuda")
    for rows, splits in product((512, 128, 64, 48, 32), (8, 16)):
        plan = kernel.Plan(tokens, tokens, splits, rows=rows)
        loop = kernel.RowLoop(plan, VOCABULARY, VOCABULARY, "forward", 1.0, mine.device)

        def work(rows: int = rows, loop: kernel.RowLoop = loop) -> None:
            for first in range(0, tokens, rows):
                part = slice(first, first + rows)
                loop(mine[part], theirs[part], None, inverse, losses[part], beta=0.5, label_share=0.0)

        show("few rows", milliseconds(work) * TOKENS / tokens, rows=rows, splits=splits)


def whole() -> None:
    """Whole calls with and without a weight gradient: time, over the products' own at 790 TFLOP/s, and memory."""
    inverse = torch.full((1,), 1 / TOKENS, device="cuda")
    for student, teacher in PAIRS:
        inputs = (
            normal(TOKENS, student), normal(VOCABULARY, student, scale=student**-0.5),
            normal(TOKENS, teacher), normal(VOCABULARY, teacher, scale=teacher**-0.5),
        )  # fmt: skip
        lengths = ((1024, 512), (1024, 1024))
        for need_weight, length, rows in product((True, False), lengths, (0, 64, 48, 32)):
            plan = kernel.Plan(*length, rows=rows)

            def work(plan: kernel.Plan = plan, need_weight: bool = need_weight, inputs: Any = inputs) -> Any:
                return kernel.linear_kl(
                    *inputs, None, inverse, divergence="forward", beta=0.5, temperature=1.0, label_share=0.0,
                    tokens=VOCABULARY, need_student=True, need_weight=need_weight, plan=plan,
                )  # fmt: skip

            ms = milliseconds(work, 3)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            made = work()
            extra = (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / 1e6
            floor = 2.0 * TOKENS * VOCABULARY * ((3 if need_weight else 2) * student + teacher) / 790e9
            config = {"student": student, "teacher": teacher, "weight": need_weight, "over_floor": round(ms / floor, 3)}
            memory = {"extra_mb": round(extra), "kept_mb": round((torch.cuda.memory_allocated() - before) / 1e6)}
            show("whole", ms, **config, **memory, **asdict(plan))
            del made


if __name__ == "__main__":
    for section in (row_kernels, few_rows, whole, products):
        if len(sys.argv) == 1 or section.__name__ in sys.argv:
            section()
