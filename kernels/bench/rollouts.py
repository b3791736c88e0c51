"""Rollouts: tokens per second of the engine for many prompts, and where the time of a GRPO step goes.

    python kernels/bench/rollouts.py --model FOLDER [--data FILE] [--rows 1,8,64,512] [--static] [--grpo] [--out DIR]

FOLDER is a Hugging Face model. Its linear layers are rounded to `--bits` (a model that still answers), as weights that
are trained are; all times are of 16-bit weights on the grid.

Engine: `--rounds` times ROWS prompts, sampled at temperature 1 up to `--new` tokens. Handed over all at once, rows that
end leave and others join. With --static, also in batches of ROWS, one after the other, each as slow as its longest row.

With --grpo: steps of TRL's trainer as `rqat qat` builds it, `--completions` completions each, the update included.
    write      completions, by the engine
    teach      with --teacher: forward passes of the model before rounding, whose divergence is added to the loss
    learn      forward and backward; log-probabilities for correction and gap are those of the loss
    optimizer  latents, moments, and the new weights into the model, which the engine reads: its refresh is in this
    rest       rewards, padding, logging
Lines are printed as they are found, and written to DIR/rollouts.csv.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Not the folder of this file: its modules have names such as `table`.
sys.path[:1] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "kernels")]
# ruff: noqa: E402

import torch
from torch import nn

from rqat import Scheme, Training
from rqat.contracts import QuantizedWeight
from rqat.generation.engine import Engine
from rqat.generation.prompts import encode_prompts
from rqat.generation.sampling import end_tokens, own_settings_hidden
from rqat.keys import ModelKeys
from rqat.model.load import load_model
from rqat.quiet import quiet_training
from rqat.train.data import prepare_rows
from rqat.train.optimizer import QuantizedOptimizer
from rqat.train.rollouts import Rollouts
from rqat_kernels.grid import dequantize, fit_minmax, quantize

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."

PARTS = ("write", "teach", "learn", "optimizer", "rest")


def main() -> None:
    """Loads, rounds, times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder")
    parser.add_argument(
        "--data", type=Path, help="JSON lines (or .gz) with `question`; arithmetic problems when not given"
    )
    parser.add_argument("--bits", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--rows", default="1,8,64,512", help="numbers of rows at a time; empty: no engine alone")
    parser.add_argument("--rounds", type=int, default=2, help="times as many prompts as rows")
    parser.add_argument("--new", type=int, default=512, help="tokens a completion may have")
    parser.add_argument("--greedy", action="store_true", help="instead of sampling")
    parser.add_argument("--static", action="store_true", help="also batch by batch")
    parser.add_argument("--grpo", action="store_true", help="also steps of GRPO")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--completions", type=int, default=128)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--teacher", action="store_true", help="also learn from the model before rounding")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_model(ModelKeys(path=str(options.model)), device=device)
    layers = rounded(model, Scheme.parse(f"w{options.bits}g{options.group}"))
    say(began, f"{options.model.name} on {device_name()}, torch {torch.__version__}, rounded to {options.bits} bits")
    table = Table(options)
    for rows in map(int, filter(None, options.rows.split(","))):
        speed(model, tokenizer, rows, options, table)
        say(began, f"{rows} rows done")
    if options.grpo:
        grpo(model, tokenizer, layers, options, table)
        say(began, "GRPO done")


