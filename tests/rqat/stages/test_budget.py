"""A budget in a plan and in a run: bounds before, a file within it after, and what counts for which step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rqat
from rqat import Exporter, RecipeError, Schemes
from rqat.budget import offer
from rqat.capacity import bits, estimate
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.model.config import read_config
from rqat.model.families import LLAMA
from rqat.pipeline import run_pipeline
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stages.budget.weigh import ENTRY, Weigher
from tests.servers.files import byte_tokenizer, small_model
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TEXT = [{"text": f"{number} plus {number % 7} makes {number + number % 7}, and so on."} for number in range(60)]

PINNED = {"default": "w4g32", "*_proj": "w4g32", "embed_tokens": "w8g32"}
"""A scheme that leaves no layer to the budget."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXT))
    return path


def plan_of(registry: Registry, model: Path, rows: Path | None, budget: Any, **changes: Any) -> Plan:
    data: dict[str, Any] = {
        "name": "budget",
        "model": str(model),
        "scheme": "w4g32",
        "quantize": "gptq",
        "export": "rqat",
        "budget": budget,
        **changes,
    }
    if rows is not None:
        data["calibration"] = {"source": str(rows), "samples": 4, "tokens": 32}
    return build_plan(built_recipe(data, {}), registry)


def found(plan: Plan, level: str) -> list[str]:
    return [f"{each.text} {each.hint}" for each in preflight(plan) if each.level == level]


@pytest.mark.slow
def test_block_ap_is_measured_by_the_quantizer_that_its_blocks_start_from(
    registry: Registry, model: Path, rows: Path, tmp_path: Path
) -> None:
    costs = {}
    for name, quantize in (("gptq", "gptq"), ("block-ap", {"method": "block-ap", "start": "gptq", "epochs": 0})):
        plan = plan_of(registry, model, rows, {"size": "3.6bits", "samples": 2}, quantize=quantize, export=None)
        run_pipeline(Job(plan, tmp_path / name, registry))
        costs[name] = next((tmp_path / name).glob("*-measure/costs.json")).read_bytes()
    assert costs["gptq"] == costs["block-ap"]


