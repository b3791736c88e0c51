"""A finished step as the start of another run: what it is, what may be done with it, and what is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rqat import RecipeError
from rqat.keys import ModelKeys
from rqat.model.config import read_config
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stages.evaluate.command import eval_plan
from rqat.start import kept_name, start_of
from tests.training import write_start


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantize step with the part of its manifest that counts here."""
    root = tmp_path_factory.mktemp("made")
    step = write_start(root)
    manifest = {"variant": "rtn", "model": kept_name(ModelKeys(path=str(root / "model")))}
    (step / "manifest.json").write_text(json.dumps(manifest))
    return step


def plan_of(registry: Registry, model: Path, **changes: Any) -> Plan:
    data: dict[str, Any] = {
        "name": "again",
        "model": str(model),
        "quantize": None,
        "train": [{"objective": "kd", "data": "arith", "steps": 4, "max_tokens": 128}],
        "evaluate": [{"task": "arith", "limit": 3}],
    }
    return build_plan(built_recipe({**data, **changes}, {}), registry)


def test_a_step_is_told_from_a_model(made: Path):
    start = start_of(ModelKeys(path=str(made)))
    assert start is not None
    assert (start.variant, str(start.schemes)) == ("rtn", "w2g32")
    assert start.model == ModelKeys(path=str(made.parents[1] / "model"))
    assert start_of(start.model) is None


def test_everything_starts_from_the_step(registry: Registry, made: Path):
    plan = plan_of(registry, made)
    assert [step.name for step in plan.steps] == [
        "01-train-kd",
        "02-export",
        "03-evaluate-arith-bf16",
        "04-evaluate-arith-rtn",
        "05-evaluate-arith-kd",
    ]
    train, evaluate = plan.step("01-train-kd"), plan.step("04-evaluate-arith-rtn")
    assert train.inputs == evaluate.inputs == {"start": str(made)}
    assert plan.model.path == str(made.parents[1] / "model")
    assert plan.variants == ["bf16", "rtn", "kd"]
    schemes = plan.schemes(train, read_config(plan.model))
    assert {str(scheme) for scheme in schemes.values()} == {"w2g32"}


def test_a_start_counts_by_what_it_holds(registry: Registry, made: Path, tmp_path: Path):
    copied = Path(shutil.copytree(made, tmp_path / "elsewhere"))
    one, two = plan_of(registry, made), plan_of(registry, copied)
    assert one.fingerprint(one.steps[0]) == two.fingerprint(two.steps[0])
    with (copied / "quantized.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read()[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert one.fingerprint(one.steps[0]) != two.fingerprint(two.steps[0])


def test_a_step_is_not_quantized_again(registry: Registry, made: Path):
    with pytest.raises(RecipeError, match="is a finished step, and quantized already; write `quantize: null`"):
        plan_of(registry, made, quantize="rtn")
    with pytest.raises(RecipeError, match=r"train\.0: there is no quantized model to train"):
        plan_of(registry, made.parents[1] / "model")


def test_preflight_says_what_it_starts_from(registry: Registry, made: Path):
    texts = [str(found) for found in preflight(plan_of(registry, made, scheme="w3g64"))]
    assert any("starts from" in text and "which is rtn at w2g32" in text for text in texts)
    assert any("scheme: w3g64 is not used" in text for text in texts)
    assert any("is not what it was when that step was made" in text for text in texts)


def test_a_folder_that_does_not_say_what_it_was_made_from(registry: Registry, made: Path, tmp_path: Path):
    saved = Path(shutil.copytree(made, tmp_path / "saved"))
    (saved / "manifest.json").unlink()
    assert [step.name for step in eval_plan(registry, str(saved), ["arith"]).steps] == ["01-evaluate-arith-saved"]
    assert [step.variant for step in plan_of(registry, saved, train=[], export=None).steps] == ["saved"]
    with pytest.raises(RecipeError, match="does not say which model it was made from; train from a step of a run"):
        plan_of(registry, saved)


def test_a_damaged_start_is_one_line(registry: Registry, made: Path, tmp_path: Path):
    damaged = Path(shutil.copytree(made, tmp_path / "damaged"))
    (damaged / "quantized.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00")
    with pytest.raises(RecipeError, match=r"model: '.*' cannot be read: it is damaged"):
        plan_of(registry, damaged)
