"""A recipe that begins with a finished step of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rqat.errors import RecipeError
from rqat.job import Job
from rqat.pipeline import run_pipeline
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry

MODEL = "builtin:tiny-reasoner"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def plan_of(registry: Registry, **keys: Any) -> Plan:
    recipe = {"name": "r", "model": MODEL, "scheme": "w4g128", "export": None, **keys}
    return build_plan(built_recipe(recipe, {}), registry)


@pytest.fixture(scope="module")
def step(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    run_pipeline(Job(plan_of(registry, quantize="rtn"), folder, registry))
    return folder / "01-quantize-rtn"


def test_what_another_run_made_is_trained_and_kept(registry: Registry, step: Path, tmp_path: Path) -> None:
    train = [{"objective": "sft", "data": "arith", "steps": 1, "batch": 2, "max_tokens": 256}]
    plan = plan_of(registry, start=str(step), train=train)
    assert [one.name for one in plan.steps] == ["01-start", "02-train-sft"]
    assert plan.variants == ["bf16", "rtn", "sft"]
    assert not [found for found in preflight(plan, folder=tmp_path) if found.level == "error"]
    outcome = run_pipeline(Job(plan, tmp_path / "second", registry))
    assert outcome.ran == ["01-start", "02-train-sft"]
    for name in ("model.safetensors", "quantized.safetensors"):
        assert (tmp_path / "second" / "01-start" / name).read_bytes() == (step / name).read_bytes()
    # A trained step brings its latent weights along.
    third = plan_of(registry, start=str(tmp_path / "second" / "02-train-sft"), train=train)
    run_pipeline(Job(third, tmp_path / "third", registry), until="01-start")
    assert (tmp_path / "third" / "01-start" / "latents.safetensors").is_file()
    assert third.variants == ["bf16", "sft", "sft-2"]


def test_only_what_it_holds_counts(registry: Registry, step: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(step)
    one, other = plan_of(registry, start=str(step)), plan_of(registry, start=str(moved))
    assert one.fingerprint(one.steps[0]) == other.fingerprint(other.steps[0])


def errors(plan: Plan) -> list[str]:
    return [str(found) for found in preflight(plan) if found.level == "error"]


def test_mistakes_are_told(registry: Registry, step: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is `quantize`, too"):
        plan_of(registry, start=str(step), quantize="rtn")
    with pytest.raises(RecipeError, match="quantize: is missing"):
        plan_of(registry)
    [line] = [text for text in errors(plan_of(registry, start=str(tmp_path))) if "finished quantize" in text]
    assert "is not a finished quantize or train step" in line
    [line] = errors(plan_of(registry, model=str(step), quantize="rtn"))
    assert f"'{step}' is a finished step of a run. Begin with it: `start: {step}`" in line
