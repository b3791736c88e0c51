"""What quantization costs a whole training run: `rqat qat` on a Qwen3-0.6B of random weights, and plain fine-tuning.

    python kernels/bench/qat_speed.py --tokenizer tokenizer.json.gz --out DIR

The model (random, full size) and rows of 4,096 tokens of random words are written to a folder, then the real command
rounds the weights and distils: 20 steps of 4 x 4,096 tokens, timed by its own training.jsonl. Afterwards the same
weights are tuned in 16 bits on the same tokens by fused AdamW, once with cross-entropy (with gradient checkpointing, as
rqat has it, and without) and once with the same distillation. All train the linear layers of the blocks. Rows go to
DIR/<gpu>-qat.csv; the first steps, in which kernels are compiled, are left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Not the folder of this file: its modules have names such as `table`.
sys.path[:] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "kernels"), *(p for p in sys.path if p != str(HERE))]
# ruff: noqa: E402

import torch

from bench.table import Row, Table, machine
from bench.timing import describe
from rqat_kernels.dispatch import gpu_slug

LEFT_OUT = 3
"""Steps at the start that are not counted."""

RECIPE = """name: speed
model: {model}
scheme: w2g128
quantize: rtn
export: null
train:
  - objective: kd
    data: {{source: jsonl, path: {rows}, validation: 0}}
    steps: {steps}
    batch: {batch}
    max_tokens: {tokens}
    lr: 1e-5
    scale_lr: 1e-4
    save_every: 100000
