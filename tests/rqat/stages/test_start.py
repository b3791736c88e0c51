"""A recipe that begins with a finished step of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rqat.cli.app import build
from rqat.errors import RecipeError
from rqat.job import Job
from rqat.model.checkpoint import load_layers
from rqat.model.hub import QUANTIZED_FILE
from rqat.model.native import load_quantized
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


def test_an_exported_folder_of_our_own_is_a_start_others_are_one_line(registry: Registry, tmp_path: Path) -> None:
    ends = {"default": "w2g128", "lm_head": "w4g128"}
    first = plan_of(registry, quantize="rtn", scheme=ends, export="rqat")
    run_pipeline(Job(first, tmp_path / "first", registry))
    step, exported = tmp_path / "first" / "01-quantize-rtn", tmp_path / "first" / "02-export" / "model"
    train = [{"objective": "sft", "data": "arith", "steps": 1, "batch": 2, "max_tokens": 256, "train_embedding": True}]
    plan = plan_of(registry, start=str(exported), train=train, export="rqat")
    assert not errors(plan)
    run_pipeline(Job(plan, tmp_path / "second", registry))
    before, after = load_layers(step / QUANTIZED_FILE), load_layers(tmp_path / "second" / "01-start" / QUANTIZED_FILE)
    assert all(layer.equals(before[name]) for name, layer in after.items())
    assert "model.embed_tokens" in after
    trained = load_layers(tmp_path / "second" / "02-train-sft" / QUANTIZED_FILE)
    again = load_quantized(tmp_path / "second" / "03-export" / "model")
    assert all(layer.equals(trained[name]) for name, layer in again.layers.items())

    other = plan_of(registry, quantize="rtn", scheme="w2g128", export="compressed-tensors")
    run_pipeline(Job(other, tmp_path / "other", registry))
    served = tmp_path / "other" / "02-export" / "model"
    plan = plan_of(registry, start=str(served), train=[train[0] | {"train_embedding": False}])
    assert not errors(plan)
    run_pipeline(Job(plan, tmp_path / "third", registry))
    before = load_layers(tmp_path / "other" / "01-quantize-rtn" / QUANTIZED_FILE)
    after = load_layers(tmp_path / "third" / "01-start" / QUANTIZED_FILE)
    assert all(layer.equals(before[name]) for name, layer in after.items())
    config = json.loads((served / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "bitsandbytes"
    (served / "config.json").write_text(json.dumps(config))
    (line,) = errors(plan_of(registry, start=str(served)))
    assert "quantized in a way that is not taken over (bitsandbytes). Taken over are rqat, gptq, awq" in line


def errors(plan: Plan) -> list[str]:
    return [str(found) for found in preflight(plan) if found.level == "error"]


def test_mistakes_are_told(registry: Registry, step: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is `quantize`, too"):
        plan_of(registry, start=str(step), quantize="rtn")
    with pytest.raises(RecipeError, match="quantize: is missing"):
        plan_of(registry)
    [line] = [text for text in errors(plan_of(registry, start=str(tmp_path))) if "finished quantize" in text]
    assert "is not a finished quantize or train step" in line
    [line] = [text for text in errors(plan_of(registry, start=str(step.parent))) if "finished quantize" in text]
    assert line.endswith(f"Name the folder of one, such as {step}.")
    [line] = [text for text in errors(plan_of(registry, start=str(tmp_path / "none"))) if "none" in text]
    assert "does not exist" in line
    half = Path(shutil.copytree(step, tmp_path / "02-train-kd.partial"))
    [line] = errors(plan_of(registry, start=str(half)))
    assert "is not finished. Wait for its run" in line
    [line] = errors(plan_of(registry, model=str(step), quantize="rtn"))
    assert f"'{step}' is a finished step of a run. Begin with it: `start: {step}`" in line


def test_the_grid_of_a_start_counts_and_has_to_suit_what_follows(
    registry: Registry, step: Path, tmp_path: Path
) -> None:
    """The recipe's own scheme, which it may not even name, says nothing of what was taken over."""
    made = tmp_path / "made"
    run_pipeline(Job(plan_of(registry, quantize="rtn", scheme="w2g128-seq"), made, registry))
    plan = plan_of(registry, scheme="w2g128", start=str(made / "01-quantize-rtn"), export="compressed-tensors")
    assert any("'compressed-tensors' cannot write the grid 'seq' of w2g128-seq" in line for line in errors(plan))
    (grid,) = plan.facts(plan.steps[0])["parts"].values()
    assert grid["plugin"] == "rqat_seq"
    assert grid["source"]
    assert not errors(plan_of(registry, scheme="w2g128-seq", start=str(step), export="compressed-tensors"))