@pytest.mark.slow
def test_a_run_keeps_within_its_budget(
    registry: Registry, model: Path, rows: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    budget = {"size": "3.6bits", "samples": 4}
    plan = plan_of(registry, model, rows, budget)
    run_pipeline(Job(plan, tmp_path, registry))
    config = read_config(plan.model)
    assert bits(plan, config) == (None, pytest.approx(3.6, abs=1e-4))
    asked = int(3.6 * config.parameters / 8)
    file = next(tmp_path.glob("*-export/model/model.safetensors"))
    chosen = json.loads(next(tmp_path.glob("*-budget/scheme.json")).read_text())
    assert chosen["budget"] == asked
    assert 0.98 * asked <= file.stat().st_size <= chosen["bytes"] <= asked
    written = json.loads(file.with_name("config.json").read_text())["quantization_config"]["layers"]
    assert written == chosen["layers"]
    assert len({*written.values()}) > 1
    assert chosen["kl"] == pytest.approx(sum(unit["kl"][str(unit["bits"])] for unit in chosen["units"]))
    assert len(chosen["units"]) == 1 + 2 * 7
    report = (tmp_path / "report.html").read_text()
    assert "Widths within the budget" in report
    assert "w4g32, widths within 3.6bits" in report

    # From Python the same rows make the same choice, and the same file.
    calibration = {"source": str(rows), "samples": 4, "tokens": 32}
    quantized = rqat.quantize(
        model, method="gptq", scheme="w4g32", calibration=calibration, budget=budget, format="rqat", device="cpu"
    )
    assert quantized.chosen == chosen
    assert quantized.schemes == chosen["layers"]
    exported = tmp_path_factory.mktemp("python") / "out"
    rqat.export(quantized, exported, "rqat")
    assert (exported / file.name).read_bytes() == file.read_bytes()

    # Another size redoes the choice, not the measuring.
    smaller = plan_of(registry, model, rows, {**budget, "size": "3.3bits"})
    before = {step.stage: plan.fingerprint(step) for step in plan.steps}
    after = {step.stage: smaller.fingerprint(step) for step in smaller.steps}
    changed = {stage for stage in before if before[stage] != after[stage]}
    assert changed == {"budget", "quantize", "export"}
    run_pipeline(Job(smaller, tmp_path, registry))
    assert file.stat().st_size <= 3.3 * config.parameters / 8


def test_a_plan_says_what_can_be_had(registry: Registry, model: Path, rows: Path) -> None:
    fine = plan_of(registry, model, rows, 3.6)
    assert any("3.6bits of weights; between " in text for text in found(fine, "note"))
    assert not found(fine, "error")
    for size in ("1bits", "9MB"):
        (error,) = found(plan_of(registry, model, rows, size), "error")
        assert f"{size} cannot be had" in error
        assert "between 0.10MB (2.65bits) and 0.36MB (9.15bits) are possible" in error


def test_a_width_for_every_layer_leaves_nothing_to_choose(registry: Registry, model: Path, rows: Path) -> None:
    (error,) = found(plan_of(registry, model, rows, 5, scheme=PINNED), "error")
    assert "no width is left to choose for 5bits" in error
    assert "Leave out a pattern" in error


def test_formats_without_a_packed_embedding_offer_none(registry: Registry, model: Path, rows: Path) -> None:
    low = [
        next(text for text in found(plan_of(registry, model, rows, 6, export=export), "note") if "between" in text)
        for export in ("rqat", "compressed-tensors")
    ]
    assert low[0].partition("between")[2] != low[1].partition("between")[2]


def test_a_format_that_takes_as_much_for_every_width_is_told(registry: Registry, model: Path, rows: Path) -> None:
    (error,) = found(plan_of(registry, model, rows, 5, export="bf16"), "error")
    assert (
        "budget.size: 5bits cannot be had of this model with these widths in 'bf16': only 0.62MB (16.00bits)" in error
    )
    assert "takes as much for every width. Choose another; a recipe with `export: null`" in error


def test_a_budget_counts_the_types_that_gguf_has(registry: Registry, model: Path, rows: Path) -> None:
    """2 and 3 bits take 4.5 there, 4 bits 5.5, 8 bits with zero points 16: not what the scheme says."""
    errors = found(plan_of(registry, model, rows, 3.6, export="gguf"), "error")
    assert any("3.6bits cannot be had of this model with these widths in 'gguf': between" in text for text in errors)
    offered = offer(
        Schemes.parse("w4g32"), (2, 3, 4, 8), (4, 16), True,
        linears={"model.layers.0.mlp.down_proj": (128, 256)}, end_shapes={}, layout=LLAMA, blocks=1,
    )  # fmt: skip
    exporter = Exporter(registry.card("exporter", "gguf").options())
    weigher = Weigher(tiny_model(), offered, exporter)
    taken = {bits: weigher.unit(("model.layers.0.mlp.down_proj",), bits) for bits in (2, 3, 4, 8)}
    assert taken == {bits: ENTRY + 128 * 256 * of / 8 for bits, of in ((2, 4.5), (3, 4.5), (4, 5.5), (8, 16))}


def test_a_budget_counts_the_vocabulary_that_a_file_of_gguf_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here a quarter of the file. The plan's bounds count it, and the file keeps within what was asked for."""
    small_model(tied=True).bfloat16().save_pretrained(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{# " + 300_000 * "-" + " #}{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "model")
    budget: dict[str, Any] = {"size": "1.5MB", "widths": [2, 8], "ends": [8], "samples": 2}
    made = rqat.quantize(
        tmp_path / "model",
        method="rtn",
        scheme="w4g32-sym",
        calibration=TEXT,
        budget=budget,
        format="gguf",
        device="cpu",
    )
    rqat.export(made, tmp_path / "out", "gguf")
    size = (tmp_path / "out" / "model.gguf").stat().st_size
    assert made.chosen
    assert size <= made.chosen["bytes"] <= size + 20_000
    assert "more than the budget" not in caplog.text
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, TEXT)))
    plan = plan_of(Registry.discover(), tmp_path / "model", tmp_path / "rows.jsonl", "0.4MB", export="gguf")
    (error,) = found(plan, "error")
    low = float(error.partition("between ")[2].partition("MB")[0])
    assert low > 0.3 + 4.5 * read_config(plan.model).parameters / 8e6


def test_the_disk_that_an_export_takes_is_the_budget(registry: Registry, model: Path, rows: Path) -> None:
    config = read_config(ModelKeys(path=str(model)))

    def disk(budget: Any, export: str) -> float:
        plan = plan_of(registry, model, rows, budget, export=export)
        return next(one.disk_bytes for one in estimate(plan, config) if one.step.endswith("-export"))

    assert disk(3.6, "rqat") == int(3.6 * config.parameters / 8)
    assert disk(None, "bf16") == pytest.approx(2 * config.parameters, rel=0.01)
    assert disk(None, "rqat") < disk(None, "gguf") < disk(None, "bf16")


def test_what_is_chosen_apart_is_measured_apart(registry: Registry, model: Path, rows: Path) -> None:
    plans = [plan_of(registry, model, rows, {"size": 4, "together": together}) for together in (True, False)]
    measured = [next(plan.fingerprint(s) for s in plan.steps if s.stage == "measure") for plan in plans]
    assert measured[0] != measured[1]
    usual = [plan_of(registry, model, rows, 4, export=export) for export in ("rqat", "compressed-tensors")]
    settings = [next(step.settings for step in plan.steps if step.stage == "measure") for plan in usual]
    assert [one.together for one in settings] == [False, True]  # vLLM loads the latter
    (step,) = (s for s in plans[1].steps if s.stage == "quantize")
    sketch = plans[1].schemes(step, read_config(plans[1].model))
    assert len({sketch[f"model.layers.0.self_attn.{name}_proj"] for name in "qkv"}) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "3 apples"}, "is not a size"),
        ({"budget": {"size": 3, "widths": [5]}}, "choose from 2, 3, 4, 8"),
        ({"rows": None, "quantize": "rtn"}, "is measured on text; add `calibration"),
        ({"quantize": None}, "nothing is quantized here"),
        ({"scheme": "w2g32-seq"}, "grid 'seq' has 2 bits, not 3, 4, 8; set budget.widths and budget.ends"),
    ],
)
def test_mistakes_are_told(registry: Registry, model: Path, rows: Path, changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"rows": rows, "budget": "3bits", **changes}
    with pytest.raises(RecipeError, match=words):
        plan_of(registry, model, **given)


