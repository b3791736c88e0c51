"""GPTQ of whole models of random weights: every block of the small one, a few of the large ones, and their total."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from ..bench import Bench
from ..registry import Job
from ..shapes import GROUP, MODELS
from ..table import Row
from .training import random_model

OPS = ("whole_gptq",)
SEQUENCES, TOKENS = 128, 2048
AT_ONCE = 8
BLOCKS = {"0.6b": 6, "4b": 3, "8b": 3}
"""Blocks that are quantized; times of all but the first stand for the rest."""


def jobs() -> list[Job]:
    """One walk per model."""
    return [
        Job("whole_gptq", name, 3, lambda bench, name=name: _time(bench, name), 12.5 + place, 20 + 15 * place)
        for place, name in enumerate(BLOCKS)
    ]


def _time(bench: Bench, name: str) -> Iterator[Row]:
    from rqat import Scheme
    from rqat.model.activations import TokenBatch
    from rqat.model.blocks import quantize_model
    from rqat_gptq import Options
    from rqat_gptq.solver import Gptq

    layers = 2 if bench.small else BLOCKS[name]
    sequences, tokens = (2, 32) if bench.small else (SEQUENCES, TOKENS)
    model: Any = random_model(bench, name, layers=layers)
    ids = bench.integers(model.config.vocab_size, sequences, tokens)
    batches = [TokenBatch(part) for part in ids.split(AT_ONCE)]
    for attempt in ("first", "again"):  # the first walk compiles kernels
        marks = [time.perf_counter()]

        def mark(done: float, note: str, marks: list[float] = marks) -> None:
            if float(done).is_integer() and done >= len(marks):
                if bench.device == "cuda":
                    torch.cuda.synchronize()
                marks.append(time.perf_counter())

        quantize_model(model, batches, Gptq(Options()), Scheme(bits=2, group=GROUP), progress=mark)
        if attempt == "first" and marks[-1] - marks[0] > 40:
            break
    took = [later - earlier for earlier, later in pairwise(marks)]
    rest = sorted(took[1:]) or took
    block = rest[len(rest) // 2]
    whole = MODELS[name].layers
    total = sum(took) + (whole - len(took)) * block
    config = {"model": name, "tokens": sequences * tokens, "blocks measured": len(took), "bits": 2}
    note = f"{len(took)} of {whole} blocks measured, the rest at their median"
    base = Row("whole_gptq", "rqat", "full", "time", "s", "blocks", str(whole), whole, config)
    yield Row(**{**base.__dict__, "p50": total, "p20": sum(took) + (whole - len(took)) * rest[0],
                 "p80": sum(took) + (whole - len(took)) * rest[-1], "note": note})  # fmt: skip
    yield Row(**{**base.__dict__, "mode": "block", "x": 1, "p50": block, "p20": rest[0], "p80": rest[-1]})
