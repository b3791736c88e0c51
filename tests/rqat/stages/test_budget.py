"""A budget in a plan and in a run: bounds before, a file within it after, and what counts for which step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rqat import RecipeError
from rqat.job import Job
from rqat.model.config import read_config
from rqat.pipeline import run_pipeline
from rqat.plan import Plan, build_plan
from rqat.preflight import bits, preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from tests.tiny import save_tiny

TEXT = [{"text": f"{number} plus {number % 7} makes {number + number % 7}, and so on."} for number in range(60)]


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
def test_a_run_keeps_within_its_budget(registry: Registry, model: Path, rows: Path, tmp_path: Path) -> None:
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


def test_formats_without_a_packed_embedding_offer_none(registry: Registry, model: Path, rows: Path) -> None:
    low = [
        next(text for text in found(plan_of(registry, model, rows, 6, export=export), "note") if "between" in text)
        for export in ("rqat", "compressed-tensors")
    ]
    assert low[0].partition("between")[2] != low[1].partition("between")[2]


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
