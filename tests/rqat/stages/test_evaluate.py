"""The evaluate stage on a tiny model: files, figures, the quantized variant, going on after an interruption."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from rqat.errors import UnknownName
from rqat.estimate import ENGINE_ROWS, Sizes
from rqat.evals import harness
from rqat.generation.steps import SIZES
from rqat.grids import bits_per_weight
from rqat.job import Job
from rqat.model.checkpoint import load_checkpoint, save_checkpoint
from rqat.model.config import read_config
from rqat.model.kept import KeptCheckpoints
from rqat.model.load import load_model
from rqat.pipeline import run_pipeline
from rqat.plan import build_plan
from rqat.processes import Processes
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stages.evaluate import Evaluate
from rqat.stages.evaluate import run as evaluate
from rqat.stages.evaluate.command import eval_plan
from tests.forks import together
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture
def job(tmp_path, registry):
    save_tiny(tmp_path / "model", hidden=64)
    task = {"task": "arith", "problems": 10, "steps": [1, 2], "max_new_tokens": 8, "limit": 6, "batch": 4}
    plan = eval_plan(registry, str(tmp_path / "model"), [task])
    job = Job(plan, tmp_path / "run", registry)
    job.workdir(plan.steps[0]).mkdir(parents=True)
    return job


def read(work):
    rows = [json.loads(line) for line in (work / "samples.jsonl").read_text().splitlines()]
    return json.loads((work / "results.json").read_text()), rows


def test_results_and_samples(job):
    step = job.plan.steps[0]
    facts = evaluate.run(job, step)
    results, rows = read(job.workdir(step))
    assert results == json.loads(json.dumps(facts))
    assert {"task": "arith", "variant": "bf16", "n": 6}.items() <= results.items()
    assert results["correct"] + results["wrong"] + results["unverifiable"] == 6
    assert {"accuracy", "low", "high", "seconds", "prompt_hash", "backend"} <= results.keys()
    assert len(rows) == 6
    assert {"prompt", "completion", "answer", "verdict", "tokens"} <= rows[0].keys()
    assert sorted(path.name for path in job.workdir(step).iterdir()) == [
        ".resume", "results.json", "samples.jsonl",
    ]  # fmt: skip


def test_an_interrupted_evaluation_ends_with_the_same_samples(job, monkeypatch):
    step = job.plan.steps[0]
    work = job.workdir(step)
    evaluate.run(job, step)
    expected = (work / "samples.jsonl").read_bytes()
    (work / "samples.jsonl").unlink()
    shutil.rmtree(job.scratch(step))
    original = harness.Generator.complete
    calls = []

    def complete(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(harness.Generator, "complete", complete)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(job, step)
    assert (job.scratch(step) / "samples.jsonl").exists()
    evaluate.run(job, step)
    assert len(calls) == 3
    assert (work / "samples.jsonl").read_bytes() == expected


def test_a_quantized_arm_is_read_from_its_step(job, tmp_path):
    step = replace(job.plan.steps[0], variant="gptq", inputs={"start": "02-quantize-gptq"})
    model, tokenizer = load_model(job.plan.model)
    model.lm_head.weight.data.mul_(-1)
    folder = job.result_of("02-quantize-gptq")
    folder.mkdir()
    save_checkpoint(folder, model, tokenizer, {})
    loaded, _ = evaluate.load_variant(job, step)
    assert (loaded.lm_head.weight == model.lm_head.weight).all()
    original, _ = evaluate.load_variant(job, job.plan.steps[0])
    assert (original.lm_head.weight == -model.lm_head.weight).all()
    assert evaluate.run(job, step)["variant"] == "gptq"


def test_several_processes_leave_what_one_leaves(job, tmp_path):
    step = job.plan.steps[0]
    work = job.workdir(step)
    facts = evaluate.run(job, step)
    expected = (work / "samples.jsonl").read_bytes()
    shutil.rmtree(work)
    work.mkdir()
    job.original.release()

    def run(processes: Processes) -> None:
        found = evaluate.run(replace(job, processes=processes), step)
        assert (found != {}) == processes.leads

    assert together(2, tmp_path, run) == [0, 0]
    assert (work / "samples.jsonl").read_bytes() == expected
    results, _ = read(work)
    timed = ("seconds", "tokens_per_s")
    assert {**results, **dict.fromkeys(timed)} == {**facts, **dict.fromkeys(timed), "processes": 2, "seeds": [42]}
    assert [path.name for path in sorted(job.scratch(step).glob("*.jsonl"))] == ["samples-1.jsonl", "samples.jsonl"]


@pytest.mark.parametrize(
    ("keys", "several"),
    [
        ({"task": "arith"}, True),
        ({"task": "arith", "limit": 33}, True),
        ({"task": "arith", "limit": 32}, False),
        ({"task": "arith", "limit": 32, "seeds": [1, 2]}, False),
        ({"task": "arith", "limit": 32, "seeds": [1, 2], "temperature": 0.5}, True),
        ({"task": "arith", "base_url": "http://localhost:1/v1"}, False),
        ({"task": "kl", "rows": [{"source": "arith"}]}, False),
        ({"task": "lm-eval:gsm8k"}, False),
    ],
)
def test_what_is_shared_out_over_processes(keys: dict[str, Any], several: bool, registry) -> None:
    [step] = eval_plan(registry, "builtin:tiny-reasoner", [keys]).steps
    assert Evaluate().in_several(step) is several


def test_a_process_takes_memory_for_its_share(registry) -> None:
    def memory(processes: int, limit: int | None, **keys: Any) -> float:
        plan = eval_plan(registry, "builtin:tiny-reasoner", [{"task": "arith", "limit": limit, **keys}])
        config = read_config(plan.model)
        sizes = Sizes(plan.model, config, plan.scheme, bits_per_weight, "cuda", processes=processes)
        return Evaluate().estimate(plan.steps[0], plan, sizes).memory

    assert memory(4, 256) == memory(1, 64) < memory(1, 256)
    assert memory(3, 100, batch=20) == memory(1, 34, batch=20)
    assert memory(8, None) == memory(1, ENGINE_ROWS) == memory(1, None, batch=4 * ENGINE_ROWS)
    assert memory(1, None, batch=4 * ENGINE_ROWS, backend="transformers") > memory(1, None)
    assert SIZES[-1] == ENGINE_ROWS


def test_a_task_nobody_knows(tmp_path, registry):
    save_tiny(tmp_path / "model", hidden=64)
    plan = eval_plan(registry, str(tmp_path / "model"), ["lm-eval:no_such_task"])
    job = Job(plan, tmp_path / "run", registry)
    job.workdir(plan.steps[0]).mkdir(parents=True)
    with pytest.raises(UnknownName, match="'no_such_task' is not a task"):
        evaluate.run(job, plan.steps[0])


def test_a_model_is_loaded_once_for_all_tasks_that_ask_it(tmp_path, registry, monkeypatch):
    """With the samples of a run that loads it for each; there is nothing between the tasks that changes a model."""
    save_tiny(tmp_path / "model", hidden=64)
    tasks = [{"task": "arith", "problems": count, "limit": 2, "max_new_tokens": 4} for count in (2, 3)]
    keys = {"model": str(tmp_path / "model"), "scheme": "w2g32", "quantize": "rtn", "export": None, "evaluate": tasks}
    loaded = []

    def load(folder, **where):
        loaded.append(folder.name)
        return load_checkpoint(folder, **where)

    monkeypatch.setattr("rqat.model.checkpoint.load_checkpoint", load)
    samples = []
    for name in ("kept", "alone"):
        if name == "alone":
            monkeypatch.setattr(KeptCheckpoints, "make_room", lambda *_, **__: None)
        plan = build_plan(built_recipe({"name": name, **keys}, {}), registry)
        run_pipeline(Job(plan, tmp_path / name, registry))
        found = sorted((tmp_path / name).glob("*-evaluate-*"))
        assert len(found) == 4
        samples.append([(path / "samples.jsonl").read_bytes() for path in found])
    assert loaded == ["01-quantize-rtn"] * 3
    assert samples[0] == samples[1]
