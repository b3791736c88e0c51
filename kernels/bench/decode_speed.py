"""Tokens per second of decoding: transformers, the engine with 16-bit weights, the engine with packed ones.

    python kernels/bench/decode_speed.py --model 0.6b --bits 2 --batches 1,8,64 --out DIR [--head-bits 4] [--mixed]

A Qwen3 of random weights is made on the GPU and rounded to the grid, so that all three compute the same model. First
the logits of prompts and steps are compared with those of the same model in float32, then each is timed: `1 + NEW` new
tokens less one, median of five, at a context of 512; then their greedy tokens are compared. With --mixed, the engines
write nano-vllm's workload as well, 256 completions of 100 to 1,024 tokens for as long prompts, reading included.
Everything is printed as it is found, and written to DIR/decode_speed.csv.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Not the folder of this file: its modules have names such as `table`.
sys.path[:1] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "kernels")]
# ruff: noqa: E402

import torch
from torch import Tensor, nn

from rqat.generation.engine import Engine
from rqat.generation.steps import Mode
from rqat.generation.transfer import send
from rqat_kernels.grid import dequantize, fit_minmax, quantize
from rqat_kernels.packed_linear import PackedLinear

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "tie_word_embeddings": True},
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False},
}  # fmt: skip

GROUP = 128
CONTEXT = 512
NEW = 256
NEW_SLOW = 24
"""New tokens that transformers is timed with."""

ROUNDS = 5
"""Times that each is timed."""

TRACED = 20
"""Steps that are timed before one is traced."""

LINES = 14
"""Kinds of kernels that a profile names."""

TOLERANCE = 1.5
"""How far logits may be from those in float32 (relative L2), in errors that transformers makes in bfloat16. Every
activation is rounded to 2**-9; over 36 layers of random weights that makes 3 to 5 %. A wrong zero point, position or
head moves logits by more than half."""

MIXED = 256
MIXED_TOKENS = (100, 1024)
"""Completions of the mixed workload, and the bounds of their lengths and of those of their prompts; of nano-vllm
(github.com/GeeeekExplorer/nano-vllm, bench.py)."""


def main() -> None:
    """Builds, checks, times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default="0.6b")
    parser.add_argument("--bits", type=int, choices=(2, 3, 4), default=2)
    parser.add_argument("--head-bits", type=int, choices=(2, 3, 4), help="pack the head too; 16 bits when not given")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", action="store_true", help="show what steps spend their time on")
    parser.add_argument("--skip-transformers", action="store_true")
    parser.add_argument("--mixed", action="store_true", help="also 256 completions of mixed lengths")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    began = time.perf_counter()
    plain, packed = build(SHAPES[arguments.model], arguments.bits, arguments.head_bits, device)
    say(began, f"{arguments.model} built and packed to {arguments.bits} bits, head {arguments.head_bits or 16}")
    right = Exact(plain)
    engines = {"engine, bf16": Engine(plain), f"engine, {arguments.bits} bits": Engine(packed)}
    checks = [right.check(name, engine) for name, engine in engines.items()]
    say(began, "checked")
    table = Table(arguments.out, arguments.model, arguments.bits, arguments.head_bits or 16)
    for batch in map(int, filter(None, arguments.batches.split(","))):
        prompts = torch.randint(plain.config.vocab_size, (batch, CONTEXT), device=device)
        firsts: dict[str, list[list[int]]] = {}
        contenders: dict[str, tuple[Callable[[int], Any], int]] = {}
        if not arguments.skip_transformers:
            contenders["transformers, bf16"] = (lambda new, p=prompts: by_transformers(plain, p, new), NEW_SLOW)  # type: ignore[misc]
        for name, engine in engines.items():
            rows = prompts.tolist()
            contenders[name] = (lambda new, e=engine, r=rows: e.write(r, new), NEW)  # type: ignore[misc]
        for name, (write, new) in contenders.items():
            firsts[name] = write(1 + new)  # compiles and captures
            table.add(name, batch, new, seconds(write, new))
        agree(firsts)
        if arguments.profile and device == "cuda":
            for name, engine in engines.items():
                profile(name, engine, batch)
        say(began, f"batch {batch} done")
    for name, engine in engines.items() if arguments.mixed else ():
        for other in engines.values():  # all of them at once would not fit
            other.release()
        table.add_mixed(name, *mixed(engine, plain.config.vocab_size))
    sys.exit(0 if all(checks) else 1)