def test_too_few_rows_are_told(registry: Registry, model: Path, rows: Path, tmp_path: Path) -> None:
    from rqat import DataError

    plan = plan_of(registry, model, rows, {"size": 3.6, "samples": 500})
    with pytest.raises(DataError, match="500 sequences behind the 4"):
        run_pipeline(Job(plan, tmp_path, registry))


def test_a_loaded_model_takes_a_budget_and_rows(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = tiny_model().train()
    model.get_input_embeddings().weight.requires_grad_(False)
    learns = {name: each.requires_grad for name, each in model.named_parameters()}
    budget: dict[str, Any] = {"size": 3.5, "widths": [2, 4], "ends": [4], "samples": 4}
    quantized = rqat.quantize(
        model, tiny_tokenizer(), "rtn", {"default": "w8g32", "*.v_proj": "w3g32"}, calibration=TEXT[:6], budget=budget
    )
    assert quantized.model is model
    assert model.training
    assert {name: each.requires_grad for name, each in model.named_parameters()} == learns
    bits = {name: int(spelled[1]) for name, spelled in quantized.schemes.items()}
    assert {each for name, each in bits.items() if name.endswith(".v_proj")} == {3}, "patterns pin"
    assert {each for name, each in bits.items() if not name.endswith(".v_proj")} == {2, 4}
    assert bits["model.embed_tokens"] == 4
    assert quantized.chosen
    assert quantized.chosen["bytes"] <= quantized.chosen["budget"] == int(3.5 * model.num_parameters() / 8)
    # What it says is what `scheme` takes, and one that was chosen is made again.
    again = rqat.quantize(tiny_model(), tiny_tokenizer(), "rtn", {"default": "w8g32", **quantized.schemes})
    assert all(layer.equals(quantized.layers[name]) for name, layer in again.layers.items())
    rqat.export(quantized, tmp_path / "out", "bf16")
    assert "more than the budget" in caplog.text, "a format that holds every width in 16 bits"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget": "1bits"}, "1bits cannot be had .* between 0.10MB .* Ask for more"),
        ({"budget": "9MB"}, "9MB cannot be had .* Ask for less"),
        ({"budget": "9MB", "format": "compressed-tensors"}, "9MB cannot be had .* in 'compressed-tensors'"),
        ({"budget": "small"}, "'small' is not a size"),
        ({"budget": -3}, "'-3bits' is not a size"),
        ({"budget": {"size": 3, "width": [2]}}, "'width' is not a key. Did you mean 'widths'"),
        ({"budget": {"size": 3, "widths": [5]}}, "choose from 2, 3, 4, 8"),
        ({"budget": 4, "calibration": None}, "a budget, whose costs are measured on text, needs calibration"),
        ({"budget": 4, "calibration": TEXT[:10]}, "16 sequences behind the 1 of the calibration .* source has"),
        ({"budget": 4, "format": "ggguf"}, "'ggguf' is not an exporter.* Did you mean 'gguf'"),
        ({"budget": 4, "format": 3}, "format=3 names no format"),
        ({"budget": 4, "format": "awq"}, "'awq' holds one scheme for all layers"),
        ({"format": "rqat"}, "says whose bytes a budget counts, and there is none"),
        ({"budget": 4, "scheme": "w2g32-seq"}, "grid 'seq' has 2 bits, not 3, 4, 8"),
        ({"budget": 4, "scheme": {"default": "w4g32", "*_porj": "w4g32"}}, "'\\*_porj' matches no linear layer"),
        ({"budget": 4, "format": "mlx", "scheme": PINNED}, "no width is left to choose for 4bits"),
        (
            {"budget": 4, "scheme": {"default": "w4g32", "embed_tokens": "w4g32", "lm_head": "w8g32"}},
            "w4g32 for model.embed_tokens and w8g32 for lm_head, but the model's head is tied",
        ),
    ],
)
def test_mistakes_from_python_are_told(model: Path, given: dict[str, Any], words: str) -> None:
    usual: dict[str, Any] = {"method": "rtn", "scheme": "w4g32", "calibration": TEXT, "device": "cpu"}
    with pytest.raises(rqat.RqatError, match=words):
        rqat.quantize(model, **usual | given)
