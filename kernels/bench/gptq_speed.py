"""Times GPTQ end to end on blocks of Qwen3's shapes with random weights, and holds one layer against float64.

    python kernels/bench/gptq_speed.py --model 0.6b|4b|8b --layers 4 --out DIR

Weights are made on the GPU and tokens at random: nothing is read. All blocks of a model cost the same, so that a few
give the whole. Parts are timed by events on the GPU's stream, the walk by the clock; what a part does not name (hooks,
waiting, Python) is "rest". The first block, in which kernels are compiled, is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

SHAPES = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "blocks": 28, "target": 8},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "blocks": 36, "target": 45},
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "blocks": 36, "target": 80},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "blocks": 4, "target": 80},
}


class Timers:
    """Seconds on the GPU's stream, by part; the clock's on the CPU."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Times every call of `owner.name` as `part`."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **keywords: Any) -> Any:
            start = self._now()
            try:
                return inner(*args, **keywords)
            finally:
                self._spans[part].append((start, self._now()))

        setattr(owner, name, timed)

    def _now(self) -> Any:
        if self._device == "cpu":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading."""
        if self._device == "cpu":
            found = {part: sum(b - a for a, b in spans) for part, spans in self._spans.items()}
        else:
            import torch

            torch.cuda.synchronize()
            found = {part: sum(a.elapsed_time(b) for a, b in spans) / 1e3 for part, spans in self._spans.items()}
        self._spans.clear()
        return found


def main() -> None:
    """Prints seconds per block by part, the whole model's by extrapolation, and a layer's parity; writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SHAPES), default="0.6b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--scheme", default="w2g128")
    parser.add_argument("--no-parity", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    begun = time.perf_counter()
    sys.path[:] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "kernels"), *(p for p in sys.path if p != str(HERE))]
    import torch

    import rqat_gptq
    from rqat.model import activations, blocks, statistics
    from rqat.model.activations import TokenBatch
    from rqat.scheme import Scheme
    from rqat.stages.quantize.run import TOKENS_AT_ONCE
    from rqat_gptq import solver

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = dict(SHAPES[options.model])
    whole, target = shape.pop("blocks"), shape.pop("target")
    imported = time.perf_counter()
    model = build(shape, options.layers, device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"imports {imported - begun:.1f} s, weights {time.perf_counter() - imported:.1f} s", flush=True)
    timers = Timers(device)
    timers.wrap(activations.Activations, "advance", "output forward")
    timers.wrap(activations.Activations, "collect", "statistics forward and Hessian")
    timers.wrap(statistics, "add_gram", "  of it Hessian")
    timers.wrap(solver, "_inverse_factor", "factor")
    timers.wrap(solver, "fit_ends", "clip search")
    timers.wrap(solver, "refit_scales", "scales refitted")
    timers.wrap(solver, "gptq_block", "column loop")
    timers.wrap(blocks, "relative_error", "error report")
    timers.wrap(blocks, "check_result", "check of the result")
    timers.wrap(solver.Gptq, "quantize_block", "quantizer, all")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (options.samples, options.tokens), generator=generator)
    batches = [TokenBatch(part) for part in ids.split(max(1, TOKENS_AT_ONCE[device] // options.tokens))]
    found: list[dict[str, float]] = []
    clock = [time.perf_counter()]

    inner = blocks._quantize_block

    def counted(*args: Any) -> Any:
        result = inner(*args)
        found.append(timers.read())
        clock.append(time.perf_counter())
        return result

    blocks._quantize_block = counted
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    quantizer = solver.Gptq(rqat_gptq.Options())
    _, reports = blocks.quantize_model(model, batches, quantizer, Scheme.parse(options.scheme))
    unloaded = time.perf_counter() - clock[-1]
    blocks_s = [b - a for a, b in pairwise(clock)]
    warm = blocks_s[1:] or blocks_s
    per_block = sum(warm) / len(warm)
    parts: dict[str, float] = defaultdict(float)
    for one in found[1:] or found:
        for part, seconds in one.items():
            parts[part] += seconds / len(warm)
    top = ("output forward", "statistics forward and Hessian", "quantizer, all", "error report", "check of the result")
    parts["rest"] = per_block - sum(parts.get(part, 0.0) for part in top)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{options.model}, {options.layers} blocks, {options.samples} x {options.tokens} tokens, {name}")
    for part, seconds in parts.items():
        print(f"  {part:32s} {seconds * 1e3:9.2f} ms per block")
    print(f"  {'block':32s} {per_block * 1e3:9.2f} ms; all: {', '.join(f'{s:.3f}' for s in blocks_s)} s")
    print(
        f"  last block unloaded after {unloaded:.2f} s; mean error {sum(r.error for r in reports) / len(reports):.4f}"
    )
    total = per_block * whole
    print(f"  whole model: {total:.2f} s for {whole} blocks; target {target} s")
    facts: dict[str, Any] = {"model": options.model, "gpu": name, "torch": torch.__version__, "blocks_s": blocks_s}
    facts |= {"per_block_s": per_block, "parts_s": dict(parts), "whole_s": total, "target_s": target}
    if device == "cuda":
        facts["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        print(f"  peak memory {facts['peak_gb']:.1f} GB")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gptq-{options.model}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if not options.no_parity:
        facts["parity"] = parity(model, batches[0], device)
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"  this command took {time.perf_counter() - begun:.1f} s", flush=True)


def build(shape: dict[str, int], layers: int, device: str) -> Any:
    """A Qwen3 with random weights, on the device from the start."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = shape["num_attention_heads"]
    config = Qwen3Config(
        **shape,
        num_hidden_layers=layers,
        num_key_value_heads=8 if heads > 4 else 2,
        head_dim=128 if heads > 4 else 32,
        vocab_size=32768,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def parity(model: Any, batch: Any, device: str) -> dict[str, float]:
    """One layer's codes and loss: the kernels, and plain torch, against the loop in float64."""
    import torch

    from rqat_gptq.solver import _inverse_factor
    from rqat_kernels.gptq_block import blocked, gptq_block, gptq_loop
    from rqat_kernels.grid import dequantize, fit_minmax
    from rqat_kernels.hessian import add_gram

    width, out = min(2560, model.config.hidden_size), 1024
    with torch.inference_mode():
        x = model.model.embed_tokens(batch.input_ids[:1].to(device))
        x = model.model(inputs_embeds=x, use_cache=False).last_hidden_state.flatten(0, 1)[:, :width].contiguous()
    x = x.clone()
    hessian = torch.zeros(width, width, device=device)
    add_gram(hessian, x)
    hessian = hessian.triu() + hessian.triu(1).T
    exact = x.double().T @ x.double()
    result = {"hessian_rel": float((hessian - exact).norm() / exact.norm())}
    weight = torch.randn(out, width, device=device) * 0.02
    alive = torch.ones(width, dtype=torch.bool, device=device)
    factor, _ = _inverse_factor(hessian / len(x), alive, 0.01)
    assert factor is not None
    damped = hessian.double() / len(x)
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    unit = factor.double() @ damped @ factor.double().T
    result["factor_rel"] = float((unit - torch.eye(width, device=device)).norm() / width**0.5)
    scale, zero = fit_minmax(weight, width // 128, 3, symmetric=False)
    group_of = torch.arange(width, device=device) // 128
    want = gptq_loop(weight.double(), factor.double(), scale, zero, 3, group_of)

    def loss(got: Any) -> float:
        delta = dequantize(got[0], scale, zero).double() - weight.double()
        return float(((delta @ damped) * delta).sum())

    for name, solve in (("kernel", gptq_block), ("torch", blocked.gptq_block)):
        got = solve(weight, factor, scale, zero, 3, group_of)
        result[f"{name}_codes"] = float((got[0] == want[0]).float().mean())
        result[f"{name}_loss_rel"] = abs(loss(got) / loss(want) - 1)
    print("  parity: " + ", ".join(f"{key} {value:.3g}" for key, value in result.items()))
    return result


if __name__ == "__main__":
    main()