@torch.no_grad()
def rounded(model: Any, scheme: Scheme) -> dict[str, QuantizedWeight]:
    """Rounds every linear layer but the head in place; layers whose width the group does not divide stay."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head" and module.in_features % scheme.group == 0:
            weight = module.weight.float()
            groups = scheme.groups(module.in_features)
            scale, zero = fit_minmax(weight, groups, scheme.max_code, symmetric=scheme.symmetric)
            codes = quantize(weight, scale, zero, scheme.max_code)
            layers[name] = QuantizedWeight(codes, scale, zero.to(torch.uint8), scheme=scheme)
            module.weight.copy_(dequantize(codes, scale, zero))
    return layers


def questions(path: Path | None) -> Iterator[dict[str, Any]]:
    """Rows with `prompt` and `answer`, over and over."""
    if path is None:
        found = [{"prompt": f"What is {a} + {b} * {a % 7}?", "answer": "0"} for a in range(3, 99) for b in (12, 31)]
    else:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found = [{"prompt": json.loads(line)["question"] + INSTRUCTION, "answer": "0"} for line in text.splitlines()]
    return itertools.cycle(found)


def speed(model: Any, tokenizer: Any, rows: int, options: argparse.Namespace, table: Table) -> None:
    """Times one number of rows; the first time, which captures graphs and compiles, by itself."""
    given = itertools.islice(questions(options.data), rows * options.rounds)
    prompts = [list(prompt.tokens) for prompt in encode_prompts(list(given), tokenizer)]
    engine = Engine(model, rows=rows)
    ends = end_tokens(model, tokenizer)
    ways: dict[str, list[list[list[int]]]] = {"engine": [prompts]}
    if options.static:
        ways["static"] = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
    for turn in ("first", "then", "again"):
        for way, batches in ways.items():
            torch.manual_seed(0)
            wait()
            start = time.perf_counter()
            lengths = []
            for batch in batches:
                written = engine.write(batch, options.new, temperature=0.0 if options.greedy else 1.0, ends=ends)
                lengths += [len(one.tokens) for one in written]
            wait()
            taken = time.perf_counter() - start
            table.add(f"{way}, {turn}", rows, len(prompts), sum(lengths), taken, mean=statistics.mean(lengths))
    engine.release()


def grpo(
    model: Any, tokenizer: Any, layers: dict[str, QuantizedWeight], options: argparse.Namespace, table: Table
) -> None:
    """Times steps of training."""
    from transformers.trainer_callback import PrinterCallback

    from rqat_grpo import Options
    from rqat_grpo.objective import Grpo

    prepared = prepare_rows(
        questions(options.data), tokenizer, steps=options.steps, batch=options.completions,
        max_tokens=options.new + 400, seed=0, writes=True, graded=True,
    )  # fmt: skip
    rollouts = Rollouts(model, tokenizer, "rqat" if torch.cuda.is_available() else "auto", limit=options.new)
    optimizer = QuantizedOptimizer(model, layers, lr=1e-6, scale_lr=1e-5)
    parts: dict[str, float] = defaultdict(float)
    lengths: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [float(len(ids) % 2) for ids in completion_ids]

    def write(prompts: Any, **settings: Any) -> Any:
        with timed(parts, "write"):
            return rollouts(prompts, **settings)

    def step(closure: Any = None, own: Callable[..., Any] = optimizer.step) -> Any:
        with timed(parts, "optimizer"):
            return own(closure)

    teacher = None
    if options.teacher:
        teacher = load_model(ModelKeys(path=str(options.model)), device=str(model.device))[0].requires_grad_(False)
        inner = teacher.base_model.forward

        def taught(*given: Any, **settings: Any) -> Any:
            with timed(parts, "teach"):
                return inner(*given, **settings)

        teacher.base_model.forward = taught

    with tempfile.TemporaryDirectory() as folder, quiet_training(), own_settings_hidden(model):
        arguments = {
            "output_dir": folder, "max_steps": options.steps, "per_device_train_batch_size": options.micro_batch,
            "gradient_accumulation_steps": options.completions // options.micro_batch, "learning_rate": 1e-6,
            "train_sampling_strategy": "sequential", "bf16": False, "use_cpu": not torch.cuda.is_available(),
            "gradient_checkpointing": options.recompute, "save_strategy": "no", "logging_steps": 1, "report_to": "none",
            "disable_tqdm": True, "dataloader_pin_memory": False,
        }  # fmt: skip
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        kd_weight = 1.0 if teacher is not None else 0.0
        own = Options(generations=options.generations, patience=10**6, kd_weight=kd_weight)
        trainer: Any = Grpo(own).build_trainer(
            Training(
                model, tokenizer, prepared.rows, optimizer, scheduler, arguments, options.new + 400, teacher=teacher,
                max_completion_tokens=options.new, rollouts=write, rewards=[reward], reward_weights=[1.0],  # type: ignore[list-item]
            )
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        optimizer.step = step  # type: ignore[method-assign]
        learn, make = trainer.training_step, trainer._generate_and_score_completions

        def made(inputs: Any) -> Any:
            with timed(parts, "made"):
                return make(inputs)

        def learned(*given: Any, **settings: Any) -> Any:
            with timed(parts, "learn"):
                return learn(*given, **settings)

        trainer.training_step, trainer._generate_and_score_completions = learned, made
        trainer.add_callback(report(parts, lengths, options, table))
        trainer.train()


def report(parts: dict[str, float], lengths: list[int], options: argparse.Namespace, table: Table) -> Any:
    """A callback that prints a line for every step."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        begun = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait()
            parts.clear()
            lengths.clear()
            self.begun = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            wait()
            taken = time.perf_counter() - self.begun
            # Completions are made within the first training step.
            parts["learn"] -= parts["made"] + parts["teach"]
            parts["rest"] = taken - sum(parts[name] for name in PARTS if name != "rest")
            spent = "  ".join(f"{name} {parts[name]:.3f}" for name in PARTS)
            gap = "sampling/sampling_logp_difference"
            found = [name for name in (f"{gap}/mean", f"{gap}/p95", f"{gap}/max") if name in logs]
            note = f"{spent} s; gap {' '.join(f'{logs[name]:.2g}' for name in found)} (mean, 95 %, max)"
            table.add(
                f"grpo step {state.global_step}", options.completions, len(lengths), sum(lengths), taken,
                mean=statistics.mean(lengths), note=note,
            )  # fmt: skip
            if torch.cuda.is_available():
                print(f"    peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)

    return Steps()


@contextmanager
def timed(parts: dict[str, float], name: str) -> Iterator[None]:
    """Adds what a block takes, on the device, to `parts[name]`."""
    wait()
    start = time.perf_counter()
    try:
        yield
    finally:
        wait()
        parts[name] += time.perf_counter() - start


class Table:
    """What was timed, on the screen and in a file that is whole after every line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path = options.out / "rollouts.csv" if options.out else None
        self.facts = [device_name(), torch.__version__, options.model.name, options.bits, options.new]
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self._write(["gpu", "torch", "model", "bits", "new", "what", "rows", "completions", "tokens",
                             "mean_length", "seconds", "tokens_per_s", "note"])  # fmt: skip

    def add(
        self, what: str, rows: int, completions: int, tokens: int, taken: float, *, mean: float, note: str = ""
    ) -> None:
        """A row."""
        rate = tokens / taken
        print(
            f"{what:<16} {rows:4} rows  {completions:5} completions of {mean:5.1f} tokens  {taken:7.3f} s  "
            f"{rate:9.0f} tok/s  {note}",
            flush=True,
        )
        self._write(
            [*self.facts, what, rows, completions, tokens, round(mean, 1), round(taken, 4), round(rate, 1), note]
        )

    def _write(self, row: list[Any]) -> None:
        if self.path:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow(row)


def device_name() -> str:
    """What it runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the device has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def say(began: float, what: str) -> None:
    """A line with the time since the start."""
    print(f"[{time.perf_counter() - began:5.1f} s] {what}", flush=True)


if __name__ == "__main__":
    main()