def build(shape: dict[str, Any], bits: int, head_bits: int | None, device: str) -> tuple[Any, Any]:
    """The same random model twice: with weights on the grid, and with packed ones; what is not quantized is shared.

    A packed head is one of its own, whatever the shape says of embeddings.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if head_bits:
        shape = shape | {"tie_word_embeddings": False}

    config = Qwen3Config(
        **shape, max_position_embeddings=40960, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}
    )
    config.dtype = torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            plain = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        packed = Qwen3ForCausalLM(config)
    packed.model.rotary_emb = plain.model.rotary_emb
    for name, module in list(plain.named_modules()):
        width = head_bits if name == "lm_head" else bits
        if isinstance(module, nn.Linear) and width:
            groups = module.in_features // GROUP
            scale, zero = fit_minmax(module.weight, groups, 2**width - 1, symmetric=False)
            codes = quantize(module.weight, scale, zero, 2**width - 1)
            module.weight.data = dequantize(codes, scale, zero, torch.bfloat16)
            packed.set_submodule(name, PackedLinear.from_codes(codes, scale, zero, width))
    there = set(packed.state_dict())
    state = {name: tensor for name, tensor in plain.state_dict().items() if name in there}
    packed.load_state_dict(state, strict=False, assign=True)
    packed.tie_weights()
    return plain, packed.to(device).eval().requires_grad_(False)


class Exact:
    """Two sequences, what the model says of them in float32, and how far transformers is from that in its own type."""

    PROMPTS = (70, 33)
    STEPS = 8

    @torch.inference_mode()
    def __init__(self, plain: Any) -> None:
        device = plain.lm_head.weight.device
        self.tokens = torch.randint(plain.config.vocab_size, (2, max(self.PROMPTS) + self.STEPS), device=device)
        self.lengths = torch.tensor(self.PROMPTS, device=device)
        wide = {name: parameter.float() for name, parameter in plain.named_parameters()}
        self.logits = self._picked(torch.func.functional_call(plain, wide, (self.tokens,)).logits)
        self.error = max(self._errors(list(self._picked(plain(self.tokens).logits))))

    @torch.inference_mode()
    def check(self, name: str, engine: Engine) -> bool:
        """Whether an engine's logits, after the prompts and in steps behind them, are about as near."""
        decoder, slots = engine.decoder, torch.tensor([2, 0], device=engine.device)
        prompts = [row[:length] for row, length in zip(self.tokens.tolist(), self.PROMPTS, strict=True)]
        table = self.tokens[[1, 0, 0]]
        cache = decoder.make_cache(3, 128)
        found = [decoder.prefill(prompts, slots.tolist(), cache)]
        for step in range(self.STEPS):
            found.append(decoder.step(table, self.lengths + step, slots, cache))
        first, *others = self._errors(found)
        good = max(first, *others) <= TOLERANCE * self.error
        print(
            f"{name}: relative error of logits {first:.4f} after the prompt, {max(others):.4f} in steps; "
            f"transformers {self.error:.4f}{'' if good else '; WRONG'}",
            flush=True,
        )
        return good

    def _picked(self, logits: Tensor) -> Tensor:
        """`(1 + STEPS, 2, V)`: after the prompts, and after each token behind them."""
        rows = torch.arange(2, device=logits.device)
        return torch.stack([logits[rows, self.lengths + step - 1].float() for step in range(1 + self.STEPS)])

    def _errors(self, found: list[Tensor]) -> list[float]:
        pairs = zip(found, self.logits, strict=True)
        return [float((logits.float() - right).norm() / right.norm()) for logits, right in pairs]


def mixed(engine: Engine, vocabulary: int) -> tuple[int, float]:
    """New tokens of the mixed workload, and the seconds that it takes once its graphs are captured."""
    picked = random.Random(0)
    lengths = [picked.randint(*MIXED_TOKENS) for _ in range(MIXED)]
    prompts = [[picked.randrange(vocabulary) for _ in range(length)] for length in lengths]
    new = [picked.randint(*MIXED_TOKENS) for _ in range(MIXED)]
    for _ in range(2):
        wait()
        start = time.perf_counter()
        written = engine.write(prompts, new)
        wait()
        taken = time.perf_counter() - start
    return sum(len(one.tokens) for one in written), taken


@torch.inference_mode()
def by_transformers(model: Any, prompts: Tensor, new: int) -> list[list[int]]:
    """Greedy tokens by `generate` with its growing cache."""
    out = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, min_new_tokens=new,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[:, prompts.shape[1] :].tolist()  # type: ignore[no-any-return]


def seconds(write: Callable[[int], Any], new: int) -> list[float]:
    """That of `new` steps alone, several times: what they take behind a first token, less the median of one token.

    Pairs would not do: reading the prompt varies from one time to the next by more than some steps take.
    """
    times: dict[int, list[float]] = {1: [], 1 + new: []}
    for _ in range(ROUNDS):
        for tokens, taken in times.items():
            wait()
            start = time.perf_counter()
            write(tokens)
            wait()
            taken.append(time.perf_counter() - start)
    first = statistics.median(times[1])
    return [taken - first for taken in times[1 + new]]


