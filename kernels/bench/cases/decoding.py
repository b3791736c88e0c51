"""Decoding a model of random weights: packed with graphs, 16 bits with the same engine, and transformers' generate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..bench import Absent, Bench
from ..registry import Job
from ..shapes import GROUP
from ..table import Row
from ..timing import check_device, describe
from .training import random_model

OPS = ("decoding", "decode")
BATCHES = (1, 8, 64)
PROMPT = 128
NEW = 128
ROUNDS = 3
CASES = (("0.6b", 2), ("8b", 2))
"""Models and bits of their body; the head stays in 16 bits."""


def jobs() -> list[Job]:
    """Tokens per second at three batch sizes."""
    return [
        Job(
            "decoding",
            name,
            3,
            lambda bench, name=name, bits=bits: _time(bench, name, bits),
            11 + 2 * place,
            60 + 50 * place,
        )
        for place, (name, bits) in enumerate(CASES)
    ]


def pack_body(model: nn.Module, bits: int) -> nn.Module:
    """Replaces the linear layers of the blocks by packed ones, on the spot."""
    from rqat_kernels.grid import fit_minmax
    from rqat_kernels.packed_linear import PackedLinear

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers." in name:
            groups = module.in_features // GROUP
            scale, zero = fit_minmax(module.weight.detach().float(), groups, 2**bits - 1, symmetric=False)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, PackedLinear.from_linear(module, scale, zero, bits))
    return model


def _time(bench: Bench, name: str, bits: int) -> Iterator[Row]:
    try:
        from rqat.generation.engine import Engine
    except ImportError as error:
        raise Absent(f"no engine: {error}") from None
    plain: Any = random_model(bench, name)
    packed: Any = pack_body(random_model(bench, name), bits)
    new = 8 if bench.small else NEW
    vocabulary = plain.config.vocab_size
    engines: dict[str, Callable[[], Any]] = {"rqat": lambda: Engine(packed), "rqat bf16": lambda: Engine(plain)}
    made = {provider: _guarded(bench, make) for provider, make in engines.items()}
    for batch in BATCHES:
        prompts = bench.integers(vocabulary, batch, 8 if bench.small else PROMPT)
        rows = prompts.tolist()
        ways: dict[str, Callable[[], Any]] = {}
        for provider, engine in made.items():
            ways[provider] = lambda engine=engine, rows=rows: _written(engine, rows, new)
        ways["transformers bf16"] = lambda prompts=prompts: _generate(plain, prompts, new)
        yield from _rates(bench, ways, name, bits, batch, new)


def _guarded(bench: Bench, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        check_device(bench.device, error)
        return error


def _written(engine: Any, prompts: list[list[int]], new: int) -> None:
    if isinstance(engine, Exception):
        raise engine
    engine.write(prompts, new)


@torch.inference_mode()
def _generate(model: Any, prompts: torch.Tensor, new: int) -> None:
    length = {"max_new_tokens": new, "min_new_tokens": new}
    model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0, **length)


def _rates(
    bench: Bench, ways: dict[str, Callable[[], Any]], name: str, bits: int, batch: int, new: int
) -> Iterator[Row]:
    """Tokens per second of every way, in turns; reading the prompt is part of the time."""
    seconds: dict[str, list[float]] = {provider: [] for provider in ways}
    notes: dict[str, str] = {}
    for turn in range(1 + (1 if bench.small else ROUNDS)):
        for provider, work in ways.items():
            if provider in notes or (turn > 1 and provider.startswith("transformers")):
                continue
            try:
                _wait(bench)
                start = time.perf_counter()
                work()
                _wait(bench)
                if turn:
                    seconds[provider].append(time.perf_counter() - start)
            except Exception as error:
                notes[provider] = describe(error)
                check_device(bench.device, error)
    base = seconds["transformers bf16"]
    config = {"model": name, "bits": bits, "prompt": PROMPT, "new": new}
    for provider, taken in seconds.items():
        row = Row("decoding", provider, "decode", "rate", "tok/s", "batch", str(batch), batch, config)
        if taken:
            taken = sorted(taken)
            row.p50, row.p20, row.p80 = (batch * new / taken[place] for place in (len(taken) // 2, -1, 0))
            if base:
                row.ratio = min(base) / taken[len(taken) // 2]
        row.note = notes.get(provider, "")
        yield row


def _wait(bench: Bench) -> None:
    if bench.device == "cuda":
        torch.cuda.synchronize()
