"""Every recipe that comes with rqat plans, says where it runs, and marks where its values come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rqat.plan import build_plan
from rqat.preflight import preflight
from rqat.recipe import load_recipe, recipe_folder, shipped_recipes
from rqat.registry import Registry

RECIPES = sorted(shipped_recipes())


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def test_recipes_are_found_in_a_checkout():
    assert recipe_folder() == Path(__file__).parents[1] / "recipes"
    assert "quickstart" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_it_plans(registry: Registry, name: str):
    plan = build_plan(load_recipe(name), registry)
    assert plan.recipe.name == name, "a recipe is called what its file is called"
    stages = [step.stage for step in plan.steps if step.stage != "produce"]  # data, each before its first reader
    assert stages == sorted(
        stages, key=["calibrate", "measure", "budget", "quantize", "gate", "train", "export", "evaluate"].index
    ) or (stages.index("train") < stages.index("gate"))
    assert [use.card.name for step in plan.steps if (use := step.parts.get("objective"))] == ["kd", "grpo"]
    assert "export" in stages
    assert {step.variant for step in plan.steps if step.stage == "evaluate"} >= {"bf16", "gptq", "kd", "grpo"}


@pytest.mark.parametrize("name", RECIPES)
def test_its_header_says_how_to_run_it_and_what_to_expect(name: str):
    header = shipped_recipes()[name].read_text().split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    assert len(header[0]) > 40
    text = "\n".join(header)
    assert f"# Command:   rqat qat --recipe {name}\n" in text
    for word in ("GPU", "Minutes", "Score"):
        assert re.search(rf"^# {word}:\s+\S", text, re.MULTILINE), f"the header lacks {word}"


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "quickstart"])
def test_every_setting_of_training_has_a_source(name: str):
    """A value that decides the result is followed by `# ours` or by the mark of a source."""
    deciding = "lr|scale_lr|zero_lr|steps|batch|max_tokens|temperature|samples|tokens|damp|objective|scheme|model"
    for line in shipped_recipes()[name].read_text().splitlines():
        if re.match(rf"\s*(- )?({deciding}):", line):
            assert re.search(r"# (ours|\[(paper|notes|sibling|effqat|coder)\])", line), line


def test_quickstart_is_ready_to_run(registry: Registry):
    findings = preflight(build_plan(load_recipe("quickstart"), registry))
    assert [str(finding) for finding in findings if finding.level != "note"] == []
