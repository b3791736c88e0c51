"""What `rqat plan` says about schemes: bits in all, patterns, grids, and parts that cannot do them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rqat import RecipeError, Schemes
from rqat.contracts.options import in_file
from rqat.estimate import bits_of
from rqat.grids import bits_per_weight
from rqat.model.config import ModelConfig, read_config
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe, load_recipe
from rqat.registry import Registry
from rqat.stages.quantize.command import quantize_plan
from tests.tiny import save_tiny

MIXED = {"default": "w2g64", "*.down_proj": "w4g64-sym"}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A tiny model by whether its head is tied."""
    folder = tmp_path_factory.mktemp("models")
    return {tied: save_tiny(folder / str(tied), tied=tied) for tied in (True, False)}


def plan_of(registry: Registry, model: Path, scheme: Any, **changes: Any) -> Plan:
    data = {"name": "schemes", "model": str(model), "scheme": scheme, "quantize": "rtn", **changes}
    return build_plan(built_recipe(data, {}), registry)


def errors(plan: Plan) -> list[str]:
    return [f"{found.text} {found.hint}" for found in preflight(plan) if found.level == "error"]


def test_a_mapping_becomes_the_schemes_of_all_layers(registry: Registry, models: dict[bool, Path]) -> None:
    plan = plan_of(registry, models[True], MIXED)
    assert plan.scheme == Schemes.parse(MIXED)
    assert not errors(plan)
    other = plan_of(registry, models[True], {**MIXED, "*.down_proj": "w3g64"})
    steps = [(a, b) for a, b in zip(plan.steps, other.steps, strict=True) if a.stage == "quantize"]
    assert all(plan.fingerprint(a) != other.fingerprint(b) for a, b in steps)
    plain = quantize_plan(registry, str(models[True]), "rtn", scheme=MIXED)
    assert plain.scheme == plan.scheme


def test_bits_count_every_layer_and_the_whole_model(registry: Registry, models: dict[bool, Path]) -> None:
    config = read_config(_keys(models[False]))
    down = sum(out * width for name, (out, width) in config.linears.items() if "down_proj" in name)
    others = sum(out * width for out, width in config.linears.values()) - down
    packed = others * (2 + 18 / 64) + down * (4 + 16 / 64)
    weight, parameter = bits(plan_of(registry, models[False], MIXED), config)
    assert weight == pytest.approx(packed / (down + others))
    assert parameter == pytest.approx((packed + 16 * (config.parameters - down - others)) / config.parameters)
    with_head = bits(plan_of(registry, models[False], {**MIXED, "lm_head": "w8g64"}), config)
    assert with_head[1] < parameter
    assert with_head[0] > weight


def bits(plan: Plan, config: ModelConfig) -> tuple[float, float]:
    """Those of the model that the quantize step makes."""
    (step,) = (step for step in plan.steps if step.stage == "quantize")
    return bits_of(plan.schemes(step, config), config, in_file(None, bits_per_weight))


def _keys(path: Path) -> Any:
    from rqat.keys import ModelKeys

    return ModelKeys(path=str(path))


def test_two_schemes_of_a_tied_pair_and_patterns_without_a_layer_are_errors(
    registry: Registry, models: dict[bool, Path]
) -> None:
    two = {**MIXED, "lm_head": "w8g64", "embed_tokens": "w4g64"}
    (text,) = errors(plan_of(registry, models[True], two))
    assert "scheme: w4g64 for model.embed_tokens and w8g64 for lm_head, but the model's head is tied" in text
    assert not errors(plan_of(registry, models[False], two))
    assert not errors(plan_of(registry, models[True], {**MIXED, "lm_head": "w8g64"}))
    (text,) = errors(plan_of(registry, models[False], {**MIXED, "*.down_prj": "w8g64"}))
    assert "scheme: '*.down_prj' matches no linear layer of the model. Did you mean '*.down_proj'?" in text


def test_layers_that_their_own_groups_do_not_divide_are_named(registry: Registry, models: dict[bool, Path]) -> None:
    (text,) = errors(plan_of(registry, models[True], {"default": "w2g64", "*.down_proj": "w4g96"}))
    assert "2 layers have input features that groups of 96 do not divide: model.layers.0.mlp.down_proj" in text