def wait() -> None:
    """Until the device has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def agree(firsts: dict[str, list[list[int]]]) -> None:
    """Says for how many tokens the contenders write the same; they part where two logits are nearly equal."""
    names = list(firsts)
    for name in names[1:]:
        same = []
        for one, two in zip(firsts[names[0]], firsts[name], strict=True):
            pairs = list(zip(one, two, strict=False))
            same.append(next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs)))
        print(f"  same greedy tokens as {names[0]}: {name}: at least {min(same)}, mean {sum(same) / len(same):.1f}")


class Table:
    """What was timed, on the screen and in a file that is whole after every line."""

    def __init__(self, out: Path, model: str, bits: int, head: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "decode_speed.csv"
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self.facts = [gpu, torch.__version__, model, bits, head]
        if not self.path.exists():
            self._write(["gpu", "torch", "model", "bits", "head", "batch", "context", "new", "provider", "tokens_per_s",
                         "ms_per_step", "slowest_ms", "fastest_ms"])  # fmt: skip

    def add(self, name: str, batch: int, new: int, times: list[float]) -> None:
        """A row: median, and the ends of the spread."""
        middle = statistics.median(times)
        steps = [1000 * value / new for value in (middle, max(times), min(times))]
        self._write(
            [*self.facts, batch, CONTEXT, new, name, round(batch * new / middle, 1), *(round(s, 4) for s in steps)]
        )
        print(
            f"{name:<20} batch {batch:<4} {batch * new / middle:9.0f} tok/s   {steps[0]:.3f} ms per step "
            f"({steps[2]:.3f} to {steps[1]:.3f})",
            flush=True,
        )

    def add_mixed(self, name: str, tokens: int, seconds: float) -> None:
        """A row for the mixed workload."""
        middle = 1000 * seconds * MIXED / tokens
        rate = round(tokens / seconds, 1)
        self._write([*self.facts, MIXED, "mixed", tokens, name, rate, *[round(middle, 4)] * 3])
        print(f"{name:<20} mixed {tokens} tokens in {seconds:.2f} s: {rate:9.0f} tok/s", flush=True)

    def _write(self, row: list[Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)


@torch.inference_mode()
def profile(name: str, engine: Engine, batch: int) -> None:
    """Prints what one replay of the captured step of `batch` rows spends its time on.

    A kernel's own time is what it adds to the step: from the end of all kernels before it to its own end. So gaps and
    starts count, waiting for the kernel before does not, and own times add up to the step, which is slower while it is
    traced. Equal kernels are told apart by their neighbours: the same one computes all linear layers.
    """
    engine.write(torch.randint(1000, (batch, CONTEXT)).tolist(), 20)
    size, state = engine.steps.size(batch), engine._state
    assert state is not None
    # All rows have ended: they begin anew behind what was read, and may go on to the end of the cache.
    last = state.tokens.shape[1] - 1
    facts = [list(range(batch)), [CONTEXT] * batch, [1] * batch, [last] * batch, [0] * batch]
    engine.steps.place(state, [], [send(facts, engine.device)], Mode("greedy"))
    graph = engine.steps.captured[size, Mode("greedy")]
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(TRACED):
        graph.replay()
    stop.record()
    wait()
    step = start.elapsed_time(stop) * 1000 / TRACED
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        graph.replay()
        wait()
    kernels = sorted(
        (event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA),
        key=lambda event: event.time_range.start,
    )
    print(f"profile of {name}, batch {batch}: {step:.0f} us per step, {len(kernels)} kernels", flush=True)
    if not kernels:
        return
    names = [short(event.name) for event in kernels]
    reached = first = kernels[0].time_range.start
    own: dict[tuple[str, str, str], list[float]] = {}
    for event, *around in zip(kernels, ["", *names[:-1]], names, [*names[1:], ""], strict=True):
        own.setdefault((around[1], around[0], around[2]), []).append(max(0.0, event.time_range.end - reached))
        reached = max(reached, event.time_range.end)
    print(f"  {'us':>7} {'%':>5} {'count':>5} {'mean':>6}  kernel (after, before); {reached - first:.0f} us traced")
    ranked = sorted(own.items(), key=lambda item: -sum(item[1]))
    rest = [value for _, values in ranked[LINES:] for value in values]
    rows = [(f"{name} ({before}, {after})", values) for (name, before, after), values in ranked[:LINES]]
    for label, values in [*rows, *([("others", rest)] if rest else [])]:
        total = sum(values)
        share = 100 * total / (reached - first)
        print(f"  {total:7.1f} {share:5.1f} {len(values):5} {total / len(values):6.2f}  {label}", flush=True)


def short(name: str) -> str:
    """A kernel's name without namespaces, template arguments and parameters."""
    return re.sub(r"^void |<.*|\(.*|\b\w+::", "", name.replace("(anonymous namespace)::", ""))[:26]


def say(began: float, what: str) -> None:
    """A line with the time since the start."""
    print(f"[{time.perf_counter() - began:5.1f} s] {what}", flush=True)


if __name__ == "__main__":
    main()