"""


def main() -> int:
    """Writes the model and the rows, runs the command, then the comparisons; 1 when the command fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="a `tokenizers` file of Qwen's vocabulary")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--plain-steps", type=int, default=7, help="steps of each comparison")
    parser.add_argument("--seconds", type=float, default=105, help="comparisons are not begun with less than 12 s left")
    options = parser.parse_args()
    start = time.time()
    facts = machine()
    table = Table(options.out / f"{gpu_slug(facts['gpu_name'])}-qat.csv", facts, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        model, rows, ids = prepare(Path(folder), options)
        _say(start, "model and rows written")
        taken, peak, loss = command(Path(folder), model, rows, options)
        _say(start, f"rqat qat: {len(taken)} steps, loss {loss:.4g}")
        _report(table, "rqat qat", "kd", "checkpointing", taken, peak, options)
        for name, how, lines in comparisons(model, ids, options):
            if options.seconds - (time.time() - start) < 12:
                print("no time for the rest", flush=True)
                break
            try:
                _report(table, name, *how, *lines(), options)
            except Exception as error:
                table.add(_row(name, *how, options, note=describe(error)))
                print(f"{name} {how}: {describe(error)}", flush=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    summary(table)
    table.close()
    _say(start, "done")
    return 0


def prepare(folder: Path, options: argparse.Namespace) -> tuple[Path, Path, torch.Tensor]:
    """The model's folder, the file of rows, and the tokens `(rows, tokens)` that the command will see."""
    from transformers import AutoTokenizer

    from tests.full_size import write_qwen3_06b

    model = folder / "model"
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # random numbers are slow on a processor
        write_qwen3_06b(model, options.tokenizer, layers=options.layers)
    tokenizer = AutoTokenizer.from_pretrained(model)
    # Words that are one token each: a text of n of them is n tokens.
    words = [word[1:] for word in tokenizer.get_vocab() if re.fullmatch("\u0120[a-z]{4,9}", word)]
    picked = random.Random(0)
    prompt = "Say words:"
    room = options.tokens - len(tokenizer(prompt)["input_ids"]) - 1  # and the end
    lines, seen = [], []
    for _ in range(options.steps * options.batch):
        text = "".join(" " + picked.choice(words) for _ in range(room))
        lines.append(json.dumps({"prompt": prompt, "completion": text}))
        if len(seen) < options.batch:
            seen.append((tokenizer(prompt + text)["input_ids"] + [tokenizer.eos_token_id] * 8)[: options.tokens])
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return model, rows, torch.tensor(seen)


def command(
    folder: Path, model: Path, rows: Path, options: argparse.Namespace
) -> tuple[list[float], float | None, float]:
    """Seconds of each step of `rqat qat`, its peak memory in MB where it says so, and the last loss.

    Raises:
        SystemExit: the command failed; its whole output has been printed.
    """
    sizes = {"steps": options.steps, "batch": options.batch, "tokens": options.tokens}
    (folder / "speed.yaml").write_text(RECIPE.format(model=model, rows=rows, **sizes), encoding="utf-8")
    call = [sys.executable, "-m", "rqat", "qat", "--recipe", str(folder / "speed.yaml"), "--out", str(folder / "run")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    logs = sorted((folder / "run").rglob("training.jsonl"))
    lines = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    if done.returncode:
        print((done.stdout + done.stderr)[-3500:], flush=True)
        if len(lines) <= LEFT_OUT:
            sys.exit(1)
    return [line["seconds"] for line in lines], None, lines[-1]["loss"]


def comparisons(
    folder: Path, ids: torch.Tensor, options: argparse.Namespace
) -> Iterator[tuple[str, tuple[str, str], Callable[[], tuple[list[float], float | None]]]]:
    """Name, loss and memory saving of each way, and what runs it."""
    yield "bf16", ("ce", "checkpointing"), lambda: plain(folder, ids, "ce", True, options.plain_steps)
    yield "bf16", ("kd", "checkpointing"), lambda: plain(folder, ids, "kd", True, options.plain_steps)
    yield "bf16", ("ce", "none"), lambda: plain(folder, ids, "ce", False, options.plain_steps)


def plain(folder: Path, ids: torch.Tensor, loss: str, saving: bool, steps: int) -> tuple[list[float], float | None]:
    """Seconds of steps of 16-bit fine-tuning with fused AdamW, and the peak of allocated memory in MB."""
    from transformers import AutoModelForCausalLM

    from rqat_kernels.linear_kl import linear_kl

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)

    model = loaded().train().requires_grad_(False)
    weights = [p.requires_grad_() for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    teacher = loaded().eval().requires_grad_(False) if loss == "kd" else None
    if saving:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=device == "cuda")
    batch = ids.to(device)

    def step() -> None:
        if teacher is None:
            value = model(batch, labels=batch, use_cache=False).loss
        else:
            with torch.no_grad():
                theirs = teacher.model(batch, use_cache=False).last_hidden_state.flatten(0, 1)
            mine = model.model(batch, use_cache=False).last_hidden_state.flatten(0, 1)
            value = linear_kl(mine, model.lm_head.weight, theirs, teacher.lm_head.weight)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value.item()  # as a Trainer that logs every step

    taken = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
    return taken, peak


def _row(name: str, loss: str, saving: str, options: argparse.Namespace, **figures: Any) -> Row:
    config = {"model": "0.6b", "loss": loss, "memory saving": saving}
    return Row("qat", name, "step", x_name="tokens", x=options.batch * options.tokens, config=config, **figures)


def _report(
    table: Table, name: str, loss: str, saving: str, taken: list[float], peak: float | None, options: argparse.Namespace
) -> None:
    """Adds the rows of one way."""
    steady = sorted(value * 1e6 for value in taken[LEFT_OUT:] or taken)
    quantiles = {"p20": steady[len(steady) // 5], "p80": steady[-1 - len(steady) // 5]}
    note = f"{len(steady)} steps"
    table.add(_row(name, loss, saving, options, p50=statistics.median(steady), note=note, **quantiles))
    if peak is not None:
        table.add(_row(name, loss, saving, options, metric="memory", unit="MB", p50=peak))


def summary(table: Table) -> None:
    """A line per way: time, spread, tokens per second, and how `rqat qat` stands to it."""
    rows = [row for row in table.rows if row.metric == "speed" and row.p50]
    ours = next((row.p50 for row in rows if row.provider == "rqat qat"), None)
    print(f"{'way':9} {'loss':5} {'saving':14} {'ms':>8} {'20 to 80 %':>13} {'tok/s':>7}  rqat qat takes")
    for row in rows:
        middle, low, high = ((value or 0.0) / 1e3 for value in (row.p50, row.p20, row.p80))
        more = f"{ours / 1e3 / middle - 1:+.1%}" if ours else ""
        what = f"{row.provider:9} {row.config['loss']:5} {row.config['memory saving']:14}"
        print(f"{what} {middle:8.1f} {low:6.0f} {high:6.0f} {float(row.x) / middle * 1e3:7.0f}  {more}")


def _say(start: float, what: str) -> None:
    print(f"[{time.time() - start:5.1f} s] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
