"""Plans: which steps, in which order, with which parts; facts that change when, and only when, a result would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rqat import ModelError, RecipeError
from rqat.facts import difference, settings_facts
from rqat.plan import Plan, build_plan
from rqat.recipe import built_recipe, load_recipe
from rqat.registry import Registry
from rqat.stage import Step
from rqat.stages.evaluate.command import eval_plan
from rqat.stages.quantize.command import quantize_plan
from tests.tiny import save_tiny

WHOLE: dict[str, Any] = {
    "name": "whole",
    "model": "some/model",
    "calibration": "arith",
    "quantize": "gptq",
    "compare": ["rtn", {"method": "gptq", "damp": 0.1}],
    "train": [
        {"objective": "kd", "data": "arith", "steps": 4},
        {"objective": "kd", "data": "arith", "steps": 2},
        {"objective": "grpo", "data": "arith", "task": "arith", "steps": 2},
    ],
    "evaluate": ["arith", {"task": "lm-eval:gsm8k", "variants": ["bf16", "kd-2"]}],
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def plan_of(registry: Registry, *overrides: str, **changes: Any) -> Plan:
    return build_plan(built_recipe({**WHOLE, **changes}, {}, overrides), registry)


def problems(registry: Registry, **changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plan_of(registry, **changes)
    return caught.value.problems


# --------------------------------------------------------------------------------------------------------- steps


def test_steps_in_the_order_of_running(registry: Registry):
    assert [step.name for step in plan_of(registry).steps] == [
        "01-calibrate",
        "02-quantize-gptq",
        "03-quantize-rtn",
        "04-quantize-gptq-2",
        "05-train-kd",
        "06-train-kd-2",
        "07-gate-grpo",
        "08-train-grpo",
        "09-export",
        "10-evaluate-arith-bf16",
        "11-evaluate-arith-gptq",
        "12-evaluate-arith-rtn",
        "13-evaluate-arith-gptq-2",
        "14-evaluate-arith-kd",
        "15-evaluate-arith-kd-2",
        "16-evaluate-arith-grpo",
        "17-evaluate-lm-eval-gsm8k-bf16",
        "18-evaluate-lm-eval-gsm8k-kd-2",
    ]


def test_every_step_starts_from_earlier_ones(registry: Registry):
    plan = plan_of(registry)
    inputs = {step.name: step.inputs for step in plan.steps}
    assert inputs["02-quantize-gptq"] == {"calibration": "01-calibrate"}
    assert inputs["03-quantize-rtn"] == {}
    assert inputs["05-train-kd"] == {"start": "02-quantize-gptq"}
    assert inputs["07-gate-grpo"] == {"start": "06-train-kd-2"}
    assert inputs["08-train-grpo"] == {"start": "06-train-kd-2", "gate": "07-gate-grpo"}
    assert inputs["09-export"] == {"start": "08-train-grpo"}
    assert inputs["10-evaluate-arith-bf16"] == {}
    assert inputs["13-evaluate-arith-gptq-2"] == {"start": "04-quantize-gptq-2"}
    names = [step.name for step in plan.steps]
    for step in plan.steps:
        assert all(names.index(earlier) < names.index(step.name) for earlier in step.inputs.values())


def test_parts_carry_validated_options(registry: Registry):
    plan = plan_of(registry)
    quantize, train = plan.step("04-quantize-gptq-2"), plan.step("08-train-grpo")
    assert quantize.parts["quantizer"].options.damp == 0.1
    assert {role: use.card.name for role, use in train.parts.items()} == {
        "objective": "grpo",
        "source": "arith",
        "task": "arith",
    }
    assert plan.variants == ["bf16", "gptq", "rtn", "gptq-2", "kd", "kd-2", "grpo"]


def test_nothing_is_calibrated_when_nobody_looks_at_data(registry: Registry):
    plan = plan_of(registry, quantize="rtn", compare=[], train=[], evaluate=[])
    assert [step.name for step in plan.steps] == ["01-quantize-rtn", "02-export"]
    assert plan_of(registry, quantize="rtn", compare=[], train=[], evaluate=[], export=None).steps[-1].variant == "rtn"


def test_a_mixture_knows_its_parts(registry: Registry):
    parts = [{"source": "arith", "weight": 0.8}, {"source": "arith", "weight": 0.2, "steps": [1, 2]}]
    plan = plan_of(registry, calibration={"source": "mix", "parts": parts})
    use = plan.step("01-calibrate").parts["source"]
    assert [(part.card.name, weight) for part, weight in use.parts] == [("arith", 0.8), ("arith", 0.2)]
    assert use.parts[1][0].options.steps == (1, 2)


# ------------------------------------------------------------------------------------------------------ problems


def test_every_problem_is_told_with_its_line(registry: Registry, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: a/b\nmodel: m\nscheme: w5\nquantize:\n  method: gtpq\ncompare:\n  - {method: rtn, clp: mse}\n"
        "train:\n  - objective: kd\n    data: arit\n    steps: 1\n    temprature: 2\n"
        "  - objective: grpo\n    data: arith\n    steps: 1\nexport: {format: gptq, x: 1}\n"
        "evaluate:\n  - {task: arith, variants: [kdd]}\n  - math50\n"
        "  - {task: 'lm-eval:x', temprature: 1}\n"
    )
    with pytest.raises(RecipeError) as caught:
        build_plan(load_recipe(path), registry)
    quantizers = ", ".join(card.name for card in registry.cards("quantizer"))
    expected = {
        3: "'w5' asks for 5 bits",
        1: "'a/b' cannot be a name",
        5: f"'gtpq' is not a quantizer. Known: {quantizers}. Did you mean 'gptq'?",
        7: "'clp' is not a key of compare.0. Did you mean 'clip'?",
        12: "'temprature' is not a key of train.0. Did you mean 'temperature'?",
        10: "'arit' is not a source.",
        13: "'grpo' is rewarded by a task's grader",
        16: "'x' is not a key of export",
        18: "'kdd' is not a model of this recipe. Known: bf16, grpo, gtpq, kd, rtn. Did you mean 'kd'?",
        19: "'math50' is not a task.",
        20: "'temprature' is not a key of evaluate.2. Did you mean 'temperature'?",
    }
    assert len(caught.value.problems) == len(expected)
    for line, text in expected.items():
        assert any(found.startswith(f"{path}:{line} ") and text in found for found in caught.value.problems), text


def test_a_quantizer_that_looks_at_data_needs_some(registry: Registry):
    found = problems(registry, calibration=None)
    assert found == [
        "quantize.method: 'gptq' looks at data; add `calibration: {source: ...}`.",
        "compare.1.method: 'gptq' looks at data; add `calibration: {source: ...}`.",
    ]


# -------------------------------------------------------------------------------------------------------- others


def test_the_plan_of_quantize(registry: Registry):
    plan = quantize_plan(
        registry, "m", "gptq", scheme="w4", calibration={"source": "arith", "samples": 4}, export="gptq"
    )
    assert [step.name for step in plan.steps] == ["01-calibrate", "02-quantize-gptq", "03-export"]
    assert plan.recipe.calibration.samples == 4
    with pytest.raises(RecipeError) as caught:
        quantize_plan(registry, "m", "gptt", scheme="w5", calibration="arit", overrides=["quantize.x=1"])
    assert [line.split(":")[0] for line in caught.value.problems] == ["--scheme", "--calibration", "--method"]


def test_the_plan_of_eval(registry: Registry):
    plan = eval_plan(registry, "m", ["arith", {"task": "gsm8k", "limit": 3}])
    assert [step.name for step in plan.steps] == ["01-evaluate-arith-bf16", "02-evaluate-gsm8k-bf16"]
    assert plan.steps[1].settings.limit == 3
    with pytest.raises(RecipeError, match="TASK: 'aritth' is not a task"):
        eval_plan(registry, "m", ["aritth"])


# --------------------------------------------------------------------------------------------------------- facts


def test_facts_are_json_and_always_the_same(registry: Registry, model: Path):
    one, two = plan_of(registry, model=str(model)), plan_of(registry, model=str(model))
    for step in one.steps:
        assert json.loads(json.dumps(one.facts(step))) == one.facts(step)
        assert one.fingerprint(step) == two.fingerprint(two.step(step.name))
    assert len({one.fingerprint(step) for step in one.steps}) == len(one.steps)


def test_fingerprints_of_all_steps_take_each_step_once(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(registry, model=str(model))
    asked: list[str] = []

    def facts(step: Step) -> dict:
        asked.append(step.name)
        return settings_facts(step)

    monkeypatch.setattr("rqat.plan.settings_facts", facts)
    found = plan.fingerprints()
    assert asked == [step.name for step in plan.steps]
    assert found == {step.name: plan.fingerprint(step) for step in plan.steps}


def changed(registry: Registry, model: Path, *overrides: str) -> set[str]:
    """Names of the steps whose fingerprint these overrides change."""
    before = plan_of(registry, model=str(model))
    after = plan_of(registry, *overrides, model=str(model))
    return {step.name for step in before.steps if before.fingerprint(step) != after.fingerprint(after.step(step.name))}


def test_what_cannot_change_a_result_changes_no_fingerprint(registry: Registry, model: Path):
    assert changed(registry, model, "train.0.save_every=7", "name=other", "quantize.shrink=0.0") == set()
    assert changed(registry, model, "evaluate.0.variants=[bf16, gptq, rtn, gptq-2, kd, kd-2, grpo]") == set()


def test_bounds_that_stop_a_training_change_no_fingerprint(registry: Registry, model: Path) -> None:
    """Stopped after hours, it goes on with another bound from its last checkpoint, and not from its first step."""
    bounds = ("patience=3", "truncation_bound=1", "repetition_bound=1", "gap_bound=1")
    assert changed(registry, model, *(f"train.2.{bound}" for bound in bounds)) == set()
    servers = [
        plan_of(registry, f"train.2.rollouts={{engine: vllm, url: 'http://{host}:8000'}}", model=str(model))
        for host in ("one", "two")
    ]
    first, second = (plan.fingerprints() for plan in servers)
    assert first == second != plan_of(registry, model=str(model)).fingerprints()


def test_what_changes_a_result_changes_it_and_all_that_follows(registry: Registry, model: Path):
    names = [step.name for step in plan_of(registry).steps]
    later = {name for name in names if name[:2] in ("06", "07", "08", "09", "15", "16", "18")}
    assert changed(registry, model, "train.1.lr=1e-6") == later
    assert changed(registry, model, "export=gptq") == {"09-export"}
    assert changed(registry, model, "evaluate.0.limit=3") == {name for name in names if "evaluate-arith" in name}
    lm_eval = {name for name in names if "lm-eval" in name}
    assert changed(registry, model, "evaluate.1.temperature=0.5") == lm_eval
    assert changed(registry, model, "train.2.gate.prompts=5") == {
        "07-gate-grpo",
        "08-train-grpo",
        "09-export",
        "16-evaluate-arith-grpo",
    }
    untouched = {"01-calibrate", "10-evaluate-arith-bf16", "17-evaluate-lm-eval-gsm8k-bf16"}
    assert changed(registry, model, "scheme=w3g32") == set(names) - untouched
    unaffected = {
        "03-quantize-rtn",
        "10-evaluate-arith-bf16",
        "12-evaluate-arith-rtn",
        "17-evaluate-lm-eval-gsm8k-bf16",
    }
    assert changed(registry, model, "calibration.seed=1") == set(names) - unaffected


@pytest.mark.parametrize("change", ["temperature=0.5", "top_p=0.9", "max_completion_tokens=8"])
def test_the_gate_samples_as_its_objective_does(registry: Registry, model: Path, change: str):
    assert "07-gate-grpo" in changed(registry, model, f"train.2.{change}")
    assert "07-gate-grpo" not in changed(registry, model, "train.2.lr=1e-7")
    assert changed(registry, model, "train.2.micro_batch=2") == set()


def test_a_teacher_is_known_by_its_contents(registry: Registry, model: Path, tmp_path: Path):
    teacher = Path(shutil.copytree(model, tmp_path / "teacher"))
    assert "teacher" not in plan_of(registry, model=str(model)).facts(plan_of(registry).step("05-train-kd"))
    steps = changed(registry, model, f"train.0.teacher={teacher}")
    assert steps == changed(registry, model, "train.0.lr=1e-6")
    plan = plan_of(registry, f"train.0.teacher={teacher}", model=str(model))
    before = plan.fingerprint(plan.step("05-train-kd"))
    weights = bytearray((teacher / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (teacher / "model.safetensors").write_bytes(weights)
    assert plan.fingerprint(plan.step("05-train-kd")) != before


def test_the_model_is_known_by_its_contents(registry: Registry, model: Path, tmp_path: Path):
    copied = tmp_path / "tiny"
    shutil.copytree(model, copied)
    one, two = plan_of(registry, model=str(model)), plan_of(registry, model=str(copied))
    last = one.steps[-1]
    assert one.fingerprint(last) == two.fingerprint(last)
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert one.fingerprint(last) != two.fingerprint(last)


def test_a_hub_model_has_facts_only_once_it_is_here(registry: Registry):
    plan = plan_of(registry, model="nobody/has-this-model")
    with pytest.raises(ModelError, match=r"the local cache lacks: config\.json"):
        plan.facts(plan.steps[0])


def test_large_files_are_sampled(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rqat import facts

    monkeypatch.setattr(facts, "SMALL_BYTES", 1000)
    facts._file_fact.cache_clear()
    copied = Path(shutil.copy(model / "model.safetensors", tmp_path))
    assert facts.file_fact(copied) == facts.file_fact(model / "model.safetensors")
    assert "sampled" in facts.file_fact(copied)
    before = facts.file_fact(copied)
    copied.write_bytes(copied.read_bytes()[:-1] + b"\x01")
    assert facts.file_fact(copied) != before
    facts._file_fact.cache_clear()


def test_data_files_are_known_by_their_contents(registry: Registry, model: Path, tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("one\n\ntwo\n")
    plan = plan_of(registry, model=str(model), calibration={"source": "text", "path": str(file)})
    before = plan.fingerprint(plan.steps[0])
    file.write_text("one\n\nthree\n")
    assert plan.fingerprint(plan.steps[0]) != before


def test_a_tasks_file_counts_by_what_it_holds_and_not_by_its_spelling(
    registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text("{}\n")
    tasks = [{"task": "lm-eval:arc_easy", "data": name} for name in ("d.jsonl", "./d.jsonl", tmp_path / "d.jsonl")]
    plans = [eval_plan(registry, str(model), [task | {"data": str(task["data"])}]) for task in tasks]
    assert len({plan.fingerprint(plan.steps[0]) for plan in plans}) == 1
    before = plans[0].fingerprint(plans[0].steps[0])
    (tmp_path / "d.jsonl").write_text("{} \n")
    assert plans[0].fingerprint(plans[0].steps[0]) != before


def test_lm_eval_counts_the_same_before_and_after_it_is_loaded(registry: Registry, model: Path, monkeypatch):
    """A second task of it would else have another fingerprint when its turn comes, and never be finished."""
    plan = eval_plan(registry, str(model), ["lm-eval:arc_easy"])
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    before = plan.fingerprint(plan.steps[0])
    monkeypatch.setitem(sys.modules, "lm_eval", sys.modules["rqat_rtn"])
    assert plan.fingerprint(plan.steps[0]) == before


def test_files_found_by_the_environment_are_known_by_their_contents(
    registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RQAT_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    plan = eval_plan(registry, str(model), ["gsm8k", "arith"])
    gsm8k, arith = (plan.fingerprint(step) for step in plan.steps)
    (tmp_path / "gsm8k" / "test.jsonl").write_text("{}")
    assert plan.fingerprint(plan.steps[0]) != gsm8k
    assert plan.fingerprint(plan.steps[1]) == arith
    named = eval_plan(registry, str(model), [{"task": "gsm8k", "data": str(tmp_path / "other.jsonl")}])
    assert "files" not in named.facts(named.steps[0])["parts"]["task"]


def test_a_difference_reads_well(registry: Registry, model: Path):
    before, after = (plan_of(registry, *o, model=str(model)) for o in ([], ["quantize.damp=0.5", "quantize.skip=[a]"]))
    name = "02-quantize-gptq"
    assert difference(before.facts(before.step(name)), after.facts(after.step(name))) == [
        "parts.quantizer.options.damp: null there, 0.5 now",
        "settings.skip.0: nothing there, a now",
    ]
    train = "05-train-kd"
    assert difference(before.facts(before.step(train)), after.facts(after.step(train))) == [
        "the step it starts from (start) differs"
    ]
    assert difference(before.facts(before.step(name)), before.facts(before.step(name))) == []


def test_planning_needs_neither_torch_nor_transformers(model: Path):
    code = (
        "import sys; from rqat.registry import Registry; from rqat.recipe import load_recipe\n"
        "from rqat.plan import build_plan; from rqat.stages.quantize.command import quantize_plan\n"
        "from rqat.preflight import preflight\n"
        "r = Registry.discover(); build_plan(load_recipe('quickstart'), r)\n"
        f"p = quantize_plan(r, {str(model)!r}, 'gptq', calibration='arith'); preflight(p); p.fingerprint(p.steps[-1])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'trl', 'lm_eval'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_is_told_of_a_training_decides_no_result() -> None:
    registry = Registry.discover()
    plain, logged = (
        build_plan(load_recipe("quickstart", changes), registry) for changes in ([], ["log=[tensorboard, wandb]"])
    )
    assert logged.recipe.log == ("tensorboard", "wandb")
    assert [plain.fingerprint(step) for step in plain.steps] == [logged.fingerprint(step) for step in logged.steps]