def test_a_start_of_another_model_is_told_by_what_differs(step: Path, tmp_path: Path) -> None:
    config = json.loads((step / "config.json").read_text())
    for key, value in (("intermediate_size", 2 * config["intermediate_size"]), ("num_hidden_layers", 99)):
        other = tmp_path / key
        shutil.copytree(step, other)
        (other / "config.json").write_text(json.dumps(config | {key: value}))
        for command in (["plan"], ["qat", "-o", str(tmp_path / "run"), "--recipe"]):
            recipe = tmp_path / "r.yaml"
            recipe.write_text(f"name: r\nmodel: {MODEL}\nstart: {other}\nexport: null\n")
            result = CliRunner().invoke(build(), [*command, str(recipe)])
            assert result.exit_code == 2, result.output
            assert f"was made from another model than '{MODEL}': {key} is {value} and {config[key]}" in result.output
    assert not (tmp_path / "run").exists()


def test_a_scheme_beside_a_start_has_no_part_in_it(registry: Registry, step: Path) -> None:
    assert plan_of(registry, start=str(step)).spelled == "w4g128"
    plan = plan_of(registry, start=str(step), scheme="w2g64")
    assert plan.spelled == "w4g128"
    told = [str(found) for found in preflight(plan) if found.level == "warning"]
    assert any(f"'w2g64' has no part in this: '{step}' stays at w4g128" in line for line in told), told
    assert not any("has no part" in str(found) for found in preflight(plan_of(registry, start=str(step))))


def test_a_scheme_beside_a_start_redoes_nothing_but_comparisons(registry: Registry, step: Path) -> None:
    train = [{"objective": "sft", "data": "arith", "steps": 1, "batch": 2, "max_tokens": 256}]
    keys: dict[str, Any] = {"start": str(step), "train": train, "export": "rqat", "compare": ["rtn"]}
    before, after = (plan_of(registry, scheme=scheme, **keys).fingerprints() for scheme in ("w4g128", "w2g64"))
    changed = {name for name in before if before[name] != after[name]}
    assert {name.partition("-")[2] for name in changed} == {"quantize-rtn-2"}
    assert len(before) == 4
    assert any(
        "no part in this, only in `compare`: " in str(one)
        for one in preflight(plan_of(registry, **keys | {"scheme": "w2g64"}))
    )


def test_a_start_in_the_runs_own_folder_is_refused_before_it_is_set_aside(step: Path, tmp_path: Path) -> None:
    """As of a recipe that went on from its own result under its own name; with `--fresh` it would be gone."""
    run = tmp_path / "run"
    shutil.copytree(step, run / step.name)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\nmodel: {MODEL}\nstart: {run / step.name}\nexport: null\n")
    for more, what in (([], "sets it aside"), (["--fresh"], "is emptied")):
        result = CliRunner().invoke(build(), ["qat", str(recipe), "-o", str(run), *more])
        assert result.exit_code == 2, result.output
        told = f"r.yaml:3 start: '{run / step.name}' lies in this run's own folder, which {what} before."
        assert told in " ".join(result.output.split())
    assert [path.name for path in run.iterdir()] == [step.name]


def test_other_weights_than_the_start_was_made_from_are_told(registry: Registry, step: Path, tmp_path: Path) -> None:
    def told(folder: Path) -> list[str]:
        return [
            str(found) for found in preflight(plan_of(registry, start=str(folder))) if "other weights" in str(found)
        ]

    assert not told(step)
    other = tmp_path / "other"
    shutil.copytree(step, other)
    manifest = json.loads((other / "manifest.json").read_text())
    weights = manifest["facts"]["model"]["weights"]
    manifest["facts"]["model"]["weights"] = dict.fromkeys(weights, "another")
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert len(told(other)) == 1
    manifest["facts"] = "damaged"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert not told(other)