def test_every_wrong_spelling_is_told_with_its_place(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nmodel: m\nquantize: rtn\nscheme:\n  default: w5g64\n  a: w2g64-sec\n  b: w4g64-seq\n  c: two\n"
    )
    with pytest.raises(RecipeError) as caught:
        build_plan(load_recipe(path), registry)
    for line, key, what in (
        (5, "default", "'w5g64' asks for 5 bits"),
        (6, "a", "'sec' is not a grid. Known: seq, uniform. Did you mean 'seq'?"),
        (7, "b", "'w4g64-seq' asks for 4 bits; the grid 'seq' has 2."),
        (8, "c", "'two' is not a scheme"),
    ):
        assert any(text.startswith(f"{path}:{line} scheme.{key}: {what}") for text in caught.value.problems), what
    for scheme, what in (({"a": "w2"}, "no default"), ({"default": 3}, "not the spelling"), (7, "7 is not text.")):
        with pytest.raises(RecipeError, match=what):
            plan_of(registry, tmp_path, scheme)


def test_parts_that_cannot_do_a_grid_are_refused_before_any_work(registry: Registry, models: dict[bool, Path]) -> None:
    train = [{"objective": "sft", "data": "arith", "steps": 1, "max_tokens": 64}]
    calibration = {"source": "arith", "tokens": 64}
    plan = plan_of(registry, models[True], "w2g64-seq", quantize="awq", calibration=calibration, train=train)
    first, second = sorted(errors(plan))
    assert "export.format: 'compressed-tensors' cannot write the grid 'seq'" in first
    assert "Use bf16 or rqat, or another scheme." in first
    assert "quantize.method: 'awq' cannot fit the grid 'seq' of w2g64-seq; it knows uniform." in second
    notes = [found.text for found in preflight(plan) if found.level == "note"]
    assert any("the grid 'seq' has no kernels of its own" in text for text in notes)
    good = plan_of(registry, models[True], "w2g64-seq", export="bf16")
    assert not errors(good)
    assert not any("kernels" in found.text for found in preflight(good))  # nothing is trained


def test_a_grid_without_a_zero_point_is_counted_without_one(registry: Registry, models: dict[bool, Path]) -> None:
    config = read_config(_keys(models[True]))
    assert bits(plan_of(registry, models[True], "w2g128-seq"), config)[0] == pytest.approx(2 + 16 / 128)
    assert bits(plan_of(registry, models[True], "w2g128-sym"), config)[0] == pytest.approx(2 + 16 / 128)
    assert bits(plan_of(registry, models[True], "w2g128"), config)[0] == pytest.approx(2 + 18 / 128)


def test_quantized_ends_are_counted_once_and_formats_that_cannot_pack_them_are_told(
    registry: Registry, models: dict[bool, Path]
) -> None:
    ends = {"default": "w2g64", "lm_head": "w4g64", "embed_tokens": "w4g64"}
    for tied in (True, False):
        config = read_config(_keys(models[tied]))
        layers = sum(out * width for out, width in config.linears.values())
        both = (1 if tied else 2) * config.vocab * config.hidden
        packed = layers * (2 + 18 / 64) + both * (4 + 20 / 64) + 16 * (config.parameters - layers - both)
        plan = plan_of(registry, models[tied], ends)
        assert bits(plan, config)[1] == pytest.approx(packed / config.parameters)
        notes = [str(found) for found in preflight(plan) if "16 bits" in found.text]
        (note,) = notes
        assert "'compressed-tensors' writes model.embed_tokens, quantized to w4g64, in 16 bits." in note
        assert "`export: gguf`, `mlx` and `rqat` pack it" in note
        assert not errors(plan)
        own = plan_of(registry, models[tied], ends, export="rqat")
        assert not [found for found in preflight(own) if "16 bits" in found.text]
    gptq = plan_of(registry, models[True], ends, export="gptq")
    assert not errors(gptq)  # the pair is no packed layer there, so one scheme is left
    assert "'gptq' holds one scheme" in errors(plan_of(registry, models[False], ends, export="gptq"))[0]
