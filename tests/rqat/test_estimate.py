"""What estimates of memory count, held to the code that takes it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rqat.contracts import Block, LinearStats, Quantizer, SharedInput
from rqat.estimate import ENGINE_READS, ENGINE_ROUNDS, ENGINE_ROWS, FLOAT32, Sizes
from rqat.generation.engine import PREFILL_TOKENS, ROUNDING, Engine
from rqat.generation.steps import SIZES
from rqat.grids import bits_per_weight
from rqat.keys import ModelKeys
from rqat.model import blocks, output_error
from rqat.model.config import read_config
from rqat.model.load import load_model
from rqat.registry import Registry
from rqat.scheme import Scheme, Schemes
from rqat.stages.evaluate import Evaluate
from rqat.stages.evaluate.command import eval_plan
from rqat.stages.quantize import FITTED_AT_ONCE, _rounding
from rqat_gptq.refit import AT_ONCE
from tests.live import Live
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def quantizer(registry: Registry, name: str, **options: str) -> Quantizer:
    card = registry.card("quantizer", name)
    made: Quantizer = registry.make(card, registry.options(card, options))
    return made


# ---------------------------------------------------------------------------------------------------- quantizing


@pytest.mark.parametrize(("method", "spelled"), [("gptq", "w4g128"), ("gptq", "w2g128"), ("rtn", "w4g128")])
def test_an_end_takes_what_the_estimate_says(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, method: str, spelled: str
) -> None:
    rows, columns = 6000, 256
    for where in ("rqat.model.output_error", "rqat.stages.quantize"):
        monkeypatch.setattr(f"{where}.JUDGED_AT_ONCE", 1 << 18)
    head = torch.nn.Linear(columns, rows, bias=False)
    module = torch.nn.Module()
    module.add_module("embed_tokens", head)
    block = Block("model", module, (SharedInput(("embed_tokens",)),), {"embed_tokens": Scheme.parse(spelled)})
    x = torch.randn(2000, columns)
    solves, options = method == "gptq", {} if method == "gptq" else {"clip": "mse"}
    stats = LinearStats(tokens=2000, hessian=x.T @ x / 2000) if solves else LinearStats()
    with Live(head.weight) as live:
        blocks._quantize_block(
            block, quantizer(registry, method, **options), {"embed_tokens": stats}, time.perf_counter()
        )
    count = head.weight.numel()
    said = _rounding(count, solves) + (2 if solves else 1) * count * FLOAT32 + 8 * columns**2 * FLOAT32 * solves
    assert 0.5 * said < live.peak <= said, live.peak / said


def test_an_end_counts_beside_the_blocks(registry: Registry, tmp_path: Path) -> None:
    from rqat.capacity import estimate
    from rqat.stages.quantize.command import quantize_plan

    model = str(save_tiny(tmp_path / "tiny", vocab=4096))
    config = read_config(ModelKeys(path=model))
    end = config.vocab * config.hidden

    def memory(scheme: Any, **calibration: int) -> int:
        data = {"source": "arith", "samples": 4, "tokens": 32}
        plan = quantize_plan(registry, model, "gptq", scheme=scheme, calibration=data, export=None)
        return next(one.memory_bytes for one in estimate(plan, config) if "quantize" in one.step)

    alone, both = memory("w4g32"), memory({"default": "w4g32", "embed_tokens": "w4g32"})
    assert both - alone > end * 4 * FLOAT32, "three copies in float32, itself, and as it was before, but one"


def test_layers_that_read_one_input_are_worked_on_together(registry: Registry, tmp_path: Path) -> None:
    from rqat.stages.quantize import _largest

    config = read_config(ModelKeys(path=str(save_tiny(tmp_path / "tiny"))))
    sizes = {name: rows * columns for name, (rows, columns) in config.linears.items()}
    both = sum(sizes[f"model.layers.0.mlp.{name}_proj"] for name in ("gate", "up"))
    assert _largest(config, sizes.keys()) == both > max(sizes.values())
    assert _largest(config, [name for name in sizes if "gate" not in name]) < both
    assert FITTED_AT_ONCE == AT_ONCE


def test_errors_are_found_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, w_hat = (torch.randn(shape, generator=generator) for shape in ((500, 24), (70, 24), (70, 24)))
    whole = output_error.relative_error(w, w_hat, x.T @ x)
    monkeypatch.setattr(output_error, "JUDGED_AT_ONCE", 24 * 16)
    assert output_error.relative_error(w, w_hat, x.T @ x) == pytest.approx(whole, rel=1e-6)
    hessian = x.T @ x
    with Live(w, w_hat, hessian) as live:
        output_error.relative_error(w, w_hat, hessian)
    assert live.peak < 2 * w.nbytes + hessian.nbytes + 24 * 16 * 5 * FLOAT32, "of a piece, not of the layer"


# ------------------------------------------------------------------------------------------------------- writing


def test_the_engine_takes_what_the_estimate_says(registry: Registry, tmp_path: Path) -> None:
    keys = ModelKeys(path=str(save_tiny(tmp_path / "tiny")), dtype="bfloat16")
    config = read_config(keys)
    sizes = Sizes(keys, config, Schemes.parse("w2g128"), bits_per_weight, "cuda")
    engine = Engine(load_model(keys)[0], graphs=False)
    for prompts, longest in ((7, 100), (3, 256), (5, 257)):
        cache = engine._room(prompts, longest).cache
        logits = (prompts + 1) * config.vocab * FLOAT32
        assert sizes.engine_cache(prompts, longest) - logits == cache.keys.nbytes + cache.values.nbytes
        engine.release()
    assert (ROUNDING, PREFILL_TOKENS, SIZES[-1]) == (ENGINE_ROUNDS, ENGINE_READS, ENGINE_ROWS)
    assert sizes.written(7, 100) == sizes.engine_cache(7, 100)


def test_long_prompts_and_bounded_sampling_count(registry: Registry) -> None:
    def memory(device: str = "cuda", **keys: Any) -> float:
        plan = eval_plan(registry, "builtin:tiny-reasoner", [{"max_new_tokens": 64, "temperature": 0.0, **keys}])
        config = read_config(plan.model)
        sizes = Sizes(plan.model, config, plan.scheme, bits_per_weight, device)
        return Evaluate().estimate(plan.steps[0], plan, sizes).memory

    config = read_config(ModelKeys(path="builtin:tiny-reasoner"))
    assert registry.card("task", "math500").longest_prompt == 835
    assert memory(task="math500") >= memory(task="gsm8k")
    sizes = Sizes(ModelKeys(path=""), config, Schemes.parse("w2g128"), bits_per_weight, "cuda")
    read = sizes.engine_passing(64, 835, nucleus=False)
    widest = max(width for _, width in config.linears.values())
    assert read == ENGINE_READS * 3 * (config.hidden + widest) * 2
    assert sizes.engine_passing(2, 100, nucleus=False) == 200 * 3 * (config.hidden + widest) * 2
    assert sizes.engine_passing(2, 20_000, nucleus=False) > read, "a prompt is read whole"
    large = Sizes(ModelKeys(path=""), config, Schemes.parse("w2g128"), bits_per_weight, "cpu")
    assert large.engine_passing(64, 835, nucleus=True) == 0, "of the engine alone"
