"""A stranger's rotation and 8-bit activations, named in a recipe and saved with its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rqat import Problem, RecipeError
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.model.checkpoint import load_checkpoint
from rqat.model.config import read_config
from rqat.pipeline import run_pipeline
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stages.quantize.command import quantize_plan
from rqat.storage import read_json
from tests.third_party.installed import rqat

RECIPE = """\
name: rot
model: builtin:tiny-reasoner
scheme: w8g128
quantize: [acme-rotate, acme-int8, rtn]
export: null
evaluate:
  - {task: arith, limit: 40}
"""


@pytest.fixture
def registry(given: Callable[..., Registry]) -> Registry:
    return given("acme_rotation")


def planned(registry: Registry, quantize: Any, **changes: Any) -> Plan:
    recipe = {"name": "rot", "model": "builtin:tiny-reasoner", "scheme": "w8g128", "quantize": quantize, "export": None}
    return build_plan(built_recipe({**recipe, **changes}, {}), registry)


def problems(registry: Registry, quantize: Any, **changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        planned(registry, quantize, **changes)
    return [problem.strip() for problem in caught.value.problems]


def test_transforms_are_parts_of_the_quantizers_step(registry: Registry) -> None:
    plan = planned(
        registry, [{"method": "acme-rotate", "seed": 1}, "acme-int8", "rtn"], compare=[["acme-rotate", "rtn"]]
    )
    assert [step.variant for step in plan.steps] == ["rtn", "rtn-2"]
    parts = {role: (use.card.kind, use.card.name) for role, use in plan.steps[0].parts.items()}
    assert parts == {
        "transform": ("transform", "acme-rotate"),
        "transform-2": ("transform", "acme-int8"),
        "quantizer": ("quantizer", "rtn"),
    }
    assert plan.steps[0].parts["transform"].options.seed == 1
    assert list(plan.steps[1].parts) == ["transform", "quantizer"]


def test_they_decide_the_fingerprint(registry: Registry) -> None:
    def print_of(*entries: Any) -> str:
        plan = planned(registry, list(entries))
        return plan.fingerprint(plan.steps[0])

    seeded = {"method": "acme-rotate", "seed": 1}
    found = [
        print_of("rtn"),
        print_of("acme-rotate", "rtn"),
        print_of(seeded, "rtn"),
        print_of(seeded, "acme-int8", "rtn"),
        print_of("acme-int8", seeded, "rtn"),
    ]
    assert len(set(found)) == len(found)
    assert print_of({"method": "acme-rotate", "seed": 0}, "rtn") == found[1]
    plan = planned(registry, ["acme-rotate", "rtn"])
    assert plan.facts(plan.steps[0])["parts"]["transform"]["source"]


def test_mistakes_are_one_line(registry: Registry) -> None:
    assert problems(registry, ["acme-rotat", "rtn"]) == [
        "quantize.transforms.0.method: 'acme-rotat' is not a transform. Known: acme-int8, acme-rotate. "
        "Did you mean 'acme-rotate'?"
    ]
    assert problems(registry, [{"method": "acme-rotate", "sed": 1}, "rtn"]) == [
        "quantize.transforms.0.sed: 'sed' is not a key of quantize.transforms.0. Did you mean 'seed'?"
    ]
    assert problems(registry, ["acme-int8", "acme-rotate"]) == [
        "quantize.method: 'acme-rotate' is a transform, with no quantizer behind it; "
        "add a quantizer behind it: `quantize: [acme-rotate, rtn]`."
    ]
    assert problems(registry, ["rtn", "rtn"]) == [
        "quantize.transforms.0.method: 'rtn' is a quantizer, and one quantizer stands at the end; "
        "in front of it stand transforms, known: acme-int8, acme-rotate."
    ]


def test_a_check_of_theirs_is_told_with_its_line(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    options = registry.card("transform", "acme-rotate").options
    monkeypatch.setattr(options, "check", lambda self, context: [Problem("no.", key="seed"), Problem("Nor this.")])
    plan = planned(registry, ["acme-rotate", "rtn"])
    errors = [finding.text for finding in preflight(plan, offline=True) if finding.level == "error"]
    assert errors == ["quantize.transforms.0.seed: no.", "quantize: 'acme-rotate': Nor this."]


def test_hooks_and_an_export_do_not_go_together(registry: Registry) -> None:
    train = [{"objective": "kd", "data": "arith", "steps": 2, "max_tokens": 256}]
    for trained in ([], train):
        plan = planned(registry, ["acme-int8", "rtn"], export="compressed-tensors", train=trained)
        errors = [finding.text for finding in preflight(plan, offline=True) if finding.level == "error"]
        assert errors == ["export: acme-int8 adds forward hooks, which no checkpoint format holds."]
    plan = planned(registry, ["acme-rotate", "rtn"], export="compressed-tensors", compare=[["acme-int8", "rtn"]])
    assert not [finding for finding in preflight(plan, offline=True) if finding.level == "error"]


def test_what_a_start_went_through_counts(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_pipeline(Job(planned(registry, [{"method": "acme-rotate", "seed": 1}, "acme-int8", "rtn"]), tmp_path, registry))
    start = str(tmp_path / "01-quantize-rtn")
    plan = planned(registry, None, start=start, export="compressed-tensors")
    parts = plan.facts(plan.steps[0])["parts"]
    assert (list(parts), parts["transform"]["options"]) == (["transform", "transform-2"], {"seed": 1})
    errors = [finding.text for finding in preflight(plan, offline=True) if finding.level == "error"]
    assert errors == ["export: acme-int8 adds forward hooks, which no checkpoint format holds."]
    monkeypatch.delenv("RQAT_PLUGINS")
    without = Registry.discover()
    lines = problems(without, None, start=start)
    assert len(lines) == 2
    assert "was made with the transform 'acme_rotation:acme-rotate', which is not here; install its plugin" in lines[0]


def test_a_tied_head_may_be_untied(registry: Registry) -> None:
    for quantize, unless in (("rtn", False), (["acme-rotate", "rtn"], True)):
        notes = [finding.text for finding in preflight(planned(registry, quantize), offline=True)]
        [note] = [text for text in notes if "lm_head shares the embedding's weight" in text]
        assert ("unless a transform gives it one of its own" in note) == unless


def test_the_command_takes_them_with_commas(registry: Registry) -> None:
    plan = quantize_plan(registry, "builtin:tiny-reasoner", "acme-rotate, rtn", options={"clip": "mse"}, export=None)
    assert list(plan.steps[0].parts) == ["transform", "quantizer"]
    with pytest.raises(
        RecipeError, match=r"--method quantize.transforms.0.method: 'no' is not a transform|--method: 'no'"
    ):
        quantize_plan(registry, "builtin:tiny-reasoner", "no,rtn")


@pytest.mark.slow
def test_rotated_and_with_8_bit_activations_it_is_as_good(registry: Registry, tmp_path: Path) -> None:
    recipe, run = tmp_path / "rot.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    rqat("qat", "-r", recipe, "-o", run)
    found = read_json(run / "summary.json")["tasks"]["arith"]
    assert found["bf16"]["accuracy"] > 0.8
    assert abs(found["rtn"]["accuracy"] - found["bf16"]["accuracy"]) <= 0.075
    # The folder of the step is a model, whose hooks come back with it.
    folder = run / "01-quantize-rtn"
    rqat("eval", "arith", folder, "--limit", 40, "-o", tmp_path / "alone")
    assert read_json(tmp_path / "alone" / "results.json")["correct"] == found["rtn"]["correct"]
    loaded, original = load_checkpoint(folder), read_config(ModelKeys(path="builtin:tiny-reasoner"))
    hooked = [name for name, module in loaded.model.named_modules() if module._forward_pre_hooks]
    assert len(hooked) == 7 * original.blocks
    assert original.tied
    assert not loaded.model.config.tie_word_embeddings


@pytest.mark.slow
def test_training_starts_from_the_rotated_weights(registry: Registry, tmp_path: Path) -> None:
    recipe, run = tmp_path / "rot.yaml", tmp_path / "run"
    train = "train: [{objective: kd, data: arith, steps: 2, batch: 4, max_tokens: 256}]\n"
    recipe.write_text(RECIPE.replace("acme-int8, ", "").partition("evaluate:")[0].replace("w8", "w3") + train)
    rqat("qat", "-r", recipe, "-o", run)
    results = read_json(run / "02-train-kd" / "manifest.json")["results"]
    assert results["latents_from"] == "the weights before quantization"
    assert [one.name for one in load_checkpoint(run / "02-train-kd").transforms] == ["acme_rotation:acme-rotate"]
