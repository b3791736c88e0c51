"""Traces that the model itself writes: once, before quantization, for calibration and training alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import rqat.testing as rqat_testing
from rqat import Completion, LoadedModel, PluginError
from rqat.job import Job
from rqat.model.original import Original
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight, read_data
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stages.produce import run as produce
from rqat.storage import read_json
from tests.rqat.cli.test_commands import rqat

TRACES: dict[str, Any] = {"source": "acme-traces", "prompts": [{"source": "arith", "steps": [1, 2]}], "rows": 12}
RECIPE: dict[str, Any] = {
    "name": "traces",
    "model": "builtin:tiny-reasoner",
    "scheme": "w2g128",
    "calibration": TRACES | {"samples": 4, "tokens": 64},
    "quantize": "gptq",
    "train": [{"objective": "kd", "data": TRACES, "steps": 2, "batch": 4, "max_tokens": 256}],
    "export": None,
}


@pytest.fixture
def registry(given: Callable[..., Registry]) -> Registry:
    return given("acme_traces")


def planned(registry: Registry, *overrides: str, **changes: Any) -> Plan:
    return build_plan(built_recipe(RECIPE | changes, {}, overrides), registry)


# ------------------------------------------------------------------------------------------------------ the plan


def test_steps_that_name_the_same_share_one_step_before_them(registry: Registry) -> None:
    plan = planned(registry)
    names = ["01-produce-acme-traces", "02-calibrate", "03-quantize-gptq", "04-train-kd"]
    assert [step.name for step in plan.steps] == names
    assert [step.reads for step in plan.steps] == [[], [names[0]], [], [names[0]]]


@pytest.mark.parametrize("other", ["rows=8", "seed=1", "split=validation", "prompts=[{source: arith, steps: [1, 3]}]"])
def test_another_option_seed_or_split_is_a_step_of_its_own(registry: Registry, other: str) -> None:
    plan = planned(registry, f"train.0.data.{other}")
    made = [step.name for step in plan.steps if step.stage == "produce"]
    assert made == ["01-produce-acme-traces", "04-produce-acme-traces-2"]
    assert [step.reads for step in plan.steps if step.reads] == [made[:1], made[1:]]


def test_a_mixture_hands_it_on_and_the_gate_reads_it_too(registry: Registry) -> None:
    mix = {"source": "mix", "parts": [TRACES, {"source": "arith", "weight": 0.5}]}
    objective = {"objective": "grpo", "data": mix, "task": "arith", "steps": 1, "batch": 8, "max_tokens": 256}
    plan = planned(registry, train=[objective])
    assert [step.stage for step in plan.steps] == ["produce", "calibrate", "quantize", "gate", "train"]
    assert [step.reads for step in plan.steps] == [
        [],
        ["01-produce-acme-traces"],
        [],
        *[["01-produce-acme-traces"]] * 2,
    ]


def test_traces_of_traces_are_made_one_after_the_other(registry: Registry) -> None:
    plan = planned(registry, calibration=TRACES | {"prompts": [TRACES], "samples": 4, "tokens": 64}, train=[])
    first, second = "01-produce-acme-traces", "02-produce-acme-traces-2"
    assert [step.reads for step in plan.steps] == [[], [first], [second, first], []]


def test_nobody_reads_it_nobody_writes_it(registry: Registry) -> None:
    assert [step.stage for step in planned(registry, quantize="rtn", train=[]).steps] == ["quantize"]


def test_its_options_and_its_source_decide_what_reads_it(registry: Registry) -> None:
    def prints(*overrides: str) -> dict[str, str]:
        plan = planned(registry, *overrides)
        return {step.name: plan.fingerprint(step) for step in plan.steps}

    before = prints()
    more = prints("calibration.rows=16", "train.0.data.rows=16")
    assert before.keys() == more.keys()
    assert not set(before.values()) & set(more.values())
    later = prints("train.0.steps=3")
    assert [name for name in before if before[name] != later[name]] == ["04-train-kd"]
    plan = planned(registry)
    assert plan.facts(plan.steps[0])["parts"]["source"]["source"]
    assert set(plan.facts(plan.steps[0])["model"]) >= {"weights", "tokenizer"}


def test_reading_ahead_asks_for_the_problems_and_not_for_what_is_unwritten(registry: Registry, tmp_path: Path) -> None:
    assert read_data(planned(registry), registry, offline=True) == []
    (tmp_path / "problems.jsonl").write_text("no json\n")
    broken = TRACES | {"prompts": [{"source": "jsonl", "path": str(tmp_path / "problems.jsonl")}]}
    [finding] = read_data(
        planned(registry, calibration=broken | RECIPE["calibration"] | broken), registry, offline=True
    )
    assert "problems.jsonl:1: not JSON" in str(finding)


def test_its_problems_say_what_it_is_about(registry: Registry) -> None:
    text = {"source": "text", "path": __file__}
    [warning] = [
        finding.text
        for finding in preflight(planned(registry, train=[RECIPE["train"][0] | {"data": text}]), offline=True)
        if "domains" in finding.text
    ]
    assert "calibration: math, kd: text" in warning


# --------------------------------------------------------------------------------------------------- the writing


def written(row: dict[str, str], *, right: bool = True, ended: bool = True) -> Completion:
    return Completion(f"\\boxed{{{row['answer'] if right else 'x'}}}", (1, 2), ended, 8)


def test_it_resumes_from_a_file_whose_end_was_cut_off(registry: Registry, tmp_path: Path) -> None:
    card = registry.card("source", "acme-traces")
    options = registry.options(card, {"prompts": TRACES["prompts"], "rows": 6, "batch": 2})
    asked: list[tuple[int, list[str]]] = []

    def complete(rows: list[Any], *, seed: int, **settings: Any) -> list[list[Completion]]:
        asked.append((seed, [row["prompt"] for row in rows]))
        return [[written(row, right=index == 0)] for index, row in enumerate(rows)]

    def write(folder: Path, complete: Callable[..., Any]) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        made = registry.make(card, options)
        return made.produce(folder, LoadedModel(None, None, complete, grade=lambda *of: "wrong"), "train", 5)

    assert write(tmp_path / "whole", complete) == {"asked": 6, "kept": 3, "found_there": 0}
    whole = (tmp_path / "whole" / "traces.jsonl").read_bytes()
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "traces.jsonl").write_bytes(whole[: len(whole) * 7 // 12])
    first, asked[:] = list(asked), []
    assert write(cut, complete) == {"asked": 6, "kept": 3, "found_there": 2}
    assert (cut / "traces.jsonl").read_bytes() == whole
    assert asked == first[1:]
    made = registry.make(card, options, [(card, options, cut)])
    assert made.folder == cut
    assert len(list(made.rows("train", 5))) == 3
    assert registry.make(card, options).folder is None


@pytest.mark.slow
def test_conformance(registry: Registry) -> None:
    class Suite(rqat_testing.SourceSuite):
        name = "acme-traces"
        options: ClassVar = {"prompts": TRACES["prompts"], "rows": 4, "max_new_tokens": 64}

    Suite.registry = registry
    suite = Suite()
    for test in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, test)()


def test_a_card_and_its_class_agree(registry: Registry) -> None:
    card = registry.card("source", "acme-traces")
    with pytest.raises(PluginError, match=r"registers model=False, but its class has a `produce`"):
        registry.load_class(replace(card, model=False))
    with pytest.raises(PluginError, match=r"registers model=True, but its class has no `produce`"):
        registry.load_class(replace(registry.card("source", "arith"), model=True))


def test_what_produce_has_to_do(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(registry)
    monkeypatch.setattr(Original, "copied", lambda *rest, **settings: (None, None))
    monkeypatch.setattr(produce, "writer_for", lambda model: None)
    job = Job(plan, tmp_path, registry)
    job.workdir(plan.steps[0]).mkdir()
    for told, problem in (([], r"produce returned \[\]"), ({}, "wrote nothing into its folder")):
        monkeypatch.setattr(sys.modules["acme_traces"].Traces, "produce", lambda *rest, told=told: told)
        with pytest.raises(PluginError, match=problem):
            produce.run(job, plan.steps[0])


@pytest.mark.slow
def test_a_whole_run(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = tmp_path / "traces.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    calls: list[int] = []
    real = produce.complete_rows

    def counted(model: Any, tokenizer: Any, rows: list[Any], *rest: Any, **settings: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, tokenizer, rows, *rest, **settings)

    monkeypatch.setattr(produce, "complete_rows", counted)
    assert rqat("qat", "-r", recipe, "-o", run).exit_code == 130
    assert (run / "01-produce-acme-traces.partial" / "traces.jsonl").is_file()

    read: list[tuple[Path, list[Any]]] = []
    source = sys.modules["acme_traces"].Traces
    rows = source.rows

    def noted(self: Any, split: Any, seed: int) -> Any:
        found = list(rows(self, split, seed))
        read.append((self.folder, found))
        return iter(found)

    monkeypatch.setattr(source, "rows", noted)
    result = rqat("qat", "-r", recipe, "-o", run)
    assert result.exit_code == 0, result.stderr
    assert calls == [8, 4, 4]  # twelve problems, of which the second batch was interrupted
    told = read_json(run / "01-produce-acme-traces" / "manifest.json")["results"]
    assert told["asked"] == 12
    assert told["found_there"] == 8
    assert told["kept"] >= 6
    assert [folder for folder, _ in read] == [run / "01-produce-acme-traces"] * 2  # of calibrate, of train
    assert read[0][1] == read[1][1]
    assert len(read[0][1]) == told["kept"]
    page = (run / "report.html").read_text()
    assert "Rows written by the model" in page

    again = rqat("qat", "-r", recipe, "-o", run)
    assert "Finished already; nothing to do" in again.stderr
    assert calls == [8, 4, 4]

    more = ("--set", "calibration.rows=13", "--set", "train.0.data.rows=13")
    result = rqat("qat", "-r", recipe, "-o", run, *more)
    assert result.exit_code == 0, result.stderr
    assert calls == [8, 4, 4, 8, 5]
    lines = (run / "01-produce-acme-traces" / "traces.jsonl").read_text().splitlines()
    assert len(lines) == 13
    assert all(set(json.loads(line)) == {"prompt", "completion", "answer", "kept"} for line in lines)
