"""Tokens per second on the CPU at one row: a model in bfloat16 and float32 beside quantized ones on packed weights.

    python kernels/bench/decode_cpu.py MODEL PACKED... [--threads 1] [--new 48]

MODEL is the model before quantization, written with by transformers' `generate` (as `rqat generate` does on the CPU)
and by rqat's engine; every PACKED, a quantized checkpoint, is opened as `--backend packed` does. All are in memory
and take turns, so that a ratio compares what ran side by side: medians of five rounds of `--new` tokens each, less the
time of the first, greedy. Memory is what the process has grown by until its contender has answered once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Not the folder of this file: its modules have names such as `table`.
sys.path[:1] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "kernels")]
# ruff: noqa: E402

import torch

from rqat.generation.backend import open_model, writer_for
from rqat.generation.engine import Engine
from rqat.keys import ModelKeys
from rqat.quiet import quiet_loading

ROUNDS = 5
PROMPT = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many"
"""From GSM8K's training set (arXiv 2110.14168)."""

BASE = "bfloat16, transformers"


def main() -> None:
    """Loads, times in turns, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("packed", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--new", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    writers: dict[str, Any] = {}
    grown: dict[str, int] = {}
    prompt: list[int] = []

    def add(name: str, path: str, dtype: Any, backend: Any, *, engine: bool = False) -> None:
        before = resident()
        with quiet_loading():
            model, tokenizer = open_model(
                ModelKeys(path=path, dtype=dtype), device="cpu", offline=True, backend=backend
            )
        prompt[:] = prompt or tokenizer(PROMPT)["input_ids"]
        writers[name] = Engine(model) if engine else writer_for(model, backend)
        seconds(writers[name], prompt, 2)
        grown[name] = resident() - before

    add(BASE, arguments.model, "bfloat16", "transformers")
    add("bfloat16, engine", arguments.model, "bfloat16", "transformers", engine=True)
    add("float32, transformers", arguments.model, "float32", "transformers")
    for path in arguments.packed:
        for dtype in ("bfloat16", "float32"):
            add(f"{Path(path).name} in {dtype}", path, dtype, "packed")
    took: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(ROUNDS):
        for name, writer in writers.items():
            first = seconds(writer, prompt, 1)
            took[name].append((seconds(writer, prompt, arguments.new + 1) - first) / arguments.new)
    base = statistics.median(took[BASE])
    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{'':<32} {'tokens/s':>9} {'x':>6} {'MB':>7}")
    for name, each in took.items():
        median = statistics.median(each)
        print(f"{name:<32} {1 / median:9.1f} {base / median:6.2f} {grown[name] / 1e6:7.0f}")


def seconds(writer: Any, prompt: list[int], new: int) -> float:
    """How long a completion of so many tokens takes; no token ends it."""
    start = time.perf_counter()
    [written] = writer.write([prompt], new)
    assert len(written.tokens) == new
    return time.perf_counter() - start


def resident() -> int:
    """Bytes of memory this process has now."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:"))


def processor() -> str:
    """What the system calls it."""
    text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
